"""What all kernels share: launching, masked access, and IEEE division."""

from collections.abc import Callable
import functools

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp


def launch(
  kernel: Callable,
  *arguments: Array,
  name: str,
  grid: tuple[int, ...],
  out_shape,
  interpret: bool,
  num_warps: int = 4,
  **statics,
):
  """Runs a kernel once for each point of the grid.

  No gradient flows through it.

  Args:
    kernel: Takes references to whole arrays, the arguments' and then the
      results', and by name `interpret` and `statics`. It must write every
      element of its results: they start as garbage.
    *arguments: Arrays.
    name: Of the kernel in a profile.
    grid: How many programs there are along each axis.
    out_shape: A jax.ShapeDtypeStruct for each result.
    interpret: Whether to run as plain JAX, on any device, slowly.
    num_warps: Of 32 threads each.
    **statics: What else the kernel is told.
  """
  return pl.pallas_call(
    functools.partial(kernel, interpret=interpret, **statics),
    grid=grid,
    out_shape=out_shape,
    # Without it, what compiles the kernel depends on the version of JAX.
    # With one stage no load is moved ahead of a barrier.
    compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=1),
    interpret=interpret,
    name=name,
  )(*map(jax.lax.stop_gradient, arguments))


def load(ref, *index, mask=None, other=0) -> Array:
  """Reads elements; those that the mask leaves out are `other`."""
  ref = ref.at[tuple(jnp.asarray(i, jnp.int32) for i in index)]
  if mask is None:
    return plgpu.load(ref)
  return plgpu.load(ref, mask=mask, other=jnp.asarray(other, ref.dtype))


def store(ref, *index, value, mask=None) -> None:
  """Writes elements, those that the mask leaves out excepted."""
  ref = ref.at[tuple(jnp.asarray(i, jnp.int32) for i in index)]
  plgpu.store(ref, value.astype(ref.dtype), mask=mask)


def barrier(*, interpret: bool) -> None:
  """Lets all threads of a program see what all have written."""
  if not interpret:
    plgpu.debug_barrier()


def divide(x: Array, y: Array, *, interpret: bool) -> Array:
  """Returns x / y, rounded to nearest.

  Triton's own division may be off in the last bit, which turns an overlap of
  exactly a threshold into one below it. Both must be float32 arrays of the
  same shape, and not scalars.
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
