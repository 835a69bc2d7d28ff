"""Tests of drawing: which pixels of a picture change, and where labels are."""

import itertools

import numpy as np
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.drawing import draw
from maskrcnn_jax.drawing import masks as draw_masks

# pycocotools 2.0.11 decodes with an `__array__` method written for NumPy 1.
pytestmark = pytest.mark.filterwarnings(
  'ignore:__array__ implementation:DeprecationWarning'
)


def _gray(height=400, width=500, value=128):
  return np.full((height, width, 3), value, np.uint8)


def _rectangles(boxes, size):
  """Makes masks that fill their boxes, as far as the boxes are in the image."""
  rles = []
  for box in boxes:
    mask = np.zeros(size, np.uint8, order='F')
    x1, y1, x2, y2 = np.clip(box, 0, [size[1], size[0]] * 2).astype(int)
    mask[y1:y2, x1:x2] = 1
    rles.append(mask_api.encode(mask))
  return rles


def _draw(image, boxes, *, names=None, scores=None, masks=True, **kwargs):
  boxes = np.array(boxes, np.float32).reshape(-1, 4)
  names = names or ['cat'] * len(boxes)
  if scores is None:
    scores = np.full(len(boxes), 0.9)
  rles = _rectangles(boxes, image.shape[:2]) if masks else None
  picture = draw.draw_detections(
    image, boxes, names, np.array(scores, np.float32), rles, **kwargs
  )
  return np.asarray(picture)


def _placed(monkeypatch):
  """Records labels instead of drawing them.

  Returns:
    A list to which each label is added, as (text, plate).
  """
  labels = []

  def record(pen, plate, text, color, font):
    labels.append((text, plate))

  monkeypatch.setattr(draw, '_draw_plate', record)
  return labels


def test_draw_detections_moves_the_pixels_of_a_mask_toward_its_color():
  image = _gray()
  drawn = _draw(image, [[100, 150, 300, 350]]).astype(int)
  color = np.array(draw.instance_color(0))
  before = np.abs(image[200:300, 150:250] - color).sum(axis=-1)
  after = np.abs(drawn[200:300, 150:250] - color).sum(axis=-1)
  assert (after < before).all() and (after > 0).all()


@pytest.mark.parametrize('masks', [True, False])
def test_draw_detections_leaves_the_rest_of_the_image(masks):
  image = np.random.default_rng(0).integers(
    0, 256, (400, 500, 3), dtype=np.uint8
  )
  box = [100, 150, 300, 350]
  drawn = _draw(image, [box], masks=masks)
  changed = np.argwhere((drawn != image).any(axis=-1))
  # The label is at most 30 pixels above the box, and the halo 2 pixels wide.
  assert changed.min(axis=0).tolist() >= [150 - 30, 100 - 2]
  assert (changed.max(axis=0) <= [350 + 1, 300 + 1]).all()
  assert (drawn[160:340, 110:290] == image[160:340, 110:290]).all() != masks


@pytest.mark.parametrize('size', [(400, 500), (30, 40)])
@pytest.mark.parametrize('masks', [True, False])
def test_draw_detections_of_nothing_is_the_image(size, masks):
  image = _gray(*size)
  np.testing.assert_array_equal(_draw(image, [], masks=masks), image)


def test_draw_detections_leaves_out_low_scores_and_broken_boxes():
  image = _gray()
  boxes = [[10, 10, 90, 90], [110, 110, 190, 190], [210, 210, 290, 290]]
  drawn = _draw(image, boxes, scores=[0.49, 0.5, np.nan])
  np.testing.assert_array_equal(drawn[:90, :90], image[:90, :90])
  assert (drawn[120:180, 120:180] != image[120:180, 120:180]).any(axis=-1).all()
  np.testing.assert_array_equal(drawn[200:], image[200:])
  boxes[1][0] = np.inf
  drawn = _draw(image, boxes, masks=False, scores=[0, 0.6, 0], min_score=0.5)
  np.testing.assert_array_equal(drawn, image)


def test_draw_detections_is_deterministic():
  boxes = np.random.default_rng(0).uniform(0, 250, (20, 4))
  boxes[:, 2:] += boxes[:, :2]
  first, second = _draw(_gray(), boxes), _draw(_gray(), boxes)
  np.testing.assert_array_equal(first, second)


def test_draw_detections_does_not_change_its_input():
  image = _gray()
  _draw(image, [[10, 10, 90, 90]])
  assert (image == 128).all()


@pytest.mark.parametrize(
  ('size', 'factor'),
  [((1, 1), 16), ((64, 64), 7), ((256, 9), 2), ((399, 9), 2), ((400, 9), 1)],
)
def test_draw_detections_enlarges_small_images(size, factor):
  drawn = _draw(_gray(*size), [[0, 0, size[1], size[0]]])
  assert drawn.shape == (size[0] * factor, size[1] * factor, 3)


@pytest.mark.parametrize('size', [(1, 1), (1, 700), (5000, 20), (20, 5000)])
@pytest.mark.parametrize('count', [1, 30])
@pytest.mark.parametrize('masks', [True, False])
def test_draw_detections_takes_images_of_any_size(size, count, masks):
  rng = np.random.default_rng(0)
  low = rng.uniform(-0.2, 0.9, (count, 2))
  boxes = np.concatenate([low, low + rng.uniform(0, 0.5, (count, 2))], axis=1)
  boxes *= [size[1], size[0]] * 2
  drawn = _draw(_gray(*size), boxes, masks=masks)
  assert drawn.shape[0] % size[0] == 0 and drawn.shape[1] % size[1] == 0


