"""Training: the loop around the jitted step."""

import contextlib
import functools
import math
import pathlib
import time
import zlib

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maskrcnn_jax import checkpoint, cluster
from maskrcnn_jax.average_precision import check_backend, check_truth
from maskrcnn_jax.config import (
    config_difference,
    geometry_of,
    is_free,
    plain,
    stored_config,
)
from maskrcnn_jax.data import coco, findings, loader
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluate import (
  Detector,
  canvas_arguments,
  evaluate,
  make_detect,
  make_model,
  make_writable,
)
from maskrcnn_jax.optimizer import learning_rate, make_optimizer
from maskrcnn_jax.precision import set_precision
from maskrcnn_jax.train_step import (
  TrainState,
  initial_state,
  make_train_step,
  variables_of,
)
from maskrcnn_jax.training_log import TrainingLog

# Leaves whose shape depends on the number of classes: fine-tuning on other
# classes starts these afresh, and nothing else.
CLASS_LAYERS = ('cls_score', 'bbox_pred', 'mask_fcn_logits')
CLASS_HEADS = ('box_head', 'mask_head')

# Parts that a model need not have: see `model.output` in a recipe. Of the
# backbone, layer4 is one of a C4 model's heads.
HEADS = ('box_head', 'mask_head', 'layer4')

# Keys of the recipe without which weights see something else than they were
# trained on.
WEIGHT_KEYS = (
    'data.pixel_mean', 'data.pixel_std', 'geometry', 'model.norm_eps',
    'model.stride_in_1x1',
)


def train(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    init_from: pathlib.Path | None = None,
    skip_test: bool = False,
    resume: bool = True,
) -> None:
  """Trains until `config.train.num_steps`, then evaluates.

  A workdir with a checkpoint of the same recipe is continued from its newest
  step, as if it had never stopped.

  Args:
    config: The recipe.
    workdir: Gets log.txt, TensorBoard events and checkpoints/.
    init_from: Checkpoint to take the initial weights from. Layers that depend
      on the number of classes start afresh where that differs.
    skip_test: Whether to leave out the evaluation.
    resume: Whether to continue; if not, a workdir with a checkpoint is an
      error.
  """
  mesh = cluster.make_mesh()
  cluster.check_batch_size(
      config.train.batch_size, mesh, key='config.train.batch_size'
  )
  index, rows, folder = _read_training_set(config)
  _check_eval_set(config, index, skip_test)
  limits = loader.find_limits(index, max_objects=config.data.max_objects)
  plan = loader.plan_canvases(
      index.heights, index.widths, **canvas_arguments(config)
  )

  dtype = set_precision(config.precision)
  model = make_model(
      config, num_classes=len(index.categories) + 1, dtype=dtype
  )
  schedule_arguments = dict(
      base=config.optimizer.learning_rate,
      warmup_steps=config.optimizer.warmup_steps,
      warmup_factor=config.optimizer.warmup_factor,
      decay_steps=tuple(config.optimizer.decay_steps),
      decay_factor=config.optimizer.decay_factor,
  )
  schedule = functools.partial(learning_rate, **schedule_arguments)
  optimizer = make_optimizer(
      momentum=config.optimizer.momentum,
      weight_decay=config.optimizer.weight_decay,
      bias_rate_factor=config.optimizer.bias_rate_factor,
      schedule=schedule,
  )

  make_writable(workdir)
  directory = workdir / 'checkpoints'
  steps = checkpoint.saved_steps(directory)
  if steps and not resume:
    raise InputError(
        f'C10: {workdir} already holds a checkpoint of step {steps[-1]}; give '
        'another --workdir, or leave --noresume out to continue.'
    )
  state = initial_state(model, optimizer, config)
  metadata = checkpoint.Metadata(
      0, plain(config), [list(category) for category in index.categories],
      _describe_training_set(index, rows),
  )
  if steps:
    state = _resume(directory / str(steps[-1]), state, metadata, config, mesh)
  elif init_from is not None:
    state = _take_weights(
        checkpoint.find_checkpoint(init_from), state, config
    )
  state = cluster.replicate(state, mesh)
  first_step = int(state.step)

  if first_step < config.train.num_steps:
    log = TrainingLog(workdir, num_steps=config.train.num_steps)
    _describe(log, index, rows, plan, limits, config, mesh, first_step)
    batches = loader.train_batches(
        index, plan, rows, images_dir=folder, limits=limits, seed=config.seed,
        start_step=first_step,
        num_steps=config.train.num_steps - first_step,
        batch_size=config.train.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.data.num_workers,
        num_threads=config.data.num_threads,
        scratch_dir=workdir,
    )
    train_step = make_train_step(
        model, optimizer, config, limits,
        skip_background=cluster.is_single_cpu(mesh),
    )
    manager = checkpoint.open_checkpoints(
        directory, keep=config.train.keep_checkpoints
    )
    # Whatever stops the run, what is being saved and logged is finished.
    with contextlib.closing(log), contextlib.closing(manager):
      state = _loop(
          state, train_step, batches, log, manager, metadata,
          index=index, rows=rows, plan=plan, schedule=schedule, config=config,
          mesh=mesh,
      )
  else:
    logging.info(
        'The run in %s has all its %d steps.', workdir, config.train.num_steps
    )

  if not skip_test and config.data.eval.annotations:
    detector = Detector(
        make_detect(model, config),
        {'params': state.params}
        | ({'constants': state.constants} if state.constants else {}),
        config, index.categories, mesh, int(state.step),
    )
    aps = evaluate(
        detector, images=config.data.eval.images,
        annotations=config.data.eval.annotations, workdir=workdir,
        config=config,
    )
    log = TrainingLog(workdir, num_steps=config.train.num_steps)
    with contextlib.closing(log):
      log.scalars(int(state.step), {
          f'eval/{kind}_{name}': figure
          for kind, ap in aps.items()
          for name, figure in ap.stats.items() if figure is not None
      })


