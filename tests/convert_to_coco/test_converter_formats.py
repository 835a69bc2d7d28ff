"""Tests of the formats of other programs, through the converter's command line.

The expected masks are written by hand or drawn by PIL.
"""

import itertools
import json

from conversion import convert_folder, run
import converter_fuzzing as fuzzing
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageDraw
import pytest
from test_converter_cases import HEIGHT, WIDTH, add_image, masks_of

from maskrcnn_jax.convert_to_coco import label_studio, recognition, voc


@pytest.fixture
def folder(tmp_path):
  """A folder with the images a.jpg and b.jpg, 40x60, and an empty folder."""
  (tmp_path / 'images').mkdir()
  (tmp_path / 'notes').mkdir()
  for name in ('a.jpg', 'b.jpg'):
    add_image(tmp_path, name)
  return tmp_path


def names_of(content):
  """Returns the class of each annotation."""
  names = {c['id']: c['name'] for c in content['categories']}
  return [names[a['category_id']] for a in content['annotations']]


def box_mask(x1, y1, x2, y2):
  mask = np.zeros((HEIGHT, WIDTH), bool)
  mask[y1:y2, x1:x2] = True
  return mask


def fails(folder, source, message, *options):
  done = run(
    *options,
    f'--images={folder / "images"}',
    f'--annotations={source}',
    f'--out={folder / "x.json"}',
  )
  assert done.returncode == 2
  assert message in done.stderr
  assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize('kind', recognition.FORMATS)
def test_every_format_is_recognised(tmp_path, kind):
  (tmp_path / 'images').mkdir()
  for name in fuzzing.NAMES:
    Image.new('RGB', (24, 16)).save(tmp_path / 'images' / f'{name}.jpg')
  for path, content in fuzzing.seeds(kind).items():
    path = tmp_path / 'notes' / path
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    path.write_bytes(content)
  content, printed = convert_folder(tmp_path, tmp_path / 'notes')
  assert printed.startswith(f'Format: {kind} (')
  again, printed = convert_folder(tmp_path, tmp_path / 'notes', kind)
  assert not printed.startswith('Format')
  assert again == content
  assert len(content['annotations']) >= 6


def test_annotations_of_no_or_of_several_formats(folder):
  fails(folder, folder / 'notes', 'is not known; give one of via, labelme,')
  fails(folder, folder / 'none', 'Cannot read')
  (folder / 'notes' / 'a.txt').write_text('0 .1 .1 .9 .2 .5 .8')
  (folder / 'notes' / 'annotations.xml').write_bytes(fuzzing.CVAT)
  fails(folder, folder / 'notes', 'several formats; give one of cvat, yolo')
  path = folder / 'coco.json'
  path.write_text('{"images": [], "annotations": []}')
  fails(folder, path, 'is COCO already')
  path = folder / 'x.zip'
  path.write_bytes(b'PK')
  fails(folder, path, 'is an archive; unpack it first')


# YOLO.


def write_yolo(folder, text='0 .25 .25 .5 .25 .5 .5 .25 .5\n', names='classes'):
  (folder / 'notes' / 'a.txt').write_text(text)
  match names:
    case 'classes':
      (folder / 'notes' / 'classes.txt').write_text('cat\ndog\n\n')
    case 'list':
      (folder / 'data.yaml').write_text('nc: 2\nnames: [cat, dog]\n')
    case 'dict':
      (folder / 'data.yaml').write_text('names:\n  1: dog\n  0: cat\n')
  return folder / 'notes'


@pytest.mark.parametrize('names', ['classes', 'list', 'dict', None])
def test_yolo_polygons(folder, names):
  options = () if names else ('--classes=cat,dog',)
  source = write_yolo(folder, names=names)
  content, printed = convert_folder(folder, source, *options)
  assert_array_equal(masks_of(content), [box_mask(15, 10, 30, 20)])
  assert [c['name'] for c in content['categories']] == ['cat', 'dog']
  assert names_of(content) == ['cat']
  assert '1 images without annotations, kept as background' in printed


