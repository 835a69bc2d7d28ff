"""Tests of the fingerprint that tells replaced training images."""

import os
import shutil

import numpy as np
import pytest
import tiny

from maskrcnn_jax.data.source import CocoFiles, read_set
from maskrcnn_jax.training import image_fingerprint
from maskrcnn_jax.training.image_fingerprint import (
  fingerprint_images,
  image_change,
)


@pytest.fixture
def data(tiny_data, tmp_path):
  return shutil.copytree(tiny_data, tmp_path / 'data')


def fingerprint(data):
  data_set = read_set(
    CocoFiles(str(data / 'images'), str(data / 'instances_train.json'))
  )
  rows = np.arange(len(data_set.coco_index.file_names))
  return str(fingerprint_images(data_set, rows))


def newest_image(data):
  names = read_set(
    CocoFiles(str(data / 'images'), str(data / 'instances_train.json'))
  ).coco_index.file_names
  return data / 'images' / names[-1]


def test_the_fingerprint_of_untouched_files_stays_the_same(data):
  assert image_change(fingerprint(data), fingerprint(data)) == ''


@pytest.mark.parametrize('place', [0, -1, 'end'])
def test_a_file_of_the_same_size_and_time_is_told_by_its_ends(data, place):
  before = fingerprint(data)
  path = newest_image(data)
  status = path.stat()
  content = bytearray(path.read_bytes())
  content[len(content) - 250 if place == 'end' else place] ^= 1
  path.write_bytes(content)
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
  assert 'sizes or their first or last' in image_change(
    before, fingerprint(data)
  )


def test_another_size_and_a_missing_file_are_told(data):
  before = fingerprint(data)
  path = newest_image(data)
  path.write_bytes(path.read_bytes() + b'0')
  longer = fingerprint(data)
  assert 'sizes' in image_change(before, longer)
  path.unlink()
  assert 'sizes' in image_change(longer, fingerprint(data))


def test_another_time_alone_is_told_as_such(data):
  before = fingerprint(data)
  os.utime(newest_image(data), (1, 1))
  assert 'only copied' in image_change(before, fingerprint(data))


def test_of_a_large_set_some_bytes_and_all_times_are_read(data, monkeypatch):
  monkeypatch.setattr(image_fingerprint, 'MAX_READ', 1)
  before = fingerprint(data)
  path = newest_image(data)
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  os.utime(path, (1, 1))
  assert 'modification times' in image_change(before, fingerprint(data))


@pytest.mark.parametrize(
  ('stored', 'now'), [('', 'a b'), ('a b', ''), ('', ''), ('a b', 'a b')]
)
def test_a_missing_fingerprint_is_no_change(stored, now):
  assert image_change(stored, now) == ''


@pytest.mark.usefixtures('idle_step', 'compilation_cache')
def test_a_resumed_run_warns_of_a_replaced_image(data, tmp_path, caplog):
  config = tiny.with_data(tiny.get_config(), data)
  config.train.num_steps = 2
  tiny.run_training(config, tmp_path / 'run')
  config.train.num_steps = 3
  tiny.run_training(config, tmp_path / 'run')
  assert 'C07' not in caplog.text
  path = newest_image(data)
  others = [p for p in (data / 'images').iterdir() if p != path]
  shutil.copyfile(others[0], path)
  config.train.num_steps = 4
  tiny.run_training(config, tmp_path / 'run')
  assert 'C07: Image files of the training set have changed' in caplog.text
