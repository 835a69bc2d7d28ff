"""Helpers of all kernels: launch, masked access to memory, IEEE division."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
import numpy as np


def launch(
  kernel: Callable[..., None],
  *arguments: Array | np.ndarray,
  name: str,
  grid: tuple[int, ...],
  out_shape: jax.ShapeDtypeStruct | tuple[jax.ShapeDtypeStruct, ...],
  interpret: bool,
  num_warps: int = 4,
  **statics: Any,
) -> Any:
  """Runs a kernel: one program for each point of a grid.

  No gradient flows through the kernel.

  Args:
    kernel: Function that one program runs. The positional arguments are
      references to all of each argument array, then to all of each result. The
      keyword arguments are `interpret` and each of `statics` by name. The
      programs together must write every element of the results, which are
      uninitialised memory.
    *arguments: Arrays on the device.
    name: Name of the kernel in a profile.
    grid: Number of programs along each axis.
    out_shape: Shape and dtype of the result, or of each of several results.
    interpret: Whether to run the kernel as plain JAX, which is slow but works
      on any device.
    num_warps: Number of warps of a program; a warp is 32 threads.
    **statics: Further keyword arguments of the kernel, fixed at compilation.

  Returns:
    An array for `out_shape`, or one for each of its elements.
  """
  return pl.pallas_call(
    functools.partial(kernel, interpret=interpret, **statics),
    grid=grid,
    out_shape=out_shape,
    # Without these parameters, the version of JAX decides which backend of
    # Pallas compiles the kernel. With more than one stage, a load could be
    # moved ahead of a barrier.
    compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=1),
    interpret=interpret,
    name=name,
  )(*map(jax.lax.stop_gradient, arguments))


def load(
  ref: jax.Ref,
  *index: Array | int,
  mask: Array | None = None,
  other: float = 0,
) -> Array:
  """Reads elements of an array inside a kernel.

  Args:
    ref: Reference to the array.
    *index: One index for each axis of the array. They are broadcast against
      each other to the shape of the result.
    mask: Which elements to read; `None` reads all of them. An index outside of
      the array is allowed where the mask is false.
    other: Value of the result where the mask is false.
  """
  elements = ref.at[tuple(jnp.asarray(i, jnp.int32) for i in index)]
  if mask is None:
    return plgpu.load(elements)
  return plgpu.load(
    elements, mask=mask, other=jnp.asarray(other, elements.dtype)
  )


def store(
  ref: jax.Ref,
  *index: Array | int,
  value: Array,
  mask: Array | None = None,
) -> None:
  """Writes elements of an array inside a kernel.

  Args:
    ref: Reference to the array.
    *index: One index for each axis of the array. They are broadcast against
      each other to the shape of `value`.
    value: The elements; they are converted to the dtype of the array.
    mask: Which elements to write; `None` writes all of them. An index outside
      of the array is allowed where the mask is false.
  """
  elements = ref.at[tuple(jnp.asarray(i, jnp.int32) for i in index)]
  plgpu.store(elements, value.astype(elements.dtype), mask=mask)


def barrier(*, interpret: bool) -> None:
  """Waits until all threads of a program see the stores of all its threads."""
  if not interpret:
    plgpu.debug_barrier()


def divide(x: Array, y: Array, *, interpret: bool) -> Array:
  """Returns x / y, rounded to the nearest float32 as IEEE 754 has it.

  Triton's own division may be wrong in the last bit. An IoU that equals a
  threshold could then come out below it.

  Args:
    x: Float32 array, not a scalar.
    y: Float32 array of the same shape.
    interpret: Whether the kernel is interpreted; JAX then divides.
  """
  if interpret:
    return x / y
  (quotient,) = plgpu.elementwise_inline_asm(
    'div.rn.f32 $0, $1, $2;',
    args=[x, y],
    constraints='=f,f,f',
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
  )
  return quotient
