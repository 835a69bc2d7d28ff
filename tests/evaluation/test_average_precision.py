"""Tests of the AP: by hand, against pycocotools, and with broken input."""

import copy
import json
import math
import pathlib

import numpy as np
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation import average_precision as ap

COCO_EVAL = pathlib.Path(__file__).parents[3] / 'shared/data/coco_eval'


def _truth(boxes, *, image_ids=(1,), categories=((1, 'cat'),), size=(200, 200)):
  """Returns a COCO ground truth with one object for each box.

  Args:
    boxes: (image_id, category_id, bbox) of each object.
    image_ids: The ids of the images.
    categories: (id, name) of each category.
    size: (height, width) of all images in pixels.
  """
  return {
    'images': [
      {'id': i, 'height': size[0], 'width': size[1]} for i in image_ids
    ],
    'categories': [{'id': i, 'name': name} for i, name in categories],
    'annotations': [
      {
        'id': number,
        'image_id': image_id,
        'category_id': category_id,
        'bbox': list(box),
        'area': box[2] * box[3],
        'iscrowd': 0,
        'segmentation': [_corners(box)],
      }
      for number, (image_id, category_id, box) in enumerate(boxes, 1)
    ],
  }


def _corners(box):
  x, y, w, h = box
  return [x, y, x + w, y, x + w, y + h, x, y + h]


def _rle(box, size=(200, 200)):
  mask = np.zeros(size, np.uint8, order='F')
  x, y, w, h = box
  mask[y : y + h, x : x + w] = 1
  rle = mask_api.encode(mask)
  return {'size': list(size), 'counts': rle['counts'].decode()}


def _perfect(truth, score=0.9):
  return [
    {
      'image_id': a['image_id'],
      'category_id': a['category_id'],
      'bbox': a['bbox'],
      'segmentation': _rle(a['bbox']),
      'score': score,
    }
    for a in truth['annotations']
  ]


TWO = _truth([(1, 1, (10, 10, 40, 40)), (1, 1, (100, 100, 40, 40))])


@pytest.fixture(autouse=True, params=['pycocotools', 'faster'])
def backend(request, monkeypatch):
  """Runs each test of this file once with each of the two backends."""
  if request.param == 'faster':
    pytest.importorskip('faster_coco_eval')
  choose = ap._backend_classes
  monkeypatch.setattr(ap, '_backend_classes', lambda _: choose(request.param))
  return request.param


