"""Tests of whole runs: evaluations, signals, damaged files, full disks."""

import gc
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import tiny

from maskrcnn_jax.detector import load_detector
from maskrcnn_jax.errors import InputError, SaveError
from maskrcnn_jax.evaluation.average_precision import ApResult
from maskrcnn_jax.runtime import checkpoint, numerics, run_checkpoints
from maskrcnn_jax.runtime.stop_signal import Stopped, StopSignal
from maskrcnn_jax.runtime.training_log import TrainingLog
from maskrcnn_jax.training import start as train_start
from maskrcnn_jax.training.evaluations import (
  Evaluation,
  expected_lines,
  reaches,
  steps_between,
)
from maskrcnn_jax.training.figures import PendingStep, take_figures

pytestmark = pytest.mark.usefixtures('compilation_cache')

# If one array is damaged, orbax never awaits the reads of the other arrays.
# Their objects must be garbage-collected before the next test.
leaves_tasks_behind = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning',
  'ignore::pytest.PytestUnhandledThreadExceptionWarning',
  'ignore:coroutine .* was never awaited:RuntimeWarning',
)


def ap_result(ap):
  return ApResult({'AP': ap}, {}, 1, 1, (1, 10, 100), ())


class MadeUpEvaluation:
  """Replaces `evaluate` and returns a given AP for each step.

  `steps` lists the steps evaluated so far. `before` is called with the step at
  the start of each evaluation.
  """

  def __init__(self, box_aps, mask_aps):
    """Takes {step: AP}; other steps have an AP of 0."""
    self.box_aps, self.mask_aps = box_aps, mask_aps
    self.steps = []
    self.before = lambda step: None

  def __call__(self, detector, **_):
    """Returns the results of `evaluate`."""
    self.before(detector.step)
    self.steps.append(detector.step)
    return {
      kind: ap_result(aps.get(detector.step, 0.0))
      for kind, aps in (('bbox', self.box_aps), ('segm', self.mask_aps))
    }


@pytest.fixture
def evaluation(monkeypatch):
  made_up = MadeUpEvaluation({2: 0.3, 4: 0.2, 6: 0.4}, {2: 0.2, 4: 0.3, 6: 0.3})
  monkeypatch.setattr('maskrcnn_jax.training.evaluations.evaluate', made_up)
  return made_up


def steps_of(workdir):
  return checkpoint.saved_steps(workdir / 'checkpoints')


@pytest.mark.usefixtures('idle_step')
def test_train_evaluates_on_the_way_and_keeps_the_best(
  config, tmp_path, evaluation
):
  config.train.num_steps = 7
  config.train.checkpoint_every = 3
  config.train.keep_checkpoints = 2
  config.train.eval_every = 2
  tiny.run_training(config, tmp_path)
  assert evaluation.steps == [2, 4, 6]
  # An evaluated step is saved even if no checkpoint was due, so that a resumed
  # run need not repeat the evaluation.
  assert steps_of(tmp_path) == [6, 7]
  # Steps 4 and 6 have the same mask AP, and step 6 has the higher box AP.
  assert checkpoint.saved_steps(tmp_path / 'best') == [6]
  assert json.loads((tmp_path / 'evaluations.json').read_text()) == [
    {'step': 2, 'box_ap': 0.3, 'mask_ap': 0.2, 'recall': None},
    {'step': 4, 'box_ap': 0.2, 'mask_ap': 0.3, 'recall': None},
    {'step': 6, 'box_ap': 0.4, 'mask_ap': 0.3, 'recall': None},
  ]
  path = tmp_path / 'checkpoints' / '7'
  assert (tmp_path / 'last_checkpoint').read_text() == f'{path}\n'
  text = (tmp_path / 'log.txt').read_text()
  assert 'Evaluation at step 2: box AP 0.3000, mask AP 0.2000; best so ' in text


