"""Tests of data/coco.py."""

import contextlib
import copy
import gzip
import io
import json
import pathlib

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from pycocotools import coco as coco_api
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax import errors
from maskrcnn_jax.data import coco, coco_index, findings
from maskrcnn_jax.data.outlines import fill_outline, polygons_to_outline

SHARED = pathlib.Path(__file__).parents[3] / 'shared'

SQUARE = [2, 3, 6, 3, 6, 7, 2, 7]
RLE = {'size': [10, 12], 'counts': [20, 100]}


def example():
  """Returns a COCO document with two images.

  The first has a triangle. The second has a square, an L-shaped RLE and a crowd
  region.
  """
  mask = np.zeros((10, 12), np.uint8)
  mask[1:9, 1:3] = mask[7:9, 1:6] = 1
  crowd = np.zeros((10, 12), np.uint8)
  crowd[:, 6:] = 1
  return {
    'images': [
      {'id': 30, 'file_name': 'b.jpg', 'height': 20, 'width': 8},
      {'id': 7, 'file_name': 'a.jpg', 'height': 10, 'width': 12},
    ],
    'categories': [{'id': 18, 'name': 'dog'}, {'id': 3, 'name': 'car'}],
    'annotations': [
      annotation(501, 3, [2, 3, 4, 4], [SQUARE], area=16),
      annotation(502, 18, [1, 1, 5, 8], encode(mask)),
      annotation(503, 3, [6, 0, 6, 10], encode(crowd), iscrowd=1),
      annotation(504, 18, [1, 1, 4, 4], [[1, 1, 5, 1, 5, 5]], image_id=30),
    ],
  }


def annotation(id_, category_id, bbox, segmentation, *, image_id=7, **more):
  return dict(
    id=id_,
    image_id=image_id,
    category_id=category_id,
    bbox=bbox,
    segmentation=segmentation,
    **more,
  )


def encode(mask):
  rle = mask_api.encode(np.asfortranarray(mask))
  return rle | {'counts': rle['counts'].decode()}


@pytest.fixture
def read(tmp_path):
  """Returns a function that writes a document and reads it with read_coco."""

  def write_and_read(content, **options):
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(content))
    return coco.read_coco(path, **options)

  return write_and_read


def test_read_coco_puts_objects_under_their_images(read):
  index = read(example())
  assert index.categories == ((3, 'car'), (18, 'dog'))
  assert index.image_ids == [30, 7]
  assert index.file_names == ['b.jpg', 'a.jpg']
  assert_array_equal(index.heights, [20, 10])
  assert_array_equal(index.widths, [8, 12])
  assert_array_equal(index.object_starts, [0, 1, 4])
  assert index.annotation_ids == [504, 501, 502, 503]
  assert_array_equal(index.classes, [2, 1, 2, 1])
  assert_array_equal(index.crowd, [False, False, False, True])
  assert_array_equal(
    index.boxes, [[1, 1, 5, 5], [2, 3, 6, 7], [1, 1, 6, 9], [6, 0, 12, 10]]
  )
  # The triangle has 4 x 4 / 2 pixels, the square the area in the file, the L
  # 8 x 2 + 2 x 3 pixels and the crowd region 6 x 10 pixels.
  assert_array_equal(index.areas, [8, 16, 22, 60])
  # Polygons repeat their first corner: 3 + 1 and 4 + 1 vertices. The L has
  # three edges: the left side, right of the stem and right of the foot. The
  # crowd region has no outline.
  assert_array_equal(index.outline_starts, [0, 4, 9, 15, 15])
  assert_array_equal(
    index.vertices[9:15], [[1, 1], [1, 9], [3, 1], [3, 7], [6, 7], [6, 9]]
  )
  assert_array_equal(
    index.parts, [0, 0, 0, -1, 0, 0, 0, 0, -1, 0, -1, 0, -1, 0, -1]
  )
  assert index.dropped == {}
  for name, dtype in {
    'heights': np.int32,
    'object_starts': np.int64,
    'boxes': np.float32,
    'classes': np.int32,
    'crowd': bool,
    'areas': np.float64,
    'outline_starts': np.int64,
    'vertices': np.float32,
    'parts': np.int16,
  }.items():
    assert getattr(index, name).dtype == dtype, name


