"""Tests of checkpoints: saving, restoring, and refusing damaged ones."""

import contextlib
import gc
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_array_equal
import optax
import pytest

from maskrcnn_jax.errors import DamagedCheckpoint, InputError, SaveError
from maskrcnn_jax.runtime import checkpoint, run_checkpoints
from maskrcnn_jax.runtime.checkpoint import Metadata

CONFIG = {'seed': 0, 'anchors': {'ratios': [0.5, 1.0]}, 'none': None}
CATEGORIES = [[1, 'cat'], ['x7', 'dög']]

# If one array is damaged, orbax never awaits the reads of the other arrays.
leaves_tasks_behind = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning',
  'ignore::pytest.PytestUnhandledThreadExceptionWarning',
  'ignore:coroutine .* was never awaited:RuntimeWarning',
)


def make_model():
  # Random numbers, because constant ones would be compressed to almost nothing,
  # and no file would be large enough to be damaged.
  random = np.random.default_rng(0)
  return {
    'params': {
      'conv': {
        'kernel': jnp.asarray(random.random((2, 1024), np.float32)),
        'bias': jnp.arange(3.0),
      },
    },
    'constants': {'mean': jnp.ones(2)},
  }


def make_optimizer_state():
  return optax.sgd(0.1, momentum=0.9).init(make_model()['params'])


