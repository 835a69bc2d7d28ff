"""Tests of the wheel and the source distribution, and of names in documents.

The slow tests install the wheel and run it.
"""

import ast
import configparser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib

import pytest

from maskrcnn_jax import __version__
from maskrcnn_jax.__main__ import TOOLS

ROOT = pathlib.Path(__file__).parents[1]

# Files and folders that the wheel and the source distribution are built from.
SOURCES = (
  'maskrcnn_jax',
  'configs',
  'pallas_kernels',
  'docs',
  'notebooks',
  'scripts',
  'tests',
  '.github',
  'setup.cfg',
  'pyproject.toml',
  'MANIFEST.in',
  *sorted(path.name for path in ROOT.glob('*.md')),
  'LICENSE',
  'requirements.lock',
  'requirements-gpu.lock',
  '.dockerignore',
)
# Folders in these that programs make.
MADE = ('__pycache__', 'notebook_files', '.ipynb_checkpoints')


def test_setup_cfg_lists_every_package_on_disk():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  listed = setup['options']['packages'].split()
  found = {
    '.'.join(path.parent.relative_to(ROOT).parts)
    for folder in ('maskrcnn_jax', 'pallas_kernels')
    for path in (ROOT / folder).rglob('*.py')
  }
  # setup.cfg installs the folder configs/ as this package.
  assert listed == sorted(found | {'maskrcnn_jax.configs'})
  assert setup['options']['package_dir'].split() == [
    'maskrcnn_jax.configs',
    '=',
    'configs',
  ]
  for package in found:
    assert (ROOT / package.replace('.', '/') / '__init__.py').is_file()


def test_the_changelog_has_a_dated_section_for_the_version():
  headings = re.findall(
    r'^## (.*)$', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE
  )
  assert headings[0] == 'Unreleased'
  dates = dict(heading.split(' - ') for heading in headings[1:])
  assert next(iter(dates)) == __version__
  assert all(re.fullmatch(r'\d{4}-\d\d-\d\d', date) for date in dates.values())


def test_the_workflow_tests_the_oldest_supported_jax():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  (oldest,) = re.findall(
    r'^jax>=([\d.]+)', setup['options']['install_requires'], re.MULTILINE
  )
  workflow = (ROOT / '.github' / 'workflows' / 'tests.yml').read_text()
  assert set(re.findall(r'\bjax: ([\d.]+)', workflow)) == {oldest}


def strings_of(path):
  """Yields the line number and the text of each string in a Python file.

  An f-string is one text, without its placeholders. Docstrings of functions and
  classes are left out; those of modules count, because --help prints them.
  """
  nodes = list(ast.walk(ast.parse(path.read_text())))
  parts = {
    id(part)
    for node in nodes
    if isinstance(node, ast.JoinedStr)
    for part in node.values
  } | {
    id(node.body[0].value)
    for node in nodes
    if isinstance(node, ast.FunctionDef | ast.ClassDef)
    and isinstance(node.body[0], ast.Expr)
  }
  for node in nodes:
    if isinstance(node, ast.JoinedStr):
      texts = (v.value for v in node.values if isinstance(v, ast.Constant))
      yield node.lineno, ''.join(texts)
    elif (
      isinstance(node, ast.Constant)
      and isinstance(node.value, str)
      and id(node) not in parts
    ):
      yield node.lineno, node.value


def test_messages_name_no_file_that_is_not_installed():
  problems = [
    f'{path.relative_to(ROOT)}:{line}: {text}'
    for path in (ROOT / 'maskrcnn_jax').rglob('*.py')
    # The files of docs/ are generated from these, which so name the folder.
    if path.name
    not in ('errors.py', 'explain.py', 'documentation.py', 'other_programs.py')
    for line, text in strings_of(path)
    if re.search(r'\b(scripts|docs|tests)/|README', text)
    and 'source repository' not in text.replace('\n', ' ')
  ]
  assert not problems, '\n'.join(problems)


