"""What every test file shares."""

import fcntl
import os
import sys

import pytest

# Read once, when jax is first imported; child processes inherit it.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def pytest_configure(config):
  """Compiles quickly, except for the slow tests, which compile as users do."""
  if 'not slow' in config.option.markexpr and 'XLA_FLAGS' not in os.environ:
    # Compiling takes most of the time of the tests, and their arrays are tiny.
    # JAX reads this when it starts; child processes inherit it.
    os.environ['XLA_FLAGS'] = (
      '--xla_backend_optimization_level=0 '
      '--xla_llvm_disable_expensive_passes=true'
    )


@pytest.fixture
def key():
  import jax  # Only now, so that tests without JAX start at once.

  return jax.random.key(0)


@pytest.fixture(scope='session')
def compilation_cache(tmp_path_factory):
  """Keeps what is compiled, for tests and child processes to use again."""
  import jax

  folder = tmp_path_factory.getbasetemp()
  # Under xdist each worker has its own folder in the one they share.
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent
  folder = folder / 'compiled'
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
  """A drawn data set for the recipe `tiny`; not to be changed."""
  import tiny

  from maskrcnn_jax.data.shapes import write_shapes

  folder = tmp_path_factory.mktemp('shapes')
  write_shapes(
    folder,
    num_train=tiny.NUM_TRAIN,
    num_val=tiny.NUM_VAL,
    image_size=64,
    seed=0,
  )
  return folder


@pytest.fixture(scope='session')
def tiny_tfds(tmp_path_factory, tiny_data):
  """The tfds_dir of `tiny_data` as coco_instances/folder; not to be changed."""
  from tfds_sets import build

  out = tmp_path_factory.mktemp('tiny_tfds')
  build(tiny_data, out)
  return out


@pytest.fixture(scope='session')
def tfds_set(tmp_path_factory):
  """A set of every kind of mask: (its folder, the tfds_dir, the JSON)."""
  from tfds_sets import build, write_set

  folder = tmp_path_factory.mktemp('set') / 'own'
  content = write_set(folder)
  out = folder.parent / 'tfds'
  build(folder, out)
  return folder, out, content


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory, tiny_data, compilation_cache):
  """A workdir of the recipe `tiny`, trained and evaluated; and its figures.

  Not to be changed: copy it.
  """
  import tiny

  workdir = tmp_path_factory.mktemp('tiny') / 'run'
  config = tiny.with_data(tiny.get_config(), tiny_data)
  # The second worker to come here finds all compiled.
  with open(compilation_cache / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    return workdir, tiny.run_training(config, workdir, skip_test=False)


@pytest.fixture
def pixel_ranges(monkeypatch):
  """Gives a list that gets the pixel_range of each image that is decoded."""
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
  """Runs the program in this process: (exit status, stdout, stderr)."""
  from absl.testing import flagsaver

  from maskrcnn_jax import main

  # Handlers of the console would outlive the test.
  monkeypatch.setattr(main, '_set_up_console', lambda: None)
  monkeypatch.setattr(main, '_set_up_ctrl_c', lambda: None)

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
  """Runs what is wrong, and returns the one line that says so."""

  def refuse_with(*arguments, status=2):
    code, out, err = run(*arguments)
    assert code == status, err
    assert 'Traceback' not in out + err
    (line,) = (line for line in err.splitlines() if line.startswith('error: '))
    return line

  return refuse_with