def test_yolo_boxes_and_empty_files(folder):
  source = write_yolo(folder, '1 0.5 0.5 0.5 0.25\n\n')
  (source / 'b.txt').write_text('')
  content, printed = convert_folder(folder, source)
  assert_array_equal(masks_of(content), [box_mask(15, 15, 45, 25)])
  assert names_of(content) == ['dog']
  assert '1 rectangles, written as masks that fill them' in printed
  assert '1 images annotated as empty, kept as background' in printed


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('0 15 10 30 10 30 20', 'coordinate 30; the coordinates must be shares'),
    ('0 .1 .1 .2 .2 .3', 'a.txt, line 1 has 6 numbers'),
    ('0 .1 .1', 'a.txt, line 1 has 3 numbers'),
    ('0 .1 .1 .2 nan .3 .3', 'a coordinate is not finite'),
    ('cat .1 .1 .2 .2 .3 .3', "'cat' is no number"),
    ('0.5 .1 .1 .2 .2 .3 .3', 'the class is 0.5'),
    ('2 .1 .1 .2 .2 .3 .3', 'the class 2, but there are names of the classes'),
  ],
)
def test_bad_lines_of_yolo(folder, text, message):
  fails(folder, write_yolo(folder, text), message, 'yolo')


@pytest.mark.parametrize(
  ('yaml', 'message'),
  [
    ('names: [cat, cat]', "has the class 'cat' twice"),
    ('names: {0: cat, 2: dog}', 'must be 0, 1, 2 and so on'),
    ('names: {a: cat}', 'must be whole numbers'),
    ('names: [[cat]]', 'is no name'),
    (
      'a: &a [x, x, x, x, x, x, x, x, x, x]\n'
      + ''.join(
        f'{n}: &{n} [{", ".join([f"*{m}"] * 10)}]\n'
        for m, n in itertools.pairwise('abcdefghijkl')
      )
      + 'names: [*l]',
      'is no name',
    ),
    ('#' * (2 << 20) + '\nnames: [cat]', 'is too large'),
    ('names: [cat', 'is no YAML'),
  ],
)
def test_bad_names_of_yolo(folder, yaml, message):
  source = write_yolo(folder, names=None)
  (folder / 'data.yaml').write_text(yaml)
  fails(folder, source, message)


def test_classes_does_not_rename_the_classes_of_yolo(folder):
  source = write_yolo(folder)
  content, printed = convert_folder(folder, source, '--classes=dog,cat')
  assert [c['name'] for c in content['categories']] == ['dog', 'cat']
  assert names_of(content) == ['cat']
  assert f'2 class names were read from {source / "classes.txt"}' in printed


def test_yaml_files_of_other_programs_are_skipped(folder):
  source = write_yolo(folder, names='list')
  (folder / 'compose.yaml').write_text('services: [')
  (folder / 'notes' / 'other.yaml').write_text('a: 1')
  content, _ = convert_folder(folder, source)
  assert names_of(content) == ['cat']


def test_yolo_without_names(folder):
  fails(folder, write_yolo(folder, names=None), 'give the names of the classes')


def test_a_class_named_no_in_yaml(folder):
  source = write_yolo(folder, names=None)
  (folder / 'data.yaml').write_text('names: [no, 3]')
  content, _ = convert_folder(folder, source)
  assert [c['name'] for c in content['categories']] == ['no', '3']


def test_a_label_file_under_another_name_than_its_image(folder):
  source = write_yolo(folder)
  (source / 'b_1.txt').write_text('0 .1 .1 .2 .1 .2 .2\n')
  fails(folder, source, 'b_1.txt, and 1 images have no label file, such as b.j')


