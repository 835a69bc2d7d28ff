"""The preset `torchvision` gives the results of torchvision's Mask R-CNN.

The results are compared after each stage of the network.
"""

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import parity
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.config import geometry_of
from maskrcnn_jax.detector import (
  Detector,
  to_original,
)
from maskrcnn_jax.model.backbone import frozen_prefixes
from maskrcnn_jax.ops.anchors import make_anchors
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.training.optimizer import join_parameters, split_parameters

pytestmark = parity.needs_golden

LEVELS = (2, 3, 4, 5, 6)
FILES = parity.golden_files('torchvision', torchvision_seed0=pytest.mark.slow)


class Ours:
  """This network with torchvision's weights, and the image of a file."""

  def __init__(self, golden):
    """Draws the weights and reads the image.

    Args:
      golden: Contents of a file of torchvision's results.
    """
    seed, classes = int(golden['seed']), int(golden['classes'])
    image = np.round(golden['image'] * 255).astype(np.uint8)
    self.size = image.shape[:2]
    self.config = parity.parity_config('torchvision', self.size)
    self.shape = geometry_of(self.config)
    self.rcnn, self.variables = parity.build(
      self.config,
      classes,
      parity.load_seeded().torchvision_array,
      seed,
      parity.torchvision_variables,
    )
    self.image = image
    self.padded = self.config.data.padded_sizes[0]


@pytest.mark.parametrize('path', FILES)
def test_inference_equals_torchvision(path):
  golden = np.load(path)
  ours = Ours(golden)
  rcnn, shape, config = ours.rcnn, ours.shape, ours.config
  batch = parity.make_batch(ours.image)

  @jax.jit
  def run(variables, batch, proposals, boxes):
    inputs = rcnn.prepare(batch, padded_size=ours.padded)
    body = rcnn.network.apply(
      variables, inputs.images, method=lambda m, x: m.backbone(x)
    )
    pyramid = rcnn.extract(variables, inputs.images, inputs.image_sizes)
    rpn = rcnn.rate_anchors(variables, pyramid, inputs.image_sizes)
    levels, fit_to = rcnn.anchors(ours.padded, inputs.image_sizes[0])
    anchors = make_anchors(levels, fit_to=fit_to)
    found = rcnn.propose(
      rpn, inputs.image_sizes, rcnn.rpn.eval, padded_size=ours.padded
    )
    pooled = rcnn.pool(
      pyramid, proposals[None], inputs.image_sizes, side=rcnn.roi.box_side
    )
    heads = rcnn.network.apply(variables, pooled, method='classify')
    large = rcnn.pool(
      pyramid, boxes[None], inputs.image_sizes, side=rcnn.roi.mask_side
    )
    mask_logits = rcnn.network.apply(variables, large, method='segment')[0]
    # In the same program, so that the backbone is compiled and run only once.
    detections = Detector(rcnn, variables, config, (), 0).detect(
      batch, padded_size=ours.padded
    )
    return (
      body,
      pyramid,
      rpn,
      anchors,
      found,
      pooled,
      heads,
      mask_logits,
      detections,
    )

  (
    body,
    pyramid,
    rpn,
    anchors,
    found,
    pooled,
    heads,
    mask_logits,
    detections,
  ) = run(ours.variables, batch, golden['proposals'], golden['det_boxes'])
  errors = {}
  for level in LEVELS:
    thin = np.s_[0, ::4, ::4, ::8]
    if level < 6:
      errors[f'c{level}'] = parity.error(body[level][thin], golden[f'c{level}'])
    errors[f'p{level}'] = parity.error(
      pyramid[level][thin], golden[f'p{level}']
    )
  for name, values in (
    ('rpn_logits', rpn.objectness_logits[0]),
    ('rpn_deltas', rpn.anchor_deltas[0].reshape(-1)),
  ):
    theirs = [golden[f'{name}_p{level}'].reshape(-1) for level in LEVELS]
    errors[name] = parity.error(values, np.concatenate(theirs))

  anchors = np.concatenate(anchors)
  assert len(anchors) == golden['anchors_count']
  np.testing.assert_array_equal(anchors[:16], golden['anchors_first16'])
  np.testing.assert_array_equal(anchors[-16:], golden['anchors_last16'])
  np.testing.assert_array_equal(
    anchors.astype(np.float64).sum(axis=0), golden['anchors_sum']
  )

  assert found.valid[0].sum() == len(golden['proposals'])
  ours_index, _ = parity.pair_boxes(
    found.boxes[0][found.valid[0]], golden['proposals'], atol=0.05
  )
  errors['proposals unpaired'] = 1 - len(ours_index) / len(golden['proposals'])

  errors['pooled'] = parity.error(
    np.asarray(pooled[0], np.float64).sum(axis=(1, 2, 3)),
    golden['box_pooled_sum'],
  )
  errors['class_logits'] = parity.error(
    heads.class_logits[0], golden['class_logits']
  )
  deltas = np.asarray(heads.box_deltas[0]).reshape(len(golden['proposals']), -1)
  errors['box_deltas'] = parity.error(deltas[:, ::4], golden['box_deltas'])
  labels = golden['det_labels']
  errors['mask_logits'] = parity.error(
    np.asarray(mask_logits)[np.arange(len(labels)), :, :, labels],
    golden['det_mask_logits'],
  )

  first = jax.tree.map(lambda x: np.asarray(x[0]), detections)
  final = to_original(
    first,
    ours.size,
    row=0,
    original_size=ours.size,
    mask_threshold=shape.mask_threshold,
    paste_rule=shape.paste_rule,
  )
  assert len(final.boxes) == len(golden['det_boxes'])
  left, right = parity.pair_boxes(
    # With the class as a fifth number, only boxes of one class are paired.
    np.column_stack([final.boxes, final.classes]),
    np.column_stack([golden['det_boxes'], labels]),
    atol=0.05,
  )
  errors['detections unpaired'] = 1 - len(left) / len(labels)
  errors['scores'] = parity.error(
    final.scores[left], golden['det_scores'][right]
  )
  errors['boxes'] = parity.error(final.boxes[left], golden['det_boxes'][right])
  areas = np.array([mask_api.area(final.masks[i]) for i in left], np.float64)
  errors['mask areas'] = parity.error(areas, golden['det_mask_area'][right])
  print({name: f'{value:.1e}' for name, value in errors.items()})
  wrong = {name: value for name, value in errors.items() if value > 1e-3}
  assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize('path', parity.golden_files('torchvision'))
