"""Tests of data/loader.py."""

import collections
import json
import os
import pathlib
import pickle
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
import pytest

from maskrcnn_jax import errors
from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.config import canvas_arguments, default_config
from maskrcnn_jax.data import (
  canvases,
  coco,
  coco_index,
  columns,
  findings,
  image_sets,
  loader,
  train_order,
)
from maskrcnn_jax.data.source import DataSet, check_images_exist
from maskrcnn_jax.inputs import prepare_inputs

SHARED = pathlib.Path(__file__).parents[3] / 'shared'

SIZES = dict(
  short_side=32,
  long_side=64,
  padded_sizes=((32, 64), (64, 32)),
  max_source_side=1000,
)


def square(x, y, side):
  return [x, y, x + side, y, x + side, y + side, x, y + side]


@pytest.fixture
def dataset(tmp_path):
  """Returns a function that writes a data set; it gives the index and folder.

  Its arguments are the (height, width) of the images and the squares
  (image, x, y, side) that are objects or crowd regions.
  """

  def write(sizes, squares=(), crowds=()):
    folder = tmp_path / 'images'
    folder.mkdir(exist_ok=True)
    content = {'images': [], 'annotations': [], 'categories': []}
    content['categories'] = [{'id': 5, 'name': 'a'}, {'id': 9, 'name': 'b'}]
    for i, (height, width) in enumerate(sizes):
      pixels = np.full((height, width, 3), i + 1, np.uint8)
      Image.fromarray(pixels).save(folder / f'{i}.png')
      content['images'].append(
        {'id': i, 'file_name': f'{i}.png', 'height': height, 'width': width}
      )
    for is_crowd, entries in enumerate((squares, crowds)):
      for image_id, x, y, side in entries:
        content['annotations'].append(
          dict(
            id=len(content['annotations']) + 1,
            image_id=image_id,
            category_id=9,
            bbox=[x, y, side, side],
            area=side**2,
            segmentation=[square(x, y, side)],
            iscrowd=is_crowd,
          )
        )
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(content))
    report = findings.Report(stop=False)
    return coco.read_coco(path, report=report), folder

  return write


def plan_of(index, **changes):
  return canvases.plan_canvases(
    index.heights, index.widths, **(SIZES | changes)
  )


@pytest.mark.parametrize(
  ('height', 'width', 'expected'),
  [
    (480, 640, (800, 1067)),  # 640 * 800 / 480 = 1066.67
    (640, 480, (1067, 800)),
    (500, 500, (800, 800)),
    (400, 1000, (533, 1333)),  # 2000 would exceed 1333
    (1, 5000, (1, 1333)),  # 0.27 rows, at least one
    (427, 640, (800, 1199)),  # 1199.06
  ],
)
def test_resized_size_follows_the_shorter_side(height, width, expected):
  size = canvases.resized_size(height, width, short_side=800, long_side=1333)
  assert size == expected


def test_plan_canvases_picks_the_smallest_that_fits():
  plan = canvases.plan_canvases(
    np.array([480, 640, 500, 480, 200], np.int32),
    np.array([640, 480, 500, 640, 320], np.int32),
    short_side=800,
    long_side=1333,
    padded_sizes=((1344, 1344), (800, 1344), (1344, 800), (960, 960)),
    max_source_side=10_000,
  )
  assert plan.canvases == (
    canvases.Canvas(padded=(960, 960), source=(512, 512)),
    canvases.Canvas(padded=(800, 1344), source=(480, 640)),
    canvases.Canvas(padded=(1344, 800), source=(640, 480)),
  )
  assert_array_equal(plan.canvas_of_image, [1, 2, 0, 1, 1])
  assert_array_equal(
    plan.image_sizes[:3], [[800, 1067], [1067, 800], [800, 800]]
  )
  assert_array_equal(plan.source_sizes[1], [640, 480])


LARGE = dict(max_source_side=100, padded_sizes=((64, 64),))
HEIGHTS = np.array([100, 101, 250, 4000], np.int32)
WIDTHS = np.array([60, 60, 200, 30], np.int32)


