"""Tests of data/records.py: records contain all that the COCO file has."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from tfds_sets import records_of

from maskrcnn_jax.data.records import Records, read_records
from maskrcnn_jax.errors import InputError


def test_records_give_back_what_the_json_says(tfds_set):
  folder, out, content = tfds_set
  truth, images = read_records(records_of(out, split='val'))
  assert truth['images'] == content['images']
  assert sorted(truth['categories'], key=lambda c: c['id']) == sorted(
    content['categories'], key=lambda c: c['id']
  )
  for a, b in zip(truth['annotations'], content['annotations'], strict=True):
    assert a == {'iscrowd': 0} | b  # the key may be missing there
  for row in range(3):
    file = folder / 'images' / f'{row}.png'
    assert images.image(row).read() == file.read_bytes()


def test_record_images_can_be_sent_to_a_worker(tfds_set):
  _, out, _ = tfds_set
  _, images = read_records(records_of(out))
  sent = pickle.loads(pickle.dumps(images))
  assert sent.image(1).read() == images.image(1).read()


@pytest.mark.parametrize(
  ('change', 'what'),
  [
    ({'directory': '/nowhere'}, 'tfds_dir is .*/nowhere'),
    ({'directory': ''}, "tfds_dir is ''"),
    ({'name': 'coco'}, "no set 'coco' .* there is coco_instances/folder"),
    ({'split': 'test'}, "no split 'test'; it has train, val"),
  ],
)
def test_records_that_are_not_there_are_named(tfds_set, change, what):
  with pytest.raises(InputError, match=what):
    read_records(records_of(tfds_set[1])._replace(**change))


def test_a_set_without_masks_is_refused(tmp_path):
  import tensorflow_datasets as tfds

  class NoMasks(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict({'a': np.int64})
      )

    def _split_generators(self, _):
      return {'train': iter([(0, {'a': 1})])}

    def _generate_examples(self):
      """Is not called."""

  NoMasks(
    data_dir=str(tmp_path), file_format='array_record'
  ).download_and_prepare()
  with pytest.raises(InputError, match='A25: .* no masks; give one that'):
    read_records(Records('no_masks', 'train', str(tmp_path)))


def test_tensorflow_is_not_loaded(tfds_set):
  program = (
    'import sys\n'
    'from maskrcnn_jax.data.records import Records, read_records\n'
    f'read_records(Records{tuple(records_of(tfds_set[1]))!r})\n'
    'assert "tensorflow" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', program], check=True)
