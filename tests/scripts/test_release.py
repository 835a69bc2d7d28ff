"""Tests of scripts/release.sh: its checks, and the release that it builds."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def git(folder, *arguments):
  identity = ('-c', 'user.name=tests', '-c', 'user.email=tests@localhost')
  done = subprocess.run(
    ['git', *identity, *arguments],
    cwd=folder,
    check=True,
    capture_output=True,
    text=True,
  )
  return done.stdout


def commit(folder):
  git(folder, 'add', '--all')
  git(folder, 'commit', '--quiet', '--allow-empty', '--message=x')


def release(folder, *arguments):
  variables = os.environ | {
    'GIT_COMMITTER_NAME': 'tests',
    'GIT_COMMITTER_EMAIL': 'tests@localhost',
  }
  return subprocess.run(
    ['bash', 'scripts/release.sh', *arguments],
    cwd=folder,
    env=variables,
    capture_output=True,
    text=True,
  )


@pytest.fixture
def repository(tmp_path):
  """A repository with version 1.2.3 and nothing but the files of the checks."""
  for name in ('scripts/release.sh', 'scripts/python_environment.sh'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / name, tmp_path / name)
  (tmp_path / 'maskrcnn_jax').mkdir()
  (tmp_path / 'maskrcnn_jax' / '__init__.py').write_text(
    "__version__ = '1.2.3'\n"
  )
  (tmp_path / 'CHANGELOG.md').write_text('## 1.2.3 - 2026-11-28\n')
  git(tmp_path, 'init', '--quiet')
  commit(tmp_path)
  return tmp_path


def leave_a_file(folder):
  (folder / 'new.py').touch()


def forget_the_date(folder):
  (folder / 'CHANGELOG.md').write_text('## 1.2.3\n\n## 1.2.2 - 2026-11-27\n')
  commit(folder)


def write_another_version(folder):
  (folder / 'maskrcnn_jax' / '__init__.py').write_text(
    "__version__ = '1.3.dev1'\n"
  )
  commit(folder)


def tag_an_older_commit(folder):
  git(folder, 'tag', 'v1.2.3')
  commit(folder)


def tag_as_another_version(folder):
  git(folder, 'tag', 'v1.2.4')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (leave_a_file, 'changes that are not committed'),
    (forget_the_date, "has no section '## 1.2.3 - YYYY-MM-DD'"),
    (write_another_version, "is '1.3.dev1', not X.Y.Z"),
    (tag_an_older_commit, 'the tag v1.2.3 is at another commit'),
    (tag_as_another_version, 'has the tag v1.2.4, but its version is 1.2.3'),
  ],
)
def test_release_refuses_a_state_that_is_not_ready(repository, change, message):
  change(repository)
  done = release(repository, '--tag')
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and message in line
  assert not (repository / 'dist').exists()


def test_release_refuses_an_unknown_argument(repository):
  done = release(repository, '--tga')
  assert done.returncode == 2
  assert '--tga is not understood' in done.stderr


@pytest.mark.slow
def test_release_builds_tries_and_tags_the_package(tmp_path):
  for name in git(ROOT, 'ls-files').splitlines():
    if (ROOT / name).is_file():
      (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, tmp_path / name)
  git(tmp_path, 'init', '--quiet')
  commit(tmp_path)
  done = release(tmp_path, '--tag')
  assert done.returncode == 0, done.stderr
  sdist, wheel = sorted(
    (tmp_path / 'dist').glob('maskrcnn_jax-*'), reverse=True
  )
  for path in (sdist, wheel):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f'{digest}  {path.name}' in done.stdout
  with tarfile.open(sdist) as archive:
    (top,) = {name.partition('/')[0] for name in archive.getnames()}
  version = top.removeprefix('maskrcnn_jax-')
  assert git(tmp_path, 'tag', '--points-at', 'HEAD') == f'v{version}\n'
