"""Tests of the ways to give check_data its data set and its recipe.

The tests of its findings are in tests/bad_inputs.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

from PIL import Image
import pytest
from tfds_sets import build
import tiny

from maskrcnn_jax.check_data import contact_sheet
from maskrcnn_jax.check_data.check import check_data
from maskrcnn_jax.check_data.command_line import main
from maskrcnn_jax.data.image_files import list_images
from maskrcnn_jax.data.records import Records
from maskrcnn_jax.data.source import CocoFiles, read_set
from maskrcnn_jax.errors import InputError


def files_of(data):
  """Returns the arguments for COCO files: --images and --annotations."""
  return [
    f'--images={data / "images"}',
    f'--annotations={data / "instances_train.json"}',
  ]


def records_of(tfds_dir):
  """Returns the arguments for a tfds set: keys of the recipe."""
  return [
    '--config.data.train.tfds=coco_instances/folder',
    f'--config.data.tfds_dir={tfds_dir}',
  ]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
  """A function that runs check_data in this process with some arguments.

  It returns the exit status, the report, stdout and stderr.
  """
  monkeypatch.setattr(contact_sheet, 'NUM_EXAMPLES', 1)
  out = tmp_path / 'out'

  def run_with(*arguments):
    status = main([f'--out={out}', '--workers=1', *arguments])
    report = out / 'report.json'
    content = json.loads(report.read_text()) if report.exists() else None
    return status, content, *capsys.readouterr()

  return run_with


def test_a_tfds_set_is_checked_as_its_coco_files_are(tiny_data, tiny_tfds, run):
  status, of_files, text, _ = run(*files_of(tiny_data))
  assert status == 0
  assert text.startswith(
    f'{tiny_data}/instances_train.json, images in {tiny_data}/images\n'
  )
  status, of_records, text, _ = run(*records_of(tiny_tfds))
  assert status == 0
  name = f'coco_instances/folder, split train, in {tiny_tfds}'
  assert text.startswith(f'{name}\n')
  assert of_records.pop('annotations') == name
  assert of_records.pop('images') == ''
  for key in ('annotations', 'images'):
    del of_files[key]
  assert of_records == of_files


def test_the_real_command_checks_a_tfds_set(tiny_tfds, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'maskrcnn_jax.check_data',
      *records_of(tiny_tfds),
      '--config.data.train.split',
      'val',
      f'--config={tiny.__file__}',
      '--workers=1',
    ],
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / 'check_data/report.json').read_text())
  assert report['counts']['images'] == tiny.NUM_VAL
  with Image.open(tmp_path / 'check_data/contact_sheet.png') as sheet:
    assert sheet.height > 200


def test_the_contact_sheet_of_a_tfds_set_shows_the_same(tiny_data, tiny_tfds):
  examples = {'All': [contact_sheet.Example(row, 'x') for row in range(3)]}
  sheets = [
    contact_sheet.draw_sheet(read_set(source), examples)
    for source in (
      CocoFiles(
        str(tiny_data / 'images'), str(tiny_data / 'instances_train.json')
      ),
      Records('coco_instances/folder', 'train', str(tiny_tfds)),
    )
  ]
  assert sheets[0].tobytes() == sheets[1].tobytes()


def test_a_damaged_image_in_a_record_is_an_error(tfds_set, tmp_path, run):
  folder = tmp_path / 'own'
  (folder / 'images').mkdir(parents=True)
  for file in (tfds_set[0] / 'images').iterdir():
    (folder / 'images' / file.name).write_bytes(file.read_bytes())
  (folder / 'images' / '1.png').write_bytes(b'<!doctype html>')
  (folder / 'instances_train.json').write_text(json.dumps(tfds_set[2]))
  build(folder, tmp_path / 'tfds')
  status, report, _, _ = run(*records_of(tmp_path / 'tfds'))
  assert status == 2
  finding = report['findings'][0]
  assert finding['code'] == 'I03'
  assert finding['examples'][0]['id'] == "image 'b'"
  assert '1.png is no image' in finding['examples'][0]['reason']


def test_several_processes_decode_records(tiny_tfds, run, monkeypatch):
  monkeypatch.setattr('maskrcnn_jax.check_data.decoding.MIN_PARALLEL', 2)
  status, report, _, err = run(*records_of(tiny_tfds), '--workers=2')
  assert status == 0, err
  assert report['counts']['images'] == tiny.NUM_TRAIN


def test_fix_of_a_tfds_set_is_refused(tiny_tfds, tmp_path, run):
  status, report, _, err = run(
    *records_of(tiny_tfds), f'--fix={tmp_path / "fixed.json"}'
  )
  assert status == 2
  assert report is None
  assert err.startswith('error: --fix=')
  assert 'is not one; correct its own files. For a tfds set, repair' in err
  assert not (tmp_path / 'fixed.json').exists()


class Folder(NamedTuple):
  """A source that is not in a COCO JSON: all images of a folder, no objects."""

  images: str

  def __str__(self):
    return f'all of {self.images}'

  def check_is_there(self, option):
    list_images(self.images)

  def read(self, **options):
    raise NotImplementedError

  def read_content(self):
    raise NotImplementedError


def test_a_source_of_another_kind_is_reported_with_its_folder(tmp_path):
  source = Folder(str(tmp_path))
  report = check_data(source)
  assert report['annotations'] == f'all of {tmp_path}'
  assert report['images'] == str(tmp_path)
  (finding,) = report['findings']
  assert finding['code'] == 'I01'
  assert finding['examples'][0]['reason'].startswith('there are no images in')
  with pytest.raises(InputError, match='all of .* is not one; correct its own'):
    check_data(source, fix=tmp_path / 'fixed.json')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'No data set: give --images=DIR and --annotations=FILE.json; or'),
    (['--images=a'], '--annotations=FILE.json is missing: --images and'),
    (['--annotations=a'], '--images=DIR is missing: --images and --annot'),
    (['--imagess=a'], "Unexpected argument '--imagess=a'"),
    (
      ['--config.data.train.annotation=a'],
      'did you mean --config.data.train.annotations?',
    ),
  ],
)
def test_one_line_says_what_is_missing(arguments, message, run):
  status, report, _, err = run(*arguments)
  assert status == 2
  assert report is None
  line, *more = err.splitlines()
  assert len(more) <= 1  # The command that explains a code.
  assert line.startswith('error: ')
  assert message in line


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tfds': 'none'}, "there is no set 'none' in"),
    ({'split': 'test'}, "has no split 'test'; it has train, val"),
  ],
)
def test_records_that_are_not_there_are_in_the_report(
  changes, message, tiny_tfds, run
):
  status, _, out, _ = run(
    *records_of(tiny_tfds),
    *(f'--config.data.train.{key}={value}' for key, value in changes.items()),
  )
  assert status == 2
  assert message in out


def test_the_training_set_of_the_recipe_is_checked(tiny_data, run):
  status, report, _, _ = run(
    f'--config.data.train.images={tiny_data / "images"}',
    '--config.data.train.annotations',
    str(tiny_data / 'instances_val.json'),
  )
  assert status == 0
  assert report['counts']['images'] == tiny.NUM_VAL


def test_a_message_names_the_option_that_gave_the_data_set(tiny_data, run):
  _, _, out, _ = run(
    '--config.data.train.images=2017',
    '--config.data.train.annotations=none.json',
  )
  assert 'none.json; --config.data.train.annotations says where it is' in out
  _, _, out, _ = run('--config.data.train.annotations=none.json')
  assert '--config.data.train.images=DIR is missing' in out
  _, _, out, _ = run('--images=2017', '--annotations=none.json')
  assert 'none.json; --annotations says where it is' in out


@pytest.mark.parametrize(
  'arguments',
  [
    ['--config.data.keep_empty=true', '--config.data.short_side=64'],
    ['--config.data.keep_empty', 'true', '--config.data.short_side', '64'],
    ['--config.data.keep_empty', '--config.data.short_side=64'],
  ],
)
def test_overrides_are_written_as_in_main(arguments, tiny_data, run):
  status, report, _, _ = run(*files_of(tiny_data), *arguments)
  assert status == 0
  # The images are 64 pixels high instead of 800, so that no object is large.
  assert (
    sum(
      count
      for name, count in report['object_sizes'].items()
      if name in ('128 to 256', '256 to 512', '512 and more')
    )
    == 0
  )
