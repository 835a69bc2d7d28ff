"""`check_data --fix` repairs a value wherever it can, and loses no object.

Each case spoils a clean data set in a way that public reports describe. The
repaired copy must be the clean data set again.
"""

import copy
import json
import pathlib

import cases
from cases import compressed, mask, set_all, set_first, set_image
import numpy as np
from PIL import Image
import pytest

from maskrcnn_jax.check_data import command_line, contact_sheet
from maskrcnn_jax.config import default_config
from maskrcnn_jax.data import coco, file_names, findings, mask_values, outlines
from maskrcnn_jax.data.coco_annotations import MAX_OBJECT_VERTICES
from maskrcnn_jax.data.repair import ids, segmentation_repairs
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation import coco_input
from maskrcnn_jax.training import checks as train_start


@pytest.fixture(autouse=True)
def no_contact_sheet(monkeypatch):
  """Leaves out the contact sheet, because drawing takes longest."""
  monkeypatch.setattr(contact_sheet, 'write_sheet', lambda *_, **__: None)


@pytest.fixture
def data(tmp_path):
  """A clean data set."""
  return cases.Set(tmp_path / 'set')


def write(data):
  """Writes the annotations of a data set, and returns their path."""
  data.write()
  return data.annotations


def run(data, *options):
  """Runs check_data on a data set; returns (exit status, report)."""
  data.write()
  status = command_line.main(
    [
      f'--images={data.images_dir}',
      f'--annotations={data.annotations}',
      f'--out={data.folder / "out"}',
      '--workers=1',
      *options,
    ]
  )
  return status, json.loads((data.folder / 'out/report.json').read_text())


def fix(data, *options):
  """Runs check_data with --fix, and then on the copy, which has no error.

  Returns:
    The report's entry about the copy, and the copy.
  """
  fixed = data.folder / 'fixed.json'
  status, report = run(data, f'--fix={fixed}', *options)
  assert status == 0, report['findings']
  changed = copy.copy(data)
  changed.content = json.loads(fixed.read_text())
  status, again = run(changed, *options)
  assert status == 0, again['findings']
  return report['fix'], changed.content


def each(key, change):
  """Changes a value of all annotations, or of all images, with a function."""

  def spoil(data):
    for entry in data.images if key == 'file_name' else data.objects:
      entry[key] = change(entry[key])

  return spoil


def each_polygon(change):
  """Changes the only polygon of each annotation with a function."""
  return each('segmentation', lambda polygons: change(polygons[0]))


def pairs(polygon):
  """Returns the points of a flat polygon as lists [x, y]."""
  return [list(point) for point in zip(*[iter(polygon)] * 2, strict=True)]


def in_fractions(*keys):
  """Divides the coordinates of boxes or masks by the size of the image."""

  def divided(values):
    return [x / (64 if i % 2 else 80) for i, x in enumerate(values)]

  def spoil(data):
    for entry in data.objects:
      if 'bbox' in keys:
        entry['bbox'] = divided(entry['bbox'])
      if 'segmentation' in keys:
        entry['segmentation'] = [divided(entry['segmentation'][0])]
        entry['area'] = entry['area'] / (64 * 80)

  return spoil


def float_ids(data):
  for entry in data.content['categories']:
    entry['id'] = float(entry['id'])
  for entry in data.objects:
    entry['category_id'] = float(entry['category_id'])


