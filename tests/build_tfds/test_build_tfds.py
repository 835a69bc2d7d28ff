"""Tests of the command build_tfds and of the builder behind it."""

import shutil

import pytest
from tfds_sets import build, records_of

from maskrcnn_jax.data.records import read_records


def break_nothing(folder):
  pass


def remove_image(folder):
  (folder / 'images' / '2.png').unlink()


def remove_first_image(folder):
  (folder / 'images' / '0.png').unlink()


def remove_json(folder):
  for file in folder.glob('*.json'):
    file.unlink()


def rename_class(folder):
  file = folder / 'instances_val.json'
  file.write_text(file.read_text().replace('"name": "b"', '"name": "c"'))


def break_annotation(folder):
  file = folder / 'instances_val.json'
  file.write_text(file.read_text().replace('"image_id": 7', '"image_id": 8'))


def two_files_of_a_split(folder):
  (folder / 'annotations').mkdir()
  shutil.copy(folder / 'instances_val.json', folder / 'annotations')


@pytest.mark.parametrize(
  ('change', 'name', 'message'),
  [
    (remove_image, 'folder', 'I01: 1 of 3 images are not in'),
    (remove_first_image, 'folder', 'I01: 0.png, the first image of'),
    (remove_json, 'folder', 'I01: there is no *.json in'),
    (rename_class, 'folder', 'A21'),
    (break_annotation, 'folder', 'A14'),
    (two_files_of_a_split, 'folder', 'would both be the split val'),
    (break_nothing, '2017', 'COCO 2017 must be unpacked in'),
    (shutil.rmtree, 'folder', 'I01: there is no folder'),
  ],
)
def test_build_tfds_names_the_fault(
  tfds_set, tmp_path, capsys, change, name, message
):
  folder = tmp_path / 'own'
  shutil.copytree(tfds_set[0], folder)
  change(folder)
  with pytest.raises(SystemExit) as exit_:
    build(folder, tmp_path / 'tfds', name=name)
  assert exit_.value.code == 2
  err = capsys.readouterr().err
  (line,) = (x for x in err.splitlines() if x.startswith('error: '))
  assert message in line
  assert not list((tmp_path / 'tfds').rglob('dataset_info.json'))


def test_build_tfds_does_not_overwrite(tfds_set, capsys):
  with pytest.raises(SystemExit) as exit_:
    build(tfds_set[0], tfds_set[1])
  assert exit_.value.code == 2
  assert 'is there already' in capsys.readouterr().err


def test_build_tfds_finds_coco_as_it_unpacks(tfds_set, tmp_path):
  folder = tmp_path / 'coco'
  for split in ('train', 'val'):
    shutil.copytree(tfds_set[0] / 'images', folder / f'{split}2014')
    (folder / 'annotations').mkdir(exist_ok=True)
    shutil.copy(
      tfds_set[0] / f'instances_{split}.json',
      folder / 'annotations' / f'instances_{split}2014.json',
    )
  build(folder, tmp_path / 'tfds', name='2014')
  truth, _ = read_records(records_of(tmp_path / 'tfds', name='2014'))
  assert len(truth['images']) == 3
