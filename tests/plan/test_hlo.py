"""Tests of reading programs in XLA's language HLO."""

import jax
import jax.numpy as jnp
import pytest

from maskrcnn_jax.plan.hlo import Array, arrays_of, read_program

# A program as XLA writes it for a GPU, made short by hand.
PROGRAM = r"""
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[4]{0})}

FileNames
1 "step.py"

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b), metadata={op_name="step/(x, y)"}
}

ENTRY %main (x.1: f32[4], y.1: (f32[2,3], u8[0])) -> (f32[], f32[2,3]) {
  %x.1 = f32[4]{0} parameter(0), sharding={replicated}, metadata={op_name="x"}
  %y.1 = (f32[2,3]{1,0:T(8,128)}, /*index=1*/u8[0]{0}) parameter(1)
  %part = f32[2,3]{1,0:T(8,128)S(5)} get-tuple-element(%y.1), index=0
  %zero = f32[] constant(0)
  %total = f32[] reduce(%x.1, %zero), dimensions={0}, to_apply=%add.1
  ROOT %out.2 = (f32[], f32[2,3]{1,0}) tuple(%total, %part)
}
"""


def test_read_program_finds_computations_operands_and_types():
  program = read_program(PROGRAM)
  assert program.entry == 'main'
  assert list(program.computations) == ['add.1', 'main']
  assert program.computations['add.1'].root == 'sum'
  main = program.computations['main']
  assert main.root == 'out.2'
  assert list(main.instructions) == [
    *('x.1', 'y.1', 'part', 'zero', 'total', 'out.2')
  ]
  total = main.instructions['total']
  assert total.opcode == 'reduce'
  assert total.operands == ('x.1', 'zero')
  assert total.arrays == (Array('f32', ()),)
  assert total.called('to_apply') == 'add.1'
  assert total.numbers('dimensions') == (0,)
  # The tuple has 2 * 3 * 4 bytes and no element of u8.
  assert main.instructions['y.1'].bytes == 24
  assert main.instructions['y.1'].operands == ()
  assert main.instructions['x.1'].source == 'x'
  assert main.instructions['part'].is_in_host_memory
  assert not main.instructions['out.2'].is_in_host_memory


def test_read_program_reads_instructions_without_percent_signs():
  text = (
    'ENTRY main (x: f32[2]) -> f32[2] {\n'
    '  x = f32[2]{0} parameter(0)\n'
    '  ROOT y = f32[2]{0} add(f32[2]{0} x, f32[2]{0} x)\n'
    '}\n'
  )
  (_, y) = read_program(text).computations['main'].instructions.values()
  assert y.operands == ('x', 'x')


def test_read_program_refuses_a_text_without_an_entry():
  with pytest.raises(ValueError, match='no HLO program'):
    read_program('module @jit_step {\n}\n')


def test_arrays_of_reads_names_of_types_with_digits_and_letters():
  assert arrays_of('(bf16[8,200]{1,0}, /*index=1*/pred[], f8e4m3fn[3])') == (
    Array('bf16', (8, 200)),
    Array('pred', ()),
    Array('f8e4m3fn', (3,)),
  )
  assert [a.bytes for a in arrays_of('(bf16[8,200], pred[], s64[2])')] == [
    *(3200, 1, 16)
  ]


def test_trip_count_is_known_unless_it_depends_on_data():
  def counted(x):
    return jax.lax.fori_loop(0, 16, lambda i, y: y * 1.5 + i, x)

  def open_ended(x):
    return jax.lax.while_loop(lambda y: y.sum() < 100, lambda y: y * 1.5 + 1, x)

  for function, expected in ((counted, 16), (open_ended, None)):
    text = jax.jit(function).lower(jnp.ones(3)).compile().as_text()
    loops = [
      part
      for _, part in read_program(text).all_instructions()
      if part.opcode == 'while'
    ]
    assert [loop.trip_count for loop in loops] == [expected]
    assert loops[0].called('body') in read_program(text).computations
