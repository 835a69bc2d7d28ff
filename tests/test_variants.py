"""Tests of complete runs of models without masks, classes or a pyramid."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest
import tiny

from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch
from maskrcnn_jax.config import c4_config
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.data.source import CocoFiles
from maskrcnn_jax.detector import Detector, load_detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.evaluate import evaluate
from maskrcnn_jax.model.mask_rcnn import MaskRCNN
from maskrcnn_jax.prediction.predict import predict
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint
from maskrcnn_jax.runtime.precision import initial_loss_scale
from maskrcnn_jax.training.optimizer import (
  make_recipe_optimizer,
  split_parameters,
)
from maskrcnn_jax.training.run import train
from maskrcnn_jax.training.state import (
  TrainState,
  start_average,
  variables_of,
)
from maskrcnn_jax.training.step import Trainer, train_step

pytestmark = pytest.mark.usefixtures('compilation_cache')


def variant(data, **sizes):
  """Returns the recipe `tiny` with other values for the keys of the model."""
  config = tiny.with_data(tiny.get_config(), data)
  config.model.update(sizes)
  config.train.num_steps = 2
  if config.model.body != 'fpn':
    config.anchors.sizes = ((8.0, 16.0, 32.0),)
  if config.model.body == 'c4':
    config.model.update(box_convs=0, box_fcs=0, mask_convs=0)
    config.roi.box_side = config.roi.mask_side = 6
  check_config(config)
  return config


def read(path):
  return json.loads(path.read_text(encoding='utf-8'))


def run_all(config, workdir, data):
  """Trains, evaluates and predicts.

  Returns:
    The figures of each training step, the names of the files that the
    evaluation wrote, its results, and the predictions.
  """
  figures = tiny.run_training(config, workdir, skip_test=False)
  assert all(np.isfinite(x) for step in figures for x in step.values())
  assert (
    predict(
      load_detector(workdir, None),
      pattern=str(data / 'images'),
      workdir=workdir,
      config=config,
    )
    == 0
  )
  names = {path.name for path in (workdir / 'inference').iterdir()}
  return (
    figures,
    names,
    read(workdir / 'inference' / 'coco_results.json'),
    read(workdir / 'predictions' / 'predictions.json'),
  )


@pytest.mark.parametrize(
  ('sizes', 'losses', 'has_masks'),
  [
    (
      dict(),
      {
        'loss_box_reg',
        'loss_classifier',
        'loss_mask',
        'loss_objectness',
        'loss_rpn_box_reg',
      },
      True,
    ),
    (
      dict(output='boxes'),
      {
        'loss_box_reg',
        'loss_classifier',
        'loss_objectness',
        'loss_rpn_box_reg',
      },
      False,
    ),
    (dict(output='proposals'), {'loss_objectness', 'loss_rpn_box_reg'}, False),
    (
      dict(body='c4', depth=18),
      {
        'loss_box_reg',
        'loss_classifier',
        'loss_mask',
        'loss_objectness',
        'loss_rpn_box_reg',
      },
      True,
    ),
    pytest.param(
      dict(backbone='convnext_tiny', depth=50, width=64),
      {
        'loss_box_reg',
        'loss_classifier',
        'loss_mask',
        'loss_objectness',
        'loss_rpn_box_reg',
      },
      True,
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_variant_has_the_losses_and_detections_of_its_heads(
  tiny_data, sizes, losses, has_masks
):
  config = variant(tiny_data, **sizes)
  config.optimizer.name = 'adamw'
  config.train.ema_decay = 0.9
  check_config(config)
  rcnn = Rcnn.from_config(config, num_classes=4, dtype=jnp.float32)
  _, optimizer = make_recipe_optimizer(config)
  trainer = Trainer.from_config(
    config, rcnn, optimizer, GroundTruthLimits(8, 64, 16, 1)
  )
  batch = made_up_batch(
    image_size=(64, 64),
    batch_size=2,
    num_objects=2,
    max_objects=8,
    num_classes=4,
  )

  def run(key, batch):
    params = rcnn.init(key)
    state = start_average(
      TrainState(
        step=jnp.int32(0),
        params=params['params'],
        constants=params.get('constants', {}),
        optimizer=optimizer.init(
          split_parameters(params['params'], trainer.frozen)[0]
        ),
        loss_scale=initial_loss_scale('fp32'),
        average={},
      ),
      config,
    )
    detector = Detector(rcnn, variables_of(state), config, (), 0)
    return (
      train_step(trainer, state, batch, (64, 64)),
      state,
      detector.detect(batch, padded_size=(64, 64)),
    )

  # Only shapes are computed: compiling and running are for the slow tests.
  (after, figures), before, detections = jax.eval_shape(
    run, jax.random.key(0), batch
  )
  assert figures.keys() - {'loss', 'grad_norm', 'loss_scale', 'skipped'} == (
    losses
  )
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, before)
  assert (detections.masks is not None) == has_masks
  assert detections.boxes.shape[::2] == (2, 4)


@pytest.mark.slow
def test_a_model_of_boxes_trains_and_finds_boxes(tiny_data, tmp_path, capsys):
  config = variant(tiny_data, output='boxes')
  config.eval.proposals = True
  figures, names, results, records = run_all(config, tmp_path, tiny_data)
  assert 'loss_mask' not in figures[0]
  assert 'loss_box_reg' in figures[0]
  assert names == {
    'bbox.json',
    'proposals.json',
    'predictions.npz',
    'coco_results.json',
  }
  assert set(results) == {'bbox', 'proposals', 'step'}
  assert records
  assert not any('segmentation' in record for record in records)
  shapes = checkpoint.model_shapes(checkpoint.find_checkpoint(tmp_path))
  assert {name.split('/')[1] for name in shapes} == {
    'backbone',
    'fpn',
    'rpn',
    'box_head',
  }
  out = capsys.readouterr().out
  assert ' box\n' in out and 'proposals=1000' in out and 'mask' not in out


@pytest.mark.slow
def test_a_model_of_proposals_trains_and_finds_proposals(
  tiny_data, tmp_path, capsys
):
  config = variant(tiny_data, output='proposals')
  figures, names, results, records = run_all(config, tmp_path, tiny_data)
  assert set(figures[0]) == {
    'loss',
    'loss_objectness',
    'loss_rpn_box_reg',
    'grad_norm',
  }
  assert names == {
    'proposals.json',
    'predictions.npz',
    'coco_results.json',
  }
  assert set(results) == {'proposals', 'step'}
  assert {record['category_name'] for record in records} == {'object'}
  assert 'Average Precision' not in capsys.readouterr().out
  # The recall of proposals does not depend on the classes of the model: the
  # same weights with no class at all give the same recall.
  detector = load_detector(tmp_path, None)
  truth = config.data.eval
  recall = evaluate(
    detector._replace(categories=()),
    source=CocoFiles(truth.images, truth.annotations),
    workdir=tmp_path / 'other',
    config=config,
  )['proposals']
  assert recall.stats == results['proposals']['stats']


@pytest.mark.slow
def test_a_c4_model_trains_and_finds_masks(tiny_data, tmp_path):
  config = variant(tiny_data, body='c4', depth=18)
  figures, names, results, records = run_all(config, tmp_path, tiny_data)
  assert figures[0]['loss_mask'] > 0
  assert names == {
    'bbox.json',
    'segm.json',
    'predictions.npz',
    'coco_results.json',
  }
  assert records and all('segmentation' in record for record in records)
  shapes = checkpoint.model_shapes(checkpoint.find_checkpoint(tmp_path))
  assert {name.split('/')[1] for name in shapes} == {
    'backbone',
    'rpn',
    'box_head',
    'mask_head',
  }


@pytest.mark.slow
@pytest.mark.parametrize('body', ['c5', 'dc5'])
def test_a_model_of_the_last_stage_trains_and_finds_masks(
  tiny_data, tmp_path, body
):
  config = variant(tiny_data, body=body, depth=50)
  figures, names, _, records = run_all(config, tmp_path, tiny_data)
  assert figures[0]['loss_mask'] > 0
  assert names == {'bbox.json', 'segm.json', 'coco_results.json'}
  assert records and all('segmentation' in record for record in records)


@pytest.mark.slow
def test_a_convnext_trains_with_adamw_and_finds_masks(tiny_data, tmp_path):
  config = variant(tiny_data, backbone='convnext_tiny', depth=50, width=64)
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 1e-4
  figures, _, _, records = run_all(config, tmp_path, tiny_data)
  assert figures[0]['loss_mask'] > 0
  assert records and all('segmentation' in record for record in records)
  arrays = tiny.saved_arrays(tmp_path, 2)
  assert any('/backbone/layer3/' in name for name in arrays)
  # A continued training restores the averages of Adam.
  config.train.num_steps = 4
  assert len(tiny.run_training(config, tmp_path)) == 2


def test_canvas_does_not_matter_to_the_anchors_of_a_c4_model():
  # An image of 40 x 33 pixels has 3 x 3 cells of 16 pixels on every canvas.
  from maskrcnn_jax.config import geometry_of
  from maskrcnn_jax.ops.anchors import anchors_in_image, make_anchors

  config = c4_config()
  for geometry in ('modern', 'legacy'):
    config.geometry = geometry
    rcnn = Rcnn.from_config(config, num_classes=4, dtype=jnp.float32)
    levels, fit_to = rcnn.anchors((64, 96), jnp.array([40, 33]))
    (anchors,) = make_anchors(levels, fit_to=fit_to)
    assert anchors.shape == (4 * 6 * 15, 4)
    inside = anchors_in_image(
      anchors,
      jnp.array([40, 33]),
      padding_multiple=geometry_of(config).padding_multiple,
    )
    expected = np.zeros((4, 6, 15), bool)
    expected[:3, :3] = True
    assert_array_equal(inside, expected.ravel())


def test_c4_heads_see_the_last_stage_of_the_resnet():
  model = MaskRCNN(
    num_classes=3,
    body='c4',
    depth=50,
    width=4,
    box_fcs=0,
    mask_convs=0,
    mask_channels=4,
    anchors_per_cell=15,
  )
  images = jnp.zeros((1, 64, 64, 3))
  rng = np.random.default_rng(0)
  # All values are positive, because variances must be.
  variables = jax.tree.map(
    lambda x: rng.uniform(0.01, 0.1, x.shape).astype(np.float32),
    jax.eval_shape(model.init, jax.random.key(0), images),
  )
  pooled = jax.random.normal(jax.random.key(1), (1, 2, 14, 14, 64))
  seen = jax.jit(
    functools.partial(model.apply, method=lambda m, x: m.backbone.last_stage(x))
  )(variables, pooled[0])
  assert seen.shape == (2, 7, 7, 128)
  head = variables['params']['box_head']['cls_score']
  class_logits, _ = jax.jit(functools.partial(model.apply, method='classify'))(
    variables, pooled
  )
  expected = seen.mean(axis=(1, 2)) @ head['kernel'] + head['bias']
  assert_allclose(
    class_logits[0], expected, rtol=1e-5, atol=1e-5 * abs(expected).max()
  )

  def shapes_of(method, x):
    return jax.tree.map(
      jnp.shape,
      jax.eval_shape(
        functools.partial(model.apply, method=method), variables, x
      ),
    )

  assert shapes_of('segment', pooled) == (1, 2, 14, 14, 3)
  assert shapes_of('extract', images) == {4: (1, 4, 4, 64)}


@pytest.mark.parametrize(
  'sizes',
  [
    dict(output='mask'),
    dict(body='c6'),
    dict(body='dc5', depth=18),
    dict(norm='batch'),
    dict(depth=18, groups=32),
    dict(rpn_convs=0),
    dict(body='c4'),
  ],
)
def test_a_model_that_does_not_exist_is_refused(sizes):
  config = tiny.get_config()
  config.model.update(sizes)
  with pytest.raises(InputError, match=r'^C05: config\.'):
    check_config(config)


def save_model(config, num_classes, target):
  """Saves a checkpoint with random weights and returns {name: array}."""
  config.model.width = 8
  rcnn = Rcnn.from_config(config, num_classes=num_classes, dtype=jnp.float32)
  shapes = jax.eval_shape(rcnn.init, jax.random.key(0))
  rng = np.random.default_rng(1)
  leaves = {
    name: rng.normal(size=x.shape).astype(np.float32)
    for name, x in checkpoint.named_leaves(shapes).items()
  }
  manager = checkpoint.open_checkpoints(target)
  checkpoint.save_checkpoint(
    manager,
    model=checkpoint.nested(leaves),
    optimizer=None,
    metadata=checkpoint.Metadata(
      0,
      json.loads(config.to_json()),
      [[i, f'class {i}'] for i in range(1, num_classes)],
    ),
  )
  manager.close()
  return leaves


@pytest.mark.parametrize(
  ('here', 'there', 'afresh', 'unused'),
  [
    pytest.param(
      dict(), dict(output='boxes'), {'mask_head'}, set(), marks=pytest.mark.slow
    ),
    (dict(), dict(output='proposals'), {'box_head', 'mask_head'}, set()),
    (dict(output='boxes'), dict(), set(), {'mask_head'}),
    (
      dict(body='c4'),
      dict(body='c4', output='proposals'),
      {'backbone/layer4', 'box_head', 'mask_head'},
      set(),
    ),
    pytest.param(
      dict(norm='frozen_batch_all', rpn_convs=2, box_convs=2),
      dict(norm='frozen_batch_all', rpn_convs=2, box_convs=2),
      set(),
      set(),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      dict(depth=50, groups=4, group_width=16),
      dict(depth=50, groups=4, group_width=16),
      set(),
      set(),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_init_from_takes_all_weights_but_class_layers_and_missing_heads(
  tiny_data, tmp_path, monkeypatch, here, there, afresh, unused
):
  theirs = variant(tiny_data, **there)
  # The checkpoint has six classes, the training three.
  leaves = save_model(theirs, 7, tmp_path / 'theirs')
  config = variant(tiny_data, **here)
  monkeypatch.setattr(
    'maskrcnn_jax.training.run.jit_train_step', lambda _: tiny.IdleStep()
  )
  train(
    config, tmp_path / 'run', init_from=tmp_path / 'theirs/0', skip_test=True
  )
  found = {
    name.removeprefix('model/'): array
    for name, array in tiny.saved_arrays(tmp_path / 'run', 2).items()
    if name.startswith('model/')
  }
  layers = ('cls_score', 'box_head/bbox_pred', 'mask_fcn_logits')
  for name, array in found.items():
    is_fresh = any(f'/{part}/' in name for part in (*layers, *afresh))
    taken = (
      name in leaves
      and leaves[name].shape == array.shape
      and (np.array_equal(leaves[name], array))
    )
    assert taken != is_fresh, name
  assert {n for n in leaves if n not in found} == {
    n for n in leaves if any(f'/{part}/' in n for part in unused)
  }