# name: (code of the changes, function that spoils the data set)
CASES = {
  'backslashes': ('I01', each('file_name', 'images\\{}'.format)),
  'absolute': ('I15', each('file_name', '/home/me/images/{}'.format)),
  'windows_drive': ('I01', each('file_name', 'C:\\me\\images\\{}'.format)),
  'url': ('I01', each('file_name', 'https://a.b/c%20d/{}?x=y'.format)),
  'label_studio': ('I15', each('file_name', '/data/local-files/?d={}'.format)),
  'upload': ('I01', each('file_name', 'upload/1/0a1b2c3d-{}'.format)),
  'letter_case': ('I01', each('file_name', str.upper)),
  'no_ending': ('I01', each('file_name', lambda name: name[:-4])),
  'no_box': ('A04', set_all(bbox=...)),
  'box_null': ('A04', set_all(bbox=None)),
  'box_empty': ('A04', set_all(bbox=[])),
  'box_of_objects': ('A04', set_all(bbox={'x': 1, 'y': 2})),
  'box_zero': ('A01', set_all(bbox=[0, 0, 0, 0])),
  'box_text': ('A04', each('bbox', str)),
  'box_of_text': ('A04', each('bbox', lambda box: list(map(str, box)))),
  'no_size': (
    'I05',
    lambda data: [
      (entry.pop('height'), entry.pop('width')) for entry in data.images
    ],
  ),
  'size_0': ('I05', set_image(height=0, width=0)),
  'size_as_text': ('I05', set_image(height='64', width='80')),
  'image_id_text': ('A14', each('image_id', str)),
  'image_id_padded': ('A14', each('image_id', '{:012d}'.format)),
  'category_id_text': ('A14', each('category_id', str)),
  'category_id_float_text': ('A14', each('category_id', '{}.0'.format)),
  'category_id_list': ('A14', set_first(category_id=[1])),
  'category_by_name': (
    'A14',
    each('category_id', lambda id_: ['rect', 'other'][id_ - 1]),
  ),
  'iscrowd_text': ('A12', set_all(iscrowd='0')),
  'pairs': ('A07', each_polygon(lambda p: [pairs(p)])),
  'pairs_alone': ('A07', each_polygon(pairs)),
  'flat': ('A07', each_polygon(lambda p: p)),
  'nested': ('A07', each_polygon(lambda p: [[p]])),
  'opencv': ('A07', each_polygon(lambda p: [[[x] for x in pairs(p)]])),
  'multi_polygon': ('A07', each_polygon(lambda p: [[pairs(p)]])),
  'points': (
    'A07',
    each_polygon(lambda p: [{'x': x, 'y': y} for x, y in pairs(p)]),
  ),
  'box_in_fractions': ('A28', in_fractions('bbox')),
  'polygon_text': ('A07', each('segmentation', str)),
  'polygon_of_text': ('A04', each_polygon(lambda p: [list(map(str, p))])),
}


@pytest.mark.parametrize('name', CASES)
def test_fix_restores_the_data_set(data, name):
  clean = copy.deepcopy(data.content)
  code, spoil = CASES[name]
  spoil(data)
  report, fixed = fix(data)
  assert {change['code'] for change in report['changes']} == {code}
  assert report['kept'] == {'images': [6, 6], 'annotations': [18, 18]}
  assert fixed == clean


@pytest.mark.parametrize('keys', [('segmentation',), ('segmentation', 'bbox')])
def test_fix_writes_masks_in_fractions_in_pixels(data, keys):
  clean = copy.deepcopy(data.content)
  in_fractions(*keys)(data)
  report, fixed = fix(data)
  assert {change['code'] for change in report['changes']} == {'A28', 'A26'}
  assert fixed == clean


def test_ids_that_are_floats_are_read_and_written_as_integers(data):
  clean = copy.deepcopy(data.content)
  float_ids(data)
  status, report = run(data)
  assert status == 0
  assert not report['findings']
  report, fixed = fix(data)
  assert len(report['changes']) == 20
  assert json.dumps(fixed) == json.dumps(clean)


def test_a_number_is_the_name_of_a_class(data):
  data.content['categories'][0]['name'] = 5
  status, report = run(data)
  assert status == 0
  assert report['classes'][0]['name'] == '5'
  assert [f['code'] for f in report['findings']] == ['A13']
  report, fixed = fix(data)
  assert fixed['categories'][0] == {'id': 1, 'name': '5'}


@pytest.mark.parametrize(
  ('key', 'code'), [('images', 'A17'), ('categories', 'A15')]
)
def test_fix_leaves_out_an_entry_that_comes_twice(data, key, code):
  clean = copy.deepcopy(data.content)
  data.content[key].append(copy.deepcopy(data.content[key][0]))
  report, fixed = fix(data)
  assert [change['code'] for change in report['changes']] == [code]
  assert fixed == clean


def rle_cases():
  """Returns forms of an RLE that mean the mask of a rectangle of 14 x 18."""
  rle = compressed(mask())
  listed = cases.uncompressed(mask())
  turned = cases.uncompressed(mask().T)
  return {
    'str_of_bytes': ('A09', rle | {'counts': str(rle['counts'].encode())}),
    'list_of_rle': ('A07', [rle]),
    'list_of_rles': ('A07', [rle, compressed(mask(columns=slice(9, 12)))]),
    'list_of_str_of_bytes': (
      'A07',
      [rle | {'counts': str(rle['counts'].encode())}],
    ),
    'polygon_and_rle': (
      'A07',
      [[6, 8, 24, 8, 24, 22, 6, 22], compressed(mask(columns=slice(9, 12)))],
    ),
    'counts_text': ('A09', listed | {'counts': str(listed['counts'])}),
    'counts_of_text': (
      'A09',
      listed | {'counts': list(map(str, listed['counts']))},
    ),
    'counts_floats': (
      'A09',
      listed | {'counts': list(map(float, listed['counts']))},
    ),
    'size_text': ('A09', listed | {'size': ['64', '80']}),
    'size_missing': ('A09', {'counts': listed['counts']}),
    'size_exchanged': ('A09', listed | {'size': [80, 64]}),
    'mask_exchanged': ('A09', turned),
    'json_text': ('A07', json.dumps(rle)),
  }