def test_documents_and_scripts_name_files_and_tools_that_exist():
  documents = [
    *ROOT.glob('*.md'),
    *ROOT.glob('*/*.md'),
    *ROOT.glob('configs/*.py'),
    *ROOT.glob('scripts/*.*'),
    *ROOT.glob('maskrcnn_jax/**/*.py'),
  ]
  problems = []
  for path in documents:
    if path.name == 'CHANGELOG.md':  # It names files that were removed.
      continue
    text = path.read_text()
    # The files that CONTRIBUTING.md tells its readers to write.
    new_files = re.findall(r'^New file `(.+?)`:$', text, re.MULTILINE)
    files = re.findall(
      r'(?<![\w/.])(?:maskrcnn_jax|pallas_kernels|scripts|tests|docs)'
      r'/[\w/]+\.(?:py|sh|md|png|txt)\b',
      text,
    )
    tools = re.findall(r'python -m (maskrcnn_jax[.\w]*\w)', text)
    modules = [
      tool.replace('.', '/') for tool in tools if not tool.endswith('TOOL')
    ]
    problems += [
      f'{path.relative_to(ROOT)}: there is no {name}'
      for name in files
      if not (ROOT / name).is_file() and name not in new_files
    ] + [
      f'{path.relative_to(ROOT)}: there is no tool {name}'
      for name in modules
      if not (ROOT / f'{name}.py').is_file()
      and not (ROOT / name / '__main__.py').is_file()
    ]
  assert not problems, '\n'.join(problems)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """Installs the wheel into an environment of its own; returns its bin folder.

  The wheel is built from the source distribution. All other packages are taken
  from the environment of the tests, through a .pth file. The editable install
  of this package there stays invisible, because it is a .pth file itself, and
  Python does not read the .pth files of a folder that a .pth file names.
  """
  folder = tmp_path_factory.mktemp('installed')
  source = folder / 'source'
  for name in SOURCES:
    if (ROOT / name).is_dir():
      shutil.copytree(
        ROOT / name,
        source / name,
        ignore=shutil.ignore_patterns(*MADE),
      )
    else:
      shutil.copy(ROOT / name, source / name)
  subprocess.run([sys.executable, '-m', 'venv', folder / 'env'], check=True)
  python = folder / 'env' / 'bin' / 'python'
  requires = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  subprocess.run(
    [
      python,
      '-m',
      'pip',
      'install',
      '-q',
      *requires['build-system']['requires'],
    ],
    check=True,
    env=environment(),
  )
  # pip cannot build source distributions, so this calls setuptools directly.
  subprocess.run(
    [
      python,
      '-c',
      'from setuptools import build_meta; '
      f'build_meta.build_sdist({str(folder)!r})',
    ],
    check=True,
    cwd=source,
    env=environment(),
    stdout=subprocess.DEVNULL,
  )
  (sdist,) = folder.glob('*.tar.gz')
  subprocess.run(
    [
      python,
      '-m',
      'pip',
      'wheel',
      '-q',
      '--no-deps',
      '--no-build-isolation',
      f'--wheel-dir={folder}',
      sdist,
    ],
    check=True,
    cwd=folder,
    env=environment(),
  )
  (wheel,) = folder.glob('*.whl')
  subprocess.run(
    [python, '-m', 'pip', 'install', '-q', '--no-deps', wheel],
    check=True,
    cwd=folder,
    env=environment(),
  )
  shutil.rmtree(source)
  (site_packages,) = folder.glob('env/lib/python*/site-packages')
  (site_packages / 'others.pth').write_text(
    sysconfig.get_paths()['purelib'] + '\n'
  )
  return python.parent


def environment():
  """Returns the environment variables for programs of the installed package.

  Without PYTHONPATH, they cannot import the package from the source tree.
  """
  variables = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'PIP_DISABLE_PIP_VERSION_CHECK': '1',
  }
  variables.pop('PYTHONPATH', None)
  return variables


