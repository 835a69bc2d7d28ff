"""Tests of inputs that people reported, through the converter's command line.

Each test writes its own small files.
"""

import base64
import io
import json
import os
import pathlib

from conversion import convert_folder, run
import numpy as np
from numpy.testing import assert_array_equal
from PIL import Image
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.data import coco
from maskrcnn_jax.data.images import decode_image

HEIGHT, WIDTH = 40, 60

CASES = pathlib.Path(__file__).parents[2] / '../shared/field_cases/convert'


@pytest.fixture
def folder(tmp_path):
  """A folder with the image images/a.jpg, 40x60, and an empty folder notes."""
  (tmp_path / 'images').mkdir()
  (tmp_path / 'notes').mkdir()
  add_image(tmp_path, 'a.jpg')
  return tmp_path


def add_image(folder, name, color=(9, 9, 9)):
  Image.new('RGB', (WIDTH, HEIGHT), color).save(folder / 'images' / name)


def labelme(*shapes, name='a.jpg', height=HEIGHT, width=WIDTH):
  return json.dumps(
    {
      'imagePath': name,
      'imageHeight': height,
      'imageWidth': width,
      'shapes': list(shapes),
    }
  )


def shape(points, kind='polygon', label='cell', **more):
  return {'label': label, 'points': points, 'shape_type': kind} | more


SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]


def masks_of(content):
  """Returns the masks of the annotations, decoded by pycocotools."""
  sizes = {i['id']: (i['height'], i['width']) for i in content['images']}
  masks = []
  for annotation in content['annotations']:
    height, width = sizes[annotation['image_id']]
    outline = annotation['segmentation']
    if isinstance(outline, list):
      outline = mask_api.merge(mask_api.frPyObjects(outline, height, width))
    masks.append(mask_api.decode(outline) > 0)
  return masks


def png(values):
  file = io.BytesIO()
  Image.fromarray(values).save(file, 'PNG')
  return base64.b64encode(file.getvalue()).decode()


def test_labelme_mask_is_pasted_at_its_points(folder):
  part = np.zeros((5, 7), bool)
  part[1:4, 2:] = True
  shapes = shape([[3, 30], [9, 34]], 'mask', mask=png(part))
  (folder / 'notes' / 'a.json').write_text(labelme(shapes))
  content, _ = convert_folder(folder, folder / 'notes')
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[30:35, 3:10] = part
  assert_array_equal(masks_of(content), [expected])


def test_labelme_mask_of_another_size_than_its_points_is_named(folder):
  shapes = shape([[3, 30], [9, 35]], 'mask', mask=png(np.ones((5, 7), bool)))
  (folder / 'notes' / 'a.json').write_text(labelme(shapes))
  done = run(
    f'--images={folder / "images"}',
    f'--annotations={folder / "notes"}',
    f'--out={folder / "x.json"}',
  )
  assert done.returncode == 2
  assert 'its mask has 7x5 pixels (width x height), but' in done.stderr


def test_labelme_mask_and_polygon_of_a_group_are_one_object(folder):
  (folder / 'notes' / 'a.json').write_text(
    labelme(
      shape(
        [[30, 10], [32, 11]],
        'mask',
        mask=png(np.ones((2, 3), bool)),
        group_id=1,
      ),
      shape(SQUARE, group_id=1),
    )
  )
  content, _ = convert_folder(folder, folder / 'notes')
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[10:20, 10:20] = True
  expected[10:12, 30:33] = True
  assert_array_equal(masks_of(content), [expected])
  assert content['annotations'][0]['area'] == 106


@pytest.mark.parametrize(
  ('points', 'kind'),
  [
    (SQUARE, 'rectangle'),
    ([SQUARE[0], SQUARE[2]], 'rectangle'),
    ([SQUARE[2], SQUARE[0]], 'rectangle'),
    ([SQUARE[i] for i in (0, 2, 1, 3)], 'rectangle'),
    (SQUARE, 'rotation'),
  ],
)
def test_labelme_rectangles_of_two_and_four_points(folder, points, kind):
  (folder / 'notes' / 'a.json').write_text(labelme(shape(points, kind)))
  content, printed = convert_folder(folder, folder / 'notes')
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[10:20, 10:20] = True
  assert_array_equal(masks_of(content), [expected])
  assert '1 rectangles, written as masks that fill them' in printed


