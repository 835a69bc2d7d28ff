"""Convolutions that are fast on the CPU too, and so are their gradients.

XLA's own convolutions and gradients are used on other devices.
"""

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

# Number of positions whose products the weight gradient of a convolution sums
# at once. With 256 channels they take 2 MB, which stay in the cache of a core.
BAND_POSITIONS = 2048

# A 3x3 convolution with at least this number of output positions is computed by
# `winograd`. With fewer positions, transforming the kernel costs too much.
WINOGRAD_POSITIONS = 2048

# Number of output positions that `winograd` computes at once. With 256 channels
# the transformed input takes 17 MB.
WINOGRAD_BAND = 4096

# The matrices of F(2x2, 3x3).
# Source: Fast Algorithms for Convolutional Neural Networks (arXiv:1509.09308),
# section 4.1.
WINOGRAD_INPUT = np.array(
  [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32
)
WINOGRAD_KERNEL = np.array(
  [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32
)
WINOGRAD_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)


def convolve(
  x: Float[Array, 'n h w c'],
  kernel: Float[Array, 's s c1 c2'],
  *,
  stride: int = 1,
  groups: int = 1,
  dilation: int = 1,
) -> Float[Array, 'n h2 w2 c2']:
  """Convolves with a kernel of odd side s; the input is padded with zeros.

  Args:
    x: Input with c channels.
    kernel: Kernel with c1 = c / groups input channels and c2 output channels.
    stride: Stride in both directions.
    groups: Number of groups. Output channels of a group are computed from the
      input channels of the same group only.
    dilation: Distance between two neighbouring cells that the kernel reads.
  """
  margin = dilation * (kernel.shape[0] // 2)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=[(margin, margin)] * 2,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


@jax.custom_vjp
def pointwise_conv(
  x: Float[Array, '*n c'], kernel: Float[Array, 'c c2']
) -> Float[Array, '*n c2']:
  """Computes `x @ kernel`, which is a convolution with a 1x1 kernel.

  XLA's CPU backend copies the left operand of the product that is the gradient
  of the kernel, in order to transpose it. Here the left operand is the one with
  fewer channels. On other devices, the gradients are XLA's own.
  """
  return x @ kernel


def _pointwise_conv_forward(
  x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
  """Returns the result of `pointwise_conv`, and its arguments."""
  return x @ kernel, (x, kernel)


def _pointwise_conv_backward(
  saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
  """Returns the gradients of `pointwise_conv` for its input and its kernel.

  Args:
    saved: The input and the kernel of the convolution.
    gradient: Gradient for the result of the convolution.
  """

  def by_xla(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    """Computes both gradients by XLA's own rules."""
    return jax.vjp(jnp.matmul, x, kernel)[1](gradient)

  def narrow_left(
    x: Array, kernel: Array, gradient: Array
  ) -> tuple[Array, Array]:
    """Computes the gradient of the kernel with the narrower operand left."""
    is_narrower = gradient.shape[-1] < x.shape[-1]
    left, right = (gradient, x) if is_narrower else (x, gradient)
    positions = tuple(range(x.ndim - 1))
    # Without the barrier, XLA exchanges the operands of a product whose result
    # is transposed.
    of_kernel = lax.optimization_barrier(
      lax.dot_general(left, right, ((positions, positions), ((), ())))
    )
    return gradient @ kernel.T, of_kernel.T if is_narrower else of_kernel

  return lax.platform_dependent(
    *saved, gradient, cpu=narrow_left, default=by_xla
  )


pointwise_conv.defvjp(_pointwise_conv_forward, _pointwise_conv_backward)


def _combine(factors: np.ndarray, terms: list[Array]) -> Array:
  """Returns the sum of terms times factors, most of which are 1, -1 or 0."""
  total: Array | None = None
  for factor, term in zip(factors, terms, strict=True):
    if factor == 0:
      continue
    term = term if factor == 1 else -term if factor == -1 else factor * term
    total = term if total is None else total + term
  assert total is not None  # No row of the matrices is zero.
  return total


def winograd(
  x: Float[Array, 'n h w c'], kernel: Float[Array, '3 3 c c2']
) -> Float[Array, 'n h w c2']:
  """Computes `convolve` for a 3x3 kernel with 4 / 9 of the multiplications.

  The output is divided into tiles of 2x2 cells. Each tile needs 4x4 cells of
  the input. Input, kernel and output are transformed by small matrices that
  consist of 0, 1, -1 and 1/2, and in between there is one matrix product for
  each of the 16 transformed cells. The transformed cells of a band of rows are
  held at once. The rounding errors are about 1.5 times those of `convolve`.

  Args:
    x: Input of the convolution.
    kernel: Kernel of the convolution.

  Source:
    F(2x2, 3x3) of Fast Algorithms for Convolutional Neural Networks
    (arXiv:1509.09308), section 4.1.
  """
  n, height, width, channels = x.shape
  features = kernel.shape[-1]
  tile_rows, tile_columns = -(-height // 2), -(-width // 2)
  most_rows = max(1, min(tile_rows, WINOGRAD_BAND // (4 * n * tile_columns)))
  bands = -(-tile_rows // most_rows)
  rows = -(-tile_rows // bands)
  x = jnp.pad(
    x,
    (
      (0, 0),
      (1, 2 * bands * rows - height + 1),
      (1, 2 * tile_columns - width + 1),
      (0, 0),
    ),
  )
  matrix = jnp.asarray(np.kron(WINOGRAD_KERNEL, WINOGRAD_KERNEL))
  kernels = jnp.matmul(
    matrix, kernel.reshape(9, -1), precision=lax.Precision.HIGHEST
  ).reshape(16, channels, features)

  def of_band(cells: Float[Array, 'n h3 w3 c']) -> Float[Array, 'n h4 w4 c2']:
    """Returns `rows` rows of tiles; one more cell of input is at each edge."""
    rows_of_tiles = [cells[:, i : i + 2 * rows - 1 : 2] for i in range(4)]
    # Without the barrier, XLA would compute these sums again for each column.
    sums = lax.optimization_barrier(
      jnp.stack([_combine(row, rows_of_tiles) for row in WINOGRAD_INPUT])
    )
    columns_of_tiles = [
      sums[:, :, :, j : j + 2 * tile_columns - 1 : 2] for j in range(4)
    ]
    transformed = jnp.stack(
      [_combine(row, columns_of_tiles) for row in WINOGRAD_INPUT], axis=1
    )
    products = lax.dot_general(
      transformed.reshape(16, -1, channels),
      kernels,
      (((2,), (1,)), ((0,), (0,))),
    )
    cells_of_tiles = [
      [
        _combine(
          np.outer(WINOGRAD_OUTPUT[i], WINOGRAD_OUTPUT[j]).ravel(),
          list(products),
        ).reshape(n, rows, 1, tile_columns, 1, features)
        for j in range(2)
      ]
      for i in range(2)
    ]
    return jnp.concatenate(
      [jnp.concatenate(row, axis=4) for row in cells_of_tiles], axis=2
    ).reshape(n, 2 * rows, 2 * tile_columns, features)

  if bands == 1:
    return of_band(x)[:, :height, :width]

  def write_band(band: Array, y: Array) -> Array:
    """Writes the rows of one band into the result."""
    start = 2 * rows * band
    cells = lax.dynamic_slice_in_dim(x, start, 2 * rows + 2, axis=1)
    return lax.dynamic_update_slice_in_dim(y, of_band(cells), start, axis=1)

  y = lax.fori_loop(
    0,
    bands,
    write_band,
    jnp.zeros((n, 2 * bands * rows, 2 * tile_columns, features)),
  )
  return y[:, :height, :width]


def _convolve_on_cpu(
  x: Float[Array, 'n h w c'], kernel: Float[Array, 's s c c2']
) -> Float[Array, 'n h w c2']:
  """Computes `convolve` with stride 1 by the method that is faster on a CPU."""
  is_large = x.size // x.shape[-1] >= WINOGRAD_POSITIONS
  if kernel.shape[0] == 3 and x.dtype == jnp.float32 and is_large:
    return winograd(x, kernel)
  return convolve(x, kernel)


@jax.custom_vjp
def wide_conv(
  x: Float[Array, 'n h w c'], kernel: Float[Array, 's s c c2']
) -> Float[Array, 'n h w c2']:
  """Computes `convolve` in a way that is fast on the CPU too.

  On the CPU, large 3x3 convolutions are computed by `winograd`. XLA's CPU
  backend computes the gradient of the kernel as a convolution, which overflows
  the cache: for an input of 200x336x256 this takes four times as long as matrix
  products. Inside a loop, the backend also uses only one core for the gradients
  of both arguments. On other devices, the convolution and its gradients are
  XLA's own.
  """
  return lax.platform_dependent(
    x, kernel, cpu=_convolve_on_cpu, default=convolve
  )


def _wide_conv_forward(
  x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
  """Returns the result of `wide_conv`, and the arguments for its gradient."""
  return wide_conv(x, kernel), (x, kernel)


def _wide_conv_backward(
  saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
  """Returns the gradients of `wide_conv` for its input and for its kernel.

  Args:
    saved: The input and the kernel of the convolution.
    gradient: Gradient for the result of the convolution.
  """

  def by_xla(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    """Computes both gradients by XLA's own rules."""
    return jax.vjp(convolve, x, kernel)[1](gradient)

  def by_products(
    x: Array, kernel: Array, gradient: Array
  ) -> tuple[Array, Array]:
    """Computes the gradient of the kernel by matrix products."""
    # The gradient for the input of a convolution with stride 1 is a convolution
    # with the kernel turned by 180 degrees.
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return (
      _convolve_on_cpu(gradient, turned),
      kernel_gradient(x, gradient, side=kernel.shape[0]),
    )

  return lax.platform_dependent(
    *saved, gradient, cpu=by_products, default=by_xla
  )


wide_conv.defvjp(_wide_conv_forward, _wide_conv_backward)


def kernel_gradient(
  x: Float[Array, 'n h w c'],
  gradient: Float[Array, 'n h w c2'],
  *,
  side: int,
) -> Float[Array, 's s c c2']:
  """Returns the gradient of `convolve`, with stride 1, for its kernel.

  The gradient for kernel[i, j] is a sum over all positions. Each term is the
  outer product of x, shifted by (i, j) - side // 2, and of the gradient at the
  position. For each (i, j), the sum over a band of rows is one matrix product.

  Args:
    x: Input of the convolution.
    gradient: Gradient for the output of the convolution.
    side: Side of the kernel in cells; odd.
  """
  num, height, width, channels = x.shape
  most_rows = max(1, min(height, BAND_POSITIONS // (num * width)))
  bands = -(-height // most_rows)
  rows = -(-height // bands)
  margin, missing = side // 2, bands * rows - height
  # If the bands cannot be equally high, rows of zeros fill the last band. They
  # add nothing to the sum.
  gradient = jnp.pad(gradient, ((0, 0), (0, missing), (0, 0), (0, 0)))
  x = jnp.pad(x, ((0, 0), (margin, margin + missing), (margin, margin), (0, 0)))

  def add_band(band: Array, total: Array) -> Array:
    """Adds the products of one band of rows, for each (i, j) of the kernel."""
    g = lax.dynamic_slice_in_dim(gradient, band * rows, rows, axis=1)
    # XLA's CPU backend transposes the left operand of each product. The barrier
    # makes it transpose the gradient once for all (i, j).
    g = lax.optimization_barrier(g.reshape(-1, g.shape[-1]).T)
    rows_of_x = lax.dynamic_slice_in_dim(
      x, band * rows, rows + 2 * margin, axis=1
    )
    return total + jnp.stack(
      [
        jnp.matmul(
          g,
          rows_of_x[:, i : i + rows, j : j + width].reshape(-1, channels),
          preferred_element_type=jnp.float32,
        )
        for i in range(side)
        for j in range(side)
      ]
    )

  total = lax.fori_loop(
    0,
    bands,
    add_band,
    jnp.zeros((side * side, gradient.shape[-1], channels)),
  )
  return total.swapaxes(1, 2).reshape(side, side, channels, -1).astype(x.dtype)
