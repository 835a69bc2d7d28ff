"""Tests of the class table and of the split, through the command line."""

import collections
import json

from conversion import convert_folder, run
import pytest
from test_converter_cases import SQUARE, add_image, labelme, shape

from maskrcnn_jax.convert_to_coco.coco_json import Instance
from maskrcnn_jax.convert_to_coco.split import split_images
from maskrcnn_jax.data import coco


def write_set(folder, classes_of):
  """Writes a LabelMe set.

  Args:
    folder: Gets the folders `images` and `notes`.
    classes_of: The classes of the objects of each image, by its name without
      the extension. All images differ.
  """
  (folder / 'images').mkdir(parents=True)
  (folder / 'notes').mkdir()
  for i, (name, labels) in enumerate(classes_of.items()):
    add_image(folder, f'{name}.png', (i % 256, i // 256, 7))
    (folder / 'notes' / f'{name}.json').write_text(
      labelme(*(shape(SQUARE, label=x) for x in labels), name=f'{name}.png')
    )
  return folder


@pytest.fixture
def two(tmp_path):
  """Two sets; the second lacks a class of the first."""
  train = write_set(tmp_path / 'train', {'a': ['apple', 'bolt'], 'b': ['cup']})
  val = write_set(tmp_path / 'val', {'a': ['apple', 'cup']})
  return train, val


def convert(folder, *options):
  return convert_folder(folder, folder / 'notes', *options)


def test_like_takes_the_categories_of_another_file(two):
  train, val = two
  first, _ = convert(train)
  second, printed = convert(val, f'--like={train / "coco.json"}')
  assert second['categories'] == first['categories']
  assert [a['category_id'] for a in second['annotations']] == [1, 3]
  assert '0 bolt' in printed
  tables = [coco.read_coco(f / 'coco.json').categories for f in two]
  assert not coco.class_table_difference(*tables)


def test_like_keeps_ids_and_further_keys(two):
  train, val = two
  table = [
    {'id': 90, 'name': 'cup', 'supercategory': 'x'},
    {'id': 2, 'name': 'apple'},
  ]
  like = train / 'like.json'
  like.write_text(json.dumps({'images': [], 'categories': table}))
  content, _ = convert(val, f'--like={like}')
  assert content['categories'] == table
  assert [a['category_id'] for a in content['annotations']] == [2, 90]


@pytest.mark.parametrize('as_file', [False, True])
def test_classes_gives_the_order_of_the_ids(two, as_file):
  value = 'cup,bolt,apple'
  if as_file:
    path = two[0] / 'names.txt'
    path.write_text('cup\nbolt\n\napple\n')
    value = path
  for folder in two:
    content, _ = convert(folder, f'--classes={value}')
    assert [(c['id'], c['name']) for c in content['categories']] == [
      (1, 'cup'),
      (2, 'bolt'),
      (3, 'apple'),
    ]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--classes=apple,cup'], "not in --classes: 'bolt' (1)"),
    (['--classes=apple,,cup'], 'has an empty name'),
    (['--classes=apple,apple'], "has the class 'apple' twice"),
    (['--classes=none.txt'], 'there is no file none.txt'),
    (['--like=none.json'], 'Cannot read'),
    (['--like=like.json'], 'has no categories'),
  ],
)
def test_bad_class_tables(two, options, message, monkeypatch):
  train, _ = two
  monkeypatch.chdir(train)
  (train / 'like.json').write_text('{}')
  done = run(
    '--images=images', '--annotations=notes', '--out=coco.json', *options
  )
  assert done.returncode == 2
  assert message in done.stderr
  assert not (train / 'coco.json').exists()


def test_a_class_that_like_lacks_is_an_error(two):
  train, val = two
  convert(val)
  done = run(
    f'--images={train / "images"}',
    f'--annotations={train / "notes"}',
    f'--out={train / "coco.json"}',
    f'--like={val / "coco.json"}',
  )
  assert done.returncode == 2
  assert "'bolt' (1)" in done.stderr


