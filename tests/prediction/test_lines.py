"""Tests of results on disk: continuing, replacing and merging them."""

import errno
import io
import json
import multiprocessing

import pytest

from maskrcnn_jax.errors import InputError, SaveError
from maskrcnn_jax.prediction import lines as prediction_lines
from maskrcnn_jax.prediction.lines import Share

FACTS = {'checkpoint': 'a', 'sizes': (1, 2)}
NAMES = [f'{i}.jpg' for i in range(5)]


def line_of(name):
  """Returns the line of a picture with one object."""
  return {
    'file_name': name,
    'overlay': name.replace('jpg', 'png'),
    'objects': [{'file_name': name, 'score': 0.5}],
  }


def write(folder, names, share=Share(), facts=FACTS):  # noqa: B008
  """Writes the lines of pictures as a process does, and their overlays."""
  prediction_lines.start(folder, facts)
  with prediction_lines.open_lines(folder, share, facts) as file:
    for name in names:
      (folder / line_of(name)['overlay']).write_bytes(b'')
      prediction_lines.append(file, line_of(name))


def found(folder):
  """Returns the names of the objects in predictions.json, in their order."""
  content = json.loads((folder / 'predictions.json').read_text())
  return [result['file_name'] for result in content]


def done(folder):
  return prediction_lines.find_lines(folder, NAMES).is_done.tolist()


def test_lines_are_merged_in_the_order_of_the_pictures(tmp_path):
  write(tmp_path, NAMES[1::2], Share(1, 2))
  assert not prediction_lines.merge(tmp_path, NAMES, FACTS)
  assert not (tmp_path / 'predictions.json').exists()
  write(tmp_path, NAMES[0::2], Share(0, 2))
  assert prediction_lines.merge(tmp_path, NAMES, FACTS)
  assert found(tmp_path) == NAMES
  assert [
    line['file_name'] for line in prediction_lines.finished_lines(tmp_path)
  ] == NAMES
  # The files of the processes are gone.
  assert [path.name for path in tmp_path.glob('*.jsonl')] == [
    'predictions.jsonl'
  ]
  # A process that is done later does not merge again.
  assert prediction_lines.merge(tmp_path, NAMES, FACTS)
  assert found(tmp_path) == NAMES


@pytest.mark.parametrize('lost', range(1, 40, 4))
def test_a_line_that_was_cut_off_is_written_again(tmp_path, lost):
  write(tmp_path, NAMES[:3])
  path = tmp_path / 'predictions.jsonl'
  content = path.read_bytes()
  path.write_bytes(content[:-lost])
  assert done(tmp_path) == [True, True, False, False, False]
  write(tmp_path, NAMES[2:])
  assert path.read_bytes().startswith(content)
  assert prediction_lines.merge(tmp_path, NAMES, FACTS)
  assert found(tmp_path) == NAMES


def test_a_line_that_a_power_failure_damaged_counts_as_missing(tmp_path):
  write(tmp_path, NAMES[:2])
  with open(tmp_path / 'predictions.jsonl', 'ab') as file:
    file.write(bytes(500) + b'\n')
  write(tmp_path, NAMES[2:])
  assert prediction_lines.merge(tmp_path, NAMES, FACTS)
  assert found(tmp_path) == NAMES


def test_another_number_of_processes_continues(tmp_path):
  write(tmp_path, NAMES[1:2], Share(1, 3))
  assert done(tmp_path) == [False, True, False, False, False]
  write(tmp_path, [NAMES[0], *NAMES[2:]])
  assert prediction_lines.merge(tmp_path, NAMES, FACTS)
  assert found(tmp_path) == NAMES


def test_a_picture_that_is_no_longer_there_keeps_its_result(tmp_path):
  write(tmp_path, [*NAMES, 'gone.jpg'])
  assert prediction_lines.merge(tmp_path, NAMES, FACTS)
  assert found(tmp_path) == [*NAMES, 'gone.jpg']


def test_a_finished_result_is_replaced_with_its_overlays(tmp_path):
  folder = tmp_path / 'out'
  folder.mkdir()
  (folder / 'mine.png').write_bytes(b'')
  (tmp_path / 'outside.png').write_bytes(b'')
  write(folder, NAMES)
  with open(folder / 'predictions.jsonl', 'a') as file:
    file.write('{"file_name": "x", "overlay": "../outside.png"}\n')
  prediction_lines.merge(folder, NAMES, FACTS)
  assert not prediction_lines.start(folder, FACTS | {'checkpoint': 'b'})
  # Other files are left alone, also if somebody has edited the lines.
  assert {p.name for p in folder.iterdir()} == {'.lock', 'mine.png'}
  assert (tmp_path / 'outside.png').exists()


def test_an_unfinished_result_of_another_prediction_is_refused(tmp_path):
  write(tmp_path, NAMES[:2])
  with pytest.raises(
    InputError, match=r'checkpoint was "a", now "b".*--output'
  ):
    prediction_lines.start(tmp_path, FACTS | {'checkpoint': 'b'})
  assert prediction_lines.start(tmp_path, FACTS)
  assert done(tmp_path) == [True, True, False, False, False]


def test_the_json_file_of_an_earlier_version_is_removed(tmp_path):
  (tmp_path / 'predictions.json').write_text('[]')
  prediction_lines.start(tmp_path, FACTS)
  assert not (tmp_path / 'predictions.json').exists()


def _open(folder, queue):
  """Tries to open the lines of a process in another process."""
  try:
    with prediction_lines.open_lines(folder, Share(), FACTS):
      queue.put('opened')
  except InputError as error:
    queue.put(str(error))


def test_two_processes_cannot_have_the_same_share(tmp_path):
  context = multiprocessing.get_context('spawn')
  queue = context.Queue()
  with prediction_lines.open_lines(tmp_path, Share(), FACTS):
    process = context.Process(target=_open, args=(tmp_path, queue))
    process.start()
    assert 'Another process is writing to' in queue.get(timeout=60)
    process.join()


class FullDisk(io.FileIO):
  """A file on a disk with room for 20 bytes more."""

  room = 20

  def write(self, data):
    if not self.room:
      raise OSError(errno.ENOSPC, 'No space left on device')
    size = super().write(data[: self.room])
    self.room -= size
    return size


def test_a_full_disk_is_an_error_of_one_line_and_loses_one_picture(tmp_path):
  write(tmp_path, NAMES[:2])
  with (
    FullDisk(tmp_path / 'predictions.jsonl', 'a') as file,
    pytest.raises(SaveError, match='C10: .*No space left.*same command again'),
  ):
    prediction_lines.append(file, line_of(NAMES[2]))
  assert done(tmp_path) == [True, True, False, False, False]
  write(tmp_path, NAMES[2:])
  assert prediction_lines.merge(tmp_path, NAMES, FACTS)
  assert found(tmp_path) == NAMES


def test_a_full_disk_leaves_the_lines_if_they_cannot_be_merged(
  tmp_path, monkeypatch
):
  write(tmp_path, NAMES)

  def fail(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(prediction_lines, '_write', fail)
  with pytest.raises(SaveError, match='C10'):
    prediction_lines.merge(tmp_path, NAMES, FACTS)
  monkeypatch.undo()
  assert not list(tmp_path.glob('*.partial'))
  assert prediction_lines.start(tmp_path, FACTS)
  assert prediction_lines.merge(tmp_path, NAMES, FACTS)
  assert found(tmp_path) == NAMES
