"""Tests of training: exact resumes, initial weights, numbers not finite."""

import contextlib
import gzip
import json
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_array_equal
import optax
import pytest
import tiny

from maskrcnn_jax.config import plain
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.data import coco
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint
from maskrcnn_jax.runtime.precision import set_precision
from maskrcnn_jax.training.run import train
from maskrcnn_jax.training.start import _other_classes
from maskrcnn_jax.training.state import initial_state
from maskrcnn_jax.training.step import image_keys

ROOT = pathlib.Path(__file__).parents[2]
FROZEN = ('model/params/backbone/conv1/', 'model/params/backbone/layer1/')
CLASS_LAYERS = (
  'box_head/bbox_pred',
  'box_head/cls_score',
  'mask_head/mask_fcn_logits',
)

pytestmark = pytest.mark.usefixtures('compilation_cache')


def initial_arrays(config, num_classes=4):
  """Returns the model before the first step, with names of `saved_arrays`."""
  rcnn = Rcnn.from_config(
    config, num_classes=num_classes, dtype=set_precision(config.precision)
  )
  state = initial_state(rcnn, optax.identity(), config)
  return {
    f'model/{name}': np.asarray(leaf)
    for name, leaf in checkpoint.named_leaves(
      {'params': state.params, 'constants': state.constants}
    ).items()
  }


def edit_annotations(data, target, change):
  """Writes a changed copy of the training annotations; returns its path."""
  content = json.loads((data / 'instances_train.json').read_text())
  change(content)
  target.write_text(json.dumps(content))
  return str(target)


def test_train_resumed_and_extended_equals_never_stopped(
  tiny_run, config, tmp_path
):
  straight, figures = tiny_run
  config.train.num_steps = 2
  first = tiny.run_training(config, tmp_path)
  config.train.num_steps = 4
  second = tiny.run_training(config, tmp_path)
  assert [len(first), len(second)] == [2, 2]
  assert first + second == figures
  for step in (2, 4):
    tiny.assert_same_arrays(
      tiny.saved_arrays(tmp_path, step), tiny.saved_arrays(straight, step)
    )


def test_train_learns_in_every_step(tiny_run):
  workdir, figures = tiny_run
  two, four = (tiny.saved_arrays(workdir, step) for step in (2, 4))
  # All figures are finite, and no two steps have the same loss.
  assert len({step['loss'] for step in figures}) == 4
  assert np.isfinite([list(step.values()) for step in figures]).all()
  same = {k for k in two if np.array_equal(two[k], four[k])}
  fixed = {k for k in two if k.startswith((*FROZEN, 'model/constants/'))}
  # Biases of the first convolutions may stay the same if a ReLU is dead, but
  # all kernels change.
  assert {k for k in same - fixed if k.endswith('kernel')} == set()


def test_train_leaves_frozen_stages_and_constants_alone(tiny_run, config):
  before = initial_arrays(config)
  after = tiny.saved_arrays(tiny_run[0], 4)
  fixed = [k for k in before if k.startswith((*FROZEN, 'model/constants/'))]
  assert any(k.startswith(FROZEN[0]) for k in fixed)
  assert any(k.startswith(FROZEN[1]) for k in fixed)
  assert any(k.startswith('model/constants/') for k in fixed)
  for name in fixed:
    assert_array_equal(before[name], after[name], err_msg=name)


def test_the_total_loss_is_the_sum_of_the_five(tiny_run):
  for figures in tiny_run[1]:
    parts = [v for k, v in figures.items() if k.startswith('loss_')]
    assert len(parts) == 5
    assert figures['loss'] == pytest.approx(sum(parts), rel=1e-6)


@pytest.mark.slow
def test_profile_steps_writes_a_trace(config, tmp_path, idle_step):
  tiny.run_training(config, tmp_path, profile_steps=range(1, 3))
  (trace,) = (tmp_path / 'profile').rglob('perfetto_trace.json.gz')
  events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
  assert any(event.get('ph') == 'X' for event in events)
  assert len(list((tmp_path / 'profile').rglob('*.xplane.pb'))) == 1
  assert 'Traced steps 1 to 2: ' in (tmp_path / 'log.txt').read_text()


