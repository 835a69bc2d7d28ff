"""Tests of predictions through the real command line, which are killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
from tiny import QUICK_COMPILATION

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures('compilation_cache'),
]

# Files that cannot be used, in a folder of 60.
NUM_BAD = 12


@pytest.fixture(scope='module')
def mixed(tiny_data, tmp_path_factory):
  """A folder of 48 pictures of many kinds, and 12 files that are none."""
  folder = tmp_path_factory.mktemp('mixed')
  rng = np.random.default_rng(0)
  suffixes = '.jpg .png .bmp .tif .webp .gif .jp2 .ppm .jfif'.split()
  for i in range(48):
    size = (64, 64) if i % 4 else tuple(rng.integers(20, 200, 2).tolist())
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    where = folder / ('sub' if i % 3 else '.')
    where.mkdir(exist_ok=True)
    image = Image.fromarray(pixels)
    image.save(where / f'picture_{i:02}{suffixes[i % len(suffixes)]}')
  whole = (folder / 'picture_00.jpg').read_bytes()
  bad = {
    'bad_00.jpg': b'',
    'bad_01.jpg': b'<html>not found</html>',
    'bad_02.jpg': whole[: len(whole) // 2],
    'bad_03.jpg': whole[:20],
    'bad_04.png': b'\x89PNG\r\n\x1a\n' + bytes(40),
    'bad_05.heic': b'\0\0\0\x18ftypheic' + bytes(80),
    'bad_06.png': b'version https://git-lfs.github.com/spec/v1',
    'bad_07.tif': b'II*\0' + bytes(60),
    'sub/bad_08.gif': b'GIF89a' + bytes(10),
    'sub/bad_09.webp': b'RIFF\x20\0\0\0WEBPVP8 ' + bytes(8),
  }
  for name, content in bad.items():
    (folder / name).write_bytes(content)
  Image.fromarray(rng.random((9, 9)).astype(np.float32)).save(
    folder / 'bad_10.tif'
  )
  Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(folder / 'bad_11.png')
  assert len(bad) + 2 == NUM_BAD
  return folder


@pytest.fixture
def start(tiny_run):
  """Returns a function that starts a prediction in another process."""
  processes = []

  def start_process(pictures, output, *flags, limit=None):
    """Starts a prediction.

    Args:
      pictures: The folder of the pictures.
      output: The folder of the results.
      *flags: More flags.
      limit: Largest size of a file in bytes; stands for a full disk.
    """

    # A shell sets the limit in blocks of 1024 bytes.
    shell = f'ulimit -f {limit // 1024}; exec "$@"' if limit else 'exec "$@"'
    process = subprocess.Popen(
      [
        *('bash', '-c', shell, 'bash'),
        sys.executable,
        '-m',
        'maskrcnn_jax.main',
        '--mode=predict',
        f'--checkpoint={tiny_run[0]}',
        f'--workdir={output.parent}',
        f'--output={output}',
        f'--input={pictures}',
        *flags,
      ],
      env=os.environ | {'XLA_FLAGS': QUICK_COMPILATION},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    processes.append(process)
    return process

  yield start_process
  for process in processes:
    process.kill()
    process.wait()
    process.stdout.close()


def kill_at(process, path, num_lines):
  """Kills a process when its file has a number of lines, and a moment later."""
  for _ in range(6000):
    if path.exists() and path.read_bytes().count(b'\n') > num_lines:
      break
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.01)
  time.sleep(random.Random(num_lines).uniform(0, 0.1))
  process.send_signal(signal.SIGKILL)
  process.communicate()


def check(mixed, output, log, draws=True):
  """Checks a complete result: each good picture once, each bad one named."""
  files = {
    str(path.relative_to(mixed)) for path in mixed.rglob('*') if path.is_file()
  }
  bad = {name for name in files if 'bad_' in name}
  lines = [
    json.loads(line)
    for line in (output / 'predictions.jsonl').read_text().splitlines()
  ]
  names = [line['file_name'] for line in lines if 'file_name' in line]
  assert sorted(names) == sorted(files)
  assert {line['file_name'] for line in lines if 'error' in line} == bad
  for name in bad:
    skipped = [line for line in log.splitlines() if 'Skipped: ' in line]
    assert sum(f'/{name} ' in line for line in skipped) == 1, (name, log)
  results = json.loads((output / 'predictions.json').read_text())
  assert {result['file_name'] for result in results} == files - bad
  keys = [(r['file_name'], str(r['bbox']), r['score']) for r in results]
  assert len(set(keys)) == len(keys)
  overlays = {str(p.relative_to(output)) for p in output.rglob('*.png')}
  drawn = files - bad if draws else ()
  assert overlays == {
    str(output.joinpath(name).with_suffix('.png').relative_to(output))
    for name in drawn
  }
  assert 'Traceback' not in log


def test_a_prediction_that_is_killed_three_times(mixed, start, tmp_path):
  output = tmp_path / 'out'
  for num_lines in (3, 17, 40):
    kill_at(start(mixed, output), output / 'predictions.jsonl', num_lines)
  process = start(mixed, output)
  log = process.communicate()[0]
  assert process.returncode == 2, log
  assert 'Continuing: ' in log
  check(mixed, output, log)
  # The same command once more replaces the result.
  shutil.move(output / 'predictions.json', tmp_path / 'first.json')
  process = start(mixed, output)
  log = process.communicate()[0]
  assert process.returncode == 2, log
  assert 'Continuing: ' not in log
  check(mixed, output, log)
  assert (output / 'predictions.json').read_bytes() == (
    tmp_path / 'first.json'
  ).read_bytes()


@pytest.mark.parametrize('overlays', ['png', 'none'])
def test_a_prediction_whose_disk_is_full(mixed, start, tmp_path, overlays):
  output = tmp_path / 'out'
  flag = f'--overlays={overlays}'
  # The limit is above the size of the file that `make_writable` tries.
  process = start(mixed, output, flag, limit=70_000)
  log = process.communicate()[0]
  assert process.returncode == 1, log
  (line,) = [x for x in log.splitlines() if x.startswith('error: ')]
  assert line.startswith('error: C10: a result cannot be written')
  assert 'Traceback' not in log
  process = start(mixed, output, flag)
  log = process.communicate()[0]
  assert process.returncode == 2, log
  assert 'Continuing: ' in log
  check(mixed, output, log, draws=overlays == 'png')


def test_two_processes_of_which_one_is_killed(tiny_data, start, tmp_path):
  pictures = tmp_path / 'pictures'
  pictures.mkdir()
  for i in range(200):
    source = tiny_data / 'images' / f'val_0000{i % 5}.jpg'
    shutil.copy(source, pictures / f'{i:03}.jpg')
  single = tmp_path / 'single'
  process = start(pictures, single, '--overlays=none')
  log = process.communicate()[0]
  assert process.returncode == 0, log

  output = tmp_path / 'out'
  first, second = (
    start(
      pictures,
      output,
      '--overlays=none',
      '--coordinator=127.0.0.1:29999',
      '--num_processes=2',
      f'--process_id={i}',
    )
    for i in range(2)
  )
  kill_at(second, output / 'predictions-1-of-2.jsonl', 30)
  log = first.communicate()[0]
  assert first.returncode == 0, log
  assert not (output / 'predictions.json').exists()
  second = start(
    pictures,
    output,
    '--overlays=none',
    '--num_processes=2',
    '--process_id=1',
  )
  log = second.communicate()[0]
  assert second.returncode == 0, log
  for name in ('predictions.json', 'predictions.jsonl'):
    assert (output / name).read_bytes() == (single / name).read_bytes()