def test_a_rotated_rectangle_keeps_its_corners(folder):
  corners = [[20, 10], [30, 20], [20, 30], [10, 20]]
  (folder / 'notes' / 'a.json').write_text(labelme(shape(corners, 'rotation')))
  content, _ = convert_folder(folder, folder / 'notes')
  (annotation,) = content['annotations']
  assert annotation['segmentation'] == [[20, 10, 30, 20, 20, 30, 10, 20]]


@pytest.mark.parametrize(
  ('stray', 'reason'),
  [
    (shape([[1, 1], [5, 1]]), 'kind polygon with too few points'),
    (shape([]), 'kind polygon with too few points'),
    (shape([[1, 1]], 'rectangle'), 'kind rectangle with too few points'),
    (shape([[1, 1], [5, 1], [9, 1]]), 'without a pixel inside their image'),
    (shape([[70, 1], [75, 1], [79, 9]]), 'without a pixel inside their image'),
    (shape([[1, 1], [5, 1]], 'linestrip'), 'shapes of the kind linestrip'),
    (shape(SQUARE, label='_background_'), 'with the label _background_'),
    (shape(SQUARE, label='__ignore__'), 'with the label __ignore__'),
  ],
)
def test_a_stray_of_labelme_is_left_out_and_counted(folder, stray, reason):
  (folder / 'notes' / 'a.json').write_text(labelme(shape(SQUARE), stray))
  content, printed = convert_folder(folder, folder / 'notes')
  assert len(content['annotations']) == 1
  assert [c['name'] for c in content['categories']] == ['cell']
  (line,) = (line for line in printed.splitlines() if reason in line)
  assert line.split()[0] == '1'
  assert line.endswith(', left out')


def test_images_without_objects_are_counted(folder):
  (folder / 'notes' / 'a.json').write_text(labelme(shape(SQUARE)))
  for name in ('b', 'c', 'd'):
    add_image(folder, f'{name}.jpg')
  (folder / 'notes' / 'b.json').write_text(labelme(name='b.jpg'))
  content, printed = convert_folder(folder, folder / 'notes')
  assert len(content['images']) == 4
  assert '4 images, 1 objects' in printed
  assert ' 2 images without annotations, kept as background' in printed
  assert ' 1 images annotated as empty, kept as background' in printed


def test_one_unreadable_file_is_left_out_with_its_image(folder):
  for name in ('a', 'b', 'c', 'd'):
    add_image(folder, f'{name}.jpg')
    (folder / 'notes' / f'{name}.json').write_text(
      labelme(shape(SQUARE), name=f'{name}.jpg')
    )
  (folder / 'notes' / 'b.json').write_text('{"shapes"')
  (folder / 'images' / 'c.jpg').write_bytes(b'')
  content, printed = convert_folder(folder, folder / 'notes')
  # b.jpg must not become a background image.
  assert [i['file_name'] for i in content['images']] == ['a.jpg', 'd.jpg']
  assert ' 1 images cannot be read, left out' in printed
  assert 'I03: ' in printed
  assert ' 1 files or entries of annotations cannot be used, left' in printed
  assert 'b.json is not JSON' in printed


def test_many_unreadable_files_are_an_error(folder):
  for name in ('a', 'b', 'c'):
    add_image(folder, f'{name}.jpg')
    (folder / 'notes' / f'{name}.json').write_text('{"shapes"')
  (folder / 'notes' / 'a.json').write_text(labelme(shape(SQUARE)))
  done = run(
    f'--images={folder / "images"}',
    f'--annotations={folder / "notes"}',
    f'--out={folder / "x.json"}',
  )
  assert done.returncode == 2
  assert '2 of 3 files or images cannot be used' in done.stderr
  assert not (folder / 'x.json').exists()


