"""One training step, jitted: from a batch of images to new parameters."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
import ml_collections
import optax

from maskrcnn_jax import cluster, losses
from maskrcnn_jax.array_types import Batch, Inputs
from maskrcnn_jax.config import geometry_of
from maskrcnn_jax.data import loader
from maskrcnn_jax.evaluate import (
  image_anchors,
  init_variables,
  input_arguments,
  kernels_of,
  pool,
)
from maskrcnn_jax.inputs import draw_flips, prepare_inputs
from maskrcnn_jax.kernels import XLA
from maskrcnn_jax.model.mask_rcnn import MaskRCNN, frozen_prefixes
from maskrcnn_jax.ops.anchors import make_anchors
from maskrcnn_jax.ops.chosen_rows import apply_to_chosen
from maskrcnn_jax.optimizer import join_parameters, split_parameters
from maskrcnn_jax.proposals import make_proposals
from maskrcnn_jax.targets import (
  make_mask_targets,
  make_roi_targets,
  make_rpn_targets,
)

# RoIs that the mask head takes at once where it skips background: fewer would
# make its products inefficient, more would waste work on the last chunk.
MASK_CHUNK = 16


class TrainState(NamedTuple):
  """All that a step reads and writes."""

  step: Int[Array, '']  # steps done
  params: dict
  constants: dict  # frozen batch norm; never written
  optimizer: Any


def make_losses(
    model: MaskRCNN,
    config: ml_collections.ConfigDict,
    limits: loader.Limits,
    mesh: Mesh | None = None,
    *,
    skip_background: bool = False,
):
  """Returns the function from parameters and inputs to the five losses.

  Args:
    model: The network.
    config: The recipe.
    limits: Of the truth: how many vertices and parts an object has at most.
    mesh: Of devices that batches are spread over; None: all there are.
    skip_background: Whether the mask head runs on the RoIs that have a mask to
      learn only, in chunks, instead of on all slots for them. The losses are
      the same; it pays on a single CPU.

  Returns:
    `compute(variables, inputs, keys)`: keys are [b, 2], one for the anchors
    and one for the RoIs of each image. Gives {name: scalar}, the names being
    the seed's; without those of heads that the model lacks.
  """
  shape = geometry_of(config)
  max_foreground = int(config.roi.num_samples * config.roi.foreground_fraction)
  mesh = mesh or cluster.make_mesh()
  kernels, _ = kernels_of(config, mesh)
  each_image = functools.partial(
      cluster.each_image, mesh=mesh, split=kernels != XLA
  )
  pool_batch = functools.partial(
      pool, shape=shape, kernels=kernels.roi_align, each_image=each_image
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

  def compute(variables, inputs: Inputs, keys) -> dict[str, Float[Array, '']]:
    pyramid = model.apply(variables, inputs.images, method='extract')
    rpn = model.apply(variables, pyramid, method='propose')
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

    rpn_targets = each_image(find_rpn_targets)(
        inputs.image_sizes, inputs.gt_boxes, inputs.gt_valid, keys[:, 0]
    )
    rpn_losses = {
        'loss_objectness': losses.objectness_loss(
            rpn.objectness_logits, rpn_targets,
            over_slots=shape.anchor_loss_over_slots,
        ),
        'loss_rpn_box_reg': losses.anchor_box_loss(
            rpn.anchor_deltas, rpn_targets,
            smooth_l1_beta=shape.anchor_smooth_l1_beta,
            over_slots=shape.anchor_loss_over_slots,
        ),
    }
    if config.model.output == 'proposals':
      return rpn_losses

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

    proposals = each_image(propose)(
        rpn.objectness_logits, rpn.anchor_deltas, inputs.image_sizes
    )

    roi_targets = each_image(
        lambda p, boxes, classes, valid, key: make_roi_targets(
            p, boxes, classes, valid, key,
            num_samples=config.roi.num_samples,
            foreground_fraction=config.roi.foreground_fraction,
            foreground_iou=config.roi.foreground_iou,
            delta_weights=shape.roi_delta_weights,
            width_offset=shape.width_offset, kernels=kernels,
        )
    )(
        proposals, inputs.gt_boxes, inputs.gt_classes, inputs.gt_valid,
        keys[:, 1],
    )
    pooled = pool_batch(pyramid, roi_targets.rois, side=config.roi.box_side)
    heads = model.apply(variables, pooled, method='classify')
    box_losses = {
        'loss_classifier': losses.classification_loss(
            heads.class_logits, roi_targets
        ),
        'loss_box_reg': losses.box_loss(
            heads.box_deltas, roi_targets,
            smooth_l1_beta=shape.roi_smooth_l1_beta,
        ),
    }
    if config.model.output == 'boxes':
      return box_losses | rpn_losses

    # Foreground comes first, so that the rest needs no mask head.
    foreground = jax.tree.map(lambda x: x[:, :max_foreground], roi_targets)
    pooled = pool_batch(pyramid, foreground.rois, side=config.roi.mask_side)
    # An object without an outline has a box to learn but no mask.
    starts = inputs.outlines.starts
    has_mask = foreground.foreground & jnp.take_along_axis(
        starts[:, 1:] > starts[:, :-1], foreground.objects, axis=1
    )
    mask_logits = segment(variables, pooled, has_mask)
    mask_targets = each_image(
        lambda outlines, rois, objects, real, size: make_mask_targets(
            outlines, rois, objects, real, side=mask_logits.shape[2],
            max_object_vertices=limits.max_object_vertices,
            max_parts=limits.max_parts, min_roi_side=shape.mask_min_side,
            image_size=size if shape.mask_targets == 'bitmap' else None,
            padded_size=padded_size, kernels=kernels,
        )
    )(
        inputs.outlines, foreground.rois, foreground.objects,
        foreground.foreground, inputs.image_sizes,
    )
    mask_loss = losses.mask_loss(
        mask_logits, mask_targets, foreground.class_targets, has_mask
    )
    return box_losses | {'loss_mask': mask_loss} | rpn_losses

  return compute


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


def make_train_step(
    model: MaskRCNN,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    limits: loader.Limits,
    mesh: Mesh | None = None,
    *,
    skip_background: bool = False,
):
  """Returns the jitted `train_step(state, batch, padded_size=)`.

  It gives the new state, whose memory replaces the old one's, and the figures
  of the step: the losses, their sum 'loss' and 'grad_norm'.
  """
  compute_losses = make_losses(
      model, config, limits, mesh, skip_background=skip_background
  )
  frozen = frozen_prefixes(config.freeze_at)

  @functools.partial(jax.jit, static_argnames='padded_size', donate_argnums=0)
  def train_step(state: TrainState, batch: Batch, padded_size):
    keys = image_keys(config.seed, state.step, batch.images.shape[0])
    flips = draw_flips(
        keys[:, 0], probability=config.data.flip_probability
    )
    inputs = prepare_inputs(
        batch, flips, padded_size=padded_size, **input_arguments(config)
    )
    trainable, fixed = split_parameters(state.params, frozen)

    def total_loss(trainable):
      variables = {
          'params': join_parameters(trainable, fixed),
          'constants': state.constants,
      }
      parts = compute_losses(variables, inputs, keys[:, 1:])
      return sum(parts.values()), parts

    # Differentiating the trainable part alone spares the backward pass
    # through frozen stages.
    (total, parts), gradients = jax.value_and_grad(total_loss, has_aux=True)(
        trainable
    )
    updates, optimizer_state = optimizer.update(
        gradients, state.optimizer, trainable
    )
    trainable = optax.apply_updates(trainable, updates)
    state = TrainState(
        step=state.step + 1,
        params=join_parameters(trainable, fixed),
        constants=state.constants,
        optimizer=optimizer_state,
    )
    # A gradient can overflow where no loss does.
    norm = optax.tree.norm(gradients)
    return state, {'loss': total} | parts | {'grad_norm': norm}

  return train_step


def initial_state(model, optimizer, config) -> TrainState:
  """A state of step 0 with random weights that depend on the seed alone."""
  # Drawing numbers does not get faster by optimising the program that does
  # it, which takes XLA ten times longer.
  init = jax.jit(
      functools.partial(init_variables, model, config),
      compiler_options={'xla_backend_optimization_level': 0},
  )
  variables = init(jax.random.key(config.seed))
  trainable, _ = split_parameters(
      variables['params'], frozen_prefixes(config.freeze_at)
  )
  return TrainState(
      step=jnp.int32(0),
      params=variables['params'],
      constants=variables.get('constants', {}),
      optimizer=optimizer.init(trainable),
  )


def variables_of(state: TrainState) -> dict:
  """What the network needs, as it is saved."""
  variables = {'params': state.params}
  if state.constants:
    variables['constants'] = state.constants
  return variables