@pytest.mark.usefixtures('idle_step')
def test_train_decodes_with_the_pixel_range(config, tmp_path, pixel_ranges):
  config.data.pixel_range = (0, 4095)
  tiny.run_training(config, tmp_path)
  assert len(pixel_ranges) >= 8  # 4 steps of 2 images
  assert set(pixel_ranges) == {(0, 4095)}


def test_profile_steps_beyond_the_run_are_left_out(config, tmp_path, idle_step):
  tiny.run_training(config, tmp_path, profile_steps=range(90, 93))
  assert not (tmp_path / 'profile').exists()


def test_log_has_a_line_for_each_report_and_each_compilation(tiny_run):
  lines = (tiny_run[0] / 'log.txt').read_text().splitlines()
  assert lines[0].startswith('Training on 8 images of 3 classes, 2 a step on 1')
  assert re.fullmatch(
    r'Static sizes \(images\): 64x64 \(8\); \d\.\d % padding', lines[2]
  )
  figure = r'\d+\.\d{4} \(\d+\.\d{4}\)'
  reports = [line for line in lines if line.startswith('eta: ')]
  for step, line in enumerate(reports, start=1):
    parts = dict(part.split(': ', 1) for part in line.split('  '))
    assert parts['iter'] == str(step)
    assert re.fullmatch(r'\d+:\d\d:\d\d', parts['eta'])
    for name in (
      'loss',
      'loss_box_reg',
      'loss_classifier',
      'loss_mask',
      'loss_objectness',
      'loss_rpn_box_reg',
      'time',
      'data',
    ):
      assert re.fullmatch(figure, parts[name]), name
    assert re.fullmatch(r'\d+', parts['max mem'])
  assert len(reports) == 4
  # The rate starts at a third of 0.01 and rises linearly to 0.01 at step 3.
  assert re.findall(r'lr: (\S+)', '\n'.join(reports)) == [
    '0.003333',
    '0.005556',
    '0.007778',
    '0.010000',
  ]
  assert sum(line.startswith('Compiled the step for') for line in lines) == 1
  assert lines[-3].endswith('; 1 compilations for 1 static sizes')
  assert lines[-2].startswith('Total inference time: ')
  assert re.fullmatch(
    r'Evaluation at step 4: box AP 0\.\d{4}, mask AP 0\.\d{4}', lines[-1]
  )


def test_train_writes_tensorboard_events(tiny_run):
  events = b''.join(
    path.read_bytes() for path in tiny_run[0].glob('events.out.tfevents.*')
  )
  for tag in (b'train/loss_mask', b'train/lr', b'eval/bbox_AP'):
    assert tag in events


def read_metrics(workdir):
  text = (workdir / 'metrics.jsonl').read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


def test_metrics_have_a_line_for_each_report_and_evaluation(tiny_run):
  workdir, figures = tiny_run
  *reports, evaluated = read_metrics(workdir)
  assert [(r['step'], r['kind']) for r in reports] == [
    (step, 'train') for step in (1, 2, 3, 4)
  ]
  # A report has the median of the losses so far.
  assert [r['loss'] for r in reports] == [
    statistics.median(f['loss'] for f in figures[: step + 1])
    for step in range(4)
  ]
  assert (evaluated['step'], evaluated['kind']) == (4, 'eval')
  (stored,) = json.loads((workdir / 'evaluations.json').read_text())
  assert evaluated['bbox_AP'] == stored['box_ap']
  assert evaluated['segm_AP'] == stored['mask_ap']


