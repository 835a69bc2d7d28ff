"""One training step, jitted: from a batch of images to new parameters."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
import ml_collections
import optax

from maskrcnn_jax import losses
from maskrcnn_jax.array_types import (
  Batch,
  GroundTruthLimits,
  Inputs,
  Outlines,
  RoiTargets,
  RpnTargets,
)
from maskrcnn_jax.config import geometry_of
from maskrcnn_jax.detector import (
  image_anchors,
  input_arguments,
  kernels_of,
  pool,
)
from maskrcnn_jax.inputs import (
  draw_color_factors,
  draw_flips,
  draw_scale_jitter,
  draw_short_sides,
  prepare_inputs,
)
from maskrcnn_jax.model.layers import WIDE_CHANNELS
from maskrcnn_jax.model.mask_rcnn import MaskRCNN, frozen_prefixes
from maskrcnn_jax.model.rpn_head import RpnOutput
from maskrcnn_jax.ops.anchors import make_anchors
from maskrcnn_jax.ops.chosen_rows import apply_to_chosen
from maskrcnn_jax.proposals import make_proposals
from maskrcnn_jax.runtime.cluster import each_image, is_single_cpu, replicated
from maskrcnn_jax.runtime.precision import next_loss_scale
from maskrcnn_jax.targets import (
  make_mask_targets,
  make_roi_targets,
  make_rpn_targets,
)
from maskrcnn_jax.training.optimizer import (
  join_parameters,
  next_average,
  split_parameters,
)
from maskrcnn_jax.training.state import TrainState

# RoIs that the mask head takes at once where it skips background: fewer would
# make its products inefficient, more would waste work on the last chunk.
MASK_CHUNK = 16


class Samples(NamedTuple):
  """What the images of a batch are learned from."""

  rpn: RpnTargets
  roi: RoiTargets | None  # None of a model of proposals


class Totals(NamedTuple):
  """What the losses of a batch are divided by; None: what is counted there."""

  anchors: Int[Array, ''] | None = None
  rois: Int[Array, ''] | None = None
  masks: Int[Array, ''] | None = None


def make_sampler(config: ml_collections.ConfigDict, mesh: Mesh | None):
  """Returns the function that chooses what to learn from.

  It is `draw_samples(rpn, inputs, keys)`: the RPN's output, and keys as of
  `make_losses`. What it draws for an image depends on that image alone.

  Args:
    config: The recipe.
    mesh: See `make_losses`.
  """
  shape = geometry_of(config)
  kernels, _ = kernels_of(config, mesh)

  def draw_samples(rpn: RpnOutput, inputs: Inputs, keys) -> Samples:
    padded_size = inputs.images.shape[1:3]

    def find_rpn_targets(size, boxes, valid, key):
      levels, fit_to = image_anchors(config, padded_size, size)
      return make_rpn_targets(
          jnp.concatenate(make_anchors(levels, fit_to=fit_to)), size,
          boxes, valid, key,
          num_samples=config.rpn.num_samples,
          foreground_fraction=config.rpn.foreground_fraction,
          foreground_iou=config.rpn.foreground_iou,
          background_iou=config.rpn.background_iou,
          delta_weights=shape.anchor_delta_weights,
          padding_multiple=shape.padding_multiple,
          ignore_straddling=shape.ignore_straddling,
          width_offset=shape.width_offset, kernels=kernels,
      )

    rpn_targets = each_image(find_rpn_targets, mesh)(
        inputs.image_sizes, inputs.gt_boxes, inputs.gt_valid, keys[:, 0]
    )
    if config.model.output == 'proposals':
      return Samples(rpn_targets, None)

    def propose(logits, deltas, size):
      levels, fit_to = image_anchors(config, padded_size, size)
      return make_proposals(
          logits, deltas, levels, size, fit_to=fit_to,
          iou_threshold=config.rpn.iou_threshold,
          delta_weights=shape.anchor_delta_weights,
          padding_multiple=shape.padding_multiple,
          min_size=shape.proposal_min_size,
          width_offset=shape.width_offset, kernels=kernels,
          **config.rpn.train,
      )

    proposals = each_image(propose, mesh)(
        # Cut here, lest the gradient of a mesh's each_image is built.
        jax.lax.stop_gradient(rpn.objectness_logits),
        jax.lax.stop_gradient(rpn.anchor_deltas), inputs.image_sizes,
    )

    roi_targets = each_image(
        lambda p, boxes, classes, valid, key: make_roi_targets(
            p, boxes, classes, valid, key,
            num_samples=config.roi.num_samples,
            foreground_fraction=config.roi.foreground_fraction,
            foreground_iou=config.roi.foreground_iou,
            delta_weights=shape.roi_delta_weights,
            width_offset=shape.width_offset, kernels=kernels,
        ),
        mesh,
    )(
        proposals, inputs.gt_boxes, inputs.gt_classes, inputs.gt_valid,
        keys[:, 1],
    )
    return Samples(rpn_targets, roi_targets)

  return draw_samples


def skips_background(config: ml_collections.ConfigDict, mesh: Mesh) -> bool:
  """Tells whether `skip_background` of `make_losses` pays.

  It does on a single CPU with a wide mask head. Of a narrow one, XLA runs the
  convolutions several times slower inside the loop over the chunks.
  """
  return is_single_cpu(mesh) and config.model.mask_channels >= WIDE_CHANNELS


def make_losses(
    model: MaskRCNN,
    config: ml_collections.ConfigDict,
    limits: GroundTruthLimits,
    *,
    mesh: Mesh | None = None,
    skip_background: bool = False,
):
  """Returns the function from parameters and inputs to the five losses.

  Args:
    model: The network.
    config: The recipe.
    limits: Of the truth: how many vertices and parts an object has at most.
    mesh: Over which the images will be spread; None for one device.
    skip_background: Whether the mask head runs on the RoIs that have a mask to
      learn only, in chunks, instead of on all slots for them. The losses are
      the same; it pays on a single CPU.

  Returns:
    `compute(variables, inputs, keys)`: keys are [b, 2], one for the anchors
    and one for the RoIs of each image. Gives {name: scalar}, the names being
    the seed's, without those of heads that the model lacks. Of a part of a
    batch, `samples=` are its samples and `totals=` those of the whole batch.
  """
  shape = geometry_of(config)
  max_foreground = int(config.roi.num_samples * config.roi.foreground_fraction)
  draw_samples = make_sampler(config, mesh)
  kernels, _ = kernels_of(config, mesh)
  pool_batch = functools.partial(
      pool, shape=shape, kernels=kernels.roi_align, mesh=mesh
  )

  def segment(variables, pooled, has_mask):
    if not skip_background:
      return model.apply(variables, pooled, method='segment')
    flat = apply_to_chosen(
        lambda variables, rows: model.apply(
            variables, rows[None], method='segment'
        )[0],
        variables, pooled.reshape(-1, *pooled.shape[2:]), has_mask.reshape(-1),
        MASK_CHUNK,
    )
    return flat.reshape(*pooled.shape[:2], *flat.shape[1:])

  def compute(
      variables, inputs: Inputs, keys, *, samples: Samples | None = None,
      totals: Totals | None = None,
  ) -> dict[str, Float[Array, '']]:
    pyramid = model.apply(variables, inputs.images, method='extract')
    rpn = model.apply(variables, pyramid, method='propose')
    padded_size = inputs.images.shape[1:3]
    if samples is None:
      samples = draw_samples(rpn, inputs, keys)
    rpn_targets, roi_targets = samples
    totals = totals or Totals()

    rpn_losses = {
        'loss_objectness': losses.objectness_loss(
            rpn.objectness_logits, rpn_targets,
            over_slots=shape.anchor_loss_over_slots, total=totals.anchors,
        ),
        'loss_rpn_box_reg': losses.anchor_box_loss(
            rpn.anchor_deltas, rpn_targets,
            smooth_l1_beta=shape.anchor_smooth_l1_beta,
            over_slots=shape.anchor_loss_over_slots, total=totals.anchors,
        ),
    }
    if config.model.output == 'proposals':
      return rpn_losses

    pooled = pool_batch(pyramid, roi_targets.rois, side=config.roi.box_side)
    heads = model.apply(variables, pooled, method='classify')
    box_losses = {
        'loss_classifier': losses.classification_loss(
            heads.class_logits, roi_targets, total=totals.rois
        ),
        'loss_box_reg': losses.box_loss(
            heads.box_deltas, roi_targets,
            smooth_l1_beta=shape.roi_smooth_l1_beta, total=totals.rois,
        ),
    }
    if config.model.output == 'boxes':
      return box_losses | rpn_losses

    # Foreground comes first, so that the rest needs no mask head.
    foreground = jax.tree.map(lambda x: x[:, :max_foreground], roi_targets)
    pooled = pool_batch(pyramid, foreground.rois, side=config.roi.mask_side)
    has_mask = rois_with_mask(foreground, inputs.outlines)
    mask_logits = segment(variables, pooled, has_mask)
    mask_targets = each_image(
        lambda outlines, rois, objects, real, size: make_mask_targets(
            outlines, rois, objects, real, side=mask_logits.shape[2],
            max_object_vertices=limits.max_object_vertices,
            max_parts=limits.max_parts, min_roi_side=shape.mask_min_side,
            image_size=size if shape.mask_targets == 'bitmap' else None,
            padded_size=padded_size, kernels=kernels,
        ),
        mesh,
    )(
        inputs.outlines, foreground.rois, foreground.objects,
        foreground.foreground, inputs.image_sizes,
    )
    mask_loss = losses.mask_loss(
        mask_logits, mask_targets, foreground.class_targets, has_mask,
        total=totals.masks,
    )
    return box_losses | {'loss_mask': mask_loss} | rpn_losses

  return compute


def rois_with_mask(
    targets: RoiTargets, outlines: Outlines
) -> Bool[Array, 'b r']:
  """Returns which RoIs are foreground and have an outline to learn.

  An object without an outline has a box to learn but no mask.
  """
  starts = outlines.starts
  return targets.foreground & jnp.take_along_axis(
      starts[:, 1:] > starts[:, :-1], targets.objects, axis=1
  )


def count_samples(
    samples: Samples, outlines: Outlines, *, over_slots: bool
) -> Totals:
  """Returns what the losses of these images are divided by.

  Args:
    samples: Of the images.
    outlines: Of the images.
    over_slots: See `losses.objectness_loss`.
  """
  anchors = jnp.sum(losses.counted_anchors(samples.rpn, over_slots))
  if samples.roi is None:
    return Totals(anchors)
  return Totals(
      anchors, jnp.sum(samples.roi.valid),
      jnp.sum(rois_with_mask(samples.roi, outlines)),
  )


def image_keys(seed: int, step: Int[Array, ''], num_images: int):
  """Returns [b, 3] keys of a step: for the flip, anchors and RoIs of each row.

  They depend on the seed, the step and the row in the global batch alone, so
  that the same training happens on any number of devices, and after a resume.
  """
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  row_keys = jax.vmap(lambda row: jax.random.fold_in(step_key, row))(
      jnp.arange(num_images)
  )
  return jax.vmap(lambda key: jax.random.split(key, 3))(row_keys)


def draw_augmentation(
    keys, batch: Batch, config: ml_collections.ConfigDict,
    limits: GroundTruthLimits, *, padded_size: tuple[int, int],
) -> dict:
  """Returns the arguments of `prepare_inputs` that differ from step to step.

  Args:
    keys: [b], the keys that draw the flips; what is drawn here is independent
      of these.
    batch: As decoded by the host.
    config: The recipe.
    limits: Of the truth.
    padded_size: The canvas.
  """
  place_keys, color_keys = (
      jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys)
      for i in (1, 2)
  )
  drawn = {}
  if config.data.scale_jitter:
    drawn['placement'] = draw_scale_jitter(
        place_keys, batch.source_sizes,
        scales=tuple(config.data.scale_jitter), padded_size=padded_size,
    )
    drawn['max_object_vertices'] = limits.max_object_vertices
  elif config.data.short_sides:
    drawn['placement'] = draw_short_sides(
        place_keys, batch.source_sizes,
        choices=tuple(config.data.short_sides),
        long_side=config.data.long_side,
        resize_rule=geometry_of(config).input_format.resize_rule,
        padded_size=padded_size,
    )
  if any(config.data.color_jitter):
    drawn['color_factors'] = draw_color_factors(
        color_keys, strengths=tuple(config.data.color_jitter)
    )
  return drawn


def split_rows(tree, num_parts: int):
  """Cuts all arrays into parts of as many rows: [b, ...] to [i, b / i, ...].

  Part i has the rows i, i + num_parts, ..., so that each device, whose rows
  lie together, has as many of every part.
  """
  return jax.tree.map(
      lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), tree
  )


def make_gradients(
    model: MaskRCNN,
    config: ml_collections.ConfigDict,
    limits: GroundTruthLimits,
    *,
    mesh: Mesh | None = None,
    skip_background: bool = False,
):
  """Returns the function from a batch to its losses and their gradients.

  It is `differentiate(trainable, fixed, constants, batch, keys, scale,
  padded_size)`, which gives ({name: loss}, gradients of `trainable`); the sum
  of the losses is multiplied by `scale` first. Of `train.micro_batches` each
  is worked through on its own, with what one of them needs of memory. A first
  pass through all, forward as far as the proposals, counts the samples of the
  whole batch, which the losses are divided by.
  """
  compute_losses = make_losses(
      model, config, limits, mesh=mesh, skip_background=skip_background
  )
  draw_samples = make_sampler(config, mesh)
  shape = geometry_of(config)
  num_parts = config.train.micro_batches

  def prepare(batch, keys, padded_size) -> Inputs:
    flips = draw_flips(keys[:, 0], probability=config.data.flip_probability)
    return prepare_inputs(
        batch, flips, padded_size=padded_size, **input_arguments(config),
        **draw_augmentation(
            keys[:, 0], batch, config, limits, padded_size=padded_size
        ),
    )

  def differentiate(
      trainable, fixed, constants, batch, keys, scale, padded_size
  ):
    def network(trainable):
      params = join_parameters(trainable, fixed)
      return {'params': params, 'constants': constants}

    # Differentiating the trainable part alone spares the backward pass
    # through frozen stages.
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total_loss(trainable, batch, keys, samples=None, totals=None):
      inputs = prepare(batch, keys, padded_size)
      parts = compute_losses(
          network(trainable), inputs, keys[:, 1:], samples=samples,
          totals=totals,
      )
      return scale * sum(parts.values()), parts

    if num_parts == 1:
      (_, parts), gradients = total_loss(trainable, batch, keys)
      return parts, gradients

    def look(rows):
      batch, keys = rows
      inputs = prepare(batch, keys, padded_size)
      variables = network(trainable)
      pyramid = model.apply(variables, inputs.images, method='extract')
      rpn = model.apply(variables, pyramid, method='propose')
      samples = draw_samples(rpn, inputs, keys[:, 1:])
      return samples, count_samples(
          samples, inputs.outlines, over_slots=shape.anchor_loss_over_slots
      )

    rows = split_rows((batch, keys), num_parts)
    samples, counts = jax.lax.map(look, rows)
    totals = jax.tree.map(jnp.sum, counts)

    def add(sums, rows):
      (_, parts), gradients = total_loss(trainable, *rows, totals)
      return jax.tree.map(jnp.add, sums, (parts, gradients)), None

    first = jax.tree.map(lambda x: x[0], (*rows, samples))
    (_, parts), gradients = jax.eval_shape(
        total_loss, trainable, *first, totals
    )
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), (parts, gradients)
    )
    sums, _ = jax.lax.scan(add, zeros, (*rows, samples))
    return sums

  return differentiate


def make_train_step(
    model: MaskRCNN,
    optimizer: optax.GradientTransformationExtraArgs,
    config: ml_collections.ConfigDict,
    limits: GroundTruthLimits,
    *,
    mesh: Mesh | None = None,
    skip_background: bool = False,
):
  """Returns the jitted `train_step(state, batch, padded_size=)`.

  It gives the new state, whose memory replaces the old one's, and the figures
  of the step: the losses, their sum 'loss', 'grad_norm', the 'loss_scale' that
  it was made with and how many steps were 'skipped' so far, this included. On
  a mesh the state is whole on every device and the images of the batch are
  spread.

  A step whose losses or gradients are not all finite is skipped: parameters,
  momentum and average stay as they are. The count of steps rises, for its
  batch and its random numbers are used up; learning rates follow that count.
  """
  differentiate = make_gradients(
      model, config, limits, mesh=mesh, skip_background=skip_background
  )
  frozen = frozen_prefixes(config.freeze_at)
  has_loss_scale = config.precision == 'fp16'

  @functools.partial(
      jax.jit, static_argnames='padded_size', donate_argnums=0,
      out_shardings=replicated(mesh) if mesh else None,
  )
  def train_step(state: TrainState, batch: Batch, padded_size):
    keys = image_keys(config.seed, state.step, batch.images.shape[0])
    trainable, fixed = split_parameters(state.params, frozen)
    scale = state.loss_scale.scale
    parts, gradients = differentiate(
        trainable, fixed, state.constants, batch, keys, scale, padded_size
    )
    total = sum(parts.values())
    gradients = jax.tree.map(lambda x: x / scale, gradients)
    # A gradient can overflow where no loss does.
    norm = optax.tree.norm(gradients)
    is_finite = jnp.isfinite(total) & jnp.isfinite(norm)

    updates, momentum = optimizer.update(
        gradients, state.optimizer, trainable, step=state.step
    )
    updated = optax.apply_updates(trainable, updates)
    average = state.average
    if config.train.ema_decay:
      average = next_average(
          average, updated, state.step, decay=config.train.ema_decay
      )
    updated, momentum, average = jax.tree.map(
        lambda new, old: jnp.where(is_finite, new, old),
        (updated, momentum, average),
        (trainable, state.optimizer, state.average),
    )
    loss_scale = next_loss_scale(state.loss_scale, is_finite)
    if not has_loss_scale:
      loss_scale = loss_scale._replace(
          scale=state.loss_scale.scale, good_steps=state.loss_scale.good_steps
      )
    state = TrainState(
        step=state.step + 1,
        params=join_parameters(updated, fixed),
        constants=state.constants,
        optimizer=momentum,
        loss_scale=loss_scale,
        average=average,
    )
    return state, {'loss': total} | parts | {
        'grad_norm': norm, 'loss_scale': scale, 'skipped': loss_scale.skipped
    }

  return train_step
