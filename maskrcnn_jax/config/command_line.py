"""Reads --config=RECIPE and --config.KEY=VALUE from the command line.

Every program reads these arguments with this file, so that all programs accept
the same spellings.
"""

from collections.abc import Sequence
import difflib
import re
from typing import Any

import ml_collections

from maskrcnn_jax.config.defaults import set_value, value_of
from maskrcnn_jax.config.foreign_names import answer_to
from maskrcnn_jax.config.forms import FALSE_WORDS, TRUE_WORDS, parse
from maskrcnn_jax.config.keys import BY_NAME
from maskrcnn_jax.config.nvidia_keys import is_nvidia_key
from maskrcnn_jax.errors import InputError

# The name of a key and the text of its value. The text is `None` if only the
# key was given, which means True for a boolean key. A name in capitals, such as
# SOLVER.BASE_LR, is a key of NVIDIA's Mask R-CNN.
Override = tuple[str, str | None]

_ARGUMENT = re.compile(
  r'--?(no)?config(?:_file)?(?:\.([^=]+))?(=.*)?', re.DOTALL
)
# Flags of NVIDIA's program that stand for a pair of a key and its value.
_MIXED_PRECISION = ('--amp', '--fp16')
_NEGATIVE_NUMBER = re.compile(r'-\.?\d')


def split_arguments(
  argv: Sequence[str],
) -> tuple[str | None, list[Override], list[str]]:
  """Separates --config and --config.KEY arguments from all other arguments.

  The accepted spellings are --config=X, --config X, --config.KEY=VALUE and
  --config.KEY VALUE; for boolean keys also --config.KEY and --noconfig.KEY; and
  all of these with a single dash. Keys of NVIDIA's Mask R-CNN are given as in
  that program, KEY VALUE, with or without --opts before them. --config_file is
  --config, and --amp and --fp16 are DTYPE float16. The names of flags may have
  hyphens for underscores. -- and the arguments after it are left as they are.

  Args:
    argv: The arguments of a program, without its name.

  Returns:
    The value of the last --config argument, `None` if there is no such
    argument; the (key, text) pairs of the --config.KEY and KEY VALUE arguments,
    where the text is `None` if only --config.KEY was given, and 'False' for
    --noconfig.KEY; and all other arguments in their order, with underscores in
    the names of flags.

  Raises:
    InputError: If --config or a KEY of a pair has no value, if --noconfig.KEY
      has one, or if the KEY of --noconfig.KEY is not boolean. Keys that do
      not exist are not found here.
  """
  path: str | None = None
  overrides: list[Override] = []
  others: list[str] = []
  waiting = with_underscores(argv)
  is_mixed = False
  while waiting:
    argument = waiting.pop(0)
    if argument == '--':
      others += [argument, *waiting]
      break
    if argument in _MIXED_PRECISION:
      is_mixed = True
      continue
    if argument == '--opts':  # The pairs follow it.
      continue
    if is_nvidia_key(argument):
      if not waiting:
        raise InputError(f'C05: {argument} needs a value: {argument} VALUE.')
      overrides.append((argument, waiting.pop(0)))
      continue
    match = _ARGUMENT.fullmatch(argument)
    if match is None or (match[1] and not match[2]):
      others.append(argument)
      continue
    negated, key, value = match.groups()
    value = value[1:] if value is not None else None
    if negated:
      if value is not None:
        raise InputError(
          f'C05: {argument}: --noconfig.{key} sets False and takes no value.'
        )
      if key in BY_NAME and BY_NAME[key].form.kind is not bool:
        raise InputError(
          f'C05: {argument}: config.{key} is not True or False; give '
          f'--config.{key}=VALUE.'
        )
      overrides.append((key, 'False'))
      continue
    if value is None and waiting and _is_value_of(key, waiting[0]):
      value = waiting.pop(0)
    if key:
      overrides.append((key, value))
    elif value is None:
      raise InputError('--config needs a value: --config=RECIPE.')
    else:
      path = value or None
  if is_mixed:
    # In NVIDIA's program, the flag overrides DTYPE.
    overrides.append(('DTYPE', 'float16'))
  return path, overrides, others