@pytest.mark.usefixtures('idle_step')
@pytest.mark.parametrize(('first', 'stored'), [('auto', 'fp32'), ('tf32',) * 2])
def test_a_checkpoint_stores_the_precision_that_auto_chose(
  config, tmp_path, first, stored
):
  for precision, num_steps in ((first, 2), ('auto', 4)):
    config.precision = precision
    config.train.num_steps = num_steps
    tiny.run_training(config, tmp_path)
    assert config.precision == precision
    path = checkpoint.find_checkpoint(tmp_path)
    assert path.name == str(num_steps)
    # On this CPU, auto alone would be fp32; a run goes on as it began.
    assert checkpoint.read_metadata(path).recipe['precision'] == stored


@pytest.mark.usefixtures('idle_step')
def test_train_ends_when_both_aps_are_reached(config, tmp_path, evaluation):
  config.train.num_steps = 8
  config.train.eval_every = 2
  config.train.min_box_ap = 0.3
  config.train.min_mask_ap = 0.3
  tiny.run_training(config, tmp_path, skip_test=False)
  # Step 2 reaches the box AP, step 4 the mask AP, step 6 both. There is no
  # further evaluation at the end.
  assert evaluation.steps == [2, 4, 6]
  assert steps_of(tmp_path)[-1] == 6
  assert (
    'The training ends at step 6: box AP has reached 0.3'
    in (tmp_path / 'log.txt').read_text()
  )
  # If the command is given again, the run is already at its end.
  tiny.run_training(config, tmp_path, skip_test=False)
  assert evaluation.steps == [2, 4, 6]


@pytest.mark.usefixtures('idle_step')
def test_an_evaluation_that_was_cut_off_is_done_again(
  config, tmp_path, evaluation
):
  config.train.num_steps = 5
  config.train.eval_every = 2

  def break_off(step):
    if step == 4:
      raise KeyboardInterrupt

  evaluation.before = break_off
  with pytest.raises(KeyboardInterrupt):
    tiny.run_training(config, tmp_path)
  assert steps_of(tmp_path)[-1] == 4
  evaluation.before = lambda step: None
  tiny.run_training(config, tmp_path)
  assert evaluation.steps == [2, 4]
  assert checkpoint.saved_steps(tmp_path / 'best') == [4]


@pytest.mark.slow
@pytest.mark.usefixtures('idle_step')
def test_the_best_model_may_be_of_an_earlier_step_after_going_back(
  config, tmp_path, evaluation
):
  config.train.num_steps = 6
  config.train.eval_every = 2
  tiny.run_training(config, tmp_path)
  for step in (4, 6):
    shutil.rmtree(tmp_path / 'checkpoints' / str(step))
  evaluation.mask_aps = {4: 0.5}
  tiny.run_training(config, tmp_path)
  assert evaluation.steps == [2, 4, 6, 4, 6]
  assert checkpoint.saved_steps(tmp_path / 'best') == [4]


def test_evaluations_on_the_way_need_a_set(config, tmp_path):
  config.train.eval_every = 2
  config.data.eval.annotations = ''
  with pytest.raises(InputError, match='needs an evaluation set'):
    tiny.run_training(config, tmp_path)


def test_steps_between_evaluations_may_be_given_in_epochs():
  config = tiny.get_config()
  assert steps_between(config, 100) == 0
  config.train.eval_every_epochs = 0.5
  config.train.batch_size = 8
  assert steps_between(config, 100) == 6  # 6.25
  assert steps_between(config, 3) == 1
  config.train.eval_every_epochs = 0.0
  config.train.eval_every = 40
  assert steps_between(config, 100) == 40


@pytest.mark.parametrize(
  ('box_ap', 'mask_ap', 'least', 'expected'),
  [
    (0.4, 0.3, (0.4, 0.3), True),
    (0.39, 0.3, (0.4, 0.3), False),
    (0.4, 0.29, (0.4, 0.3), False),
    (0.4, 0.0, (0.4, 0.0), True),
    (0.4, 0.4, (0.0, 0.0), False),
    (None, 0.4, (0.1, 0.1), False),
  ],
)
def test_reaches_wants_both(box_ap, mask_ap, least, expected):
  assert (
    reaches(
      Evaluation(1, box_ap, mask_ap),
      min_box_ap=least[0],
      min_mask_ap=least[1],
    )
    == expected
  )


