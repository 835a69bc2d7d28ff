"""Tests of the announcements of compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.runtime import compilation
from maskrcnn_jax.runtime.compilation import Record, announcement, compiling

WANTED = Record('step of a', '800x1344', 'p', 0.0, False, False)


def record(**fields):
  return WANTED._replace(**{'seconds': 20.0, 'is_kept': True} | fields)


@pytest.mark.parametrize(
  ('records', 'text'),
  [
    # Nothing was measured, so there is no number.
    ([], 'Compiling the step for 800x1344'),
    (
      [record(kind='step of b', program='q')],
      'Compiling the step for 800x1344',
    ),
    # Another program of the same kind, also for another size.
    (
      [record(program='q'), record(program='q', size='9x9', seconds=50.0)],
      'Compiling the step for 800x1344 (about 20 s)',
    ),
    (
      [record(program='q', size='9x9', seconds=50.0)],
      'Compiling the step for 800x1344 (about 50 s)',
    ),
    # The newest counts.
    (
      [record(program='q', seconds=5.0), record(program='q', seconds=0.2)],
      'Compiling the step for 800x1344 (about 1 s)',
    ),
    (
      [record(program='q', seconds=300.0)],
      'Compiling the step for 800x1344 (about 5 min)',
    ),
    # The time of a program from the cache says nothing about compiling.
    (
      [record(program='q', seconds=4.0, is_loaded=True)],
      'Compiling the step for 800x1344',
    ),
    # This program is in the cache; loading was never measured, or was.
    ([record()], 'Loading the step for 800x1344, which was compiled before'),
    (
      [record(), record(seconds=4.0, is_loaded=True)],
      'Loading the step for 800x1344, which was compiled before (about 4 s)',
    ),
    # This program was compiled, but not kept.
    ([record(is_kept=False)], 'Compiling the step for 800x1344 (about 20 s)'),
  ],
)
def test_an_announcement_has_only_measured_times(records, text):
  assert announcement('step', WANTED, records) == text


@pytest.fixture
def cache(tmp_path):
  """An empty folder of JAX's compilation cache, for one test."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = [getattr(jax.config, name) for name in names]
  for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
    jax.config.update(name, value)
  jax.experimental.compilation_cache.compilation_cache.reset_cache()
  yield tmp_path
  for name, value in zip(names, before, strict=True):
    jax.config.update(name, value)
  jax.experimental.compilation_cache.compilation_cache.reset_cache()


@pytest.fixture
def lines(monkeypatch):
  """The lines that announce a compilation."""
  lines = []
  monkeypatch.setattr(compilation, 'announce', lines.append)
  return lines


def compile_once(size):
  """Compiles a program as for images of a size; returns what was printed."""
  jax.clear_caches()
  with compiling('step', size, kind=['small'], program=['small', size]):
    double = jax.jit(lambda x: 2 * jnp.sin(x).sum())
    double(np.zeros(size, np.float32)).block_until_ready()


def test_a_program_in_the_cache_is_known(cache, lines):
  for size in ((3, 4), (3, 4), (3, 4), (5, 4)):
    compile_once(size)
  assert lines == [
    'Compiling the step for 3x4',
    'Loading the step for 3x4, which was compiled before',
    'Loading the step for 3x4, which was compiled before (about 1 s)',
    'Compiling the step for 5x4 (about 1 s)',
  ]
  # If the compiled programs are removed, so are the records.
  for file in cache.iterdir():
    file.unlink()
  compile_once((3, 4))
  assert lines[-1] == 'Compiling the step for 3x4'


@pytest.mark.parametrize(
  'content', ['[{"kind": 1}, ', '[{"kind": "step"}]', '{"a": 1}', '[1]', '\xff']
)
def test_a_damaged_file_of_records_gives_no_number(cache, lines, content):
  (cache / compilation.FILE_NAME).write_text(content, encoding='latin-1')
  compile_once((3, 4))
  assert lines == ['Compiling the step for 3x4']


def test_without_a_cache_the_times_of_this_process_are_used(lines, monkeypatch):
  monkeypatch.setattr(compilation, '_file', lambda: None)
  monkeypatch.setattr(compilation, '_records', [])
  for size in ((3, 4), (5, 4)):
    compile_once(size)
  assert lines == [
    'Compiling the step for 3x4',
    'Compiling the step for 5x4 (about 1 s)',
  ]
