"""Translates keys of NVIDIA's Mask R-CNN For PyTorch to keys of a recipe.

A file of that program contains only the keys that differ from its defaults, so
a translation begins with those defaults. The rows of `nvidia_keys.ROWS` whose
value is copied need no more; the functions below translate keys that belong
together, and refuse values for which this program has no counterpart.
"""

from collections.abc import Callable, Mapping
import difflib
from typing import Any, NamedTuple

import ml_collections

from maskrcnn_jax.config.defaults import default_config, value_of
from maskrcnn_jax.config.foreign_names import answer_to
from maskrcnn_jax.config.forms import problem_with
from maskrcnn_jax.config.keys import BY_NAME as OUR_KEYS
from maskrcnn_jax.config.nvidia_keys import ANY, BY_NAME, ROWS, Row
from maskrcnn_jax.config.nvidia_network import translate_network
from maskrcnn_jax.config.nvidia_weights import advice_on_weights
from maskrcnn_jax.errors import InputError

# {name in DATASETS: (folder of images, annotations)}, in the folder data/coco.
COCO_SETS = {
  'coco_2014_train': ('train2014', 'instances_train2014.json'),
  'coco_2014_val': ('val2014', 'instances_val2014.json'),
  'coco_2014_minival': ('val2014', 'instances_minival2014.json'),
  'coco_2014_valminusminival': (
    'val2014',
    'instances_valminusminival2014.json',
  ),
  'coco_2017_train': ('train2017', 'instances_train2017.json'),
  'coco_2017_val': ('val2017', 'instances_val2017.json'),
}

# {value of DTYPE: precision}.
PRECISIONS = {
  'float32': 'fp32',
  'tf32': 'tf32',
  'float16': 'fp16',
  'bfloat16': 'bf16',
}


class Translation(NamedTuple):
  """The translation of a file or of KEY VALUE pairs."""

  values: dict[str, Any]  # {key of this program: value}
  lines: list[str]  # a line for each given key, for the log
  # {key of NVIDIA's program: the keys of this program that it decides}
  keys: dict[str, tuple[str, ...]]


def translate_file(
  given: Mapping[str, Any],
  *,
  place: str,
  provided: frozenset[str] = frozenset(),
) -> Translation:
  """Translates a file of NVIDIA's program, with all its defaults.

  Args:
    given: {key: value} of the file and of the KEY VALUE pairs that follow it.
    place: The name of the file, for messages.
    provided: Keys of this program that the command line gives. They are not
      needed from the file, so the name of an unknown data set is accepted.

  Returns:
    The values of all keys of this program that the file and the defaults of
    NVIDIA's program decide.

  Raises:
    InputError: If keys or values have no counterpart; the message lists all.
  """
  defaults = {row.name: row.default for row in ROWS}
  translation, problems = _translate(given, defaults, provided)
  _refuse(problems, place)
  values, lines, keys = translation
  values |= {
    'geometry': 'legacy',
    # The frozen batch norm of NVIDIA's program adds nothing to the variance.
    'model.norm_eps': 0.0,
    'train.reference_batch_size': values['train.batch_size'],
  }
  shown = {key for name in given for key in keys.get(name, ())}
  ours = default_config()
  rest = [
    f'{key} = {value!r}'
    for key, value in values.items()
    if key not in shown and value != value_of(ours, key)
  ]
  return Translation(
    values,
    [*lines, f"defaults of NVIDIA's program -> {', '.join(rest)}"],
    keys,
  )


