"""Tests of the cases with which kernels are checked and timed."""

import functools
import itertools

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.doctor import kernel_cases, kernel_check
from maskrcnn_jax.ops.boxes import pairwise_iou
from maskrcnn_jax.ops.matching import match_by_overlap
from maskrcnn_jax.ops.nms import nms
from maskrcnn_jax.ops.outlines import rasterize_outlines
from maskrcnn_jax.ops.roi_align import roi_align
from maskrcnn_jax.ops.selection import select_boxes

SMALL = kernel_cases.QUICK._replace(channels=4)
CASES = kernel_cases.make_cases(kernel_cases.TINY)


def name_of(case):
  return f'{case.name} {case.detail}'


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_kernels_interpreted_agree(case, key):
  assert kernel_check.make_check(case, 'interpret')(key) is None


@pytest.mark.slow
@pytest.mark.parametrize(
  'case', [case for case in CASES if case.torchvision], ids=name_of
)
def test_plain_jax_agrees_with_the_way_of_torchvision(case, key):
  arguments = case.make_arguments(key)
  ours, theirs = (
    jax.jit(function)(*arguments)
    for function in (
      functools.partial(case.call, kernels='xla'),
      case.torchvision,
    )
  )
  assert kernel_check.difference(case, ours, theirs) is None


def test_difference_says_what_differs():
  case = CASES[0]._replace(may_differ=0.15, tolerance=0.01)
  some = jnp.arange(10)
  images = jnp.tile(some, (4, 1))
  assert kernel_check.difference(case, images, images.at[:, 3].set(0)) is None
  # Two of the ten elements of one image, a twentieth of all elements.
  assert kernel_check.difference(case, images, images.at[2, 3:5].set(0)) == (
    '20.00% of the elements of an image differ'
  )
  far = jnp.array([jnp.inf, 100.0, -jnp.inf, jnp.nan])
  assert kernel_check.difference(case, far, far) is None
  assert kernel_check.difference(case, far.at[1].set(99.5), far) is None
  for wrong in (98.0, jnp.nan, jnp.inf):
    assert 'of the largest number' in kernel_check.difference(
      case, far.at[1].set(wrong), far
    )


# Errors that a kernel could make: a function with the error to call instead of
# the operation, and the indices of the operation's cases that must show it.
FAULTS = {
  'nms: nothing is suppressed': (
    lambda *x, **o: nms(*x, **o | {'iou_threshold': 2.0}),
    {0, 1},
  ),
  'nms: boxes of all classes suppress each other': (
    lambda *x, groups, **o: nms(*x, groups=None, **o),
    {1},
  ),
  'nms: the last slot stays empty': (
    lambda *x, **o: nms(*x, **o | {'limit': o['limit'] - 1}),
    {0, 1},
  ),
  'match_by_overlap: no rescue': (
    lambda *x, **o: match_by_overlap(*x, **o | {'rescue': False}),
    {0},
  ),
  'match_by_overlap: the first ground truth is missed': (
    lambda b, v, g, gv, **o: match_by_overlap(
      b, v, g, gv.at[0].set(False), **o
    ),
    {0},
  ),
  'select_boxes: equal logits in the opposite order': (
    lambda logits, *x, **o: select_boxes(
      logits + 1e-6 * jnp.linspace(0, 1, logits.size), *x, **o
    ),
    {0, 1},
  ),
  'select_boxes: strides are not fitted': (
    lambda *x, **o: select_boxes(*x, **o | {'fit_to': None}),
    {1},
  ),
  'roi_align: samples moved by a hundredth of a cell': (
    lambda *x, **o: roi_align(*x, **o | {'offset': 0.51}),
    {0, 1, 2},
  ),
  'rasterize_outlines: only the first part is drawn': (
    lambda outlines, *x, **o: rasterize_outlines(
      outlines._replace(
        parts=jnp.where(outlines.parts > 0, -1, outlines.parts)
      ),
      *x,
      **o,
    ),
    {0},
  ),
  'pairwise_iou: boxes are a pixel wider': (
    lambda *x, **o: pairwise_iou(*x, width_offset=1.0, **o),
    {0},
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('fault', FAULTS)
def test_what_a_kernel_could_get_wrong_is_found(fault, key, monkeypatch):
  name = fault.split(':')[0]
  wrong, found_in = FAULTS[fault]
  right = getattr(kernel_cases, name)
  monkeypatch.setattr(
    kernel_cases,
    name,
    lambda *x, kernels, **options: (wrong if kernels == 'wrong' else right)(
      *x, **options
    ),
  )
  cases = [case for case in kernel_cases.make_cases(SMALL) if case.name == name]
  for i in found_in:
    assert kernel_check.make_check(cases[i], 'wrong')(key), cases[i].detail


def test_results_that_change_from_run_to_run_are_found(key, monkeypatch):
  count = itertools.count()

  def race(boxes, others, *, kernels):
    iou = pairwise_iou(boxes, others)
    if kernels == 'xla':
      return iou
    number = jax.ShapeDtypeStruct((), jnp.float32)
    # A smaller difference than the case allows.
    return iou + jax.experimental.io_callback(
      lambda: np.float32(1e-7 * next(count)), number
    )

  monkeypatch.setattr(kernel_cases, 'pairwise_iou', race)
  case = kernel_cases.make_cases(SMALL)[0]
  assert 'the same input gives different results' in (
    kernel_check.make_check(case, 'wrong')(key)
  )