def test_read_coco_measures_missing_areas(read):
  content = example()
  first, second, _, last = content['annotations']
  # Two squares of 16 pixels in opposite directions. Their areas must add up.
  first['segmentation'].append([2, 7, 6, 7, 6, 3, 2, 3])
  del first['area']
  second['area'] = 22
  del last['segmentation']
  index = read(content, require_masks=False)
  assert_array_equal(index.areas, [16, 32, 22, 60])


def test_read_coco_accepts_a_byte_order_mark_and_files_without_objects(
  tmp_path,
):
  path = tmp_path / 'a.json'
  content = example() | {'annotations': []}
  path.write_text(json.dumps(content), encoding='utf-8-sig')
  index = coco.read_coco(path)
  assert index.boxes.shape == (0, 4)
  assert index.vertices.shape == (0, 2)
  assert_array_equal(index.object_starts, [0, 0, 0])
  path.write_text(json.dumps(content | {'images': []}))
  assert coco.read_coco(path).heights.shape == (0,)


@pytest.mark.parametrize(
  ('ids', 'order'),
  [
    ([5, 0, 90], [0, 5, 90]),
    (['b', 'a', 'c'], ['b', 'a', 'c']),
    ([2, 'a', 1], [2, 'a', 1]),
  ],
)
def test_read_coco_sorts_categories_if_all_ids_are_integers(read, ids, order):
  content = example()
  content['categories'] = [{'id': i, 'name': f'n{i}'} for i in ids]
  content['annotations'] = [annotation(1, ids[0], [2, 3, 4, 4], [SQUARE])]
  index = read(content)
  assert [category.id for category in index.categories] == order
  assert index.classes[0] == order.index(ids[0]) + 1


@pytest.mark.parametrize('id_', ['a/b', 2**60 + 1, -1, 1.5])
def test_read_coco_keeps_image_ids_as_they_are(read, id_):
  content = example()
  content['images'][1]['id'] = id_
  for entry in content['annotations'][:3]:
    entry['image_id'] = id_
  index = read(content)
  assert index.image_ids == [30, id_]
  assert_array_equal(index.object_starts, [0, 1, 4])


def test_read_coco_clips_boxes_and_drops_those_without_area(read):
  content = example()
  boxes = [
    [-3, -2, 6, 6],  # the upper left corner sticks out
    [8, 8, 4.5, 2.5],  # the lower right one
    [12, 0, 5, 5],  # outside
    [3, 3, 0, 5],
    [3, 3, 5, -1],
  ]
  content['annotations'] = [
    annotation(i, 3, box, [SQUARE]) for i, box in enumerate(boxes)
  ]
  report = findings.Report(stop=False)
  index = read(content, report=report)
  assert_array_equal(index.boxes, [[0, 0, 3, 4], [8, 8, 12, 10]])
  assert index.dropped == {coco_index.NO_AREA: 3}
  # Two boxes have no size. One box is outside and one is clipped; the box that
  # sticks out by half a pixel counts as rounded.
  assert report.counts['A01'] == 2
  assert report.counts['A02'] == 2
  assert {'A01', 'A02'} <= set(report.error_codes)


def test_read_coco_drops_what_has_no_mask(read):
  content = example()
  box = [2, 3, 4, 4]
  content['annotations'] = [
    annotation(1, 3, box, [SQUARE, [1, 1, 2, 2], SQUARE[:7]]),
    annotation(2, 3, box, [[1, 1, 2, 2]]),
    annotation(3, 3, box, [[]]),
    annotation(4, 3, box, []),
    annotation(5, 3, box, None),
    annotation(6, 3, box, [], iscrowd=1),
    annotation(7, 3, [0, 0, 0, 0], []),
  ]

  def read_all(**options):
    report = findings.Report(stop=False)
    return read(content, report=report, **options), report

  index, report = read_all()
  assert report.counts['A05'] == 2
  assert report.counts['A06'] == 3
  assert index.annotation_ids == [1, 6]
  assert_array_equal(index.parts, [0, 0, 0, 0, -1])
  # The reasons have the order of the module, not that of the file.
  assert list(index.dropped.items()) == [
    (coco_index.NO_AREA, 1),
    (coco_index.NO_SEGMENTATION, 3),
    (coco_index.BAD_POLYGON, 3),
    (coco_index.NO_POLYGON, 1),
  ]
  index, _ = read_all(require_masks=False)
  assert index.annotation_ids == [1, 2, 3, 4, 5, 6]
  assert index.dropped == {coco_index.NO_AREA: 1, coco_index.BAD_POLYGON: 3}


