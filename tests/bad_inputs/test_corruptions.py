"""Randomly damaged data must end in a clear message or in a correct run."""

import collections
import contextlib
import json
import pathlib
import re
import shutil
import signal
import warnings

import cases
import numpy as np
import pytest

from maskrcnn_jax.check_data.check import check_data
from maskrcnn_jax.check_data.report import format_report
from maskrcnn_jax.data import (
  canvases,
  coco,
  coco_index,
  findings,
  image_sets,
  loader,
)
from maskrcnn_jax.data.source import CocoFiles, check_images_exist, read_set
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation import average_precision

COCO_MINI = pathlib.Path(__file__).parents[3] / 'shared/data/coco_mini'

# Seconds that one damaged set may take. A sound set takes a tenth of it.
LIMIT = 20

NUMBER = re.compile(rb'-?\d+(\.\d+)?([eE][-+]?\d+)?')
STRANGE = (
  b'0',
  b'-1',
  b'1e308',
  b'NaN',
  b'Infinity',
  b'-Infinity',
  b'0.5',
  b'""',
  b'null',
  b'true',
  b'[]',
  b'{}',
  b'9223372036854775808',
  b'1' * 400,
  b'"1"',
  b'1e-320',
  b'4294967296',
  b'-0.0',
)


class TooLong(Exception):
  """A block under `time_limit` ran longer than it may."""