@pytest.mark.parametrize('source', ['.', 'data.yaml'])
def test_the_layout_of_ultralytics(folder, source):
  for part, left in (('train', 0.1), ('val', 0.5)):
    (folder / 'images' / part).mkdir()
    (folder / 'labels' / part).mkdir(parents=True)
    add_image(folder, f'{part}/x.jpg')
    (folder / 'labels' / part / 'x.txt').write_text(
      f'0 {left} .25 {left + 0.25} .25 {left + 0.25} .5 {left} .5\n'
    )
  (folder / 'train.txt').write_text('./images/train/x.jpg\n')
  (folder / 'data.yaml').write_text('names: [cat]\n')
  content, printed = convert_folder(folder, folder / source)
  names = {i['id']: i['file_name'] for i in content['images']}
  lefts = {names[a['image_id']]: a['bbox'][0] for a in content['annotations']}
  assert lefts == {'train/x.jpg': 6, 'val/x.jpg': 30}
  assert 'left out' not in printed


# Pascal VOC.


def write_voc(folder, colors=False, label_map=None):
  """Writes a cat and a dog in a.png with void around the cat."""
  objects = np.zeros((HEIGHT, WIDTH), np.uint8)
  classes = np.zeros((HEIGHT, WIDTH), np.uint8)
  objects[4:16, 4:16] = classes[4:16, 4:16] = 255
  objects[5:15, 5:15] = 1
  objects[20:30, 20:35] = 2
  classes[5:15, 5:15] = 8
  classes[20:30, 20:35] = 12
  # A few pixels of another class do not change the class of the object.
  classes[20:23, 20:23] = 8
  palette = np.array([voc.color_of(i) for i in range(256)], np.uint8)
  for name, values in ((voc.OBJECTS, objects), (voc.CLASSES, classes)):
    (folder / 'notes' / name).mkdir()
    image = Image.fromarray(palette[values] if colors else values)
    if not colors:
      image.putpalette(palette.ravel().tolist())
    image.save(folder / 'notes' / name / 'a.png')
  if label_map:
    (folder / 'notes' / 'labelmap.txt').write_text(label_map)
  return folder / 'notes'


LABEL_MAP = """# label:color_rgb:parts:actions
background:0,0,0::
hund:64,0,128::
katze:64,0,0::
"""


@pytest.mark.parametrize('colors', [False, True])
@pytest.mark.parametrize('label_map', [None, LABEL_MAP])
def test_voc_masks(folder, colors, label_map):
  content, printed = convert_folder(
    folder, write_voc(folder, colors, label_map)
  )
  assert names_of(content) == (
    ['katze', 'hund'] if label_map else ['cat', 'dog']
  )
  assert len(content['categories']) == (2 if label_map else 20)
  assert_array_equal(
    masks_of(content), [box_mask(5, 5, 15, 15), box_mask(20, 20, 35, 30)]
  )
  # b.jpg has no mask, and VOC does not say that it has no objects.
  assert [i['file_name'] for i in content['images']] == ['a.jpg']
  assert '1 images without masks (their objects are not known)' in printed
  assert '1 masks have void pixels' in printed


def test_colors_of_voc():
  # The first colors of the palette in the development kit.
  assert [voc.color_of(i) for i in (0, 1, 2, 3, 4, 5, 8, 20, 255)] == [
    (0, 0, 0),
    (128, 0, 0),
    (0, 128, 0),
    (128, 128, 0),
    (0, 0, 128),
    (128, 0, 128),
    (64, 0, 0),
    (0, 64, 128),
    (224, 224, 192),
  ]


def test_voc_faults(folder):
  source = write_voc(folder)
  fails(folder, source, 'the class 8, but there are', '--classes=one,two')
  (source / voc.CLASSES / 'a.png').unlink()
  fails(folder, source, 'there is no ')
  (source / voc.CLASSES).rmdir()
  fails(folder, source, 'The classes alone do not tell')


# CVAT.


def write_cvat(folder, shapes, doctype='', image='a.jpg', size=(HEIGHT, WIDTH)):
  path = folder / 'annotations.xml'
  path.write_text(f"""<?xml version="1.0" encoding="utf-8"?>{doctype}
<annotations><version>1.1</version><meta><job><labels>
<label><name>dog</name></label><label><name>cat</name></label></labels></job>
</meta>
<image id="0" name="dir/{image}" width="{size[1]}" height="{size[0]}">
{shapes}</image>
<image id="1" name="b.jpg" width="{WIDTH}" height="{HEIGHT}"></image>
</annotations>""")
  return path


