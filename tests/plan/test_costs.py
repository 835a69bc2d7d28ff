"""Tests of bytes, FLOPs and counts of programs, against numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.plan import flops
from maskrcnn_jax.plan.costs import list_costs
from maskrcnn_jax.plan.hlo import read_program
from maskrcnn_jax.plan.summary import costliest, summarize
from maskrcnn_jax.runtime.gpu_peaks import Peaks

# 1000 bytes a second, and a FLOP takes 0.1 s on tensor cores, else 1 s.
PEAKS = Peaks(1000.0, {'bf16': 10.0, 'tf32': 5.0, 'f32': 1.0, 'vector': 1.0})


def cost_of(*instructions, before=''):
  """Returns the costs of the instructions of a program, which are all kernels.

  Args:
    *instructions: Lines of the entry computation; the last is its root.
    before: Other computations.
  """
  *most, last = instructions
  body = ''.join(f'  {line}\n' for line in [*most, f'ROOT {last}'])
  return list_costs(
    read_program(f'{before}\nENTRY %main () -> f32[] {{\n{body}}}\n')
  )


def test_product_counts_two_flops_for_each_multiplication():
  (cost,) = cost_of(
    '%x = f32[2,3]{1,0} parameter(0)',
    '%y = f32[3,5]{1,0} parameter(1)',
    '%z = f32[2,5]{1,0} dot(%x, %y), lhs_contracting_dims={1}, '
    'rhs_contracting_dims={0}, operand_precision={highest,highest}, '
    'metadata={op_name="step/head/dot"}',
  )
  assert cost.kind == 'matmul'
  # 2 * 5 sums of 3 products.
  assert cost.flops == {'f32': 2 * 2 * 5 * 3}
  assert cost.bytes == 4 * (6 + 15 + 10)
  assert cost.source == 'step/head/dot'
  # The products take 60 s; moving 124 bytes takes 0.124 s.
  assert cost.seconds(PEAKS) == pytest.approx(60)


@pytest.mark.parametrize(
  ('dtype', 'attributes', 'expected'),
  [
    ('f32', 'operand_precision={highest,highest}', 'f32'),
    ('f32', 'operand_precision={high,high}', 'tf32'),
    ('f32', '', 'tf32'),
    ('f32', '"operand_precision":["HIGHEST","HIGHEST"]', 'f32'),
    ('f32', '"operand_precision":["DEFAULT","DEFAULT"]', 'tf32'),
    ('bf16', 'operand_precision={highest,highest}', 'bf16'),
    ('s8', '', 'vector'),
  ],
)
def test_number_format_follows_type_and_precision(dtype, attributes, expected):
  assert flops.number_format(dtype, attributes) == expected


def test_convolution_of_cudnn_counts_the_same_in_all_three_directions():
  # 8 images of 10x20 pixels, from 3 to 5 channels, kernel 3x3.
  work = 2 * 8 * 10 * 20 * 5 * 3 * 9
  image, kernel, output = 'bf16[8,10,20,3]', 'bf16[5,3,3,3]', 'bf16[8,10,20,5]'
  for target, first, second, result in (
    ('Forward', image, kernel, output),
    ('BackwardInput', output, kernel, image),
    ('BackwardFilter', image, output, kernel),
  ):
    (cost,) = cost_of(
      f'%x = {first} parameter(0)',
      f'%y = {second} parameter(1)',
      f'%z = ({result}, u8[0]) custom-call(%x, %y), window={{size=3x3 '
      'pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, '
      f'custom_call_target="__cudnn$conv{target}"',
    )
    assert cost.kind == 'convolution'
    assert cost.flops == {'bf16': work}


def test_product_of_cublas_reads_its_own_attributes():
  (cost,) = cost_of(
    '%x = bf16[20,7] parameter(0)',
    '%y = bf16[9,7] parameter(1)',
    '%z = (bf16[20,9], s8[64]) custom-call(%x, %y), '
    'custom_call_target="__cublas$lt$matmul", backend_config={'
    '"gemm_backend_config":{"dot_dimension_numbers":{'
    '"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}',
  )
  assert cost.kind == 'matmul'
  assert cost.flops == {'bf16': 2 * 20 * 9 * 7}
  # The 64 bytes of the second result are for the library.
  assert cost.bytes == 2 * (20 * 7 + 9 * 7 + 20 * 9)


@pytest.mark.parametrize(
  'options',
  [
    dict(window_strides=(1, 1), padding='SAME'),
    dict(window_strides=(2, 2), padding='VALID'),
    dict(window_strides=(2, 1), padding=((3, 0), (0, 2))),
    dict(window_strides=(1, 1), padding='SAME', rhs_dilation=(2, 3)),
    dict(window_strides=(1, 1), padding=((1, 2), (3, 0)), lhs_dilation=(2, 2)),
    dict(window_strides=(1, 1), padding='SAME', feature_group_count=2),
  ],
)
def test_convolution_counts_the_flops_that_xla_counts(options):
  groups = options.get('feature_group_count', 1)
  image = jnp.ones((2, 9, 11, 4))
  kernel = jnp.ones((3, 5, 4 // groups, 6))

  def convolve(image, kernel):
    return jax.lax.conv_general_dilated(
      image, kernel, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options
    )

  for function in (
    convolve,
    # The gradients by the image and by the kernel are convolutions too.
    lambda x, w: jax.vjp(lambda x: convolve(x, w), x)[1](convolve(x, w))[0],
    lambda x, w: jax.vjp(lambda w: convolve(x, w), w)[1](convolve(x, w))[0],
  ):
    lowered = jax.jit(function).lower(image, kernel)
    counted = sum(
      sum(flops.flops_of(computation, part).values())
      for computation in read_program(
        lowered.as_text(dialect='hlo')
      ).computations.values()
      for part in computation.instructions.values()
      if part.opcode == 'convolution'
    )
    assert counted == lowered.cost_analysis()['flops']


FUSED_SLICE = """
%fused (p: f32[100,4]) -> f32[2,4] {
  %p = f32[100,4]{1,0} parameter(0)
  %n = f32[100,4]{1,0} negate(%p)
  ROOT %s = f32[2,4]{1,0} slice(%n), slice={[0:2], [0:4]}
}
"""
FUSED_UPDATE = """
%fused (p: f32[100,4], q: f32[1,4], i: s32[]) -> f32[100,4] {
  %p = f32[100,4]{1,0} parameter(0)
  %q = f32[1,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = f32[100,4]{1,0} dynamic-update-slice(%p, %q, %i, %i)
}
"""
# The same update, of which the result is a view.
FUSED_VIEW = FUSED_UPDATE.replace(
  '  ROOT %u = f32[100,4]{1,0} ', '  %u = f32[100,4]{1,0} '
).replace('}\n', '  ROOT %v = f32[400]{0} bitcast(%u)\n}\n')
FUSED_SCATTER = """
%fused (p: f32[100], i: s32[7,1], v: f32[7]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  %i = s32[7,1]{1,0} parameter(1)
  %v = f32[7]{0} parameter(2)
  ROOT %u = f32[100]{0} scatter(%p, %i, %v), to_apply=%add
}
"""


@pytest.mark.parametrize(
  ('fused', 'operands', 'result', 'expected', 'kind'),
  [
    # Two rows are read and two are written, through an elementwise operation.
    (FUSED_SLICE, ['f32[100,4]'], 'f32[2,4]', 32 + 32, 'elementwise'),
    # The new row is read, and the place that it replaces is written: 16 bytes
    # are read, 16 are updated in place (XLA reads them too), and two indices.
    (
      FUSED_UPDATE,
      ['f32[100,4]', 'f32[1,4]', 's32[]'],
      'f32[100,4]',
      16 + 2 * 16 + 4,
      'copy',
    ),
    (
      FUSED_VIEW,
      ['f32[100,4]', 'f32[1,4]', 's32[]'],
      'f32[400]',
      16 + 2 * 16 + 4,
      'copy',
    ),
    # Seven indices and seven values are read, seven elements are updated.
    (
      FUSED_SCATTER,
      ['f32[100]', 's32[7,1]', 'f32[7]'],
      'f32[100]',
      28 + 28 + 2 * 28,
      'scatter',
    ),
  ],
)
def test_fusion_counts_only_the_bytes_that_it_uses(
  fused, operands, result, expected, kind
):
  lines = [f'%a{n} = {x} parameter({n})' for n, x in enumerate(operands)]
  names = ', '.join(f'%a{n}' for n in range(len(operands)))
  (cost,) = cost_of(
    *lines,
    f'%f = {result} fusion({names}), kind=kLoop, calls=%fused',
    before=fused,
  )
  assert cost.bytes == expected
  assert cost.kind == kind


@pytest.mark.parametrize(
  ('length', 'launches'),
  # A tile of 2048 is sorted by one kernel. For 4096, the twelfth stage needs a
  # kernel for the distance 2048 and one for the rest: 1 + 2. For 8192, the
  # thirteenth needs kernels for 4096, for 2048 and for the rest: 1 + 2 + 3.
  [(1, 1), (1000, 1), (2048, 1), (2049, 3), (4096, 3), (8192, 6)],
)
def test_sort_goes_through_the_memory_once_for_each_kernel(length, launches):
  (cost,) = cost_of(
    f'%x = f32[3,{length}] parameter(0)',
    f'%s = f32[3,{length}] sort(%x), dimensions={{1}}, to_apply=%less',
  )
  assert (cost.kind, cost.launches) == ('sort', launches)
  assert cost.bytes == launches * 2 * 3 * length * 4


LOOPS = """
%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %s = (s32[], f32[10]{0}) parameter(0)
  %x = f32[10]{0} get-tuple-element(%s), index=1
  %i = s32[] get-tuple-element(%s), index=0
  %y = f32[10]{0} exponential(%x)
  ROOT %t = (s32[], f32[10]{0}) tuple(%i, %y)
}