def translate_pairs(
  pairs: Mapping[str, Any],
  config: ml_collections.ConfigDict,
  *,
  provided: frozenset[str] = frozenset(),
) -> Translation:
  """Translates KEY VALUE pairs that change a recipe of this program.

  Args:
    pairs: {key of NVIDIA's program: value}.
    config: The recipe.
    provided: As in `translate_file`.

  Returns:
    The values of the keys that the pairs decide, and of no others.

  Raises:
    InputError: If a key or value has no counterpart, or is a key whose meaning
      depends on other keys of a file; the message lists all.
  """
  base = {row.name: row.default for row in ROWS} | {
    'SOLVER.IMS_PER_BATCH': config.train.batch_size,
    'SOLVER.MAX_ITER': config.train.num_steps,
    'SOLVER.CHECKPOINT_PERIOD': config.train.checkpoint_every,
    'SOLVER.STEPS': config.optimizer.decay_steps,
    'MODEL.MASK_ON': config.model.output == 'masks',
    'INPUT.BRIGHTNESS': config.data.color_jitter[0],
    'INPUT.CONTRAST': config.data.color_jitter[1],
    'INPUT.SATURATION': config.data.color_jitter[2],
  }
  translation, problems = _translate(pairs, base, provided)
  for name in pairs:
    row = BY_NAME.get(name)
    if row is not None and row.file_only:
      keys = ', '.join(f'--config.{key}' for key in row.keys)
      problems[name] = (
        'this key can only follow a YAML file, because it belongs together '
        'with others' + (f'; give {keys} instead' if keys else '')
      )
  # Other keys have the defaults of NVIDIA's program, which the given ones need
  # not fit.
  _refuse(
    {name: problems[name] for name in pairs if name in problems},
    'the command line',
  )
  decided = {key for name in pairs for key in translation.keys[name]}
  values = {k: v for k, v in translation.values.items() if k in decided}
  if 'train.micro_batches' in values:
    # As in NVIDIA's program, the learning rate stays as it is.
    values['train.auto_scale'] = False
  return translation._replace(values=values)


def _translate(
  given: Mapping[str, Any],
  base: dict[str, Any],
  provided: frozenset[str],
) -> tuple[Translation, dict[str, str]]:
  """Translates given keys, with the values of `base` for all other keys.

  Args:
    given: {key of NVIDIA's program: value}.
    base: The values of keys that are not given.
    provided: As in `translate_file`.

  Returns:
    The translation; and {key of NVIDIA's program: reason why it cannot be
    translated}, empty if there is no problem.
  """
  cfg = dict(base)
  problems: dict[str, str] = {}
  for name, value in given.items():
    row = BY_NAME.get(name)
    if row is None:
      problems[name] = _explain_unknown(name)
      continue
    converted, problem = _convert(row, value)
    if problem:
      problems[name] = problem
    else:
      cfg[name] = converted
  unclear = dict(problems)

  values: dict[str, Any] = {
    row.keys[0]: cfg[row.name]
    for row in ROWS
    if row.is_direct and cfg[row.name] is not None
  }
  notes: dict[str, str] = {}
  sections: tuple[Callable, ...] = (
    _translate_schedule,
    _translate_evaluations,
    _translate_images,
    translate_network,
  )
  for section in sections:
    section(cfg, values, problems, notes)
  _translate_sets(cfg, values, problems, notes, provided)
  if cfg['MODEL.WEIGHT']:
    notes['MODEL.WEIGHT'] = advice_on_weights(cfg['MODEL.WEIGHT'])
  lines = [
    _line(BY_NAME[name], cfg[name], values, notes.get(name, ''))
    for name in given
    if name not in problems
  ]
  keys = {row.name: row.keys for row in ROWS}
  if unclear:
    # The default in place of a value that cannot be read makes others seem
    # wrong.
    problems = {k: v for k, v in problems.items() if k in given} | unclear
  return Translation(values, lines, keys), problems


def _refuse(problems: dict[str, str], place: str) -> None:
  """Raises an InputError with the list of all problems, if there are any."""
  if problems:
    reasons = '; '.join(f'{name}: {text}' for name, text in problems.items())
    raise InputError(
      f'C05: {place}: {len(problems)} '
      f'{"keys have" if len(problems) > 1 else "key has"} no counterpart here '
      f'or a wrong value: {reasons}.'
    )


def _explain_unknown(name: str) -> str:
  """Returns the reason why a name is refused that no row has."""
  answer = answer_to(name) if not name.endswith('.') else None
  near = difflib.get_close_matches(name, BY_NAME, 1, 0.85)
  if near:
    return f'there is no such key; did you mean {near[0]}?'
  return answer or 'there is no such key'


