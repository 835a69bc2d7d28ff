"""`check_data --fix` survives files with random values in random places."""

import copy
import json
import random

import cases
import pytest

from maskrcnn_jax.check_data import command_line, contact_sheet

FLAT = [6, 8, 24, 8, 24, 22, 6, 22]
RLE = {'size': [cases.HEIGHT, cases.WIDTH], 'counts': [5120]}
VALUES = [
  *(None, True, 0, 1, -1, 1.0, 1.5, 2**63, 10**400, 1e308),
  *(float('nan'), float('inf'), '', '1', '1.0', 'nan', '[', "b'1'", "b''"),
  *('\ud800', 'a\0b', '/', '..', '%', '?d=', 'images\\0.png', 'x' * 3000),
  *([], {}, [1], [[1]], [[[1]]], [None], [[None]], [1, 'a'], {'a': []}),
  *(FLAT, [[FLAT]], [[1, 2], [3, 4], [5, 6]], [{'x': 1, 'y': 2}] * 3),
  *([0.1, 0.2, 0.3, 0.4], [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], [[0] * 6]),
  *(RLE, [RLE], [RLE, FLAT], RLE | {'size': [80, 64]}, {'size': [64, 80]}),
  *([{'counts': 1}], {'size': 'x', 'counts': ['1']}, {'counts': [[[1]]]}),
  *('[1, 2, 3, 4]', json.dumps(RLE), ['6', '8', '9', '9']),
]


def places(value, path=()):
  """Yields the path of each value in a JSON document."""
  yield path
  if isinstance(value, dict):
    for key, child in value.items():
      yield from places(child, (*path, key))
  elif isinstance(value, list):
    for i, child in enumerate(value):
      yield from places(child, (*path, i))


def spoil(content, rng):
  """Replaces, removes or repeats some values of a document, in place."""
  # A value at the top would mostly make a file of another kind.
  paths = [path for path in places(content) if len(path) > 1]
  for _ in range(rng.choice([1, 1, 2, 3, 8])):
    *folders, last = rng.choice(paths)
    place = content
    try:
      for folder in folders:
        place = place[folder]
      action = rng.random()
      if action < 0.15:
        del place[last]
      elif action < 0.25 and isinstance(place, list):
        place.append(copy.deepcopy(place[last]))
      else:
        place[last] = copy.deepcopy(rng.choice(VALUES))
    except (KeyError, IndexError, TypeError):
      pass  # An earlier change has taken the place away.


@pytest.mark.slow
def test_a_copy_without_errors_left_has_no_error(tmp_path, monkeypatch):
  monkeypatch.setattr(contact_sheet, 'write_sheet', lambda *_, **__: None)
  data = cases.Set(tmp_path / 'set', num_images=3)
  data.objects[0]['segmentation'] = cases.compressed(cases.mask())
  data.objects[1]['segmentation'] = cases.uncompressed(cases.mask())
  clean = data.content
  num_repaired = 0
  for seed in range(300):
    rng = random.Random(seed)
    data.content = copy.deepcopy(clean)
    spoil(data.content, rng)
    data.write()
    fixed = tmp_path / f'{seed}.json'
    arguments = [
      f'--images={data.images_dir}',
      f'--out={tmp_path / "out"}',
      '--workers=1',
      *rng.choice([[], ['--boxes_only']]),
    ]
    status = command_line.main(
      [*arguments, f'--annotations={data.annotations}', f'--fix={fixed}']
    )
    assert status in (0, 2)
    if status == 0:
      num_repaired += 1
      again = command_line.main([*arguments, f'--annotations={fixed}'])
      assert again == 0, seed
  # Most files are repaired, so that the second check says something.
  assert num_repaired > 200
