"""The flags of `main`: their definitions, and the checks of their values.

This module must not import JAX, so that --help and the messages about wrong
arguments appear at once.
"""

import pathlib
import re
import sys

from absl import flags

from maskrcnn_jax.errors import InputError

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
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the run: checkpoints, logs and results.'
)
MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'eval', 'predict'],
  'train: train, save checkpoints, and evaluate at the end. eval: compute '
  "COCO's AP of a checkpoint. predict: find objects in your own pictures.",
)
CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'For eval and predict: the workdir of a training, whose newest checkpoint '
  'is used, the folder of one checkpoint, WORKDIR/checkpoints/STEP, or the '
  'name of published weights, such as torchvision:maskrcnn_resnet50_fpn_v2; '
  'see --list_weights. Default: --workdir.',
)
INIT_FROM = flags.DEFINE_string(
  'init_from',
  None,
  'For train: a checkpoint to take the initial weights from, or the name of '
  'published weights, such as torchvision:resnet50; see --list_weights. The '
  'training starts at step 0 with a new optimizer state.',
)
LIST_WEIGHTS = flags.DEFINE_boolean(
  'list_weights',
  False,
  'Print the names of published weights for --init_from and --checkpoint, with '
  'their addresses, APs and licences, and end. They are downloaded at the '
  'first use, to $MASKRCNN_JAX_WEIGHTS or ~/.cache/maskrcnn_jax/weights; '
  '$MASKRCNN_JAX_MIRROR is the address of a mirror.',
)
INPUT = flags.DEFINE_string(
  'input',
  None,
  'For predict: a picture, a folder of pictures, or a pattern such as '
  "'pictures/*.jpg'.",
)
OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'For predict: the folder to write the results to. An unfinished result in it '
  'is continued, and a finished one is replaced. Default: WORKDIR/predictions.',
)
OVERLAYS = flags.DEFINE_enum(
  'overlays',
  'png',
  ['png', 'none'],
  'For predict: png writes a copy of each picture with its objects drawn on '
  'it; none writes only the JSON files, which is faster.',
)
ANNOTATIONS = flags.DEFINE_string(
  'annotations',
  None,
  "For predict: a JSON file in COCO's format, whose image ids the results get. "
  'Pictures that it does not name are left out. Without it, the results have '
  'no image_id.',
)
RESUME = flags.DEFINE_boolean(
  'resume',
  True,
  'For train: continue from the newest checkpoint in --workdir, if it has '
  'any. --noresume refuses a workdir that has a checkpoint.',
)
ALLOW_CHANGES = flags.DEFINE_boolean(
  'allow_changes',
  False,
  'For train: continue a run although its recipe or its training set has '
  'changed; the log lists the changes.',
)
SKIP_TEST = flags.DEFINE_boolean(
  'skip_test', False, 'For train: do not evaluate at the end.'
)
SKIP_EVAL = flags.DEFINE_boolean(
  'skip_eval',
  False,
  'For eval: write the detections to files, but do not compute the AP.',
)
COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'For a run of several processes: HOST:PORT of process 0. SLURM, Open MPI '
  '(mpirun) and Kubernetes give --coordinator, --num_processes and '
  '--process_id themselves.',
)
NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes',
  None,
  'Number of processes of the run. 1 runs this process alone, also under '
  'SLURM, Open MPI or Kubernetes. For predict, each process takes its share of '
  'the pictures; it needs no --coordinator, and may be started again alone.',
)
PROCESS_ID = flags.DEFINE_integer(
  'process_id',
  None,
  'Number of this process, from 0 to --num_processes minus 1.',
)
INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
  'initialization_timeout',
  300,
  'Seconds to wait at the start for the other processes of the run.',
  lower_bound=1,
)
COMPILATION_CACHE = flags.DEFINE_string(
  'compilation_cache',
  None,
  'Folder in which compiled programs are kept, so that the next run starts '
  "faster; '' keeps none. Default: $JAX_COMPILATION_CACHE_DIR, or "
  '~/.cache/maskrcnn_jax if that is not set. The machines of one run should '
  'share the folder.',
)
PROFILE_STEPS = flags.DEFINE_string(
  'profile_steps',
  None,
  'For train: A:B records a trace of the steps A to B-1 for TensorBoard or '
  'Perfetto and writes it to WORKDIR/profile.',
)

# {flag: the modes that use it}. The other modes refuse the flag. A flag that
# is not listed is for all modes.
_MODES_OF_FLAGS = {
  'allow_changes': ('train',),
  'annotations': ('predict',),
  'checkpoint': ('eval', 'predict'),
  'init_from': ('train',),
  'input': ('predict',),
  'output': ('predict',),
  'overlays': ('predict',),
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


def parse_flags(
  argv: list[str], *, description: str
) -> tuple[str | None, list[tuple[str, str | None]]]:
  """Parses the command line: fills absl's `FLAGS`, returns --config arguments.

  All flags but --config get their values in `flags.FLAGS`. The recipe that
  --config names is not read yet. With --help, -help or -h, prints the help and
  ends the program with status 0.

  Args:
    argv: The command line; the first item is the name of the program.
    description: The text above the flags in the help.

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
    # The help of a module begins with its name.
    _, _, help_text = flags.FLAGS.module_help(module).partition(':\n')
    print(f'{description}\nFlags:\n{help_text}')
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


def take_settings(
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
  for name, value in flags_from(settings, given, mode=MODE.value).items():
    flags.FLAGS[name].value = value
  return settings.get('MODEL.WEIGHT', ('', False))[0]


def check_flags(recipe: str | None) -> pathlib.Path:
  """Checks that the flags of the chosen mode are given, and no others.

  Args:
    recipe: The value of --config.

  Returns:
    The workdir, which need not exist.

  Raises:
    InputError: If a flag is missing, or the mode does not use a given flag.
  """
  _check_flags_of_mode()
  if not WORKDIR.value:
    raise InputError(
      '--workdir=DIR is missing: the directory for checkpoints, logs and '
      'results.'
    )
  workdir = pathlib.Path(WORKDIR.value)
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f'C10: --workdir={workdir} is a file; give a directory.')
  if MODE.value == 'train' and not recipe:
    from maskrcnn_jax.config.recipe import packaged_recipes

    raise InputError(
      '--config=FILE is missing; give a recipe file, or the name of a recipe '
      f'that comes with the program: {", ".join(packaged_recipes())}.'
    )
  if MODE.value == 'predict' and not INPUT.value:
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
    if MODE.value in modes or flag.value in (flag.default, ''):
      continue
    text = f'--{name}={flag.value}'
    if isinstance(flag.value, bool):
      text = f'--{"" if flag.value else "no"}{name}'
    raise InputError(
      f'{text} is for --mode={" or ".join(modes)}, not for '
      f'{MODE.value}{_ADVICE.get(name, "")}.'
    )


def parse_profile_steps(text: str | None) -> range:
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


def _in_a_line(error: Exception) -> str:
  """Returns the message of an error in one line; its type if it has none."""
  return ' '.join(str(error).split()) or type(error).__name__