def test_expected_lines_say_pass_or_fail():
  aps = {'bbox': ap_result(0.3762), 'segm': ap_result(0.3369)}
  assert expected_lines(aps, box_ap=(0.377, 0.004), mask_ap=(0.342, 0.004)) == [
    'PASS: box AP 0.3762, expected 0.3770 within 0.0040 (config.expected)',
    'FAIL: mask AP 0.3369, expected 0.3420 within 0.0040 (config.expected)',
  ]
  assert expected_lines(aps, box_ap=None, mask_ap=None) == []
  assert expected_lines(
    {'bbox': ap_result(None)}, box_ap=(0.377, 0.004), mask_ap=(0.342, 0.004)
  ) == ['FAIL: box AP n/a, expected 0.3770 within 0.0040 (config.expected)']


@pytest.mark.parametrize(
  ('ap', 'status', 'is_above'),
  [
    (0.3725, 'FAIL', False),
    (0.3735, 'PASS', False),
    (0.3805, 'PASS', False),
    (0.3815, 'PASS', True),
    (0.5, 'PASS', True),
  ],
)
def test_a_better_ap_than_expected_passes(ap, status, is_above):
  (line,) = expected_lines(
    {'bbox': ap_result(ap)}, box_ap=(0.377, 0.004), mask_ap=None
  )
  assert line.startswith(f'{status}: box AP {ap:.4f}, expected 0.3770 within ')
  assert line.endswith('; it is above that') == is_above


@pytest.fixture
def hears_ctrl_c():
  """Makes SIGINT interrupt this process, even if a shell has it ignored.

  A shell makes the programs that it starts in the background ignore SIGINT.
  """
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('hears_ctrl_c')
@pytest.mark.parametrize(
  ('number', 'name'), [(signal.SIGTERM, 'SIGTERM'), (signal.SIGINT, 'Ctrl-C')]
)
def test_stop_signal_takes_note_and_restores(capfd, number, name):
  before = signal.getsignal(number)
  with StopSignal() as stop:
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested
    assert stop.name == name
    with pytest.raises(Stopped), stop.interrupting():
      raise AssertionError
    # A second SIGINT ends the process.
    assert (signal.getsignal(signal.SIGINT) == signal.SIG_DFL) == (
      number == signal.SIGINT
    )
  assert signal.getsignal(number) == before
  assert ('Ctrl-C once more' in capfd.readouterr().err) == (name == 'Ctrl-C')


def test_stop_signal_leaves_an_ignored_ctrl_c_ignored():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with StopSignal() as stop:
      os.kill(os.getpid(), signal.SIGINT)
      assert not stop.requested
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('hears_ctrl_c')
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_interrupts_inside_interrupting(number):
  with StopSignal() as stop:
    with pytest.raises(Stopped), stop.interrupting():
      os.kill(os.getpid(), number)
      raise AssertionError
    # Outside, a second signal raises nothing, so that cleaning up is not
    # interrupted.
    os.kill(os.getpid(), signal.SIGTERM)


def test_stop_signal_in_a_thread_hears_nothing():
  def listen():
    with StopSignal() as stop:
      assert not stop.requested

  thread = threading.Thread(target=listen)
  thread.start()
  thread.join()


def test_sigterm_finishes_the_step_and_saves_it(config, tmp_path, idle_step):
  config.train.num_steps = 10
  config.train.checkpoint_every = 10
  call = tiny.IdleStep.__call__

  def stop_in_step_3(self, state, batch):
    if int(state.step) == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return call(self, state, batch)

  idle_step.__class__ = type(
    'StoppingStep', (tiny.IdleStep,), {'__call__': stop_in_step_3}
  )
  tiny.run_training(
    config, tmp_path, skip_test=False, profile_steps=range(1, 9)
  )
  assert 'Traced steps 1 to 2: ' in (tmp_path / 'log.txt').read_text()
  assert len(list((tmp_path / 'profile').rglob('*.xplane.pb'))) == 1
  assert steps_of(tmp_path) == [3]
  assert 'SIGTERM' in (tmp_path / 'interrupted').read_text()
  assert not (tmp_path / 'evaluations.json').exists()

  idle_step.__class__ = tiny.IdleStep
  assert len(tiny.run_training(config, tmp_path)) == 7
  assert not (tmp_path / 'interrupted').exists()


