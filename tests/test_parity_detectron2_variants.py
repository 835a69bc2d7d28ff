"""The preset `modern` gives detectron2's results for its other networks.

The weights come from a file with the names and shapes that detectron2 itself
gives to its arrays, by way of the converter.
"""

import numpy as np
import parity
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.detector import to_original

pytestmark = [parity.needs_golden, pytest.mark.slow]

NAMES = (
  'mask_rcnn_r50_c4',
  'mask_rcnn_r50_dc5',
  'mask_rcnn_r50_fpn_gn',
  'mask_rcnn_r101_fpn',
  'mask_rcnn_x101_fpn',
  'faster_rcnn_r50_fpn',
  'faster_rcnn_r50_c4',
  'rpn_r50_fpn',
)
FILES = [
  file for name in NAMES for file in parity.golden_files(f'detectron2_{name}')
]


def detect(golden, folder, *given):
  """Converts the weights of a file of results and detects in its image.

  Args:
    golden: Results of detectron2.
    folder: An empty folder.
    *given: (key, text) pairs of the command line.
  """
  draw = parity.load_seeded().detectron2_array
  shapes = {
    name: tuple(side for side in shape if side >= 0)
    for name, shape in zip(
      golden['names'].tolist(), golden['shapes'].tolist(), strict=True
    )
  }
  image = golden['image']
  size = image.shape[:2]
  detector = parity.load_converted(
    folder,
    shapes,
    lambda name, shape: draw(name, shape, int(golden['seed'])),
    size,
    *given,
  )
  found = detector.detect(
    parity.make_batch(image),
    padded_size=tuple(detector.config.data.padded_sizes[0]),
  )
  return to_original(
    type(found)(*(x if x is None else np.asarray(x[0]) for x in found)),
    size,
    row=0,
    original_size=size,
    mask_threshold=detector.rcnn.geometry.mask_threshold,
    paste_rule=detector.rcnn.geometry.paste_rule,
  )


@pytest.mark.parametrize('path', FILES)
def test_a_converted_network_detects_the_same(path, tmp_path):
  golden = parity.read_golden(path)
  errors = {}
  if 'proposals' in golden:
    ours = detect(golden, tmp_path)
    boxes, classes = golden['proposals'], np.ones(len(golden['proposals']))
    scores = 1 / (1 + np.exp(-golden['objectness_logits'].astype(np.float64)))
  else:
    # A file without a threshold has detectron2's usual one.
    threshold = golden.get('score_threshold', 0.05)
    ours = detect(golden, tmp_path, ('detections.min_score', str(threshold)))
    boxes, classes = golden['boxes'], golden['classes'] + 1
    scores = golden['scores']
  assert len(ours.boxes) == len(boxes)
  left, right = parity.pair_boxes(
    # With the class as a fifth number, only boxes of one class are paired.
    np.column_stack([ours.boxes, ours.classes]),
    np.column_stack([boxes, classes]),
    atol=0.05,
  )
  unpaired = len(boxes) - len(left)
  errors['boxes'] = parity.error(ours.boxes[left], boxes[right])
  errors['scores'] = np.abs(ours.scores[left] - scores[right]).max()
  assert ('mask_area' in golden) == (ours.masks is not None)
  if ours.masks is not None:
    areas = np.array([mask_api.area(ours.masks[i]) for i in left], float)
    difference = np.abs(areas - golden['mask_area'][right])
    errors['mask areas'] = difference.max() / golden['mask_area'].max()
  print(unpaired, {name: f'{value:.1e}' for name, value in errors.items()})
  # The masks of drawn weights are noise, so that their borders are thousands of
  # pixels long. A box that is off by 0.01 px, 3e-5 of the image, as in the
  # ResNet-101, changes the area of a mask of 16,000 px by 14.
  limits = {'boxes': 1e-3, 'scores': 1e-3, 'mask areas': 2e-3}
  assert not {k: v for k, v in errors.items() if v > limits[k]}
  # Overlaps and scores that are almost equal may be ordered differently.
  assert unpaired <= 0.01 * len(boxes)
