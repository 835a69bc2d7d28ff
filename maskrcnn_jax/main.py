"""Trains a Mask R-CNN, evaluates it, or finds objects in your own pictures.

  python -m maskrcnn_jax.main --config=RECIPE --workdir=DIR
      [--init_from=CHECKPOINT] [--config.KEY=VALUE ...]
  python -m maskrcnn_jax.main --mode=eval --workdir=DIR
      [--checkpoint=CHECKPOINT] [--config.KEY=VALUE ...]
  python -m maskrcnn_jax.main --mode=predict --workdir=DIR --input=PICTURES
      [--checkpoint=CHECKPOINT] [--output=DIR] [--overlays=none]
      [--annotations=FILE] [--config.KEY=VALUE ...]

RECIPE says which model is trained and how. It is the name of a recipe that
comes with the program, such as r50_fpn, or a file of your own, my_recipe.py.
`python -m maskrcnn_jax.config.documentation` prints a page about its keys.
It may also be a YAML file of NVIDIA's Mask R-CNN For PyTorch, and pairs KEY
VALUE with keys of that program may end every command, for example
SOLVER.BASE_LR 0.01; --amp is short for DTYPE float16. The names of flags may
have hyphens for underscores.

Exit status: 0 done, 1 failed while running, 2 wrong input, 130 ended by Ctrl-C.
A training that is ended by SIGTERM or by the first Ctrl-C saves a checkpoint
and has status 0. It also writes the file WORKDIR/interrupted, which a training
that reached its last step does not.
"""

import errno
import os
import pathlib
import signal
import sys
import traceback
from typing import TYPE_CHECKING

from absl import flags, logging

from maskrcnn_jax import main_flags
from maskrcnn_jax.errors import InputError, SaveError, print_error
from maskrcnn_jax.runtime import peers
from maskrcnn_jax.runtime.aborts import set_status_of_aborts
from maskrcnn_jax.runtime.console import set_up_console
from maskrcnn_jax.runtime.huge_pages import restart_with_huge_pages
from maskrcnn_jax.runtime.memory_limit import (
  guard_memory_limit,
  lacks_memory,
  remark_on_limit,
)
from maskrcnn_jax.runtime.status_line import hide, waiting
from maskrcnn_jax.runtime.stop_signal import Stopped, StopSignal

if TYPE_CHECKING:
  import maskrcnn_jax.config.recipe
  import maskrcnn_jax.prediction.lines

# The exit status that shells give to a program that SIGINT ended.
_INTERRUPTED = 130


def main(argv: list[str]) -> int:
  """Trains, evaluates or predicts, as --mode says.

  Args:
    argv: The command line; the first item is the name of the program.

  Returns:
    The exit status: 0, or 2 if a picture cannot be used.

  Raises:
    InputError: If the arguments or the files that they name are wrong.
    FloatingPointError: If a loss of a training is not finite.
    SaveError: If a checkpoint cannot be written.
  """
  # Importing JAX takes seconds; SIGTERM must not end a training meanwhile
  # without a word.
  with StopSignal([signal.SIGTERM]) as early:
    return _main(argv, early)


