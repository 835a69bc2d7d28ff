"""Checks the rule that imports point down only, by reading the source files."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# The rows of modules from top to bottom. A module may import modules of lower
# rows, and modules of its own package, but no other entry of its own row.
# `name.*` is a whole package.
ROWS = (
  # It makes up batches as `benchmark` does.
  ('plan.*',),
  # The comparison with torchvision converts its weights.
  ('benchmark.*',),
  (
    '__main__',
    'main',
    'build_tfds.*',
    'check_data.*',
    'convert_to_coco.*',
    'convert_weights.*',
    'doctor.*',
    'explain',
    'export.*',
  ),
  ('api', 'main_flags'),
  ('training.*',),
  ('evaluation.*', 'prediction.*'),
  ('detector', 'drawing.*'),
  ('rcnn',),
  ('config.*',),
  ('named_weights.*',),
  # The steps of the paper, and in the same row data and runtime.
  (
    'inputs',
    'proposals',
    'targets',
    'losses',
    'detections',
    'mask_paste',
    'data.*',
    'runtime.*',
  ),
  ('model.*', 'ops.*'),
  ('array_types', 'geometry', 'errors', 'kernels', 'pallas_kernels.*'),
)

# Index of the last row that may use recipes. No module of a lower row may have
# a parameter or an attribute named `config`, except the package that defines
# recipes.
LAST_CONFIG_ROW = 8


# These files run in an environment of their own, in which torch is installed.
TORCH_FILES = (
  pathlib.PurePath('maskrcnn_jax/benchmark/torchvision_steps.py'),
  pathlib.PurePath('scripts/convolutions/torch_worker.py'),
  pathlib.PurePath('scripts/export_onnx.py'),
  pathlib.PurePath('scripts/learning/torchvision_jobs.py'),
)


def module_of(path):
  """Returns the dotted name of a file relative to the root."""
  parts = list(pathlib.PurePath(path).with_suffix('').parts)
  if parts[-1] == '__init__':
    parts.pop()
  return '.'.join(parts)


def short_name(module):
  """Returns the name of a module in `ROWS`, or None if it is not ours.

  'maskrcnn_jax.ops.nms' is 'ops.nms', 'maskrcnn_jax' itself is ''.
  """
  if module == 'maskrcnn_jax':
    return ''
  if module.startswith('maskrcnn_jax.'):
    return module.removeprefix('maskrcnn_jax.')
  if module.split('.')[0] == 'pallas_kernels':
    return module
  return None


def place(name):
  """Finds a module in `ROWS`.

  Args:
    name: The name of the module, as `short_name` returns it.

  Returns:
    The index of its row and the entry of the row; None if it is in no row.
  """
  for row, entries in enumerate(ROWS):
    for entry in entries:
      package = entry.removesuffix('.*')
      if name == entry or (
        package != entry and (name + '.').startswith(package + '.')
      ):
        return row, entry
  return None


def imported_modules(source, path, modules):
  """Lists the imports of a source file.

  Args:
    source: Text of the file.
    path: Path of the file, relative to the root.
    modules: Dotted names of all modules of this project.

  Returns:
    (line number, dotted name of the imported module) pairs. `from package
    import thing` gives 'package.thing' if that is a module, else 'package'.
  """
  found = []
  parts = list(pathlib.PurePath(path).with_suffix('').parts)
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = parts[: -node.level] if node.level else []
      base = '.'.join(base + ([node.module] if node.module else []))
      for alias in node.names:
        name = f'{base}.{alias.name}'
        found.append((node.lineno, name if name in modules else base))
  return list(dict.fromkeys(found))  # A line may name a module twice.


def is_under(name, package):
  """Tells whether a dotted name is a package or lies inside it."""
  return (name + '.').startswith(package + '.')


def broken_rules(source, path, modules):
  """Returns a message for each import of a source file that breaks a rule.

  Args:
    source: Text of the file.
    path: Path of the file, relative to the root.
    modules: Dotted names of all modules of this project.
  """
  problems = []
  module = module_of(path)
  name = short_name(module)
  here = place(name) if name else None
  if name and here is None:
    problems.append(f'{path}: has no place yet; add it to ROWS in this test')

  for line, imported in imported_modules(source, path, modules):
    where = f'{path}:{line}: imports {imported}'
    uses_torch = is_under(imported, 'torch') and path not in TORCH_FILES
    if uses_torch or is_under(imported, 'tensorflow'):
      problems.append(f'{where}, which no module may')
    if is_under(imported, 'scripts'):
      problems.append(f'{where}, but no module may import scripts')
    if name is None:
      continue

    if is_under(name, 'data') and is_under(imported, 'jax'):
      problems.append(f'{where}; data/ runs on the host without JAX')
    if is_under(name, 'ops') and is_under(imported, 'flax'):
      problems.append(f'{where}; ops/ has no parameters')

    target = short_name(imported)
    if is_under(name, 'pallas_kernels'):
      if target is not None and not is_under(imported, 'pallas_kernels'):
        problems.append(f'{where}; pallas_kernels imports no other package')
      continue
    if not target or here is None:
      continue
    there = place(target)
    if there is None:
      problems.append(f'{where}, which has no place in ROWS of this test')
    elif there[0] < here[0]:
      problems.append(f'{where}, which is above it')
    elif there[0] == here[0] and not (there == here and here[1].endswith('.*')):
      problems.append(f'{where}, which is in the same row')
  if here and here[0] > LAST_CONFIG_ROW and here[1] != 'config.*':
    problems += [
      f'{path}:{line}: has `config`; pass the values that are needed'
      for line in config_lines(source)
    ]
  return problems


def config_lines(source):
  """Returns the numbers of lines with a parameter or attribute named `config`.

  The settings of JAX, `jax.config`, are not counted.
  """
  lines = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.arg) and node.arg == 'config':
      lines.append(node.lineno)
    elif (
      isinstance(node, ast.Attribute)
      and node.attr == 'config'
      and not (isinstance(node.value, ast.Name) and node.value.id == 'jax')
    ):
      lines.append(node.lineno)
    # A field of a NamedTuple.
    elif isinstance(node, ast.AnnAssign) and (
      isinstance(node.target, ast.Name) and node.target.id == 'config'
    ):
      lines.append(node.lineno)
  return lines


def sources():
  folders = ('maskrcnn_jax', 'pallas_kernels', 'configs', 'scripts', 'tests')
  return {
    path.relative_to(ROOT): path.read_text()
    for folder in folders
    for path in sorted((ROOT / folder).rglob('*.py'))
  }


def test_imports_point_down_only():
  files = sources()
  modules = {module_of(path) for path in files}
  problems = [
    problem
    for path, source in files.items()
    for problem in broken_rules(source, path, modules)
  ]
  assert not problems, '\n' + '\n'.join(problems)


MODULES = {
  'maskrcnn_jax.main',
  'maskrcnn_jax.training.run',
  'maskrcnn_jax.evaluation.evaluate',
  'maskrcnn_jax.config',
  'maskrcnn_jax.config.check',
  'maskrcnn_jax.losses',
  'maskrcnn_jax.targets',
  'maskrcnn_jax.data.coco',
  'maskrcnn_jax.data.images',
  'maskrcnn_jax.runtime.cluster',
  'maskrcnn_jax.model.resnet',
  'maskrcnn_jax.ops.boxes',
  'maskrcnn_jax.ops.nms',
  'maskrcnn_jax.geometry',
  'pallas_kernels.roi_align',
}


@pytest.mark.parametrize(
  ('path', 'source', 'complaint'),
  [
    ('ops/nms.py', 'from maskrcnn_jax import losses', 'above'),
    ('ops/nms.py', 'import maskrcnn_jax.training.run', 'above'),
    ('ops/nms.py', 'def f():\n  from maskrcnn_jax.main import run', 'above'),
    ('ops/nms.py', 'from .. import losses', 'above'),
    ('ops/nms.py', 'from maskrcnn_jax.model import resnet', 'same row'),
    ('ops/nms.py', 'from flax import linen as nn', 'no parameters'),
    ('losses.py', 'from maskrcnn_jax import targets', 'same row'),
    ('data/coco.py', 'from maskrcnn_jax.runtime import cluster', 'same row'),
    ('data/coco.py', 'import jax.numpy as jnp', 'without JAX'),
    ('losses.py', 'from maskrcnn_jax import config', 'above'),
    ('losses.py', 'def f(config): pass', 'has `config`'),
    ('losses.py', 'x = run.config.train.batch_size', 'has `config`'),
    ('losses.py', 'class A:\n  config: int', 'has `config`'),
    ('losses.py', 'import torch.nn', 'no module may'),
    ('losses.py', 'import tensorflow as tf', 'no module may'),
    ('losses.py', 'from scripts import make', 'may import scripts'),
    ('losses.py', 'from maskrcnn_jax import unheard_of_module', None),
    ('losses.py', 'import maskrcnn_jax.unheard_of', 'no place'),
    ('losses.py', "import jax\njax.config.update('a', 1)", None),
    ('unheard_of.py', '', 'has no place yet'),
    (
      '../pallas_kernels/nms.py',
      'from maskrcnn_jax import geometry',
      'no other package',
    ),
  ],
)
def test_broken_rules_names_the_broken_rule(path, source, complaint):
  path = 'maskrcnn_jax/' + path
  path = path.removeprefix('maskrcnn_jax/../')
  problems = broken_rules(source, path, MODULES)

  if complaint is None:
    assert not problems
  else:
    assert len(problems) == 1
    assert complaint in problems[0]


@pytest.mark.parametrize(
  ('path', 'source'),
  [
    ('main.py', 'from maskrcnn_jax.training import run'),
    ('training/run.py', 'from maskrcnn_jax.evaluation import evaluate'),
    ('training/run.py', 'def train(config): pass'),
    ('config/check.py', 'def check(config): pass'),
    ('data/coco.py', 'from maskrcnn_jax.data import images'),
    ('data/coco.py', 'from jaxtyping import Float'),
    ('ops/nms.py', 'from maskrcnn_jax.ops import boxes'),
    ('ops/nms.py', 'import jax\nfrom pallas_kernels import roi_align'),
    ('losses.py', 'from maskrcnn_jax import geometry'),
  ],
)
def test_broken_rules_accepts_imports_that_point_down(path, source):
  assert not broken_rules(source, 'maskrcnn_jax/' + path, MODULES)
