"""Finds the models in the content of a weight file.

Programs wrap the weights of a model in many ways: a dictionary under some key,
dictionaries in it, a prefix before each name. Nothing here knows these keys and
prefixes. The search looks for names that arrays of a model have in one of the
programs of `NAMINGS`. Whatever stands before these names is the wrapping.
"""

import collections
from collections.abc import Iterable, Iterator
import functools
import re
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_jax.convert_weights.safe_pickle import (
  Ignored,
  Storage,
  StoredArray,
  Tensor,
)
from maskrcnn_jax.convert_weights.weight_names import NAMINGS, peer_names
from maskrcnn_jax.errors import InputError

# Attributes that torch inserts into names when it compiles, shards or
# checkpoints a module: the module itself, under another name.
_TRANSPARENT = re.compile(
  r'(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)
# Dictionaries below such a key are the state of an optimizer, a schedule or the
# like. They may hold one array for each array of the model, of the same name.
_NO_MODEL = re.compile(r'optim|sched|scaler|exp_avg|momentum_buffer|grad', re.I)
# Keys and prefixes of weights that are an average of the trained weights, or
# that follow them.
_AVERAGE = re.compile(
  r'(^|[._])(ema|swa|avg|averaged?|shadow|teacher|momentum|target|encoder_k)'
  r'([._]|$)|modelema|modelteacher',
  re.I,
)
# Sentence about the choice among several models.
RULE = (
  'The rule takes the model with the most arrays; of equals, trained weights '
  'before an average of them; of equals, the first in the file.'
)
# Such attributes make a name longer by at most this many characters.
_MAX_WRAPPERS = 300
# Dictionaries are searched to this depth.
_MAX_DEPTH = 20
# Characters of the name of an array with its path. Longer names are no names of
# weights, and many dictionaries may share one long key.
_MAX_NAME = 1000
# Arrays and ignored objects in a file. A detector and its optimizer have about
# 2,000 arrays.
_MAX_LEAVES = 50_000

# Leaf of the content that is an array or stands where one is expected.
_Leaf = Tensor | StoredArray | np.ndarray | Ignored | type


class Found(NamedTuple):
  """A model in the content of a file."""

  key: str  # path of the dictionary that holds it, such as 'ema.module'
  prefix: str  # text before each name in this dictionary, such as 'module.'
  size: int  # number of arrays whose names fit

  def describe(self) -> str:
    """Returns the place as flags, and the number of arrays, for a message."""
    flags = [f'--key={self.key}'] if self.key or not self.prefix else []
    flags += [f'--prefix={self.prefix}'] if self.prefix else []
    return f'{" ".join(flags)} ({self.size} arrays)'


class Chosen(NamedTuple):
  """The arrays of the model that is taken, and the rest of the file."""

  arrays: dict[str, _Leaf]  # by name after the prefix
  prefix: str
  outside: list[str]  # names of other arrays in the same dictionary
  # Prefix with which the flag --prefix takes the backbone of the model alone.
  # `None` if the names are not those of a ResNet.
  backbone: str | None
  facts: dict[str, Any]  # entries beside the arrays, by name
  notes: list[str]  # lines to print


class _Content(NamedTuple):
  """The content of a file, flat: full names are paths, joined by dots."""

  leaves: dict[str, _Leaf]  # arrays and ignored objects by full name
  # {full name: path of the innermost dictionary that holds the leaf}
  homes: dict[str, str]
  tables: dict[str, dict | list | tuple]  # dictionaries and lists by path


@functools.cache
def _vocabulary() -> dict[str, frozenset[str]]:
  """Returns {name of an array: the programs that use it}, for ResNets to 152.

  The names are those of `NAMINGS` without any wrapping.
  """
  convs = ['conv1', 'conv2', 'conv3', 'downsample_conv']
  norms = ['bn1', 'bn2', 'bn3', 'downsample_bn']
  blocks = [
    f'backbone/layer{stage}/{block}'
    for stage, count in ((1, 3), (2, 8), (3, 36), (4, 3))
    for block in range(count)
  ]
  kernels = [f'{block}/{conv}' for block in blocks for conv in convs]
  kernels.append('backbone/conv1')
  scales = [f'{block}/{norm}' for block in blocks for norm in norms]
  scales.append('backbone/bn1')
  layers = [
    f'fpn/{kind}{i}' for kind in ('inner', 'layer') for i in range(2, 6)
  ]
  layers += [f'box_head/conv{i}' for i in range(1, 9)]
  layers += [f'mask_head/mask_fcn{i}' for i in range(1, 9)]
  scales += [f'{layer}_norm' for layer in layers]
  layers += [f'rpn/{name}' for name in ('conv', 'conv2')]
  layers += [f'rpn/{name}' for name in ('cls_logits', 'bbox_pred')]
  layers += [f'box_head/{name}' for name in ('cls_score', 'bbox_pred')]
  layers += [f'box_head/fc{i}' for i in range(6, 10)]
  layers += [f'mask_head/{name}' for name in ('conv5_mask', 'mask_fcn_logits')]
  ours = [f'params/{name}/kernel' for name in kernels + layers]
  ours += [f'params/{name}/bias' for name in layers + scales]
  ours += [f'params/{name}/scale' for name in scales]
  ours += [f'constants/{n}/{leaf}' for n in scales for leaf in ('mean', 'var')]
  programs = collections.defaultdict(set)
  for program, naming in NAMINGS.items():
    for name in ours:
      for peer_name in peer_names(name, naming):
        programs[peer_name].add(program)
  return {name: frozenset(users) for name, users in programs.items()}


@functools.cache
def _required() -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
  """Returns names that arrays of every ResNet have, for each program.

  Each pair holds the names of the first convolution of the stem, and those of
  the first convolution of the first block.
  """
  stem, block = 'conv1', 'layer1/0/conv1'
  return tuple(
    (
      frozenset(peer_names(f'params/backbone/{stem}/kernel', naming)),
      frozenset(peer_names(f'params/backbone/{block}/kernel', naming)),
    )
    for naming in NAMINGS.values()
  )


def choose(
  content: Any,
  *,
  key: str | None = None,
  prefix: str | None = None,
) -> Chosen:
  """Finds the models in the content of a file, and takes one of them.

  If no names fit, the dictionary with the most arrays is taken, so that the
  caller can say which names it has.

  Args:
    content: The object that the file stores, normally a dict.
    key: Path of the dictionary to take, such as 'ema.module'; '' for the whole
      file. `None` takes a model by `RULE`.
    prefix: Text before the names of the arrays to take. It may also lead to the
      backbone of a model alone. `None` as above.

  Raises:
    InputError: If there are no arrays, if the key or the prefix is of no model
      in the file, or if an object other than an array has the name of an array
      of the model.
  """
  flat = _flatten(content)
  arrays = [n for n, leaf in flat.leaves.items() if not _is_ignored(leaf)]
  if not arrays:
    first = next(iter(flat.leaves.values()), content)
    raise InputError(
      f'holds no arrays by name (state_dict), only {_describe(first)}. Save '
      'them by name: torch.save(model.state_dict(), FILE).'
    )
  fits = _fits(flat)
  models = _models(fits)
  if key is not None or prefix is not None:
    taken = _asked_for(list(fits), models, key, prefix)
  elif models:
    taken = models[0]
  else:
    counts = collections.Counter(flat.homes[name] for name in arrays)
    most, count = max(
      counts.items(), key=lambda item: (not _NO_MODEL.search(item[0]), item[1])
    )
    return _take(flat, Found(most, '', count), [])
  if prefix is None:
    # With a shorter prefix, heads may fit beside a part of the same backbone. A
    # detector is never taken for a ResNet.
    for place, names in fits.items():
      if (
        place.key == taken.key
        and taken.prefix.startswith(place.prefix)
        and names & fits[taken]
        and names - fits[taken]
      ):
        taken = place
        break
  others = [model for model in models if not fits[model] & fits[taken]]
  chosen = _take(flat, taken, others, is_model=True)
  # Longer prefixes fit only the arrays of the backbone.
  prefixes = [
    place.prefix
    for place, names in fits.items()
    if place.key == taken.key and names <= fits[taken]
  ]
  return chosen._replace(backbone=max(prefixes, key=len))


def _take(
  flat: _Content,
  taken: Found,
  others: list[Found],
  *,
  is_model: bool = False,
) -> Chosen:
  """Returns the arrays of a model, and the rest of its dictionary.

  Args:
    flat: The content of the file.
    taken: The model.
    others: The other models of the file.
    is_model: Whether the names fit. If not, nothing is said about the choice.

  Raises:
    InputError: If an object other than an array has the name of an array, or if
      a name has unprintable characters or is not unique.
  """
  home = _join(taken.key)
  start = home + taken.prefix
  arrays: dict[str, _Leaf] = {}
  outside = []
  for full_name, leaf in flat.leaves.items():
    if not full_name.startswith(start):
      if full_name.startswith(home) and not _is_ignored(leaf):
        outside.append(full_name.removeprefix(home))
      continue
    name = _TRANSPARENT.sub('', full_name.removeprefix(start))
    if not name.isprintable():
      raise InputError(f'has an array of the strange name {name!r}.')
    if name in arrays:
      raise InputError(f'has two arrays of the name {name}.')
    if not _is_ignored(leaf):
      arrays[name] = leaf
    elif is_model and name in _vocabulary():
      raise InputError(
        f'has {_describe(leaf)} where the array {name} is expected; save the '
        'weights alone (state_dict).'
      )
  notes = []
  if is_model and (taken.key or taken.prefix or others):
    notes.append(f'taken: {taken.describe()}')
  if others:
    more = f' and {len(others) - 5} more' if len(others) > 5 else ''
    notes[-1] += (
      f'; also found: {"; ".join(x.describe() for x in others[:5])}{more}. '
      f'{RULE} --key and --prefix take another one.'
    )
  facts = _facts(flat, taken.key)
  return Chosen(arrays, taken.prefix, outside, None, facts, notes)


def _asked_for(
  places: list[Found],
  models: list[Found],
  key: str | None,
  prefix: str | None,
) -> Found:
  """Returns the model that the flags name.

  Args:
    places: All places of a ResNet in the file.
    models: The models of the file.
    key: Value of --key, or `None`. The model may also be in a dictionary below
      the key.
    prefix: Value of --prefix, or `None`. The last dot may be missing.

  Raises:
    InputError: If there is no such model.
  """
  exact = [place for place in models if place.key == key]
  for place in [*exact, *models, *places]:
    right_key = key is None or _join(place.key).startswith(_join(key))
    if right_key and (
      prefix is None or place.prefix.rstrip('.') == prefix.rstrip('.')
    ):
      return place
  flags = [f'--key={key}'] if key is not None else []
  flags += [f'--prefix={prefix}'] if prefix is not None else []
  listed = '; '.join(model.describe() for model in models[:10])
  raise InputError(
    f'has no model at {" ".join(flags)}; it has {listed or "no ResNet at all"}.'
  )


def _flatten(content: Any) -> _Content:
  """Lists the arrays in nested dictionaries and lists by their paths.

  A dictionary that occurs at several places is listed at the first only, so
  that a file can neither contain itself nor grow by repetition.

  Raises:
    InputError: If two arrays have the same path, or if there are more than
      `_MAX_LEAVES`.
  """
  flat = _Content({}, {}, {})
  seen: set[int] = set()

  def visit(value: Any, path: tuple[str, ...], outer: str | None) -> None:
    """Lists the leaves of a dictionary or a list.

    Args:
      value: The dictionary or the list.
      path: Keys that lead to it.
      outer: Path of the torch module that holds it, or `None`. A module in a
        module is a part of the names, not a dictionary of its own.
    """
    if id(value) in seen or len(path) > _MAX_DEPTH:
      return
    seen.add(id(value))
    here = '.'.join(path)
    is_module = isinstance(value, Ignored)
    home = outer if is_module and outer is not None else here
    flat.tables.setdefault(home, value)
    # If the state of an optimizer refers to the weights, they are listed where
    # they are else.
    pairs = [
      pair
      for pair in _items(value)
      if isinstance(pair[1], dict | list | tuple) or _is_leaf(pair[1])
    ]
    for key, item in sorted(
      pairs, key=lambda pair: bool(_NO_MODEL.search(pair[0]))
    ):
      if _is_leaf(item):
        name = _join(here) + key
        if name in flat.leaves:
          raise InputError(f'has two arrays at {name}.')
        if len(name) > _MAX_NAME:
          continue
        if len(flat.leaves) == _MAX_LEAVES:
          raise InputError(
            f'has more than {_MAX_LEAVES:,} arrays and other objects; save the '
            'weights of the model alone (state_dict).'
          )
        flat.leaves[name] = item
        flat.homes[name] = home
      else:
        visit(item, (*path, key), home if is_module else None)

  if isinstance(content, dict | list | tuple) and not _is_leaf(content):
    visit(content, (), None)
  return flat


def _items(table: dict | list | tuple) -> Iterator[tuple[str, Any]]:
  """Yields the keys, as text, and the values of a dictionary or a list."""
  pairs = table.items() if isinstance(table, dict) else enumerate(table)
  for key, value in pairs:
    if isinstance(key, int) or (isinstance(key, str) and len(key) <= _MAX_NAME):
      yield str(key), value


def _is_leaf(value: Any) -> bool:
  """Tells whether a value is an array or an object that was ignored."""
  return isinstance(value, Tensor | StoredArray | np.ndarray) or _is_ignored(
    value
  )


def _is_ignored(value: Any) -> bool:
  """Tells whether a value is a stand-in without content.

  It may also be an array or a tensor of elements that are not read, such as
  texts.
  """
  if isinstance(value, type):
    return issubclass(value, Ignored)
  if isinstance(value, StoredArray):
    return value.array is None
  if isinstance(value, Tensor):
    return not isinstance(value.storage, Storage)
  return isinstance(value, Ignored) and not value


def _describe(value: Any) -> str:
  """Describes a value that is no array of numbers, for a message."""
  if isinstance(value, StoredArray):
    return f'an array of {value.code!r} (only numbers can be read)'
  if isinstance(value, Tensor):
    return 'a tensor of a kind that is not read'
  class_ = value if isinstance(value, type) else type(value)
  name = class_.name if issubclass(class_, Ignored) else class_.__name__
  return f'an object of {name or "dict"}'


def _fits(flat: _Content) -> dict[Found, frozenset[str]]:
  """Returns the full names of the arrays that fit, for each place of a ResNet.

  A place is a dictionary and a prefix. The places are in falling order of the
  number of names; places of equally many are in the order of the file. The same
  names may fit at several places: 'backbone.body.conv1.weight' fits with the
  prefix '' and with 'backbone.body.'. Then the longest prefix is first.
  """
  vocabulary = _vocabulary()
  longest = max(map(len, vocabulary))
  names: dict[tuple[str, str], set[str]] = {}
  for full_name in flat.leaves:
    for i, rest in _endings(full_name, longest):
      for program in vocabulary.get(rest, ()):
        names.setdefault((full_name[:i], program), set()).add(full_name)
  best: dict[str, set[str]] = {}
  for (start, _), fitting in names.items():
    if _is_resnet(fitting, start) and len(fitting) > len(best.get(start, ())):
      best[start] = fitting
  order = {name: i for i, name in enumerate(flat.leaves)}
  first_places = {
    start: min(order[name] for name in best[start]) for start in best
  }
  found = {}
  for start in sorted(
    best, key=lambda x: (-len(best[x]), first_places[x], -len(x))
  ):
    key = _key_of(flat, start, best[start])
    if not _NO_MODEL.search(key):
      place = Found(key, start.removeprefix(_join(key)), len(best[start]))
      found[place] = frozenset(best[start])
  return found


def _endings(full_name: str, longest: int) -> Iterator[tuple[int, str]]:
  """Yields the ends of a name that may be names of a model.

  Args:
    full_name: The name.
    longest: Number of characters of the longest name of a model.

  Yields:
    Where the end begins in the full name, and the end without the attributes
    that `_TRANSPARENT` matches. The shortest end comes first.
  """
  starts = {
    match.end(): match.start() for match in _TRANSPARENT.finditer(full_name)
  }
  rest, i = '', len(full_name)
  while i > max(0, len(full_name) - longest - _MAX_WRAPPERS):
    start = starts.get(i, i - 1)
    if i not in starts:
      rest = full_name[start] + rest
    i = start
    if len(rest) > longest:
      return
    yield i, rest


def _is_resnet(full_names: Iterable[str], start: str) -> bool:
  """Tells whether a ResNet's first arrays are among some names.

  Args:
    full_names: Full names of arrays. Each begins with `start`.
    start: Key and prefix.
  """
  names = {_TRANSPARENT.sub('', x.removeprefix(start)) for x in full_names}
  return any(names & stem and names & block for stem, block in _required())


def _key_of(flat: _Content, start: str, full_names: Iterable[str]) -> str:
  """Returns the path of the innermost dictionary that holds some arrays.

  Args:
    flat: The content of the file.
    start: Beginning of the full names of the arrays. The path is a part of it.
    full_names: Full names of the arrays.
  """
  homes = {_join(flat.homes[name]) for name in full_names}
  paths = ['', *(start[:i] for i, c in enumerate(start) if c == '.')]
  return max(
    (
      path
      for path in paths
      if path in flat.tables
      and all(home.startswith(_join(path)) for home in homes)
    ),
    key=len,
  )


def _models(fits: dict[Found, frozenset[str]]) -> list[Found]:
  """Returns the places of different models, in the order of `RULE`.

  Args:
    fits: Names that fit at each place, as `_fits` returns them.
  """
  claimed: set[str] = set()
  models = []
  for place, names in fits.items():
    if _is_resnet(names - claimed, _join(place.key) + place.prefix):
      models.append(place)
      claimed |= names
  return sorted(
    models,
    key=lambda x: (-x.size, bool(_AVERAGE.search(f'{x.key}.{x.prefix}'))),
  )


def _facts(flat: _Content, key: str) -> dict[str, Any]:
  """Returns the entries beside the arrays of a model.

  Args:
    flat: The content of the file.
    key: Path of the dictionary that holds the arrays. The entries of this
      dictionary and of those around it are returned.
  """
  facts: dict[str, Any] = {}
  for path, table in flat.tables.items():
    if _join(key).startswith(_join(path)):
      for name, value in _items(table):
        leads_to_model = _join(key).startswith(_join(_join(path) + name))
        if not _is_leaf(value) and not leads_to_model:
          facts[name] = value
  return facts


def _join(path: str) -> str:
  """Returns a path with a final dot; '' if the path is empty."""
  return f'{path}.' if path else ''