def test_a_run_goes_on_with_the_recipe_that_it_wrote(
  config, tmp_path, idle_step
):
  # The recipe is for 1 image a step, so that rate and steps are scaled.
  config.train.reference_batch_size = 1
  config.train.num_steps = 8
  tiny.run_training(config, tmp_path / 'run')
  file = tmp_path / 'run' / 'config.yaml'
  written = read_recipe(str(file)).config
  assert written.train.num_steps == 4
  assert written.optimizer.learning_rate == 2 * config.optimizer.learning_rate
  assert plain(written) == read_metadata_of(tmp_path / 'run').recipe
  # It is not scaled again, and the values of the run are not refused.
  written.train.num_steps = 6
  tiny.run_training(written, tmp_path / 'run')
  assert [line['step'] for line in read_metrics(tmp_path / 'run')] == [
    *range(1, 7)
  ]
  assert read_recipe(str(file)).config.to_dict() == written.to_dict()


def read_metadata_of(workdir):
  return checkpoint.read_metadata(checkpoint.find_checkpoint(workdir))


def test_train_keeps_the_newest_checkpoints(tiny_run):
  assert checkpoint.saved_steps(tiny_run[0] / 'checkpoints') == [2, 4]


def test_a_finished_run_trains_no_more(workdir, config):
  before = tiny.saved_arrays(workdir, 4)
  assert tiny.run_training(config, workdir) == []
  tiny.assert_same_arrays(tiny.saved_arrays(workdir, 4), before)


def use_two_sizes(config, target):
  """Makes a recipe train on landscape and portrait images, on two canvases."""
  config.data.long_side = 80
  config.data.padded_sizes = ((64, 64), (64, 96), (96, 64), (640, 640))
  data = pathlib.Path(config.data.train.annotations).parent
  index = coco.read_coco(config.data.train.annotations)
  sizes = zip(index.heights.tolist(), index.widths.tolist(), strict=True)
  ids = {
    id_
    for id_, size in zip(index.image_ids, sizes, strict=True)
    if size in ((64, 80), (80, 64))
  }

  def leave_out_squares(content):
    content['images'] = [i for i in content['images'] if i['id'] in ids]
    content['annotations'] = [
      a for a in content['annotations'] if a['image_id'] in ids
    ]

  config.data.train.annotations = edit_annotations(
    data, target, leave_out_squares
  )
  config.train.num_steps = 6
  config.train.checkpoint_every = 6


def test_train_compiles_once_for_each_static_size(config, tmp_path, idle_step):
  use_two_sizes(config, tmp_path / 'two_sizes.json')
  tiny.run_training(config, tmp_path / 'run')
  assert sorted(idle_step.padded_sizes) == [(64, 96), (96, 64)]
  text = (tmp_path / 'run' / 'log.txt').read_text()
  assert len(re.findall('Compiled the step for', text)) == 2
  assert '; 2 compilations for 2 static sizes' in text


@pytest.mark.slow
def test_train_goes_from_size_to_size(config, tmp_path):
  use_two_sizes(config, tmp_path / 'two_sizes.json')
  figures = tiny.run_training(config, tmp_path / 'run')
  assert len({step['loss'] for step in figures}) == 6
  text = (tmp_path / 'run' / 'log.txt').read_text()
  assert '; 2 compilations for 2 static sizes' in text


def test_train_with_empty_and_crowd_only_images(config, tiny_data, tmp_path):
  """One batch has objects; the other batches have none."""

  def empty_most(content):
    first = content['images'][0]['id']
    crowded = content['images'][1]['id']
    crowd = next(a for a in content['annotations'] if a['image_id'] == crowded)
    content['annotations'] = [
      a for a in content['annotations'] if a['image_id'] == first
    ] + [crowd | {'iscrowd': 1}]

  config.data.train.annotations = edit_annotations(
    tiny_data, tmp_path / 'empty.json', empty_most
  )
  figures = tiny.run_training(config, tmp_path / 'run')
  assert np.isfinite([list(step.values()) for step in figures]).all()
  with_objects = [step['loss_mask'] > 0 for step in figures]
  # Four steps of two images are one epoch of the eight images.
  assert sum(with_objects) == 1
  for step in figures:
    if step['loss_mask'] == 0:
      assert step['loss_box_reg'] == 0
      assert step['loss_rpn_box_reg'] == 0
      assert step['loss_classifier'] > 0
      assert step['loss_objectness'] > 0


