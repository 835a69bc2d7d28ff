"""Tests of real disks that are full, by the command line."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import tiny

from maskrcnn_jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compilation_cache')]

UNSHARE = ['unshare', '--user', '--map-root-user', '--mount']

# Gives a command twice: on a small disk, which is in memory, and once more when
# the disk has room. Then it copies the disk to the folder KEPT.
TWICE = """
mount -t tmpfs -o size="$SIZE" tmpfs "$DISK" || exit 99
"$@" 2>&1; echo "status $?"
df -k "$DISK" | tail -n 1
mount -o remount,size=200m "$DISK" || exit 99
"$@" 2>&1; echo "status $?"
cp -r "$DISK" "$KEPT"
"""


def run_twice(tmp_path, size, *arguments):
  """Runs the command line on a full disk, and again when it has room.

  Args:
    tmp_path: The disk is its folder 'disk', and the copy of it 'kept'.
    size: Size of the full disk, such as '3m'.
    *arguments: The arguments of the command line.

  Returns:
    The output and the exit status of both runs.
  """
  if (
    not shutil.which('unshare') or subprocess.run([*UNSHARE, 'true']).returncode
  ):
    pytest.skip('needs namespaces of users')
  (tmp_path / 'disk').mkdir()
  done = subprocess.run(
    [
      *UNSHARE,
      *('sh', '-c', TWICE, 'sh'),
      *(sys.executable, '-m', 'maskrcnn_jax.main'),
      *arguments,
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'SIZE': size,
      'DISK': str(tmp_path / 'disk'),
      'KEPT': str(tmp_path / 'kept'),
    },
  )
  if done.returncode == 99:
    pytest.skip('needs disks in memory')
  print(done.stdout)
  first, one, second, two, _ = re.split(
    r'^status (\d+)\n', done.stdout, flags=re.M
  )
  assert 'Traceback' not in done.stdout
  return (first, int(one)), (second, int(two))


def error_in(output):
  (line,) = [x for x in output.splitlines() if x.startswith('error: ')]
  return line


def test_a_training_goes_on_when_its_disk_has_room_again(
  tiny_data, tiny_run, tmp_path
):
  # A checkpoint has 1.8 MB, and old ones are kept.
  (first, one), (second, two) = run_twice(
    tmp_path,
    '3m',
    f'--config={tiny.__file__}',
    f'--workdir={tmp_path / "disk" / "run"}',
    '--skip_test',
    *tiny.data_flags(tiny_data),
  )
  assert one == 1, first
  line = error_in(first)
  assert line.startswith('error: C10: Saving step 4 in ')
  assert 'step 2 is whole. Make room, then give the same command' in line
  assert two == 0, second
  assert 'Resuming from step 2' in second
  run = tmp_path / 'kept' / 'run'
  assert checkpoint.saved_steps(run / 'checkpoints') == [2, 4]
  assert not (run / 'damaged').exists()
  tiny.assert_same_arrays(
    tiny.saved_arrays(run, 4), tiny.saved_arrays(tiny_run[0], 4)
  )


@pytest.mark.parametrize(
  ('overlays', 'size'),
  # An overlay has 110 to 190 kB, and several are written at once.
  [('png', '2m'), ('none', '100k')],
)
def test_a_prediction_goes_on_when_its_disk_has_room_again(
  tiny_data, tiny_run, tmp_path, overlays, size
):
  pictures = tmp_path / 'pictures'
  pictures.mkdir()
  for i in range(60):
    source = tiny_data / 'images' / f'val_0000{i % 5}.jpg'
    shutil.copy(source, pictures / f'{i:03}.jpg')
  arguments = [
    '--mode=predict',
    f'--checkpoint={tiny_run[0]}',
    f'--input={pictures}',
    f'--overlays={overlays}',
  ]
  (first, one), (second, two) = run_twice(
    tmp_path, size, *arguments, f'--workdir={tmp_path / "disk" / "run"}'
  )
  assert one == 1, first
  assert error_in(first).startswith('error: C10: ')
  assert two == 0, second
  assert 'Continuing: ' in second
  subprocess.run(
    [
      *(sys.executable, '-m', 'maskrcnn_jax.main'),
      *arguments,
      f'--workdir={tmp_path / "straight"}',
    ],
    cwd=ROOT,
    check=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  for name in ('predictions.json', 'predictions.jsonl'):
    kept, straight = (
      (folder / 'predictions' / name).read_text()
      for folder in (tmp_path / 'kept' / 'run', tmp_path / 'straight')
    )
    assert kept == straight
  assert len(list((tmp_path / 'kept').rglob('*.png'))) == (
    60 if overlays == 'png' else 0
  )
