"""Tests of the notebook. They need no Jupyter.

The default test reads the notebook; the slow test runs its cells one after
another in one namespace, as Jupyter does.
"""

import ast
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

from PIL import Image
import pytest

from maskrcnn_jax.config.keys import BY_NAME
from maskrcnn_jax.config.recipe import packaged_recipes

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / 'notebooks' / 'maskrcnn_jax.ipynb').read_text())
CODE = [
  ''.join(cell['source'])
  for cell in NOTEBOOK['cells']
  if cell['cell_type'] == 'code'
]


def commands():
  """Yields the argument of each call of `run`, with X for placeholders."""
  for node in ast.walk(ast.parse('\n'.join(CODE))):
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'run':
      (text,) = node.args
      parts = text.values if isinstance(text, ast.JoinedStr) else [text]
      yield ''.join(
        part.value if isinstance(part, ast.Constant) else 'X' for part in parts
      )


def test_the_notebook_has_no_outputs():
  assert NOTEBOOK['nbformat'] == 4 and NOTEBOOK['nbformat_minor'] >= 5
  assert len({cell['id'] for cell in NOTEBOOK['cells']}) == len(
    NOTEBOOK['cells']
  )
  # Jupyter adds versions and settings of the machine, which would differ with
  # each person who saves the notebook.
  assert NOTEBOOK['metadata'] == {
    'kernelspec': {
      'display_name': 'Python 3',
      'language': 'python',
      'name': 'python3',
    },
    'language_info': {'name': 'python'},
  }
  for cell in NOTEBOOK['cells']:
    assert cell['metadata'] == {}
    if cell['cell_type'] == 'code':
      assert cell['outputs'] == [] and cell['execution_count'] is None


def test_the_cells_are_plain_python():
  assert len(CODE) >= 8
  for text in CODE:  # Lines with ! or % are Jupyter's own and do not compile.
    compile(text, 'cell', 'exec')


def test_the_notebook_names_files_that_exist():
  text = '\n'.join(
    ''.join(cell['source'])
    for cell in NOTEBOOK['cells']
    if cell['cell_type'] == 'markdown'
  )
  for name in re.findall(r'`((?:docs/)?[\w]+\.md)`', text):
    assert (ROOT / name).is_file(), name


def test_the_notebook_names_programs_recipes_and_flags_that_exist():
  helps = {}
  for command in commands():
    module, *arguments = shlex.split(command)
    assert importlib.util.find_spec(module), module
    if module not in helps:
      helps[module] = subprocess.run(
        [sys.executable, '-m', module, '--help'],
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
      ).stdout
    for argument in arguments:
      flag, _, value = argument.partition('=')
      if flag == '--config':
        assert value in packaged_recipes(), argument
      elif flag.startswith('-') and not flag.startswith('--config.'):
        assert re.search(rf'{flag}\b', helps[module]), argument
  # Also those in functions that make a part of a command.
  keys = re.findall(r'--config\.([\w.]+)', '\n'.join(CODE))
  assert set(keys) <= BY_NAME.keys() and len(keys) >= 6
  assert helps.keys() == {
    'maskrcnn_jax.main',
    'maskrcnn_jax.check_data',
    'maskrcnn_jax.data.shapes',
  }


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  namespace = {'__name__': '__main__'}
  pictures = []
  for text in CODE:
    tree = ast.parse(text)
    shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, 'cell', 'exec'), namespace)
    if shown is not None:
      # Jupyter shows the value of an expression at the end of a cell.
      expression = compile(ast.Expression(shown.value), 'cell', 'eval')
      value = eval(expression, namespace)
      if isinstance(value, Image.Image):
        pictures.append(value)
  assert len(pictures) == 3
  for picture in pictures:
    assert picture._repr_png_()  # Jupyter calls this function.
    assert len(picture.getcolors(picture.width * picture.height)) > 1000

  folder = tmp_path / 'notebook_files'
  evaluations = {
    name: json.loads((folder / name / 'evaluations.json').read_text())[-1]
    for name in ('run', 'tuned')
  }
  print(evaluations)
  # A reader should see objects that the model has found. The full recipe
  # reaches 0.65.
  for evaluation in evaluations.values():
    assert evaluation['mask_ap'] > 0.15
  for name, classes in (
    ('run', {'ellipse', 'rectangle', 'triangle'}),
    ('tuned', {'round', 'angular'}),
  ):
    path = folder / name / 'predictions' / 'predictions.json'
    found = {one['category_name'] for one in json.loads(path.read_text())}
    assert found <= classes and len(found) >= 2