# Runs the command line with a step that needs no compiling. The first argument
# is the number of seconds that the third step takes. The program is written to
# a file, because worker processes import the main module again.
PROGRAM = """
import signal, sys, time
import tiny
from maskrcnn_jax import main
from maskrcnn_jax.training import run as training

class Step(tiny.IdleStep):
  def __call__(self, state, batch):
    if int(state.step) == 2:
      print('third step', flush=True)
      time.sleep(self.seconds)
    return super().__call__(state, batch)

if __name__ == '__main__':
  signal.signal(signal.SIGINT, signal.default_int_handler)
  Step.seconds = float(sys.argv.pop(1))
  training.jit_train_step = lambda _: Step()
  main.run()
"""


@pytest.fixture
def start_program(tiny_data, tmp_path):
  """Starts PROGRAM and one worker process in a process group of their own."""
  (tmp_path / 'program.py').write_text(PROGRAM)
  started = []

  def start(seconds):
    root = pathlib.Path(__file__).parents[2]
    started.append(
      subprocess.Popen(
        [
          sys.executable,
          'program.py',
          str(seconds),
          f'--config={tiny.__file__}',
          f'--workdir={tmp_path / "run"}',
          *tiny.data_flags(tiny_data),
          '--config.data.num_workers=1',
          '--config.train.num_steps=1000000',
          '--skip_test',
          '--config.train.checkpoint_every=1000000',
        ],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {'PYTHONPATH': f'{root}:{root / "tests"}', 'JAX_PLATFORMS': 'cpu'},
      )
    )
    return started[-1]

  yield start
  for process in started:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
  'number',
  [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_a_signal_to_program_and_workers_saves_the_step(
  start_program, tmp_path, number
):
  process = start_program(1)
  assert process.stdout.readline() == 'third step\n'
  # For Ctrl-C, a terminal also sends the signal to the whole process group.
  os.killpg(process.pid, number)
  _, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert 'Traceback' not in err
  name = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}[number]
  assert f'Stopped by {name}' in (tmp_path / 'run' / 'interrupted').read_text()
  assert steps_of(tmp_path / 'run') == [3]
  assert ('Ctrl-C once more ends it' in err) == (number == signal.SIGINT)