@pytest.mark.slow
def test_train_stops_at_numbers_that_are_not_finite(config, tmp_path):
  config.optimizer.learning_rate = 1e12
  config.optimizer.warmup_steps = 0
  config.train.checkpoint_every = 1
  with pytest.raises(FloatingPointError) as error:
    tiny.run_training(config, tmp_path)
  message = str(error.value)
  step = int(re.search(r' at step (\d+) ', message).group(1))
  assert re.match(r'C04: (loss|grad)\w* is (nan|inf)', message)
  assert 'learning rate 1e+12' in message
  ids = json.loads(re.search(r'images (\[.*?\])', message).group(1))
  assert len(ids) == 2
  assert set(ids) <= set(range(1, tiny.NUM_TRAIN + 1))
  assert message in (tmp_path / 'log.txt').read_text()
  # No state with such numbers has been saved.
  assert step > 0
  saved = checkpoint.saved_steps(tmp_path / 'checkpoints')
  assert saved == list(range(1, step + 1))[-3:]
  for name, array in tiny.saved_arrays(tmp_path, saved[-1]).items():
    assert np.isfinite(array).all(), name


def test_train_names_the_terms_that_are_not_finite(tiny_run, config, tmp_path):
  tiny.save_with_value(
    tiny_run[0], tmp_path / 'bad', 'mask_fcn_logits', tiny.TOO_LARGE
  )
  with pytest.raises(FloatingPointError) as error:
    tiny.run_training(config, tmp_path / 'run', init_from=tmp_path / 'bad')
  message = str(error.value)
  assert 'loss_mask is nan' in message
  assert 'at step 0 ' in message
  for name in ('loss_box_reg', 'loss_classifier', 'loss_objectness'):
    assert name not in message
  assert checkpoint.saved_steps(tmp_path / 'run' / 'checkpoints') == []


def test_resume_with_another_recipe_says_what_differs(workdir, config):
  config.optimizer.learning_rate = 0.5
  config.roi.num_samples = 8
  config.train.num_steps = 6
  with pytest.raises(InputError) as error:
    train(config, workdir, skip_test=True)
  message = str(error.value)
  assert 'optimizer.learning_rate: 0.5 | 0.01' in message
  assert 'roi.num_samples: 8 | 16' in message
  assert 'num_steps' not in message


def test_resume_on_other_objects_is_refused(workdir, config, tmp_path):
  config.data.train.annotations = edit_annotations(
    pathlib.Path(config.data.train.annotations).parent,
    tmp_path / 'less.json',
    lambda content: content['annotations'].pop(),
  )
  config.train.num_steps = 6
  with pytest.raises(InputError, match='another --workdir'):
    train(config, workdir, skip_test=True)


def test_resume_on_the_same_data_elsewhere_goes_on(
  workdir, config, tiny_data, tmp_path
):
  moved = shutil.copytree(tiny_data, tmp_path / 'moved')
  tiny.with_data(config, moved)
  config.train.num_steps = 5
  assert len(tiny.run_training(config, workdir)) == 1


def test_resume_to_fewer_steps_is_refused(workdir, config):
  config.train.num_steps = 3
  with pytest.raises(InputError, match='has 4 steps, more than'):
    train(config, workdir, skip_test=True)


def test_no_resume_refuses_a_workdir_with_a_checkpoint(workdir, config):
  with pytest.raises(InputError, match='already holds a checkpoint of step 4'):
    train(config, workdir, skip_test=True, resume=False)


