"""The documentation of all keys of a recipe, made from the table of keys.

The file docs/recipe_keys.md is written by

  python -m maskrcnn_jax.config.documentation > docs/recipe_keys.md
"""

from maskrcnn_jax.config.forms import describe
from maskrcnn_jax.config.keys import KEYS


def as_markdown() -> str:
  """Returns the text of docs/recipe_keys.md."""
  lines = [
    '# Keys of a recipe',
    '',
    'Made from the table in `maskrcnn_jax/config/keys.py` by `python -m '
    'maskrcnn_jax.config.documentation`.',
    '',
    'A recipe is a Python file whose `get_config()` changes some of these '
    'keys; `--config.KEY=VALUE` changes one for a single command. Which '
    'value holds when a trained model is used depends on the role of the '
    'key:',
    '',
    '- *weights*: the value that the checkpoint was trained with. Another '
    'value in a recipe file has no effect, which the log says; another '
    'value on the command line is an error. Keys marked *may be overridden* '
    'are taken from the command line, else from the checkpoint.',
    '- *training*, *evaluation* and *machine*: the value of the command '
    'line, else of the recipe file, else of the recipe that the checkpoint '
    'stores. When a trained model is used with a recipe of a fine-tuning, '
    'the *training* keys of that recipe do not count.',
    '',
    'A training can be continued with other values of the roles '
    '*evaluation* and *machine* and of the keys marked *may change*.',
    '',
    '| key | default | values | role | meaning |',
    '|---|---|---|---|---|',
  ]
  for key in KEYS:
    role = key.role
    if key.overridable:
      role += ', may be overridden'
    if key.free:
      role += ', may change'
    lines.append(
      f'| `{key.name}` | `{key.default!r}` | {describe(key.form)} | {role} | '
      f'{key.meaning} |'
    )
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  print(as_markdown(), end='')