def test_cvat_shapes(folder):
  source = write_cvat(
    folder,
    """<polygon label="cat" points="5,5;15,5;15,15;5,15" z_order="0">
<attribute name="age">3</attribute></polygon>
<box label="dog" xtl="20" ytl="20" xbr="40" ybr="30"/>
<box label="dog" xtl="20" ytl="20" xbr="40" ybr="30" rotation="90"/>
<mask label="cat" rle="2, 3, 1, 5, 1" left="50" top="30" width="4" height="3"/>
<ellipse label="cat" cx="30" cy="20" rx="10" ry="5"/>
<polygon label="cat" points="1,1;3,1;3,3;1,3" group_id="7"/>
<polygon label="cat" points="5,1;8,1;8,3;5,3" group_id="7"/>
<points label="cat" points="3,3"/><polyline label="cat" points="1,1;9,9"/>
<tag label="cat"/>""",
  )
  content, printed = convert_folder(folder, source)
  assert [c['name'] for c in content['categories']] == ['dog', 'cat']
  assert names_of(content) == ['cat', 'dog', 'dog', 'cat', 'cat', 'cat']
  square, box, turned, mask, ellipse, group = masks_of(content)
  assert_array_equal(square, box_mask(5, 5, 15, 15))
  assert_array_equal(box, box_mask(20, 20, 40, 30))
  assert_array_equal(turned, box_mask(25, 15, 35, 35))
  rows = [[0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]]
  assert_array_equal(mask[30:33, 50:54], rows)
  assert mask.sum() == 8
  y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
  inside = ((x - 30) / 10) ** 2 + ((y - 20) / 5) ** 2 < 1
  # The polygon of 64 corners differs at the edge by less than a pixel.
  assert (ellipse ^ inside).sum() <= 4
  assert_array_equal(group, box_mask(1, 1, 3, 3) | box_mask(5, 1, 8, 3))
  assert '1 shapes of the kind points, left out' in printed
  assert '1 shapes of the kind polyline, left out' in printed
  assert '1 images annotated as empty' in printed


def test_cvat_rotation_is_clockwise(folder):
  source = write_cvat(
    folder,
    '<box label="cat" xtl="20" ytl="18" xbr="40" ybr="22" rotation="45"/>',
  )
  content, _ = convert_folder(folder, source)
  (mask,) = masks_of(content)
  # The end at the right goes down. The distance from the center (30, 20) is 10.
  assert mask[25, 35]
  assert mask[14, 24]
  assert not mask[25, 24]


def test_cvat_video(folder):
  for number in (0, 7):
    add_image(folder, f'frame_{number:06d}.jpg')
  path = folder / 'v.xml'
  path.write_text(f"""<annotations><meta><task><original_size><width>{WIDTH}
</width><height>{HEIGHT}</height></original_size></task></meta>
<track id="0" label="cat">
<polygon frame="0" outside="0" points="5,5;15,5;15,15;5,15"/>
<polygon frame="7" outside="0" points="6,5;16,5;16,15;6,15"/>
<polygon frame="8" outside="1" points="6,5;16,5;16,15;6,15"/>
</track></annotations>""")
  content, printed = convert_folder(folder, path)
  names = {i['id']: i['file_name'] for i in content['images']}
  assert [
    (names[a['image_id']], a['bbox'][0]) for a in content['annotations']
  ] == [('frame_000000.jpg', 5), ('frame_000007.jpg', 6)]
  assert '2 images without annotations' in printed


BOMB = """<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">
<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>"""