def test_evaluate_detections_by_hand():
  # There are two objects. The detections by falling score are: the first object
  # with IoU 0.6 (24 of 40 columns), a miss, the second object exactly.
  #   At the IoUs 0.50, 0.55, 0.60 they count as hit, miss, hit. The precision
  #     is 1 up to recall 1/2, then 2/3. 51 of the 101 recalls (0 to 0.50) have
  #     precision 1, and 50 have 2/3: AP = (51 + 50 * 2/3) / 101.
  #   At the IoUs 0.65 to 0.95 they count as miss, miss, hit. The precision is
  #     1/3 up to recall 1/2, then 0: AP = 51 / 3 / 101.
  results = [
    {'image_id': 1, 'category_id': 1, 'bbox': box, 'score': score}
    for box, score in [
      ([10, 10, 24, 40], 0.9),
      ([150, 10, 9, 9], 0.8),
      ([100, 100, 40, 40], 0.7),
    ]
  ]
  stats = ap.evaluate_detections(TWO, results, kind='bbox').stats
  good, poor = (51 + 50 * 2 / 3) / 101, 17 / 101
  assert stats['AP50'] == pytest.approx(good, abs=1e-12)
  assert stats['AP75'] == pytest.approx(poor, abs=1e-12)
  assert stats['AP'] == pytest.approx((3 * good + 7 * poor) / 10, abs=1e-12)
  # The first detection finds 1/2 of the objects at three IoUs. All detections
  # together find both objects at three IoUs and one of the two at seven.
  assert stats['AR1'] == pytest.approx(0.5 * 3 / 10)
  assert stats['AR100'] == pytest.approx((3 + 7 * 0.5) / 10)
  # 40 x 40 pixels are medium; no object is small or large.
  assert stats['APs'] is None and stats['APl'] is None
  assert stats['ARm'] == stats['AR100']


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_evaluate_detections_equals_pycocotools(kind, capsys):
  if not COCO_EVAL.exists():
    pytest.skip(f'{COCO_EVAL} is not here')
  truth = json.loads((COCO_EVAL / 'instances_val2014_100.json').read_text())
  results = json.loads(
    (COCO_EVAL / f'instances_val2014_fake{kind}100_results.json').read_text()
  )
  expected = json.loads((COCO_EVAL / 'expected_stats.json').read_text())[kind]
  before = copy.deepcopy((truth, results))
  result = ap.evaluate_detections(truth, results, kind=kind)
  np.testing.assert_allclose(
    list(result.stats.values()), expected, rtol=0, atol=1e-10
  )
  classes = [v for v in result.per_class.values() if v is not None]
  assert np.mean(classes) == pytest.approx(expected[0], abs=1e-10)
  assert (result.num_images, result.notes) == (100, ())
  assert (truth, results) == before
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_evaluate_detections_of_perfect_detections_is_one(kind):
  result = ap.evaluate_detections(TWO, _perfect(TWO), kind=kind)
  assert result.stats['AP'] == pytest.approx(1)
  assert result.per_class == {'cat': pytest.approx(1)}
  assert (result.num_images, result.num_detections) == (1, 2)


# A comment after the input, such as "AP 1.0" or "KeyError", says how
# pycocotools itself takes the input of the test.


@pytest.mark.parametrize('value', [math.nan, math.inf, None, '0.9'])
def test_evaluate_detections_refuses_a_broken_box(value):
  results = _perfect(TWO)  # if all boxes are nan: AP 1.0
  for result in results:
    result['bbox'] = [value] * 4
  with pytest.raises(InputError, match=r'Detection 0 \(image 1\) has bbox'):
    ap.evaluate_detections(TWO, results, kind='bbox')


@pytest.mark.parametrize('value', [math.nan, math.inf, None, '0.9'])
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_evaluate_detections_refuses_a_broken_score(kind, value):
  results = _perfect(TWO)  # AP 1.0
  results[1]['score'] = value
  with pytest.raises(InputError, match=r'Detection 1 \(image 1\) has score'):
    ap.evaluate_detections(TWO, results, kind=kind)


@pytest.mark.parametrize('ids', [(0, 1), (7, 7), ('a', None)])
def test_evaluate_detections_does_not_care_for_annotation_ids(ids):
  truth = copy.deepcopy(TWO)  # AP 0.252
  for annotation, new_id in zip(truth['annotations'], ids, strict=True):
    annotation['id'] = new_id
  result = ap.evaluate_detections(truth, _perfect(truth), kind='bbox')
  assert result.stats['AP'] == pytest.approx(1)
  assert [a['id'] for a in truth['annotations']] == list(ids)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_evaluate_detections_of_nothing_is_zero(kind):
  result = ap.evaluate_detections(TWO, [], kind=kind)  # IndexError
  sized = {'APs', 'APl', 'ARs', 'ARl'}
  assert {n for n, v in result.stats.items() if v is None} == sized
  assert {v for v in result.stats.values() if v is not None} == {0.0}
  assert result.per_class == {'cat': 0.0}


