"""Tests of the evaluation: it scores each image once, in its own pixels."""

import collections
import json
import pathlib
import re
import shutil
import threading

import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pycocotools import mask as mask_api
import pytest
import tiny

from maskrcnn_jax.array_types import Detections
from maskrcnn_jax.config import canvas_arguments
from maskrcnn_jax.config.recipe import Recipe, read_overrides
from maskrcnn_jax.data import canvases, coco, loader
from maskrcnn_jax.data.source import CocoFiles, DataSet
from maskrcnn_jax.detector import (
  Detector,
  detect_batches,
  load_detector,
  to_original,
  to_xywh,
)
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.evaluate import evaluate
from maskrcnn_jax.mask_paste import paste_masks
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import cluster
from maskrcnn_jax.runtime.files import write_json

pytestmark = pytest.mark.usefixtures('compilation_cache')


@pytest.fixture(scope='module')
def detector(tiny_run):
  return load_detector(tiny_run[0], None)


def evaluate_tiny(detector, workdir, **options):
  """Evaluates a detector on the evaluation set of its own recipe."""
  truth = detector.config.data.eval
  return evaluate(
    detector,
    source=CocoFiles(truth.images, truth.annotations),
    workdir=workdir,
    config=detector.config,
    **options,
  )


def read_json(path):
  return json.loads(path.read_text(encoding='utf-8'))


def make_detections(boxes, valid=None):
  """Returns detections of class 1 with full masks and falling scores.

  Args:
    boxes: (x1, y1, x2, y2) of each detection.
    valid: Whether each detection is real, not padding. `None`: all are.
  """
  count = len(boxes)
  return Detections(
    boxes=np.array(boxes, np.float32),
    classes=np.ones(count, np.int32),
    scores=np.linspace(0.9, 0.5, count).astype(np.float32),
    masks=np.ones((count, 28, 28), np.float32),
    valid=np.ones(count, bool) if valid is None else np.array(valid),
  )


def test_to_original_scales_boxes_and_pastes_masks():
  # The image was resized to half of its height and a third of its width.
  found = to_original(
    make_detections([(10, 10, 30, 40)]),
    (50, 100),
    row=7,
    original_size=(100, 300),
    mask_threshold=0.5,
  )
  assert found.row == 7
  assert_allclose(found.boxes, [[30, 20, 90, 80]])
  (mask,) = found.masks
  assert mask['size'] == [100, 300]
  expected = np.zeros((100, 300))
  expected[20:80, 30:90] = 1
  assert_array_equal(mask_api.decode(mask), expected)


def test_to_original_clips_to_the_image():
  # The resized image is 51 pixels wide, which is rounded from 51.2.
  found = to_original(
    make_detections([(0, 0, 51, 64)]),
    (64, 51),
    row=0,
    original_size=(80, 64),
    mask_threshold=0.5,
  )
  assert_allclose(found.boxes, [[0, 0, 64, 80]], rtol=1e-6)
  assert found.boxes[0, 2] <= 64
  assert found.boxes[0, 3] <= 80


def test_to_original_drops_padding():
  boxes = [(0, 0, 4, 4), (1, 1, 5, 5), (2, 2, 6, 6)]
  found = to_original(
    make_detections(boxes, [True, False, True]),
    (8, 8),
    row=0,
    original_size=(8, 8),
    mask_threshold=0.5,
  )
  assert_array_equal(found.boxes, [boxes[0], boxes[2]])
  assert_allclose(found.scores, [0.9, 0.5])
  assert len(found.masks) == 2


def test_to_original_of_nothing_is_nothing():
  found = to_original(
    make_detections([(0, 0, 4, 4)], [False]),
    (8, 8),
    row=0,
    original_size=(8, 8),
    mask_threshold=0.5,
  )
  assert found.boxes.shape == (0, 4)
  assert found.masks == []


def test_to_xywh_has_width_and_height():
  assert to_xywh(np.array([1, 2, 4, 8], np.float32)) == [1, 2, 3, 6]


def test_write_json_replaces_the_whole_file(tmp_path):
  path = tmp_path / 'a.json'
  write_json(path, [1] * 100)
  with pytest.raises(TypeError):
    write_json(path, [2, object()])
  assert read_json(path) == [1] * 100
  write_json(path, [3])
  assert read_json(path) == [3]


# (height, width) of the image files. The network gets them resized and padded
# to 64 x 64 pixels.
SIZES = [(64, 80), (80, 64), (100, 60), (64, 64), (37, 53)]