def run(folder, *command):
  return subprocess.run(
    command,
    cwd=folder,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.slow
def test_the_source_distribution_is_complete(installed):
  (sdist,) = installed.parents[1].glob('*.tar.gz')
  with tarfile.open(sdist) as archive:
    there = {name.partition('/')[2] for name in archive.getnames()}
  wanted = {
    path.relative_to(ROOT).as_posix()
    for name in SOURCES
    for path in [ROOT / name, *(ROOT / name).rglob('*')]
    if path.is_file() and not set(MADE) & set(path.parts)
  }
  assert wanted <= there


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(installed, tmp_path):
  done = run(
    tmp_path,
    installed / 'python',
    '-c',
    'import maskrcnn_jax; print(maskrcnn_jax.__file__)',
  )
  package = pathlib.Path(done.stdout.strip()).parent
  assert package.is_relative_to(installed.parent)
  assert sorted(path.name for path in package.glob('configs/*.py')) == sorted(
    path.name for path in ROOT.glob('configs/*.py')
  )
  assert not list(package.parent.glob('configs'))
  targets = pathlib.Path('plan', 'targets')
  assert sorted(path.name for path in (package / targets).iterdir()) == sorted(
    path.name for path in (ROOT / 'maskrcnn_jax' / targets).iterdir()
  )
  for name in ('maskrcnn_jax', 'pallas_kernels'):
    assert (package.parent / name / 'py.typed').is_file()

  command = installed / 'maskrcnn'
  assert run(tmp_path, command).stdout == run(tmp_path, command, '-h').stdout
  for tool in TOOLS:
    done = run(tmp_path, command, tool, '--help')
    assert done.returncode == 0, done.stderr
    assert f'maskrcnn {tool} ' in done.stdout
  done = run(tmp_path, command, 'shapes', 'drawn', '--train=24', '--val=1')
  assert done.returncode == 0, done.stderr
  # check_data uses worker processes if there are at least 24 images.
  done = run(
    tmp_path,
    command,
    'check_data',
    '--images=drawn/images',
    '--workers=2',
    '--annotations=drawn/instances_train.json',
  )
  assert done.returncode == 0, done.stderr
  assert '24 images' in done.stdout


def named_files(text):
  """Returns the words of a text that look like file names."""
  return {
    word
    for word in re.findall(r'(?<![\w=*<])[\w./-]+\.\w{1,8}\b', text)
    if word.endswith(('.py', '.sh', '.md', '.json', '.txt', '.png', '.gz'))
    and not word.startswith('//')
  }


@pytest.mark.slow
def test_the_wheel_trains_fine_tunes_and_predicts(installed, tmp_path):
  command = installed / 'maskrcnn'
  draw = ('shapes', 'drawn', '--train=8', '--val=2', '--size=64')
  data = [
    f'--config.data.{part}.{key}=drawn/{value}'
    for part, name in (('train', 'train'), ('eval', 'val'))
    for key, value in (
      ('images', 'images'),
      ('annotations', f'instances_{name}.json'),
    )
  ]
  short = (
    '--config.train.num_steps=2',
    '--config.train.batch_size=2',
    '--config.data.padded_sizes=((128, 160), (160, 128))',
  )
  runs = (
    draw,
    ('--config=shapes', '--workdir=first', '--skip_test', *short, *data),
    ('--config=finetune', '--workdir=mine', '--init_from=first', *short, *data),
    ('--mode=predict', '--workdir=mine', '--input=drawn/samples'),
    ('check_data', '--config=finetune', *data),
  )
  missing = set()
  for arguments in runs:
    done = run(tmp_path, command, *arguments)
    assert done.returncode == 0, done.stderr
    missing |= {
      name
      for name in named_files(done.stdout + done.stderr)
      if not (tmp_path / name).exists()
      and not list(tmp_path.rglob(pathlib.Path(name).name))
    }
  assert not missing
  # The messages about wrong input must not name missing files either.
  for arguments, word in (
    (('--config=configs/finetune.py', '--workdir=x'), 'finetune'),
    (('--config=finetune', '--workdir=x', *data), '--init_from'),
    (('--config=shapes', '--workdir=x'), 'training set'),
    (('--config=r50_fpn', '--workdir=x'), 'download'),
  ):
    done = run(tmp_path, command, *arguments)
    assert done.returncode == 2, done.stderr
    assert word in done.stderr
    print(done.stderr.splitlines()[-1])
  objects = json.loads(
    (tmp_path / 'mine' / 'predictions' / 'predictions.json').read_text()
  )
  assert objects == [] or {'file_name', 'segmentation'} <= objects[0].keys()
  assert list((tmp_path / 'mine' / 'predictions').glob('*.png'))


@pytest.mark.slow
def test_an_editable_install_finds_package_and_command(tmp_path):
  for name in SOURCES:
    if name not in ('docs', 'notebooks', 'scripts', 'tests'):
      copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
      copy(ROOT / name, tmp_path / name)
  subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'env'], check=True)
  scripts = tmp_path / 'env' / 'bin'
  subprocess.run(
    [
      scripts / 'python',
      '-m',
      'pip',
      'install',
      '-q',
      '--no-deps',
      '-e',
      tmp_path,
    ],
    check=True,
    env=environment(),
  )
  empty = tmp_path / 'empty'
  empty.mkdir()
  assert run(empty, scripts / 'maskrcnn', '--help').returncode == 0
  done = run(
    empty,
    scripts / 'python',
    '-c',
    'import maskrcnn_jax; print(maskrcnn_jax.__file__)',
  )
  package = pathlib.Path(done.stdout.strip()).parent
  assert package == tmp_path / 'maskrcnn_jax'
  # The recipes are the files in configs/, not a copy inside the package.
  assert not (package / 'configs').exists()
  assert (package.parent / 'configs' / 'finetune.py').is_file()