def test_plan_canvases_lets_the_host_resize_large_images():
  plan = canvases.plan_canvases(HEIGHTS, WIDTHS, **(SIZES | LARGE))
  # 32 / 60 * 101 = 53.9; 32 / 200 * 250 = 40; 64 / 4000 * 30 = 0.5.
  final = [[53, 32], [54, 32], [40, 32], [64, 1]]
  assert_array_equal(plan.image_sizes, final)
  assert_array_equal(plan.source_sizes, [[100, 60], *final[1:]])
  # The array holds 100 x 60, and not 4000 rows.
  assert plan.canvases == (canvases.Canvas(padded=(64, 64), source=(128, 64)),)


def test_plan_canvases_without_antialias_keeps_the_sizes_of_large_images():
  plan = canvases.plan_canvases(
    HEIGHTS, WIDTHS, **(SIZES | LARGE), antialias=False
  )
  assert_array_equal(plan.source_sizes, np.stack([HEIGHTS, WIDTHS], axis=1))
  # Two old pixels for each of at most 64 x 32 new ones.
  assert plan.canvases == (canvases.Canvas(padded=(64, 64), source=(128, 64)),)


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize(
  ('drawn', 'choices', 'largest'),
  [
    (
      {'short_sides': (16, 24)},
      [[16, 27], [24, 40], [20, 16], [30, 24], [50, 30]],
      [[24, 40], [30, 24], [24, 40]],
    ),
    # The largest size on 64 x 64 pixels, times 1.5.
    ({'scale_jitter': (0.1, 1.5)}, None, [[58, 96], [96, 77], [24, 40]]),
  ],
)
def test_plan_canvases_shrinks_to_the_largest_size_that_is_drawn(
  drawn, choices, largest, antialias
):
  plan = canvases.plan_canvases(
    np.array([120, 250, 24]),
    np.array([200, 200, 40]),
    **(SIZES | LARGE | {'max_source_side': 30} | drawn),
    antialias=antialias,
  )
  # The third image has a side above the limit, but it is not larger than the
  # largest size.
  assert_array_equal(plan.source_sizes, largest)
  sizes = np.stack([[120, 250, 24], [200, 200, 40]], axis=1)
  assert canvases.count_shrunk(plan, *sizes.T, np.arange(3)) == 2
  assert canvases.count_shrunk(plan, *sizes.T, np.array([2])) == 0
  if choices:
    assert_array_equal(plan.size_choices[0], choices[:2])
    assert_array_equal(plan.size_choices[1], choices[2:4])
  else:
    assert plan.size_choices is None


def test_plan_canvases_of_no_images():
  none = np.zeros(0, np.int32)
  plan = canvases.plan_canvases(none, none, **SIZES)
  assert plan.canvases == ()
  assert len(plan.canvas_of_image) == 0


def test_plan_canvases_suggests_a_size_when_none_fits():
  size = np.array([100], np.int32)
  changed = SIZES | dict(short_side=40)
  with pytest.raises(
    errors.InputError, match=r'100x100 .* to 40x40, .*add \(64, 64\)'
  ):
    canvases.plan_canvases(size, size, **changed)


@pytest.mark.parametrize('size', [(32, 33), (0, 32)])
def test_plan_canvases_refuses_sizes_that_are_no_multiples(size):
  some = np.array([100], np.int32)
  with pytest.raises(errors.InputError, match='multiples of 32'):
    canvases.plan_canvases(some, some, **(SIZES | dict(padded_sizes=(size,))))


CANVASES = {
  'one': [0] * 10,
  'divides': [0] * 8,
  'three': [0] * 7 + [1] * 13 + [2] * 2,
  'mixed': [2, 0, 2, 2, 1, 0, 2, 2, 2, 0, 2],
  'fewer than a batch': [0, 1, 1],
  'a single image': [0],
}


# Sizes of 215 images of COCO, height x width, with the number of images of this
# size if there is more than one.
COCO_SIZES = """
480x640:35 427x640:30 640x480:27 375x500:8 425x640:7 424x640:7 426x640:6
640x427:6 500x375:4 333x500:4 428x640:4 433x640:3 640x426:2 399x640:2
360x640:2 334x500:2 429x640:2 383x640:2 478x640:2 640x621:2 640x425:2
393x640 640x640 359x640 302x400 457x640 377x500 474x640 382x640 213x640
500x389 361x640 640x556 500x500 326x640 498x640 640x628 593x600 420x640
640x449 336x448 409x640 483x640 489x640 320x480 479x640 336x500 482x640
140x213 500x333 346x500 450x301 484x640 332x500 421x640 579x640 406x500
463x640 418x640 516x640 512x640 506x640 400x640 342x640 522x640 640x639
374x500 449x640 640x479 600x450 469x469 640x428 422x640 500x376 640x359
364x640 640x414
"""