def test_the_same_file_name_in_two_folders(folder):
  for name, left in (('one', 10), ('two', 30)):
    (folder / 'images' / name).mkdir()
    (folder / 'notes' / name).mkdir()
    add_image(folder, f'{name}/b.jpg')
    points = [[x + left, y] for x, y in SQUARE]
    (folder / 'notes' / name / 'b.json').write_text(
      labelme(shape(points), name='b.jpg')
    )
  content, _ = convert_folder(folder, folder / 'notes')
  names = {i['id']: i['file_name'] for i in content['images']}
  boxes = {names[a['image_id']]: a['bbox'] for a in content['annotations']}
  assert boxes == {
    'one/b.jpg': [20, 10, 10, 10],
    'two/b.jpg': [40, 10, 10, 10],
  }


def save_turned(path, upright, orientation):
  """Saves a picture so that its EXIF orientation makes it upright.

  The standard defines orientation o by the place of the first stored row and
  column in the upright picture; these are the inverse operations.
  """
  stored = {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.swapaxes(0, 1),
    6: np.rot90(upright, 1),
    7: upright[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(upright, -1),
  }[orientation]
  image = Image.fromarray(np.ascontiguousarray(stored))
  exif = Image.Exif()
  exif[274] = orientation
  image.save(path, exif=exif)
  return stored


@pytest.mark.parametrize(
  ('orientation', 'square', 'drawn_on'),
  [
    *((o, square, 'upright') for o in range(1, 9) for square in (False, True)),
    # Only here does the size tell that the stored pixels were annotated.
    *((o, False, 'stored') for o in (5, 6, 7, 8)),
  ],
)
def test_every_exif_orientation(folder, orientation, square, drawn_on):
  # The object is white, in a corner of its own.
  side = HEIGHT if square else WIDTH
  upright = np.zeros((HEIGHT, side, 3), np.uint8)
  upright[4:12, 25:35] = 255
  path = folder / 'images' / 'a.jpg'
  path.unlink()
  path = path.with_suffix('.png')
  stored = save_turned(path, upright, orientation)
  turns_size = stored.shape != upright.shape
  pixels = upright if drawn_on == 'upright' else stored
  rows, columns = np.nonzero(pixels[..., 0])
  x1, x2 = int(columns.min()), int(columns.max()) + 1
  y1, y2 = int(rows.min()), int(rows.max()) + 1
  part = np.ones((y2 - y1, x2 - x1), bool)
  (folder / 'notes' / 'a.json').write_text(
    labelme(
      shape([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]),
      shape([[x1, y1], [x2 - 1, y2 - 1]], 'mask', mask=png(part)),
      name='a.png',
      height=pixels.shape[0],
      width=pixels.shape[1],
    )
  )
  content, printed = convert_folder(folder, folder / 'notes')
  (entry,) = content['images']
  assert (entry['height'], entry['width']) == upright.shape[:2]
  # A training decodes the image with the size in the annotations.
  shown = decode_image(path, expected_size=upright.shape[:2])
  assert_array_equal(shown, upright)
  for mask in masks_of(content):
    assert_array_equal(mask, shown[..., 0] > 0)
  unproven = orientation > 1 and not turns_size
  assert ('1 images have an EXIF orientation' in printed) == unproven
  assert ('1 images were annotated without their EXIF' in printed) == (
    drawn_on == 'stored'
  )


def via(*regions):
  return json.dumps({'a.jpg1': {'filename': 'a.jpg', 'regions': list(regions)}})


def region(points=SQUARE, **attributes):
  xs, ys = zip(*points, strict=True)
  polygon = {'name': 'polygon', 'all_points_x': xs, 'all_points_y': ys}
  return {'shape_attributes': polygon, 'region_attributes': attributes}


def test_a_polygon_of_two_points_in_via_is_left_out(folder):
  path = folder / 'v.json'
  path.write_text(via(region(name='cat'), region([[1, 1], [2, 2]], name='cat')))
  content, printed = convert_folder(folder, path)
  assert len(content['annotations']) == 1
  assert '1 regions of the kind polygon with too few points, left' in printed


@pytest.mark.parametrize(
  ('regions', 'message'),
  [
    (
      [region(name='cat', quality='good')],
      'v.json: a region of a.jpg has the attributes name, quality; give'
      ' --class_attribute=NAME',
    ),
    (
      [region(name='cat'), region(quality='good')],
      'v.json: the regions have the attributes name, quality; give'
      ' --class_attribute=NAME',
    ),
    (
      [region(name='cat'), region()],
      "v.json: a region of a.jpg has no class: its attribute 'name' is None;"
      ' give it one in VIA, or give --class_name=NAME',
    ),
    (
      [region(name={'cat': True, 'dog': True})],
      "a region of a.jpg has several classes: its attribute 'name' is cat, dog",
    ),
  ],
)
def test_classes_of_via_that_are_not_clear(folder, regions, message):
  path = folder / 'v.json'
  path.write_text(via(*regions))
  done = run(
    f'--images={folder / "images"}',
    f'--annotations={path}',
    f'--out={folder / "x.json"}',
  )
  assert done.returncode == 2
  assert message in done.stderr
  assert 'is damaged' not in done.stderr


def test_class_name_is_for_regions_without_a_class(folder):
  path = folder / 'v.json'
  path.write_text(via(region(name='cat'), region(), region(name='')))
  content, _ = convert_folder(folder, path, '--class_name=thing')
  assert [c['name'] for c in content['categories']] == ['cat', 'thing']
  assert len(content['annotations']) == 3


def save_mask(folder, values, mode='L'):
  image = Image.fromarray(values.astype(np.uint8))
  if mode == 'P':
    image.putpalette([7] * 768)
  image.save(folder / 'notes' / 'a.png')


def test_255_of_a_palette_mask_is_void(folder):
  values = np.zeros((HEIGHT, WIDTH), int)
  values[4:16, 4:16] = 255
  values[5:15, 5:15] = 1
  values[20:30, 20:30] = 2
  save_mask(folder, values, 'P')
  content, printed = convert_folder(folder, folder / 'notes')
  assert_array_equal(masks_of(content), [values == 1, values == 2])
  assert '1 masks have void pixels, which belong to no object' in printed


def test_the_color_of_void_is_void(folder):
  values = np.zeros((HEIGHT, WIDTH, 3), int)
  values[4:16, 4:16] = (224, 224, 192)
  values[5:15, 5:15] = (128, 0, 0)
  save_mask(folder, values)
  content, printed = convert_folder(folder, folder / 'notes')
  assert_array_equal(
    masks_of(content), [values[..., 1:].sum(2) + values[..., 0] == 128]
  )
  assert '1 masks have void pixels' in printed


@pytest.mark.parametrize('mode', ['L', 'P'])
def test_255_as_the_only_value_is_an_object(folder, mode):
  values = np.zeros((HEIGHT, WIDTH), int)
  values[5:15, 5:15] = 255
  save_mask(folder, values, mode)
  content, printed = convert_folder(folder, folder / 'notes')
  assert_array_equal(masks_of(content), [values == 255])
  assert 'void' not in printed


def disk(radius=9.0, soft=0.0, level=255.0):
  """Returns a gray disk whose edge is `soft` pixels wide."""
  y, x = np.mgrid[:HEIGHT, :WIDTH]
  distance = np.hypot(y - 19.5, x - 29.5)
  if not soft:
    return np.where(distance < radius, level, 0).round()
  return (level * np.clip((radius - distance) / soft + 0.5, 0, 1)).round()


def halved_square():
  """Returns a square that was resized with bilinear interpolation."""
  values = np.zeros((HEIGHT * 3, WIDTH * 3), np.uint8)
  values[20:71, 31:100] = 200
  small = Image.fromarray(values).resize(
    (WIDTH, HEIGHT), Image.Resampling.BICUBIC
  )
  return np.asarray(small)


def jpeg_disk():
  """Returns a disk that was compressed as JPEG."""
  file = io.BytesIO()
  Image.fromarray(disk().astype(np.uint8)).save(file, 'JPEG', quality=50)
  return np.asarray(Image.open(file))


@pytest.mark.parametrize(
  'values',
  [
    disk(soft=4),
    disk(soft=12),
    disk(soft=2, level=90),
    halved_square(),
    jpeg_disk(),
    np.stack([disk(soft=4), 0 * disk(), disk(soft=4) // 2], axis=2),
  ],
)
def test_a_smoothed_mask_is_refused(folder, values):
  save_mask(folder, values)
  done = run(
    f'--images={folder / "images"}',
    f'--annotations={folder / "notes"}',
    f'--out={folder / "x.json"}',
  )
  assert done.returncode == 2
  assert 'look like smoothed edges' in done.stderr


def many_rings():
  """Returns 1 pixel wide rings of 5 objects in each other."""
  values = np.zeros((HEIGHT, WIDTH), int)
  for i, number in enumerate((3, 1, 5, 2, 4)):
    values[4 + 3 * i : 36 - 3 * i, 4 + 3 * i : 50 - 3 * i] = number
  return values


def tiles(side):
  """Returns touching squares; each is an object, in random order."""
  rows, columns = HEIGHT // side, WIDTH // side
  numbers = np.random.default_rng(1).permutation(rows * columns) % 255 + 1
  values = np.zeros((HEIGHT, WIDTH), int)
  grid = numbers.reshape(rows, columns).repeat(side, 0).repeat(side, 1)
  values[: grid.shape[0], : grid.shape[1]] = grid
  return values


@pytest.mark.parametrize('values', [many_rings(), tiles(4), tiles(8), disk()])
def test_sharp_masks_of_touching_objects_are_read(folder, values):
  save_mask(folder, values)
  content, _ = convert_folder(folder, folder / 'notes')
  assert len(content['annotations']) == len(np.unique(values[values > 0]))


def test_areas_are_those_that_the_reader_counts(folder):
  # A bow tie, and two overlapping polygons that reach over the edge.
  (folder / 'notes' / 'a.json').write_text(
    labelme(
      shape([[10, 10], [30, 30], [30, 10], [10, 30]]),
      shape([[-5, 2], [20, 2], [20, 9], [-5, 9]], group_id=1),
      shape([[10, 2], [30, 2], [30, 9], [10, 9]], group_id=1),
    )
  )
  content, _ = convert_folder(folder, folder / 'notes')
  bow_tie, pair = content['annotations']
  # Row i of a triangle of the bow tie has as many pixels as its distance from
  # the middle: twice 1 + ... + 10, in the left and in the right half.
  assert bow_tie['area'] == pytest.approx(200, abs=20)
  assert pair['area'] == 30 * 7
  assert pair['bbox'] == [0, 2, 30, 7]
  index = coco.read_coco(folder / 'coco.json')
  assert len(index.classes) == 2


@pytest.mark.skipif(not CASES.exists(), reason='needs ../shared/field_cases')
@pytest.mark.parametrize(
  ('case', 'status', 'printed'),
  [
    ('voc', 0, '1 images, 2 objects'),
    ('soft', 2, 'look like smoothed edges'),
    ('lm_exif', 0, '1 images have an EXIF orientation'),
    ('lm_mask', 0, '1 images, 1 objects'),
    ('lm_2pt', 0, 'with too few points, left out'),
    ('lm_bg', 0, 'with the label _background_, left out'),
    ('via_polygon_2_points', 0, 'with too few points, left out'),
    ('via_two_attributes', 2, 'give --class_attribute='),
    ('via_one_region_without_class_among_named', 2, 'has no class'),
  ],
)
def test_reported_files(case, status, printed, tmp_path):
  place = CASES / case
  (source,) = (p for p in place.iterdir() if p.name in ('j', 'm', 'v.json'))
  done = run(
    f'--images={place / "images"}',
    f'--annotations={source}',
    f'--out={tmp_path / "x.json"}',
  )
  assert done.returncode == status
  assert printed in done.stdout + done.stderr


def test_a_smoothed_mask_of_one_object_is_cut_at_half(folder):
  (folder / 'notes' / 'a').mkdir()
  soft = Image.fromarray(disk(soft=4).astype(np.uint8))
  soft.save(folder / 'notes' / 'a' / '0.png')
  content, printed = convert_folder(folder, folder / 'notes')
  assert_array_equal(masks_of(content), [disk() > 0])
  assert '1 masks of one object have smoothed edges' in printed


@pytest.mark.parametrize('drawn_on', ['upright', 'stored'])
def test_masks_of_a_turned_image(folder, drawn_on):
  upright = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  upright[4:12, 25:35] = 255
  (folder / 'images' / 'a.jpg').unlink()
  stored = save_turned(folder / 'images' / 'a.png', upright, 6)
  save_mask(folder, (upright if drawn_on == 'upright' else stored)[..., 0])
  content, _ = convert_folder(folder, folder / 'notes')
  assert_array_equal(masks_of(content), [upright[..., 0] > 0])


def test_an_outline_of_very_many_vertices_becomes_a_mask(folder):
  angles = np.linspace(0, 2 * np.pi, 40_000, endpoint=False)
  points = np.stack([30 + 9 * np.cos(angles), 20 + 9 * np.sin(angles)], axis=1)
  (folder / 'notes' / 'a.json').write_text(labelme(shape(points.tolist())))
  content, _ = convert_folder(folder, folder / 'notes')
  (mask,) = masks_of(content)
  y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
  assert_array_equal(mask, np.hypot(x - 30, y - 20) < 9)
  assert content['annotations'][0]['area'] == mask.sum()


def test_no_text_of_a_file_controls_the_terminal(folder):
  (folder / 'notes' / 'a.json').write_text(
    labelme(
      shape(SQUARE, label='\x1b[31mred\nblue'),
      shape(SQUARE, label='\ud800'),
      shape(SQUARE, 'line\x1b[2J'),
    )
  )
  content, printed = convert_folder(folder, folder / 'notes')
  assert '\x1b' not in printed
  assert '\\x1b[31mred\\nblue' in printed
  assert 'line\\x1b[2J' in printed
  # The names in the JSON are those of the annotations.
  assert content['categories'][0]['name'] == '\x1b[31mred\nblue'


def test_classes_that_differ_in_case_only_are_named(folder):
  (folder / 'notes' / 'a.json').write_text(
    labelme(shape(SQUARE, label='Cell'), shape(SQUARE))
  )
  _, printed = convert_folder(folder, folder / 'notes')
  assert 'Names that differ in case only: Cell, cell' in printed


def test_the_result_of_an_earlier_run_beside_the_annotations(folder):
  (folder / 'notes' / 'a.json').write_text(labelme(shape(SQUARE)))
  first, _ = convert_folder(folder, folder / 'notes')
  (folder / 'notes' / 'coco.json').write_text(json.dumps(first))
  second, printed = convert_folder(folder, folder / 'notes')
  assert second == first
  assert '1 files of COCO, left out' in printed


def bomb():
  """Returns a PNG of a gigapixel, in base64."""
  file = io.BytesIO()
  Image.new('1', (32_000, 32_000)).save(file, 'PNG')
  return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda path: os.mkfifo(path), 'is no regular file'),
    (lambda path: path.mkdir(), 'is no regular file'),
    (
      lambda path: path.write_text(
        labelme(shape([[0, 0], [31_999, 31_999]], 'mask', mask=bomb()))
      ),
      'its mask cannot be read',
    ),
    (
      lambda path: path.write_text(labelme(height=10**9, width=10**9)),
      'I05: ',
    ),
    (lambda path: path.write_bytes(b'\xff\xfe'), 'is no text in UTF-8'),
    (lambda path: path.write_text('[' * 100_000), 'is not JSON'),
  ],
)
def test_hostile_files_are_named(folder, make, message):
  make(folder / 'notes' / 'a.json')
  done = run(
    'labelme',
    f'--images={folder / "images"}',
    f'--annotations={folder / "notes"}',
    f'--out={folder / "x.json"}',
  )
  assert done.returncode == 2
  assert message in done.stderr
  assert len(done.stderr) < 600


def test_out_is_not_the_annotations(folder):
  path = folder / 'v.json'
  path.write_text(via(region(name='cat')))
  before = path.read_bytes()
  done = run(
    f'--images={folder / "images"}', f'--annotations={path}', f'--out={path}'
  )
  assert done.returncode == 2
  assert '--out is the file of --annotations' in done.stderr
  assert path.read_bytes() == before
