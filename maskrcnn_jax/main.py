"""Trains a Mask R-CNN, evaluates it, or finds objects in your own pictures.

  python -m maskrcnn_jax.main --config=RECIPE --workdir=DIR
      [--init_from=CHECKPOINT] [--config.KEY=VALUE ...]
  python -m maskrcnn_jax.main --mode=eval --workdir=DIR
      [--checkpoint=CHECKPOINT] [--config.KEY=VALUE ...]
  python -m maskrcnn_jax.main --mode=predict --workdir=DIR --input=PICTURES
      [--checkpoint=CHECKPOINT] [--config.KEY=VALUE ...]

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
import logging as standard_logging
import os
import pathlib
import re
import signal
import sys
import traceback
from typing import TYPE_CHECKING

from absl import flags, logging

from maskrcnn_jax.errors import InputError, SaveError, print_error
from maskrcnn_jax.runtime.status_line import hide, keep_below, waiting

if TYPE_CHECKING:
  import maskrcnn_jax.config.recipe

# This definition is only for --help: `split_arguments` reads the value of
# --config, together with the --config.KEY arguments.
flags.DEFINE_string(
  'config',
  None,
  'The recipe: the name of a recipe that comes with the '
  'program, such as r50_fpn, or a file FILE.py or FILE.yaml. '
  '--config.KEY=VALUE changes a key of it, for example '
  '--config.train.batch_size=8. If --config is left out, eval and predict use '
  'the recipe that the checkpoint stores. --config_file is the same flag.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the run: checkpoints, logs and results.'
)
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'eval', 'predict'],
  'train: train, save checkpoints, and evaluate at the end. eval: compute '
  "COCO's AP of a checkpoint. predict: find objects in your own pictures.",
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'For eval and predict: the workdir of a training, whose newest checkpoint '
  'is used, or the folder of one checkpoint, WORKDIR/checkpoints/STEP. '
  'Default: --workdir.',
)
_INIT_FROM = flags.DEFINE_string(
  'init_from',
  None,
  'For train: a checkpoint to take the initial weights from. The training '
  'starts at step 0 with a new optimizer state.',
)
_INPUT = flags.DEFINE_string(
  'input',
  None,
  'For predict: a picture, a folder of pictures, or a pattern such as '
  "'pictures/*.jpg'.",
)
_RESUME = flags.DEFINE_boolean(
  'resume',
  True,
  'For train: continue from the newest checkpoint in --workdir, if it has '
  'any. --noresume refuses a workdir that has a checkpoint.',
)
_ALLOW_CHANGES = flags.DEFINE_boolean(
  'allow_changes',
  False,
  'For train: continue a run although its recipe or its training set has '
  'changed; the log lists the changes.',
)
_SKIP_TEST = flags.DEFINE_boolean(
  'skip_test', False, 'For train: do not evaluate at the end.'
)
_SKIP_EVAL = flags.DEFINE_boolean(
  'skip_eval',
  False,
  'For eval: write the detections to files, but do not compute the AP.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'For a run of several processes: HOST:PORT of process 0. SLURM, Open MPI '
  '(mpirun) and Kubernetes give --coordinator, --num_processes and '
  '--process_id themselves.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes',
  None,
  'Number of processes of the run. 1 runs this process alone, also under '
  'SLURM, Open MPI or Kubernetes.',
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id',
  None,
  'Number of this process, from 0 to --num_processes minus 1.',
)
_INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
  'initialization_timeout',
  300,
  'Seconds to wait at the start for the other processes of the run.',
  lower_bound=1,
)
_COMPILATION_CACHE = flags.DEFINE_string(
  'compilation_cache',
  None,
  'Folder in which compiled programs are kept, so that the next run starts '
  "faster; '' keeps none. Default: $JAX_COMPILATION_CACHE_DIR, or "
  '~/.cache/maskrcnn_jax if that is not set. The machines of one run should '
  'share the folder.',
)
_PROFILE_STEPS = flags.DEFINE_string(
  'profile_steps',
  None,
  'For train: A:B records a trace of the steps A to B-1 for TensorBoard or '
  'Perfetto and writes it to WORKDIR/profile.',
)
# The exit status that shells give to a program that SIGINT ended.
_INTERRUPTED = 130

# {flag: the modes that use it}. The other modes refuse the flag. A flag that
# is not listed is for all modes.
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
# {flag: the end of the message if another mode is given this flag}: the flag
# that the user probably means.
_ADVICE = {
  'checkpoint': '; --init_from=CHECKPOINT trains from its weights',
  'init_from': '; give --checkpoint=CHECKPOINT instead',
}


def main(argv: list[str]) -> int:
  """Trains, evaluates or predicts, as --mode says.

  Args:
    argv: The command line; the first item is the name of the program.

  Returns:
    The exit status: 0, or 2 if a picture could not be read.

  Raises:
    InputError: If the arguments or the files that they name are wrong.
    FloatingPointError: If a loss of a training is not finite.
    SaveError: If a checkpoint cannot be written.
  """
  path, overrides = _parse_flags(argv)
  weight = _take_settings(path, overrides)
  workdir = _check_flags(path)
  profile_steps = _parse_profile_steps(_PROFILE_STEPS.value)
  # The imports are here so that --help and the messages about wrong arguments
  # appear at once; importing JAX takes seconds.
  with waiting('Starting JAX'):
    from maskrcnn_jax.config.nvidia_flags import require_weights
    from maskrcnn_jax.config.recipe import read_overrides, read_recipe

  recipe = (
    read_recipe(path, overrides, for_training=_MODE.value == 'train')
    if path
    else read_overrides(overrides)
  )
  if weight and _MODE.value == 'train' and not _INIT_FROM.value:
    require_weights(weight, workdir)

  with waiting('Starting JAX'):
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
    with waiting('Waiting for the other processes'):
      start_processes(launch, timeout=_INITIALIZATION_TIMEOUT.value)
    if not cluster.is_main():
      logging.set_verbosity(logging.WARNING)
      hide()
  with waiting('Looking for devices'):
    devices = cluster.find_devices()
  logging.info(
    'JAX %s on %s; process %d of %d',
    jax.__version__,
    ', '.join(map(str, devices)),
    jax.process_index(),
    jax.process_count(),
  )
  for line in recipe.notes:
    logging.info('%s', line)
  # This comes after the start of the processes, because only process 0 writes
  # to the cache.
  cluster.keep_compiled(_COMPILATION_CACHE.value)
  with watchdog(recipe.config.train.watchdog_seconds):
    if _MODE.value != 'train':
      return _evaluate_or_predict(recipe, workdir)
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


def _evaluate_or_predict(
  recipe: 'maskrcnn_jax.config.recipe.Recipe', workdir: pathlib.Path
) -> int:
  """Loads a checkpoint and evaluates it or predicts with it, as --mode says.

  Args:
    recipe: The recipe that the user gave, or only the given keys.
    workdir: The folder that results are written to.

  Returns:
    The exit status: 0, or 2 if a picture could not be read.

  Raises:
    InputError: If the checkpoint, the recipe, the evaluation set or the
      pictures cannot be used.
  """
  from maskrcnn_jax.config import source_of
  from maskrcnn_jax.data.source import options_of
  from maskrcnn_jax.detector import load_detector
  from maskrcnn_jax.evaluation.evaluate import evaluate
  from maskrcnn_jax.predict import predict
  from maskrcnn_jax.runtime import cluster
  from maskrcnn_jax.runtime.training_log import log_line
  from maskrcnn_jax.training.evaluations import (
    describe,
    expected_lines,
    summarize,
  )

  detector = load_detector(pathlib.Path(_CHECKPOINT.value or workdir), recipe)
  if _MODE.value == 'predict':
    assert _INPUT.value is not None  # `_check_flags` refuses this.
    num_unreadable = predict(
      detector,
      pattern=_INPUT.value,
      workdir=workdir,
      config=detector.config,
    )
    return 2 if num_unreadable else 0

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
    if aps:
      log_line(workdir, describe(summarize(aps, detector.step)))
    for line in expected_lines(aps, **detector.config.expected):
      print(line, flush=True)
  return 0


def _parse_flags(
  argv: list[str],
) -> tuple[str | None, list[tuple[str, str | None]]]:
  """Parses the command line: fills absl's `FLAGS`, returns --config arguments.

  All flags but --config get their values in `flags.FLAGS`. The recipe that
  --config names is not read yet. With --help, -help or -h, prints the help and
  ends the program with status 0.

  Args:
    argv: The command line; the first item is the name of the program.

  Returns:
    The value of --config, `None` if it is not given; and the (key, text) pairs
    of the --config.KEY=TEXT arguments in their order. A text is `None` if only
    --config.KEY was given, which means True for a boolean key.

  Raises:
    InputError: If an argument is not known or has a wrong value.
  """
  # absl's own --help exits with status 1.
  if {'--help', '-help', '-h'} & set(argv):
    module = flags.FLAGS.find_module_defining_flag('workdir')
    # The help of a module begins with the path of its file.
    _, _, help_text = flags.FLAGS.module_help(module).partition(':\n')
    print(f'{__doc__}\nFlags:\n{help_text}')
    sys.exit(0)
  from maskrcnn_jax.config.command_line import (
    refuse_unexpected,
    split_arguments,
  )

  try:
    # A file that --flagfile names may have --config arguments too.
    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=True)
    path, overrides, others = split_arguments(argv[1:])
    unexpected = flags.FLAGS([argv[0], *others])[1:]
  except flags.UnrecognizedFlagError as error:
    refuse_unexpected([f'--{error.flagname}'], otherwise=_in_a_line(error))
  except (flags.Error, UnicodeDecodeError) as error:
    raise InputError(_in_a_line(error)) from error
  refuse_unexpected(unexpected)
  return path, overrides


def _take_settings(
  path: str | None, overrides: list[tuple[str, str | None]]
) -> str:
  """Fills in the flags that OUTPUT_DIR and MODEL.WEIGHT of a YAML file give.

  The two keys may also be in pairs on the command line.

  Args:
    path: The value of --config.
    overrides: (key, text) pairs, as `split_arguments` returns them.

  Returns:
    The value of MODEL.WEIGHT; '' if it is not given.

  Raises:
    InputError: If the YAML file cannot be read, or a flag and a pair on the
      command line name different folders.
  """
  from maskrcnn_jax.config.nvidia_flags import flags_from
  from maskrcnn_jax.config.yaml_recipe import settings_of

  settings = settings_of(path, overrides)
  names = ('workdir', 'init_from', 'checkpoint')
  given = {name: flags.FLAGS[name].value for name in names}
  for name, value in flags_from(settings, given, mode=_MODE.value).items():
    flags.FLAGS[name].value = value
  return settings.get('MODEL.WEIGHT', ('', False))[0]


def _in_a_line(error: Exception) -> str:
  """Returns the message of an error in one line; its type if it has none."""
  return ' '.join(str(error).split()) or type(error).__name__


def _check_flags(recipe: str | None) -> pathlib.Path:
  """Checks that the flags of the chosen mode are given, and no others.

  Args:
    recipe: The value of --config.

  Returns:
    The workdir, which need not exist.

  Raises:
    InputError: If a flag is missing, or the mode does not use a given flag.
  """
  _check_flags_of_mode()
  if not _WORKDIR.value:
    raise InputError(
      '--workdir=DIR is missing: the directory for checkpoints, logs and '
      'results.'
    )
  workdir = pathlib.Path(_WORKDIR.value)
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f'C10: --workdir={workdir} is a file; give a directory.')
  if _MODE.value == 'train' and not recipe:
    from maskrcnn_jax.config.recipe import packaged_recipes

    raise InputError(
      '--config=FILE is missing; give a recipe file, or the name of a recipe '
      f'that comes with the program: {", ".join(packaged_recipes())}.'
    )
  if _MODE.value == 'predict' and not _INPUT.value:
    raise InputError(
      '--input=FILE|DIR|GLOB is missing: the pictures to find objects in.'
    )
  return workdir


def _check_flags_of_mode() -> None:
  """Raises an InputError if a given flag has no effect in the chosen mode.

  A flag that is given its default value is not refused.
  """
  for name, modes in _MODES_OF_FLAGS.items():
    flag = flags.FLAGS[name]
    if _MODE.value in modes or flag.value in (flag.default, ''):
      continue
    text = f'--{name}={flag.value}'
    if isinstance(flag.value, bool):
      text = f'--{"" if flag.value else "no"}{name}'
    raise InputError(
      f'{text} is for --mode={" or ".join(modes)}, not for '
      f'{_MODE.value}{_ADVICE.get(name, "")}.'
    )


def run() -> None:
  """Runs the program and ends the process with the exit status of `main`.

  An InputError is printed as one line, and the status is 2. Any other exception
  gives status 1: a loss that is not finite, a failed save and a full disk are
  printed as one line, and an unexpected exception with its traceback. Ctrl-C
  gives status 130; in a training, only the second Ctrl-C does, because the
  first makes the run save a checkpoint and end with status 0.
  """
  _set_up_console()
  _set_up_ctrl_c()
  try:
    status = main(sys.argv)
  except InputError as error:
    _fail(str(error), 2)
  except (FloatingPointError, SaveError) as error:
    _fail(str(error), 1)
  except Exception as error:
    # On a full disk, Python raises an OSError; the library that writes
    # checkpoints raises another type of error with the same text in it.
    if os.strerror(errno.ENOSPC) in str(error):
      _fail(
        'C10: the disk is full. Make room and give the same command again; '
        'checkpoints that were saved before are complete '
        f'({" ".join(str(error).split())[:300]}).',
        1,
      )
    traceback.print_exc()
    # If one process of a run fails, all other processes of the run fail too
    # and come here.
    _fail('this process failed; the traceback above gives the reason.', 1)
  sys.exit(status)


def _set_up_console() -> None:
  """Configures the log on stderr.

  It shows all messages of this program and only the warnings and errors of the
  libraries, each with the time of day. On a terminal, all output appears above
  the status line.
  """
  keep_below()
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  # It must write to the stream that `sys.stderr` is at the time, not when absl
  # was imported, because a status line replaces `sys.stderr`.
  flags.FLAGS.set_default('logtostderr', True)
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


def _parse_profile_steps(text: str | None) -> range:
  """Parses the value of --profile_steps to the range of the steps to trace.

  Args:
    text: 'A:B' for the steps A to B - 1, or `None` for no step.

  Raises:
    InputError: If the text has another form, or A is not less than B.
  """
  if text is None:
    return range(0)
  match = re.fullmatch(r'(\d+):(\d+)', text)
  if not match or int(match[1]) >= int(match[2]):
    raise InputError(
      f'--profile_steps={text}: give A:B for steps A to B-1, for example 10:13.'
    )
  return range(int(match[1]), int(match[2]))


def _fail(message: str, status: int) -> None:
  """Prints an error message on stderr and ends the program with a status."""
  print_error(message)
  _leave(status)


def _leave(status: int) -> None:
  """Ends this process with a status, without waiting for other processes."""
  if 'jax' in sys.modules:
    from maskrcnn_jax.runtime import cluster

    cluster.leave(status)
  sys.exit(status)


if __name__ == '__main__':
  run()
