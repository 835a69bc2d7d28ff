"""Explains the error codes of messages.

python -m maskrcnn_jax.explain A07      prints the explanation of a code
python -m maskrcnn_jax.explain > docs/error_codes.md      writes the page
"""

import argparse
import sys
import textwrap

from maskrcnn_jax.errors import CODES, print_error

_FIX = (
  '`--fix` is `python -m maskrcnn_jax.check_data --images=DIR '
  '--annotations=FILE.json --fix=OUT.json`. It writes a repaired copy of the '
  'annotations and lists every change. Without `--fix`, the report says how '
  'much of the data set such a copy would keep.'
)


def explain(code: str) -> str:
  """Returns the explanation of a code as text of at most 80 columns.

  Args:
    code: A key of `CODES`.
  """
  meaning, cause, remedy = CODES[code]
  paragraphs = [f'{code}: {meaning}', f'Cause: {cause}', f'Remedy: {remedy}']
  if '`--fix`' in remedy:
    paragraphs.append(_FIX)
  return '\n\n'.join(
    textwrap.fill(paragraph, 80, break_long_words=False, break_on_hyphens=False)
    for paragraph in paragraphs
  )


def as_markdown() -> str:
  """Returns the explanations of all codes, the text of docs/error_codes.md."""
  kinds = {
    'A': 'Annotations',
    'I': 'Images',
    'C': 'Recipes, checkpoints, results and the machine',
  }
  lines = [
    '# Error codes',
    '',
    'Generated from the table in `maskrcnn_jax/errors.py` by `python -m '
    'maskrcnn_jax.explain`.',
    '',
    'A message such as `error: A07: ...` is explained here under its code. '
    '`python -m maskrcnn_jax.explain A07` prints the same explanation.',
    '',
    'A code keeps its meaning from release to release. A number that is '
    f'missing is not in use. {_FIX}',
  ]
  for letter, kind in kinds.items():
    lines += ['', f'## {kind}']
    for code, row in CODES.items():
      if code[0] == letter:
        # A heading of the code alone gives the anchor #a07.
        lines += [
          '',
          f'### {code}',
          '',
          f'**{row.meaning}**',
          '',
          f'- Cause: {row.cause}',
          f'- Remedy: {row.remedy}',
        ]
  return '\n'.join(lines) + '\n'


def main(argv: list[str]) -> int:
  """Prints the explanation of a code, or of all codes as Markdown.

  Args:
    argv: The arguments: a code, or nothing for all codes.

  Returns:
    The exit status: 0, or 2 if there is no such code.
  """
  parser = argparse.ArgumentParser(
    prog='python -m maskrcnn_jax.explain',
    description='Explains an error code of a message: its cause and its '
    'remedy.',
  )
  parser.add_argument(
    'code',
    nargs='?',
    help='a code such as A07; if left out, all codes are printed as Markdown',
  )
  code = parser.parse_args(argv).code
  if code is None:
    print(as_markdown(), end='')
    return 0
  if code.upper() not in CODES:
    print_error(f'there is no code {code!r}; the codes are {", ".join(CODES)}.')
    return 2
  print(explain(code.upper()))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
