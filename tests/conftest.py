"""Fixtures and settings that all test files share."""

import contextlib
import fcntl
import gc
import os
import pickle
import sys

import pytest

# JAX reads this when it is first imported; child processes inherit it.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def pytest_configure(config):
  """Switches the optimizations of the compiler off, except for slow tests.

  Slow tests run programs that are compiled as for a user.
  """
  # By default, Python searches for garbage after each 700 to 2,000 new objects,
  # and JAX joins in. Tracing makes millions of objects that stay in use, so
  # fewer searches make the tests 7 % faster.
  gc.set_threshold(100_000, 20, 10)
  if 'not slow' in config.option.markexpr and 'XLA_FLAGS' not in os.environ:
    # Compiling takes most of the time of the tests, and their arrays are tiny.
    # JAX reads the variable when it starts; child processes inherit it.
    os.environ['XLA_FLAGS'] = (
      '--xla_backend_optimization_level=0 '
      '--xla_llvm_disable_expensive_passes=true '
      # Several modules for several threads are more work than one.
      '--xla_cpu_parallel_codegen_split_count=1'
    )


def pytest_collection_modifyitems(items):
  """Runs the tests of trainings first.

  They take longest. If they came last, as by the alphabet, one worker would
  still be in a long test when the other had nothing left to do.
  """
  items.sort(key=lambda item: 'training' not in item.path.parts)


@pytest.fixture
def key():
  """A random key for tests."""
  import jax  # Here, so that tests without JAX start at once.

  return jax.random.key(0)


def shared_folder(tmp_path_factory):
  """Returns a temporary folder that all workers of pytest-xdist share."""
  folder = tmp_path_factory.getbasetemp()
  # With xdist, each worker has a folder inside of the shared folder.
  return folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder


@contextlib.contextmanager
def locked(path):
  """Lets one worker at a time into the block."""
  with open(path, 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


@pytest.fixture(scope='session')
def compilation_cache(tmp_path_factory):
  """Keeps compiled programs on disk for later tests and child processes.

  Returns:
    The folder of the cache.
  """
  import jax

  folder = shared_folder(tmp_path_factory) / 'compiled'
  folder.mkdir(exist_ok=True)
  settings = {
    'jax_compilation_cache_dir': str(folder),
    'jax_persistent_cache_min_compile_time_secs': 0.5,
  }
  for name, value in settings.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
  return folder


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
  """The folder of a drawn data set for the recipe `tiny`.

  All tests of all workers share it, so no test may change it.
  """
  import tiny

  from maskrcnn_jax.data.shapes import write_shapes

  folder = shared_folder(tmp_path_factory) / 'shapes'
  with locked(folder.with_suffix('.lock')):
    if not folder.is_dir():
      partial = folder.with_suffix('.partial')
      write_shapes(
        partial,
        num_train=tiny.NUM_TRAIN,
        num_val=tiny.NUM_VAL,
        image_size=64,
        seed=0,
      )
      partial.rename(folder)
  return folder


@pytest.fixture(scope='session')
def tiny_tfds(tmp_path_factory, tiny_data):
  """The tfds_dir with `tiny_data` as the set coco_instances/folder.

  All tests share it, so no test may change it.
  """
  from tfds_sets import build

  out = tmp_path_factory.mktemp('tiny_tfds')
  build(tiny_data, out)
  return out


@pytest.fixture(scope='session')
def tfds_set(tmp_path_factory):
  """A data set with every kind of mask.

  Returns:
    The folder of its COCO files, the tfds_dir that holds it as a set of
    tensorflow-datasets, and the content of its JSON file.
  """
  from tfds_sets import build, write_set

  folder = tmp_path_factory.mktemp('set') / 'own'
  content = write_set(folder)
  out = folder.parent / 'tfds'
  build(folder, out)
  return folder, out, content


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory, tiny_data, compilation_cache):
  """A training and evaluation with the recipe `tiny`.

  All tests of all workers share the workdir, so a test that changes it must
  copy it first.

  Returns:
    The workdir, and the figures of each training step.
  """
  import tiny

  workdir = shared_folder(tmp_path_factory) / 'tiny_run'
  kept = workdir.with_suffix('.pickle')
  with locked(workdir.with_suffix('.lock')):
    # The first worker trains; the others wait for its results.
    if not kept.is_file():
      config = tiny.with_data(tiny.get_config(), tiny_data)
      figures = tiny.run_training(config, workdir, skip_test=False)
      kept.write_bytes(pickle.dumps(figures))
  return workdir, pickle.loads(kept.read_bytes())


@pytest.fixture
def pixel_ranges(monkeypatch):
  """A list to which each decoded image adds the pixel_range that it got."""
  from maskrcnn_jax.data import images

  ranges = []
  decode_image = images.decode_image

  def record(path, **options):
    ranges.append(options.get('pixel_range'))
    return decode_image(path, **options)

  monkeypatch.setattr(images, 'decode_image', record)
  return ranges


@pytest.fixture
def run(monkeypatch, capsys):
  """A function that runs main.py in this process with some arguments.

  It returns the exit status, stdout and stderr.
  """
  from absl.testing import flagsaver

  from maskrcnn_jax import main

  # Log and signal handlers would stay installed after the test.
  monkeypatch.setattr(main, 'set_up_console', lambda: None)
  monkeypatch.setattr(main, '_set_up_ctrl_c', lambda: None)
  # After an error, the program replaces it; the test restores it.
  monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)

  def run_with(*arguments):
    monkeypatch.setattr(sys, 'argv', ['main', *map(str, arguments)])
    capsys.readouterr()
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_:
      main.run()
    out, err = capsys.readouterr()
    return exit_.value.code, out, err

  return run_with


@pytest.fixture
def refuse(run):
  """A function that runs main.py with wrong arguments or input.

  It checks that the program ends with a status and without a traceback, and
  returns the line of stderr with the error.
  """

  def refuse_with(*arguments, status=2):
    code, out, err = run(*arguments)
    assert code == status, err
    assert 'Traceback' not in out + err
    (line,) = (line for line in err.splitlines() if line.startswith('error: '))
    return line

  return refuse_with