def _loop(
    state, train_step, batches, log, manager, metadata, *,
    index, rows, plan, schedule, config, mesh,
):
  """Runs the steps that are left and returns the last state."""
  num_steps = config.train.num_steps
  compiled = {}
  pending = None
  started = last = time.monotonic()
  first_step = int(state.step)
  for step in range(first_step, num_steps):
    asked = time.monotonic()
    batch, batch_rows = next(batches)
    canvas = plan.canvases[plan.canvas_of_image[batch_rows[0]]]
    batch = cluster.shard_batch(batch, mesh)
    data_time = time.monotonic() - asked
    if canvas not in compiled:
      compiled[canvas] = _compile(train_step, state, batch, canvas, log)
      last = time.monotonic() - data_time
    state, figures = compiled[canvas](state, batch)
    # The figures of the step before are looked at while this one runs.
    if pending:
      _take_figures(pending, log, index, schedule)
    now = time.monotonic()
    pending = (step, figures, batch_rows, now - last, data_time)
    last = now
    done = step + 1
    is_last = done == num_steps
    if done % config.train.log_every == 0 or is_last:
      _take_figures(pending, log, index, schedule)
      pending = None
      log.report(done, learning_rate=float(schedule(np.int32(step))))
    if done % config.train.checkpoint_every == 0 or is_last:
      # Only a state whose losses have been seen to be finite is saved.
      if pending:
        _take_figures(pending, log, index, schedule)
        pending = None
      checkpoint.save_checkpoint(
          manager, model=variables_of(state), optimizer=state.optimizer,
          metadata=metadata._replace(step=done),
      )
  manager.wait_until_finished()
  manager.check_for_errors()
  seconds = time.monotonic() - started
  num_canvases = len(np.unique(plan.canvas_of_image[rows]))
  log.line(
      f'Total training time: {time.strftime("%H:%M:%S", time.gmtime(seconds))}'
      f' ({seconds / (num_steps - first_step):.4f} s / it); '
      f'{len(compiled)} compilations for {num_canvases} static sizes'
  )
  return state


def _compile(train_step, state, batch, canvas, log):
  """Compiles the step for one canvas and says what that took."""
  height, width = canvas.padded
  started = time.monotonic()
  step = train_step.lower(state, batch, padded_size=canvas.padded).compile()
  seconds = time.monotonic() - started
  text = f'Compiled the step for {height}x{width} images in {seconds:.1f} s'
  memory = step.memory_analysis()
  if memory is not None:
    mib = (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
    ) / 2**20
    text += f'; it needs {mib:.0f} MiB a device'
  log.line(text)
  return step