def _convert(row: Row, value: Any) -> tuple[Any, str]:
  """Checks a value of a key and converts it to the type of the key.

  Args:
    row: The row of the key.
    value: The value in the file or on the command line, decoded.

  Returns:
    The converted value; and the reason why it is wrong, '' if it is not.
  """
  kind = type(row.default)
  if row.default is None:
    kind = OUR_KEYS[row.keys[0]].form.kind if row.is_direct else str
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if kind is tuple:
    if not isinstance(value, tuple):
      value = (value,)
  elif kind is float and is_number:
    value = float(value)
  elif kind is int and isinstance(value, float) and value.is_integer():
    value = int(value)
  wanted = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'a text',
    tuple: 'numbers in parentheses',
  }[kind]
  if not isinstance(value, kind) or (kind is int and not is_number):
    return value, f'it is {value!r}; give {wanted}'
  if row.is_direct:
    value, problem = _fitted(value, row.keys[0])
    if problem:
      return value, f'it is {value!r}; {problem}'
  if row.accepted is not ANY and value not in row.accepted:
    choices = ' or '.join(map(repr, row.accepted))
    reason = f' ({row.note})' if row.note else ''
    return value, f'it is {value!r}; only {choices} is possible here{reason}'
  return value, ''


def _fitted(value: Any, key: str) -> tuple[Any, str]:
  """Fits a value that is copied to a key of this program, and checks it.

  Args:
    value: A value of the type of the row.
    key: The key of this program.

  Returns:
    The value with the type of the key, and the problem with it, '' if none.
  """
  form = OUR_KEYS[key].form
  if form.kind is float and isinstance(value, int):
    value = float(value)
  return value, problem_with(form, value) or ''


def _line(row: Row, value: Any, values: dict[str, Any], note: str) -> str:
  """Returns the line of the log about a given key.

  Args:
    row: The row of the key.
    value: Its value.
    values: {key of this program: value}.
    note: A remark about this value; '' for none.
  """
  flags = [key for key in row.keys if key.startswith('--')]
  ours = [f'{key} = {values[key]!r}' for key in row.keys if key in values]
  if flags:
    right = note or f'{flags[0]}={value}'
  elif ours:
    right = ', '.join(ours) + (f' ({note})' if note else '')
  elif row.accepted is not ANY and not row.file_only:
    right = 'the same here'
  else:
    reason = note or ('' if row.file_only else row.note)
    right = 'nothing to set' + (f' ({reason})' if reason else '')
  return f'{row.name} {value} -> {right}'


