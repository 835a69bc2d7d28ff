"""Writes the recipe of a run as a YAML file that --config=FILE.yaml reads."""

import pathlib
from typing import Any

import ml_collections
import yaml

from maskrcnn_jax.config.comparison import plain
from maskrcnn_jax.config.defaults import value_of
from maskrcnn_jax.config.forms import parse
from maskrcnn_jax.config.keys import KEYS
from maskrcnn_jax.config.yaml_recipe import DEFAULTS, RECIPE_KEY

_HEADER = """\
# All keys of the recipe of this training, as it was run: with the values of the
# command line, and with those that were computed from the batch size, the data
# or the checkpoint. To train with the same recipe again, give --config=FILE,
# where FILE is the path of this file, and another --workdir.
"""


def write_recipe(config: ml_collections.ConfigDict, path: pathlib.Path) -> bool:
  """Writes all keys of a recipe to a YAML file.

  `read_recipe` reads the file to an equal recipe. No other file is needed for
  that: the values do not refer to the recipe that the run was started with.

  Args:
    config: The recipe.
    path: The file. A file that this function has written before is replaced.

  Returns:
    Whether the file was written. Any other file of this name is kept.
  """
  if path.exists() and not path.read_bytes().startswith(_HEADER.encode()):
    return False
  tree: dict[str, Any] = {RECIPE_KEY: DEFAULTS}
  for key in KEYS:
    *groups, name = key.name.split('.')
    group = tree
    for part in groups:
      group = group.setdefault(part, {})
    value = plain(value_of(config, key.name))
    # A text such as '(a,b)' would be read as two texts.
    if isinstance(value, str) and parse(key.form, value) != value:
      value = [value]
    group[name] = value
  text = yaml.dump(
    tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=80
  )
  partial = path.with_suffix('.partial')
  partial.write_text(f'{_HEADER}{text}', encoding='utf-8')
  partial.replace(path)
  return True


class _Dumper(yaml.SafeDumper):
  """PyYAML's safe writer, which here writes a list in one line, as [1, 2]."""


_Dumper.add_representer(
  list,
  lambda dumper, items: dumper.represent_sequence(
    'tag:yaml.org,2002:seq', items, flow_style=True
  ),
)
