"""Tests of masks drawn from outlines, and of the boxes of visible parts.

The expected masks are drawn by hand, by the even-odd rule, and by pycocotools.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.array_types import Outlines
from maskrcnn_jax.data.outlines import mask_to_outline
from maskrcnn_jax.ops import outlines as ops

rasterize = jax.jit(
  ops.rasterize_outlines,
  static_argnames=('side', 'max_object_vertices', 'max_parts'),
)
MAX_VERTICES = 48
MAX_PARTS = 4


def _closed(*polygons):
  """Returns (vertices, parts) of an object of closed polygons.

  Each polygon is one part, and its first vertex is repeated at its end.
  """
  vertices, parts = [], []
  for part, polygon in enumerate(polygons):
    vertices += [*polygon, polygon[0]]
    parts += [part] * len(polygon) + [-1]
  return np.array(vertices, np.float32), np.array(parts, np.int16)


def _outlines(*objects):
  """Joins objects, each given as (vertices, parts), into one `Outlines`."""
  ends = np.cumsum([0] + [len(parts) for _, parts in objects])
  return Outlines(
    jnp.concatenate([jnp.asarray(vertices) for vertices, _ in objects]),
    jnp.concatenate([jnp.asarray(parts) for _, parts in objects]),
    jnp.asarray(ends, jnp.int32),
  )


def _fill(outlines, boxes, objects=None, *, side):
  boxes = jnp.asarray(boxes, jnp.float32).reshape(-1, 4)
  if objects is None:
    objects = [0] * len(boxes)
  return np.asarray(
    rasterize(
      outlines,
      jnp.asarray(objects),
      boxes,
      side=side,
      max_object_vertices=MAX_VERTICES,
      max_parts=MAX_PARTS,
    )
  )


def _rectangle(x1, y1, x2, y2):
  return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _drawn(*rows):
  return np.array([[cell == '#' for cell in row] for row in rows])


def test_rasterize_outlines_fills_a_rectangle():
  outlines = _outlines(_closed(_rectangle(1, 1, 3, 4)))
  np.testing.assert_array_equal(
    _fill(outlines, [0, 0, 4, 4], side=4)[0],
    _drawn('....', '.##.', '.##.', '.##.'),
  )


def test_rasterize_outlines_fills_cells_whose_centre_is_inside():
  # The centres 1.5, 2.5 and 3.5 are between 1.4 and 3.6. Only 1.5 is between
  # 0.6 and 2.4.
  outlines = _outlines(_closed(_rectangle(1.4, 0.6, 3.6, 2.4)))
  np.testing.assert_array_equal(
    _fill(outlines, [0, 0, 4, 4], side=4)[0],
    _drawn('....', '.###', '....', '....'),
  )


def test_rasterize_outlines_fills_a_triangle():
  # The slope crosses the centre line of row y at x = 4.25 - (y + 0.5).
  outlines = _outlines(_closed([(0, 0), (4.25, 0), (0, 4.25)]))
  np.testing.assert_array_equal(
    _fill(outlines, [0, 0, 4, 4], side=4)[0],
    _drawn('####', '###.', '##..', '#...'),
  )


def test_rasterize_outlines_counts_a_vertex_on_a_scan_line_correctly():
  # Three corners are on scan lines: left and right at y = 1.5, and the lower
  # tip at y = 2.5.
  outlines = _outlines(_closed([(2, 0), (4, 1.5), (2, 2.5), (0, 1.5)]))
  np.testing.assert_array_equal(
    _fill(outlines, [0, 0, 4, 4], side=4)[0],
    # At y = 0.5 the object reaches from x = 1.33 to x = 2.67.
    _drawn('.##.', '####', '....', '....'),
  )


def test_rasterize_outlines_leaves_the_hole_of_a_contour_given_as_edges():
  # The object is a ring of pixels. Its contour is given as vertical edges only:
  # on the left, on the right, and on both sides of the hole, all in one part.
  vertices = [(0, 0), (0, 4), (1, 1), (1, 3), (3, 1), (3, 3), (4, 0), (4, 4)]
  parts = [0, -1] * 4
  outlines = _outlines((np.array(vertices, np.float32), np.array(parts)))
  np.testing.assert_array_equal(
    _fill(outlines, [0, 0, 4, 4], side=4)[0],
    _drawn('####', '#..#', '#..#', '####'),
  )


def test_rasterize_outlines_fills_all_of_two_parts_that_overlap():
  outlines = _outlines(_closed(_rectangle(0, 0, 3, 3), _rectangle(1, 1, 4, 4)))
  np.testing.assert_array_equal(
    _fill(outlines, [0, 0, 4, 4], side=4)[0],
    _drawn('###.', '####', '####', '.###'),
  )


def test_rasterize_outlines_leaves_out_the_overlap_inside_one_part():
  # The same two squares as one polygon, joined by a line to (0, 0).
  polygon = [*_rectangle(0, 0, 3, 3), (0, 0), *_rectangle(1, 1, 4, 4), (1, 1)]
  np.testing.assert_array_equal(
    _fill(_outlines(_closed(polygon)), [0, 0, 4, 4], side=4)[0],
    _drawn('###.', '#..#', '#..#', '.###'),
  )


def test_rasterize_outlines_cuts_off_what_is_outside_the_box():
  outlines = _outlines(_closed(_rectangle(0, 0, 8, 8)))
  boxes = [
    [2, 2, 6, 6],  # inside the object
    [-2, -2, 2, 2],  # over its top left corner
    [6, 4, 10, 8],  # over its right side
    [9, 0, 13, 4],  # to the right of it
    [-5, 0, -1, 4],  # to the left of it
    [0, 9, 4, 13],  # below it
    [-8, -8, 16, 16],  # the object, and its size on each side
  ]
  corner, right = np.zeros((2, 6, 6), bool)
  corner[3:, 3:] = right[:, :3] = True
  middle = np.zeros((6, 6), bool)
  middle[2:4, 2:4] = True
  nothing = np.zeros((6, 6), bool)
  np.testing.assert_array_equal(
    _fill(outlines, boxes, side=6),
    [~nothing, corner, right, nothing, nothing, nothing, middle],
  )


def test_rasterize_outlines_shows_each_box_its_own_object():
  outlines = _outlines(
    _closed(_rectangle(0, 0, 2, 4)),
    # An object without an outline.
    (np.zeros((0, 2), np.float32), np.zeros(0, np.int16)),
    _closed(_rectangle(2, 0, 4, 4), _rectangle(0, 0, 1, 1)),
  )
  masks = _fill(outlines, [[0, 0, 4, 4]] * 4, [2, 0, 1, 2], side=4)
  third = _drawn('#.##', '..##', '..##', '..##')
  np.testing.assert_array_equal(
    masks, [third, _drawn(*['##..'] * 4), np.zeros((4, 4), bool), third]
  )


def test_rasterize_outlines_enlarges_a_box_without_area_to_a_tenth_of_a_pixel():
  outlines = _outlines(_closed(_rectangle(0, 0, 4, 4)))
  # From (2, 2), a tenth of a pixel is inside; from (3.95, 2), half of that is.
  masks = _fill(outlines, [[2, 2, 2, 2], [3.95, 2, 3.95, 2]], side=4)
  np.testing.assert_array_equal(masks[0], np.ones((4, 4), bool))
  np.testing.assert_array_equal(masks[1], _drawn(*['##..'] * 4))


def _random_outline(rng):
  """Returns an object of one to three random polygons, some self-crossing."""
  polygons = []
  for _ in range(rng.integers(1, 4)):
    count = rng.integers(3, 13)
    center = rng.uniform(10, 40, 2)
    if rng.random() < 0.5:
      angle = np.sort(rng.uniform(0, 2 * np.pi, count))
      radius = rng.uniform(3, 25, count)
      corners = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    else:
      corners = rng.uniform(-20, 20, (count, 2))
    polygons.append([tuple(corner) for corner in center + corners])
  return _closed(*polygons)


def _random_boxes(rng, count):
  corner = rng.uniform(-10, 40, (count, 2))
  sides = rng.uniform(2, 50, (count, 2))
  return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


@functools.cache
def _random_case():
  rng = np.random.default_rng(0)
  objects = [_random_outline(rng) for _ in range(24)]
  return objects, _random_boxes(rng, 48), np.arange(48) % 24


def test_rasterize_outlines_agrees_with_the_even_odd_rule():
  objects, boxes, which = _random_case()
  masks = _fill(_outlines(*objects), boxes, which, side=14)
  undecided = 0
  for mask, box, index in zip(masks, boxes, which, strict=True):
    expected, margin = oracles.rasterize(*objects[index], box, side=14)
    # Closer to an edge than this, in pixels, rounding may decide.
    decided = margin > 1e-4
    np.testing.assert_array_equal(mask[decided], expected[decided])
    undecided += (~decided).sum()
  assert undecided < 0.005 * masks.size
  assert 0.1 < masks.mean() < 0.9


def _distance_to_edges(vertices, parts, point):
  start = vertices[:-1][parts[:-1] >= 0]
  along = vertices[1:][parts[:-1] >= 0] - start
  share = ((point - start) * along).sum(1) / (along**2).sum(1)
  nearest = start + np.clip(share, 0, 1)[:, None] * along
  return np.linalg.norm(nearest - point, axis=1).min()


def test_rasterize_outlines_agrees_with_pycocotools_except_at_the_border():
  objects, boxes, which = _random_case()
  masks = _fill(_outlines(*objects), boxes, which, side=28)
  for mask, box, index in zip(masks, boxes, which, strict=True):
    vertices, parts = objects[index]
    cells = (vertices.astype(np.float64) - box[:2]) * 28 / (box[2:] - box[:2])
    polygons = [
      cells[:-1][parts[:-1] == part].ravel().tolist()
      for part in range(parts.max() + 1)
    ]
    theirs = mask_api.decode(
      mask_api.merge(mask_api.frPyObjects(polygons, 28, 28))
    ).astype(bool)
    for i, j in np.argwhere(mask != theirs):
      center = np.array([j + 0.5, i + 0.5])
      # pycocotools first rounds the outline to fifths of a cell.
      assert _distance_to_edges(cells, parts, center) < 0.75


def test_rasterize_outlines_of_flipped_outlines_and_boxes_is_flipped():
  objects, boxes, which = _random_case()
  masks = _fill(_outlines(*objects), boxes, which, side=14)
  flipped = [
    (np.float32([50, 0]) + np.float32([-1, 1]) * vertices, parts)
    for vertices, parts in objects
  ]
  boxes = np.stack(
    [50 - boxes[:, 2], boxes[:, 1], 50 - boxes[:, 0], boxes[:, 3]], axis=1
  )
  mirrored = _fill(_outlines(*flipped), boxes, which, side=14)
  # Rounding may decide about a few centres next to an outline.
  assert (mirrored != masks[:, :, ::-1]).mean() < 1e-3


def test_rasterize_outlines_ignores_the_direction_of_the_vertices():
  objects, boxes, which = _random_case()
  masks = _fill(_outlines(*objects), boxes, which, side=14)
  # With the vertices reversed, the last vertex of a part becomes its first, so
  # the -1 in `parts` moves to the other end.
  turned = [
    (vertices[::-1], np.append(parts[-2::-1], -1))
    for vertices, parts in objects
  ]
  backwards = _fill(_outlines(*turned), boxes, which, side=14)
  assert (backwards != masks).mean() < 1e-3


@pytest.mark.parametrize(
  'overrides', [{'max_object_vertices': 90}, {'max_parts': 9}, {}]
)
def test_rasterize_outlines_is_not_changed_by_padding(overrides):
  objects, boxes, which = _random_case()
  outlines = _outlines(*objects)
  masks = _fill(outlines, boxes, which, side=14)
  # Add vertices that belong to no object, objects without vertices, and boxes
  # of these objects.
  padded = Outlines(
    jnp.pad(outlines.vertices, ((0, 20), (0, 0)), constant_values=9),
    jnp.pad(outlines.parts, (0, 20)),
    jnp.pad(outlines.starts, (0, 5), mode='edge'),
  )
  options = {'max_object_vertices': MAX_VERTICES, 'max_parts': MAX_PARTS}
  more = rasterize(
    padded,
    jnp.asarray(np.append(which, [25, 28])),
    jnp.asarray(
      np.append(boxes, [[0, 0, 50, 50], [0, 0, 0, 0]], axis=0), jnp.float32
    ),
    side=14,
    **(options | overrides),
  )
  np.testing.assert_array_equal(more[:-2], masks)
  assert not more[-2:].any()


def test_rasterize_outlines_of_no_objects_is_empty():
  outlines = Outlines(
    jnp.zeros((6, 2)), jnp.full(6, -1), jnp.zeros(4, jnp.int32)
  )
  boxes = [[0, 0, 0, 0], [0, 0, 9, 9], [-5, -5, 5, 5]]
  assert not _fill(outlines, boxes, [0, 1, 2], side=14).any()


visible = jax.jit(ops.visible_boxes, static_argnames='max_object_vertices')


def _see(outlines, height, width, max_vertices=MAX_VERTICES):
  return np.asarray(
    visible(
      outlines, jnp.array([height, width]), max_object_vertices=max_vertices
    )
  )


@pytest.mark.parametrize(
  ('polygons', 'box'),
  [
    ([_rectangle(2, 3, 6, 7)], [2, 3, 6, 7]),  # wholly visible
    ([_rectangle(-2, 3, 6, 17)], [0, 3, 6, 10]),
    ([_rectangle(-5, -5, 15, 15)], [0, 0, 10, 10]),  # larger than the image
    ([_rectangle(11, 2, 15, 4)], [0, 0, 0, 0]),  # outside the image
    ([_rectangle(10, 2, 15, 4)], [0, 0, 0, 0]),  # touches the right border
    ([_rectangle(-3, 2, 0, 4)], [0, 0, 0, 0]),  # touches the left border
    ([_rectangle(0, 0, 10, 10)], [0, 0, 10, 10]),  # equals the image
    # The line from (-10, 0) to (10, 10) enters the image at y = 5.
    ([[(-10, 0), (10, 10), (-10, 10)]], [0, 5, 10, 10]),
    # A diamond around the corner (0, 0). Its own box would end at y = 5.
    ([[(-1, -5), (4, 0), (-1, 5), (-6, 0)]], [0, 0, 4, 4]),
    ([[(0, 14), (14, 0), (14, 14)]], [4, 4, 10, 10]),
    # A letter C whose back is outside the image; only its two arms are visible.
    (
      [[(-4, 1), (5, 1), (5, 2), (-3, 2), (-3, 8), (5, 8), (5, 9), (-4, 9)]],
      [0, 1, 5, 9],
    ),
    # Two parts, the first of which is outside the image.
    ([_rectangle(-4, 1, -1, 9), _rectangle(3, 4, 5, 6)], [3, 4, 5, 6]),
    # A frame around the image: by the even-odd rule, the image is its hole.
    (
      [
        [
          *_rectangle(-5, -5, 15, 15),
          (-5, -5),
          *_rectangle(-1, -1, 11, 11),
          (-1, -1),
        ]
      ],
      [0, 0, 0, 0],
    ),
  ],
)
def test_visible_boxes_by_hand(polygons, box):
  outlines = _outlines(_closed(_rectangle(1, 1, 2, 2)), _closed(*polygons))
  np.testing.assert_allclose(
    _see(outlines, 10, 10), [[1, 1, 2, 2], box], atol=1e-5
  )


def test_visible_boxes_of_objects_without_an_outline_are_zero():
  nothing = (np.zeros((0, 2), np.float32), np.zeros(0, np.int16))
  outlines = _outlines(_closed(_rectangle(1, 1, 2, 2)), nothing, nothing)
  np.testing.assert_array_equal(
    _see(outlines, 10, 10), [[1, 1, 2, 2], [0] * 4, [0] * 4]
  )


def test_visible_boxes_of_bitmaps_equal_the_boxes_of_cropped_bitmaps():
  rng = np.random.default_rng(0)
  objects, expected = [], []
  height, width = 9, 11
  for _ in range(60):
    mask = rng.random((16, 18)) < rng.choice([0.02, 0.1, 0.5, 0.95])
    vertices, parts = mask_to_outline(mask)
    top, left = rng.integers(0, 6, 2)
    objects.append((vertices - np.float32([left, top]), parts))
    seen = mask[top : top + height, left : left + width]
    y, x = np.nonzero(seen)
    expected.append(
      [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0] * 4
    )
  np.testing.assert_array_equal(
    _see(_outlines(*objects), height, width, max_vertices=512), expected
  )


def _scanned_box(vertices, parts, height, width, lines_per_pixel=200):
  """Returns the box around the parts of many scan lines inside an object."""
  lines = (np.arange(height * lines_per_pixel) + 0.5) / lines_per_pixel
  found = []
  for line in lines:
    for part in range(parts.max() + 1):
      at = []
      for i in np.flatnonzero(parts == part):
        (x1, y1), (x2, y2) = vertices[i : i + 2].astype(np.float64)
        if (y1 <= line) != (y2 <= line):
          at.append(x1 + (line - y1) * (x2 - x1) / (y2 - y1))
      at = np.clip(np.sort(at), 0, width).reshape(-1, 2)
      found += [(x1, line, x2, line) for x1, x2 in at if x2 > x1]
  if not found:
    return np.zeros(4)
  found = np.array(found)
  return np.concatenate([found[:, :2].min(axis=0), found[:, 2:].max(axis=0)])


def test_visible_boxes_agree_with_scan_lines():
  rng = np.random.default_rng(1)
  objects = [_random_outline(rng) for _ in range(20)]
  boxes = _see(_outlines(*objects), 20, 24)
  cut = 0
  for (vertices, parts), box in zip(objects, boxes, strict=True):
    scanned = _scanned_box(vertices, parts, 20, 24, lines_per_pixel=40)
    # Scan lines miss the tips of corners, so the box may be a little larger.
    low, high = box[:2] - scanned[:2], scanned[2:] - box[2:]
    assert (low <= 1e-3).all() and (high <= 1e-3).all()
    assert (low >= -0.5).all() and (high >= -0.5).all()
    cut += vertices.max() > 24 and box.any()
  assert cut > 5


def test_visible_boxes_ignore_padding():
  outlines = _outlines(*[_random_outline(np.random.default_rng(2))] * 2)
  padded = Outlines(
    jnp.pad(outlines.vertices, ((0, 30), (0, 0))),
    jnp.pad(outlines.parts, (0, 30), constant_values=-1),
    outlines.starts,
  )
  np.testing.assert_array_equal(
    _see(outlines, 20, 24), _see(padded, 20, 24, max_vertices=96)
  )


def test_rasterize_outlines_kernel_equals_plain_jax():
  rng = np.random.default_rng(0)
  images = []
  for _ in range(2):
    # The cases are: corners at multiples of half a pixel, some of them on scan
    # lines of the 8-pixel box; overlapping parts; a hole; and an object without
    # an outline.
    objects = [
      _closed(
        *(
          rng.integers(-2, 20, (rng.integers(3, 9), 2)) / 2
          for _ in range(num_parts)
        )
      )
      for num_parts in (1, 3, 2)
    ]
    vertices = [(0, 0), (0, 4), (1, 1), (1, 3), (3, 1), (3, 3), (4, 0), (4, 4)]
    objects.append((np.float32(vertices), np.array([0, -1] * 4)))
    objects.append((np.zeros((0, 2), np.float32), np.zeros(0, np.int16)))
    outlines = _outlines(*objects)
    room = 120 - len(outlines.parts)
    images.append(
      Outlines(
        jnp.pad(outlines.vertices, ((0, room), (0, 0))),
        jnp.pad(outlines.parts, (0, room), constant_values=-1),
        outlines.starts,
      )
    )
  batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *images)
  boxes = np.concatenate(
    [
      np.tile(np.float32([0, 0, 8, 8]), (5, 1)),
      np.sort(rng.uniform(-3, 12, (5, 2, 2)), axis=1).reshape(5, 4),
      [[3, 3, 3, 3]],
    ]
  ).astype(np.float32)
  objects = jnp.arange(11) % 5

  def draw(kernels):
    return jax.jit(
      jax.vmap(
        lambda outlines: ops.rasterize_outlines(
          outlines,
          objects,
          jnp.asarray(boxes),
          side=7,
          max_object_vertices=MAX_VERTICES,
          max_parts=MAX_PARTS,
          kernels=kernels,
        )
      )
    )(batch)

  drawn = draw('interpret')
  np.testing.assert_array_equal(drawn, draw('xla'))
  assert 0.1 < np.mean(drawn) < 0.9