def test_resume_beside_an_older_step_that_is_half_deleted(workdir, config):
  """A run leaves such a step if it is killed while it removes a checkpoint."""
  shutil.rmtree(workdir / 'checkpoints' / '2' / 'model')
  config.train.num_steps = 5
  assert len(tiny.run_training(config, workdir)) == 1
  assert checkpoint.saved_steps(workdir / 'checkpoints')[-2:] == [4, 5]


def saved_model(workdir, step):
  arrays = tiny.saved_arrays(workdir, step)
  return {k: v for k, v in arrays.items() if k.startswith('model/')}


@pytest.mark.usefixtures('idle_step')
def test_init_from_takes_all_weights(tiny_run, config, tmp_path):
  tiny.run_training(config, tmp_path, init_from=tiny_run[0])
  tiny.assert_same_arrays(saved_model(tmp_path, 4), saved_model(tiny_run[0], 4))


@pytest.mark.usefixtures('idle_step')
def test_init_from_starts_a_schedule_and_an_optimizer_of_its_own(
  tiny_run, config, tmp_path
):
  figures = tiny.run_training(config, tmp_path, init_from=tiny_run[0])
  assert len(figures) == 4
  arrays = tiny.saved_arrays(tmp_path, 4)
  momentum = [
    v for k, v in arrays.items() if k.startswith('optimizer/momentum/')
  ]
  assert momentum
  assert not any(array.any() for array in momentum)


@pytest.mark.usefixtures('idle_step')
def test_init_from_other_classes_starts_their_layers_afresh(
  tiny_run, config, tiny_data, tmp_path
):
  config.data.train.annotations = edit_annotations(
    tiny_data,
    tmp_path / 'four.json',
    lambda content: content['categories'].append({'id': 99, 'name': 'star'}),
  )
  tiny.run_training(config, tmp_path / 'run', init_from=tiny_run[0])
  taken = saved_model(tiny_run[0], 4)
  fresh = initial_arrays(config, num_classes=5)
  seen = set()
  for name, array in saved_model(tmp_path / 'run', 4).items():
    layer = next((x for x in CLASS_LAYERS if f'/{x}/' in name), None)
    seen.add(layer)
    assert_array_equal(array, (fresh if layer else taken)[name], err_msg=name)
  assert seen == {None, *CLASS_LAYERS}


@pytest.mark.usefixtures('idle_step')
@pytest.mark.parametrize(
  'changed',
  [
    'names',
    pytest.param('order', marks=pytest.mark.slow),
    pytest.param('ids', marks=pytest.mark.slow),
  ],
)
def test_init_from_as_many_other_classes_starts_their_layers_afresh(
  tiny_run, config, tiny_data, tmp_path, caplog, changed
):
  def change(content):
    first, second, third = content['categories']
    match changed:
      case 'names':
        second['name'] = 'star'
      case 'order':
        first['name'], third['name'] = third['name'], first['name']
      case 'ids':
        for category in (first, second, third):
          category['id'] += 100
        for annotation in content['annotations']:
          annotation['category_id'] += 100

  config.data.train.annotations = edit_annotations(
    tiny_data, tmp_path / 'other.json', change
  )
  with caplog.at_level('INFO', 'absl'):
    tiny.run_training(config, tmp_path / 'run', init_from=tiny_run[0])
  taken, fresh = saved_model(tiny_run[0], 4), initial_arrays(config)
  for name, array in saved_model(tmp_path / 'run', 4).items():
    is_fresh = changed != 'ids' and any(f'/{x}/' in name for x in CLASS_LAYERS)
    assert_array_equal(
      array, (fresh if is_fresh else taken)[name], err_msg=name
    )
  line = [x for x in caplog.messages if x.startswith('The classes are not')]
  assert len(line) == (changed != 'ids')
  if changed == 'names':
    assert "2: 'star' | " in line[0]