@pytest.mark.parametrize(
  'image_ids',
  [
    ('a', 'b'),
    (2**53, 2**53 + 1),
    (2**70, 2**70 + 1),
    ('1', 1),
    (-1, 0),
    (0.5, 1.5),
  ],
)
def test_evaluate_detections_takes_image_ids_of_any_kind(image_ids):
  first, second = image_ids
  truth = _truth(
    [(first, 1, (10, 10, 40, 40)), (second, 1, (100, 100, 40, 40))],
    image_ids=image_ids,
  )
  results = _perfect(truth)
  assert ap.evaluate_detections(truth, results, kind='bbox').stats['AP'] == (
    pytest.approx(1)
  )
  results[0]['image_id'], results[1]['image_id'] = second, first
  stats = ap.evaluate_detections(truth, results, kind='bbox').stats
  assert stats['AP'] == 0.0


@pytest.mark.parametrize('category_ids', [(0, 5), ('x', 'y'), (90, 'y')])
def test_evaluate_detections_takes_category_ids_of_any_kind(category_ids):
  first, second = category_ids
  truth = _truth(
    [(1, first, (10, 10, 40, 40)), (1, second, (100, 100, 40, 40))],
    categories=((second, 'dog'), (first, 'cat')),
  )
  results = _perfect(truth)[1:]
  result = ap.evaluate_detections(truth, results, kind='bbox')
  assert result.per_class == {'dog': pytest.approx(1), 'cat': 0.0}


def test_evaluate_detections_does_without_iscrowd_and_area():
  truth = copy.deepcopy(TWO)  # KeyError
  for annotation in truth['annotations']:
    del annotation['iscrowd'], annotation['area']
  result = ap.evaluate_detections(truth, _perfect(truth), kind='bbox')
  # The 1600 pixels of the mask make the object medium.
  assert result.stats['APm'] == pytest.approx(1)
  assert result.stats['APs'] is None
  assert result.notes == ('the area of 2 objects was computed.',)


def test_evaluate_detections_counts_an_object_without_area_as_missed():
  # As in pycocotools at most half of the objects can be found, so that 51 of
  # the 101 recalls have precision 1. The notes say so here.
  truth = _truth([(1, 1, (10, 10, 40, 40)), (1, 1, (90, 90, 0, 9))])
  result = ap.evaluate_detections(truth, _perfect(truth), kind='bbox')
  assert result.stats['AP'] == pytest.approx(51 / 101)
  assert 'count as missed' in ' '.join(result.notes)