def test_training_equals_torchvision(path):
  golden = np.load(path)
  ours = Ours(golden)
  config = ours.config
  # Torchvision's limits, and samples so large that every candidate is in them,
  # so that the random choice of the programs does not matter.
  for key in ('pre_nms', 'post_nms', 'num_proposals'):
    config.rpn.train[key] = 2000
  config.rpn.num_samples = 65_536
  config.roi.num_samples = 2_400
  config.roi.foreground_fraction = 0.2
  config.data.flip_probability = 0.0
  masks = np.unpackbits(golden['gt_masks'], axis=-1)[..., : ours.size[1]]
  batch = parity.make_batch(
    ours.image, golden['gt_boxes'], golden['gt_labels'], masks
  )
  most = int(np.diff(batch.outlines.starts).max())
  limits = GroundTruthLimits(len(masks), batch.outlines.parts.size, most, 1)
  rcnn = Rcnn.from_config(
    config, num_classes=int(golden['classes']), dtype=jnp.float32
  )._replace(mask_in_chunks=True)
  trainable, fixed = split_parameters(
    ours.variables['params'], frozen_prefixes(config.freeze_at)
  )

  @jax.jit
  def run(trainable, batch):
    inputs = rcnn.prepare(batch, padded_size=ours.padded)
    keys = jax.random.split(jax.random.key(0), (1, 2))

    def total(trainable):
      params = join_parameters(trainable, fixed)
      losses = rcnn.compute_losses(
        ours.variables | {'params': params}, inputs, keys, limits=limits
      )
      return losses.total(), losses.by_name()

    return jax.grad(total, has_aux=True)(trainable)

  gradients, losses = run(trainable, batch)
  for name, value in losses.items():
    theirs = float(golden[f'train/{name}'])
    print(name, float(value), theirs, f'{value / theirs - 1:.1e}')
    assert abs(value - theirs) < 1e-4 * theirs, name
  norms = {}
  for leaf, gradient in traverse_util.flatten_dict(gradients).items():
    norm = np.linalg.norm(np.asarray(gradient, np.float64))
    norms[parity.torchvision_name(('params', *leaf))] = norm
  assert set(norms) == set(golden['grad_names']) and len(norms) == 84
  ratios = {
    name: norms[name] / theirs - 1
    for name, theirs in zip(
      golden['grad_names'], golden['grad_norms'], strict=True
    )
  }
  print('gradient norms', f'{max(map(abs, ratios.values())):.1e}')
  assert not {k: v for k, v in ratios.items() if abs(v) > 1e-3}