def test_other_classes_go_by_their_names_in_order():
  here = [[1, 'a'], [2, 'b']]
  assert _other_classes(here, [[7, 'a'], [9, 'b']]) == []
  assert _other_classes(here, [[1, 'b'], [2, 'a']]) == [
    "1: 'a' | 'b'",
    "2: 'b' | 'a'",
  ]
  assert _other_classes(here, [[1, 'a']]) == ["2: 'b' | 'nothing'"]
  # A backbone has no classes, and a converted file may not name its classes.
  assert _other_classes(here, []) == []
  assert _other_classes(here, [[1, 'class 1'], [2, 'class 2']]) == []


def test_init_from_another_architecture_is_refused(tiny_run, config, tmp_path):
  config.model.box_features = 64
  with pytest.raises(InputError, match=r'does not fit this model: .*box_head'):
    train(config, tmp_path, init_from=tiny_run[0], skip_test=True)


def save_backbone(workdir, target, config, *, without=None):
  """Saves the backbone of a run as a checkpoint; returns its arrays.

  Arrays with `without` in their name are left out.
  """
  taken = {
    name.removeprefix('model/'): array
    for name, array in saved_model(workdir, 4).items()
    if '/backbone/' in name and not (without and without in name)
  }
  with contextlib.closing(checkpoint.open_checkpoints(target)) as manager:
    checkpoint.save_checkpoint(
      manager,
      model=checkpoint.nested(taken),
      optimizer=None,
      metadata=checkpoint.Metadata(0, config, [], is_partial=True),
    )
    manager.wait_until_finished()
  return taken


@pytest.mark.usefixtures('idle_step')
def test_init_from_a_backbone_starts_the_rest_afresh(
  tiny_run, config, tmp_path, caplog
):
  taken = save_backbone(
    tiny_run[0],
    tmp_path / 'backbone',
    plain(config) | {'geometry': 'other'},
  )
  with caplog.at_level('WARNING', 'absl'):
    tiny.run_training(config, tmp_path / 'run', init_from=tmp_path / 'backbone')
  assert 'geometry: modern | other' in caplog.text
  fresh = initial_arrays(config)
  for name, array in saved_model(tmp_path / 'run', 4).items():
    wanted = taken.get(name.removeprefix('model/'), fresh[name])
    assert_array_equal(array, wanted, err_msg=name)


@pytest.mark.usefixtures('idle_step')
@pytest.mark.parametrize(
  ('source', 'freeze_at', 'warns'),
  [
    ('nothing', 2, True),
    pytest.param('nothing', 0, False, marks=pytest.mark.slow),
    pytest.param('a run', 2, False, marks=pytest.mark.slow),
    ('a backbone', 2, False),
    ('a part of a backbone', 2, True),
  ],
)
def test_stages_that_are_frozen_and_random_are_warned_of(
  tiny_run, config, tmp_path, caplog, source, freeze_at, warns
):
  config.freeze_at = freeze_at
  init_from = {'nothing': None, 'a run': tiny_run[0]}.get(
    source, tmp_path / 'backbone'
  )
  if 'backbone' in source:
    save_backbone(
      tiny_run[0],
      tmp_path / 'backbone',
      plain(config),
      without='/layer1/' if 'part' in source else None,
    )
  with caplog.at_level('WARNING', 'absl'):
    tiny.run_training(config, tmp_path / 'run', init_from=init_from)
  lines = [x for x in caplog.messages if x.startswith('FROZEN AND RANDOM')]
  assert len(lines) == warns
  if warns:
    assert 'backbone/layer1 start with random weights' in lines[0]
    assert ('backbone/conv1' in lines[0]) == (source == 'nothing')
    assert '--init_from=CHECKPOINT' in lines[0]
    assert '--config.freeze_at=0' in lines[0]


def test_init_from_a_part_of_another_architecture_is_refused(
  tiny_run, config, tmp_path
):
  save_backbone(tiny_run[0], tmp_path / 'backbone', plain(config))
  config.model.width = 4
  with pytest.raises(InputError, match=r'does not fit this model: .*backbone'):
    train(
      config,
      tmp_path / 'run',
      init_from=tmp_path / 'backbone',
      skip_test=True,
    )