def coco_sizes():
  """Returns the heights and widths of `COCO_SIZES`, one pair for each image."""
  sizes = []
  for word in COCO_SIZES.split():
    size, _, count = word.partition(':')
    sizes += [list(map(int, size.split('x')))] * int(count or 1)
  return np.array(sizes, np.int32).T


def test_share_padding_by_hand():
  plan = canvases.plan_canvases(
    np.array([24, 32, 32], np.int32),
    np.array([64, 32, 64], np.int32),
    **(SIZES | dict(short_side=24)),
  )
  # Resized to 24x64, 24x24 and 24x48, all on 32x64.
  assert plan.canvases == (canvases.Canvas((32, 64), (32, 64)),)
  share = canvases.share_padding(plan, np.array([0, 1, 2]))
  assert share == pytest.approx(1 - 24 * (64 + 24 + 48) / (3 * 32 * 64))
  assert canvases.share_padding(plan, np.array([0])) == 0.25


def test_the_recipe_of_coco_pads_little_with_few_static_sizes():
  heights, widths = coco_sizes()
  assert len(heights) == 215
  config = default_config()
  plan = canvases.plan_canvases(heights, widths, **canvas_arguments(config))
  assert len(plan.canvases) <= 6
  assert canvases.share_padding(plan, np.arange(215)) <= 0.12