def _take_figures(pending, log, index, schedule):
  """Fetches a step's figures, stops if one is not finite, and logs them."""
  step, figures, batch_rows, step_time, data_time = pending
  figures = {n: float(v) for n, v in jax.device_get(figures).items()}
  wrong = [
      f'{name} is {value}' for name, value in figures.items()
      if not math.isfinite(value)
  ]
  if wrong:
    ids = [index.image_ids[row] for row in batch_rows]
    rate = float(schedule(np.int32(step)))
    message = (
        f'C04: {", ".join(wrong)} at step {step} (learning rate {rate:g}, '
        f'images {ids}). The last checkpoint is from before this. Lower '
        '--config.optimizer.learning_rate or look at these images.'
    )
    log.line(message)
    raise FloatingPointError(message)
  norm = figures.pop('grad_norm')
  log.add(**figures, grad_norm=norm, time=step_time, data=data_time)


def _read_training_set(config):
  """Reads, filters and checks the training set; logs what was dropped."""
  annotations = config.data.train.annotations
  if not annotations or not config.data.train.images:
    raise InputError(
        'No training set: give --config.data.train.images=DIR and '
        '--config.data.train.annotations=FILE.json.'
    )
  folder = pathlib.Path(config.data.train.images)
  report = findings.Report(stop=True)
  index = coco.read_coco(
      pathlib.Path(annotations),
      width_offset=geometry_of(config).width_offset, report=report,
  )
  for line in report.warnings():
    logging.warning('%s', line)
  rows, waterfall = loader.filter_images(
      index, keep_empty=config.data.keep_empty
  )
  for line in loader.format_waterfall(waterfall).splitlines():
    logging.info('%s', line)
  loader.check_images_exist(index, folder)
  return index, rows, folder


def _check_eval_set(config, index, skip_test):
  """Finds out before training what would stop the evaluation after it."""
  if skip_test:
    return
  check_backend(config.eval.backend)
  if not config.data.eval.annotations:
    logging.info(
        'No evaluation set (--config.data.eval.images, .annotations): there '
        'will be no evaluation at the end.'
    )
    return
  truth = coco.read_coco(
      pathlib.Path(config.data.eval.annotations), require_masks=False
  )
  difference = coco.class_table_difference(truth.categories, index.categories)
  if difference:
    raise InputError(
        f'A21: {config.data.eval.annotations} has other classes than '
        f'{config.data.train.annotations}: {"; ".join(difference[:10])}.'
    )
  loader.check_images_exist(truth, pathlib.Path(config.data.eval.images))
  content = coco.read_json(pathlib.Path(config.data.eval.annotations))
  for kind in ('bbox', 'segm')[: 2 if config.model.output == 'masks' else 1]:
    check_truth(content, kind=kind)


def _describe_training_set(index, rows) -> str:
  """Says what is trained on, so that a resume on other data is noticed."""
  checksum = zlib.crc32(repr(index.file_names).encode())
  for array in (rows, index.boxes, index.classes, index.vertices):
    checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
  return (
      f'{len(rows)} images with {len(index.classes)} objects (checksum '
      f'{checksum:08x})'
  )


def _resume(path, state, metadata, config, mesh) -> TrainState:
  """The state of a saved step of the same recipe and classes."""
  stored = checkpoint.read_metadata(path)
  different = [
      line for line in config_difference(
          config, plain(stored_config(stored.config))
      )
      if not is_free(line)
  ]
  if different:
    raise InputError(
        f'C07: {path.parent.parent} holds a run of another recipe (here | '
        f'there): {"; ".join(different)}. Give another --workdir, or start '
        f'from its weights alone with --init_from={path}.'
    )
  if stored.categories != metadata.categories:
    raise InputError(
        f'C07: {path.parent.parent} holds a run on other classes than '
        f'{config.data.train.annotations} has. Give another --workdir.'
    )
  if stored.training_set != metadata.training_set:
    raise InputError(
        f'C07: {path.parent.parent} holds a run on {stored.training_set}, but '
        f'{config.data.train.annotations} has {metadata.training_set}. Give '
        f'another --workdir, or go on with --init_from={path}.'
    )
  if stored.step > config.train.num_steps:
    raise InputError(
        f'C07: {path} has {stored.step} steps, more than '
        f'config.train.num_steps ({config.train.num_steps}).'
    )
  variables = checkpoint.restore_model(
      path, cluster.replicated_shapes(variables_of(state), mesh)
  )
  optimizer = checkpoint.restore_optimizer(
      path, cluster.replicated_shapes(state.optimizer, mesh)
  )
  logging.info('Resuming from step %d of %s.', stored.step, path)
  return TrainState(
      jnp.int32(stored.step), variables['params'],
      variables.get('constants', {}), optimizer,
  )


