"""The preset `legacy` gives the results of maskrcnn-benchmark's Mask R-CNN.

The weights come from a file with maskrcnn-benchmark's names, by way of the
converter. The results are compared after each stage of the network.
"""

import jax
import numpy as np
import parity
import parity_training
from peer_files import peer_shapes
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax import geometry
from maskrcnn_jax.config import default_config
from maskrcnn_jax.detector import to_original
from maskrcnn_jax.ops.anchors import anchors_inside_image, make_anchors

pytestmark = parity.needs_golden

LEVELS = (2, 3, 4, 5, 6)
# The authors of the results scaled these weights, so that no logit is so large
# that float32 rounds its probability to 1.
FACTORS = {
  'backbone.body.stem.conv1.weight': 0.02,
  'rpn.head.cls_logits.weight': 0.1,
  'rpn.head.cls_logits.bias': 0.1,
  'roi_heads.box.predictor.cls_score.weight': 0.25,
  'roi_heads.box.predictor.cls_score.bias': 0.25,
}


@pytest.fixture(
  scope='module', params=parity.golden_files('maskrcnn_benchmark')
)
def golden(request):
  """The results of maskrcnn-benchmark."""
  return parity.read_golden(request.param)


@pytest.fixture(scope='module')
def detector(golden, tmp_path_factory):
  """The model with maskrcnn-benchmark's weights."""
  draw = parity.load_seeded().torchvision_array
  seed = int(golden['seed'])

  def draw_scaled(name, shape):
    array = draw(name, shape, seed) * FACTORS.get(name, 1)
    return array.astype(np.float32)

  shapes = peer_shapes(
    default_config(), int(golden['classes']), 'maskrcnn_benchmark'
  )
  assert FACTORS.keys() <= shapes.keys()
  loaded = parity.load_converted(
    tmp_path_factory.mktemp('converted'),
    shapes,
    draw_scaled,
    golden['image'].shape[:2],
  )
  assert loaded.rcnn.geometry.name == 'legacy'
  return loaded


@pytest.mark.slow
def test_inference_equals_maskrcnn_benchmark(golden, detector):
  rcnn, variables = detector.rcnn, detector.variables
  image = golden['image']
  size = image.shape[:2]
  padded = detector.config.data.padded_sizes[0]
  assert padded == tuple(golden['padded'][2:])
  batch = parity.make_batch(image)

  @jax.jit
  def run(variables, batch, proposals, boxes):
    inputs = rcnn.prepare(batch, padded_size=padded)
    pyramid = rcnn.extract(variables, inputs.images, inputs.image_sizes)
    rpn = rcnn.rate_anchors(variables, pyramid, inputs.image_sizes)
    levels, fit_to = rcnn.anchors(padded, inputs.image_sizes[0])
    anchors = jax.numpy.concatenate(make_anchors(levels, fit_to=fit_to))
    visible = anchors_inside_image(anchors, inputs.image_sizes[0])
    found = rcnn.propose(
      rpn, inputs.image_sizes, rcnn.rpn.eval, padded_size=padded
    )
    pooled = rcnn.pool(
      pyramid, proposals[None], inputs.image_sizes, side=rcnn.roi.box_side
    )
    heads = rcnn.classify(variables, pooled)
    pooled = rcnn.pool(
      pyramid, boxes[None], inputs.image_sizes, side=rcnn.roi.mask_side
    )
    mask_logits = rcnn.segment(variables, pooled)[0]
    # In the same program, so that the backbone is compiled and run only once.
    detections = detector.detect(batch, padded_size=padded)
    return (
      pyramid,
      rpn,
      anchors,
      visible,
      found,
      heads,
      mask_logits,
      detections,
    )

  pyramid, rpn, anchors, visible, found, heads, mask_logits, detections = (
    jax.device_get(
      run(variables, batch, golden['proposals'], golden['det_boxes'])
    )
  )
  np.testing.assert_array_equal(anchors, golden['anchors'])
  np.testing.assert_array_equal(visible, golden['visible'])
  errors = {}
  for level in LEVELS:
    errors[f'p{level}'] = parity.error(
      pyramid[level][0, ::4, ::4, ::8], golden[f'p{level}']
    )
  errors['rpn_logits'] = parity.error(
    rpn.objectness_logits[0], golden['rpn_logits']
  )
  errors['rpn_deltas'] = parity.error(
    rpn.anchor_deltas[0].reshape(-1), golden['rpn_deltas']
  )

  count = len(golden['proposals'])
  assert found.valid[0].sum() == count
  left, right = parity.pair_boxes(
    found.boxes[0][found.valid[0]], golden['proposals'], atol=0.05
  )
  errors['proposals unpaired'] = 1 - len(left) / count
  errors['proposals'] = parity.error(
    found.boxes[0][left], golden['proposals'][right]
  )
  errors['objectness'] = parity.error(
    found.scores[0][left], golden['objectness'][right]
  )

  errors['class_logits'] = parity.error(
    heads.class_logits[0], golden['class_logits']
  )
  errors['box_deltas'] = parity.error(
    heads.box_deltas[0].reshape(count, -1), golden['box_deltas']
  )

  labels = golden['det_labels']
  probabilities = jax.nn.sigmoid(
    mask_logits[np.arange(len(labels)), :, :, labels]
  )
  errors['mask probabilities'] = parity.error(
    probabilities, golden['det_mask_probs']
  )

  final = to_original(
    jax.tree.map(lambda x: x[0], detections),
    size,
    row=0,
    original_size=size,
    mask_threshold=rcnn.geometry.mask_threshold,
    paste_rule=rcnn.geometry.paste_rule,
  )
  assert len(final.boxes) == len(labels)
  left, right = parity.pair_boxes(
    # With the class as a fifth number, only boxes of one class are paired.
    np.column_stack([final.boxes, final.classes]),
    np.column_stack([golden['det_boxes'], labels]),
    atol=0.05,
  )
  errors['detections unpaired'] = 1 - len(left) / len(labels)
  errors['boxes'] = parity.error(final.boxes[left], golden['det_boxes'][right])
  errors['scores'] = parity.error(
    final.scores[left], golden['det_scores'][right]
  )
  theirs = np.unpackbits(golden['det_masks'], axis=-1)[..., : size[1]]
  ours = np.stack([mask_api.decode(final.masks[i]) for i in left])
  different = (ours != theirs[right]).sum() / theirs[right].sum()
  errors['mask pixels that differ'] = different
  print({name: f'{value:.1e}' for name, value in errors.items()})
  wrong = {name: value for name, value in errors.items() if value > 1e-3}
  assert not wrong


@pytest.mark.slow
def test_training_equals_maskrcnn_benchmark(golden, detector):
  parity_training.check_training(
    golden, detector, 'maskrcnn_benchmark', num_proposals=2000
  )


def test_mask_targets_differ_from_maskrcnn_benchmark_at_the_border(golden):
  parity_training.check_mask_targets(
    golden,
    'maskrcnn_benchmark',
    width_offset=geometry.LEGACY.width_offset,
    min_side=geometry.LEGACY.mask_min_side,
  )
