"""The program: train, evaluate or predict with one recipe.

  python -m maskrcnn_jax.main --config=RECIPE --workdir=DIR
      [--mode=train|eval|predict] [--config.KEY=VALUE ...]

RECIPE is the name of a recipe that comes with the program, such as r50_fpn, or
a file of your own, my_recipe.py.

Exit status: 0 done, 1 failed while running, 2 wrong input, 130 ended by Ctrl-C.
A training that is ended by SIGTERM or by the first Ctrl-C is saved and has
status 0; the file WORKDIR/interrupted tells it from a training that is done.
"""

import errno
import logging as standard_logging
import os
import pathlib
import re
import signal
import sys
import traceback

from absl import flags, logging

from maskrcnn_jax.errors import InputError, SaveError

# Listed by --help; `split_arguments` reads it, together with --config.KEY.
flags.DEFINE_string(
  'config',
  None,
  'The recipe: the name of a recipe that comes with the '
  'program, such as r50_fpn, or a file. Each of its keys can be '
  'changed: --config.train.batch_size=8. Without a recipe, eval and predict '
  "use the checkpoint's own, with such changes.",
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the run: checkpoints, logs and results.'
)
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'eval', 'predict'],
  'train: train, checkpoint, evaluate at the end. eval: print the COCO '
  'table of a checkpoint. predict: find objects in your own pictures.',
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'For eval and predict: a workdir or one saved step. '
  'Default: the newest step of --workdir.',
)
_INIT_FROM = flags.DEFINE_string(
  'init_from',
  None,
  'For train: a checkpoint to take the initial weights from, and nothing else.',
)
_INPUT = flags.DEFINE_string(
  'input', None, 'For predict: a picture, a folder of pictures or a glob.'
)
_RESUME = flags.DEFINE_boolean(
  'resume',
  True,
  'For train: continue from the newest checkpoint of '
  '--workdir, if there is one. --noresume refuses such a workdir.',
)
_ALLOW_CHANGES = flags.DEFINE_boolean(
  'allow_changes',
  False,
  'For train: continue although the recipe or the '
  'training set has changed; the changes are logged.',
)
_SKIP_TEST = flags.DEFINE_boolean(
  'skip_test', False, 'For train: leave out the evaluation at the end.'
)
_SKIP_EVAL = flags.DEFINE_boolean(
  'skip_eval', False, 'For eval: write the predictions, compute no AP.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'Of several processes: HOST:PORT of process 0. None '
  'of the three is needed under SLURM, Open MPI (mpirun) or Kubernetes.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes',
  None,
  'Number of processes that work together. 1: only '
  'this one, whatever started it.',
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Number of this process, from 0.'
)
_INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
  'initialization_timeout',
  300,
  'Seconds to wait for the other processes.',
  lower_bound=1,
)
_COMPILATION_CACHE = flags.DEFINE_string(
  'compilation_cache',
  None,
  'Folder that keeps compiled programs for the '
  "next run; '' for none. Default: $JAX_COMPILATION_CACHE_DIR, else "
  '~/.cache/maskrcnn_jax. Several machines should share it.',
)
_PROFILE_STEPS = flags.DEFINE_string(
  'profile_steps',
  None,
  'For train: A:B writes a trace of steps A to B-1 into WORKDIR/profile.',
)
# The exit status that shells give to a program that SIGINT ended.
_INTERRUPTED = 130

# Flags that only some modes use; the other modes refuse them.
_MODES_OF_FLAGS = {
  'allow_changes': ('train',),
  'checkpoint': ('eval', 'predict'),
  'init_from': ('train',),
  'input': ('predict',),
  'profile_steps': ('train',),
  'resume': ('train',),
  'skip_eval': ('eval',),
  'skip_test': ('train',),
}
_MEANT = {
  'checkpoint': '; --init_from=CHECKPOINT trains from its weights',
  'init_from': '; give --checkpoint=CHECKPOINT instead',
}


