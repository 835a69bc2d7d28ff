"""The program: train, evaluate or predict with one recipe.

  python -m maskrcnn_jax.main --config=configs/r50_fpn.py --workdir=DIR
      [--mode=train|eval|predict] [--config.KEY=VALUE ...]

Exit status: 0 done, 1 failed while running, 2 wrong input, 130 ended by Ctrl-C.
A training that SIGTERM or the first Ctrl-C ended is saved and has status 0;
WORKDIR/interrupted tells it from one that is done.
"""

from collections.abc import Iterator
import difflib
import errno
import itertools
import logging as standard_logging
import os
import pathlib
import re
import signal
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from maskrcnn_jax.errors import InputError, SaveError

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The recipe, for example configs/r50_fpn.py; each of its '
    'keys can be overridden: --config.train.batch_size=8. Where none is given, '
    "eval and predict use the checkpoint's own, with such overrides.",
    lock_config=True,
)
# Parses overrides of the recipe of a checkpoint before that is read.
_DEFAULTS = pathlib.Path(__file__).parent / 'config' / '__init__.py'
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory of the run: checkpoints, logs, results.'
)
_MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'eval', 'predict'],
    'train: train, checkpoint, evaluate at the end. eval: print the COCO '
    'table of a checkpoint. predict: find objects in your own pictures.',
)
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'For eval and predict: a workdir or one saved step. '
    'Default: the newest of --workdir.',
)
_INIT_FROM = flags.DEFINE_string(
    'init_from', None, 'For train: a checkpoint to take the initial weights '
    'from, and nothing else.',
)
_INPUT = flags.DEFINE_string(
    'input', None, 'For predict: a picture, a folder of pictures or a glob.'
)
_RESUME = flags.DEFINE_boolean(
    'resume', True, 'For train: continue from the newest checkpoint of '
    '--workdir, if there is one. --noresume refuses such a workdir.',
)
_ALLOW_CHANGES = flags.DEFINE_boolean(
    'allow_changes', False, 'For train: continue although the recipe or the '
    'training set has changed; what has is shown.',
)
_SKIP_TEST = flags.DEFINE_boolean(
    'skip_test', False, 'For train: leave out the evaluation at the end.'
)
_SKIP_EVAL = flags.DEFINE_boolean(
    'skip_eval', False, 'For eval: write the predictions, compute no AP.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'Of several processes: HOST:PORT of process 0. None '
    'of the three is needed under SLURM, Open MPI (mpirun) or Kubernetes.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', None, 'How many processes work together. 1: this one '
    'alone, whoever started it.',
)
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', None, 'Which of them this is, from 0.'
)
_INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
    'initialization_timeout', 300, 'Seconds to wait for the other processes.',
    lower_bound=1,
)
_COMPILATION_CACHE = flags.DEFINE_string(
    'compilation_cache', None, 'Folder that keeps what is compiled for the '
    "next run; '' for none. Default: $JAX_COMPILATION_CACHE_DIR, else "
    "~/.cache/maskrcnn_jax. Several machines should share it.",
)
_PROFILE_STEPS = flags.DEFINE_string(
    'profile_steps', None, 'For train: A:B writes a trace of steps A to B-1 '
    'into WORKDIR/profile.',
)
# As shells give it for what SIGINT ended.
_INTERRUPTED = 130

# Those of a mode, which another would pass over in silence.
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
    'init_from': '; --checkpoint=CHECKPOINT is what is used',
}


