"""Tests of the status line, most of them in a pseudo-terminal."""

import os
import pathlib
import re
import sys

from rich.console import Console
import terminal

from maskrcnn_jax.runtime.status_line import bar, progress, waiting

ROOT = pathlib.Path(__file__).parents[2]


def on_terminal(program, **environment):
  """Runs a program text in a pseudo-terminal; returns the recording."""
  return terminal.record(
    [sys.executable, '-c', program],
    cwd=ROOT,
    env=os.environ
    | {'PYTHONIOENCODING': 'utf-8', 'TERM': 'xterm', 'PYTHONPATH': str(ROOT)}
    | environment,
  )


def test_a_wait_is_shown_before_it_begins_and_counts_its_seconds():
  recording = on_terminal("""
import time
from maskrcnn_jax.runtime.status_line import waiting
with waiting('Reading the training set'):
  time.sleep(1.8)
""")
  text = ''.join(chunk for _, chunk in recording.chunks)
  seconds = re.findall(r'Reading the training set \.\.\. (\d) s', text)
  # The line is drawn at the beginning and twice a second.
  assert seconds == sorted(seconds) and len(seconds) in (4, 5)
  assert {'0', '1'} <= set(seconds)
  # Nothing of the line is left at the end.
  assert terminal.screen_of(recording).lines == ['']


def test_all_output_appears_above_the_line():
  recording = on_terminal("""
import sys, time
from maskrcnn_jax.runtime.status_line import keep_below, waiting
keep_below()
with waiting('Working'):
  print('one')
  print('two', file=sys.stderr)
  print('three', 'four')
  sys.stdout.write('fi')
  time.sleep(1.2)
  sys.stdout.write('ve\\n')
  time.sleep(0.7)
print('six')
""")
  assert terminal.screen_of(recording).lines == [
    *('one', 'two', 'three four', 'five', 'six', '')
  ]


def test_the_innermost_line_is_shown_and_a_bar_stays_at_the_end():
  recording = on_terminal("""
import time
from maskrcnn_jax.runtime.status_line import progress, waiting
for item in progress('abcd', total=4, description='Evaluating'):
  if item == 'a':
    with waiting('Compiling'):
      time.sleep(1)
  time.sleep(0.1)
""")
  shown = [text for _, text in recording.chunks]
  first = next(i for i, text in enumerate(shown) if 'Compiling' in text)
  assert any('Evaluating:   0%' in text for text in shown[: first + 1])
  (line, _) = terminal.screen_of(recording).lines
  assert re.match('Evaluating: 100% ━+ 4/4 ', line)
  assert len(line) < terminal.COLUMNS
  # The second in `waiting` does not count for the speed: 4 images take 0.4 s.
  assert 6 < float(re.search(r'([\d.]+) images/s', line)[1]) < 10.5


def test_an_exception_removes_the_lines():
  recording = on_terminal("""
import contextlib, sys
from maskrcnn_jax.runtime.status_line import keep_below, progress, waiting
keep_below()
try:
  with contextlib.closing(
    progress('abcd', total=4, description='Evaluating')
  ) as items, waiting('Working'):
    for item in items:
      raise ValueError
except ValueError:
  print('error: wrong')
""")
  assert terminal.screen_of(recording).lines == ['error: wrong', '']


def test_a_dumb_terminal_gets_no_status_line():
  recording = on_terminal(
    """
from maskrcnn_jax.runtime.status_line import keep_below, waiting
keep_below()
with waiting('Working'):
  print('one')
""",
    TERM='dumb',
  )
  assert ''.join(text for _, text in recording.chunks) == 'one\r\n'


def test_text_is_shown_as_it_is():
  # Names of files and classes may look like markup, and a line that the
  # terminal wraps stays one line for those who copy it.
  text = 'car[red]/[/red] [b] :smile: \\[x] ' + 'x' * 100
  recording = on_terminal(f"""
import sys
from maskrcnn_jax.runtime.status_line import keep_below, waiting
keep_below()
with waiting('Reading [red]a[/red] [b]'):
  print({text!r})
  print('a line', {text!r}, file=sys.stderr)
  print('[b]', end='', flush=True)
""")
  assert any(
    'Reading [red]a[/red] [b] ... 0 s' in shown for _, shown in recording.chunks
  )
  assert terminal.screen_of(recording).lines == [
    *(text, f'a line {text}', '[b]', '')
  ]


def test_a_log_line_appears_once_and_above_the_line():
  recording = on_terminal("""
import sys
from absl import flags, logging
from maskrcnn_jax import main
from maskrcnn_jax.runtime.status_line import waiting
flags.FLAGS([sys.argv[0]])
main.set_up_console()
logging.warning('before')
with waiting('Working'):
  logging.warning('during')
logging.warning('after')
""")
  lines = terminal.screen_of(recording).lines
  assert [line[9:] for line in lines] == ['before', 'during', 'after', '']