@pytest.mark.parametrize('name', rle_cases())
def test_fix_writes_an_rle_of_another_form(data, name):
  code, segmentation = rle_cases()[name]
  data.first['segmentation'] = segmentation
  report, fixed = fix(data)
  assert [change['code'] for change in report['changes']] == [code]
  decoded = mask_values.decode_mask(
    fixed['annotations'][0]['segmentation'], 64, 80
  )
  assert (decoded == mask().astype(bool)).all()
  assert len(fixed['annotations']) == 18


def test_python_text_of_bytes_has_each_backslash_twice():
  # A run of 44 pixels, 12 + 32, begins with the character 92, a backslash.
  pixels = np.zeros(31 * 17, np.uint8)
  pixels[44:60] = 1
  rle = compressed(pixels.reshape((31, 17), order='F'))
  wrong = rle | {'counts': str(rle['counts'].encode())}
  assert '\\\\' in wrong['counts']
  repaired, code, _ = segmentation_repairs.repair_segmentation(
    wrong, None, 31, 17
  )
  assert (repaired, code) == (rle, 'A09')


def test_an_outline_with_too_many_corners_becomes_an_rle(data):
  angles = np.linspace(0, 2 * np.pi, MAX_OBJECT_VERTICES, endpoint=False)
  circle = np.stack([15 + 9 * np.cos(angles), 15 + 7 * np.sin(angles)], 1)
  polygon = circle.ravel().tolist()
  data.first.update(segmentation=[polygon], area=198, bbox=[6, 8, 18, 14])
  report, fixed = fix(data)
  assert [change['code'] for change in report['changes']] == ['A27']
  decoded = mask_values.decode_mask(
    fixed['annotations'][0]['segmentation'], 64, 80
  )
  expected = outlines.fill_outline(
    *outlines.polygons_to_outline([polygon]), 64, 80
  )
  assert (decoded == expected).all()
  assert len(fixed['annotations']) == 18


