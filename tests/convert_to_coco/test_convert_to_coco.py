"""Tests of the tool convert_to_coco, through its command line."""

import json
import math
import re
import subprocess
import sys

import conversion
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pycocotools.coco import COCO
import pytest

from maskrcnn_jax.convert_to_coco import recognition

TRIANGLE = [(1, 1), (7, 1), (7, 5)]


@pytest.fixture
def folder(tmp_path):
  """A folder with the images a.png and sub/b.jpg of 10x12 pixels."""
  (tmp_path / 'images' / 'sub').mkdir(parents=True)
  for name in ('a.png', 'sub/b.jpg'):
    Image.new('RGB', (12, 10)).save(tmp_path / 'images' / name)
  return tmp_path


def run(folder, kind, annotations, *options):
  """Runs the tool; returns its exit status and the printed texts."""
  return conversion.run(
    kind,
    f'--images={folder / "images"}',
    f'--annotations={annotations}',
    f'--out={folder / "out" / "coco.json"}',
    *options,
  )


def converted(folder, kind, annotations, *options):
  """Converts annotations.

  Returns:
    The written file as pycocotools reads it, and the printed text.
  """
  done = run(folder, kind, annotations, *options)
  assert done.returncode == 0, done.stderr
  return COCO(str(folder / 'out' / 'coco.json')), done.stdout


def objects_of(coco, name):
  """Returns the annotations of the image `name`, by their class."""
  (image,) = (i for i in coco.dataset['images'] if i['file_name'] == name)
  assert (image['height'], image['width']) == (10, 12)
  found = {}
  for annotation in coco.imgToAnns[image['id']]:
    class_ = coco.cats[annotation['category_id']]['name']
    found.setdefault(class_, []).append(annotation)
  return found


def write_json(path, content):
  path.write_text(json.dumps(content))
  return path


def via(*regions, name='a.png'):
  return {
    f'{name}123': {
      'filename': name,
      'size': 123,
      'file_attributes': {},
      'regions': [
        {'shape_attributes': shape, 'region_attributes': attributes}
        for shape, attributes in regions
      ],
    }
  }


POLYGON = {
  'name': 'polygon',
  'all_points_x': [x for x, _ in TRIANGLE],
  'all_points_y': [y for _, y in TRIANGLE],
}


@pytest.mark.parametrize('version', [1, 2, 'project'])
def test_via_polygons(folder, version):
  content = via((POLYGON, {'kind': 'date'}), (POLYGON, {'kind': 'fig '}))
  content |= via((POLYGON, {'kind': {'date': True}}), name='b.jpg')
  if version == 1:
    for entry in content.values():
      entry['regions'] = dict(enumerate(entry['regions']))
  if version == 'project':
    content = {'_via_settings': {}, '_via_img_metadata': content}
  coco, printed = converted(
    folder, 'via', write_json(folder / 'via.json', content)
  )
  assert '2 images, 3 objects' in printed
  assert '2 date' in printed
  assert [c['name'] for c in coco.dataset['categories']] == ['date', 'fig']
  (date,) = objects_of(coco, 'a.png')['date']
  assert date['segmentation'] == [[1, 1, 7, 1, 7, 5]]
  assert date['bbox'] == [1, 1, 6, 4]
  assert date['area'] == 12
  assert list(objects_of(coco, 'sub/b.jpg')) == ['date']


def test_via_other_shapes(folder):
  content = via(
    ({'name': 'rect', 'x': 1, 'y': 2, 'width': 3, 'height': 4}, {}),
    ({'name': 'circle', 'cx': 5, 'cy': 5, 'r': 4}, {}),
    (
      {
        'name': 'ellipse',
        'cx': 6,
        'cy': 5,
        'rx': 4,
        'ry': 2,
        'theta': math.pi / 2,
      },
      {},
    ),
    ({'name': 'point', 'cx': 5, 'cy': 5}, {}),
  )
  coco, printed = converted(
    folder,
    'via',
    write_json(folder / 'via.json', content),
    '--class_name=thing',
  )
  rectangle, circle, ellipse = objects_of(coco, 'a.png')['thing']
  assert rectangle['bbox'] == [1, 2, 3, 4]
  assert rectangle['area'] == 12
  assert_allclose(circle['bbox'], [1, 1, 8, 8], atol=1e-9)
  # 52 pixels have their centers within 4 pixels of (5, 5).
  assert circle['area'] == 52
  assert_allclose(ellipse['bbox'], [4, 1, 4, 8], atol=1e-9)
  assert '1 regions of the kind point, left out' in printed