def test_a_second_ctrl_c_ends_a_training_at_once(start_program, tmp_path):
  process = start_program(600)
  assert process.stdout.readline() == 'third step\n'
  os.killpg(process.pid, signal.SIGINT)
  for line in process.stderr:
    if 'Ctrl-C once more' in line:
      break
  os.killpg(process.pid, signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == -signal.SIGINT
  assert 'Traceback' not in err
  assert steps_of(tmp_path / 'run') == []


@pytest.mark.usefixtures('idle_step')
def test_sigterm_ends_an_evaluation_at_once(config, tmp_path, evaluation):
  config.train.eval_every = 2
  evaluation.before = lambda step: os.kill(os.getpid(), signal.SIGTERM)
  tiny.run_training(config, tmp_path)
  assert evaluation.steps == []
  assert steps_of(tmp_path) == [2]
  assert (tmp_path / 'interrupted').exists()


@pytest.mark.usefixtures('idle_step')
def test_sigterm_while_the_best_model_is_written_waits_for_it(
  config, tmp_path, evaluation, monkeypatch
):
  config.train.eval_every = 2
  save = checkpoint.save_checkpoint

  def interrupted_save(manager, **options):
    save(manager, **options)
    if options['optimizer'] is None:  # the best model
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(checkpoint, 'save_checkpoint', interrupted_save)
  tiny.run_training(config, tmp_path)
  assert evaluation.steps == [2]
  assert steps_of(tmp_path) == [2]
  assert checkpoint.saved_steps(tmp_path / 'best') == [2]
  assert json.loads((tmp_path / 'evaluations.json').read_text())
  assert (tmp_path / 'interrupted').exists()


def test_stopped_passes_code_that_catches_every_exception():
  with StopSignal() as stop, pytest.raises(Stopped), stop.interrupting():
    try:
      os.kill(os.getpid(), signal.SIGTERM)
    except Exception as error:
      raise AssertionError from error


def test_sigterm_in_the_last_evaluation_is_no_finished_run(
  config, tmp_path, evaluation
):
  evaluation.before = lambda step: os.kill(os.getpid(), signal.SIGTERM)
  tiny.run_training(config, tmp_path, skip_test=False)
  assert evaluation.steps == []
  assert steps_of(tmp_path)[-1] == 4
  assert (tmp_path / 'interrupted').exists()
  # The same command evaluates, and then the run is done.
  evaluation.before = lambda step: None
  tiny.run_training(config, tmp_path, skip_test=False)
  assert evaluation.steps == [4]
  assert not (tmp_path / 'interrupted').exists()


@leaves_tasks_behind
@pytest.mark.parametrize('damage', ['truncated', 'flipped'])
def test_a_damaged_newest_checkpoint_is_set_aside(
  workdir, config, tiny_run, caplog, damage
):
  largest = max(
    (p for p in (workdir / 'checkpoints' / '4').rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  if damage == 'flipped':
    content[len(content) // 2] ^= 8
  else:
    del content[1000:]
  largest.write_bytes(content)
  with caplog.at_level('WARNING', 'absl'):
    figures = tiny.run_training(config, workdir)
  assert 'may be damaged' in caplog.text
  assert 'C08: C08: ' not in caplog.text
  assert 'going on from step 2' in caplog.text
  assert figures == tiny_run[1][2:]
  assert (workdir / 'damaged' / '4').is_dir()
  tiny.assert_same_arrays(
    tiny.saved_arrays(workdir, 4), tiny.saved_arrays(tiny_run[0], 4)
  )
  gc.collect()


@pytest.mark.parametrize(
  'damage',
  [
    lambda stored: stored.clear(),
    lambda stored: stored.pop('categories'),
    lambda stored: stored['config'].update(train=3),
    lambda stored: stored['config']['train'].update(num_steps='4'),
  ],
  ids=['empty', 'no categories', 'no group', 'wrong type'],
)
def test_a_checkpoint_with_damaged_metadata_is_set_aside(
  workdir, config, caplog, idle_step, damage
):
  del idle_step
  file = workdir / 'checkpoints' / '4' / 'metadata' / 'metadata'
  stored = json.loads(file.read_text())
  # The metadata of older checkpoints have no checksum, which would tell.
  del stored['checksum'], stored['array_checksums']
  damage(stored)
  file.write_text(json.dumps(stored))
  with pytest.raises(InputError, match='C08: .*damaged'):
    load_detector(workdir)
  with caplog.at_level('WARNING', 'absl'):
    assert len(tiny.run_training(config, workdir)) == 2
  assert 'going on from step 2' in caplog.text
  assert (workdir / 'damaged' / '4').is_dir()


@leaves_tasks_behind
def test_a_run_does_not_start_anew_where_nothing_can_be_read(workdir, config):
  for step in (2, 4):
    path = workdir / 'checkpoints' / str(step) / 'metadata' / 'metadata'
    path.write_text('garbage')
  with pytest.raises(InputError, match='C08: None of the checkpoints'):
    tiny.run_training(config, workdir)
  assert steps_of(workdir) == [2, 4]
  gc.collect()


def test_a_changed_recipe_goes_on_where_that_is_allowed(
  workdir, config, caplog, idle_step
):
  del idle_step
  config.optimizer.momentum = 0.5
  config.train.num_steps = 5
  with pytest.raises(InputError, match='momentum: 0.5 | 0.9.*allow_changes'):
    tiny.run_training(config, workdir)
  with caplog.at_level('WARNING', 'absl'):
    figures = tiny.run_training(config, workdir, allow_changes=True)
  assert len(figures) == 1
  assert 'C07' in caplog.text
  assert 'optimizer.momentum: 0.5 | 0.9' in caplog.text


def test_a_cosine_may_not_end_elsewhere(config, tmp_path, idle_step):
  del idle_step
  config.optimizer.schedule = 'cosine'
  tiny.run_training(config, tmp_path)
  config.train.num_steps = 6
  with pytest.raises(InputError, match='train.num_steps: 6 | 4'):
    tiny.run_training(config, tmp_path)


def test_a_workdir_that_cannot_be_written_is_found_at_the_start(config):
  with pytest.raises(InputError, match='C10: /proc/run cannot be written'):
    tiny.run_training(config, pathlib.Path('/proc/run'))


@pytest.mark.parametrize(
  ('check', 'precision', 'is_refused'),
  [
    ('sums by index', 'fp32', True),
    pytest.param(
      numerics.CONVOLUTIONS_CHECK, 'bf16', True, marks=pytest.mark.slow
    ),
    (numerics.CONVOLUTIONS_CHECK, 'fp32', False),
  ],
)
def test_a_device_that_computes_wrongly_is_refused(
  config, tmp_path, monkeypatch, idle_step, check, precision, is_refused
):
  monkeypatch.setattr(
    numerics, 'check_numerics', lambda: {check: 'it is wrong; take another'}
  )
  config.precision = precision
  # On a CPU, nothing is checked.
  tiny.run_training(config, tmp_path / 'cpu')
  monkeypatch.setattr(train_start.jax, 'default_backend', lambda: 'gpu')
  if is_refused:
    with pytest.raises(
      InputError, match=f'wrongly with jax .*{check}.*: it is wrong; take'
    ):
      tiny.run_training(config, tmp_path / 'gpu')
    assert not (tmp_path / 'gpu' / 'checkpoints').exists()
  else:
    tiny.run_training(config, tmp_path / 'gpu')


def test_a_full_disk_is_found_at_the_start(config, tmp_path, monkeypatch):
  monkeypatch.setattr(
    'shutil.disk_usage', lambda path: types.SimpleNamespace(free=2**10)
  )
  with pytest.raises(InputError, match='C10: .* has 0 MiB left'):
    tiny.run_training(config, tmp_path)
  assert steps_of(tmp_path) == []


def test_check_room_warns_where_not_all_will_fit(tmp_path, monkeypatch):
  monkeypatch.setattr(
    'shutil.disk_usage', lambda path: types.SimpleNamespace(free=300)
  )
  assert run_checkpoints.check_room(tmp_path, size=100, num_steps=3) == ''
  assert 'C10' in run_checkpoints.check_room(tmp_path, size=100, num_steps=4)


@pytest.mark.parametrize('part', ['model', 'metadata'])
def test_a_save_that_fails_costs_nothing(
  config, tmp_path, monkeypatch, idle_step, part
):
  """The second save fails, as if the disk were full."""
  del idle_step
  check = (
    checkpoint._stored_leaves if part == 'model' else (checkpoint.read_metadata)
  )

  def fail(path, *rest):
    if path.name == '4':
      raise OSError(28, 'No space left on device')
    return check(path, *rest)

  monkeypatch.setattr(checkpoint, check.__name__, fail)
  config.train.keep_checkpoints = 1
  with pytest.raises(SaveError) as error:
    tiny.run_training(config, tmp_path)
  assert 'C10: Saving step 4 in' in str(error.value)
  assert 'No space left on device' in str(error.value)
  assert 'step 2 is whole' in str(error.value)
  # The checkpoint before is still there, and `last_checkpoint` names it.
  assert 2 in steps_of(tmp_path)
  assert (tmp_path / 'last_checkpoint').read_text().endswith('checkpoints/2\n')


class Lines(TrainingLog):
  """Replaces the log of a run and keeps its lines and figures."""

  def __init__(self):
    """Starts without lines and figures."""
    self.lines, self.figures = [], []

  def line(self, text):
    """Keeps a line."""
    self.lines.append(text)

  def add(self, **figures):
    """Keeps the figures of a step."""
    self.figures.append(figures)

  def advance(self, done):
    """Does nothing; there is no bar."""


def figures_of_a_step(precision, **figures):
  log = Lines()
  pending = PendingStep(3, figures, [1, 0], False, 0.5, 0.1)
  skipped = take_figures(
    pending,
    log,
    image_ids=[7, 8],
    schedule=lambda step: 0.1,
    scales_loss=precision == 'fp16',
  )
  return skipped, log


def test_a_step_that_was_skipped_is_said_and_its_losses_left_out():
  skipped, log = figures_of_a_step(
    'fp16', loss=1.0, grad_norm=np.inf, loss_scale=8192.0, skipped=2
  )
  assert skipped == 2
  assert log.lines == [
    'Skipped a step: grad_norm is inf at step 3 (images [8, 7]); the loss '
    'scale goes from 8192 to 4096; 2 skipped so far'
  ]
  assert log.figures == [{'time': 0.5, 'data': 0.1}]


@pytest.mark.parametrize(
  ('precision', 'scale'), [('fp16', 1.0), ('bf16', 1.0), ('fp32', 1.0)]
)
def test_a_number_that_no_lower_scale_can_help_is_an_error(precision, scale):
  with pytest.raises(FloatingPointError, match='loss is nan at step 3') as e:
    figures_of_a_step(
      precision, loss=np.nan, grad_norm=1.0, loss_scale=scale, skipped=1
    )
  assert ('float16 cannot hold' in str(e.value)) == (precision == 'fp16')


@pytest.mark.slow
def test_fp16_goes_on_after_overflows_and_resumes_exactly(
  config, tmp_path, monkeypatch
):
  """The loss scale starts so high that the first steps are skipped."""
  monkeypatch.setattr('maskrcnn_jax.runtime.precision.INITIAL_SCALE', 2.0**20)
  config.precision = 'fp16'
  config.train.num_steps = 8
  config.train.checkpoint_every = 8
  config.train.keep_checkpoints = 8
  straight = tiny.run_training(config, tmp_path / 'straight')
  text = (tmp_path / 'straight' / 'log.txt').read_text()
  assert 'Skipped a step: grad_norm is ' in text
  assert (
    f'the loss scale goes from {2.0**20:g} to {2.0**19:g}; 1 skipped '
    'so far' in text
  )
  arrays = tiny.saved_arrays(tmp_path / 'straight', 8)
  skipped = int(arrays['optimizer/loss_scale/skipped'])
  assert 1 <= skipped < 8
  assert arrays['optimizer/loss_scale/scale'] == 2.0 ** (20 - skipped)
  for name, array in arrays.items():
    assert np.isfinite(array).all(), name

  config.train.num_steps = 2
  first = tiny.run_training(config, tmp_path / 'resumed')
  config.train.num_steps = 8
  rest = tiny.run_training(config, tmp_path / 'resumed')
  assert first + rest == straight
  tiny.assert_same_arrays(tiny.saved_arrays(tmp_path / 'resumed', 8), arrays)


@pytest.mark.slow
def test_fp16_stops_where_a_lower_scale_cannot_help(
  config, tiny_run, tmp_path, monkeypatch
):
  monkeypatch.setattr('maskrcnn_jax.runtime.precision.INITIAL_SCALE', 4.0)
  config.precision = 'fp16'
  config.train.num_steps = 8
  tiny.save_with_value(
    tiny_run[0], tmp_path / 'bad', 'mask_fcn_logits', tiny.TOO_LARGE
  )
  with pytest.raises(FloatingPointError) as error:
    tiny.run_training(config, tmp_path / 'run', init_from=tmp_path / 'bad')
  # The scale is 4, 2 and then 1 at step 2, its minimum.
  assert 'loss_mask is nan' in str(error.value)
  assert 'at step 2 (' in str(error.value)
  assert 'float16 cannot hold' in str(error.value)
