"""Names, files and pictures of strangers that could harm a terminal or hang."""

import contextlib
import json
import logging
import os
import signal
import struct

import numpy as np
from PIL import Image, TiffImagePlugin
import pytest

from maskrcnn_jax.check_data import command_line, contact_sheet
from maskrcnn_jax.data.image_checks import look_at_image
from maskrcnn_jax.data.images import decode_image, image_size
from maskrcnn_jax.errors import InputError, print_error, print_lines, printable
from maskrcnn_jax.runtime import console

# The first clears the terminal, the second is the one-character form of ESC [,
# the third begins a line that looks like one of the program, the last reverses
# the text after it.
ATTACKS = ['\x1b[2J', '\x9b31m', 'cat\n12:00:00 all is well', 'cat\u202egod']


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
  """A function that checks one picture with one object, with some changes.

  It returns the exit status and all that was printed, line by line.
  """
  monkeypatch.setattr(contact_sheet, 'NUM_EXAMPLES', 1)
  (tmp_path / 'images').mkdir()
  Image.new('RGB', (64, 64)).save(tmp_path / 'images' / 'a.png')

  def run_with(file_name='a.png', image_id=1, category_id=1, name='cat'):
    box = [8, 8, 30, 30]
    shape = [[8, 8, 38, 8, 38, 38, 8, 38]]
    image = {'id': image_id, 'file_name': file_name, 'height': 64, 'width': 64}
    content = {
      'images': [image],
      'annotations': [
        {
          'id': 1,
          'image_id': image_id,
          'category_id': category_id,
          'bbox': box,
          'area': 900,
          'iscrowd': 0,
          'segmentation': shape,
        }
      ],
      'categories': [{'id': category_id, 'name': name}],
    }
    (tmp_path / 'a.json').write_text(json.dumps(content))
    return check(tmp_path, capsys, tmp_path / 'a.json')

  return run_with


def check(folder, capsys, annotations):
  """Checks data; returns the exit status, and the lines that were printed."""
  status = command_line.main(
    [
      f'--images={folder / "images"}',
      f'--annotations={annotations}',
      f'--out={folder / "out"}',
      '--workers=1',
    ]
  )
  out, err = capsys.readouterr()
  # The progress bar rewrites its line.
  lines = out.split('\n') + err.replace('\r', '').split('\n')
  return status, lines


@pytest.mark.parametrize('attack', ATTACKS)
@pytest.mark.parametrize('place', ['name', 'category_id', 'image_id', 'file'])
def test_check_data_prints_no_control_characters_of_a_file(run, attack, place):
  place = 'file_name' if place == 'file' else place
  _, lines = run(**{place: attack})
  assert all(line.isprintable() for line in lines)
  assert not any(line.startswith('12:00:00') for line in lines)


def test_check_data_shows_names_of_all_scripts(run):
  # The last one has a no-break space and the joiner of an emoji.
  names = ['Füße', '猫', 'سگ', 'a\u00a0b\u200d']
  for name in names:
    status, lines = run(name=name)
    assert status == 0
    assert any(line.startswith(name) for line in lines)


def test_check_data_cuts_endless_names(run):
  status, lines = run(name='x' * 3_000_000)
  assert status == 0
  assert max(map(len, lines)) < 20_000


@contextlib.contextmanager
def time_limit(seconds):
  """Context manager that raises a TimeoutError if its block runs too long."""

  def stop(*_):
    raise TimeoutError

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_check_data_does_not_wait_for_a_pipe(run, tmp_path, capsys):
  os.mkfifo(tmp_path / 'pipe.json')
  with time_limit(10):
    status, lines = check(tmp_path, capsys, tmp_path / 'pipe.json')
  assert status == 2
  assert any('pipe.json is not a file' in line for line in lines)


@pytest.mark.parametrize('read', [decode_image, image_size])
def test_reading_an_image_does_not_wait_for_a_pipe(tmp_path, read):
  os.mkfifo(tmp_path / 'pipe.png')
  with time_limit(10), pytest.raises(InputError, match=r'png is not a file'):
    read(tmp_path / 'pipe.png')


@pytest.mark.parametrize('attack', ATTACKS)
def test_every_message_is_one_line_without_control_characters(capsys, attack):
  assert str(InputError(f'I01: no {attack}.')).isprintable()
  print_error(f'no {attack}.')
  print_lines(attack)
  out, err = capsys.readouterr()
  assert err.count('\n') == out.count('\n') == 1
  assert (out + err).replace('\n', '').isprintable()
  record = logging.LogRecord(
    'absl', logging.INFO, console.__file__, 1, 'Skipped: %s', (attack,), None
  )
  assert console._FORMAT.format(record).isprintable()


def test_messages_of_libraries_keep_their_lines():
  record = logging.LogRecord(
    'jax', logging.WARNING, '/lib/jax.py', 1, 'one\ntwo\x1b[2J', (), None
  )
  assert console._FORMAT.format(record).endswith('one\ntwo\\x1b[2J')


def test_printable_changes_nothing_else():
  assert printable('C:\\data\\ñ "x"') == 'C:\\data\\ñ "x"'
  assert printable('a\tb\r\ud800') == 'a\\tb\\r\\ud800'


def test_look_at_image_does_not_walk_the_pages_of_a_tiff(tmp_path, monkeypatch):
  pages = [Image.fromarray(np.zeros((64, 64), np.uint8)) for _ in range(3)]
  file = tmp_path / 'a.tif'
  pages[0].save(file, save_all=True, append_images=pages[1:])
  monkeypatch.setattr(
    TiffImagePlugin.TiffImageFile,
    'n_frames',
    property(lambda image: pytest.fail('The pages are counted.')),
  )
  facts = look_at_image(file)
  assert facts.problem == ''
  assert 'I14' in facts.notes[0]
  # A last page that points to itself does no harm either.
  content = bytearray(file.read_bytes())
  (first,) = struct.unpack('<I', content[4:8])
  (count,) = struct.unpack('<H', content[first : first + 2])
  place = first + 2 + 12 * count
  content[place : place + 4] = struct.pack('<I', first)
  file.write_bytes(content)
  assert look_at_image(file).problem == ''