%condition (s: (s32[], f32[10])) -> pred[] {
  %s = (s32[], f32[10]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %p = pred[] compare(%i, %i), direction=LT
}
"""


def test_loops_multiply_the_costs_of_their_bodies():
  start = (
    '%i = s32[] parameter(0)',
    '%x = f32[10]{0} parameter(1)',
    '%s = (s32[], f32[10]{0}) tuple(%i, %x)',
  )
  loop = '%w = (s32[], f32[10]{0}) while(%s), condition=%condition, body=%body'
  known = ', backend_config={"known_trip_count":{"n":"16"}}'
  for suffix, times in ((known, 16), ('', 1)):
    test, exponential = cost_of(*start, loop + suffix, before=LOOPS)
    assert (exponential.name, exponential.times) == ('y', times)
    assert exponential.all_flops == 10 * times
    # 10 FLOPs at 1 a second take longer than 80 bytes at 1000 a second.
    assert exponential.seconds(PEAKS) == pytest.approx(10 * times)
    # The condition runs once more than the body.
    assert (test.name, test.times) == ('p', times + 1)


def test_summary_of_a_compiled_program_counts_its_parts():
  def step(x, indices):
    x = jax.lax.fori_loop(0, 7, lambda i, x: jnp.sin(x) + i, x)
    x = jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x)
    x = jnp.sort(x, axis=1)
    return x.at[indices].add(2 * x[:3])

  compiled = jax.jit(step).lower(jnp.ones((4, 1000)), jnp.arange(3)).compile()
  figures, costs = summarize(read_program(compiled.as_text()), {'slow': PEAKS})
  assert sorted(figures['loops'], key=str) == [7, None]
  assert figures['data_dependent_loops'] == 1
  (sort,) = figures['sorts']
  assert (sort['rows'], sort['length'], sort['times']) == (4, 1000, 1)
  (scatter,) = figures['scatters']
  assert scatter['values'] == 3 * 1000
  assert scatter['into'] == 'f32[4,1000]'
  assert figures['collectives'] == figures['transfers'] == {}
  seconds = sum(cost.seconds(PEAKS) for cost in costs)
  assert figures['roofline_ms'] == {'slow': pytest.approx(1e3 * seconds)}
  assert figures['launches'] == sum(c.launches * c.times for c in costs)
  best = costliest(costs, PEAKS, 2)
  assert [cost.all_bytes for cost in best['bytes']] == sorted(
    (cost.all_bytes for cost in costs), reverse=True
  )[:2]


def test_exchanges_count_bytes_once_and_find_those_in_loops():
  text = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (s: f32[8]) -> f32[8] {
  %s = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%s), to_apply=%sum
}

%condition (s: f32[8]) -> pred[] {
  %s = f32[8]{0} parameter(0)
  ROOT %p = pred[] constant(true)
}

ENTRY %main (x: f32[8], y: bf16[5]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = bf16[5]{0} parameter(1)
  %one = f32[8]{0} all-reduce-start(%x), to_apply=%sum
  %one.done = f32[8]{0} all-reduce-done(%one)
  %two = (bf16[5]{0}, bf16[20]{0}) all-gather-start(%y), dimensions={0}
  %two.done = bf16[20]{0} all-gather-done(%two)
  %host = f32[8]{0:S(5)} copy(%x)
  %call = f32[8]{0} custom-call(%x), custom_call_target="xla_python_callback"
  ROOT %loop = f32[8]{0} while(%one.done), condition=%condition, body=%body
}
"""
  figures, costs = summarize(read_program(text), {})
  assert figures['collectives'] == {'all-reduce': [32, 32], 'all-gather': [40]}
  assert figures['in_loops'] == {'all-reduce': 1}
  assert figures['transfers'] == {'copy in host memory': 1}
  assert figures['callbacks'] == {'xla_python_callback': 1}
  assert [cost.kind for cost in costs] == [
    *('all-reduce', 'all-gather', 'copy', 'custom kernel', 'all-reduce')
  ]


def test_matrix_products_agree_with_the_count_of_xla():
  lowered = jax.jit(lambda x, y: jnp.einsum('bij,bkj->bik', x, y)).lower(
    np.ones((3, 4, 5), np.float32), np.ones((3, 6, 5), np.float32)
  )
  program = read_program(lowered.as_text(dialect='hlo'))
  (cost,) = [c for c in list_costs(program) if c.kind == 'matmul']
  assert cost.all_flops == 2 * 3 * 4 * 6 * 5
  assert cost.all_flops == lowered.cost_analysis()['flops']