def shape(label='date', points=TRIANGLE, **more):
  return {'label': label, 'points': points, 'shape_type': 'polygon'} | more


def labelme(*shapes, name='a.png', **more):
  return {
    'version': '5.0',
    'imagePath': f'..\\images\\{name}',
    'imageHeight': 10,
    'imageWidth': 12,
    'shapes': list(shapes),
  } | more


def test_labelme_shapes(folder):
  (folder / 'json').mkdir()
  write_json(
    folder / 'json' / 'a.json',
    labelme(
      shape(),
      shape(group_id=3),
      shape(group_id=3),
      shape('fig', group_id=3),
      shape(points=[(6, 5), (2, 1)], shape_type='rectangle'),
      shape(points=[(5, 5), (5, 8)], shape_type='circle'),
      shape(points=[(5, 5)], shape_type='point'),
    ),
  )
  write_json(folder / 'json' / 'b.json', labelme(name='b.jpg'))
  coco, printed = converted(folder, 'labelme', folder / 'json')
  found = objects_of(coco, 'a.png')
  alone, group, rectangle, circle = found['date']
  assert alone['segmentation'] == [[1, 1, 7, 1, 7, 5]]
  assert len(group['segmentation']) == 2
  # Two equal polygons are one area.
  assert group['area'] == alone['area'] == 12
  assert rectangle['bbox'] == [2, 1, 4, 4]
  assert_allclose(circle['bbox'], [2, 2, 6, 6], atol=1e-9)
  assert len(found['fig']) == 1
  assert objects_of(coco, 'sub/b.jpg') == {}
  assert '1 shapes of the kind point, left out' in printed


def masks():
  """Returns the masks of two objects in an image of 10x12 pixels."""
  one, other = np.zeros((2, 10, 12), bool)
  one[2:5, 3:9] = True
  other[7:, :2] = True
  return one, other


def write_masks(folder, kind):
  one, other = masks()
  place = folder / 'masks'
  place.mkdir(exist_ok=True)
  if kind == 'folder':
    (place / 'a').mkdir()
    for i, mask in enumerate((one, other, one & other)):
      Image.fromarray(mask).save(place / 'a' / f'{i}.png')
    return
  values = np.where(one, 1, 0) + np.where(other, 200, 0)
  match kind:
    case 'grey':
      image = Image.fromarray(values.astype(np.uint8))
    case '16 bit':
      image = Image.fromarray((values * 300).astype(np.uint16))
    case 'palette':
      image = Image.fromarray(values.astype(np.uint8), 'L').convert('P')
      image.putpalette([9, 9, 9] * 256)
    case 'colours':
      colours = one[..., None] * [255, 0, 0] + other[..., None] * [0, 0, 1]
      image = Image.fromarray(colours.astype(np.uint8))
    case 'transparent':
      colours = (
        one[..., None] * [9, 0, 0, 255]
        + other[..., None] * [0, 9, 0, 255]
        + ~(one | other)[..., None] * [7, 7, 7, 0]
      )
      image = Image.fromarray(colours.astype(np.uint8), 'RGBA')
  image.save(place / 'a.png')


@pytest.mark.filterwarnings('ignore:.mode. parameter is deprecated')
@pytest.mark.parametrize(
  'kind', ['folder', 'grey', '16 bit', 'palette', 'colours', 'transparent']
)
def test_masks_of_every_kind(folder, kind):
  write_masks(folder, kind)
  coco, printed = converted(
    folder, 'masks', folder / 'masks', '--class_name=cell'
  )
  found = [coco.annToMask(a) for a in objects_of(coco, 'a.png')['cell']]
  one, other = masks()
  if found[0].sum() != one.sum():
    found.reverse()  # The order of colors as numbers is not tested.
  assert_array_equal(found, [one, other])
  boxes = [a['bbox'] for a in objects_of(coco, 'a.png')['cell']]
  assert sorted(boxes) == [[0, 7, 2, 3], [3, 2, 6, 3]]
  assert ('1 masks without a pixel' in printed) == (kind == 'folder')


def test_masks_in_a_folder_for_each_class(folder):
  one, other = masks()
  for name, mask in (('date', one), ('fig', other)):
    (folder / 'masks' / name).mkdir(parents=True)
    Image.fromarray(mask).save(folder / 'masks' / name / 'a.png')
  coco, _ = converted(folder, 'masks', folder / 'masks', '--class_folders')
  found = objects_of(coco, 'a.png')
  assert_array_equal(coco.annToMask(found['date'][0]), one)
  assert_array_equal(coco.annToMask(found['fig'][0]), other)