@pytest.mark.parametrize(
  ('limits', 'expected'), [((1, 10, 100), 0.663), ((1, 10, 150), 1.0)]
)
def test_evaluate_detections_of_many_objects_needs_a_limit_to_match(
  limits, expected
):
  boxes = [(1, 1, (12 * (i % 15), 12 * (i // 15), 9, 9)) for i in range(150)]
  truth = _truth(boxes)
  result = ap.evaluate_detections(
    truth, _perfect(truth), kind='bbox', max_detections=limits
  )
  # If 100 of 150 are found, the 67 recalls from 0 to 0.66 have precision 1, and
  # the other 34 have precision 0.
  assert result.stats['AP'] == pytest.approx(expected, abs=5e-4)
  found = result.stats[f'AR{limits[-1]}']
  assert found == pytest.approx(limits[-1] / 150)
  assert bool(result.notes) == (limits[-1] == 100)


@pytest.mark.parametrize('crowd', [False, True])
def test_evaluate_detections_without_objects_is_not_applicable(crowd):
  truth = copy.deepcopy(TWO)  # AP -1
  results = _perfect(truth)
  for annotation in truth['annotations']:
    annotation['iscrowd'] = 1
  if not crowd:
    truth['annotations'] = []
  result = ap.evaluate_detections(truth, results, kind='segm')
  assert set(result.stats.values()) == {None}
  assert result.per_class == {'cat': None}


def test_evaluate_detections_leaves_a_class_without_objects_out_of_the_mean():
  truth = copy.deepcopy(TWO)
  truth['categories'].append({'id': 2, 'name': 'dog'})
  results = _perfect(truth)
  results.append({**results[0], 'category_id': 2})
  result = ap.evaluate_detections(truth, results, kind='bbox')
  assert result.stats['AP'] == pytest.approx(1)
  assert result.per_class['dog'] is None


@pytest.mark.parametrize('key', ['image_id', 'category_id'])
@pytest.mark.parametrize('value', [99, '1', None])
def test_evaluate_detections_refuses_unknown_ids(key, value):
  results = _perfect(TWO)
  results[1][key] = value
  with pytest.raises(InputError, match=f'Detection 1 .* has {key} {value!r}'):
    ap.evaluate_detections(TWO, results, kind='bbox')
  truth = copy.deepcopy(TWO)
  truth['annotations'][1][key] = value
  with pytest.raises(InputError, match=f'Annotation 2 .* has {key} {value!r}'):
    ap.evaluate_detections(truth, [], kind='bbox')


@pytest.mark.parametrize('key', ['images', 'categories'])
def test_evaluate_detections_refuses_ids_used_twice(key):
  truth = copy.deepcopy(TWO)
  truth[key].append({**truth[key][0], 'name': 'other'})
  with pytest.raises(InputError, match='id 1 is used more than once'):
    ap.evaluate_detections(truth, [], kind='bbox')


def test_evaluate_detections_refuses_a_category_name_used_twice():
  truth = copy.deepcopy(TWO)
  truth['categories'].append({'id': 2, 'name': 'cat'})
  with pytest.raises(InputError, match="named 'cat'"):
    ap.evaluate_detections(truth, [], kind='bbox')


@pytest.mark.parametrize(
  'segmentation',
  [
    [[10, 10, math.nan, 10, 50, 50]],  # hangs
    [[10, 10, 1e12, 10, 50, 50]],
    [[10, 10, '50', 10, 50, 50]],
    [[10, 10, 50, 10, 50]],  # silently empty
    [[10, 10, 50, 10, 50, 50, 10]],  # silently drops the last number
    [[10, 10, 50, 50]],  # TypeError
    [10, 10, 50, 10, 50, 50],
    [[10, 10, 50, 10, 50, 50], []],
    [[]],
    [],
    None,
    {'size': [200, 200], 'counts': [100, 20, 300]},  # reads foreign memory
    {'size': [200, 200], 'counts': [-5, 40005]},
    {'size': [100, 400], 'counts': [40000]},
    {'size': [200, 200], 'counts': '0123'},
    {'size': [200, 200], 'counts': 'zzzzzz'},
    {'size': [200, 200], 'counts': 'naïve'},
    {'size': [200, 200]},
    {},
  ],
)
def test_evaluate_detections_refuses_a_broken_mask(segmentation):
  truth = copy.deepcopy(TWO)
  truth['annotations'][1]['segmentation'] = segmentation
  with pytest.raises(InputError, match='Annotation 2 of image 1'):
    ap.evaluate_detections(truth, [], kind='segm')
  results = _perfect(TWO)
  results[1]['segmentation'] = segmentation
  with pytest.raises(InputError, match=r'Detection 1 \(image 1\)'):
    ap.evaluate_detections(TWO, results, kind='segm')


def test_evaluate_detections_takes_masks_of_any_encoding():
  compressed = _rle((10, 10, 40, 40))
  runs = [10 * 200 + 10, *([40, 160] * 39), 40]
  runs.append(200 * 200 - sum(runs))
  encodings = [
    compressed,
    {**compressed, 'counts': compressed['counts'].encode()},
    {'size': [200, 200], 'counts': runs},
    [_corners((10, 10, 40, 40))],
  ]
  for of_truth in encodings:
    truth = _truth([(1, 1, (10, 10, 40, 40))])
    truth['annotations'][0]['segmentation'] = of_truth
    for of_result in encodings:
      results = _perfect(truth)
      results[0]['segmentation'] = of_result
      stats = ap.evaluate_detections(truth, results, kind='segm').stats
      assert stats['AP'] == pytest.approx(1)


def test_evaluate_detections_refuses_a_ground_truth_that_is_not_coco():
  with pytest.raises(InputError, match='no list of annotations'):
    ap.evaluate_detections({'images': []}, [], kind='bbox')
  with pytest.raises(InputError, match='list of JSON objects'):
    ap.evaluate_detections({**TWO, 'annotations': [1]}, [], kind='bbox')


@pytest.mark.parametrize('limits', [(1, 10), (1, 10, 10), (0, 1, 2)])
def test_evaluate_detections_refuses_limits_that_do_not_rise(limits):
  with pytest.raises(ValueError, match='max_detections'):
    ap.evaluate_detections(TWO, [], kind='bbox', max_detections=limits)


def test_format_table_has_a_column_for_each_kind_and_a_row_for_each_class():
  truth = copy.deepcopy(TWO)
  truth['categories'].append({'id': 2, 'name': 'dog'})
  box = ap.evaluate_detections(truth, _perfect(truth), kind='bbox')
  mask = ap.evaluate_detections(truth, [], kind='segm')
  table = ap.format_table({'bbox': box, 'segm': mask})
  lines = table.splitlines()
  first = next(line for line in lines if line.startswith('Average'))
  assert first == (
    'Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]'
    '  1.000  0.000'
  )
  assert sum(line.startswith('Average') for line in lines) == 12
  assert lines[-2].split() == ['cat', '1.000', '0.000']
  assert lines[-1].split() == ['dog', 'n/a', 'n/a']


def test_format_table_takes_one_kind_and_leaves_out_many_classes(monkeypatch):
  box = ap.evaluate_detections(TWO, [], kind='bbox')
  assert 'mask' not in ap.format_table({'bbox': box})
  assert 'cat' in ap.format_table({'segm': box})
  monkeypatch.setattr(ap, 'MAX_CLASS_ROWS', 0)
  assert 'cat' not in ap.format_table({'segm': box})


def test_format_table_of_nothing_says_so():
  assert ap.format_table({}) == 'Nothing was evaluated.'


@pytest.mark.parametrize('backend', ['faster'], indirect=True)
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(4))
@pytest.mark.usefixtures('backend')
def test_backends_agree(kind, seed, monkeypatch):
  # The input has crowd regions, equal scores, ids from 0 on, annotation ids
  # that are used twice, and classes and images without objects or detections.
  rng = np.random.default_rng(seed)

  def draw(count, ids):
    return [
      (
        int(rng.choice(ids)),
        int(rng.integers(0, 3)),
        (*rng.integers(0, 60, 2).tolist(), *rng.integers(5, 130, 2).tolist()),
      )
      for _ in range(count)
    ]

  truth = _truth(draw(30, [0, 2**53, 2**53 + 1]))
  truth['images'] = [
    {'id': i, 'height': 200, 'width': 200} for i in (0, 2**53, 2**53 + 1, 7)
  ]
  truth['categories'] = [{'id': i, 'name': f'c{i}'} for i in range(4)]
  for annotation in truth['annotations'][::7]:
    annotation['iscrowd'] = 1
  for annotation in truth['annotations']:
    annotation['id'] = annotation['id'] // 2
  results = _perfect(_truth(draw(60, [0, 2**53, 2**53 + 1])))
  for result in results:
    result['score'] = float(rng.integers(0, 5) / 4)
  arguments = dict(kind=kind, max_detections=(1, 3, 8))
  faster = ap.evaluate_detections(truth, results, **arguments)
  monkeypatch.undo()
  reference = ap.evaluate_detections(truth, results, **arguments)
  for field in ('stats', 'per_class'):
    ours, theirs = getattr(faster, field), getattr(reference, field)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
      assert ours[name] == (
        None if value is None else pytest.approx(value, abs=1e-10)
      ), name
  assert 0 < reference.stats['AP'] < 1


def test_a_backend_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setattr(ap.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r'maskrcnn-jax\[faster\]'):
    ap.check_backend('faster')
  ap.check_backend('pycocotools')