def main(arguments: list[str]) -> int:
  """Runs the mode that the flags ask for."""
  # Imported late: --help and a misspelt flag need not wait for JAX.
  import jax

  from maskrcnn_jax.config import default_config
  from maskrcnn_jax.config.check import check_config
  from maskrcnn_jax.runtime import cluster
  from maskrcnn_jax.runtime.watchdog import watchdog
  from maskrcnn_jax.training.run import train

  if len(arguments) > 1:
    raise InputError(
        f'Unexpected argument {arguments[1]!r}; options start with --.'
    )
  _check_flags_of_mode()
  if not _WORKDIR.value:
    raise InputError('--workdir=DIR is missing: the directory of the run.')
  workdir = pathlib.Path(_WORKDIR.value)
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f'C10: --workdir={workdir} is a file; give a directory.')
  config = _CONFIG.value
  changes = {}
  if config is not None:
    changes = config_flags.get_override_values(flags.FLAGS['config'])
    filename = config_flags.get_config_filename(flags.FLAGS['config'])
    if filename == str(_DEFAULTS):
      config = None
  if config is not None:
    check_config(config)
  if _MODE.value == 'train' and config is None:
    raise InputError(
        '--config=FILE is missing, for example configs/r50_fpn.py.'
    )
  if _MODE.value == 'predict' and not _INPUT.value:
    raise InputError('--input=FILE|DIR|GLOB is missing: what to look at.')
  profile_steps = _parse_profile_steps(_PROFILE_STEPS.value)

  launch = cluster.plan_launch(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value,
      environment=os.environ, num_gpus=cluster.visible_gpus(),
  )
  if launch is not None:
    if _MODE.value == 'predict':
      raise InputError(
          'predict runs in one process; give --num_processes=1.'
      )
    cluster.start_processes(launch, timeout=_INITIALIZATION_TIMEOUT.value)
    if not cluster.is_main():
      logging.set_verbosity(logging.WARNING)
  logging.info(
      'JAX %s on %s; process %d of %d', jax.__version__,
      ', '.join(map(str, cluster.find_devices())), jax.process_index(),
      jax.process_count(),
  )
  # Not before the processes know each other: only one of them writes there.
  cluster.keep_compiled(_COMPILATION_CACHE.value)
  seconds = (config or default_config()).train.watchdog_seconds
  with watchdog(seconds):
    if _MODE.value == 'train':
      init_from = _INIT_FROM.value
      train(
          config, workdir,
          init_from=pathlib.Path(init_from) if init_from else None,
          skip_test=_SKIP_TEST.value, resume=_RESUME.value,
          allow_changes=_ALLOW_CHANGES.value,
          given_keys=frozenset(changes),
          profile_steps=profile_steps,
      )
      return 0
    return _use(config, changes, workdir)


def _use(config, changes, workdir) -> int:
  """Evaluates a trained model, or predicts with it."""
  from maskrcnn_jax.config import source_of
  from maskrcnn_jax.data.source import how_to_give
  from maskrcnn_jax.detector import load_detector
  from maskrcnn_jax.evaluation.evaluate import evaluate
  from maskrcnn_jax.predict import predict
  from maskrcnn_jax.runtime import cluster
  from maskrcnn_jax.training.evaluations import expected_lines

  detector = load_detector(
      pathlib.Path(_CHECKPOINT.value or workdir), config, changes
  )
  if _MODE.value == 'predict':
    broken = predict(
        detector, pattern=_INPUT.value, workdir=workdir,
        config=detector.config,
    )
    return 2 if broken else 0

  source = source_of(detector.config, 'eval')
  if source is None:
    raise InputError(f'No evaluation set: {how_to_give("eval")}.')
  aps = evaluate(
      detector, source=source, workdir=workdir, config=detector.config,
      skip_eval=_SKIP_EVAL.value,
  )
  if cluster.is_main():
    for line in expected_lines(aps, **detector.config.expected):
      print(line, flush=True)
  return 0


def _check_flags_of_mode() -> None:
  """Refuses a flag that says something, but to another mode."""
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
    status = main(_parse_flags(sys.argv))
  except InputError as error:
    _fail(str(error), 2)
  except (FloatingPointError, SaveError) as error:
    _fail(str(error), 1)
  except Exception as error:
    # Of Python as an OSError, of what writes checkpoints as text in another.
    if os.strerror(errno.ENOSPC) in str(error):
      _fail(
          'C10: the disk is full. What was saved before is whole; make room '
          'and give the same command again '
          f'({" ".join(str(error).split())[:300]}).', 1,
      )
    traceback.print_exc()
    # Of several processes that lose one, all the others come here.
    _fail('this process failed; what went wrong is above.', 1)
  sys.exit(status)