def no_images(folder):
  for path in (folder / 'images').rglob('*.*'):
    path.unlink()


@pytest.mark.parametrize(
  ('kind', 'content', 'message'),
  [
    ('via', [], 'A25: .* is no VIA export'),
    ('via', {}, 'A25: .* is no VIA export'),
    ('via', {'images': []}, 'A25: .* is no VIA export'),
    ('via', via(({'name': 'polygon'}, {})), 'region of a.png is damaged'),
    ('via', via((POLYGON | {'all_points_x': [1, 2, 'a']}, {})), 'damaged'),
    ('via', via((POLYGON | {'all_points_x': [1, 2]}, {})), 'damaged'),
    (
      'via',
      via((POLYGON | {'all_points_x': [1, 2, math.nan]}, {})),
      'not finite',
    ),
    (
      'via',
      via((POLYGON, {'a': 'x', 'b': 'y'})),
      'a region of a.png has the attributes a, b; give --class_attribute',
    ),
    (
      'via',
      via((POLYGON, {'a': ''})),
      "a region of a.png has no class: its attribute 'a' is ''",
    ),
    (
      'via',
      via((POLYGON, ['a'])),
      "A25: .* a region of a.png .*its region_attributes are .'a'.; they must",
    ),
    ('via', via((POLYGON, {}), name='z.png'), 'I01: .* 0 images of the'),
    ('via', via(), 'A23: there is not a single object'),
    ('labelme', {'shapes': 3}, 'A25: .* is no LabelMe file'),
    (
      'labelme',
      labelme(shape(points=[(1, 1), (2, 2)])),
      'A23: .*1 shapes of the kind polygon with too few points',
    ),
    ('labelme', labelme(shape(''), imageWidth=12), 'shape 0 has no label'),
    ('labelme', labelme(shape(), imageHeight=99), 'I05: .* 99x12'),
    ('labelme', labelme(3), 'shape 0 is damaged'),
    ('labelme', labelme(shape(group_id=[1])), 'A25: .*its group_id is .1.;'),
    ('labelme', labelme(shape(group_id={'a': 1})), 'A25: .*its group_id is'),
  ],
)
def test_bad_annotations_are_named(folder, kind, content, message):
  done = run(folder, kind, write_json(folder / 'in.json', content))
  assert done.returncode == 2
  line, *more = done.stderr.splitlines()
  assert len(more) <= 1  # The command that explains a code.
  assert line.startswith('error: ')
  assert re.search(message, line)


def two_for_one(folder):
  (folder / 'masks' / 'a').mkdir()
  Image.fromarray(masks()[0]).save(folder / 'masks' / 'a' / '0.png')


def other_size(folder):
  Image.new('L', (9, 9)).save(folder / 'masks' / 'a.png')


def other_name(folder):
  Image.new('L', (9, 9)).save(folder / 'masks' / 'z.png')


def not_an_image(folder):
  (folder / 'masks' / 'a.png').write_text('<html>')


def empty_folder(folder):
  (folder / 'masks' / 'a.png').unlink()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (two_for_one, 'A20: both'),
    (other_size, 'A09: .* has 9x9 pixels .* its image has 10x12'),
    (
      other_name,
      'I01: 1 masks belong to no image, such as .*z.png, and 1 images',
    ),
    (not_an_image, 'I02: .* is no mask'),
    (empty_folder, r'I01: there are no \*.png'),
    (no_images, 'I01: there are no images in'),
  ],
)
def test_bad_masks_are_named(folder, change, message):
  write_masks(folder, 'grey')
  change(folder)
  done = run(folder, 'masks', folder / 'masks')
  assert done.returncode == 2
  line, *more = done.stderr.splitlines()
  assert len(more) <= 1  # The command that explains a code.
  assert re.search(message, line)


def test_files_and_folders_that_are_missing_are_named(folder):
  done = run(folder, 'via', folder / 'none.json')
  assert done.returncode == 2
  assert 'Cannot read' in done.stderr
  done = run(folder, 'via', folder / 'none.json', '--images=/nowhere')
  assert done.returncode == 2
  assert done.stderr == (
    'error: I01: there is no folder of images /nowhere.\n'
    'For more about I01: python -m maskrcnn_jax.explain I01\n'
  )


def test_help_names_all_formats():
  done = subprocess.run(
    [sys.executable, '-m', 'maskrcnn_jax.convert_to_coco', '--help'],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0
  for kind in recognition.FORMATS:
    assert f'{kind} --images=DIR' in done.stdout
