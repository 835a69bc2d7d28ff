"""A canvas larger than an image's own changes nothing.

Each test runs a small random model on an image alone on its own canvas, and on
larger canvases. On all of them the features, the outputs of the RPN, the
detections, the losses and the gradients must be equal.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest
import tiny

from maskrcnn_jax.array_types import GroundTruthLimits, Inputs, Outlines
from maskrcnn_jax.rcnn import Rcnn

# Padded to multiples of 32, the image has 64x96 pixels: it has own padding
# below and none at the right. Level 5 has 2x3 cells, and level 6 has 1x2.
IMAGE_SIZE = (50, 96)
OWN_CANVAS = (64, 96)
CANVASES = [(64, 128), (128, 96), (192, 160)]

# Sums over a larger canvas are added in another order. An output is then
# rounded differently: by a few units of 1.2e-7, relative to the largest number
# that enters the sum, in each of about 50 layers.
TOLERANCE = 3e-5

GROUP = dict(norm='group', width=32, fpn_channels=32, mask_channels=32)
MODELS = {
  'basic': {},
  'basic, group': GROUP | dict(box_convs=1),
  'bottleneck': dict(depth=50),
  'bottleneck, group': GROUP | dict(depth=50),
  'bottleneck, frozen norm everywhere': dict(depth=50, norm='frozen_batch_all'),
  'bottleneck, stride in 1x1': dict(depth=50, stride_in_1x1=True),
  'two RPN convolutions': dict(rpn_convs=2),
  'c4': dict(body='c4', depth=50),
  'c4, group': GROUP | dict(body='c4', depth=50),
  'c5': dict(body='c5', depth=50),
  'dc5': dict(body='dc5', depth=50),
  'convnext': dict(backbone='convnext_tiny', depth=50, width=64),
}


def make_rcnn(geometry, sampling_ratio=2, **model):
  """Returns a small model and random variables for it.

  It learns from all anchors, because the random numbers that choose anchors are
  drawn for all anchors of a canvas together.
  """
  config = tiny.get_config()
  config.geometry = geometry
  config.roi.sampling_ratio = sampling_ratio
  config.rpn.num_samples = 20_000
  config.model.update(model)
  if config.model.body != 'fpn':
    config.anchors.sizes = ((16.0, 32.0, 64.0),)
  rcnn = Rcnn.from_config(config, num_classes=4, dtype=jnp.float32)
  rng = np.random.default_rng(0)

  def draw(x):
    if len(x.shape) == 1:  # scales, biases and statistics
      return rng.uniform(0.2, 0.8, x.shape).astype(np.float32)
    std = (1 / np.prod(x.shape[:-1])) ** 0.5
    return rng.normal(0, std, x.shape).astype(np.float32)

  return rcnn, jax.tree.map(draw, jax.eval_shape(rcnn.init, jax.random.key(0)))


def make_inputs(canvas, image_size=IMAGE_SIZE):
  """Returns a random image with three objects, alone on a canvas."""
  height, width = image_size
  pixels = np.random.default_rng(1).normal(size=(height, width, 3))
  images = np.zeros((1, *canvas, 3), np.float32)
  images[0, :height, :width] = pixels
  # The second object touches the lower right corner.
  boxes = np.array(
    [[5, 8, 30, 40], [20, 10, width, height], [40, 2, 60, 9]], np.float32
  )
  corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3, 0, 1]].reshape(1, 15, 2)
  parts = np.tile([0, 0, 0, 0, -1], 3)[None].astype(np.int32)
  starts = np.array([[0, 5, 10, 15]], np.int32)
  return Inputs(
    jnp.asarray(images),
    jnp.array([image_size]),
    jnp.asarray(boxes)[None],
    jnp.array([[1, 2, 3]]),
    jnp.ones((1, 3), bool),
    jax.tree.map(jnp.asarray, Outlines(corners, parts, starts)),
  )


LIMITS = GroundTruthLimits(
  max_objects=3, max_image_vertices=15, max_object_vertices=5, max_parts=1
)


def run(rcnn, variables, inputs, *, training):
  """Returns all results for an image: see the keys of the dictionary.

  Args:
    rcnn: The model.
    variables: Its variables.
    inputs: The image and its objects.
    training: Whether to compute losses and gradients too.
  """
  keys = jax.random.split(jax.random.key(3), (1, 2))

  # The functions run once, and take less time without optimisation.
  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
  )
  def compute(variables, inputs):
    pyramid = rcnn.extract(variables, inputs.images, inputs.image_sizes)
    rpn = rcnn.rate_anchors(variables, pyramid, inputs.image_sizes)
    detections = rcnn.detect(variables, inputs.images, inputs.image_sizes)

    def total(params):
      losses = rcnn.compute_losses(
        {**variables, 'params': params}, inputs, keys, limits=LIMITS
      )
      return sum(jax.tree.leaves(losses)), losses

    results = dict(pyramid=pyramid, rpn=rpn, detections=detections)
    if training:
      gradient, losses = jax.grad(total, has_aux=True)(variables['params'])
      results |= dict(losses=losses, gradient=gradient)
    return results

  return jax.tree.map(np.asarray, compute(variables, inputs))


def crop_anchors(rcnn, x, canvas):
  """Returns the rows of the anchors of the own canvas: {level: [h, w, ...]}."""
  rows, start = {}, 0
  levels, _ = rcnn.anchors(canvas, jnp.array(IMAGE_SIZE))
  for level in levels:
    height, width = level.size
    per_cell = len(level.around)
    end = start + height * width * per_cell
    cells = x[0, start:end].reshape(height, width, per_cell, -1)
    rows[level.stride] = cells[
      : -(-OWN_CANVAS[0] // level.stride), : -(-OWN_CANVAS[1] // level.stride)
    ]
    start = end
  assert start == x.shape[1]
  return rows


def assert_close(ours, expected, factor=1.0):
  """Compares all arrays, relative to the largest number of each."""

  def compare(path, a, b):
    limit = factor * TOLERANCE * max(np.abs(b).max(), 1e-3)
    assert_allclose(
      a, b, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path)
    )

  jax.tree_util.tree_map_with_path(compare, ours, expected)


def check(rcnn, variables, canvases, *, training=True):
  compute = functools.partial(run, rcnn, variables, training=training)
  expected = compute(make_inputs(OWN_CANVAS))
  assert expected['detections'].valid.sum() >= 4
  if training:
    assert all(x > 0 for x in jax.tree.leaves(expected['losses']))
  for canvas in canvases:
    ours = compute(make_inputs(canvas))
    crop = functools.partial(crop_anchors, rcnn)
    for level, features in expected['pyramid'].items():
      _, rows, columns, _ = features.shape
      assert_close(ours['pyramid'][level][:, :rows, :columns], features)
      assert not ours['pyramid'][level][:, rows:].any()
      assert not ours['pyramid'][level][:, :, columns:].any()
    for name in ('objectness_logits', 'anchor_deltas'):
      assert_close(
        crop(getattr(ours['rpn'], name), canvas),
        crop(getattr(expected['rpn'], name), OWN_CANVAS),
      )
    for name in ('valid', 'classes'):
      assert_array_equal(
        getattr(ours['detections'], name),
        getattr(expected['detections'], name),
      )
    assert_close(ours['detections'], expected['detections'])
    if training:
      assert_close(ours['losses'], expected['losses'])
      assert_close(ours['gradient'], expected['gradient'], factor=10)


@pytest.mark.slow
def test_a_larger_canvas_changes_no_detection():
  rcnn, variables = make_rcnn('legacy', **MODELS['basic, group'])
  check(rcnn, variables, CANVASES[-1:], training=False)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('geometry', 'model'),
  [
    *(('modern', model) for model in MODELS),
    *(('torchvision', model) for model in ('basic', 'c4')),
    *(('legacy', model) for model in ('basic', 'c4')),
  ],
)
def test_no_larger_canvas_changes_anything(geometry, model):
  sampling_ratio = 0 if geometry == 'modern' else 2
  check(*make_rcnn(geometry, sampling_ratio, **MODELS[model]), CANVASES)
