"""Tests that a flipped bit in a checkpoint is found, by the command line."""

import gc
import os
import pathlib
import random
import shutil
import subprocess
import sys

import pytest
import tiny

ROOT = pathlib.Path(__file__).parents[2]
NUM_FLIPS = 15  # of each of the four uses

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures('compilation_cache'),
  # If one array is damaged, orbax never awaits the reads of the other arrays.
  pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnraisableExceptionWarning',
    'ignore::pytest.PytestUnhandledThreadExceptionWarning',
    'ignore:coroutine .* was never awaited:RuntimeWarning',
    'ignore::ResourceWarning',
  ),
]


def flip_a_bit(step, items, draw):
  """Flips a random bit in the files of some items; returns a text about it.

  Args:
    step: The folder of one saved step.
    items: Names of the items. Each byte of them is as likely as any other.
    draw: The random numbers.
  """
  files = sorted(
    path
    for item in items
    for path in (step / item).rglob('*')
    # Orbax does not read these files.
    if path.is_file() and path.name not in ('commit_success.txt', '_sharding')
  )
  (file,) = draw.choices(files, [path.stat().st_size for path in files])
  content = bytearray(file.read_bytes())
  place, bit = draw.randrange(len(content)), draw.randrange(8)
  content[place] ^= 1 << bit
  file.write_bytes(content)
  return f'bit {bit} of byte {place} of {file.relative_to(step)}'


def arguments(use, workdir, step, data):
  """Returns the arguments of a command that reads a checkpoint.

  Args:
    use: 'resume', 'init_from', 'eval' or 'predict'.
    workdir: Its workdir. For 'resume', it holds the checkpoint.
    step: The folder of the saved step.
    data: The data set.
  """
  common = [f'--workdir={workdir}']
  train = [
    f'--config={tiny.__file__}',
    '--skip_test',
    *tiny.data_flags(data),
    *common,
  ]
  return {
    'resume': train,
    'init_from': [*train, f'--init_from={step}', '--config.train.num_steps=1'],
    'eval': ['--mode=eval', f'--checkpoint={step}', *common],
    'predict': [
      '--mode=predict',
      f'--checkpoint={step}',
      f'--input={data / "images"}',
      '--overlays=none',
      *common,
    ],
  }[use]


def prepare(use, tiny_run, folder, draw):
  """Copies the tiny run and flips a bit of its newest step.

  Returns:
    The copy, the step, and a text about the flip.
  """
  copy = shutil.copytree(tiny_run[0], folder)
  step = copy / 'checkpoints' / '4'
  items = ['model', 'metadata'] + ['optimizer'] * (use == 'resume')
  return copy, step, flip_a_bit(step, items, draw)


def is_found(use, code, output, copy):
  """Tells whether a program has found the damage, and ended as it should."""
  assert 'Traceback' not in output, output
  if use == 'resume':
    assert code == 0, output
    return (copy / 'damaged' / '4').is_dir()
  if code == 0:
    return False
  assert code == 2, output
  (line,) = [x for x in output.splitlines() if x.startswith('error: ')]
  assert 'C08: ' in line, line
  return True


@pytest.mark.parametrize(
  ('seed', 'use'),
  [(0, 'resume'), (1, 'init_from'), (2, 'eval'), (3, 'predict')],
)
def test_flipped_bits_are_found(run, tiny_run, tiny_data, tmp_path, seed, use):
  draw = random.Random(seed)
  num_found = 0
  for i in range(NUM_FLIPS):
    copy, step, flip = prepare(use, tiny_run, tmp_path / str(i), draw)
    other = copy if use == 'resume' else tmp_path / f'other-{i}'
    code, out, err = run(*arguments(use, other, step, tiny_data))
    found = is_found(use, code, out + err, copy)
    num_found += found
    print(f'{use}: {flip}: {"found" if found else "harmless"}')
    # If the step was found to be damaged, a resumed run has made it again.
    # Otherwise the bit must be one that changes nothing, such as a bit of a
    # comment. A damaged step that another command refuses stays as it is.
    if use == 'resume' or not found:
      tiny.assert_same_arrays(
        tiny.saved_arrays(copy, 4), tiny.saved_arrays(tiny_run[0], 4)
      )
    gc.collect()
  print(f'{use}: {num_found} of {NUM_FLIPS} found')
  assert num_found >= NUM_FLIPS - 2


@pytest.mark.parametrize('use', ['resume', 'init_from', 'eval', 'predict'])
def test_a_process_of_its_own_finds_a_flipped_bit(
  tiny_run, tiny_data, tmp_path, use
):
  draw = random.Random(use)
  copy, step, _ = prepare(use, tiny_run, tmp_path / 'copy', draw)
  other = copy if use == 'resume' else tmp_path / 'other'
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'maskrcnn_jax.main',
      *arguments(use, other, step, tiny_data),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  assert is_found(use, done.returncode, done.stdout + done.stderr, copy)