def main(argv: list[str]) -> int:
  """Runs the mode that the flags ask for, and returns the exit status.

  Args:
    argv: The command line, with the name of the program.

  Raises:
    InputError: If the arguments or the files that they name are wrong.
  """
  path, overrides = _parse_flags(argv)
  workdir = _check_flags(path)
  profile_steps = _parse_profile_steps(_PROFILE_STEPS.value)
  # Imports are here so that --help and wrong input need not wait for JAX.
  from maskrcnn_jax.config.recipe import read_overrides, read_recipe

  recipe = read_recipe(path, overrides) if path else read_overrides(overrides)

  import jax

  from maskrcnn_jax.runtime import cluster
  from maskrcnn_jax.runtime.launch import (
    plan_launch,
    start_processes,
    visible_gpus,
  )
  from maskrcnn_jax.runtime.watchdog import watchdog
  from maskrcnn_jax.training.run import train

  launch = plan_launch(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    environment=os.environ,
    num_gpus=visible_gpus(),
  )
  if launch is not None:
    if _MODE.value == 'predict':
      raise InputError('predict runs in one process; give --num_processes=1.')
    start_processes(launch, timeout=_INITIALIZATION_TIMEOUT.value)
    if not cluster.is_main():
      logging.set_verbosity(logging.WARNING)
  logging.info(
    'JAX %s on %s; process %d of %d',
    jax.__version__,
    ', '.join(map(str, cluster.find_devices())),
    jax.process_index(),
    jax.process_count(),
  )
  # Only now, because only process 0 writes to the cache.
  cluster.keep_compiled(_COMPILATION_CACHE.value)
  with watchdog(recipe.config.train.watchdog_seconds):
    if _MODE.value != 'train':
      return _use(recipe, workdir)
    init_from = _INIT_FROM.value
    train(
      recipe.config,
      workdir,
      init_from=pathlib.Path(init_from) if init_from else None,
      skip_test=_SKIP_TEST.value,
      resume=_RESUME.value,
      allow_changes=_ALLOW_CHANGES.value,
      given_keys=frozenset(recipe.given),
      profile_steps=profile_steps,
    )
  return 0


def _use(recipe, workdir: pathlib.Path) -> int:
  """Evaluates a trained model or predicts with it; returns the exit status."""
  from maskrcnn_jax.config import source_of
  from maskrcnn_jax.data.source import options_of
  from maskrcnn_jax.detector import load_detector
  from maskrcnn_jax.evaluation.evaluate import evaluate
  from maskrcnn_jax.predict import predict
  from maskrcnn_jax.runtime import cluster
  from maskrcnn_jax.training.evaluations import expected_lines

  detector = load_detector(pathlib.Path(_CHECKPOINT.value or workdir), recipe)
  if _MODE.value == 'predict':
    broken = predict(
      detector,
      pattern=_INPUT.value,
      workdir=workdir,
      config=detector.config,
    )
    return 2 if broken else 0

  source = source_of(detector.config, 'eval')
  if source is None:
    raise InputError(f'No evaluation set: give {options_of("eval")}.')
  aps = evaluate(
    detector,
    source=source,
    workdir=workdir,
    config=detector.config,
    skip_eval=_SKIP_EVAL.value,
  )
  if cluster.is_main():
    for line in expected_lines(aps, **detector.config.expected):
      print(line, flush=True)
  return 0


def _parse_flags(argv: list[str]) -> tuple[str | None, list]:
  """Parses the command line; the recipe itself is not read yet.

  Returns:
    The value of --config, and the overrides of its keys.

  Raises:
    InputError: If an argument is not known or has a wrong value.
  """
  # Not with absl's own flag, which exits with status 1.
  if {'--help', '-help', '-h'} & set(argv):
    module = flags.FLAGS.find_module_defining_flag('workdir')
    print(f'{__doc__}\n{flags.FLAGS.module_help(module)}')
    sys.exit(0)
  from maskrcnn_jax.config.command_line import (
    refuse_unexpected,
    split_arguments,
  )

  try:
    # A --flagfile may have --config arguments too.
    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=True)
    path, overrides, others = split_arguments(argv[1:])
    unexpected = flags.FLAGS([argv[0], *others])[1:]
  except flags.UnrecognizedFlagError as error:
    refuse_unexpected([f'--{error.flagname}'], otherwise=_in_a_line(error))
  except (flags.Error, UnicodeDecodeError) as error:
    raise InputError(_in_a_line(error)) from error
  refuse_unexpected(unexpected)
  return path, overrides


