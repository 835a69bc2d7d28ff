"""Tests of the presets, against numbers that were computed by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import parity
from pycocotools import mask as mask_api
import pytest
import tiny

from maskrcnn_jax import geometry
from maskrcnn_jax.config import (
  default_config,
  differences,
  geometry_of,
  plain,
)
from maskrcnn_jax.data import coco, coco_index, findings
from maskrcnn_jax.data.canvases import resized_size
from maskrcnn_jax.detector import load_detector, to_xywh
from maskrcnn_jax.inputs import prepare_inputs
from maskrcnn_jax.mask_paste import paste_masks
from maskrcnn_jax.ops import anchors as anchor_ops
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops.nms import nms
from maskrcnn_jax.ops.outlines import pool_outlines
from maskrcnn_jax.targets import make_rpn_targets

RATIOS = (0.5, 1.0, 2.0)
SIZES = {2: (32.0,), 3: (64.0,), 4: (128.0,), 5: (256.0,), 6: (512.0,)}

# The anchors of the cell at the origin, as maskrcnn-benchmark prints them. At
# stride 32 and ratio 0.5, for example, the sides before enlarging are
# round(sqrt(2048)) = 45 and round(22.5) = 22, rounded to the even neighbour.
LEGACY_ANCHORS = {
  2: [(-22, -10, 25, 13), (-14, -14, 17, 17), (-10, -22, 13, 25)],
  3: [(-40, -20, 47, 27), (-28, -28, 35, 35), (-20, -44, 27, 51)],
  4: [(-84, -40, 99, 55), (-56, -56, 71, 71), (-36, -80, 51, 95)],
  5: [(-164, -72, 195, 103), (-112, -112, 143, 143), (-76, -168, 107, 199)],
  6: [(-332, -152, 395, 215), (-224, -224, 287, 287), (-148, -328, 211, 391)],
}
# (size * sqrt(2) / 2, size / sqrt(2) / 2), rounded to the nearest integer.
TORCHVISION_HALVES = {
  2: (23, 11),
  3: (45, 23),
  4: (91, 45),
  5: (181, 91),
  6: (362, 181),
}

# 11 pixels wide and 21 high if the pixels (x1, y1) and (x2, y2) are inside.
BOX = jnp.array([[10.0, 20.0, 20.0, 40.0]])
LEGACY = {'width_offset': geometry.LEGACY.width_offset}


@pytest.mark.parametrize('level', SIZES)
def test_anchors_of_the_presets(level):
  stride, sizes = 2**level, SIZES[level]
  assert_array_equal(
    anchor_ops.cell_anchors(
      sizes,
      RATIOS,
      rounding=geometry.LEGACY.anchor_rounding,
      stride=stride,
    ),
    LEGACY_ANCHORS[level],
  )
  long, short = TORCHVISION_HALVES[level]
  half = sizes[0] / 2
  assert_array_equal(
    anchor_ops.cell_anchors(
      sizes, RATIOS, rounding=geometry.TORCHVISION.anchor_rounding
    ),
    [
      (-long, -short, long, short),
      (-half, -half, half, half),
      (-short, -long, short, long),
    ],
  )


@pytest.mark.parametrize('rounding', ['corners', 'stride'])
def test_rounded_anchors_go_through_the_sizes_of_a_ratio_first(rounding):
  cells = anchor_ops.cell_anchors(
    (16.0, 64.0), (0.5, 2.0), rounding=rounding, stride=16
  )
  width, height = (cells[:, 2:] - cells[:, :2]).T
  assert_array_equal(width > height, [True, True, False, False])
  assert width[0] < width[1]


def test_anchors_refuse_another_rounding():
  with pytest.raises(ValueError, match="'none', 'corners' or 'stride'"):
    anchor_ops.cell_anchors((8.0,), (1.0,), rounding='up')


def test_fitted_strides_divide_the_padded_image():
  # 352 pixels are 11 cells of 32 pixels, and 6 cells of level 6 with a stride
  # of 352 // 6 = 58 pixels.
  image_size = jnp.array([250, 333])
  padded = anchor_ops.pad_size(image_size, padding_multiple=32)
  assert_array_equal(padded, [256, 352])

  @jax.jit
  def left(fit_to):
    levels = anchor_ops.anchor_levels(
      (384, 448), sizes={5: (2.0,), 6: (2.0,)}, ratios=(1.0,)
    )
    return [
      level[:, :2] + 1
      for level in anchor_ops.make_anchors(levels, fit_to=fit_to)
    ]

  fine, coarse = left(padded)
  assert_array_equal(fine[:14, 0], 32 * np.arange(14))
  coarse = coarse.reshape(6, 7, 2)
  # The canvas has a seventh column of cells, which stays outside the image.
  assert_array_equal(coarse[0, :, 0], [0, 58, 116, 174, 232, 290, 384])
  assert_array_equal(coarse[:, 0, 1], [0, 64, 128, 192, 256, 320])


def test_legacy_box_arithmetic_counts_both_pixels():
  assert_array_equal(box_ops.box_area(BOX, **LEGACY), [11 * 21])
  # The boxes share pixels 15..20 by 30..40, which are 6 * 11. Their union has
  # 2 * 231 - 66.
  other = BOX + jnp.array([5.0, 10.0, 5.0, 10.0])
  assert_allclose(
    box_ops.pairwise_iou(BOX, other, **LEGACY), [[66 / (462 - 66)]]
  )
  # Boxes that share one column of pixels overlap by 1 * 21.
  touching = jnp.array([[20.0, 20.0, 30.0, 40.0]])
  assert_allclose(
    box_ops.pairwise_iou(BOX, touching, **LEGACY), [[21 / (462 - 21)]]
  )
  size = jnp.array([30, 18])
  assert_array_equal(
    box_ops.clip_boxes(BOX, size, **LEGACY), [[10, 20, 17, 29]]
  )
  # Pixel 0 becomes pixel 99, so x1 and x2 become 99 - 20 and 99 - 10.
  assert_array_equal(
    box_ops.flip_boxes(BOX, jnp.int32(100), **LEGACY), [[79, 20, 89, 40]]
  )
  assert to_xywh(np.float32([10, 20, 20, 40]), **LEGACY) == [10, 20, 11, 21]
  # A detection 0.25 pixels high, (10, 20, 20, 19.25), in an image that was half
  # as large for the model.
  assert to_xywh(np.float32([20, 40, 40, 38.5]), **LEGACY) == [20, 40, 21, 0]
  # A single pixel has an area.
  pixel = jnp.array([[5.0, 5.0, 5.0, 5.0]])
  assert box_ops.has_area(pixel, **LEGACY)
  assert not box_ops.has_area(pixel)


def test_legacy_box_coder_by_hand():
  # The anchor has 10x20 pixels and is centred at (5, 10). The box is twice as
  # wide, equally high, and centred at (8, 5): x from -2 to 17, y from -5 to 14.
  anchor = jnp.array([[0.0, 0.0, 9.0, 19.0]])
  box = jnp.array([[-2.0, -5.0, 17.0, 14.0]])
  weights = (10.0, 10.0, 5.0, 5.0)
  deltas = box_ops.encode_boxes(box, anchor, weights=weights, **LEGACY)
  assert_allclose(deltas, [[10 * 0.3, 10 * -0.25, 5 * np.log(2), 0]], rtol=1e-6)
  decoded = box_ops.decode_boxes(deltas, anchor, weights=weights, **LEGACY)
  assert_allclose(decoded, box, atol=1e-5)


def test_legacy_nms_counts_both_pixels():
  # Columns 0..2 and 1..3 share 2 of 4, an IoU of 0.5. With widths of x2 - x1
  # they would share 1 of 3.
  boxes = jnp.array([[0.0, 0, 2, 9], [1, 0, 3, 9]])
  scores, valid = jnp.array([0.9, 0.8]), jnp.ones(2, bool)

  def count(**options):
    return nms(boxes, scores, valid, iou_threshold=0.4, limit=2, **options)[
      1
    ].sum()

  assert count(**LEGACY) == 1
  assert count() == 2


def test_legacy_anchors_that_straddle_an_edge_are_ignored(key):
  anchors = jnp.array(
    [
      [0.0, 0, 31, 31],  # inside the image
      [-1, 0, 30, 31],  # crosses the left edge
      [33, 0, 64, 31],  # crosses the right edge: pixel 64 is the 65th
      [32, 32, 63, 63],  # inside the image: pixel 63 is the 64th
    ]
  )
  gt_boxes = jnp.array([[-1.0, 0, 30, 31]])

  def sample(ignore_straddling):
    targets = make_rpn_targets(
      anchors,
      jnp.array([64, 64]),
      gt_boxes,
      jnp.ones(1, bool),
      key,
      num_samples=4,
      foreground_fraction=0.5,
      foreground_iou=0.98,
      background_iou=0.3,
      delta_weights=(1.0,) * 4,
      padding_multiple=32,
      ignore_straddling=ignore_straddling,
      **LEGACY,
    )
    index = np.asarray(targets.indices)
    chosen = np.asarray(targets.foreground)
    return (
      set(index[chosen].tolist()),
      set(index[targets.valid & ~chosen].tolist()),
    )

  assert sample(False) == ({1}, {2, 3})
  # The anchor that crosses the left edge overlaps the object most. It is
  # ignored all the same, and no other anchor takes its place.
  assert sample(True) == (set(), {3})


def test_legacy_ground_truth_boxes_end_at_their_last_pixel(tmp_path):
  boxes = [
    [10, 20, 11, 21],
    [90, 50, 20, 10],  # crosses the right edge
    [30, 30, 1, 5],  # a single column of pixels: x2 - x1 becomes 0
  ]
  content = {
    'images': [{'id': 1, 'file_name': 'a.png', 'height': 80, 'width': 100}],
    'categories': [{'id': 1, 'name': 'a'}],
    'annotations': [
      {
        'id': i,
        'image_id': 1,
        'category_id': 1,
        'bbox': box,
        'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
      }
      for i, box in enumerate(boxes)
      for x, y, w, h in [box]
    ],
  }
  path = tmp_path / 'truth.json'
  path.write_text(json.dumps(content))
  report = findings.Report(stop=False)
  index = coco.read_coco(path, report=report, **LEGACY)
  assert_array_equal(index.boxes, [[10, 20, 20, 40], [90, 50, 99, 59]])
  assert index.dropped == {coco_index.NO_AREA: 1}
  assert len(coco.read_coco(path).boxes) == 3


def test_legacy_flip_moves_ground_truth_to_the_mirrored_pixels():
  batch = parity.make_batch(
    np.zeros((32, 64, 3), np.uint8),
    [[10, 0, 20, 9]],
    [1],
    [np.pad(np.ones((9, 10), bool), ((0, 23), (10, 44)))],
  )
  inputs = prepare_inputs(
    batch,
    jnp.ones(1, bool),
    padded_size=(32, 64),
    pixel_mean=(0.0,) * 3,
    pixel_std=(1.0,) * 3,
    antialias=True,
    **LEGACY,
  )
  # x1 and x2 become 64 - 1 - 20 and 64 - 1 - 10.
  assert_array_equal(inputs.gt_boxes[0], [[43, 0, 53, 9]])
  # The outline is that of a bitmap, which is mirrored exactly.
  assert_array_equal(inputs.outlines.vertices[0, :, 0], [54, 54, 44, 44])


def test_pool_outlines_pools_the_bitmap_that_an_outline_was_made_of():
  mask = np.zeros((6, 9), bool)
  mask[1:4, 2:7] = True
  mask[2, 4] = False
  batch = parity.make_batch(
    np.zeros((6, 9, 3), np.uint8), [[2, 1, 7, 4]], [1], [mask]
  )
  drawn = pool_outlines(
    jax.tree.map(lambda x: jnp.asarray(x[0]), batch.outlines),
    jnp.zeros(1, jnp.int32),
    jnp.array([[0.0, 0.0, 9.0, 9.0]]),
    side=9,
    image_size=jnp.array([6, 9]),
    padded_size=(32, 32),
    max_object_vertices=64,
    max_parts=1,
  )
  # There is one sample for each pixel. torchvision's RoIAlign is not aligned,
  # so the sample is half a pixel off the pixel's centre along both axes: it is
  # the mean of four pixels.
  square = np.pad(mask, ((0, 1), (0, 1))).astype(float)
  square[6:] = square[5]
  mean = (
    square[:-1, :-1] + square[1:, :-1] + square[:-1, 1:] + square[1:, 1:]
  ) / 4
  assert_allclose(drawn[0, :5, :8], mean[:5, :8], atol=1e-6)


def test_pasted_by_resizing_by_hand():
  # The mask of 2x2 cells gets a border and has 4x4 cells then. The box becomes
  # twice as large: from (4 - 4, 4 - 4) to (4 + 4, 4 + 4), both included, which
  # are 9 pixels a side. In cells, pixel i is at (i + .5) * 4 / 9 - .5: -.28 .17
  # .61 1.06 1.5 1.94 2.39 2.83 3.28. Cells 1 and 2 are the mask.
  mask = np.array([[[1, 1], [1, 1]]], np.float32)
  (rle,) = paste_masks(
    mask,
    np.array([[2, 2, 6, 6]], np.float32),
    height=10,
    width=10,
    rule='resized',
  )
  # The weights along an axis are 0 .17 .61 1 1 1 .61 .17 0, and a pixel is the
  # product of two. .61 * 1 is above .5, but .61 * .61 = .37 at the corners is
  # not.
  expected = np.zeros((10, 10), np.uint8)
  expected[2:7, 3:6] = expected[3:6, 2:7] = 1
  assert_array_equal(mask_api.decode(rle), expected)


@pytest.mark.parametrize(
  'box, first, last',
  [
    # The border of one cell adds half of the box on each side. The corners are
    # then truncated towards zero.
    ((2.9, 2.9, 5.9, 5.9), 1, 7),  # from 1.4 and 7.4
    ((-1.2, -1.2, 1.8, 1.8), -2, 3),  # from -2.7 and 3.3
    ((4, 4, 4, 4), 4, 4),  # a box without an area becomes one pixel
  ],
)
def test_pasted_by_resizing_truncates_the_box(box, first, last):
  (rle,) = paste_masks(
    np.ones((1, 2, 2), np.float32),
    np.array([box], np.float32),
    height=9,
    width=9,
    rule='resized',
    threshold=1e-6,
  )
  # The object has all pixels except the ones that are interpolated from the
  # border (cells 0 and 3) alone.
  size = last - first + 1
  cells = (np.arange(size) + 0.5) * 4 / size - 0.5
  seen = first + np.flatnonzero((cells > 0) & (cells < 3))
  seen = seen[(seen >= 0) & (seen < 9)]
  expected = np.zeros((9, 9), np.uint8)
  expected[np.ix_(seen, seen)] = 1
  assert_array_equal(mask_api.decode(rle), expected)


def test_pasted_by_resizing_needs_more_than_the_threshold():
  masks = np.full((1, 2, 2), 0.5, np.float32)
  box = np.array([[2, 2, 6, 6]], np.float32)
  resized, sampled = (
    mask_api.area(paste_masks(masks, box, height=10, width=10, rule=rule)[0])
    for rule in ('resized', 'sampled')
  )
  assert resized == 0 and sampled > 0


@pytest.mark.parametrize(
  'rule, size, expected',
  [
    # 800 / 426 * 640 = 1201.88
    ('nearest', (426, 640), (800, 1202)),
    ('down', (426, 640), (800, 1201)),
    ('legacy', (426, 640), (800, 1201)),
    # The long side limits the scale: 1333 / 1000 * 333 = 443.889
    ('nearest', (333, 1000), (444, 1333)),
    ('down', (333, 1000), (443, 1333)),
    # The short side becomes 444, the long one int(444 * 1000 / 333) = 1333.
    ('legacy', (333, 1000), (444, 1333)),
    ('legacy', (1000, 333), (1333, 444)),
    ('legacy', (800, 1000), (800, 1000)),
  ],
)
def test_resize_rules(rule, size, expected):
  assert resized_size(*size, short_side=800, long_side=1333, rule=rule) == (
    expected
  )


def test_resize_rule_must_be_one_of_three():
  with pytest.raises(ValueError, match="not 'up'"):
    resized_size(1, 1, short_side=1, long_side=1, rule='up')


def test_input_formats_in_rgb_and_255():
  mean, std = geometry.TORCHVISION.input_format.rgb_255()
  # Both presets have the same numbers: 0.485 * 255 = 123.675.
  assert (mean, std) == geometry.MODERN.input_format.rgb_255()
  mean, std = geometry.LEGACY.input_format.rgb_255()
  assert mean == (122.7717, 115.9465, 102.9801)
  assert std == (1, 1, 1)


@pytest.mark.parametrize('name', geometry.PRESETS)
def test_keys_that_a_recipe_leaves_open_come_from_its_preset(name):
  config = default_config()
  config.geometry = name
  preset, shape = geometry.PRESETS[name], geometry_of(config)
  assert shape.sampling_ratio == preset.sampling_ratio
  assert shape.input_format.rgb_255() == preset.input_format.rgb_255()
  assert shape.input_format.antialias == preset.input_format.antialias
  config.roi.sampling_ratio = 3
  config.data.pixel_std = (1.0, 2.0, 3.0)
  config.data.antialias = not preset.input_format.antialias
  shape = geometry_of(config)
  assert shape.sampling_ratio == 3
  assert shape.input_format.rgb_255()[1] == (1, 2, 3)
  assert shape.input_format.antialias != preset.input_format.antialias


def test_repeating_a_value_of_the_preset_is_no_difference():
  config = default_config()
  stored = plain(config)
  stored['data']['pixel_mean'] = [123.675, 116.28, 103.53]
  stored['data']['antialias'] = True
  stored['roi']['sampling_ratio'] = 0
  assert differences(config, stored) == []
  stored['roi']['sampling_ratio'] = 2
  assert differences(config, stored) == [('roi.sampling_ratio', 0, 2)]


@pytest.mark.slow
@pytest.mark.parametrize('name', geometry.PRESETS)
def test_a_checkpoint_is_trained_and_used_with_its_preset(
  name, tmp_path, tiny_data, compilation_cache
):
  config = tiny.with_data(tiny.get_config(), tiny_data)
  config.geometry = name
  config.roi.sampling_ratio = None
  figures = tiny.run_training(config, tmp_path / 'run', skip_test=False)
  assert len(figures) == config.train.num_steps
  assert (tmp_path / 'run/inference/coco_results.json').is_file()
  detector = load_detector(tmp_path / 'run', None)
  assert geometry_of(detector.config) == geometry_of(config)