@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_a_missing_size_is_that_of_the_turned_image(data, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  with Image.open(data.file()) as image:
    turn = {
      1: image,
      3: image.transpose(Image.Transpose.ROTATE_180),
      6: image.transpose(Image.Transpose.ROTATE_90),
    }
    turn[orientation].save(data.file(), exif=exif)
  clean = copy.deepcopy(data.content)
  del data.images[0]['height'], data.images[0]['width']
  _, fixed = fix(data)
  assert fixed == clean


def test_labels_beyond_the_turned_image_show_that_it_was_not_turned(data):
  exif = Image.Exif()
  exif[0x0112] = 6
  with Image.open(data.file()) as image:
    image.copy().save(data.file(), exif=exif)
  clean = copy.deepcopy(data.content)
  # The stored pixels are 64 x 80, the turned ones 80 x 64.
  data.first.update(
    bbox=[60, 8, 18, 14], segmentation=[[60, 8, 78, 8, 78, 22, 60, 22]]
  )
  clean['annotations'] = copy.deepcopy(data.objects)
  data.images[0].update(height=None, width=None)
  _, fixed = fix(data)
  assert fixed == clean


def test_exchanged_sides_are_repaired_if_a_label_proves_it(data):
  data.first.update(
    bbox=[60, 8, 18, 14], segmentation=[[60, 8, 78, 8, 78, 22, 60, 22]]
  )
  clean = copy.deepcopy(data.content)
  data.images[0].update(height=80, width=64)
  report, fixed = fix(data)
  assert [change['code'] for change in report['changes']] == ['I05']
  assert fixed == clean


def test_files_that_several_names_could_mean_are_not_taken(data):
  # Only one of the two images can be the file 0.png.
  data.images[0]['file_name'] = 'a\\0.png'
  data.images[1]['file_name'] = 'b\\0.png'
  status, report = run(data, f'--fix={data.folder / "fixed.json"}')
  fixed = json.loads((data.folder / 'fixed.json').read_text())
  assert [image['id'] for image in fixed['images']] == [3, 4, 5, 6]
  assert report['fix']['kept']['images'] == [4, 6]
  assert status == 0


def test_a_file_of_an_image_is_not_taken_for_another(data):
  data.images[1]['file_name'] = 'other/0.png'
  fixed = data.folder / 'fixed.json'
  run(data, f'--fix={fixed}')
  kept = json.loads(fixed.read_text())['images']
  assert kept == [data.images[0], *data.images[2:]]


def test_the_nearest_of_several_files_is_found(tmp_path):
  folder = tmp_path / 'images'
  for name in ('a/0.png', 'b/0.png', 'b/1.PNG', 'c d/é.jpeg'):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
  find = file_names.FileFinder(folder).find
  assert find('D:\\set\\images\\b\\0.png') == 'b/0.png'
  assert find('/home/me/a/0.png') == 'a/0.png'
  assert find('/home/me/0.png') == ''
  assert find('1.png') == 'b/1.PNG'
  # %C3%A9 is é, here composed; macOS stores e and an accent.
  assert find('c%2520d/%C3%A9.jpg') == 'c d/é.jpeg'
  assert find('e\u0301.JPG') == 'c d/é.jpeg'
  assert find('2.png') == find('') == find('a/') == find('a\0') == ''


def test_ids_are_found_in_other_forms():
  table = ids.IdTable([(1, 'a'), ('2', 'b'), ('03', 'c'), (3, 'd'), ('x', 'a')])
  for wrong, right in (
    *((1, 1), (1.0, 1), ('1', 1), (' 1 ', 1), ('1.0', 1), ('001', 1)),
    *((2, '2'), ('2', '2'), (3, 3), ('03', '03'), ('b', 'b'), ([1], 1)),
  ):
    expected = '2' if right == 'b' else right
    assert table.find(wrong) == expected, wrong
  # '3' may be 3 or '03', and 'a' is the name of two.
  for unknown in ('3', 3.5, 'a', None, True, [1, 2], {}, 9, float('nan')):
    assert table.find(unknown) is None, unknown


def test_a_category_that_only_its_owner_can_repair_keeps_its_objects(data):
  del data.content['categories'][0]['name']
  clean = copy.deepcopy(data.content)
  fixed = data.folder / 'fixed.json'
  status, report = run(data, f'--fix={fixed}')
  assert status == 2
  assert 'A13' in report['fix']['left']
  assert json.loads(fixed.read_text()) == clean


def test_objects_without_boxes_are_trained_and_evaluated_on(data):
  with_boxes = coco.read_json(write(data))
  expected = coco.read_coco(data.annotations)
  set_all(bbox=...)(data)
  data.first['segmentation'] = compressed(mask())
  report = findings.Report(stop=False)
  index = coco.read_coco(write(data), report=report)
  assert not report.error_codes
  assert report.counts == {'A04': 18}
  assert (index.boxes == expected.boxes).all()
  # The evaluation takes the boxes from the whole content.
  content = coco.read_json(data.annotations)
  coco_input.check_truth(content, kind='bbox')
  assert [entry['bbox'] for entry in content['annotations']] == [
    entry['bbox'] for entry in with_boxes['annotations']
  ]


def test_fix_leaves_out_an_image_whose_name_is_a_list(data):
  data.images[0].update(file_name=[1], height=None)
  status, report = run(data, f'--fix={data.folder / "fixed.json"}')
  assert status == 0
  assert report['fix']['kept'] == {'images': [5, 6], 'annotations': [15, 18]}


def test_an_object_without_box_and_mask_is_an_error(data):
  set_all(bbox=None, segmentation=[])(data)
  with pytest.raises(InputError, match=r'annotation 1: A04: bbox is None'):
    coco.read_coco(write(data))


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('images\\0.png', r'I01: .*\(there is 0.png; python -m .*--fix=OUT.json'),
    ('/home/me/0.png', r'I15: .*\(there is 0.png; python -m .*--fix=OUT.json'),
  ],
)
def test_a_training_names_the_file_with_the_base_name(data, name, hint):
  data.images[0]['file_name'] = name
  config = default_config()
  config.data.train.images = str(data.images_dir)
  config.data.train.annotations = str(write(data))
  with pytest.raises(InputError, match=hint):
    train_start.read_training_set(config)