def _main(argv: list[str], early: StopSignal) -> int:
  """Does the work of `main`.

  Args:
    argv: The command line; the first item is the name of the program.
    early: Records SIGTERM until a training listens itself. In the other modes,
      SIGTERM soon has its usual effect again.
  """
  path, overrides = main_flags.parse_flags(argv, description=__doc__)
  is_training = main_flags.MODE.value == 'train'
  if main_flags.LIST_WEIGHTS.value or not is_training:
    early.let_go()
  from maskrcnn_jax import named_weights

  if main_flags.LIST_WEIGHTS.value:
    print(named_weights.list_weights())
    return 0
  weight = main_flags.take_settings(path, overrides)
  workdir = main_flags.check_flags(path)
  profile_steps = main_flags.parse_profile_steps(main_flags.PROFILE_STEPS.value)
  # The imports are here so that --help and the messages about wrong arguments
  # appear at once; importing JAX takes seconds.
  with waiting('Starting JAX'):
    from maskrcnn_jax.config.nvidia_flags import require_weights
    from maskrcnn_jax.config.recipe import read_overrides, read_recipe

  recipe = (
    read_recipe(path, overrides, for_training=is_training)
    if path
    else read_overrides(overrides)
  )
  if weight and is_training and not main_flags.INIT_FROM.value:
    require_weights(weight, workdir)
  with waiting('Starting JAX'):
    import jax

    from maskrcnn_jax.prediction.lines import Share
    from maskrcnn_jax.prediction.share import plan_share
    from maskrcnn_jax.runtime import cluster
    from maskrcnn_jax.runtime.launch import (
      plan_launch,
      start_processes,
      visible_gpus,
    )
    from maskrcnn_jax.runtime.watchdog import watchdog
    from maskrcnn_jax.training.initial_weights import find_weights
    from maskrcnn_jax.training.run import end_before_training, train

  # This comes before the start of the processes, because a download may take
  # longer than they wait for each other.
  try:
    with early.interrupting():
      init_from = find_weights(
        main_flags.INIT_FROM.value,
        workdir,
        is_fine_tuning=recipe.config.train.fine_tune,
      )
  except Stopped:
    end_before_training(workdir, early)
    return 0
  checkpoint = main_flags.CHECKPOINT.value or str(workdir)
  if named_weights.is_name(main_flags.CHECKPOINT.value or ''):
    checkpoint = named_weights.find_checkpoint(checkpoint)
  if main_flags.MODE.value == 'predict':
    launch = None
    share = plan_share(
      main_flags.NUM_PROCESSES.value,
      main_flags.PROCESS_ID.value,
      environment=os.environ,
      num_gpus=visible_gpus(),
    )
    if share.number:
      hide()
    if main_flags.COORDINATOR.value:
      logging.info(
        '--coordinator is not needed: the processes of a prediction meet in '
        'the folder of the results.'
      )
  else:
    share = Share()
    launch = plan_launch(
      main_flags.COORDINATOR.value,
      main_flags.NUM_PROCESSES.value,
      main_flags.PROCESS_ID.value,
      environment=os.environ,
      num_gpus=visible_gpus(),
    )
  if launch is not None:
    with waiting('Waiting for the other processes'), early.paused():
      start_processes(launch, timeout=main_flags.INITIALIZATION_TIMEOUT.value)
    if not cluster.is_main():
      logging.set_verbosity(logging.WARNING)
      hide()
  with waiting('Looking for devices'):
    devices = cluster.find_devices()
  logging.info(
    'JAX %s on %s; process %d of %d',
    jax.__version__,
    ', '.join(map(str, devices)),
    share.number or jax.process_index(),
    max(share.processes, jax.process_count()),
  )
  for line in recipe.notes:
    logging.info('%s', line)
  # This comes after the start of the processes, because only process 0 writes
  # to the cache.
  cluster.keep_compiled(main_flags.COMPILATION_CACHE.value)
  with watchdog(recipe.config.train.watchdog_seconds):
    if not is_training:
      return _evaluate_or_predict(
        recipe, workdir, pathlib.Path(checkpoint), share
      )
    train(
      recipe.config,
      workdir,
      init_from=init_from,
      skip_test=main_flags.SKIP_TEST.value,
      resume=main_flags.RESUME.value,
      allow_changes=main_flags.ALLOW_CHANGES.value,
      given_keys=frozenset(recipe.given),
      profile_steps=profile_steps,
      early=early,
    )
  return 0