def _in_a_line(error: Exception) -> str:
  """Returns the message of an error, without line breaks."""
  return ' '.join(str(error).split()) or type(error).__name__


def _check_flags(recipe: str | None) -> pathlib.Path:
  """Raises an InputError if flags are missing; returns the workdir.

  Args:
    recipe: The value of --config.
  """
  _check_flags_of_mode()
  if not _WORKDIR.value:
    raise InputError('--workdir=DIR is missing: the directory of the run.')
  workdir = pathlib.Path(_WORKDIR.value)
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f'C10: --workdir={workdir} is a file; give a directory.')
  if _MODE.value == 'train' and not recipe:
    from maskrcnn_jax.config.recipe import packaged_recipes

    raise InputError(
      '--config=FILE is missing: the recipe, or the name of a recipe that '
      f'comes with the program: {", ".join(packaged_recipes())}.'
    )
  if _MODE.value == 'predict' and not _INPUT.value:
    raise InputError('--input=FILE|DIR|GLOB is missing: what to look at.')
  return workdir


def _check_flags_of_mode() -> None:
  """Raises an InputError for a flag that the mode would ignore."""
  for name, modes in _MODES_OF_FLAGS.items():
    flag = flags.FLAGS[name]
    if _MODE.value in modes or flag.value in (flag.default, ''):
      continue
    text = f'--{name}={flag.value}'
    if isinstance(flag.value, bool):
      text = f'--{"" if flag.value else "no"}{name}'
    raise InputError(
      f'{text} is for --mode={" or ".join(modes)}, not for '
      f'{_MODE.value}{_MEANT.get(name, "")}.'
    )


def run() -> None:
  """Entry point: turns errors into one line and an exit status."""
  _set_up_console()
  _set_up_ctrl_c()
  try:
    status = main(sys.argv)
  except InputError as error:
    _fail(str(error), 2)
  except (FloatingPointError, SaveError) as error:
    _fail(str(error), 1)
  except Exception as error:
    # Python raises an OSError; the library that writes checkpoints raises
    # another error with the same text in it.
    if os.strerror(errno.ENOSPC) in str(error):
      _fail(
        'C10: the disk is full. What was saved before is whole; make room '
        'and give the same command again '
        f'({" ".join(str(error).split())[:300]}).',
        1,
      )
    traceback.print_exc()
    # If one of several processes fails, all the others come here.
    _fail('this process failed; what went wrong is above.', 1)
  sys.exit(status)


def _set_up_console() -> None:
  """Shows all messages of this program, and only warnings of libraries."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  logging.set_stderrthreshold(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(
    standard_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S')
  )
  ours = str(pathlib.Path(__file__).parent)
  handler.addFilter(
    lambda record: (
      record.levelno >= standard_logging.WARNING
      or record.pathname.startswith(ours)
    )
  )


def _set_up_ctrl_c() -> None:
  """Makes Ctrl-C end the program with one line; `train` replaces this.

  It does not raise a KeyboardInterrupt, because libraries swallow that or turn
  it into other errors.
  """
  # A program that a shell starts in the background goes on ignoring Ctrl-C.
  if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def _end(*_) -> None:
  """Ends the program; a signal handler."""
  # Not with print, whose buffer may be in the middle of a line.
  os.write(2, b'\nerror: ended by Ctrl-C.\n')
  os._exit(_INTERRUPTED)


def _parse_profile_steps(text: str | None) -> range:
  """Returns the steps that 'A:B' names, A to B - 1; None names none."""
  if text is None:
    return range(0)
  match = re.fullmatch(r'(\d+):(\d+)', text)
  if not match or int(match[1]) >= int(match[2]):
    raise InputError(
      f'--profile_steps={text}: give A:B for steps A to B-1, for example 10:13.'
    )
  return range(int(match[1]), int(match[2]))


def _fail(message: str, status: int) -> None:
  """Prints a message and exits."""
  print(f'error: {message}', file=sys.stderr, flush=True)
  _leave(status)


def _leave(status: int) -> None:
  """Exits; one of several processes does not wait for the others."""
  if 'jax' in sys.modules:
    from maskrcnn_jax.runtime import cluster

    cluster.leave(status)
  sys.exit(status)


if __name__ == '__main__':
  run()