def changed(path, value):
  """Returns the example with one value replaced, or removed (value is ...)."""
  content = copy.deepcopy(example())
  *folders, last = path
  place = content
  for folder in folders:
    place = place[folder]
  if value is ...:
    del place[last]
  else:
    place[last] = value
  return content


ANNS, IMGS, CATS = 'annotations', 'images', 'categories'


@pytest.mark.parametrize(
  ('path', 'value', 'complaint'),
  [
    ((ANNS, 0), 3, 'annotation 0 of the list: A25: it is not an object'),
    ((ANNS, 0, 'image_id'), 8, '501: A14: image_id 8 is no image'),
    ((ANNS, 0, 'image_id'), '7', r"image_id '7' is no .*there is 7; "),
    ((ANNS, 0, 'image_id'), ..., 'A14: image_id None'),
    ((ANNS, 0, 'image_id'), [7], r'A14: image_id \[7\]'),
    ((ANNS, 0, 'category_id'), 0, 'A14: category_id 0 is no category'),
    ((ANNS, 0, 'iscrowd'), 2, 'annotation 501: A12: iscrowd is 2'),
    ((ANNS, 0, 'iscrowd'), [], r'iscrowd is \[\]'),
    ((ANNS, 0, 'bbox'), {}, 'annotation 501: A04: bbox is {}'),
    ((ANNS, 0, 'bbox'), [1, 2, 3], r'A04: bbox is \[1, 2, 3\]'),
    ((ANNS, 0, 'bbox', 2), float('nan'), 'annotation 501: A04: .*nan'),
    ((ANNS, 0, 'bbox', 2), float('inf'), 'A04: .*inf'),
    ((ANNS, 0, 'bbox', 2), '4', "A04: .*'4'"),
    ((ANNS, 0, 'bbox', 2), True, 'A04: .*True'),
    ((ANNS, 0, 'bbox', 2), 10**400, 'A04: bbox'),
    ((ANNS, 0, 'segmentation', 0, 3), float('nan'), '501: A04: .* is nan'),
    ((ANNS, 0, 'segmentation', 0, 3), '3', "501: A04: .*'3'.*not a number"),
    ((ANNS, 0, 'segmentation'), SQUARE, '501: A07: .*flat'),
    ((ANNS, 0, 'segmentation'), [[[2, 3], [4, 5]] * 3], '501: A07: .*pairs'),
    ((ANNS, 0, 'segmentation'), [[[2, 3], [4, 5], [6, 9]]], 'A07: .*pairs'),
    ((ANNS, 0, 'segmentation'), [[2, 3], [4, 5], [6, 9]], 'A07: .*pairs'),
    ((ANNS, 0, 'segmentation'), [RLE, RLE], 'A07: .*a list of 2 RLEs'),
    ((ANNS, 0, 'segmentation'), [SQUARE, None], 'A07: .* holds None'),
    ((ANNS, 1, 'segmentation', 'counts'), "b'3a0'", 'A09: .*counts.decode'),
    ((ANNS, 0, 'segmentation'), 'x', '501: A07: segmentation is a str'),
    ((ANNS, 1, 'segmentation', 'size'), [9, 9], r'502: A09: .*\[10, 12\]'),
    ((ANNS, 1, 'segmentation', 'counts'), [9], '502: A09: .* sum to 9'),
    ((ANNS, 2, 'segmentation', 'counts'), [9], '503: A09: .* sum to 9'),
    ((IMGS, 0), None, 'image 0 of the list: A19: it is not'),
    ((IMGS, 0, 'id'), 7, 'A17: two images have the id 7'),
    ((IMGS, 0, 'id'), ..., 'image 0 of the list: A19: .*None'),
    ((IMGS, 0, 'id'), [1], 'image 0 of the list: A19'),
    ((IMGS, 0, 'height'), ..., 'image 30: I05: b.jpg has height None'),
    ((IMGS, 0, 'width'), 0, 'image 30: I05'),
    ((IMGS, 0, 'width'), '8', 'image 30: I05'),
    ((IMGS, 0, 'width'), 7.5, 'image 30: I05'),
    ((IMGS, 0, 'width'), float('nan'), 'image 30: I05'),
    ((IMGS, 0, 'file_name'), ..., "image 30: I01: it has no 'file_name'"),
    ((CATS, 0, 'id'), 3, 'A15: two categories have the id 3'),
    ((CATS, 0, 'name'), 'car', "A15: two categories have the name 'car'"),
    ((CATS, 0, 'name'), ..., 'category 0 of the list: A13: .*None'),
    ((CATS, 0, 'id'), 1.5, 'category 0 of the list: A13'),
    ((CATS, 0), 'dog', 'category 0 of the list: A13: it is not'),
    ((CATS,), [], "A23: 'categories' is empty"),
    ((ANNS,), ..., "A25: .*no list 'annotations'"),
    ((ANNS,), {}, "A25: .*no list 'annotations' in it: .* is an object"),
    ((ANNS,), 'a.json', "A25: .*no list 'annotations' in it: .* is a text"),
    ((IMGS,), {'count': 2}, "A25: .*no list 'images' in it: .* is an object"),
  ],
)
def test_read_coco_refuses_what_contradicts_itself(
  read, path, value, complaint
):
  with pytest.raises(errors.InputError, match=complaint) as caught:
    read(changed(path, value))
  assert 'instances.json' in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('key', [IMGS, CATS, ANNS])