@pytest.mark.parametrize('placed', CANVASES.values(), ids=CANVASES)
def test_train_order_is_fair_and_never_mixes_canvases(placed):
  placed = np.array(placed, np.int32)
  n, batch = len(placed), 4
  order = train_order.make_order(placed, seed=3, batch_size=batch)
  counts = collections.Counter()
  # In 4 epochs, as many as a batch has images, each canvas fills a whole number
  # of batches, whatever its number of images. All together fill n batches.
  for step in range(3 * n):
    rows = order.rows(step)
    assert rows.shape == (batch,)
    assert len(set(placed[rows])) == 1
    counts.update(rows.tolist())
    if (step + 1) % n == 0:
      assert set(counts.values()) == {(step + 1) // n * batch}


def test_train_order_shows_each_image_once_an_epoch_if_batches_divide():
  order = train_order.make_order(np.zeros(12, np.int32), seed=0, batch_size=4)
  epochs = [
    np.concatenate([order.rows(3 * epoch + i) for i in range(3)])
    for epoch in range(3)
  ]
  for epoch in epochs:
    assert_array_equal(np.sort(epoch), np.arange(12))
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_train_order_is_a_pure_function_of_seed_and_step():
  placed = np.array(CANVASES['three'], np.int32)
  steps = [1000, 3, 77, 3, 0, 10**12]
  first = train_order.make_order(placed, seed=1, batch_size=4)
  forward = {step: first.rows(step) for step in sorted(set(steps))}
  again = train_order.make_order(placed, seed=1, batch_size=4)
  again = pickle.loads(pickle.dumps(again))
  for step in steps:
    assert_array_equal(again.rows(step), forward[step])
  other = train_order.make_order(placed, seed=2, batch_size=4)
  assert any((other.rows(s) != forward[s]).any() for s in steps)


def test_train_order_does_not_depend_on_the_numpy_version():
  # Philox(SeedSequence([7, 0, 0, 0])).random_raw(6), argsorted.
  order = train_order.make_order(np.zeros(6, np.int32), seed=7, batch_size=6)
  raw = np.random.Philox(np.random.SeedSequence([7, 0, 0, 0])).random_raw(6)
  assert_array_equal(order.rows(0), np.argsort(raw))


def test_train_order_mixes_the_canvases_of_an_epoch():
  placed = np.repeat([0, 1], 40)
  order = train_order.make_order(placed, seed=0, batch_size=4)
  seen = [placed[order.rows(step)[0]] for step in range(20)]
  assert sum(seen) == 10
  assert np.count_nonzero(np.diff(seen)) > 3


def test_find_limits_holds_every_kept_object(dataset):
  # A square has 5 vertices, because the first is repeated.
  squares = [(0, i, 0, 4) for i in range(20)] + [(1, 0, 0, 4)]
  index, _ = dataset([(20, 40)] * 2, squares, crowds=[(1, 0, 0, 9)])
  assert image_sets.find_limits(index, max_objects=20) == GroundTruthLimits(
    max_objects=20,
    max_image_vertices=128,  # 100
    max_object_vertices=64,  # 5
    max_parts=1,
  )
  assert image_sets.count_objects_over(index, 20) == 0


def test_find_limits_counts_only_the_largest_objects(dataset):
  squares = [(0, i, 0, 4) for i in range(26)]
  squares += [(1 + i, 0, 0, 4) for i in range(3)]
  index, _ = dataset([(20, 40)] * 4, squares)
  assert image_sets.count_objects_over(index, 25) == 1
  # 25 * 5 = 125 and 26 * 5 = 130 lie on both sides of 128.
  assert image_sets.find_limits(index, max_objects=25).max_image_vertices == 128
  assert image_sets.find_limits(index, max_objects=26).max_image_vertices == 256
  with pytest.raises(
    errors.InputError, match='A24: .*max_objects=20, 6 of 29.* set it to 26'
  ):
    image_sets.find_limits(index, max_objects=20)


def test_filter_images_counts_what_is_left(dataset):
  index, _ = dataset(
    [(20, 40)] * 4,
    [(0, 0, 0, 4), (0, 5, 5, 4), (2, 0, 0, 4), (2, 60, 0, 4)],
    crowds=[(2, 0, 0, 9), (3, 0, 0, 9)],
  )
  rows, waterfall = image_sets.filter_images(index, keep_empty=False)
  assert_array_equal(rows, [0, 2])
  assert waterfall == [
    ('images in the file', 4),
    ('images without objects, left out', 2),
    ('images trained on', 2),
    ('objects in the file', 6),
    (coco_index.NO_AREA, 1),
    ('crowd regions, not trained on', 2),
    ('objects trained on', 3),
  ]
  rows, waterfall = image_sets.filter_images(index, keep_empty=True)
  assert_array_equal(rows, [0, 1, 2, 3])
  assert ('images without objects, kept as background', 2) in waterfall
  lines = image_sets.format_waterfall(waterfall).splitlines()
  assert lines[0].split() == ['4', 'images', 'in', 'the', 'file']


@pytest.mark.parametrize('keep_empty', [False, True])
def test_filter_images_refuses_data_without_objects(dataset, keep_empty):
  index, _ = dataset([(20, 40)], crowds=[(0, 0, 0, 9)])
  with pytest.raises(errors.InputError, match='A23: .*1 crowd regions.*; 0 o'):
    image_sets.filter_images(index, keep_empty=keep_empty)


def test_check_images_exist_lists_the_missing(dataset):
  index, folder = dataset([(20, 40)] * 9)
  check_images_exist(DataSet(index, folder))
  for i in range(7):
    (folder / f'{i}.png').unlink()
  (folder / '0.PNG').write_bytes(b'')
  with pytest.raises(
    errors.InputError,
    match=r'I01: 7 of 9 .*images: 0.png, .* 4.png, \.\.\. \(there is 0.PNG',
  ):
    check_images_exist(DataSet(index, folder))
  with pytest.raises(errors.InputError, match='I01: .*no folder .*nowhere'):
    check_images_exist(DataSet(index, folder / 'nowhere'))


@pytest.mark.parametrize('name', ['../a.png', 'a/../../b.png', '/etc/a.png'])
def test_check_images_exist_refuses_names_that_leave_the_folder(dataset, name):
  index, folder = dataset([(20, 40)])
  index = index._replace(file_names=[name])
  with pytest.raises(errors.InputError, match='image 0: I15: .* leads out'):
    check_images_exist(DataSet(index, folder))


def test_load_row_pads_the_image_and_the_objects(dataset):
  squares = [(1, 2, 2, 4), (1, 20, 3, 8)]
  index, folder = dataset([(24, 48), (20, 40)], squares, [(1, 0, 0, 9)])
  limits = GroundTruthLimits(3, 64, 64, 1)
  batch = loader.load_row(DataSet(index, folder), plan_of(index), 1, limits)
  assert batch.images.shape == (1, 32, 64, 3)
  assert (batch.images[0, :20, :40] == 2).all()
  assert batch.images.sum() == 2 * 20 * 40 * 3
  assert_array_equal(batch.source_sizes, [[20, 40]])
  assert_array_equal(batch.image_sizes, [[32, 64]])
  assert_array_equal(batch.image_valid, [True])
  assert_array_equal(
    batch.gt_boxes, [[[2, 2, 6, 6], [20, 3, 28, 11], [0, 0, 0, 0]]]
  )
  assert_array_equal(batch.gt_classes, [[2, 2, 0]])
  assert_array_equal(batch.gt_valid, [[True, True, False]])
  assert_array_equal(batch.outlines.starts, [[0, 5, 10, 10]])
  assert_array_equal(
    batch.outlines.vertices[0, :5], [[2, 2], [6, 2], [6, 6], [2, 6], [2, 2]]
  )
  assert_array_equal(batch.outlines.parts[0, :10], [0, 0, 0, 0, -1] * 2)
  assert (batch.outlines.parts[0, 10:] == -1).all()


def test_load_row_speaks_of_the_image_that_the_host_resized(dataset):
  index, folder = dataset([(22, 40)], [(0, 2, 4, 8)])
  plan = plan_of(index, max_source_side=20, short_side=11, short_sides=(5, 11))
  limits = image_sets.find_limits(index, max_objects=1)
  batch = loader.load_row(DataSet(index, folder), plan, 0, limits)
  assert_array_equal(batch.source_sizes, [[11, 20]])
  assert_array_equal(batch.size_choices, [[[5, 9], [11, 20]]])
  assert (batch.images[0, :11, :20] == 1).all()
  assert batch.images.shape == (1, 32, 32, 3)
  assert_array_equal(batch.gt_boxes, [[[1, 2, 5, 6]]])
  assert_array_equal(batch.outlines.vertices[0, 2], [5, 6])


@pytest.mark.parametrize(
  'antialias', [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_load_row_gives_the_same_inputs_if_the_host_makes_images_smaller(
  dataset, antialias
):
  index, folder = dataset([(300, 90), (70, 280), (200, 300)], [(2, 30, 40, 90)])
  rng = np.random.default_rng(0)
  for i, size in enumerate(zip(index.heights, index.widths, strict=True)):
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f'{i}.png')
  limits = image_sets.find_limits(index, max_objects=1)
  for row in range(3):
    results, arrays = [], []
    for max_source_side in (60, 1000):
      plan = plan_of(
        index, max_source_side=max_source_side, antialias=antialias
      )
      batch = loader.load_row(DataSet(index, folder), plan, row, limits)
      inputs = prepare_inputs(
        batch,
        jnp.array([True]),
        padded_size=plan.canvases[plan.canvas_of_image[row]].padded,
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(1.0, 1.0, 1.0),
        antialias=antialias,
      )
      results.append(inputs)
      arrays.append(batch.images.size)
    assert arrays[0] < arrays[1]
    small, full = results
    assert_array_equal(small.images, full.images)
    assert_array_equal(small.image_sizes, full.image_sizes)
    # Float32 rounds the product of two scales twice.
    assert_allclose(small.gt_boxes, full.gt_boxes, rtol=1e-6)
    assert_allclose(small.outlines.vertices, full.outlines.vertices, rtol=1e-6)


def test_load_row_keeps_the_largest_objects_in_their_order(dataset):
  squares = [(0, 0, 0, side) for side in (3, 5, 5, 9, 5, 2)]
  index, folder = dataset([(20, 40)], squares)
  limits = GroundTruthLimits(3, 64, 64, 1)
  batch = loader.load_row(DataSet(index, folder), plan_of(index), 0, limits)
  # Three squares have side 5. The first two of them stay.
  assert_array_equal(batch.gt_boxes[0, :, 2], [5, 5, 9])
  assert_array_equal(batch.outlines.starts, [[0, 5, 10, 15]])


def test_load_row_names_file_and_image_of_an_error(dataset):
  index, folder = dataset([(20, 40), (20, 40)])
  (folder / '1.png').write_bytes(b'')
  with pytest.raises(errors.InputError, match=r'1.png .*\(image id 1\)'):
    loader.load_row(
      DataSet(index, folder),
      plan_of(index),
      1,
      image_sets.NO_TRUTH,
      with_truth=False,
    )


def test_an_index_is_stored_no_longer_than_needed(dataset, tmp_path):
  index, _ = dataset([(20, 40)])
  parent = tmp_path / 'run'
  parent.mkdir()
  with pytest.raises(KeyboardInterrupt):
    with columns.temporarily_stored(index, parent) as stored:
      assert stored.image(0).heights.tolist() == [20]
      raise KeyboardInterrupt
  assert list(parent.iterdir()) == []


# A program that stores an index and waits until it is killed.
HOLDER = """
import pathlib, sys, time
from maskrcnn_jax.data import coco, columns

with columns.temporarily_stored(
    coco.read_coco('instances.json'), pathlib.Path(sys.argv[1])
):
  print('stored', flush=True)
  time.sleep(100)
"""


def test_the_index_of_a_killed_process_is_removed_and_no_other(
  dataset, tmp_path
):
  index, _ = dataset([(20, 40)])
  parent = tmp_path / 'run'
  theirs = parent / 'loader_index_of another machine_abc'
  theirs.mkdir(parents=True)
  (theirs / 'lock').touch()
  (parent / 'checkpoints').mkdir()

  def hold():
    process = subprocess.Popen(
      [sys.executable, '-c', HOLDER, str(parent)],
      cwd=tmp_path,
      text=True,
      env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
      stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == 'stored\n'
    return process

  with hold() as killed, hold() as alive:
    try:
      assert len(list(parent.iterdir())) == 4
      killed.kill()
      killed.wait()
      for _ in range(2):
        with columns.temporarily_stored(index, parent) as mine:
          # The folders of the other process and of this one, and the two that
          # existed before.
          assert len(list(parent.iterdir())) == 4
          assert mine.image(0).heights.tolist() == [20]
        assert len(list(parent.iterdir())) == 3
      assert theirs.exists()
    finally:
      alive.kill()


def test_an_index_is_stored_where_there_are_no_locks(
  dataset, tmp_path, monkeypatch
):
  def fail(*_):
    raise OSError(37, 'No locks available')

  monkeypatch.setattr(columns.fcntl, 'flock', fail)
  index, _ = dataset([(20, 40)])
  parent = tmp_path / 'run'
  parent.mkdir()
  with columns.temporarily_stored(index, parent):
    # Without locks, the second must not remove the first, which is in use.
    with columns.temporarily_stored(index, parent) as second:
      assert second.image(0).heights.tolist() == [20]
      assert len(list(parent.iterdir())) == 2
  assert list(parent.iterdir()) == []


def test_a_stored_index_gives_the_same_rows(dataset, tmp_path):
  squares = [(0, 2, 2, 4), (2, 20, 3, 8), (2, 1, 1, 5)]
  sizes = [(24, 48), (20, 40), (22, 41)]
  index, folder = dataset(sizes, squares, [(2, 0, 0, 9)])
  index = index._replace(image_ids=['ä', 2**60, 1.5])
  plan, limits = plan_of(index), image_sets.find_limits(index, max_objects=3)
  (tmp_path / 'stored').mkdir()
  stored = columns.store(index, tmp_path / 'stored')
  stored = pickle.loads(pickle.dumps(stored))
  for row in (2, 0, 1):
    a, b = columns.one_image(index, row), stored.image(row)
    for name in ('image_ids', 'file_names'):
      assert getattr(a, name) == getattr(b, name)
    for name in a._fields:
      if isinstance(getattr(a, name), np.ndarray):
        assert_array_equal(getattr(a, name), getattr(b, name))
    assert_same(
      *(
        (loader.load_row(DataSet(one, folder), plan, row, limits), [row])
        for one in (index, stored)
      )
    )
  assert len(pickle.dumps(stored)) < 1000


MIXED = [(20, 40)] * 5 + [(40, 20)] * 3


def train(index, folder, **changes):
  options = dict(
    limits=image_sets.find_limits(index, max_objects=2),
    seed=4,
    start_step=0,
    num_steps=6,
    batch_size=2,
  )
  rows, _ = image_sets.filter_images(index, keep_empty=False)
  return list(
    loader.train_batches(
      DataSet(index, folder), plan_of(index), rows, **(options | changes)
    )
  )


@pytest.fixture
def mixed(dataset):
  return dataset(MIXED, [(i, i, 1, 4) for i in range(8) if i != 2])


def assert_same(a, b):
  (batch_a, rows_a), (batch_b, rows_b) = a, b
  assert_array_equal(rows_a, rows_b)
  *fields_a, outlines_a, choices_a = batch_a
  *fields_b, outlines_b, choices_b = batch_b
  for x, y in zip(
    [*fields_a, *outlines_a, choices_a],
    [*fields_b, *outlines_b, choices_b],
    strict=True,
  ):
    assert_array_equal(x, y)


def test_train_batches_loads_what_the_order_says(mixed):
  index, folder = mixed
  batches = train(index, folder, num_steps=21)
  assert len(batches) == 21
  counts = collections.Counter()
  for batch, rows in batches:
    assert rows.dtype == np.int64
    assert batch.images.shape in ((2, 32, 64, 3), (2, 64, 32, 3))
    # All pixels of image i have the value i + 1.
    assert_array_equal(batch.images[:, 0, 0, 0], rows + 1)
    assert_array_equal(batch.gt_boxes[:, 0, 0], rows)
    counts.update(rows.tolist())
  # 21 batches of 2 images are 6 epochs of the 7 images that have objects. Image
  # 2 has none.
  assert counts == {i: 6 for i in range(8) if i != 2}


def test_train_batches_starts_anywhere(mixed):
  index, folder = mixed
  whole = train(index, folder)
  rest = train(index, folder, start_step=4, num_steps=2)
  assert len(rest) == 2
  for a, b in zip(whole[4:], rest, strict=True):
    assert_same(a, b)
  assert train(index, folder, num_steps=0) == []


def test_train_batches_are_the_same_in_parts(mixed):
  index, folder = mixed
  whole = train(index, folder)
  parts = [
    train(index, folder, process_index=i, process_count=2) for i in range(2)
  ]
  for i, (batch, rows) in enumerate(whole):
    assert_array_equal(np.concatenate([p[i][1] for p in parts]), rows)
    assert_array_equal(
      np.concatenate([p[i][0].images for p in parts]), batch.images
    )
  with pytest.raises(errors.InputError, match='C06'):
    train(index, folder, process_count=3)


@pytest.mark.parametrize('num_threads', [0, 1])
def test_train_batches_are_the_same_with_fewer_threads(mixed, num_threads):
  index, folder = mixed
  for a, b in zip(
    train(index, folder),
    train(index, folder, num_threads=num_threads),
    strict=True,
  ):
    assert_same(a, b)


def test_train_batches_names_an_image_that_cannot_be_read(mixed):
  index, folder = mixed
  (folder / '6.png').write_bytes(b'GIF89a')
  with pytest.raises(errors.InputError, match=r'^I0[23]: .*6.png .*id 6\)\.$'):
    train(index, folder, num_steps=30)


def test_train_batches_does_not_hide_a_failure_of_the_program(mixed):
  index, folder = mixed
  too_small = GroundTruthLimits(2, 1, 1, 1)
  with pytest.raises(RuntimeError, match='more than max_image_vertices'):
    train(index, folder, limits=too_small)


# Workers import the main module again, which does not work with that of pytest.
WORKERS = """
import sys
import numpy as np
from maskrcnn_jax import errors
from maskrcnn_jax.data import canvases, image_sets, loader
from maskrcnn_jax.data.source import CocoFiles, read_set

def main(annotations, folder):
  data_set = read_set(CocoFiles(folder, annotations))
  index = data_set.coco_index
  plan = canvases.plan_canvases(
      index.heights, index.widths, short_side=32, long_side=64,
      padded_sizes=((32, 64), (64, 32)), max_source_side=1000)
  rows, _ = image_sets.filter_images(index, keep_empty=False)
  options = dict(
      limits=image_sets.find_limits(index, max_objects=2),
      seed=4, start_step=1, num_steps=5, batch_size=2)
  batches = [
      list(loader.train_batches(data_set, plan, rows, num_workers=n, **options))
      for n in (0, 2)
  ]
  for (a, rows_a), (b, rows_b) in zip(*batches, strict=True):
    assert (rows_a == rows_b).all()
    assert (a.images == b.images).all()
    assert (a.outlines.vertices == b.outlines.vertices).all()
  for row in set(rows_a):
    open(f'{folder}/{row}.png', 'wb').close()
  try:
    list(loader.train_batches(data_set, plan, rows, num_workers=2, **options))
  except errors.InputError as error:
    print(error)

if __name__ == '__main__':
  main(*sys.argv[1:])
"""


@pytest.mark.slow
def test_train_batches_are_the_same_from_workers(mixed, tmp_path):
  _, folder = mixed
  (tmp_path / 'run.py').write_text(WORKERS)
  done = subprocess.run(
    [sys.executable, 'run.py', 'instances.json', str(folder)],
    cwd=tmp_path,
    env={'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('I03: '), done.stderr
  assert '.png is empty (image id ' in done.stdout


def test_eval_batches_shows_every_image_once(dataset):
  index, folder = dataset(MIXED)
  batches = list(
    loader.eval_batches(DataSet(index, folder), plan_of(index), batch_size=4)
  )
  # 5 wide images make two batches, 3 high images make one.
  shapes = [batch.images.shape[1:3] for batch, _ in batches]
  assert shapes == [(32, 64), (32, 64), (64, 32)]
  seen = []
  for batch, rows in batches:
    assert len(batch.images) == len(rows) == 4
    valid = batch.image_valid
    assert_array_equal(valid, rows != loader.NO_ROW)
    assert_array_equal(batch.images[valid, 0, 0, 0], rows[valid] + 1)
    assert not batch.images[~valid].any()
    assert (batch.source_sizes > 0).all()
    assert not batch.gt_valid.any()
    seen += rows[valid].tolist()
  assert sorted(seen) == list(range(8))


@pytest.mark.parametrize('process_count', [1, 2, 3, 4, 11])
def test_share_of_process_gives_each_image_to_one(dataset, process_count):
  index, _ = dataset(MIXED)
  plan = plan_of(index)
  shares = [
    canvases.share_of_process(plan, i, process_count)
    for i in range(process_count)
  ]
  assert sorted(np.concatenate(shares).tolist()) == list(range(8))
  assert np.ptp([len(share) for share in shares]) <= 1
  for canvas in range(len(plan.canvases)):
    counts = [np.sum(plan.canvas_of_image[share] == canvas) for share in shares]
    assert np.ptp(counts) <= 1


def test_eval_batches_shows_only_the_rows_asked_for(dataset):
  index, folder = dataset(MIXED)
  batches = loader.eval_batches(
    DataSet(index, folder),
    plan_of(index),
    batch_size=2,
    rows=np.array([6, 1, 5, 7]),
  )
  rows = [rows.tolist() for _, rows in batches]
  assert rows == [[1, loader.NO_ROW], [6, 5], [7, loader.NO_ROW]]


@pytest.mark.parametrize(
  ('folder', 'name'),
  [('coco_mini', 'instances_val.json'), ('fruits_nuts', 'trainval.json')],
)
def test_train_batches_loads_real_data(folder, name):
  folder = SHARED / 'data' / folder
  if not folder.exists():
    pytest.skip(f'{folder} is not here.')
  index = coco.read_coco(folder / name)
  check_images_exist(DataSet(index, folder / 'images'))
  plan = plan_of(
    index,
    short_side=128,
    long_side=224,
    padded_sizes=((128, 224), (224, 128)),
  )
  rows, _ = image_sets.filter_images(index, keep_empty=False)
  batches = loader.train_batches(
    DataSet(index, folder / 'images'),
    plan,
    rows,
    limits=image_sets.find_limits(index, max_objects=100),
    seed=0,
    start_step=0,
    num_steps=4,
    batch_size=2,
  )
  for batch, _ in batches:
    assert batch.image_valid.all()
    assert batch.gt_valid.any(axis=1).all()
    far = batch.source_sizes[:, None, ::-1]
    assert (batch.gt_boxes[..., 2:] <= far).all()