def _evaluate_or_predict(
  recipe: 'maskrcnn_jax.config.recipe.Recipe',
  workdir: pathlib.Path,
  checkpoint: pathlib.Path,
  share: 'maskrcnn_jax.prediction.lines.Share',
) -> int:
  """Loads a checkpoint and evaluates it or predicts with it, as --mode says.

  Args:
    recipe: The recipe that the user gave, or only the given keys.
    workdir: The folder that results are written to.
    checkpoint: A workdir, its folder of checkpoints, or the folder of one step.
    share: The share of the pictures that this process predicts on.

  Returns:
    The exit status: 0, or 2 if a picture cannot be used.

  Raises:
    InputError: If the checkpoint, the recipe, the evaluation set or the
      pictures cannot be used.
  """
  from maskrcnn_jax import named_weights
  from maskrcnn_jax.detector import load_detector
  from maskrcnn_jax.evaluation.published_ap import expect_published_ap
  from maskrcnn_jax.prediction.predict import predict
  from maskrcnn_jax.training.evaluations import evaluate_and_report

  detector = load_detector(checkpoint, recipe)
  if main_flags.MODE.value == 'predict':
    assert main_flags.INPUT.value is not None  # `check_flags` refuses this.
    num_unusable = predict(
      detector,
      pattern=main_flags.INPUT.value,
      output=pathlib.Path(main_flags.OUTPUT.value or workdir / 'predictions'),
      config=detector.config,
      annotations=main_flags.ANNOTATIONS.value,
      draws=main_flags.OVERLAYS.value != 'none',
      share=share,
    )
    return 2 if num_unusable else 0

  name = main_flags.CHECKPOINT.value or ''
  if named_weights.is_name(name) and not main_flags.SKIP_EVAL.value:
    logging.info('%s', expect_published_ap(detector.config, name))
  evaluate_and_report(detector, workdir, skip_eval=main_flags.SKIP_EVAL.value)
  return 0


def run() -> None:
  """Runs the program and ends the process with the exit status of `main`.

  An InputError is printed as one line, and the status is 2. Any other exception
  gives status 1: a loss that is not finite, a failed save and a full disk are
  printed as one line, and an unexpected exception with its traceback. Ctrl-C
  gives status 130; in a training, only the second Ctrl-C does, because the
  first makes the run save a checkpoint and end with status 0.
  """
  set_up_console()
  _set_up_ctrl_c()
  try:
    status = main(sys.argv)
  except InputError as error:
    _fail(str(error), 2)
  except Exception as error:
    peers.end_if_lost(error)
    if isinstance(error, FloatingPointError | SaveError):
      _fail(str(error), 1)
    # On a full disk, Python raises an OSError; the library that writes
    # checkpoints raises another type of error with the same text in it.
    if os.strerror(errno.ENOSPC) in str(error):
      _fail(
        'C10: the disk is full. Make room and give the same command again; '
        'checkpoints that were saved before are complete '
        f'({" ".join(str(error).split())[:300]}).',
        1,
      )
    workdir = main_flags.WORKDIR.value if flags.FLAGS.is_parsed() else None
    if isinstance(error, OSError) and workdir and not os.path.isdir(workdir):
      _fail(
        f'C10: the workdir {workdir} no longer exists: it was removed or '
        'moved, or its disk is no longer there. Bring it back and give the '
        f'same command again ({error}).',
        1,
      )
    if lacks_memory(error):
      _fail(
        'there is not enough memory '
        f'({" ".join(str(error).split())[:300] or "MemoryError"}). Lower '
        '--config.train.batch_size, --config.eval.batch_size or '
        '--config.data.num_workers, or give the program more memory.',
        1,
      )
    traceback.print_exc()
    _fail(
      'this process failed; the traceback above gives the reason.'
      f'{remark_on_limit()}',
      1,
    )
  sys.exit(status)


def _set_up_ctrl_c() -> None:
  """Makes Ctrl-C print one line and end the program.

  The handler does not raise a KeyboardInterrupt, because libraries swallow it
  or turn it into other errors. `train` installs its own handler later.
  """
  # A shell makes programs in the background ignore Ctrl-C; that is kept.
  if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> None:
  """Handles the signal of Ctrl-C: ends the program with status 130."""
  # print is not safe here: the signal may arrive while print fills its buffer.
  os.write(2, b'\nerror: ended by Ctrl-C.\n')
  os._exit(_INTERRUPTED)


def _fail(message: str, status: int) -> None:
  """Prints an error message on stderr and ends the program with a status."""
  # Nothing follows the message. Python would print the failed reads of orbax
  # that nobody has awaited when it deletes them.
  sys.unraisablehook = lambda _: None
  print_error(message)
  _leave(status)


def _leave(status: int) -> None:
  """Ends this process with a status, without waiting for other processes."""
  if 'jax' in sys.modules:
    from maskrcnn_jax.runtime import cluster

    cluster.leave(status)
  sys.exit(status)


if __name__ == '__main__':
  restart_with_huge_pages()
  guard_memory_limit()
  set_status_of_aborts()
  run()
