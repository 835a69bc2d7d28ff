"""Tests of several COCO sets that are read as one training set."""

import json
import re
import shutil

import numpy as np
from numpy.testing import assert_array_equal
import pytest
import tiny

from maskrcnn_jax.check_data.command_line import main as check_data
from maskrcnn_jax.config import canvas_arguments, plain, source_of
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.comparison import stored_config
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.data import canvases, findings, image_sets, loader
from maskrcnn_jax.data.source import check_images_exist, image_file, read_set
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.training.run import train


def part_of(content, numbers):
  """Returns a part of a COCO document, with ids that begin at 1.

  Args:
    content: The document.
    numbers: Numbers of its images.
  """
  images = [content['images'][i] for i in numbers]
  new_ids = {image['id']: i + 1 for i, image in enumerate(images)}
  objects = [o for o in content['annotations'] if o['image_id'] in new_ids]
  return content | {
    'images': [image | {'id': new_ids[image['id']]} for image in images],
    'annotations': [
      entry | {'id': i + 1, 'image_id': new_ids[entry['image_id']]}
      for i, entry in enumerate(objects)
    ],
  }


@pytest.fixture
def sets(tiny_data, tmp_path):
  """The folder of two sets, `a` and `b`, that `tiny_data` was divided into.

  A set has a folder of images and a JSON. Ids and file names of images of `b`
  also occur in `a`, but for other images.
  """
  folder = tmp_path / 'sets'
  content = json.loads((tiny_data / 'instances_train.json').read_text())
  count = len(content['images'])
  for name, numbers in (('a', range(3)), ('b', range(3, count))):
    part = part_of(content, numbers)
    (folder / name).mkdir(parents=True)
    for i, image in enumerate(part['images']):
      path = tiny_data / 'images' / image['file_name']
      image['file_name'] = f'{i}{path.suffix}'
      shutil.copy(path, folder / name / image['file_name'])
    (folder / f'{name}.json').write_text(json.dumps(part))
  return folder


def names_of(sets, *names):
  """Returns the folders and the annotations of sets, as two tuples."""
  return (
    tuple(str(sets / name) for name in names),
    tuple(str(sets / f'{name}.json') for name in names),
  )


@pytest.fixture
def two(config, sets):
  """The recipe `tiny` with the two sets as its training set."""
  images, annotations = names_of(sets, 'a', 'b')
  config.data.train.images = images
  config.data.train.annotations = annotations
  return config


def change(path, function):
  """Changes the content of a JSON file."""
  content = json.loads(path.read_text())
  function(content)
  path.write_text(json.dumps(content))


@pytest.mark.slow
def test_two_sets_train_as_one_file_does_and_resume(
  two, tiny_run, tmp_path, sets
):
  straight, figures = tiny_run
  run = tmp_path / 'run'
  two.train.num_steps = 2
  first = tiny.run_training(two, run)
  two.train.num_steps = 4
  second = tiny.run_training(two, run)
  assert first + second == figures
  tiny.assert_same_arrays(
    tiny.saved_arrays(run, 4), tiny.saved_arrays(straight, 4)
  )
  # The order of the sets is part of the data of a run.
  names = names_of(sets, 'b', 'a')
  two.data.train.images, two.data.train.annotations = names
  with pytest.raises(InputError, match=r'C07: .* was trained on 8 images'):
    train(two, run, skip_test=True)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_two_sets_have_the_index_and_the_batches_of_one_file(
  two, config, tiny_data, num_workers
):
  source = source_of(two, 'train')
  assert source is not None
  # `tiny.with_data` changes the recipe in place, so it comes afterwards.
  one = read_set(source_of(tiny.with_data(config, tiny_data), 'train'))
  joined = read_set(source)
  for name in one.coco_index._fields:
    expected = getattr(one.coco_index, name)
    value = getattr(joined.coco_index, name)
    if name in ('image_ids', 'annotation_ids', 'file_names'):
      assert len(value) == len(expected)
    elif isinstance(expected, np.ndarray):
      assert_array_equal(value, expected, err_msg=name, strict=True)
    else:
      assert value == expected
  assert check_images_exist(joined) == []
  streams = []
  for data_set in (one, joined):
    index = data_set.coco_index
    rows, _ = image_sets.filter_images(index, keep_empty=True)
    streams.append(
      loader.train_batches(
        data_set,
        canvases.plan_canvases(
          index.heights, index.widths, **canvas_arguments(config)
        ),
        rows,
        limits=image_sets.find_limits(index, max_objects=8),
        seed=0,
        start_step=1,
        num_steps=5,
        batch_size=2,
        num_workers=num_workers,
      )
    )
  for (a, rows_a), (b, rows_b) in zip(*streams, strict=True):
    assert_array_equal(rows_a, rows_b)
    for x, y in zip(
      [*a[:-2], *a.outlines], [*b[:-2], *b.outlines], strict=True
    ):
      assert_array_equal(x, y, strict=True)