def test_read_coco_reads_the_lists_in_any_order(read, key):
  content = example()
  moved = {k: v for k, v in content.items() if k != key} | {key: content[key]}
  first, second = read(content), read(moved)
  for a, b in zip(first, second, strict=True):
    assert_array_equal(a, b) if isinstance(a, np.ndarray) else None
    assert isinstance(a, np.ndarray) or a == b


def test_read_coco_reads_images_and_classes_alone_where_it_may(read):
  content = example()
  whole = read(content)
  del content['annotations']
  with pytest.raises(errors.InputError, match='A25: .*--skip_eval'):
    read(content)
  index = read(content, require_annotations=False)
  assert index.file_names == whole.file_names
  assert index.categories == whole.categories
  assert len(index.classes) == 0


def test_index_coco_gives_what_read_coco_gives(read):
  report = findings.Report(stop=False)
  for a, b in zip(
    read(example()),
    coco.index_coco(example(), 'memory', report=report),
    strict=True,
  ):
    assert (np.array_equal if isinstance(a, np.ndarray) else (a.__eq__))(
      *((a, b) if isinstance(a, np.ndarray) else (b,))
    )
  assert not report.error_codes


@pytest.mark.parametrize(
  ('content', 'complaint'),
  [
    ([{'image_id': 1, 'score': 0.5}], 'detection results'),
    ([], 'it is a list'),
    (3, 'holds a int'),
    (
      {'_via_settings': {}},
      r'VIA export: python -m maskrcnn_jax.convert_to_coco via'
      r' --images=DIR --annotations=\S*\.json --out=COCO.json',
    ),
    ({'a.jpg12': {'filename': 'a.jpg', 'regions': []}}, 'VIA export'),
    (
      {'shapes': [], 'imagePath': 'a.jpg'},
      r'LabelMe file: python -m maskrcnn_jax.convert_to_coco labelme'
      r' --images=DIR --annotations=\S*[^n] --out=COCO.json',
    ),
    (example() | {ANNS: [{'segments_info': []}]}, 'panoptic'),
    (example() | {ANNS: [{'caption': 'A dog.'}]}, 'captions'),
  ],
)
def test_read_coco_says_what_a_file_looks_like(read, content, complaint):
  with pytest.raises(errors.InputError, match=f'A25: .*{complaint}'):
    read(content)


@pytest.mark.parametrize(
  ('raw', 'complaint'),
  [
    (b'', 'is not JSON'),
    (b'{"images": [', 'is not JSON'),
    (b'\x89PNG\xff', 'is not JSON'),
    (b'[' * 200_000, 'is not JSON'),
    (gzip.compress(b'{}', mtime=0), 'is gzip-compressed'),
  ],
)
def test_read_coco_refuses_what_is_not_json(tmp_path, raw, complaint):
  (tmp_path / 'a.json').write_bytes(raw)
  with pytest.raises(errors.InputError, match=f'A25: .*a.json {complaint}'):
    coco.read_coco(tmp_path / 'a.json')


