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
from maskrcnn_jax.config.derived import heads_of
from maskrcnn_jax.config.foreign_names import answer_to
from maskrcnn_jax.config.forms import problem_with
from maskrcnn_jax.config.keys import BY_NAME as OUR_KEYS
from maskrcnn_jax.config.nvidia_flags import advice_on_weights
from maskrcnn_jax.config.nvidia_keys import ANY, BY_NAME, GROUPS, ROWS, Row
from maskrcnn_jax.config.nvidia_network import translate_network
from maskrcnn_jax.config.nvidia_training import (
  translate_evaluations,
  translate_images,
  translate_schedule,
  translate_sets,
)
from maskrcnn_jax.errors import InputError


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
    'MODEL.MASK_ON': heads_of(config).masks,
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
  accumulates = translation.values['train.micro_batches'] > 1
  decided = {
    key
    for name in pairs
    for key in translation.keys[name]
    if accumulates or not name.startswith('SOLVER.ACCUMULATE')
  }
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
  theirs = dict(base)
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
      theirs[name] = converted
  unclear = dict(problems)

  values: dict[str, Any] = {
    row.keys[0]: theirs[row.name]
    for row in ROWS
    if row.is_direct and theirs[row.name] is not None
  }
  notes: dict[str, str] = {}
  sections: tuple[Callable, ...] = (
    translate_schedule,
    translate_evaluations,
    translate_images,
    translate_network,
  )
  for section in sections:
    section(theirs, values, problems, notes)
  translate_sets(theirs, values, problems, notes, provided)
  if theirs['MODEL.WEIGHT']:
    notes['MODEL.WEIGHT'] = advice_on_weights(theirs['MODEL.WEIGHT'])
  lines = [
    _line(BY_NAME[name], theirs[name], values, notes.get(name, ''))
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
  if name in GROUPS:
    return 'it is a group of keys and has none; leave it out'
  near = difflib.get_close_matches(name, BY_NAME, 1, 0.85)
  if near:
    return f'there is no such key; did you mean {near[0]}?'
  return answer_to(name) or 'there is no such key'


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