@contextlib.contextmanager
def time_limit(seconds):
  """Context manager that raises TooLong if its block runs too long."""

  def stop(*_):
    raise TooLong

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def damage_bytes(rng, content):
  """Changes, removes, doubles, inserts or cuts off bytes at a random place."""
  content = bytearray(content)
  start = int(rng.integers(len(content)))
  length = int(2 ** rng.uniform(0, 9))
  match rng.integers(5):
    case 0:
      for place in rng.integers(len(content), size=max(1, length // 16)):
        content[place] = rng.integers(256)
    case 1:
      del content[start : start + length]
    case 2:
      content[start:start] = content[start : start + length]
    case 3:
      content[start:start] = rng.bytes(length)
    case 4:
      del content[start:]
  return bytes(content)


def damage_numbers(rng, content):
  """Replaces one to three numbers of a JSON by unusual values."""
  for _ in range(rng.integers(1, 4)):
    numbers = list(NUMBER.finditer(content, int(rng.integers(len(content)))))
    if numbers:
      number = numbers[0]
      strange = STRANGE[rng.integers(len(STRANGE))]
      content = content[: number.start()] + strange + content[number.end() :]
  return content


def use(folder, row):
  """Reads a set like a training and an evaluation.

  Args:
    folder: The folder of the set.
    row: Row of the image whose file may be damaged. It is loaded, and so is the
      first image.

  Returns:
    The message of the InputError, which must have a code; '' without an error.
  """
  try:
    data_set = read_set(
      CocoFiles(str(folder / 'images'), str(folder / 'instances.json'))
    )
    index = data_set.coco_index
    check_images_exist(data_set)
    rows, _ = image_sets.filter_images(index, keep_empty=True)
    limits = image_sets.find_limits(index, max_objects=100)
    plan = canvases.plan_canvases(
      index.heights,
      index.widths,
      short_side=128,
      long_side=256,
      padded_sizes=((256, 256),),
      max_source_side=2666,
    )
    for row_ in {row % len(rows), 0}:
      batch = loader.load_row(data_set, plan, row_, limits)
      assert np.isfinite(batch.gt_boxes).all()
      assert np.isfinite(batch.outlines.vertices).all()
      boxes = batch.gt_boxes[batch.gt_valid]
      assert (boxes[:, 2:] > boxes[:, :2]).all()
      assert (batch.gt_classes[batch.gt_valid] <= len(index.categories)).all()
    truth = coco.read_json(folder / 'instances.json')
    left_out = sum(
      count
      for reason, count in index.dropped.items()
      # An object stays when only one of its polygons is left out.
      if reason != coco_index.BAD_POLYGON
    )
    assert len(index.classes) + left_out == len(truth['annotations'])
    for kind in ('bbox', 'segm'):
      ap = average_precision.evaluate_detections(truth, [], kind=kind)
      assert ap.stats['AP'] in (0.0, None)
  except InputError as error:
    assert re.search(r'\b[AIC]\d\d: ', str(error)), error
    assert '\n' not in str(error)
    return str(error)
  return ''


def check(folder):
  """Checks a set with check_data, without the contact sheet.

  Returns:
    Whether the set has no errors and an AP can be computed on it.
  """
  source = CocoFiles(str(folder / 'images'), str(folder / 'instances.json'))
  result = check_data(source, num_workers=1)
  format_report(result)
  json.dumps(result)
  return result['is_ok'] and 'evaluation' not in result


def damage_and_use(folder, sound, count, seed):
  """Damages a set in several ways, and checks and uses each damaged set.

  Args:
    folder: The folder for the damaged sets, one after the other.
    sound: The folder of the sound set.
    count: Number of damaged sets.
    seed: Seed of the damage.

  Returns:
    The number of sets by their damaged part ('image', 'JSON' or 'numbers') and
    by whether they could be used in spite of the damage.
  """
  rng = np.random.default_rng(seed)
  content = (sound / 'instances.json').read_bytes()
  names = [image['file_name'] for image in json.loads(content)['images']]
  shutil.copytree(sound, folder, dirs_exist_ok=True)
  outcomes = collections.Counter()
  for i in range(count):
    row = int(rng.integers(len(names)))
    image = folder / 'images' / names[row]
    damaged = content
    target = ('image', 'JSON', 'numbers')[i % 3]
    match target:
      case 'image':
        image.write_bytes(damage_bytes(rng, image.read_bytes()))
      case 'JSON':
        damaged = damage_bytes(rng, content)
      case 'numbers':
        damaged = damage_numbers(rng, content)
    (folder / 'instances.json').write_bytes(damaged)
    with time_limit(LIMIT), warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Pillow warns of damaged images.
      problem = use(folder, row)
      # A set that check_data accepts can be used. The reverse need not hold,
      # because `use` loads only two images.
      if check(folder):
        assert not problem, (i, seed, problem)
    outcomes[target, not problem] += 1
    shutil.copy(sound / 'images' / names[row], image)
  return outcomes


def test_damage_to_a_drawn_set_is_found_out_or_harmless(tmp_path):
  data = cases.Set(tmp_path / 'sound')
  data.write()
  outcomes = damage_and_use(tmp_path / 'damaged', data.folder, 60, seed=0)
  assert outcomes['numbers', True]
  for target in ('image', 'JSON', 'numbers'):
    assert outcomes[target, False] > 5


@pytest.mark.slow
def test_damage_to_real_data_is_found_out_or_harmless(tmp_path):
  if not COCO_MINI.exists():
    pytest.skip(f'{COCO_MINI} is not here.')
  sound = tmp_path / 'sound'
  content = json.loads((COCO_MINI / 'instances_val.json').read_text())
  content['images'] = content['images'][:12]
  ids = {image['id'] for image in content['images']}
  content['annotations'] = [
    a for a in content['annotations'] if a['image_id'] in ids
  ]
  (sound / 'images').mkdir(parents=True)
  for image in content['images']:
    name = image['file_name']
    shutil.copy(COCO_MINI / 'images' / name, sound / 'images' / name)
  (sound / 'instances.json').write_text(json.dumps(content))
  outcomes = damage_and_use(tmp_path / 'damaged', sound, 500, seed=1)
  print(outcomes)
  assert outcomes.total() == 500
  for target in ('image', 'JSON', 'numbers'):
    assert outcomes[target, False] > 20
    assert outcomes[target, True] > 5


def test_a_report_keeps_few_lines_of_many_findings():
  report = findings.Report(stop=False, keep=5)
  for i in range(1000):
    report.warn('A05', 'a.json', f'annotation {i}', 'odd.')
  report.error('A04', 'a.json', '', 'not\na number \x1b[31m' + 'x' * 5000)
  assert report.counts == {'A05': 1000, 'A04': 1}
  assert len(report.kept) == 6
  assert report.error_codes == ['A04']
  assert report.warnings() == [
    'a.json: annotation 0: A05: odd. (1000 such cases)'
  ]
  line = str(report.kept[-1])
  assert line.startswith('a.json: A04: not?a number ?[31mxxx')
  assert len(line) < 600