@pytest.mark.parametrize(
  ('shapes', 'doctype', 'message'),
  [
    ('', BOMB, 'defines an entity'),
    (
      '',
      '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
      'defines an entity',
    ),
    ('<a>' * 100, '', 'has more than 32 levels'),
    ('<polygon label="cat"', '', 'is no XML'),
    ('&b;', '', 'is no XML: undefined entity'),
    ('<polygon label="cat"/>' * 2, '', "it has no 'points'"),
    ('<polygon points="1,1"/>', '', 'shape 0 has no label'),
    ('<box label="cat" xtl="a" ytl="1" xbr="2" ybr="2"/>', '', 'is no number'),
    (
      '<mask label="cat" rle="2,3" left="1" top="1" width="3" height="3"/>',
      '',
      'its runs have 5 pixels, but its box has 9',
    ),
    (
      '<mask label="cat" rle="9" left="59" top="1" width="3" height="3"/>',
      '',
      'its box reaches over the edge',
    ),
  ],
)
def test_bad_files_of_cvat(folder, shapes, doctype, message):
  source = write_cvat(folder, shapes, doctype)
  source.write_text(
    source.read_text().replace('<image id="1" name="b.jpg"', '<x')
  )
  source.write_text(
    source.read_text().replace('height="40"></image>', 'y=""></x>')
  )
  fails(folder, source, message)


def test_a_doctype_without_entities_is_read(folder):
  source = write_cvat(
    folder,
    '<polygon label="cat" points="5,5;15,5;15,15;5,15"/>',
    '<!DOCTYPE annotations>',
  )
  content, _ = convert_folder(folder, source)
  assert len(content['annotations']) == 1


def test_boxes_of_voc_are_named(folder):
  path = folder / 'a.xml'
  path.write_text('<annotation><object/></annotation>')
  fails(folder, path, 'it looks like boxes of Pascal VOC')


# Label Studio.


def studio(*regions, image='/data/upload/3/0a1b2c3d-a.jpg', **annotation):
  return {
    'id': 1,
    'data': {'image': image},
    'annotations': [{'result': list(regions)} | annotation],
    'predictions': [],
  }


def region(kind, label='cat', **value):
  return {
    'type': kind,
    'original_width': WIDTH,
    'original_height': HEIGHT,
    'image_rotation': 0,
    'value': {kind: [label]} | value,
  }


def write_json(folder, content):
  path = folder / 'export.json'
  path.write_text(json.dumps(content))
  return path


SQUARE = region(
  'polygonlabels', points=[[10, 25], [50, 25], [50, 75], [10, 75]]
)


def packed(mask):
  """Packs a mask as Label Studio does, with blocks of both kinds."""
  values = np.repeat(mask.ravel() * 255, 4).tolist()
  bits = f'{len(values):032b}{7:05b}' + ''.join(
    f'{n - 1:04b}' for n in (3, 4, 8, 16)
  )
  place = 0
  while place < len(values):
    run_length = 1
    while (
      place + run_length < len(values)
      and values[place + run_length] == values[place]
      and run_length < 1 << 16
    ):
      run_length += 1
    if run_length <= 8:
      count = min(8, len(values) - place)
      bits += f'000{count - 1:03b}'
      bits += ''.join(f'{v:08b}' for v in values[place : place + count])
    else:
      count = run_length
      bits += f'111{count - 1:016b}{values[place]:08b}'
    place += count
  bits += '0' * (-len(bits) % 8)
  return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_label_studio_brush():
  mask = np.random.default_rng(0).random((9, 14)) < 0.4
  mask[:, 5:9] = True
  assert_array_equal(label_studio.decode_brush(packed(mask), (9, 14)), mask)