def save(directory, *steps):
  manager = checkpoint.open_checkpoints(directory)
  for step in steps:
    checkpoint.save_checkpoint(
      manager,
      model=make_model(),
      optimizer=make_optimizer_state(),
      metadata=Metadata(step, CONFIG, CATEGORIES),
    )
  manager.wait_until_finished()
  manager.close()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A workdir with the steps 5 and 20, which tests must not change."""
  workdir = tmp_path_factory.mktemp('run')
  save(workdir / 'checkpoints', 5, 20)
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  """A copy of the workdir `saved`, which a test may change."""
  return shutil.copytree(saved, tmp_path / 'run')


def assert_trees_equal(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    assert_array_equal(a, b)


def test_restoring_returns_the_saved_arrays_and_metadata(saved):
  path = checkpoint.find_checkpoint(saved)
  assert_trees_equal(checkpoint.restore_model(path, make_model()), make_model())
  state = make_optimizer_state()
  assert_trees_equal(checkpoint.restore_optimizer(path, state), state)
  assert checkpoint.read_metadata(path) == Metadata(20, CONFIG, CATEGORIES)


def test_restore_model_fills_shapes_alone(saved):
  shapes = jax.eval_shape(make_model)
  path = checkpoint.find_checkpoint(saved)
  assert_trees_equal(checkpoint.restore_model(path, shapes), make_model())


def test_restore_model_does_without_the_optimizer(workdir):
  path = checkpoint.find_checkpoint(workdir)
  shutil.rmtree(path / 'optimizer')
  assert_trees_equal(checkpoint.restore_model(path, make_model()), make_model())
  with pytest.raises(InputError, match='optimizer'):
    checkpoint.restore_optimizer(path, make_optimizer_state())


def test_model_shapes_has_all_leaves(saved):
  assert checkpoint.model_shapes(checkpoint.find_checkpoint(saved)) == {
    'constants/mean': (2,),
    'params/conv/bias': (3,),
    'params/conv/kernel': (2, 1024),
  }


def test_steps_that_reuse_the_memory_of_a_state_do_not_change_its_save(
  tmp_path,
):
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  weights = step(jnp.zeros((2000, 2000)))  # 16 MB, which take a while to write.
  manager = checkpoint.open_checkpoints(tmp_path)
  checkpoint.save_checkpoint(
    manager,
    model={'w': weights},
    optimizer={'v': jnp.zeros(1)},
    metadata=Metadata(1, {}, []),
  )
  for _ in range(20):
    weights = step(weights)
  manager.wait_until_finished()
  manager.close()
  restored = checkpoint.restore_model(tmp_path / '1', {'w': weights})
  assert float(restored['w'].min()) == float(restored['w'].max()) == 1


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda conv: conv.update(bias=jnp.zeros(4)),
      r'params/conv/bias is float32 \(3,\) there, float32 \(4,\) here',
    ),
    (
      lambda conv: conv.update(bias=jnp.zeros((3, 1))),
      r'params/conv/bias is float32 \(3,\) there, float32 \(3, 1\) here',
    ),
    (
      lambda conv: conv.update(bias=jnp.zeros(3, jnp.bfloat16)),
      r'params/conv/bias is float32 \(3,\) there, bfloat16 \(3,\) here',
    ),
    (
      lambda conv: conv.update(scale=jnp.zeros(3)),
      r'params/conv/scale is missing there',
    ),
    (
      lambda conv: conv.pop('bias'),
      r'params/conv/bias is not known here',
    ),
  ],
  ids=['length', 'rank', 'dtype', 'missing', 'unknown'],
)
def test_restore_model_names_the_leaf_that_does_not_fit(saved, change, message):
  target = make_model()
  change(target['params']['conv'])
  with pytest.raises(InputError, match=message):
    checkpoint.restore_model(checkpoint.find_checkpoint(saved), target)


def test_restore_optimizer_refuses_another_optimizer(saved):
  target = optax.adam(0.1).init(make_model()['params'])
  with pytest.raises(InputError, match='0/mu/conv/bias is missing there'):
    checkpoint.restore_optimizer(checkpoint.find_checkpoint(saved), target)


def test_compare_trees_shows_the_first_ten():
  stored = {f'w{i:02}': (1,) for i in range(13)}
  expected = {f'w{i:02}': (2,) for i in range(13)}
  text = checkpoint.compare_trees(stored, expected)
  assert text.startswith('w00 is (1,) there, (2,) here; w01 is')
  assert text.endswith('w09 is (1,) there, (2,) here; and 3 more')
  assert checkpoint.compare_trees(stored, stored) == ''


def test_find_checkpoint_takes_a_workdir_its_checkpoints_or_a_step(saved):
  newest = saved / 'checkpoints' / '20'
  for path in (saved, saved / 'checkpoints', newest):
    assert checkpoint.find_checkpoint(path) == newest
  older = saved / 'checkpoints' / '5'
  assert checkpoint.find_checkpoint(older) == older


def test_find_checkpoint_takes_the_greatest_step_not_the_last_name(tmp_path):
  save(tmp_path, 9, 10)
  assert checkpoint.find_checkpoint(tmp_path).name == '10'


@pytest.mark.parametrize('kind', ['nothing', 'file', 'empty', 'unrelated'])
def test_find_checkpoint_refuses_a_path_without_a_checkpoint(tmp_path, kind):
  path = tmp_path / 'there'
  match kind:
    case 'file':
      path.write_text('not a directory')
    case 'empty':
      path.mkdir()
    case 'unrelated':
      (path / '2017').mkdir(parents=True)
      (path / 'checkpoints').write_text('a file of that name')
  with pytest.raises(InputError, match=str(path)):
    checkpoint.find_checkpoint(path)


@pytest.mark.parametrize('lacking', ['model', 'metadata'])
def test_a_step_that_lacks_an_item_is_ignored(workdir, lacking):
  shutil.rmtree(workdir / 'checkpoints' / '20' / lacking)
  assert checkpoint.saved_steps(workdir / 'checkpoints') == [5]
  assert checkpoint.find_checkpoint(workdir).name == '5'


def test_a_save_that_was_cut_off_is_ignored_and_cleared_away(workdir):
  directory = workdir / 'checkpoints'
  cut_off = directory / '30.orbax-checkpoint-tmp'
  shutil.copytree(directory / '20', cut_off)
  assert checkpoint.saved_steps(directory) == [5, 20]
  assert checkpoint.find_checkpoint(workdir).name == '20'
  save(directory, 30)
  assert checkpoint.saved_steps(directory) == [5, 20, 30]
  assert not cut_off.exists()


def test_no_run_is_continued_beside_a_step_that_is_not_whole(workdir):
  # Orbax would take step 20 for the newest one and save no earlier step.
  directory = workdir / 'checkpoints'
  shutil.rmtree(directory / '20' / 'metadata')
  with pytest.raises(InputError, match='20 is not a whole checkpoint'):
    checkpoint.open_checkpoints(directory)


def test_saving_an_earlier_step_is_an_error(workdir):
  with pytest.raises(ValueError, match='Step 10 was not saved.*step 20'):
    save(workdir / 'checkpoints', 10)


def save_run(workdir, *steps, keep=2):
  with contextlib.closing(
    run_checkpoints.RunCheckpoints(workdir, keep=keep)
  ) as saved:
    for step in steps:
      saved.save(
        model=make_model(),
        training=make_optimizer_state(),
        metadata=Metadata(step, CONFIG, CATEGORIES),
      )


def test_a_directory_that_vanished_is_named(tmp_path, monkeypatch):
  def fail(*_, **__):
    shutil.rmtree(tmp_path / 'run')
    raise FileNotFoundError(2, 'No such file or directory')

  monkeypatch.setattr(checkpoint, 'save_checkpoint', fail)
  with pytest.raises(SaveError) as error:
    save_run(tmp_path / 'run', 1)
  assert f'{tmp_path}/run/checkpoints no longer exists' in str(error.value)
  assert 'Make room' not in str(error.value)


def test_only_the_newest_steps_are_kept(tmp_path):
  save_run(tmp_path, 1, 2, 3)
  assert checkpoint.saved_steps(tmp_path / 'checkpoints') == [2, 3]


def test_saved_steps_of_a_missing_directory_are_none(tmp_path):
  assert checkpoint.saved_steps(tmp_path / 'none') == []


@leaves_tasks_behind
@pytest.mark.parametrize('damage', ['truncated', 'empty', 'deleted'])
def test_a_damaged_array_is_an_input_error(workdir, damage):
  path = checkpoint.find_checkpoint(workdir)
  largest = max(
    (p for p in (path / 'model').rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  match damage:
    case 'truncated':
      largest.write_bytes(largest.read_bytes()[:1000])
    case 'empty':
      largest.write_bytes(b'')
    case 'deleted':
      largest.unlink()
  with pytest.raises(InputError, match='may be damaged'):
    checkpoint.restore_model(path, make_model())
  gc.collect()


@leaves_tasks_behind
@pytest.mark.filterwarnings('ignore::ResourceWarning')
@pytest.mark.slow
def test_a_flipped_bit_is_found_or_changes_nothing(workdir):
  path = checkpoint.find_checkpoint(workdir)
  files = sorted(p for p in path.rglob('*') if p.is_file())
  sizes = [file.stat().st_size for file in files]
  draw = random.Random(0)
  found = 0
  for _ in range(60):
    (file,) = draw.choices(files, sizes)
    content = bytearray(file.read_bytes())
    before = bytes(content)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    try:
      metadata = checkpoint.read_metadata(path)
      model = checkpoint.restore_model(path, make_model())
      optimizer = checkpoint.restore_optimizer(path, make_optimizer_state())
    except DamagedCheckpoint:
      found += 1
    else:
      # Orbax leaves files behind that it does not read, such as
      # commit_success.txt.
      assert metadata == Metadata(20, CONFIG, CATEGORIES)
      assert_trees_equal(model, make_model())
      assert_trees_equal(optimizer, make_optimizer_state())
    file.write_bytes(before)
  # More than half of the bytes are those of the arrays.
  assert found > 30
  gc.collect()


def rewrite_metadata(path, **changes):
  """Changes the stored metadata as a program without checksums would."""
  file = path / 'metadata' / 'metadata'
  content = json.loads(file.read_text()) | changes
  del content['checksum'], content['array_checksums']
  file.write_text(json.dumps(content))


def test_a_checkpoint_without_checksums_is_loaded_and_named(workdir, caplog):
  path = checkpoint.find_checkpoint(workdir)
  rewrite_metadata(path)
  with caplog.at_level('INFO', 'absl'):
    model = checkpoint.restore_model(path, make_model())
    checkpoint.restore_optimizer(path, make_optimizer_state())
  assert_trees_equal(model, make_model())
  assert caplog.text.count('was saved without checksums') == 1


@pytest.mark.parametrize(
  'changes',
  [
    {'step': '20'},
    {'step': None},
    {'config': []},
    {'categories': 'cat'},
    {'categories': [5]},
    {'categories': [[1, 2]]},
    {'training_set': 3},
    {'is_partial': 0},
  ],
)
def test_read_metadata_refuses_a_wrong_type(workdir, changes):
  path = checkpoint.find_checkpoint(workdir)
  rewrite_metadata(path, **changes)
  with pytest.raises(DamagedCheckpoint, match=f'{[*changes][0]}'):
    checkpoint.read_metadata(path)


@leaves_tasks_behind
@pytest.mark.parametrize('name', ['_METADATA', 'manifest.ocdbt'])
def test_a_damaged_list_of_arrays_is_an_input_error(workdir, name):
  path = checkpoint.find_checkpoint(workdir)
  (path / 'model' / name).write_bytes(b'garbage')
  with pytest.raises(InputError, match='may be damaged'):
    checkpoint.restore_model(path, make_model())
  with pytest.raises(InputError, match='may be damaged'):
    checkpoint.model_shapes(path)
  gc.collect()


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'garbage', 'may be damaged'),
    (b'', 'may be damaged'),
    (b'\xff\xfe', 'may be damaged'),
    (b'{"format": 1, "step": 3}', 'may be damaged'),
    (b'[1]', 'may be damaged'),
    (b'{}', 'may be damaged'),
    (b'{"format": "1", "step": 3}', 'may be damaged'),
    (
      json.dumps({'format': 2, 'step': 3}).encode(),
      'format 2, expected 1',
    ),
  ],
)
def test_read_metadata_refuses_other_content(workdir, content, message):
  path = checkpoint.find_checkpoint(workdir)
  (path / 'metadata' / 'metadata').write_bytes(content)
  with pytest.raises(InputError, match=message):
    checkpoint.read_metadata(path)


def test_read_metadata_refuses_a_missing_file(workdir):
  path = checkpoint.find_checkpoint(workdir)
  (path / 'metadata' / 'metadata').unlink()
  with pytest.raises(InputError, match='may be damaged'):
    checkpoint.read_metadata(path)