def test_three_sets_with_an_empty_one_in_the_middle(sets, config):
  content = json.loads((sets / 'b.json').read_text())
  (sets / 'c.json').write_text(json.dumps(part_of(content, [])))
  (sets / 'c').mkdir()
  names = names_of(sets, 'a', 'c', 'b')
  config.data.train.images, config.data.train.annotations = names
  data_set = read_set(source_of(config, 'train'))
  paths = [
    image_file(data_set.images, row, name).path
    for row, name in enumerate(data_set.coco_index.file_names)
  ]
  folders = [path.split('/')[-2] for path in paths]
  assert folders == ['a'] * 3 + ['b'] * (len(paths) - 3)


def test_a_tuple_of_one_is_a_single_set(two, sets):
  two.data.train.images, two.data.train.annotations = names_of(sets, 'a')
  one = source_of(two, 'train')
  two.data.train.images = str(sets / 'a')
  two.data.train.annotations = str(sets / 'a.json')
  assert one == source_of(two, 'train')


def test_a_checkpoint_stores_the_sets(two):
  stored = stored_config(json.loads(json.dumps(plain(two))))
  assert stored.data.train.images == two.data.train.images
  assert source_of(stored, 'train') == source_of(two, 'train')


@pytest.mark.parametrize(
  ('written', 'value'),
  [
    ('(a,b)', ('a', 'b')),
    ('( a , b c,)', ('a', 'b c')),
    ("('a,1', 'b')", ('a,1', 'b')),
    ('(1,2)', ('1', '2')),
    ('(a)', '(a)'),
    ('a,b', 'a,b'),
    ('a(1),b', 'a(1),b'),
    ('None', 'None'),
    ('', ''),
  ],
)
def test_sets_on_the_command_line(written, value):
  config = read_recipe(None, [('data.train.images', written)]).config
  assert config.data.train.images == value


def test_sets_in_a_yaml_recipe(tmp_path):
  path = tmp_path / 'r.yaml'
  path.write_text(
    'maskrcnn_jax_recipe: r50_fpn\n'
    'data.train.images: [a, b]\ndata.train.annotations: (a.json,b.json)\n'
  )
  config = read_recipe(str(path)).config
  assert str(source_of(config, 'train')) == 'a.json, b.json'


def test_a_recipe_with_two_sets_takes_one_on_the_command_line():
  config = read_recipe(
    'r50_fpn:2014',
    [('data.train.images', 'a'), ('data.train.annotations', 'a.json')],
  ).config
  assert str(source_of(config, 'train')) == 'a.json'


@pytest.mark.parametrize('value', [(), ('a', ''), ('a', 3), (('a',), 'b'), 3])
def test_other_values_are_refused(config, value):
  config.data.train.images = value
  with pytest.raises(
    InputError,
    match=r'C05: config.data.train.images is .*; give a text, or a tuple of t',
  ):
    check_config(config)


@pytest.mark.parametrize(
  ('images', 'annotations'),
  [('a', ('a', 'b')), (('a', 'b'), 'a'), (('a', 'b'), ('a', 'b', 'c'))],
)
def test_as_many_folders_as_annotations_are_needed(
  config, images, annotations, tmp_path
):
  config.data.train.images = images
  config.data.train.annotations = annotations
  with pytest.raises(InputError, match=r'C05: .* a folder for each file'):
    train(config, tmp_path / 'run')


