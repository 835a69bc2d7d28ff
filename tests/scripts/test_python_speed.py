"""Tests of the comparison of Python with `--mode=predict`."""

import copy
import importlib.util
import math
import pathlib
import re

import pytest

PATH = pathlib.Path(__file__).parents[2] / 'scripts' / 'python_speed.py'

pytestmark = pytest.mark.usefixtures('compilation_cache')

OBJECT = {
  'file_name': 'a.png',
  'category_id': 3,
  'score': 0.5,
  'bbox': [1.0, 2.0, 3.0, 4.0],
  'segmentation': {'size': [50, 100], 'counts': ''},
}


@pytest.fixture(scope='module')
def python_speed():
  spec = importlib.util.spec_from_file_location('python_speed', PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow  # tests/test_api.py compares the results in the default tier.
def test_both_find_the_same_objects(python_speed, tiny_run, tiny_data, capsys):
  status = python_speed.main(
    [f'--checkpoint={tiny_run[0]}', f'--input={tiny_data}/images/val_0000[01]*']
  )
  assert status == 0
  lines = capsys.readouterr().out.splitlines()
  assert re.fullmatch(r'\d+ objects in 2 pictures', lines[0])
  assert lines[1] == 'largest difference: 0'
  assert re.fullmatch(r'round 1: .* ratio \d+\.\d{3}', lines[2])


def test_largest_difference_is_a_share_of_the_picture(python_speed):
  other = copy.deepcopy(OBJECT)
  other['bbox'][2] = 3.5
  other['score'] = 0.498
  # The box differs by 0.5 of 100 pixels, the score by 0.002.
  assert python_speed.largest_difference([OBJECT], [other]) == 0.005
  assert python_speed.largest_difference([OBJECT], [OBJECT]) == 0
  assert python_speed.largest_difference([OBJECT], []) == math.inf
  other['category_id'] = 4
  assert python_speed.largest_difference([OBJECT], [other]) == math.inf
