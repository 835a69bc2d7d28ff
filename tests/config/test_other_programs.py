"""Tests of docs/from_other_programs.md and of the tables that it is made of."""

import pathlib
import re

import pytest

from maskrcnn_jax.config import other_programs
from maskrcnn_jax.config.keys import BY_NAME
from maskrcnn_jax.config.nvidia_keys import ROWS

ROOT = pathlib.Path(__file__).parents[2]


def test_the_documentation_is_up_to_date():
  path = ROOT / 'docs' / 'from_other_programs.md'
  assert path.read_text(encoding='utf-8') == other_programs.as_markdown(), (
    'run python -m maskrcnn_jax.config.other_programs > '
    'docs/from_other_programs.md'
  )


def test_each_key_of_nvidia_has_a_line():
  text, _, _ = other_programs.as_markdown().partition('## detectron2')
  lines = text.splitlines()
  for row in ROWS:
    assert sum(line.startswith(f'| `{row.name}` |') for line in lines) == 1


@pytest.mark.parametrize(
  'pairs', [other_programs._DETECTRON2, other_programs._TORCHVISION]
)
def test_the_counterparts_exist(pairs):
  last_parts = {name.split('.')[-1] for name in BY_NAME}
  flags = (ROOT / 'maskrcnn_jax' / 'main_flags.py').read_text()
  for there, here in pairs:
    words = re.findall(r'`([^`]+)`', here)
    assert words or 'categories' in here or 'no counterpart' in here, there
    for word in words:
      word = word.partition('=')[0]
      if word.startswith('--'):
        assert f"'{word[2:]}'" in flags, word
      else:
        assert word in BY_NAME or word in last_parts, word
