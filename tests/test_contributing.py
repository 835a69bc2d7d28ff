"""Follows CONTRIBUTING.md in a copy of the project and runs its tests there."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]
GUIDE = ROOT / 'CONTRIBUTING.md'

# A sentence that names a file, then all blocks of code that belong to it.
EDITS = re.compile(
  r'^(New file|In|At the end of) `([\w/.]+)`:\n\n'
  r'((?:```(?:python|diff)\n.*?^```\n\n?)+)',
  re.DOTALL | re.MULTILINE,
)
BLOCK = re.compile(r'```(?:python|diff)\n(.*?)^```\n', re.DOTALL | re.MULTILINE)

# The guide has a section 'How to add a ...' for each of them.
TITLES = ('backbone', 'loss', 'data source', 'head', 'kernel')


class Edit(NamedTuple):
  """A change of one file, as the guide describes it."""

  kind: str  # 'New file', 'In' or 'At the end of'
  path: str  # relative to the root of the project
  blocks: tuple[str, ...]  # a file, some diffs, or lines to append


def edits_of(title):
  """Returns the edits of the section 'How to add a ...'."""
  guide = GUIDE.read_text(encoding='utf-8')
  section = guide.split(f'\n## How to add a {title}\n')[1].split('\n## ')[0]
  return [
    Edit(kind, path, tuple(BLOCK.findall(blocks)))
    for kind, path, blocks in EDITS.findall(section)
  ]


def apply(edit, root):
  """Applies an edit to a copy of the project."""
  file = root / edit.path
  if edit.kind == 'New file':
    assert not file.exists(), f'{edit.path} exists already'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('\n\n'.join(edit.blocks), encoding='utf-8')
    return
  text = file.read_text(encoding='utf-8')
  if edit.kind == 'At the end of':
    file.write_text('\n\n'.join([text, *edit.blocks]), encoding='utf-8')
    return
  for diff in edit.blocks:
    lines = diff.splitlines(keepends=True)
    assert all(line[0] in ' +-\n' for line in lines), diff
    before = ''.join(line[1:] or '\n' for line in lines if line[0] != '+')
    after = ''.join(line[1:] or '\n' for line in lines if line[0] != '-')
    # Whole lines: the text begins after a newline.
    found = ('\n' + text).count('\n' + before)
    assert found == 1, (
      f'CONTRIBUTING.md changes these lines of {edit.path}, which has them '
      f'{found} times:\n{before}'
    )
    text = ('\n' + text).replace('\n' + before, '\n' + after)[1:]
  file.write_text(text, encoding='utf-8')


def run(root, *arguments):
  """Runs a module in the copy and returns its output."""
  done = subprocess.run(
    [sys.executable, '-m', *arguments],
    cwd=root,
    env=os.environ | {'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout
  return done.stdout


@pytest.fixture(scope='module')
def project(tmp_path_factory):
  """A copy of the project with all examples of the guide in it."""
  root = tmp_path_factory.mktemp('project')
  for name in ('maskrcnn_jax', 'pallas_kernels', 'configs', 'tests'):
    shutil.copytree(
      ROOT / name, root / name, ignore=shutil.ignore_patterns('__pycache__')
    )
  for name in ('setup.cfg', 'pyproject.toml'):
    shutil.copy(ROOT / name, root)
  for title in TITLES:
    for edit in edits_of(title):
      apply(edit, root)
  return root


def test_the_guide_has_an_example_of_each_kind():
  files = {title: len(edits_of(title)) for title in TITLES}
  assert files == {
    'backbone': 4,
    'loss': 3,
    'data source': 3,
    'head': 6,
    'kernel': 5,
  }


@pytest.mark.slow
@pytest.mark.parametrize('titles', [TITLES[:3], TITLES[3:]])
def test_the_tests_of_the_examples_pass(project, titles):
  tests = [
    f'{edit.path}::{name}'
    for title in titles
    for edit in edits_of(title)
    if edit.path.startswith('tests/')
    for block in edit.blocks
    for name in re.findall(r'^def (test_\w+)', block, re.MULTILINE)
  ]
  # The contract of backbones, and the rule of imports.
  tests += [
    'tests/model/test_backbone.py::test_a_recipe_can_choose_each_backbone',
    'tests/model/test_backbone.py::'
    'test_frozen_prefixes_find_every_part_of_a_backbone[vgg11]',
    'tests/model/test_backbone.py::'
    'test_backbone_gives_the_levels_of_its_stages[4-vgg11]',
    'tests/test_imports.py::test_imports_point_down_only',
  ]
  run(project, 'pytest', '-q', '-p', 'no:cacheprovider', '-n', '0', *tests)


def test_the_code_of_the_examples_has_the_format_of_the_project(project):
  new = [edit.path for title in TITLES for edit in edits_of(title)]
  run(project, 'ruff', 'check', *new)
  run(project, 'ruff', 'format', '--check', '--diff', *new)
