"""Tests of the mask head that runs in chunks, on the RoIs that need a mask."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest
import tiny

from maskrcnn_jax import rcnn as rcnn_module
from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch
from maskrcnn_jax.rcnn import Rcnn


@pytest.fixture
def model(key, monkeypatch):
  """Returns the recipe `tiny` as a model, its variables and two images.

  A chunk has 3 RoIs.
  """
  monkeypatch.setattr(rcnn_module, 'MASK_CHUNK', 3)
  config = tiny.get_config()
  rcnn = Rcnn.from_config(config, num_classes=4, dtype=jnp.float32)
  batch = made_up_batch(
    image_size=(64, 64),
    batch_size=2,
    num_objects=3,
    max_objects=8,
    num_classes=4,
  )
  return (
    rcnn,
    jax.jit(rcnn.init)(key),
    rcnn.prepare(batch, padded_size=(64, 64)),
  )


def test_chunks_give_the_masks_of_the_chosen_rois(key, model):
  rcnn, variables, _ = model
  pooled = jax.random.normal(key, (2, 4, 14, 14, 16))
  classes = jnp.array([[1, 2, 3, 0], [0, 3, 1, 2]])
  chosen = jnp.array([[True, True, False, True], [False, False, True, True]])

  def masks(rcnn):
    return rcnn._segment_chosen(variables, pooled, classes, chosen)

  whole = masks(rcnn)
  chunks = masks(rcnn._replace(mask_in_chunks=True))
  # The convolutions of a chunk may add their products in another order.
  assert_allclose(chunks[chosen], whole[chosen], rtol=1e-5, atol=1e-6)
  assert_array_equal(chunks[~chosen], 0)


@pytest.mark.slow
def test_detections_are_the_same_with_the_mask_head_in_chunks(model):
  rcnn, variables, inputs = model

  def detect(**changes):
    changed = rcnn._replace(**changes)
    return jax.jit(changed.detect)(variables, inputs.images, inputs.image_sizes)

  scores = np.sort(detect().scores.ravel())
  # Some slots, but not all of them, have a detection.
  options = rcnn.detection._replace(min_score=float(scores[len(scores) // 3]))
  whole = detect(detection=options)
  chunks = detect(detection=options, mask_in_chunks=True)
  valid = whole.valid
  assert 0 < valid.sum() < valid.size
  for name in ('boxes', 'classes', 'scores', 'valid'):
    assert_array_equal(getattr(chunks, name), getattr(whole, name))
  # The convolutions of a chunk may add their products in another order.
  assert_allclose(chunks.masks[valid], whole.masks[valid], rtol=1e-5)
  # A slot without a detection has logit 0.
  assert_array_equal(chunks.masks[~valid], 0.5)


@pytest.mark.slow
def test_losses_and_gradients_are_the_same_with_the_mask_head_in_chunks(
  key, model
):
  rcnn, variables, inputs = model
  keys = jax.random.split(key, (2, 2))

  def gradients(rcnn):
    def total(params):
      losses = rcnn.compute_losses(
        variables | {'params': params},
        inputs,
        keys,
        limits=GroundTruthLimits(8, 512, 64, 1),
      )
      return losses.total(), losses

    return jax.jit(jax.value_and_grad(total, has_aux=True))(variables['params'])

  whole = gradients(rcnn)
  chunks = gradients(rcnn._replace(mask_in_chunks=True))
  assert float(whole[0][1].mask) > 0
  # The gradients of the weights are sums over chunks.
  jax.tree.map(
    lambda a, b: assert_allclose(
      a, b, rtol=0, atol=2e-5 * np.abs(b).max() + 1e-12
    ),
    chunks,
    whole,
  )
