"""The five losses and their weights, normalised over all images of all devices.

Every loss takes whole batches. Under `jit`, a sum therefore runs over the
global batch, however it is sharded, and the same batch gives the same loss on
any number of devices.

If a batch is processed in micro-batches, `total` is the number of samples of
the whole batch, which the loss of each micro-batch is divided by. The losses of
the micro-batches then add up to the loss of the batch.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import optax

from maskrcnn_jax.array_types import RoiTargets, RpnTargets


class LossWeights(NamedTuple):
  """Factors of the losses; the keys `loss_weights` of a recipe."""

  objectness: float = 1.0
  rpn_box: float = 1.0
  classification: float = 1.0
  box: float = 1.0
  mask: float = 1.0


# The weights where a caller gives none.
EQUAL_WEIGHTS = LossWeights()


class Losses(NamedTuple):
  """The losses of a batch, times their weights.

  The losses of a head that the model does not have are None.
  """

  box: Float[Array, ''] | None
  classification: Float[Array, ''] | None
  mask: Float[Array, ''] | None
  objectness: Float[Array, '']
  rpn_box: Float[Array, '']

  def by_name(self) -> dict[str, Float[Array, '']]:
    """Returns {name: loss} by the names of NVIDIA's log.

    Source:
      NVIDIA's Mask R-CNN For PyTorch, `modeling/rpn/rpn.py`,
      `roi_heads/box_head/box_head.py` and
      `roi_heads/mask_head/mask_head.py`.
    """
    names = {
      'loss_box_reg': self.box,
      'loss_classifier': self.classification,
      'loss_mask': self.mask,
      'loss_objectness': self.objectness,
      'loss_rpn_box_reg': self.rpn_box,
    }
    return {name: loss for name, loss in names.items() if loss is not None}

  def total(self) -> Float[Array, '']:
    """Returns the sum of the losses."""
    first, *others = self.by_name().values()
    return sum(others, start=first)


def weigh(loss: Float[Array, ''], weight: float) -> Float[Array, '']:
  """Multiplies a loss by its weight."""
  # Multiplying by 1 changes no result, but compiles another program.
  return loss if weight == 1 else weight * loss


def objectness_loss(
  objectness_logits: Float[Array, 'b a'],
  targets: RpnTargets,
  *,
  over_slots: bool = False,
  total: Int[Array, ''] | None = None,
) -> Float[Array, '']:
  """Binary cross-entropy, averaged over the sampled anchors.

  Args:
    objectness_logits: Logits of all anchors.
    targets: The sampled anchors.
    over_slots: Whether the sum is divided by the number of slots of the sample
      instead of by the number of sampled anchors. They differ if an image has
      fewer anchors to sample than the sample has slots.
    total: Number of anchors the loss is averaged over. None counts the anchors
      of this batch.

  Source:
    Faster R-CNN (arXiv:1506.01497), equation 1. The mean over the sampled
    anchors is that of maskrcnn-benchmark `modeling/rpn/loss.py`, the mean over
    the slots that of detectron2 `modeling/proposal_generator/rpn.py`.
  """
  logits = jnp.take_along_axis(objectness_logits, targets.indices, axis=1)
  loss = optax.sigmoid_binary_cross_entropy(
    logits, targets.foreground.astype(jnp.float32)
  )
  loss = jnp.where(targets.valid, loss, 0)
  return _mean_over(loss, counted_anchors(targets, over_slots), total)


def anchor_box_loss(
  anchor_deltas: Float[Array, 'b a 4'],
  targets: RpnTargets,
  *,
  smooth_l1_beta: float,
  over_slots: bool = False,
  total: Int[Array, ''] | None = None,
) -> Float[Array, '']:
  """Smooth L1 of the foreground anchors, averaged over all sampled anchors.

  Args:
    anchor_deltas: Predicted deltas of all anchors.
    targets: The sampled anchors.
    smooth_l1_beta: Error, unitless, below which the loss is a parabola instead
      of a line; 0 gives a line everywhere.
    over_slots: Whether the sum is divided by the number of slots of the sample
      instead of by the number of sampled anchors. They differ if an image has
      fewer anchors to sample than the sample has slots.
    total: Number of anchors the loss is averaged over. None counts the anchors
      of this batch.

  Source:
    Faster R-CNN (arXiv:1506.01497), equation 1. The sum is divided by the
    number of all sampled anchors, background included, as in maskrcnn-benchmark
    `modeling/rpn/loss.py`.
  """
  deltas = jnp.take_along_axis(
    anchor_deltas, targets.indices[..., None], axis=1
  )
  loss = smooth_l1(deltas - targets.delta_targets, beta=smooth_l1_beta)
  loss = jnp.where(targets.foreground, loss.sum(axis=-1), 0)
  return _mean_over(loss, counted_anchors(targets, over_slots), total)


def counted_anchors(
  targets: RpnTargets, over_slots: bool
) -> Bool[Array, 'b s']:
  """Returns which slots of the sample the losses of the RPN are averaged over.

  Args:
    targets: The sampled anchors. Slots without an anchor are not `valid`.
    over_slots: Whether slots without an anchor count too.
  """
  return jnp.ones_like(targets.valid) if over_slots else targets.valid


def classification_loss(
  class_logits: Float[Array, 'b r k'],
  targets: RoiTargets,
  *,
  total: Int[Array, ''] | None = None,
) -> Float[Array, '']:
  """Softmax cross-entropy, averaged over the sampled RoIs.

  Args:
    class_logits: Logits of the sampled RoIs; column 0 is background.
    targets: The sampled RoIs.
    total: Number of RoIs the loss is averaged over. None counts the RoIs of
      this batch.

  Source:
    Fast R-CNN (arXiv:1504.08083), equation 1.
  """
  loss = optax.softmax_cross_entropy_with_integer_labels(
    class_logits, targets.class_targets
  )
  return _mean_over(jnp.where(targets.valid, loss, 0), targets.valid, total)


def box_loss(
  box_deltas: Float[Array, 'b r k 4'],
  targets: RoiTargets,
  *,
  smooth_l1_beta: float,
  total: Int[Array, ''] | None = None,
) -> Float[Array, '']:
  """Smooth L1 of the foreground RoIs, averaged over all sampled RoIs.

  Only the deltas that were predicted for the class of the object contribute.

  Args:
    box_deltas: Predicted deltas of the sampled RoIs, for each class.
    targets: The sampled RoIs.
    smooth_l1_beta: Error, unitless, below which the loss is a parabola instead
      of a line; 0 gives a line everywhere.
    total: Number of RoIs the loss is averaged over. None counts the RoIs of
      this batch.

  Source:
    Fast R-CNN (arXiv:1504.08083), equations 1 to 3. The sum is divided by the
    number of all sampled RoIs, background included, as in maskrcnn-benchmark
    `modeling/roi_heads/box_head/loss.py`.
  """
  deltas = jnp.take_along_axis(
    box_deltas, targets.class_targets[:, :, None, None], axis=2
  )[:, :, 0]
  loss = smooth_l1(deltas - targets.delta_targets, beta=smooth_l1_beta)
  loss = jnp.where(targets.foreground, loss.sum(axis=-1), 0)
  return _mean_over(loss, targets.valid, total)


def mask_loss(
  mask_logits: Float[Array, 'b r m m'],
  mask_targets: Float[Array, 'b r m m'],
  foreground: Bool[Array, 'b r'],
  *,
  weights: LossWeights = EQUAL_WEIGHTS,
  total: Int[Array, ''] | None = None,
) -> Float[Array, '']:
  """Returns the weighted error of the masks, averaged over foreground RoIs.

  Args:
    mask_logits: The mask that is predicted for the class of each RoI.
    mask_targets: Masks that should be predicted: 1 inside the object, 0
      outside.
    foreground: Which RoIs have a mask.
    weights: Factors of the terms of the loss. `mask` is the factor of the
      cross-entropy.
    total: Number of RoIs with a mask that the loss is averaged over. None
      counts the RoIs with a mask of this batch.

  Source:
    Mask R-CNN (arXiv:1703.06870), section 3. The sum over all pixels is divided
    by the number of foreground RoIs times m * m. The loss is 0 if no RoI is
    foreground.
  """

  def mean(errors: Float[Array, 'b r']) -> Float[Array, '']:
    """Returns the mean of `errors` over the RoIs with a mask."""
    return _mean_over(jnp.where(foreground, errors, 0), foreground, total)

  loss = weigh(
    mean(mask_cross_entropy(mask_logits, mask_targets)), weights.mask
  )
  return loss


def mask_cross_entropy(
  mask_logits: Float[Array, 'b r m m'], mask_targets: Float[Array, 'b r m m']
) -> Float[Array, 'b r']:
  """Returns the binary cross-entropy of each mask, averaged over its pixels.

  Args:
    mask_logits: A predicted mask for each RoI.
    mask_targets: Masks that should be predicted: 1 inside the object, 0
      outside.
  """
  loss = optax.sigmoid_binary_cross_entropy(mask_logits, mask_targets)
  return loss.mean(axis=(2, 3))


def smooth_l1(
  difference: Float[Array, '*n'], *, beta: float
) -> Float[Array, '*n']:
  """Returns |d| - beta / 2, or the parabola d^2 / (2 beta) where |d| < beta.

  Args:
    difference: Errors d.
    beta: Error at which the parabola turns into a line; 0 gives plain L1.

  Source:
    Fast R-CNN (arXiv:1504.08083), equation 3, where `beta` is 1.
  """
  # The gradient of jnp.abs at 0 is 1, but a correct prediction must not be
  # pushed away: here the gradient at 0 is 0.
  size = difference * jnp.sign(difference)
  if beta == 0:
    return size
  return jnp.where(size < beta, 0.5 * difference**2 / beta, size - 0.5 * beta)


def _mean_over(
  loss: Float[Array, 'b n'],
  counted: Bool[Array, 'b n'],
  total: Int[Array, ''] | None,
) -> Float[Array, '']:
  """Divides the sum of a loss by a number of samples, at least by 1.

  Args:
    loss: The loss of each slot; 0 where the slot has none.
    counted: Slots whose number is the divisor if `total` is None.
    total: The divisor, if the caller has counted the samples already.
  """
  if total is None:
    total = jnp.sum(counted)
  return jnp.sum(loss) / jnp.maximum(total, 1)