def test_read_coco_names_a_file_that_is_not_there(tmp_path):
  with pytest.raises(errors.InputError, match='Cannot read .*none.json: No'):
    coco.read_coco(tmp_path / 'none.json')
  with pytest.raises(errors.InputError, match='is not a file; give'):
    coco.read_coco(str(tmp_path))


def test_check_is_there_says_where_a_missing_file_is_named(tmp_path):
  (tmp_path / 'A.json').write_text('{}')
  coco.check_is_there(tmp_path / 'A.json', '--annotations')
  with pytest.raises(
    errors.InputError, match=r'A25: .*b\.json; --annotations says where'
  ) as caught:
    coco.check_is_there(tmp_path / 'b.json', '--annotations')
  assert 'download' not in str(caught.value)
  with pytest.raises(errors.InputError, match=r'a\.json \(there is A\.json'):
    coco.check_is_there(tmp_path / 'a.json', '--annotations')


@pytest.mark.parametrize(
  ('path', 'command'),
  [
    ('data/coco/annotations/instances_val2017.json', 'data/coco'),
    ('data/coco/annotations/instances_val2014.json', 'data/coco 2014'),
    ('/disk/data/coco/train2014', '/disk/data/coco 2014'),
  ],
)
def test_download_hint_names_the_command_for_coco(path, command):
  assert coco.download_hint(path) == (
    '; in the source repository, bash scripts/download_dataset.sh'
    f' {command} downloads COCO'
  )


@pytest.mark.parametrize('path', ['coco/data/a.json', 'data/mine/a.json', ''])
def test_download_hint_is_for_coco_alone(path):
  assert coco.download_hint(path) == ''


def test_read_coco_sees_boxes_given_by_their_corners(read):
  content = example()
  boxes = [[2, 3, 6, 7], [6, 5, 12, 10], [3, 2, 12, 9]]
  content[ANNS] = [
    annotation(i, 3, [x, y, x2, y2], [[x, y, x2, y, x2, y2, x, y2]])
    for i, (x, y, x2, y2) in enumerate(boxes)
  ]
  with pytest.raises(errors.InputError, match='A03: 2 of 3 boxes reach beyond'):
    read(content)
  # One box that cannot be two corners shows that no box is.
  content[ANNS].append(
    annotation(9, 3, [6, 5, 3, 3], [[6, 5, 9, 5, 9, 8, 6, 8]])
  )
  assert len(read(content).boxes) == 4


def test_class_table_difference_says_what_differs():
  here = coco_index.Category(1, 'dog'), coco_index.Category(7, 'cat')
  there = coco_index.Category(1, 'dog'), coco_index.Category(7, 'Cat')
  assert coco.class_table_difference(here, here) == []
  assert coco.class_table_difference(here, there) == [
    "7 is 'cat' here and 'Cat' in the checkpoint"
  ]
  assert coco.class_table_difference(here, there[:1], there_name='b.json') == [
    "b.json lacks 7 'cat'"
  ]
  assert coco.class_table_difference(here[:1], here) == ["it lacks 7 'cat'"]
  assert coco.class_table_difference(here, (here[1], here[0])) == [
    "the order differs: class 1 is 'dog' here and 'cat' in the checkpoint"
  ]
  moved = coco_index.Category(0, 'dog'), coco_index.Category(7, 'cat')
  assert coco.class_table_difference(here, moved) == [
    "'dog' has the id 1 here and 0 in the checkpoint"
  ]


def test_class_table_difference_is_empty_for_equal_tables_only():
  rng = np.random.default_rng(0)
  for _ in range(500):
    one, other = (
      tuple(
        coco_index.Category(int(id_), 'abcd'[name])
        for id_, name in zip(
          rng.permutation(4)[:count], rng.permutation(4)[:count], strict=True
        )
      )
      for count in rng.integers(0, 4, 2)
    )
    assert bool(coco.class_table_difference(one, other)) == (one != other)


def test_one_class_more_in_front_of_many_is_one_difference():
  table = tuple(coco_index.Category(i, f'c{i}') for i in range(1, 200))
  assert coco.class_table_difference(table[1:], table) == ["it lacks 1 'c1'"]
  lines = coco.class_table_difference(table, table[:100])
  assert len(lines) == 99
  assert coco.format_difference(lines).endswith("110 'c110'; and 89 more")


