"""The preset `modern` gives the results of detectron2's Mask R-CNN.

The results are compared after each stage of the network.
"""

import jax
import numpy as np
import parity
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.config import geometry_of
from maskrcnn_jax.detector import Detector, to_original

pytestmark = parity.needs_golden

LEVELS = (2, 3, 4, 5, 6)
NUM_CLASSES = 81


@pytest.mark.slow
@pytest.mark.parametrize('path', parity.golden_files('detectron2'))
def test_inference_equals_detectron2(path):
  golden = np.load(path)
  image = golden['image_bgr_uint8'][:, :, ::-1]
  size = image.shape[:2]
  config = parity.parity_config('modern', size)
  # The weights are those of Caffe2.
  config.model.stride_in_1x1 = True
  config.data.pixel_std = (1.0, 1.0, 1.0)
  config.data.pixel_mean = (123.675, 116.28, 103.53)
  shape, padded = geometry_of(config), config.data.padded_sizes[0]
  assert shape.sampling_ratio == 0
  rcnn, variables = parity.build(
    config,
    NUM_CLASSES,
    parity.load_seeded().detectron2_array,
    int(golden['seed']),
    parity.detectron2_variables,
  )
  batch = parity.make_batch(image)

  @jax.jit
  def run(variables, batch, boxes):
    inputs = rcnn.prepare(batch, padded_size=padded)
    body = rcnn.network.apply(
      variables, inputs.images, method=lambda m, x: m.backbone(x)
    )
    pyramid = rcnn.extract(variables, inputs.images, inputs.image_sizes)
    rpn = rcnn.rate_anchors(variables, pyramid, inputs.image_sizes)
    found = rcnn.propose(
      rpn, inputs.image_sizes, rcnn.rpn.eval, padded_size=padded
    )
    large = rcnn.pool(
      pyramid, boxes[None], inputs.image_sizes, side=rcnn.roi.mask_side
    )
    mask_logits = rcnn.network.apply(variables, large, method='segment')[0]
    return body, pyramid, rpn, found, mask_logits

  body, pyramid, rpn, found, mask_logits = run(
    variables, batch, golden['det_boxes']
  )
  errors = {}
  thin = np.s_[0, ::4, ::4, ::8]
  for level in LEVELS:
    if level < 6:
      errors[f'res{level}'] = parity.error(
        body[level][thin], golden[f'res{level}']
      )
    errors[f'p{level}'] = parity.error(
      pyramid[level][thin], golden[f'p{level}']
    )
  for name, values in (
    ('rpn_logits', rpn.objectness_logits[0]),
    ('rpn_deltas', rpn.anchor_deltas[0].reshape(-1)),
  ):
    theirs = [golden[f'{name}_p{level}'].reshape(-1) for level in LEVELS]
    errors[name] = parity.error(values, np.concatenate(theirs))

  assert found.valid[0].sum() == len(golden['proposals'])
  left, right = parity.pair_boxes(
    found.boxes[0][found.valid[0]], golden['proposals'], atol=0.05
  )
  errors['proposals unpaired'] = 1 - len(left) / len(golden['proposals'])
  logits = golden['proposal_logits'][right].astype(np.float64)
  errors['objectness'] = np.abs(
    np.asarray(found.scores[0])[left] - 1 / (1 + np.exp(-logits))
  ).max()

  labels = golden['det_labels'] + 1
  probabilities = jax.nn.sigmoid(
    mask_logits[np.arange(len(labels)), :, :, labels]
  )
  errors['masks'] = parity.error(probabilities, golden['det_mask_probs'])

  detections = Detector(rcnn, variables, config, (), 0).detect(
    batch, padded_size=padded
  )
  first = jax.tree.map(lambda x: np.asarray(x[0]), detections)
  final = to_original(
    first,
    size,
    row=0,
    original_size=size,
    mask_threshold=shape.mask_threshold,
    paste_rule=shape.paste_rule,
  )
  assert len(final.boxes) == len(labels)
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