def _take_weights(path, state: TrainState, config) -> TrainState:
  """A state of step 0 with a checkpoint's weights, heads of classes aside.

  Of a partial checkpoint, layers that it lacks start afresh too; of any, heads
  that it lacks as a whole. Heads that only it has are left out.
  """
  metadata = checkpoint.read_metadata(path)
  different = [
      line for line in config_difference(
          config, plain(stored_config(metadata.config))
      )
      if line.startswith(WEIGHT_KEYS)
  ]
  if different:
    logging.warning(
        'C13: The weights of %s expect other values (here | there): %s. Set '
        'these keys to theirs, unless you mean to train them anew.', path,
        '; '.join(different),
    )
  expected = checkpoint.named_leaves(variables_of(state))
  stored = checkpoint.model_shapes(path)
  here, there = ({_head_of(n) for n in names} for names in (expected, stored))
  unused = [n for n in stored if _head_of(n) in there - here]
  fresh = [
      name for name in expected
      if name in stored and stored[name] != expected[name].shape
      and name.split('/')[1] in CLASS_HEADS
      and name.split('/')[2] in CLASS_LAYERS
      or name not in stored and (
          metadata.is_partial or _head_of(name) in here - there
      )
  ]
  difference = checkpoint.compare_trees(
      {n: s for n, s in stored.items() if n not in fresh and n not in unused},
      {n: tuple(x.shape) for n, x in expected.items() if n not in fresh},
  )
  if difference:
    raise InputError(f'C02: {path} does not fit this model: {difference}.')
  weights = checkpoint.named_leaves(checkpoint.restore_model(
      path, checkpoint.nested({
          name: jax.ShapeDtypeStruct(shape, jnp.float32)
          for name, shape in stored.items()
      })
  ))
  taken = checkpoint.nested(
      expected | {
          n: x for n, x in weights.items() if n not in fresh and n not in unused
      }
  )
  logging.info(
      'Took %d arrays from %s; started afresh: %s.',
      len(expected) - len(fresh), path, ', '.join(fresh) or 'none',
  )
  if unused:
    logging.info('Left out, for this model: %s.', ', '.join(unused))
  return state._replace(
      params=taken['params'], constants=taken.get('constants', {})
  )


def _head_of(name: str) -> str | None:
  """The one of HEADS that an array belongs to."""
  return next((head for head in HEADS if f'/{head}/' in name), None)


def _describe(log, index, rows, plan, limits, config, mesh, first_step):
  """Writes what is about to be trained."""
  log.line(
      f'Training on {len(rows)} images of {len(index.categories)} classes, '
      f'{config.train.batch_size} a step on {mesh.size} '
      f'{jax.devices()[0].platform} device(s), from step {first_step} to '
      f'{config.train.num_steps}; '
      f'{len(rows) / config.train.batch_size:.1f} steps an epoch'
  )
  sizes = ', '.join(
      f'{c.padded[0]}x{c.padded[1]} '
      f'({int(np.sum(plan.canvas_of_image[rows] == k))})'
      for k, c in enumerate(plan.canvases)
  )
  log.line(f'Static sizes (images): {sizes}')
  over = loader.count_objects_over(index, config.data.max_objects)
  if over:
    log.line(
        f'A24: {over} objects are beyond the {config.data.max_objects} slots '
        'of their image and are not trained on; '
        'raise --config.data.max_objects to have them all'
    )