@pytest.mark.parametrize('share', ['0', '1', '1.5', 'nan', 'a'])
def test_a_share_that_is_none(two, share):
  done = run(
    '--images=x', '--annotations=x', '--out=x.json', f'--split={share}'
  )
  assert done.returncode == 2
  assert 'give a number between 0 and 1' in done.stderr


def test_split_writes_two_files_with_one_table(tmp_path):
  folder = write_set(
    tmp_path / 'all',
    {
      f'{i:02d}': ['cat'] * (1 + i % 3) + ['dog'] * (i % 4 == 0)
      for i in range(40)
    }
    | {f'empty{i}': [] for i in range(10)}
    | {'owl0': ['owl'], 'owl1': ['owl', 'cat'], 'elk': ['elk']},
  )
  done = run(
    f'--images={folder / "images"}',
    f'--annotations={folder / "notes"}',
    f'--out={folder / "coco.json"}',
    '--split=0.2',
  )
  assert done.returncode == 0, done.stderr
  assert not (folder / 'coco.json').exists()
  train, val = (
    json.loads((folder / f'coco_{part}.json').read_text())
    for part in ('train', 'val')
  )
  assert train['categories'] == val['categories']
  names = [{i['file_name'] for i in part['images']} for part in (train, val)]
  assert not names[0] & names[1]
  assert len(names[0]) + len(names[1]) == 53
  assert len(names[1]) == pytest.approx(0.2 * 53, abs=3)
  empty = [name for name in names[1] if name.startswith('empty')]
  assert len(empty) == 2
  counts = [
    collections.Counter(a['category_id'] for a in part['annotations'])
    for part in (train, val)
  ]
  # cat, dog, elk, owl: of 81 cats and 10 dogs a fifth; the only elk is to be
  # learned, and each part has an owl.
  assert counts[1][1] == pytest.approx(
    0.2 * (counts[0][1] + counts[1][1]), abs=3
  )
  assert counts[1][2] == 2
  assert (counts[0][3], counts[1][3]) == (1, 0)
  assert (counts[0][4], counts[1][4]) == (1, 1)


def test_images_with_the_same_content_stay_together(tmp_path):
  folder = write_set(tmp_path / 'all', {f'{i}': ['cat'] for i in range(12)})
  for i in range(0, 12, 2):
    content = (folder / 'images' / f'{i}.png').read_bytes()
    (folder / 'images' / f'{i + 1}.png').write_bytes(content)
  names = [f'{i}.png' for i in range(12)]
  objects = {name: [Instance('cat', {})] for name in names}
  for share in (0.1, 0.3, 0.5, 0.9):
    parts = split_images(names, objects, folder / 'images', share)
    assert all(parts)
    assert sorted(sum(parts, [])) == sorted(names)
    for part in parts:
      numbers = {int(name[:-4]) for name in part}
      assert numbers == {n ^ 1 for n in numbers}
    assert parts == split_images(names, objects, folder / 'images', share)


def test_a_split_of_one_image_is_an_error(tmp_path):
  folder = write_set(tmp_path / 'all', {'a': ['cat']})
  done = run(
    f'--images={folder / "images"}',
    f'--annotations={folder / "notes"}',
    f'--out={folder / "coco.json"}',
    '--split=0.2',
  )
  assert done.returncode == 2
  assert 'at least two images with different contents' in done.stderr


def test_a_split_of_two_images_has_one_in_each_part(tmp_path):
  folder = write_set(tmp_path / 'all', {'a': ['cat'], 'b': ['dog']})
  names = ['a.png', 'b.png']
  objects = {'a.png': [Instance('cat', {})], 'b.png': [Instance('dog', {})]}
  train, val = split_images(names, objects, folder / 'images', 0.2)
  assert len(train) == len(val) == 1