def report_of(content, tmp_path, **options):
  """Reads a document and returns its index and {code: reasons}."""
  path = tmp_path / 'instances.json'
  path.write_text(json.dumps(content))
  report = findings.Report(stop=False)
  index = coco.read_coco(path, report=report, **options)
  reasons = {}
  for found in report.kept:
    reasons.setdefault(found.code, []).append(found.reason)
  return index, reasons


def roboflow():
  """Returns a document with a category that groups all others."""
  content = example()
  content['categories'] = [
    {'id': 0, 'name': 'dog', 'supercategory': 'none'},
    {'id': 18, 'name': 'dog', 'supercategory': 'dog'},
    {'id': 3, 'name': 'car', 'supercategory': 'dog'},
  ]
  return content


def names_of(index):
  return [(category.id, category.name) for category in index.categories]


def test_a_category_that_groups_others_is_left_out_for_a_class(tmp_path):
  content = roboflow()
  index, reasons = report_of(content, tmp_path)
  assert names_of(index) == [(3, 'car'), (18, 'dog')]
  assert list(reasons) == ['A15', 'A12', 'A26']
  # In any order, and in a split without annotations, the class stays.
  content['categories'].reverse()
  assert names_of(report_of(content, tmp_path)[0]) == names_of(index)
  content['annotations'] = []
  other, reasons = report_of(content, tmp_path)
  assert names_of(other) == names_of(index)
  assert list(reasons) == ['A15']


def test_two_categories_of_a_name_are_an_error_if_none_only_groups(tmp_path):
  content = roboflow()
  content['annotations'][1]['category_id'] = 0
  _, reasons = report_of(content, tmp_path)
  assert 'two categories have the name' in reasons['A15'][0]
  assert 'A14' not in reasons
  # A group of another name is a class without objects.
  content = roboflow()
  content['categories'][0]['name'] = 'animals'
  for category in content['categories'][1:]:
    category['supercategory'] = 'animals'
  index, reasons = report_of(content, tmp_path)
  assert len(index.categories) == 3
  assert 'A15' not in reasons
  assert 'animals' in reasons['A22'][0]


@pytest.mark.parametrize(
  ('key', 'entry', 'code'),
  [
    (CATS, {'id': 18}, 'A13'),
    (CATS, {'id': None, 'name': 'dog'}, 'A13'),
    (CATS, {'id': 3, 'name': 'dog'}, 'A15'),
    (CATS, {'id': 18, 'name': 'car'}, 'A15'),
    (IMGS, {'id': None, 'file_name': 'a', 'height': 9, 'width': 9}, 'A19'),
    (IMGS, {'id': 7, 'file_name': 'a', 'height': 9, 'width': 9}, 'A17'),
    (IMGS, {'id': 30, 'file_name': 'a', 'height': 0, 'width': 9}, 'I05'),
  ],
)
def test_no_finding_follows_from_a_rejected_entry(tmp_path, key, entry, code):
  content = example()
  for annotation_ in content[ANNS]:
    annotation_.update(area=20, iscrowd=annotation_.get('iscrowd', 0))
  # The entry comes in place of that of the id 18 or 30.
  content[key] = [e for e in content[key] if e['id'] not in (18, 30)]
  content[key].append(entry)
  _, reasons = report_of(content, tmp_path)
  assert list(reasons) == [code]


def test_lines_have_no_mask_and_bow_ties_have_one(tmp_path):
  content = example()
  lines = [[1, 3, 6, 3, 1, 3], [2, 2, 5, 5, 2, 2]]
  tie = [1, 2, 7, 8, 7, 2, 1, 8]
  content['annotations'] = [
    annotation(1, 3, [1, 2, 6, 6], [lines[0]], area=18, iscrowd=0),
    annotation(2, 18, [1, 2, 6, 6], [tie], area=18, iscrowd=0),
    annotation(3, 3, [2, 2, 3, 3], [lines[1]], area=9, iscrowd=0),
  ]
  index, reasons = report_of(content, tmp_path)
  assert list(reasons) == ['A10']
  assert len(reasons['A10']) == 2
  # The training step sees a mask where the outline has vertices.
  assert np.diff(index.outline_starts).tolist() == [0, 5, 0]
  assert_array_equal(index.vertices[0], tie[:2])
  assert len(index.boxes) == 3