def _set_up_console() -> None:
  """Shows our own messages, and of libraries only warnings and errors."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  logging.set_stderrthreshold(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(
      standard_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S')
  )
  ours = str(pathlib.Path(__file__).parent)
  handler.addFilter(
      lambda record: record.levelno >= standard_logging.WARNING
      or record.pathname.startswith(ours)
  )


def _set_up_ctrl_c() -> None:
  """Has Ctrl-C end the program in a line, but while `train` listens.

  Not by a KeyboardInterrupt, which libraries swallow or make other errors of.
  """
  # What a shell starts in the background goes on ignoring it.
  if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def _end(*_) -> None:
  # Past Python's buffers, which may be in the middle of a line.
  os.write(2, b'\nerror: ended by Ctrl-C.\n')
  os._exit(_INTERRUPTED)


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; whatever is wrong with them is wrong input."""
  # Not absl's own flag, which exits with status 1.
  if {'--help', '-help', '-h'} & set(argv):
    app.usage(shorthelp=True, writeto_stdout=True)
    sys.exit(0)
  _check_recipe_exists(argv)
  names = [a.partition('=')[0].lstrip('-') for a in argv if a.startswith('-')]
  if 'config' not in names and any(n.startswith('config.') for n in names):
    argv = [argv[0], f'--config={_DEFAULTS}', *argv[1:]]
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError,
          OSError) as error:
    _fail(_explain_flag_error(error, argv), 2)


def _check_recipe_exists(argv: list[str]) -> None:
  """Fails if --config names no file, which config_flags tells much later."""
  for name, text in _given(argv):
    if name not in ('--config', '-config'):
      continue
    path = pathlib.Path(text.split(':')[0])
    if text and (path.suffix != '.py' or not path.is_file()):
      _fail(
          f'--config={path} is not a Python file; give a recipe, for example '
          'configs/r50_fpn.py.', 2,
      )


def _given(argv: list[str]) -> Iterator[tuple[str, str]]:
  """Yields (name, value) of each argument, as far as it is a flag."""
  for argument, following in itertools.pairwise([*argv, '']):
    name, equals, value = argument.partition('=')
    yield name, value if equals else following


def _parse_profile_steps(text: str | None) -> range:
  """Reads 'A:B'."""
  if text is None:
    return range(0)
  found = re.fullmatch(r'(\d+):(\d+)', text)
  if not found or int(found[1]) >= int(found[2]):
    raise InputError(
        f'--profile_steps={text}: give A:B for steps A to B-1, for example '
        '10:13.'
    )
  return range(int(found[1]), int(found[2]))


def _explain_flag_error(error: Exception, argv: list[str]) -> str:
  """One line on what is wrong with the flags."""
  from maskrcnn_jax.config import default_config, recipe

  lines = str(error).strip().splitlines() or [type(error).__name__]
  # The recipe itself raised, and config_flags gives the traceback as text.
  if 'Error whilst parsing config file' in lines[0]:
    return lines[-1].partition(': ')[2]
  text = ' '.join(' '.join(lines).split())
  if '--config.' in text:
    text = f'C05: {text}'
  overrides = [a for a in argv if re.match(r'--config\.', a)]
  if isinstance(error, AttributeError | KeyError) and overrides:
    names = [a[len('--config.'):].split('=')[0] for a in overrides]
    known = recipe.key_names(default_config())
    for name in names:
      if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f'; did you mean --config.{near[0]}?' if near else ''
        return f'C05: There is no config key {name!r}{hint}'
  path = next((
      value for name, value in _given(argv) if name in ('--config', '-config')
  ), None)
  return path and recipe.explain_misspelt(error, path) or text


def _fail(message: str, status: int) -> None:
  print(f'error: {message}', file=sys.stderr, flush=True)
  _leave(status)


def _leave(status: int) -> None:
  """Exits; of several processes, without waiting for the others."""
  if 'jax' in sys.modules:
    from maskrcnn_jax.runtime import cluster
    cluster.leave(status)
  sys.exit(status)


if __name__ == '__main__':
  run()
