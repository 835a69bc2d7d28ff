"""The five losses, normalised over all images of all devices.

Every function takes whole batches, so that under `jit` a sum runs over the
global batch however it is sharded, and the same batch gives the same loss on
any number of devices. Where a batch is worked through in parts, `total` is
what the loss of a part is divided by: the count of the whole batch. The losses
of all parts then add up to that of the batch.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import optax

from maskrcnn_jax.array_types import RoiTargets, RpnTargets


def objectness_loss(
    objectness_logits: Float[Array, 'b a'],
    targets: RpnTargets,
    *,
    over_slots: bool = False,
    total: Int[Array, ''] | None = None,
) -> Float[Array, '']:
  """Binary cross-entropy, averaged over the sampled anchors.

  Args:
    objectness_logits: Of all anchors.
    targets: The sample.
    over_slots: Whether the sum is divided by all slots of the sample, valid or
      not; that differs where an image has fewer anchors than slots.
    total: Anchors to divide by; None: those of this batch.

  Source:
    Faster R-CNN (arXiv:1506.01497), equation 1; mean over the sample as in
    maskrcnn-benchmark `modeling/rpn/loss.py`; over slots as in detectron2
    `modeling/proposal_generator/rpn.py`.
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
  """Smooth L1 of foreground anchors, over the number of sampled anchors.

  Args:
    anchor_deltas: Of all anchors.
    targets: The sample.
    smooth_l1_beta: See `smooth_l1`.
    over_slots: See `objectness_loss`.
    total: See `objectness_loss`.

  Source:
    Faster R-CNN (arXiv:1506.01497), equation 1; divided by all sampled
    anchors, background too, as in maskrcnn-benchmark `modeling/rpn/loss.py`.
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
  """Returns which slots of the sample the two losses above are averaged over.

  Args:
    targets: The sample.
    over_slots: See `objectness_loss`.
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
    class_logits: Of the sampled RoIs.
    targets: The sample.
    total: RoIs to divide by; None: those of this batch.

  Source:
    Fast R-CNN (arXiv:1504.08083), equation 1.
  """
  loss = optax.softmax_cross_entropy_with_integer_labels(
      class_logits, targets.class_targets
  )
  return _mean_over(
      jnp.where(targets.valid, loss, 0), targets.valid, total
  )


def box_loss(
    box_deltas: Float[Array, 'b r k 4'],
    targets: RoiTargets,
    *,
    smooth_l1_beta: float,
    total: Int[Array, ''] | None = None,
) -> Float[Array, '']:
  """Smooth L1 of foreground RoIs, over the number of sampled RoIs.

  Only the deltas of the true class take part.

  Args:
    box_deltas: Of the sampled RoIs, for each class.
    targets: The sample.
    smooth_l1_beta: See `smooth_l1`.
    total: RoIs to divide by; None: those of this batch.

  Source:
    Fast R-CNN (arXiv:1504.08083), equations 1 to 3; divided by all sampled
    RoIs, background too, as in maskrcnn-benchmark
    `modeling/roi_heads/box_head/loss.py`.
  """
  deltas = jnp.take_along_axis(
      box_deltas, targets.class_targets[:, :, None, None], axis=2
  )[:, :, 0]
  loss = smooth_l1(deltas - targets.delta_targets, beta=smooth_l1_beta)
  loss = jnp.where(targets.foreground, loss.sum(axis=-1), 0)
  return _mean_over(loss, targets.valid, total)


def mask_loss(
    mask_logits: Float[Array, 'b r m m k'],
    mask_targets: Float[Array, 'b r m m'],
    class_targets: Int[Array, 'b r'],
    foreground: Bool[Array, 'b r'],
    *,
    total: Int[Array, ''] | None = None,
) -> Float[Array, '']:
  """Binary cross-entropy of the true class's mask, averaged over its pixels.

  Args:
    mask_logits: Of the RoIs, for each class.
    mask_targets: Of the RoIs.
    class_targets: Of the RoIs.
    foreground: RoIs that have a mask.
    total: RoIs with a mask to divide by; None: those of this batch.

  Source:
    Mask R-CNN (arXiv:1703.06870), section 3; mean over the foreground RoIs
    times m * m. Without any foreground it is 0.
  """
  logits = jnp.take_along_axis(
      mask_logits, class_targets[:, :, None, None, None], axis=4
  )[..., 0]
  loss = optax.sigmoid_binary_cross_entropy(logits, mask_targets)
  loss = jnp.where(foreground, loss.mean(axis=(2, 3)), 0)
  return _mean_over(loss, foreground, total)


def smooth_l1(
    difference: Float[Array, '*n'], *, beta: float
) -> Float[Array, '*n']:
  """Returns |d| - beta / 2, or its parabola d^2 / (2 beta) where |d| < beta.

  Source:
    Fast R-CNN (arXiv:1504.08083), equation 3, with its corner at `beta`.
  """
  # jnp.abs has a slope of 1 at 0; a difference of 0 has nothing to correct.
  size = difference * jnp.sign(difference)
  if beta == 0:
    return size
  return jnp.where(
      size < beta, 0.5 * difference**2 / beta, size - 0.5 * beta
  )


def _mean_over(loss, counted, total):
  """The sum of a loss over how many elements count; 0 if none does."""
  if total is None:
    total = jnp.sum(counted)
  return jnp.sum(loss) / jnp.maximum(total, 1)
