"""The preset `modern` trains as detectron2's Mask R-CNN.

The weights come from a file with detectron2's names, by way of the converter.
"""

import parity
import parity_training
from peer_files import peer_shapes
import pytest

from maskrcnn_jax import geometry
from maskrcnn_jax.config import default_config

pytestmark = parity.needs_golden


@pytest.fixture(scope='module', params=parity.golden_files('detectron2_train'))
def golden(request):
  """The results of detectron2 in training."""
  return parity.read_golden(request.param)


@pytest.mark.slow
def test_training_equals_detectron2(golden, tmp_path):
  draw = parity.load_seeded().detectron2_array
  detector = parity.load_converted(
    tmp_path,
    peer_shapes(default_config(), int(golden['classes']) + 1, 'detectron2'),
    lambda name, shape: draw(name, shape, int(golden['seed'])),
    golden['image'].shape[:2],
  )
  assert detector.rcnn.geometry.name == 'modern'
  parity_training.check_training(
    golden, detector, 'detectron2', num_proposals=1000
  )


def test_mask_targets_differ_from_detectron2_at_the_border(golden):
  parity_training.check_mask_targets(
    golden,
    'detectron2',
    width_offset=geometry.MODERN.width_offset,
    min_side=geometry.MODERN.mask_min_side,
  )