def test_a_file_that_is_named_twice_is_refused(two, sets, tmp_path):
  (sets / 'link.json').symlink_to(sets / 'a.json')
  folder, file = str(sets / 'a'), str(sets / 'a.json')
  two.data.train.images = (folder, folder)
  for other in (file, f'{sets}/b/../a.json', str(sets / 'link.json')):
    two.data.train.annotations = (file, other)
    with pytest.raises(InputError, match=r'C05: .*\.json more than once'):
      train(two, tmp_path / 'run')


@pytest.mark.parametrize(
  'edit',
  [
    lambda classes: classes[0].update(name='circle'),
    lambda classes: classes[0].update(id=77),
    lambda classes: classes.append({'id': 99, 'name': 'new'}),
  ],
)
def test_other_classes_are_refused(two, sets, tmp_path, edit, capsys):
  change(sets / 'b.json', lambda content: edit(content['categories']))
  # With objects, the new id would be an error too.
  change(sets / 'b.json', lambda content: content.update(annotations=[]))
  message = rf'b\.json: A21: it has other classes than {sets}/a\.json'
  with pytest.raises(InputError, match=message):
    train(two, tmp_path / 'run')
  status, report, _ = run_check(two, tmp_path, capsys)
  assert status == 2
  assert [f['code'] for f in report['findings']] == ['A21']


def test_a_missing_set_is_named(two, sets, tmp_path):
  (sets / 'b.json').unlink()
  with pytest.raises(InputError, match=r'A25: there is no file .*b\.json'):
    train(two, tmp_path / 'run')


def test_a_missing_image_is_named_with_its_folder(two, sets, tmp_path):
  (sets / 'b' / '0.jpg').unlink()
  with pytest.raises(
    InputError, match=rf'I01: 1 of 5 images are not in {sets}/b: 0\.jpg'
  ):
    train(two, tmp_path / 'run')


def test_images_in_two_sets_get_a_warning(two, sets):
  two.data.train.images = (str(sets / 'a'), f'{sets}/b/../a')
  report = findings.Report(stop=True)
  read_set(source_of(two, 'train'), report=report)
  (line,) = report.warnings()
  assert re.search(r'b\.json: A20: 3 of its images are in .*a\.json too', line)


def run_check(config, tmp_path, capsys, *options):
  """Runs check_data on the training set of a recipe.

  Returns:
    The exit status, the report, and the error output.
  """
  train_set = config.data.train
  status = check_data(
    [
      '--config=tests/tiny.py',
      f'--out={tmp_path / "out"}',
      '--workers=1',
      f'--config.data.train.images=({",".join(train_set.images)})',
      f'--config.data.train.annotations=({",".join(train_set.annotations)})',
      *options,
    ]
  )
  path = tmp_path / 'out' / 'report.json'
  report = json.loads(path.read_text()) if path.exists() else {}
  return status, report, capsys.readouterr().err


def test_check_data_checks_all_sets(two, sets, tmp_path, capsys):
  status, report, _ = run_check(two, tmp_path, capsys)
  assert status == 0
  assert report['counts']['images'] == 8
  assert report['annotations'] == f'{sets}/a.json, {sets}/b.json'


def test_check_data_names_the_set_and_the_row_of_a_fault(
  two, sets, tmp_path, capsys
):
  (sets / 'b' / '1.jpg').write_bytes(b'')
  change(
    sets / 'b.json',
    lambda content: content['annotations'][0].update(bbox=[0, 0, 0, 0]),
  )
  status, report, _ = run_check(two, tmp_path, capsys)
  assert status == 2
  files = {f['code']: f['examples'][0] for f in report['findings']}
  assert {example['file'] for example in files.values()} == {f'{sets}/b.json'}
  assert 'A01' in files
  assert any(example['id'] == 'image 2' for example in files.values())
  # Rows of the joined index: the first image of `b` has row 3.
  found = findings.Report(stop=False)
  data_set = read_set(source_of(two, 'train'), report=found)
  rows = {case.row for case in found.kept if case.where == 'annotation 1'}
  assert rows == {3}
  assert data_set.coco_index.image_ids[3] == 1


def test_check_data_repairs_one_file_only(two, tmp_path, capsys):
  status, _, text = run_check(two, tmp_path, capsys, f'--fix={tmp_path}/f.json')
  assert status == 2
  assert 'Of several sets, repair each by itself' in text