def test_a_resumed_run_ignores_init_from(workdir, config, tmp_path):
  # A user who gives the same command again repeats --init_from too.
  assert tiny.run_training(config, workdir, init_from=tmp_path / 'gone') == []


def test_image_keys_depend_on_seed_step_and_row_alone():
  keys = jax.random.key_data(image_keys(3, jnp.int32(7), 4))
  more = jax.random.key_data(image_keys(3, jnp.int32(7), 8))
  assert_array_equal(keys, more[:4])
  others = [(3, 8), (4, 7)]
  for seed, step in others:
    other = jax.random.key_data(image_keys(seed, jnp.int32(step), 4))
    assert (other != keys).any(axis=-1).all()
  assert len(np.unique(keys.reshape(-1, keys.shape[-1]), axis=0)) == 12


def test_the_class_table_of_the_evaluation_set_is_checked_first(
  config, tiny_data, tmp_path
):
  content = json.loads((tiny_data / 'instances_val.json').read_text())
  content['categories'][0]['name'] = 'circle'
  config.data.eval.annotations = str(tmp_path / 'val.json')
  (tmp_path / 'val.json').write_text(json.dumps(content))
  with pytest.raises(InputError, match="A21: .*'circle'"):
    train(config, tmp_path / 'run')


COMMAND = [sys.executable, '-m', 'maskrcnn_jax.main', '--config=tests/tiny.py']


def start(workdir, data, *options):
  return subprocess.Popen(
    [
      *COMMAND,
      f'--workdir={workdir}',
      '--skip_test',
      *tiny.data_flags(data),
      *options,
    ],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )


def kill_when(process, condition):
  """Kills a process as soon as a condition holds.

  Returns False if the process has ended before.
  """
  deadline = time.monotonic() + 300
  while not condition():
    if process.poll() is not None:
      return False
    assert time.monotonic() < deadline
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_given_again_ends_the_same(tiny_data, tmp_path):
  steps = ('--config.train.num_steps=12', '--config.train.keep_checkpoints=2')
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  assert start(straight, tiny_data, *steps).wait() == 0
  saved = killed / 'checkpoints'
  moments = (
    # The first checkpoint is being written.
    lambda: list(saved.glob('2.*tmp*')),
    # The run is between two checkpoints.
    lambda: (saved / '4').exists(),
    # An old checkpoint is being removed.
    lambda: (saved / '8').exists() and not (saved / '4').exists(),
    # The last checkpoint is being written.
    lambda: list(saved.glob('12.*tmp*')),
  )
  kills = sum(
    kill_when(start(killed, tiny_data, *steps), moment) for moment in moments
  )
  assert kills >= 3
  assert start(killed, tiny_data, *steps).wait() == 0
  assert checkpoint.saved_steps(saved)[-1] == 12
  tiny.assert_same_arrays(
    tiny.saved_arrays(killed, 12), tiny.saved_arrays(straight, 12)
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {'scale_jitter': (0.1, 2.0), 'color_jitter': (0.4, 0.4, 0.4)},
    {'short_sides': (48, 64)},
    # The host resizes all pictures.
    {'short_sides': (24, 32), 'max_source_side': 40},
  ],
)
def test_training_with_augmentation_is_finite_and_repeats(
  changes, tiny_data, tmp_path, compilation_cache
):
  config = tiny.with_data(tiny.get_config(), tiny_data)
  config.data.update(changes)
  config.train.num_steps = 2
  figures = [tiny.run_training(config, tmp_path / name) for name in ('a', 'b')]
  assert figures[0] == figures[1]
  assert all(np.isfinite(x) for step in figures[0] for x in step.values())
  text = (tmp_path / 'a' / 'log.txt').read_text()
  assert ('they are shrunk while they are read' in text) == (
    'max_source_side' in changes
  )
