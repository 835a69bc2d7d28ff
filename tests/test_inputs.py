"""Tests of the inputs: images and ground truth, flipped, resized and padded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from maskrcnn_jax.array_types import Batch, Outlines
from maskrcnn_jax.data.outlines import (
  fill_outline,
  mask_to_outline,
  polygons_to_outline,
)
from maskrcnn_jax.inputs import (
  AugmentationOptions,
  Placement,
  adjust_colors,
  draw_augmentation,
  draw_color_factors,
  draw_flips,
  draw_scale_jitter,
  draw_sizes,
  prepare_inputs,
)
from maskrcnn_jax.ops.outlines import rasterize_outlines

PADDED = (8, 8)
prepare = jax.jit(
  functools.partial(
    prepare_inputs,
    padded_size=PADDED,
    pixel_mean=(10.0, 20.0, 30.0),
    pixel_std=(1.0, 2.0, 4.0),
    antialias=True,
  ),
  static_argnames='antialias',
)


def make_batch(rows, *, slots=2, vertices=8):
  """Returns a batch of images on canvases of 6x6 pixels.

  Args:
    rows: (pixels, image_size, boxes, polygon) of each image. All boxes are of
      class 1; the first object has the polygon.
    slots: Number of ground-truth slots.
    vertices: Number of slots for vertices.
  """
  b = len(rows)
  images = np.full((b, 6, 6, 3), 99, np.uint8)  # The padding is not zero.
  source_sizes = np.zeros((b, 2), np.int32)
  image_sizes = np.zeros((b, 2), np.int32)
  gt_boxes = np.full((b, slots, 4), 7, np.float32)
  gt_classes = np.zeros((b, slots), np.int32)
  gt_valid = np.zeros((b, slots), bool)
  points = np.zeros((b, vertices, 2), np.float32)
  parts = np.full((b, vertices), -1, np.int32)
  starts = np.zeros((b, slots + 1), np.int32)
  for i, (pixels, image_size, boxes, polygon) in enumerate(rows):
    images[i, : pixels.shape[0], : pixels.shape[1]] = pixels
    source_sizes[i] = pixels.shape[:2]
    image_sizes[i] = image_size
    gt_boxes[i, : len(boxes)] = np.reshape(boxes, (-1, 4))
    gt_classes[i, : len(boxes)] = 1
    gt_valid[i, : len(boxes)] = True
    points[i, : len(polygon)] = np.reshape(polygon, (-1, 2))
    parts[i, : len(polygon)] = [0] * (len(polygon) - 1) + [-1]
    starts[i, 1:] = len(polygon)
  return Batch(
    images,
    source_sizes,
    image_sizes,
    np.ones(b, bool),
    gt_boxes,
    gt_classes,
    gt_valid,
    Outlines(points, parts, starts),
  )


def grey(values):
  return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


@pytest.fixture
def ramp():
  """Returns a batch of one image of 2x3 pixels that is resized to 4x6."""
  pixels = grey([[10, 20, 30], [10, 20, 30]])
  polygon = [(0, 0), (2, 0), (2, 2), (0, 0)]
  return make_batch([(pixels, (4, 6), [(0, 0, 2, 1)], polygon)])


def test_prepare_inputs_normalises_each_channel(ramp):
  batch = ramp._replace(images=np.full_like(ramp.images, 50))
  pixels = prepare(batch, jnp.array([False])).images[0, :4, :6]
  # (50 - 10) / 1, (50 - 20) / 2, (50 - 30) / 4.
  assert_allclose(pixels, np.broadcast_to([40, 15, 5], (4, 6, 3)), rtol=1e-6)


@pytest.mark.parametrize('antialias', [False, True])
def test_prepare_inputs_interpolates_between_pixel_centres(ramp, antialias):
  inputs = prepare(ramp, jnp.array([False]), antialias=antialias)
  row = inputs.images[0, 0, :6, 0]
  # The new centres 0.5, 1.5, ... are at 0.25, 0.75, ... in pixels of the
  # source, whose own centres are at 0.5, 1.5 and 2.5. The edges are repeated.
  # The mean, 10, is subtracted. PIL rounds, and halves up.
  expected = np.array([10, 12.5, 17.5, 22.5, 27.5, 30])
  if antialias:
    expected = np.floor(expected + 0.5)
  assert_allclose(row, expected - 10, 1e-6)


def test_prepare_inputs_is_zero_outside_the_image(ramp):
  images = np.array(prepare(ramp, jnp.array([True])).images)
  images[0, :4, :6] = 0
  assert_array_equal(images, np.zeros((1, *PADDED, 3)))


@pytest.mark.parametrize(
  ('flip', 'box', 'vertices'),
  [
    # All coordinates are doubled. Mirroring in 6 pixels turns x into 6 - x.
    (False, (0, 0, 4, 2), [(0, 0), (4, 0), (4, 4), (0, 0)]),
    (True, (2, 0, 6, 2), [(6, 0), (2, 0), (2, 4), (6, 0)]),
  ],
)
def test_prepare_inputs_moves_the_ground_truth_with_the_image(
  ramp, flip, box, vertices
):
  inputs = prepare(ramp, jnp.array([flip]))
  assert_allclose(inputs.gt_boxes[0, 0], box, rtol=1e-6)
  assert_allclose(inputs.outlines.vertices[0, :4], vertices, rtol=1e-6)


@pytest.mark.parametrize('kind', ['bitmap', 'polygon'])
def test_flipping_subtracts_the_width_offset_of_polygons_only(kind):
  # maskrcnn-benchmark mirrors a bitmap pixel by pixel. It maps x of a polygon
  # to width - 1 - x.
  mask = np.random.default_rng(0).random((6, 6)) < 0.5
  vertices, parts = mask_to_outline(mask)
  if kind == 'polygon':
    vertices, parts = polygons_to_outline([[1, 1, 5, 1, 5, 4, 1, 4]])
  batch = make_batch([(grey(np.zeros((6, 6))), (6, 6), [], [])], vertices=64)
  batch.outlines.vertices[0, : len(parts)] = vertices
  batch.outlines.parts[0, : len(parts)] = parts
  inputs = prepare_inputs(
    batch,
    jnp.array([True]),
    padded_size=PADDED,
    pixel_mean=(0.0, 0.0, 0.0),
    pixel_std=(1.0, 1.0, 1.0),
    antialias=True,
    width_offset=1.0,
  )
  mirrored = np.asarray(inputs.outlines.vertices[0, : len(parts)])
  drawn = fill_outline(mirrored, parts, 6, 6)
  if kind == 'bitmap':
    assert_array_equal(drawn, mask[:, ::-1])
  else:
    assert_array_equal(
      mirrored, np.stack([6 - 1 - vertices[:, 0], vertices[:, 1]], axis=1)
    )


def test_prepare_inputs_scales_each_axis_by_its_own_factor():
  # 4x3 pixels become 2x6: y is halved, x is doubled.
  batch = make_batch(
    [(grey(np.zeros((4, 3))), (2, 6), [(1, 2, 3, 4)], [(1, 2), (3, 4)])]
  )
  inputs = prepare(batch, jnp.array([False]))
  assert_allclose(inputs.gt_boxes[0, 0], [2, 1, 6, 2], rtol=1e-6)
  assert_allclose(inputs.outlines.vertices[0, 1], [6, 2], rtol=1e-6)


def test_prepare_inputs_zeroes_boxes_of_padding(ramp):
  inputs = prepare(ramp, jnp.array([True]))
  assert_array_equal(inputs.gt_boxes[0, 1], np.zeros(4))


def test_flipping_mirrors_the_image_inside_its_own_width(ramp):
  plain = prepare(ramp, jnp.array([False])).images[0, :4, :6]
  flipped = prepare(ramp, jnp.array([True])).images[0, :4, :6]
  assert_allclose(flipped, plain[:, ::-1], atol=1e-5)


def test_flipping_the_source_and_then_the_inputs_changes_nothing(key):
  noise = np.asarray(jax.random.randint(key, (5, 4, 3), 0, 256), np.uint8)
  one = make_batch([(noise, (7, 6), [(1, 0, 2, 5)], [])])
  other = make_batch([(noise[:, ::-1], (7, 6), [(2, 0, 3, 5)], [])])
  a = prepare(one, jnp.array([False]))
  b = prepare(other, jnp.array([True]))
  assert_allclose(a.images, b.images, atol=1e-4)
  assert_allclose(a.gt_boxes, b.gt_boxes, atol=1e-5)


def test_prepare_inputs_ignores_pixels_outside_the_source(ramp):
  other = np.array(ramp.images)
  other[0, 2:] = 0
  other[0, :, 3:] = 255
  flips = jnp.array([False])
  assert_array_equal(
    prepare(ramp, flips).images,
    prepare(ramp._replace(images=other), flips).images,
  )


def test_prepare_inputs_treats_each_image_of_a_batch_alone(ramp, key):
  noise = np.asarray(jax.random.randint(key, (5, 6, 3), 0, 256), np.uint8)
  other = make_batch([(noise, (8, 7), [(0, 1, 2, 3)], [(1, 1), (2, 2)])])
  both = jax.tree.map(lambda x, y: np.concatenate([x, y]), ramp, other)
  together = prepare(both, jnp.array([True, False]))
  alone = prepare(other, jnp.array([False]))
  for a, b in zip(
    jax.tree.leaves(jax.tree.map(lambda x: x[1:], together)),
    jax.tree.leaves(alone),
    strict=True,
  ):
    assert_allclose(a, b, atol=1e-5)


def test_prepare_inputs_keeps_the_pixels_of_an_image_that_keeps_its_size(key):
  noise = np.asarray(jax.random.randint(key, (6, 6, 3), 0, 256), np.uint8)
  batch = make_batch([(noise, (6, 6), [], [])])
  pixels = prepare(batch, jnp.array([False])).images[0, :6, :6]
  assert_allclose(
    pixels, (noise - np.array([10.0, 20, 30])) / [1, 2, 4], atol=1e-4
  )


@pytest.mark.parametrize(('probability', 'expected'), [(0.0, 0), (1.0, 8)])
def test_draw_flips_with_probability_0_or_1_is_certain(
  key, probability, expected
):
  flips = draw_flips(jax.random.split(key, 8), probability=probability)
  assert int(flips.sum()) == expected


def test_draw_flips_depends_only_on_the_key_of_the_image(key):
  keys = jax.random.split(key, 64)
  flips = draw_flips(keys, probability=0.5)
  assert_array_equal(flips[::-1], draw_flips(keys[::-1], probability=0.5))
  assert_array_equal(flips[:5], draw_flips(keys[:5], probability=0.5))
  # Half of 64 flips are expected; four standard deviations are 16.
  assert 16 <= int(flips.sum()) <= 48


LARGE = (48, 64)


augment_with = jax.jit(
  functools.partial(
    prepare_inputs,
    padded_size=LARGE,
    pixel_mean=(0.0, 0.0, 0.0),
    pixel_std=(1.0, 1.0, 1.0),
    antialias=True,
  ),
  static_argnames='max_object_vertices',
)


def augment(batch, flips=None, **arguments):
  """Prepares a batch on a canvas of size LARGE, without normalisation."""
  if flips is None:
    flips = jnp.zeros(len(batch.images), bool)
  return augment_with(batch, flips, **arguments)


def scene(count, seed=0):
  """Returns a batch with random objects, and images that show each object.

  Args:
    count: Number of images.
    seed: Seed of the objects.

  Returns:
    The batch, whose outlines are made from bitmaps of the objects; and, for
    each slot, images that are 255 where the object in this slot is.
  """
  rng = np.random.default_rng(seed)
  height, width = 30, 40
  rows, slots = [], 4
  y, x = np.mgrid[:height, :width]
  for _ in range(count):
    masks = []
    for _ in range(slots):
      center = rng.uniform(0, [height, width])
      radius = rng.uniform(3, 14, 2)
      inside = ((y - center[0]) / radius[0]) ** 2 + (
        (x - center[1]) / radius[1]
      ) ** 2 < 1
      masks.append(inside & (rng.random((height, width)) < 0.995))
    rows.append(masks)
  vertices = np.zeros((count, 512, 2), np.float32)
  parts = np.full((count, 512), -1, np.int32)
  starts = np.zeros((count, slots + 1), np.int32)
  boxes = np.zeros((count, slots, 4), np.float32)
  valid = np.zeros((count, slots), bool)
  for i, masks in enumerate(rows):
    end = 0
    for j, mask in enumerate(masks):
      points, part = mask_to_outline(mask)
      vertices[i, end : end + len(part)] = points
      parts[i, end : end + len(part)] = part
      end += len(part)
      starts[i, j + 1] = end
      if mask.any():
        rows_, columns = np.nonzero(mask)
        boxes[i, j] = (
          columns.min(),
          rows_.min(),
          columns.max() + 1,
          rows_.max() + 1,
        )
        valid[i, j] = True

  images = np.zeros((slots, count, 48, 48, 3), np.uint8)
  for i, masks in enumerate(rows):
    for j, mask in enumerate(masks):
      images[j, i, :height, :width] = 255 * mask[..., None]
  sizes = np.tile(np.array([[height, width]], np.int32), (count, 1))
  batch = Batch(
    images[0],
    sizes,
    sizes,
    np.ones(count, bool),
    boxes,
    valid.astype(np.int32),
    valid,
    Outlines(vertices, parts, starts),
  )
  return batch, images


@pytest.mark.parametrize('kind', ['jitter', 'short sides'])
def test_augmented_outlines_lie_on_the_augmented_bitmaps(key, kind):
  count = 12
  batch, images = scene(count)
  keys = jax.random.split(key, count)
  flips = draw_flips(keys, probability=0.5)
  if kind == 'jitter':
    arguments = dict(
      placement=draw_scale_jitter(
        keys,
        jnp.asarray(batch.source_sizes),
        scales=(0.3, 3.0),
        padded_size=LARGE,
      ),
      max_object_vertices=256,
    )
  else:
    arguments = dict(
      placement=draw_sizes(
        keys,
        jnp.tile(
          jnp.array([[20, 27], [30, 40], [37, 49], [48, 64]]), (count, 1, 1)
        ),
      ),
    )
  run = functools.partial(augment, **arguments)
  whole = jnp.array([[0, 0, LARGE[1], LARGE[0]]], jnp.float32)
  square = max(LARGE)
  fill = jax.jit(
    lambda outlines, i: rasterize_outlines(
      outlines,
      jnp.array([i]),
      whole.at[0, 3].set(square),
      side=square,
      max_object_vertices=256,
      max_parts=1,
    )[0, : LARGE[0]]
  )
  seen = 0
  for j in range(images.shape[0]):
    inputs = run(batch._replace(images=images[j]), flips)
    for i in range(count):
      pixels = np.asarray(inputs.images[i, ..., 0])
      drawn = np.asarray(
        fill(jax.tree.map(lambda x, i=i: x[i], inputs.outlines), j)
      )
      height, width = inputs.image_sizes[i].tolist()
      drawn = drawn[:height, :width]
      pixels = pixels[:height, :width]
      # Where a pixel is wholly inside or outside the object, the outline must
      # agree. Grey pixels are on its border.
      assert drawn[pixels > 254].all()
      assert not drawn[pixels < 1].any()
      if not inputs.gt_valid[i, j]:
        assert (pixels < 128).all()
        assert_array_equal(inputs.gt_boxes[i, j], np.zeros(4))
        assert inputs.gt_classes[i, j] == 0
        continue
      seen += 1
      x1, y1, x2, y2 = np.asarray(inputs.gt_boxes[i, j])
      assert -1e-3 <= x1 < x2 <= width + 1e-3
      assert -1e-3 <= y1 < y2 <= height + 1e-3
      # The box encloses all pixels that are drawn. It may be larger, because
      # thin parts may lie between pixel centres; the tests of `visible_boxes`
      # check that it is not too large.
      rows, columns = np.nonzero(drawn)
      if len(rows):
        assert x1 <= columns.min() + 0.5 and columns.max() + 0.5 <= x2
        assert y1 <= rows.min() + 0.5 and rows.max() + 0.5 <= y2
  assert seen > 20


def test_an_object_that_leaves_the_canvas_is_not_valid():
  # The image of 6x6 pixels is enlarged 16 times. The canvas shows its bottom
  # right part.
  pixels = grey(np.zeros((6, 6)))
  corner = [(0, 0), (2, 0), (2, 2), (0, 2), (0, 0)]
  batch = make_batch([(pixels, (6, 6), [(0, 0, 2, 2), (1, 1, 6, 6)], corner)])
  batch.outlines.starts[0] = [0, 5, 5]  # the second has no outline
  inputs = augment(
    batch,
    max_object_vertices=8,
    placement=Placement(jnp.array([[96, 96]]), jnp.array([[40, 20]])),
  )
  assert inputs.gt_valid.tolist() == [[False, True]]
  assert inputs.gt_classes.tolist() == [[0, 1]]
  assert_array_equal(inputs.gt_boxes[0, 0], np.zeros(4))
  # (16, 16, 96, 96) is shifted by (-20, -40) and clipped to 64x48.
  assert_allclose(inputs.gt_boxes[0, 1], [0, 0, 64, 48])
  assert_array_equal(inputs.image_sizes, [[48, 64]])


def test_a_cropped_object_has_the_box_of_its_visible_part():
  pixels = grey(np.zeros((6, 6)))
  diamond = [(3, 0), (6, 3), (3, 6), (0, 3), (3, 0)]
  batch = make_batch([(pixels, (6, 6), [(0, 0, 6, 6)], diamond)])
  inputs = augment(
    batch,
    max_object_vertices=8,
    # The first 50 of 60 rows are cut off; the diamond's lowest tip remains.
    placement=Placement(jnp.array([[60, 60]]), jnp.array([[50, 0]])),
  )
  assert_allclose(inputs.gt_boxes[0, 0], [20, 0, 40, 10], atol=1e-4)


def test_a_placement_with_the_sizes_of_the_batch_changes_nothing(ramp):
  flips = jnp.array([True])
  plain = prepare(ramp, flips)
  placed = prepare(
    ramp,
    flips,
    placement=Placement(
      jnp.asarray(ramp.image_sizes), jnp.zeros((1, 2), jnp.int32)
    ),
  )
  jax.tree.map(assert_array_equal, plain, placed)


def test_draw_scale_jitter_fits_the_scale_to_the_canvas(key):
  keys = jax.random.split(key, 200)
  sizes = jnp.tile(jnp.array([[30, 80]]), (200, 1))
  placed = draw_scale_jitter(keys, sizes, scales=(0.1, 2.0), padded_size=LARGE)
  # At scale 1, 80 pixels become 64.
  scales = np.asarray(placed.resized_sizes[:, 1]) / 64
  assert 0.1 - 0.01 <= scales.min() < 0.2
  assert 1.9 < scales.max() <= 2.0 + 0.01
  # The tolerance is four standard deviations of the mean of 200 scales.
  assert_allclose(scales.mean(), 1.05, atol=0.15)
  assert_allclose(placed.resized_sizes[:, 0], 30 * 0.8 * scales, atol=1.01)
  beyond = np.maximum(np.asarray(placed.resized_sizes) - LARGE, 0)
  offsets = np.asarray(placed.offsets)
  assert (0 <= offsets).all() and (offsets <= beyond).all()
  assert (offsets[beyond > 8] > 0).any()
  # The image has at most 48 rows, so a canvas of 48 rows cuts off none.
  assert not offsets[:, 0].any()


def test_draw_sizes_takes_each_choice_of_the_own_image(key):
  choices = jnp.array([[[640, 853], [800, 1067]], [[3, 4], [5, 6]]])
  placed = draw_sizes(jax.random.split(key, 64), jnp.tile(choices, (32, 1, 1)))
  for i, own in enumerate(choices.tolist()):
    found = {tuple(size) for size in placed.resized_sizes[i::2].tolist()}
    assert found == set(map(tuple, own))
  assert not placed.offsets.any()


def test_draw_augmentation_draws_from_the_sizes_of_the_batch(key):
  keys = jax.random.split(key, 40)
  options = AugmentationOptions(0.5, (), (0.0, 0.0, 0.0))
  choices = np.tile([[[10, 20], [30, 40]]], (40, 1, 1))
  sizes = jnp.tile(jnp.array([[50, 60]]), (40, 1))
  drawn = draw_augmentation(keys, sizes, choices, options, padded_size=LARGE)
  found = {tuple(size) for size in drawn.placement.resized_sizes.tolist()}
  assert found == {(10, 20), (30, 40)}
  # The sizes are independent of the flips.
  heights = drawn.placement.resized_sizes[:, 0].tolist()
  assert len(set(zip(drawn.flips.tolist(), heights, strict=True))) == 4
  plain = draw_augmentation(keys, sizes, None, options, padded_size=LARGE)
  assert plain.placement is None
  assert_array_equal(plain.flips, drawn.flips)


@pytest.mark.parametrize(
  'draw',
  [
    lambda keys, sizes: draw_scale_jitter(
      keys, sizes, scales=(0.1, 2.0), padded_size=LARGE
    ),
    lambda keys, sizes: draw_sizes(
      keys, sizes[:, None] - jnp.eye(2, dtype=int)
    ),
    lambda keys, _: draw_color_factors(keys, strengths=(0.4, 0.4, 0.4)),
  ],
)
def test_random_changes_depend_only_on_the_key_of_the_image(key, draw):
  keys = jax.random.split(key, 16)
  sizes = jnp.tile(jnp.array([[20, 30]]), (16, 1))
  jax.tree.map(
    lambda all_, part: assert_array_equal(all_[3:5], part),
    draw(keys, sizes),
    draw(keys[3:5], sizes[3:5]),
  )


def test_adjust_colors_by_hand():
  pixels = jnp.array([[[100.0, 50, 0], [200, 100, 60]]])
  real = jnp.array([[True, False]])

  def adjust(*factors):
    return np.asarray(adjust_colors(pixels, real, jnp.array(factors)))[0, 0]

  assert_allclose(adjust(1.0, 1.0, 1.0), [100, 50, 0], atol=1e-4)
  assert_allclose(adjust(2.0, 1.0, 1.0), [200, 100, 0], atol=1e-4)
  # The mean of the real pixel is 50.
  assert_allclose(adjust(1.0, 0.5, 1.0), [75, 50, 25], atol=1e-4)
  assert_allclose(adjust(1.0, 1.5, 1.0), [125, 50, 0], atol=1e-4)  # not -25
  # Its grey is 0.299 * 100 + 0.587 * 50 = 59.25.
  assert_allclose(adjust(1.0, 1.0, 0.0), [59.25] * 3, atol=1e-3)
  assert_allclose(adjust(1.0, 1.0, 1.4), [116.3, 46.3, 0], atol=1e-3)


def test_draw_color_factors_stay_within_their_strengths(key):
  factors = np.asarray(
    draw_color_factors(jax.random.split(key, 500), strengths=(0.4, 0.1, 0.0))
  )
  assert_allclose(factors.min(axis=0), [0.6, 0.9, 1], atol=0.02)
  assert_allclose(factors.max(axis=0), [1.4, 1.1, 1], atol=0.02)


def test_color_factors_leave_the_padding_zero(ramp):
  inputs = prepare(
    ramp, jnp.array([False]), color_factors=jnp.array([[1.2, 0.9, 1.1]])
  )
  assert not inputs.images[0, 4:].any()
  assert not inputs.images[0, :, 6:].any()
