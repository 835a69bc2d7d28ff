"""Writes the documentation of all keys of a recipe from the table of keys.

python -m maskrcnn_jax.config.documentation > docs/recipe_keys.md
"""

from maskrcnn_jax.config.forms import describe
from maskrcnn_jax.config.keys import KEYS


def as_markdown() -> str:
  """Returns the text of docs/recipe_keys.md."""
  lines = [
    '# Keys of a recipe',
    '',
    'Generated from the table in `maskrcnn_jax/config/keys.py` by `python -m '
    'maskrcnn_jax.config.documentation`.',
    '',
    'A recipe is a Python file whose `get_config()` changes some of these '
    'keys; `--config.KEY=VALUE` changes a key for a single command. If a '
    'trained model is evaluated or predicts, the role of a key decides which '
    'value is used:',
    '',
    '- *weights*: the value that the checkpoint was trained with. Another '
    'value in a recipe file has no effect, and the log says so; another '
    'value on the command line is an error. For keys marked *may be '
    'overridden*, a value on the command line is used instead.',
    '- *training*, *evaluation* and *machine*: the value on the command '
    'line; without one, the value in the recipe file; without a recipe file, '
    'the value in the recipe that the checkpoint stores. The *training* keys '
    'of a recipe for fine-tuning (`train.fine_tune`) are not used.',
    '',
    'A training can be continued with other values for keys of the roles '
    '*evaluation* and *machine* and for keys marked *may change*.',
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