def _translate_schedule(
  cfg: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  notes: dict[str, str],
) -> None:
  """Translates batch, number of steps and accumulation.

  With accumulation, NVIDIA's program counts MAX_ITER and CHECKPOINT_PERIOD in
  batches of IMS_PER_BATCH images, but STEPS and WARMUP_ITERS in updates of the
  weights. This program counts all four in updates.

  Args:
    cfg: The values of all keys of NVIDIA's program.
    values: {key of this program: value}; entries are added.
    problems: {key of NVIDIA's program: reason}; entries are added.
    notes: {key of NVIDIA's program: remark for the log}; entries are added.

  Source:
    NVIDIA's Mask R-CNN For PyTorch (2022), engine/trainer.py.
    Differs: there, the first update has one batch less.
  """
  steps = cfg['SOLVER.ACCUMULATE_STEPS']
  for name in (
    'SOLVER.ACCUMULATE_STEPS',
    'SOLVER.IMS_PER_BATCH',
    'SOLVER.MAX_ITER',
    'SOLVER.CHECKPOINT_PERIOD',
  ):
    if cfg[name] is not None and cfg[name] < 1:
      problems[name] = f'it is {cfg[name]}; it must be at least 1'
      return
  if not cfg['SOLVER.ACCUMULATE_GRAD']:
    if steps > 1:
      notes['SOLVER.ACCUMULATE_STEPS'] = (
        'no effect, because SOLVER.ACCUMULATE_GRAD is False'
      )
    steps = 1
  values['train.batch_size'] = cfg['SOLVER.IMS_PER_BATCH'] * steps
  values['train.micro_batches'] = steps
  for name, key in (
    ('SOLVER.CHECKPOINT_PERIOD', 'train.checkpoint_every'),
    ('SOLVER.MAX_ITER', 'train.num_steps'),
  ):
    # A recipe of a fine-tuning may leave these keys open.
    if cfg[name] is not None:
      values[key] = max(cfg[name] // steps, 1)
  decays = cfg['SOLVER.STEPS']
  updates = values.get('train.num_steps')
  if steps > 1 and decays and updates and min(decays) >= updates:
    quarter = tuple(step // steps for step in decays)
    notes['SOLVER.ACCUMULATE_GRAD'] = (
      f'SOLVER.STEPS {decays} counts updates, of which there are {updates}, so '
      f"the learning rate never falls; SOLVER.STEPS '{quarter}' lowers it after "
      'as many images as before'
    )


def _translate_evaluations(
  cfg: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  notes: dict[str, str],
) -> None:
  """Translates evaluations, expected results and the precision.

  The arguments are those of `_translate_schedule`.
  """
  dtype = cfg['DTYPE']
  values['precision'] = 'auto' if dtype is None else PRECISIONS[dtype]
  has_masks = cfg['MODEL.MASK_ON'] and not cfg['MODEL.RPN_ONLY']
  is_regular = cfg['PER_EPOCH_EVAL']
  values['train.eval_every_epochs'] = 1.0 if is_regular else 0.0
  for name, key, is_used in (
    ('MIN_BBOX_MAP', 'train.min_box_ap', True),
    ('MIN_MASK_MAP', 'train.min_mask_ap', has_masks),
  ):
    values[key] = cfg[name] if is_regular and is_used else 0.0
    if not 0 <= cfg[name] <= 1:
      problems[name] = f'it is {cfg[name]}; an AP is between 0 and 1'
    elif not is_regular:
      notes[name] = 'no effect, because PER_EPOCH_EVAL is False'
  for entry in cfg['TEST.EXPECTED_RESULTS']:
    result = _expected(entry)
    if result is None:
      problems['TEST.EXPECTED_RESULTS'] = (
        f'{entry!r} is not understood; only the AP of bbox and segm is '
        "compared: ('bbox', 'AP', (MEAN, STANDARD DEVIATION))"
      )
      return
    key, mean, deviation = result
    values[key] = (mean, deviation * cfg['TEST.EXPECTED_RESULTS_SIGMA_TOL'])


def _expected(entry: Any) -> tuple[str, float, float] | None:
  """Reads an entry of TEST.EXPECTED_RESULTS.

  Args:
    entry: (task, metric, (mean, standard deviation)), or all four in a row.

  Returns:
    The key of this program, the mean and the standard deviation; `None` if the
    entry is something else.
  """
  match entry:
    case (task, 'AP', (mean, deviation)) | (task, 'AP', mean, deviation):
      keys = {'bbox': 'expected.box_ap', 'segm': 'expected.mask_ap'}
      if task in keys and all(
        isinstance(x, int | float) for x in (mean, deviation)
      ):
        return keys[task], float(mean), float(deviation)
  return None


def _translate_images(
  cfg: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  notes: dict[str, str],
) -> None:
  """Translates sizes, colors and augmentation.

  The arguments are those of `_translate_schedule`.
  """
  short, long = cfg['INPUT.MIN_SIZE_TEST'], cfg['INPUT.MAX_SIZE_TEST']
  sides = cfg['INPUT.MIN_SIZE_TRAIN']
  if not all(isinstance(side, int) and side > 0 for side in (*sides, short)):
    problems['INPUT.MIN_SIZE_TRAIN'] = 'give numbers of pixels'
    return
  if max(sides) > short:
    problems['INPUT.MIN_SIZE_TRAIN'] = (
      f'it is {sides}, above MIN_SIZE_TEST {short}; train with INPUT.'
      f'MIN_SIZE_TEST {max(sides)}, and give --config.data.short_side={short} '
      'in the evaluation'
    )
  if cfg['INPUT.MAX_SIZE_TRAIN'] != long:
    problems['INPUT.MAX_SIZE_TRAIN'] = (
      f'it is {cfg["INPUT.MAX_SIZE_TRAIN"]}, but MAX_SIZE_TEST is {long}; give '
      'the same number, and --config.data.long_side in the evaluation'
    )
  if long < short:
    problems['INPUT.MAX_SIZE_TEST'] = f'it is {long}, below MIN_SIZE_TEST'
  values['data.short_side'] = short
  values['data.long_side'] = long
  values['data.short_sides'] = () if sides == (short,) else sides
  values['data.padded_sizes'] = padded_sizes(short, long)
  values['data.color_jitter'] = tuple(
    cfg[f'INPUT.{name}'] for name in ('BRIGHTNESS', 'CONTRAST', 'SATURATION')
  )
  for name, key in (('MEAN', 'pixel_mean'), ('STD', 'pixel_std')):
    channels = cfg[f'INPUT.PIXEL_{name}']
    if len(channels) != 3 or not all(
      isinstance(x, int | float) for x in channels
    ):
      problems[f'INPUT.PIXEL_{name}'] = (
        f'it is {channels}; give a number for each of three channels'
      )
    elif (
      cfg['INPUT.TO_BGR255']
      and channels == BY_NAME[f'INPUT.PIXEL_{name}'].default
    ):
      notes[f'INPUT.PIXEL_{name}'] = 'as in geometry = legacy'
    elif cfg['INPUT.TO_BGR255']:
      values[f'data.{key}'] = tuple(map(float, reversed(channels)))
    else:
      # Rounded, so that .485 gives 123.675 without the error of a product.
      values[f'data.{key}'] = tuple(round(255 * x, 9) for x in channels)


def padded_sizes(short: int, long: int) -> tuple[tuple[int, int], ...]:
  """Returns the static sizes for images of given sides.

  They are two upright and two lying sizes: one for images of up to 4:3, one for
  all others, as in the defaults of this program for 800 and 1333 pixels.

  Args:
    short: Length of the shorter side, in pixels.
    long: Upper limit of the longer side, in pixels.

  Returns:
    (height, width) pairs in multiples of 32 pixels.
  """

  def round_up(side: int) -> int:
    """Returns the next multiple of 32."""
    return -(-side // 32) * 32

  height = round_up(short)
  widths = sorted({min(round_up(-(-short * 4 // 3)), round_up(long)),
                   round_up(long)})  # fmt: skip
  sizes = [(height, width) for width in widths]
  return (*sizes, *((w, h) for h, w in sizes if w != h))


def _translate_sets(
  cfg: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  notes: dict[str, str],
  provided: frozenset[str],
) -> None:
  """Translates the names of data sets to paths.

  Several sets give a tuple of folders and a tuple of annotations.

  Args:
    cfg: As in `_translate_schedule`.
    values: As in `_translate_schedule`.
    problems: As in `_translate_schedule`.
    notes: As in `_translate_schedule`.
    provided: Keys of this program that the command line gives.
  """
  for name, part in (('DATASETS.TRAIN', 'train'), ('DATASETS.TEST', 'eval')):
    keys = (f'data.{part}.images', f'data.{part}.annotations')
    sets = cfg[name]
    if provided.issuperset(keys):
      notes[name] = f'--config.{keys[0]} and .annotations are given'
      continue
    unknown = [item for item in sets if item not in COCO_SETS]
    if unknown:
      problems[name] = (
        f'{unknown[0]!r} is none of {", ".join(COCO_SETS)}; give '
        f'--config.{keys[0]}=DIR and --config.{keys[1]}=FILE.json'
      )
      continue
    if part == 'eval' and len(sets) > 1:
      problems[name] = f'{", ".join(sets)}: give only one set'
      continue
    paths = [COCO_SETS[item] for item in sets]
    images = tuple(f'data/coco/{folder}' for folder, _ in paths)
    files = tuple(f'data/coco/annotations/{file}' for _, file in paths)
    for key, several in zip(keys, (images, files), strict=True):
      values[key] = several if len(several) > 1 else ''.join(several)
    if any('minival' in item for item in sets):
      notes[name] = (
        'minival has the images of val2017, and train2014 with '
        'valminusminival those of train2017: with the archives of COCO 2017 '
        'give coco_2017_train and coco_2017_val'
      )
