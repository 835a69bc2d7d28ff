"""Tests of the five losses, against loops over the definition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

from maskrcnn_jax import losses
from maskrcnn_jax.array_types import RoiTargets, RpnTargets

K, M = 4, 3  # Classes with background; side of a mask.
BETA = 0.11


def smooth_l1(difference, beta):
  total = 0.0
  for d in np.asarray(difference, np.float64).ravel():
    total += d * d / (2 * beta) if abs(d) < beta else abs(d) - beta / 2
  return total


def binary_cross_entropy(logit, target):
  p = 1 / (1 + math.exp(-float(logit)))
  return -math.log(p if target else 1 - p)


def make_rpn_case(*, foreground, valid):
  """Makes random output and targets of an RPN.

  Args:
    foreground: [b, s], which slots of the sample are foreground.
    valid: [b, s], which slots hold an anchor.
  """
  foreground, valid = np.array(foreground), np.array(valid)
  random = np.random.default_rng(0)
  b, s = valid.shape
  return (
    random.normal(size=(b, 7)).astype(np.float32),
    random.normal(size=(b, 7, 4)).astype(np.float32),
    RpnTargets(
      indices=random.integers(0, 7, (b, s), np.int32),
      foreground=foreground,
      delta_targets=random.normal(size=(b, s, 4)).astype(np.float32)
      * foreground[..., None],
      valid=valid,
    ),
  )


def make_roi_case(*, foreground, valid):
  """Makes random output and targets of the heads.

  Args:
    foreground: [b, r], which RoIs are foreground.
    valid: [b, r], which slots hold a RoI.
  """
  foreground, valid = np.array(foreground), np.array(valid)
  random = np.random.default_rng(0)
  b, r = valid.shape
  targets = RoiTargets(
    rois=np.zeros((b, r, 4), np.float32),
    class_targets=random.integers(1, K, (b, r), np.int32) * foreground,
    delta_targets=random.normal(size=(b, r, 4)).astype(np.float32)
    * foreground[..., None],
    objects=np.zeros((b, r), np.int32),
    foreground=foreground,
    valid=valid,
  )
  return (
    random.normal(size=(b, r, K)).astype(np.float32),
    random.normal(size=(b, r, K, 4)).astype(np.float32),
    random.normal(size=(b, r, M, M)).astype(np.float32),
    random.integers(0, 2, (b, r, M, M)).astype(np.float32),
    targets,
  )


@jax.jit
def all_losses(rpn, roi):
  logits, deltas, rpn_targets = rpn
  class_logits, box_deltas, mask_logits, masks, targets = roi
  return {
    'objectness': losses.objectness_loss(logits, rpn_targets),
    'anchor_box': losses.anchor_box_loss(
      deltas, rpn_targets, smooth_l1_beta=BETA
    ),
    'classification': losses.classification_loss(class_logits, targets),
    'box': losses.box_loss(box_deltas, targets, smooth_l1_beta=BETA),
    'mask': losses.mask_loss(mask_logits, masks, targets.foreground),
  }


def all_sums_by_definition(rpn, roi):
  """Returns {name: (sum, count)} of the losses, by loops over each image."""
  logits, deltas, rpn_targets = rpn
  class_logits, box_deltas, mask_logits, masks, targets = roi
  sums = {
    name: [0.0, 0]
    for name in ('objectness', 'anchor_box', 'classification', 'box', 'mask')
  }

  def add(name, loss, count):
    sums[name][0] += loss
    sums[name][1] += count

  for i, j in np.argwhere(np.array(rpn_targets.valid)):
    anchor = int(rpn_targets.indices[i, j])
    is_foreground = bool(rpn_targets.foreground[i, j])
    add('objectness', binary_cross_entropy(logits[i, anchor], is_foreground), 1)
    difference = deltas[i, anchor] - rpn_targets.delta_targets[i, j]
    add('anchor_box', smooth_l1(difference, BETA) if is_foreground else 0.0, 1)

  for i, j in np.argwhere(np.array(targets.valid)):
    c = int(targets.class_targets[i, j])
    scores = np.exp(np.asarray(class_logits[i, j], np.float64))
    add('classification', -math.log(scores[c] / scores.sum()), 1)
    if not targets.foreground[i, j]:
      add('box', 0.0, 1)
      continue
    difference = box_deltas[i, j, c] - targets.delta_targets[i, j]
    add('box', smooth_l1(difference, BETA), 1)
    for y in range(M):
      for x in range(M):
        logit, target = mask_logits[i, j, y, x], masks[i, j, y, x]
        add('mask', binary_cross_entropy(logit, target), 1)
  return sums


MIXED = dict(
  foreground=[[True, True, False], [True, False, False]],
  valid=[[True, True, True], [True, True, False]],
)
NOTHING = dict(
  foreground=[[False, False, False]], valid=[[False, False, False]]
)
BACKGROUND = dict(
  foreground=[[False, False, False]], valid=[[True, True, False]]
)
FULL = dict(foreground=[[True, True, True]], valid=[[True, True, True]])
CASES = pytest.mark.parametrize(
  'case',
  [MIXED, NOTHING, BACKGROUND, FULL],
  ids=['mixed', 'nothing', 'background', 'full'],
)


@CASES
def test_each_loss_is_its_definition(case):
  rpn, roi = make_rpn_case(**case), make_roi_case(**case)
  found = all_losses(rpn, roi)
  for name, (total, count) in all_sums_by_definition(rpn, roi).items():
    assert_allclose(found[name], total / max(count, 1), rtol=1e-5, err_msg=name)


def test_smooth_l1_turns_at_beta():
  # With beta 0.5, 0.3 gives 0.3^2 / (2 * 0.5) = 0.09. Errors of 0.5 or more
  # give |d| - 0.25.
  found = losses.smooth_l1(jnp.array([0.3, -0.3, 0.5, -2.0]), beta=0.5)
  assert_allclose(found, [0.09, 0.09, 0.25, 1.75], rtol=1e-6)


def test_smooth_l1_without_beta_is_the_absolute_value():
  difference = jnp.array([0.0, -1.5, 2.0])
  assert_allclose(losses.smooth_l1(difference, beta=0.0), [0, 1.5, 2])
  slope = jax.grad(lambda d: losses.smooth_l1(d, beta=0.0).sum())(difference)
  assert_allclose(slope, [0, -1, 1])


def test_box_losses_divide_by_the_background_too():
  # The four deltas of the only foreground slot are wrong by 1 each, and four
  # slots are valid: 4 * 1 / 4.
  foreground = jnp.array([[True, False, False, False]])
  valid = jnp.ones((1, 4), bool)
  rpn_targets = RpnTargets(
    jnp.zeros((1, 4), jnp.int32), foreground, jnp.zeros((1, 4, 4)), valid
  )
  found = losses.anchor_box_loss(
    jnp.ones((1, 2, 4)), rpn_targets, smooth_l1_beta=0.0
  )
  assert_allclose(found, 1)
  zeros = jnp.zeros((1, 4), jnp.int32)
  targets = RoiTargets(
    jnp.zeros((1, 4, 4)),
    zeros.at[0, 0].set(1),
    jnp.zeros((1, 4, 4)),
    zeros,
    foreground,
    valid,
  )
  # The deltas of other classes do not count.
  deltas = jnp.full((1, 4, 3, 4), 99.0).at[:, :, 1].set(1)
  assert_allclose(losses.box_loss(deltas, targets, smooth_l1_beta=0.0), 1)


def test_an_undecided_network_pays_the_logarithm_of_its_choices():
  case = dict(foreground=[[True, False]], valid=[[True, True]])
  rpn = make_rpn_case(**case)
  roi = make_roi_case(**case)
  zeros = jax.tree.map(np.zeros_like, (rpn[:2], roi[:3]))
  found = all_losses((*zeros[0], rpn[2]), (*zeros[1], *roi[3:]))
  assert_allclose(found['objectness'], math.log(2), rtol=1e-6)
  assert_allclose(found['classification'], math.log(K), rtol=1e-6)
  assert_allclose(found['mask'], math.log(2), rtol=1e-6)


@pytest.mark.parametrize('case', [NOTHING, BACKGROUND], ids=['none', 'bg'])
def test_without_foreground_box_and_mask_losses_are_exactly_zero(case):
  found = all_losses(make_rpn_case(**case), make_roi_case(**case))
  assert found['anchor_box'] == found['box'] == found['mask'] == 0
  assert all(np.isfinite(float(loss)) for loss in found.values())


@CASES
def test_gradients_are_finite(case):
  rpn, roi = make_rpn_case(**case), make_roi_case(**case)

  @jax.jit
  @jax.grad
  def gradients(outputs):
    rpn_outputs, roi_outputs = outputs
    found = all_losses((*rpn_outputs, rpn[2]), (*roi_outputs, *roi[3:]))
    return sum(found.values())

  # A network that diverges has logits as large as 500.
  for factor in (1, 500):
    outputs = jax.tree.map(lambda x: factor * x, (rpn[:2], roi[:3]))  # noqa: B023
    for gradient in jax.tree.leaves(gradients(outputs)):
      assert np.isfinite(np.array(gradient)).all()


def test_padding_slots_change_nothing():
  rpn, roi = make_rpn_case(**MIXED), make_roi_case(**MIXED)

  def pad_slots(tree, value):
    return jax.tree.map(
      lambda x: np.pad(
        x,
        [(0, 0), (0, 2)] + [(0, 0)] * (x.ndim - 2),
        constant_values=value if x.dtype == np.float32 else 0,
      ),
      tree,
    )

  wide = all_losses((*rpn[:2], pad_slots(rpn[2], 9)), pad_slots(roi, 9))
  for name, loss in all_losses(rpn, roi).items():
    assert_allclose(wide[name], loss, rtol=1e-6, err_msg=name)


def test_the_loss_of_a_batch_is_normalised_over_all_its_images():
  # One image has three valid slots, the other has two. The loss is the mean
  # over the five slots, not the mean of the means of the two images.
  rpn, roi = make_rpn_case(**MIXED), make_roi_case(**MIXED)
  rows = [
    jax.tree.map(lambda x: x[i : i + 1], (rpn, roi))  # noqa: B023
    for i in range(2)
  ]
  sums = [all_sums_by_definition(*row) for row in rows]
  found = all_losses(rpn, roi)
  for name, loss in found.items():
    total = sum(s[name][0] for s in sums)
    count = sum(s[name][1] for s in sums)
    assert_allclose(loss, total / count, rtol=1e-5, err_msg=name)
  means = [all_losses(*row)['classification'] for row in rows]
  assert abs(found['classification'] - sum(means) / 2) > 1e-3


def test_an_image_without_objects_only_adds_to_the_normaliser():
  roi = make_roi_case(
    foreground=[[True, False], [False, False]],
    valid=[[True, True], [True, True]],
  )
  first = jax.tree.map(lambda x: x[:1], roi)
  rpn = make_rpn_case(**NOTHING)
  both, alone = all_losses(rpn, roi), all_losses(rpn, first)
  assert_allclose(both['box'], alone['box'] / 2, rtol=1e-6)
  assert_allclose(both['mask'], alone['mask'], rtol=1e-6)