def test_output_that_is_not_for_the_terminal_stays_in_its_file(tmp_path):
  path = tmp_path / 'out.txt'
  recording = on_terminal(f"""
import sys
sys.stdout = open({str(path)!r}, 'w')
from maskrcnn_jax.runtime.status_line import keep_below, waiting
keep_below()
with waiting('Working'):
  print('a result')
""")
  assert path.read_text() == 'a result\n'
  assert terminal.screen_of(recording).lines == ['']


def test_a_program_that_is_killed_leaves_a_cursor():
  recording = on_terminal("""
import os
from maskrcnn_jax.runtime.status_line import waiting
with waiting('Working'):
  os._exit(0)
""")
  text = ''.join(text for _, text in recording.chunks)
  assert text.rfind('\x1b[?25h') > text.rfind('\x1b[?25l')


def test_no_color_is_respected():
  program = """
from maskrcnn_jax.runtime.status_line import progress
list(progress('ab', total=2, description='Evaluating'))
"""
  for environment, is_colored in (({}, True), ({'NO_COLOR': '1'}, False)):
    recording = on_terminal(program, **environment)
    text = ''.join(text for _, text in recording.chunks)
    assert bool(re.search(r'\x1b\[\d+m', text)) == is_colored


def bar_text(done, total, *, right, columns, **options):
  """Returns the text of a bar on a terminal of some width."""
  console = Console(
    width=columns, no_color=True, force_terminal=True, _environ={}, **options
  )
  with console.capture() as capture:
    console.print(bar(done, total, left='Training', right=right))
  return capture.get().removesuffix('\n')


def test_a_terminal_without_unicode_gets_an_ascii_bar():
  recording = on_terminal(
    """
from rich.console import Console
from maskrcnn_jax.runtime.status_line import bar
Console(width=50).print(bar(5, 10, left='Training', right='5/10'))
""",
    PYTHONIOENCODING='ascii',
    NO_COLOR='1',
  )
  assert re.fullmatch(
    r'Training  50% -{15,16} {15,17} 5/10',
    terminal.screen_of(recording).lines[0],
  )


def test_a_bar_leaves_room_for_its_texts():
  text = 'x' * 40
  for columns in (56, 60, 79):
    line = bar_text(1, 3, right=text, columns=columns)
    assert line.startswith('Training  33%')
    assert line.endswith(f' {text}')
    assert len(line) == columns
  for columns in (10, 50):
    line = bar_text(1, 3, right=text, columns=columns)
    assert line.startswith('Tr') and len(line) <= columns


def test_the_bar_of_a_training_fits_and_has_honest_figures(tmp_path):
  # 4 images a step in half a second. The first two times are those of steps
  # whose computation was hidden by a compilation.
  recording = on_terminal(f"""
import pathlib, sys
from absl import flags
from maskrcnn_jax import main
from maskrcnn_jax.runtime.training_log import TrainingLog
flags.FLAGS([sys.argv[0]])
main.set_up_console()
log = TrainingLog(
  pathlib.Path({str(tmp_path)!r}), num_steps=90_000, batch_size=4
)
with log.bar():
  for step, seconds in enumerate((0.01, 0.01, 0.5, 0.5, 0.5)):
    log.add(loss=1.5, loss_mask=0.5, time=seconds)
    log.advance(step + 1)
    log.report(step + 1, learning_rate=0.01)
log.line('the end')
log.close()
""")
  (line, end, _) = terminal.screen_of(recording).lines
  assert re.fullmatch(
    r'Training   0% ━+ 5/90000  loss 1\.5000  8\.00 images/s'
    r'  ETA 12:29:\d\d',
    line,
  )
  assert len(line) < terminal.COLUMNS
  assert end.endswith('the end')
  lines = (tmp_path / 'log.txt').read_text(encoding='utf-8').splitlines()
  assert len(lines) == 6
  assert lines[4].startswith('eta: ') and '  iter: 5  loss: 1.5000' in lines[4]


def test_without_a_terminal_a_wait_is_silent(capsys):
  with waiting('Reading'):
    pass
  assert capsys.readouterr() == ('', '')


def test_progress_passes_the_items_on_and_counts_them(capsys):
  assert list(progress(iter('abc'), total=3, description='Eval')) == list('abc')
  assert '3/3' in capsys.readouterr().err


def test_progress_that_is_not_shown_writes_nothing(capsys):
  items = progress(iter('abc'), total=3, description='Eval', shown=False)
  assert list(items) == list('abc')
  assert capsys.readouterr() == ('', '')


def test_other_processes_show_no_line():
  recording = on_terminal("""
from maskrcnn_jax.runtime.status_line import hide, waiting
hide()
with waiting('Working'):
  print('one')
""")
  assert ''.join(text for _, text in recording.chunks) == 'one\r\n'