@pytest.mark.parametrize(
  'box',
  [
    [-100, -100, 50, 50],
    [450, 350, 900, 900],
    [-500, -500, 900, 900],
    [-90, -90, -10, -10],
    [600, 500, 700, 600],
    [100, 100, 100, 100],
    [100, 100, 50, 50],
  ],
)
@pytest.mark.parametrize('masks', [True, False])
def test_draw_detections_takes_boxes_out_of_the_image(box, masks, monkeypatch):
  assert _draw(_gray(), [box], masks=masks).shape == (400, 500, 3)
  labels = _placed(monkeypatch)
  _draw(_gray(), [box], masks=masks)
  ((_, (x1, y1, x2, y2)),) = labels
  assert 0 <= x1 < x2 <= 500 and 0 <= y1 < y2 <= 400


def test_draw_detections_keeps_labels_apart(monkeypatch):
  labels = _placed(monkeypatch)
  boxes = [[200 + i, 150 + i, 300 + i, 250 + i] for i in range(8)]
  _draw(_gray(), boxes)
  assert len(labels) == 8
  for (_, a), (_, b) in itertools.combinations(labels, 2):
    assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def _grid(side, step):
  return [
    [x, y, x + side, y + side]
    for y in range(30, 370, step)
    for x in range(30, 470, step)
  ]


def test_draw_detections_counts_a_crowd_of_small_objects(monkeypatch):
  labels = _placed(monkeypatch)
  boxes = _grid(20, 40)
  _draw(_gray(), boxes, names=['nucleus'] * len(boxes))
  assert [text for text, _ in labels] == [f'nucleus: {len(boxes)}']


def test_draw_detections_labels_the_large_objects_of_a_crowd(monkeypatch):
  labels = _placed(monkeypatch)
  boxes = [*_grid(20, 40), [0, 0, 500, 400]]
  names = ['ant'] * (len(boxes) - 1) + ['table']
  _draw(_gray(), boxes, names=names)
  assert [text for text, _ in labels] == [
    'table 0.90',
    f'ant: {len(boxes) - 1}, table: 1',
  ]


def test_draw_detections_labels_a_few_small_objects(monkeypatch):
  labels = _placed(monkeypatch)
  _draw(_gray(), [[50, 50, 60, 60], [200, 50, 210, 60]], names=['a', 'b'])
  assert [text for text, _ in labels] == ['a 0.90', 'b 0.90']


def test_draw_detections_spells_names_that_no_font_has_in_ascii(monkeypatch):
  monkeypatch.setattr(
    draw, 'choose_font', lambda text, font_file: ('creme ?', None)
  )
  labels = _placed(monkeypatch)
  _draw(_gray(), [[50, 50, 200, 200]], names=['crème 猫'])
  assert labels[0][0] == 'creme ? 0.90'


@pytest.mark.parametrize('kept_pixels', [0, 10**9])
def test_draw_detections_is_the_same_in_pieces(monkeypatch, kept_pixels):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (430, 510, 3), np.uint8)
  y, x = np.mgrid[:430, :510]
  masks = [
    mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    for mask in (
      (y - 200) ** 2 + (x - 240) ** 2 < 180**2,
      (y + x) % 150 < 70,
      y > 400,  # It touches the edges of the picture.
      x < 0,  # It is empty.
    )
  ]
  boxes = np.full((4, 4), [5, 5, 400, 300], np.float32)
  args = image, boxes, ['a'] * 4, np.full(4, 0.9, np.float32), masks
  whole = draw.draw_detections(*args, line_width=9)
  # The pieces of the picture and of each mask have edges inside of them.
  monkeypatch.setattr(draw_masks, '_PIECE', 97)
  monkeypatch.setattr(draw_masks, '_KEPT_PIXELS', kept_pixels)
  pieces = draw.draw_detections(*args, line_width=9)
  np.testing.assert_array_equal(np.asarray(whole), np.asarray(pieces))


@pytest.mark.parametrize('value', [0, 255])
def test_draw_detections_shows_a_box_on_any_background(value):
  image = _gray(value=value)
  drawn = _draw(image, [[100, 100, 300, 300]], masks=False).astype(int)
  # On a line across the left side of the box, a pixel differs clearly from the
  # background.
  assert np.abs(drawn[200, 95:105] - value).max() > 80


def test_draw_detections_shows_the_small_object_on_the_large_one():
  drawn = _draw(_gray(), [[200, 150, 300, 250], [10, 10, 490, 390]])
  small, large = drawn[200, 250], drawn[300, 400]
  assert not np.array_equal(small, large)
  alone = _draw(_gray(), [[200, 150, 300, 250]])
  np.testing.assert_array_equal(small, alone[200, 250])


def test_instance_color_differs_from_its_neighbours():
  colors = np.array([draw.instance_color(i) for i in range(200)])
  assert colors.min() >= 0 and colors.max() <= 255
  for step in (1, 2, 3, 4):
    distance = np.abs(colors[step:] - colors[:-step]).sum(axis=1)
    assert distance.min() > 60
  # All colors are bright enough for black letters and for a black background.
  assert (colors @ [0.299, 0.587, 0.114]).min() > 110


def test_draw_detections_refuses_lists_of_other_lengths():
  with pytest.raises(ValueError, match='2 boxes, 1 class names'):
    _draw(_gray(), np.zeros((2, 4)), names=['cat'])


def test_draw_detections_refuses_a_mask_of_another_size():
  with pytest.raises(ValueError, match='must agree'):
    draw.draw_detections(
      _gray(),
      np.array([[1, 1, 9, 9]], np.float32),
      ['cat'],
      np.array([0.9], np.float32),
      _rectangles([[1, 1, 9, 9]], (500, 400)),
    )