def with_underscores(argv: Sequence[str]) -> list[str]:
  """Returns arguments with underscores for hyphens in the names of flags.

  So --skip-test is the same as --skip_test. Values, and all arguments after
  --, stay as they are.

  Args:
    argv: The arguments of a program, without its name.
  """
  result = list(argv)
  for i, argument in enumerate(result):
    if argument == '--':
      break
    name, equals, value = argument.partition('=')
    if re.match(r'--\w', name):
      result[i] = '--' + name[2:].replace('-', '_') + equals + value
  return result


def parse_overrides(overrides: Sequence[Override]) -> dict[str, Any]:
  """Converts the texts of --config.KEY arguments to values.

  Args:
    overrides: (key, text) pairs, as `split_arguments` returns them. The text
      `None` means True and is only allowed for a boolean key. If a key occurs
      several times, the last text is used.

  Returns:
    {key: value}. A value has the type of its key; its range is not checked.

  Raises:
    InputError: If a key does not exist, or its text is missing or cannot be
      converted to the type of the key.
  """
  values = {}
  for name, written in overrides:
    if name not in BY_NAME:
      raise InputError(f'C05: {_explain_unknown_key(name)}')
    form = BY_NAME[name].form
    if written is None:
      if form.kind is not bool:
        raise InputError(
          f'C05: --config.{name} needs a value: --config.{name}=VALUE.'
        )
      written = 'True'
    try:
      values[name] = parse(form, written)
    except ValueError as error:
      raise InputError(f'C05: --config.{name}={written}: {error}.') from error
  return values


def apply_overrides(
  config: ml_collections.ConfigDict, values: dict[str, Any]
) -> None:
  """Sets keys of a recipe to the values that the command line gave.

  Args:
    config: The recipe; it is changed.
    values: {key: value}, as `parse_overrides` returns it.

  Raises:
    InputError: If `None` is given for a key that must have a value and that the
      recipe does not leave open.
  """
  for name, value in values.items():
    is_open = BY_NAME[name].form.may_be_none or value_of(config, name) is None
    if value is None and not is_open:
      raise InputError(
        f'C05: --config.{name}=None: the recipe does not leave this key '
        'open; give a value, or leave the argument out, which keeps '
        f'{value_of(config, name)!r}.'
      )
    set_value(config, name, value)


def refuse_unexpected(arguments: Sequence[str], otherwise: str = '') -> None:
  """Raises an InputError about the first unknown argument, if there is any.

  If the argument is an option of another well-known program, the message names
  the option to give here.

  Args:
    arguments: The arguments that the parser of the program does not know.
    otherwise: The message if the argument is not known from other programs
      either. By default it says that the argument is unexpected.
  """
  for argument in arguments:
    answer = answer_to(argument)
    if answer:
      raise InputError(
        f'There is no option {argument.partition("=")[0]}: {answer}.'
      )
    raise InputError(
      otherwise
      or f'Unexpected argument {argument!r}; --help lists the arguments.'
    )


def _is_value_of(key: str | None, argument: str) -> bool:
  """Tells whether an argument is the value of the option before it.

  Args:
    key: The key of the option --config.KEY, `None` for --config itself.
    argument: The argument that follows the option after a space.
  """
  if key in BY_NAME and BY_NAME[key].form.kind is bool:
    return argument.lower() in (*TRUE_WORDS, *FALSE_WORDS, 'none')
  return not argument.startswith('-') or bool(_NEGATIVE_NUMBER.match(argument))


def _explain_unknown_key(name: str) -> str:
  """Returns the message about a key that does not exist.

  It ends with the most helpful hint that is known: the key of this program for
  a name of another program, how to give a whole tuple, a member of a group of
  keys, or a key with a similar name.

  Args:
    name: The name that the user gave, without '--config.'.
  """
  text = f'There is no config key {name!r}'
  answer = answer_to(name)
  if answer:
    return f'{text}: {answer}.'
  whole, bracket, _ = name.partition('[')
  if bracket and whole in BY_NAME:
    return f"{text}: give the whole value, --config.{whole}='(...)'."
  member = next((key for key in BY_NAME if key.startswith(f'{name}.')), None)
  if member:
    return (
      f'{text}; it is a group of keys. Give one key of the group, for example '
      f'--config.{member}=VALUE.'
    )
  near = difflib.get_close_matches(name, BY_NAME, 1)
  return f'{text}; did you mean --config.{near[0]}?' if near else f'{text}.'