@pytest.fixture
def rectangles(tmp_path):
  """A COCO JSON of images with one object each.

  The gray value of image i is 10 i, so that a detector can tell the images
  apart.
  """
  images, annotations = [], []
  for i, (height, width) in enumerate(SIZES):
    # The ids fall, so that their order is not that of the file.
    id_ = 100 - i
    Image.fromarray(np.full((height, width, 3), 10 * i, np.uint8)).save(
      tmp_path / f'{i}.png'
    )
    x, y, w, h = width // 4, height // 5, width // 2, height // 2
    images.append(
      {'id': id_, 'file_name': f'{i}.png', 'height': height, 'width': width}
    )
    annotations.append(
      {
        'id': i + 1,
        'image_id': id_,
        'category_id': 7 if i % 2 else 3,
        'bbox': [x, y, w, h],
        'area': w * h,
        'iscrowd': 0,
        'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
      }
    )
  path = tmp_path / 'truth.json'
  path.write_text(
    json.dumps(
      {
        'images': images,
        'annotations': annotations,
        'categories': [{'id': 7, 'name': 'odd'}, {'id': 3, 'name': 'even'}],
      }
    )
  )
  return path


def all_knowing_detector(path, config):
  """Returns a detector that finds exactly the objects of the ground truth.

  Args:
    path: The JSON of the ground truth.
    config: The recipe.
  """
  index = coco.read_coco(path)

  class AllKnowing(Detector):
    def detect(self, batch, *, padded_size):
      assert padded_size == (64, 64)
      found = []
      for image, valid, (height, width) in zip(
        np.asarray(batch.images),
        np.asarray(batch.image_valid),
        np.asarray(batch.image_sizes).tolist(),
        strict=True,
      ):
        row = image[0, 0, 0] // 10
        scale = np.array([width, height] * 2) / np.array(
          [index.widths[row], index.heights[row]] * 2
        )
        one = make_detections([index.boxes[row] * scale])
        # The detections in padding rows of the batch get a higher score, so
        # that the test fails if they count.
        found.append(
          one._replace(
            classes=index.classes[row : row + 1],
            scores=np.float32([0.9 if valid else 1.0]),
          )
        )
      return Detections(
        *(jnp.stack(field) for field in zip(*found, strict=True))
      )

  rcnn = Rcnn.from_config(
    config,
    num_classes=len(index.categories) + 1,
    dtype=jnp.float32,
    mesh=cluster.make_mesh(),
  )
  return AllKnowing(rcnn, {}, config, index.categories, step=12)


@pytest.mark.parametrize('batch_size', [1, 2, 4, 16])
def test_evaluate_gives_perfect_detections_an_ap_of_one(
  rectangles, tmp_path, batch_size
):
  config = tiny.get_config()
  config.eval.batch_size = batch_size
  aps = evaluate(
    all_knowing_detector(rectangles, config),
    source=CocoFiles(str(tmp_path), str(rectangles)),
    workdir=tmp_path / 'run',
    config=config,
  )
  assert aps['bbox'].stats['AP'] == pytest.approx(1)
  assert aps['segm'].stats['AP'] == pytest.approx(1)
  results = read_json(tmp_path / 'run' / 'inference' / 'segm.json')
  truth = read_json(rectangles)['annotations']
  assert sorted((r['image_id'], r['category_id']) for r in results) == sorted(
    (a['image_id'], a['category_id']) for a in truth
  )
  assert [r['score'] for r in results] == pytest.approx([0.9] * len(SIZES))


@pytest.mark.parametrize('batch_size', [1, 2, 3, 8])
def test_detect_batches_yields_each_image_once(
  rectangles, tmp_path, batch_size
):
  config = tiny.get_config()
  index = coco.read_coco(rectangles)
  plan = canvases.plan_canvases(
    index.heights, index.widths, **canvas_arguments(config)
  )
  batches = loader.eval_batches(
    DataSet(index, tmp_path), plan, batch_size=batch_size
  )
  found = list(
    detect_batches(
      all_knowing_detector(rectangles, config), batches, index, plan
    )
  )
  assert sorted(one.row for one in found) == [0, 1, 2, 3, 4]
  for one in found:
    assert_allclose(one.boxes[0], index.boxes[one.row], rtol=1e-5)


def test_detect_batches_keeps_the_order_and_waits_for_slow_pasting(
  rectangles, tmp_path, monkeypatch
):
  config = tiny.get_config()
  index = coco.read_coco(rectangles)
  plan = canvases.plan_canvases(
    index.heights, index.widths, **canvas_arguments(config)
  )
  finished, detected = [], []
  go_on = threading.Event()

  def slow(*arguments, row, **options):
    # The first image waits until the fourth batch is asked for.
    assert go_on.wait(60)
    finished.append(row)
    return to_original(*arguments, row=row, **options)

  def batches():
    for batch, rows in loader.eval_batches(
      DataSet(index, tmp_path), plan, batch_size=1
    ):
      detected.extend(rows.tolist())
      if len(detected) == 4:
        go_on.set()
      # One image is on the device, three wait for pasting or are pasted.
      assert len(detected) <= len(finished) + 4
      yield batch, rows

  monkeypatch.setattr('maskrcnn_jax.detector.to_original', slow)
  found = list(
    detect_batches(
      all_knowing_detector(rectangles, config),
      batches(),
      index,
      plan,
      num_threads=1,
    )
  )
  assert [one.row for one in found] == detected
  assert finished == detected