def test_counts_that_are_the_text_of_bytes_are_called_that(data):
  rle = compressed(mask())
  data.first['segmentation'] = rle | {'counts': str(rle['counts'].encode())}
  with pytest.raises(InputError, match=r'A09: .*the text of a bytes object'):
    coco.read_coco(write(data))


@pytest.mark.parametrize(
  ('segmentation', 'area', 'expected'),
  [
    # A figure eight, whose two halves cancel out in the shoelace formula.
    ([[10, 10, 30, 30, 30, 10, 10, 30]], 200, 200),
    # The part left of the image does not count.
    ([[-50, 10, 10, 10, 10, 30, -50, 30]], 200, 200),
    ([[-50, 10, 10, 10, 10, 30, -50, 30]], None, 200),
    ([[10, 10, 30, 10, 30, 30, 10, 30]] * 2, None, 400),
    ([[10, 10, 30, 10, 30, 30, 10, 30]], 9999, 400),
  ],
)
def test_the_area_is_the_number_of_pixels(data, segmentation, area, expected):
  data.first.update(segmentation=segmentation, area=area)
  data.first['bbox'] = [10, 10, 20, 20]
  if segmentation[0][0] < 0:
    data.first['bbox'] = [0, 10, 10, 20]
  _, fixed = fix(data)
  assert fixed['annotations'][0]['area'] == expected


def test_areas_and_boxes_are_those_of_the_filled_mask():
  rng = np.random.default_rng(0)
  for _ in range(100):
    height, width = rng.integers(1, 40, 2).tolist()
    polygons = [
      (rng.random(2 * rng.integers(3, 9)) * 60 - 10).tolist()
      for _ in range(rng.integers(1, 4))
    ]
    filled = outlines.fill_outline(
      *outlines.polygons_to_outline(polygons), height, width
    )
    assert (mask_values.decode_mask(polygons, height, width) == filled).all()
    assert mask_values.mask_area(polygons, height, width) == filled.sum()
    rle = mask_values.encode_mask(filled)
    assert (mask_values.decode_mask(rle, height, width) == filled).all()
    box = mask_values.mask_box(rle, height, width)
    if not filled.any():
      assert box is None
      continue
    rows, columns = np.nonzero(filled)
    assert box == [
      columns.min(),
      rows.min(),
      np.ptp(columns) + 1,
      np.ptp(rows) + 1,
    ]


def test_a_polygon_with_a_hole_is_not_filled():
  outer, inner = [[0, 0], [9, 0], [9, 9]], [[4, 1], [8, 1], [8, 4]]
  wrong = [[outer, inner]]
  assert segmentation_repairs.repair_segmentation(wrong, None, 10, 10) == (
    wrong,
    '',
    '',
  )


FIELD_CASES = pathlib.Path(__file__).parents[3] / 'shared/field_cases/check'


@pytest.mark.skipif(
  not FIELD_CASES.exists(), reason='needs ../shared/field_cases'
)
@pytest.mark.parametrize(
  'name',
  [
    *('03_ls_backslash', '03d_absolute', '03g_percent', '05_no_bbox'),
    *('06_no_size', '07_string_image_id_in_ann', '07e_category_id_float_table'),
    *('08_counts_str_of_bytes', '08c_list_of_rle', '08d_pairs'),
    *('09_normalised', '13_polygons_beyond_tile', '42_unequal_eight'),
    '95_category_id_list',
  ],
)
def test_fix_repairs_a_case_of_the_field(name, tmp_path):
  arguments = [
    f'--images={FIELD_CASES / name / "images"}',
    f'--out={tmp_path / "out"}',
    '--workers=1',
  ]
  before = json.loads((FIELD_CASES / name / 'a.json').read_text())
  fixed = tmp_path / 'fixed.json'
  file = FIELD_CASES / name / 'a.json'
  status = command_line.main(
    [*arguments, f'--annotations={file}', f'--fix={fixed}']
  )
  assert status == 0
  after = json.loads(fixed.read_text())
  for key in ('images', 'annotations', 'categories'):
    assert len(after[key]) == len(before[key])
  report = json.loads((tmp_path / 'out/report.json').read_text())
  assert (
    bool(report['fix']['changes']) == (after != before) or name[:3] == '07e'
  )
  assert command_line.main([*arguments, f'--annotations={fixed}']) == 0
  again = json.loads((tmp_path / 'out/report.json').read_text())
  assert not [f for f in again['findings'] if f['level'] == 'error']