def test_label_studio_shapes(folder):
  mask = box_mask(3, 4, 30, 20) & ~box_mask(10, 10, 12, 12)
  source = write_json(
    folder,
    [
      studio(
        SQUARE,
        region('rectanglelabels', 'dog', x=50, y=50, width=25, height=10),
        region('rectanglelabels', x=50, y=50, width=25, height=10, rotation=90),
        region('ellipselabels', x=50, y=50, radiusX=20, radiusY=10),
        region('brushlabels', format='rle', rle=packed(mask)),
        region('keypointlabels', x=5, y=5, width=1),
      ),
      studio(image='s3://bucket/b.jpg'),
    ],
  )
  content, printed = convert_folder(folder, source)
  assert names_of(content) == ['cat', 'dog', 'cat', 'cat', 'cat']
  polygon, box, turned, ellipse, brush = masks_of(content)
  assert_array_equal(polygon, box_mask(6, 10, 30, 30))
  assert_array_equal(box, box_mask(30, 20, 45, 24))
  # It is turned clockwise about its upper left corner (30, 20).
  assert_array_equal(turned, box_mask(26, 20, 30, 35))
  image = Image.new('1', (10 * WIDTH, 10 * HEIGHT))
  ImageDraw.Draw(image).ellipse((180, 160, 420, 240), 1)
  assert_allclose(ellipse.sum(), np.sum(image) / 100, rtol=0.02)
  assert_array_equal(brush, mask)
  assert '1 regions of the kind keypointlabels, left out' in printed
  assert '1 images annotated as empty' in printed


@pytest.mark.parametrize(
  'image',
  [
    'a.jpg',
    '/data/local-files/?d=some%5Cfolder%5Ca.jpg',
    'https://example.com/a.jpg?token=1',
    'C:\\pictures\\a.jpg',
    'images%2Fa.jpg',
  ],
)
def test_names_of_label_studio(folder, image):
  content, _ = convert_folder(
    folder, write_json(folder, [studio(SQUARE, image=image)])
  )
  assert content['annotations'][0]['image_id'] == 1


def test_json_min_of_label_studio(folder):
  min_region = {
    'points': [[10, 25], [50, 25], [50, 75], [10, 75]],
    'polygonlabels': ['cat'],
    'original_width': WIDTH,
    'original_height': HEIGHT,
  }
  task = {'image': 'a.jpg', 'id': 1, 'label': [min_region], 'annotator': 1}
  content, _ = convert_folder(folder, write_json(folder, [task]))
  assert_array_equal(masks_of(content), [box_mask(6, 10, 30, 30)])


def test_annotations_of_several_people(folder):
  task = studio(SQUARE, updated_at='2024-01-01')
  other = region('polygonlabels', points=[[0, 0], [50, 0], [50, 50], [0, 50]])
  task['annotations'] += [
    {'result': [other], 'updated_at': '2025-01-01'},
    {'result': [], 'was_cancelled': True, 'updated_at': '2026-01-01'},
  ]
  skipped = studio(image='b.jpg', was_cancelled=True)
  content, printed = convert_folder(folder, write_json(folder, [task, skipped]))
  assert_array_equal(masks_of(content), [box_mask(0, 0, 30, 20)])
  assert '1 annotations of an image by another person' in printed
  # An image that was skipped must not become a background image.
  assert len(content['images']) == 1
  assert '1 images whose task has no finished annotation, left out' in printed
  task['annotations'][0]['ground_truth'] = True
  content, _ = convert_folder(folder, write_json(folder, [task]))
  assert_array_equal(masks_of(content), [box_mask(6, 10, 30, 30)])


@pytest.mark.parametrize(
  ('task', 'message'),
  [
    (studio(region('polygonlabels')), "is damaged: it has no 'points'"),
    (studio(SQUARE | {'image_rotation': 90}), 'had been rotated in Label St'),
    (studio(SQUARE | {'original_width': 99}), 'I05: '),
    (studio(region('polygonlabels', points=[1])), 'is no pair of numbers'),
    (
      studio(region('brushlabels', rle=[0, 0, 0, 9, 1, 1, 1, 1, 1])),
      'its rle has 9 values, but an RGBA picture of 40x60 pixels has 9600',
    ),
    (studio(region('brushlabels', rle=[0, 0])), 'its rle ends early'),
    (studio(region('brushlabels', rle=[0, 999])), 'a number that is no byte'),
    (
      studio(SQUARE | {'value': {'points': [], 'polygonlabels': ['a', 'b']}}),
      "has the labels ['a', 'b']; it must have exactly one",
    ),
    ({'data': {'image': 'a.jpg'}}, 'its annotations are damaged or missing'),
  ],
)
def test_bad_tasks_of_label_studio(folder, task, message):
  fails(folder, write_json(folder, [task]), message)