def test_evaluate_of_a_checkpoint_repeats_the_end_of_training(
  tiny_run, detector, tmp_path
):
  evaluate_tiny(detector, tmp_path)
  for name in ('coco_results.json', 'bbox.json', 'segm.json'):
    after = read_json(tiny_run[0] / 'inference' / name)
    assert read_json(tmp_path / 'inference' / name) == after
  assert detector.step == 4


def test_evaluate_writes_the_table_and_its_figures(tiny_run, detector, capsys):
  results = read_json(tiny_run[0] / 'inference' / 'coco_results.json')
  assert results['step'] == 4
  for kind in ('bbox', 'segm'):
    assert 0 <= results[kind]['stats']['AP'] <= 1


def test_evaluate_scores_each_image_with_a_batch_size_that_divides_none(
  tiny_run, tiny_data
):
  # The batch size is 2, and there are 5 images.
  ids = {i['id'] for i in read_json(tiny_data / 'instances_val.json')['images']}
  sizes = {
    i['id']: [i['height'], i['width']]
    for i in read_json(tiny_data / 'instances_val.json')['images']
  }
  results = read_json(tiny_run[0] / 'inference' / 'segm.json')
  found = collections.Counter(r['image_id'] for r in results)
  assert set(found) == ids
  assert len(ids) == tiny.NUM_VAL
  assert max(found.values()) <= 8
  for result in results:
    assert result['segmentation']['size'] == sizes[result['image_id']]


def test_evaluate_writes_the_same_detections_as_arrays(tiny_run):
  inference = tiny_run[0] / 'inference'
  boxes = read_json(inference / 'bbox.json')
  masks = read_json(inference / 'segm.json')
  with np.load(inference / 'predictions.npz') as file:
    arrays = dict(file)
  assert len(boxes) > tiny.NUM_VAL
  ids = arrays['category_ids'][arrays['classes'] - 1]
  for i, (one, mask) in enumerate(zip(boxes, masks, strict=True)):
    assert arrays['image_ids'][i] == one['image_id']
    assert ids[i] == one['category_id']
    assert arrays['scores'][i] == np.float32(one['score'])
    box = arrays['boxes'][i]
    assert to_xywh(box) == pytest.approx(one['bbox'], abs=1e-5)
    # Where the probability is near one half, the rounding to 1 / 255 may
    # change a pixel.
    height, width = mask['segmentation']['size']
    (pasted,) = paste_masks(
      arrays['masks'][i : i + 1] / np.float32(255),
      box[None],
      height=height,
      width=width,
      threshold=0.5,
    )
    differs = mask_api.decode(pasted) != mask_api.decode(mask['segmentation'])
    assert differs.mean() < 0.02
  assert arrays['masks'].shape == (len(boxes), 28, 28)


def test_evaluate_adds_time_and_speed_to_the_log(tiny_run, detector, tmp_path):
  pattern = (
    r'Total inference time: [\d.]+ s \([\d.]+ s / img per device, on 1 devices'
    r'\); ([\d.]+) images/s'
  )
  evaluate_tiny(detector, tmp_path, skip_eval=True)
  for folder in (tiny_run[0], tmp_path):
    lines = (folder / 'log.txt').read_text().splitlines()
    (found,) = filter(None, (re.fullmatch(pattern, line) for line in lines))
    assert float(found[1]) > 0


def test_skip_eval_writes_predictions_alone(detector, tmp_path, capsys):
  assert evaluate_tiny(detector, tmp_path, skip_eval=True) == {}
  names = {path.name for path in (tmp_path / 'inference').iterdir()}
  assert names == {'bbox.json', 'segm.json', 'predictions.npz'}
  assert capsys.readouterr().out == ''


def test_evaluate_decodes_with_the_pixel_range(
  tiny_run, tmp_path, pixel_ranges, monkeypatch
):
  # The checkpoint was trained without a pixel range.
  detector = load_detector(
    tiny_run[0], read_overrides([('data.pixel_range', '0,4095')])
  )
  monkeypatch.setattr(
    'maskrcnn_jax.evaluation.evaluate.detect_batches',
    lambda detector, batches, *_, **__: [None for _ in batches][:0],
  )
  evaluate_tiny(detector, tmp_path, skip_eval=True)
  assert pixel_ranges == [(0, 4095)] * tiny.NUM_VAL