def test_areas_are_wrong_by_the_number_of_pixels(tmp_path):
  content = example()
  tie = [1, 1, 11, 9, 11, 1, 1, 9]
  mask = fill_outline(*polygons_to_outline([tie]), 10, 12)
  content['annotations'] = [
    # The shoelace formula gives 0, and 1240 for the one beyond the image.
    annotation(1, 3, [1, 1, 10, 8], [tie], area=int(mask.sum()), iscrowd=0),
    annotation(
      2,
      3,
      [0, 2, 9, 6],
      [[-190, 2, 9, 2, 9, 8, -190, 8]],
      area=54,
      iscrowd=0,
    ),
    annotation(3, 18, [1, 1, 10, 8], [tie], area=400, iscrowd=0),
  ]
  _, reasons = report_of(content, tmp_path)
  assert [line[:8] for line in reasons['A26']] == ['1 areas ']
  assert 'annotation 3' in reasons['A26'][0]


def test_the_end_of_an_address_is_the_file_name(tmp_path):
  content = example()
  del content['images'][0]['file_name']
  content['images'][0]['coco_url'] = 'http://x.org/val2017/my%20b.jpg?size=9'
  index, _ = report_of(content, tmp_path)
  assert index.file_names == ['my b.jpg', 'a.jpg']
  content['images'][0]['coco_url'] = 'http://x.org/val2017/'
  _, reasons = report_of(content, tmp_path)
  assert reasons['I01'] == ["it has no 'file_name'."]


@pytest.mark.parametrize(
  ('count', 'total', 'many'),
  [
    (1, 1, True),
    (1, 19, True),
    (1, 20, False),
    (5, 100, False),
    (6, 100, True),
    (6, 600, False),
    (7, 600, True),
    (0, 5, False),
  ],
)
def test_few_objects_of_a_small_set_are_no_error(count, total, many):
  assert findings.are_many(count, total) == many


def test_repeated_objects_are_counted(tmp_path):
  content = example()
  square = annotation(1, 3, [2, 3, 4, 4], [SQUARE], area=16, iscrowd=0)
  moved = [[x + 0.5 for x in SQUARE]]
  content['annotations'] = [
    square | {'id': 9, 'category_id': 18},
    *(square | {'id': i} for i in (1, 2, 3)),
    square | {'id': 4, 'segmentation': moved},
    square | {'id': 5, 'image_id': 30},
    square | {'id': 6, 'image_id': 30, 'iscrowd': 1},
    square | {'id': 7, 'image_id': 30, 'iscrowd': 1},
  ]
  _, reasons = report_of(content, tmp_path)
  (line,) = reasons['A30']
  assert line.startswith('2 annotations repeat')
  assert 'annotation 1 occurs 3 times' in line


@pytest.mark.parametrize(
  'name',
  [
    'nuclei/instances_val.json',
    'coco_mini/instances_train.json',
    'coco_mini/instances_val.json',
    'fruits_nuts/trainval.json',
    'coco_eval/instances_val2014_100.json',
  ],
)
def test_read_coco_agrees_with_pycocotools_on_real_files(name):
  path = SHARED / 'data' / name
  if not path.exists():
    pytest.skip(f'{path} is not here.')
  with contextlib.redirect_stdout(io.StringIO()):
    api = coco_api.COCO(str(path))
  index = coco.read_coco(path)
  assert sorted(index.image_ids) == sorted(api.imgs)
  assert sorted(index.annotation_ids) == sorted(api.anns)
  assert [c.id for c in index.categories] == sorted(api.cats)
  assert index.dropped == {}
  for row, image_id in enumerate(index.image_ids):
    start, end = index.object_starts[row : row + 2]
    for j in range(start, end):
      truth = api.anns[index.annotation_ids[j]]
      assert truth['image_id'] == image_id
      assert index.categories[index.classes[j] - 1].id == truth['category_id']
      assert index.crowd[j] == truth['iscrowd']
      x, y, w, h = truth['bbox']
      box = np.clip(
        [x, y, x + w, y + h],
        0,
        [index.widths[row], index.heights[row]] * 2,
      )
      assert_allclose(index.boxes[j], box, rtol=1e-6)
      assert index.areas[j] == truth['area']
      has_outline = index.outline_starts[j] < index.outline_starts[j + 1]
      assert has_outline == (not truth['iscrowd'])