@pytest.mark.parametrize(
  'missing', [['annotations'], ['annotations', 'categories']]
)
def test_skip_eval_needs_images_only(detector, tiny_data, tmp_path, missing):
  content = read_json(tiny_data / 'instances_val.json')
  for key in missing:
    del content[key]
  path = tmp_path / 'images_alone.json'
  path.write_text(json.dumps(content))
  options = dict(
    source=CocoFiles(str(tiny_data / 'images'), str(path)),
    config=detector.config,
  )
  with pytest.raises(InputError, match='A25: .*annotations'):
    evaluate(detector, workdir=tmp_path / 'a', **options)
  evaluate(detector, workdir=tmp_path / 'b', skip_eval=True, **options)
  evaluate_tiny(detector, tmp_path / 'c', skip_eval=True)
  for name in ('bbox.json', 'segm.json'):
    assert read_json(tmp_path / 'b' / 'inference' / name) == read_json(
      tmp_path / 'c' / 'inference' / name
    )


def test_skip_eval_leaves_no_score_of_older_predictions(detector, tmp_path):
  (tmp_path / 'inference').mkdir()
  score = tmp_path / 'inference' / 'coco_results.json'
  score.write_text('{}')
  evaluate_tiny(detector, tmp_path, skip_eval=True)
  assert not score.exists()


def test_evaluate_that_breaks_off_leaves_no_older_score(
  detector, tmp_path, monkeypatch
):
  (tmp_path / 'inference').mkdir()
  score = tmp_path / 'inference' / 'coco_results.json'
  score.write_text('{}')

  def break_off(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(
    'maskrcnn_jax.evaluation.evaluate.detect_batches', break_off
  )
  with pytest.raises(KeyboardInterrupt):
    evaluate_tiny(detector, tmp_path)
  assert not score.exists()


@pytest.mark.parametrize(
  ('segmentation', 'code'), [([], 'A06'), ([[1, 2, 3, 4]], 'A05')]
)
def test_evaluate_looks_at_the_truth_before_it_detects(
  detector, tiny_data, tmp_path, monkeypatch, segmentation, code
):
  content = read_json(tiny_data / 'instances_val.json')
  # One bad object among so many is only a warning in a training.
  content['annotations'] *= 10
  content['annotations'][0]['segmentation'] = segmentation
  path = tmp_path / 'bad.json'
  path.write_text(json.dumps(content))

  def detect(*_, **__):
    raise AssertionError('It detects.')

  monkeypatch.setattr('maskrcnn_jax.evaluation.evaluate.detect_batches', detect)
  with pytest.raises(InputError, match=f'{code}: .*--fix=OUT.json'):
    evaluate(
      detector,
      source=CocoFiles(str(tiny_data / 'images'), str(path)),
      workdir=tmp_path,
      config=detector.config,
    )
  assert not (tmp_path / 'inference').exists()


def test_evaluate_on_other_classes_is_refused(detector, tiny_data, tmp_path):
  content = read_json(tiny_data / 'instances_val.json')
  content['categories'][1]['name'] = 'dog'
  path = tmp_path / 'dogs.json'
  path.write_text(json.dumps(content))
  with pytest.raises(InputError, match="C01: .*'dog' here"):
    evaluate(
      detector,
      source=CocoFiles(str(tiny_data / 'images'), str(path)),
      workdir=tmp_path,
      config=detector.config,
    )
  assert not (tmp_path / 'inference').exists()


def test_load_detector_keeps_the_architecture_and_takes_the_rest(
  tiny_run, caplog
):
  config = tiny.get_config()
  config.model.mask_convs = 3
  config.detections.min_score = 0.7
  with caplog.at_level('INFO'):
    detector = load_detector(tiny_run[0], Recipe(config, {}, 'tiny.py'))
  assert detector.config.model.mask_convs == 1
  assert detector.config.detections.min_score == 0.7
  assert 'model.mask_convs: 3 | 1' in caplog.text


def test_load_detector_reads_a_single_step(tiny_run):
  path = tiny_run[0] / 'checkpoints' / '2'
  assert load_detector(path, None).step == 2


def test_load_detector_needs_no_optimizer(tiny_run, tmp_path):
  path = shutil.copytree(tiny_run[0] / 'checkpoints' / '4', tmp_path / '4')
  shutil.rmtree(path / 'optimizer')
  assert load_detector(path, None).step == 4


def test_load_detector_refuses_a_folder_that_is_no_checkpoint(tmp_path):
  with pytest.raises(InputError, match='no finished checkpoint'):
    load_detector(tmp_path, None)
  with pytest.raises(InputError, match='not a checkpoint directory'):
    load_detector(pathlib.Path(tmp_path / 'none'), None)
