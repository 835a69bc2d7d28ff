"""Compares losses, gradients and mask targets with another program's."""

import jax
import jax.numpy as jnp
import numpy as np
from parity import make_batch
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax import rcnn as rcnn_module
from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.convert_weights.weight_names import NAMINGS, peer_names
from maskrcnn_jax.model.backbone import frozen_prefixes
from maskrcnn_jax.ops.boxes import pairwise_iou
from maskrcnn_jax.rcnn import ProposalLimits
from maskrcnn_jax.runtime import checkpoint
from maskrcnn_jax.targets import make_mask_targets
from maskrcnn_jax.training.optimizer import join_parameters, split_parameters


def train_on_all(detector, batch, *, num_proposals, mask_targets):
  """Computes losses and gradients with samples that hold every candidate.

  So the random choice of the programs does not matter. Both are computed twice:
  with the mask targets of this program and with those of the other program.

  Args:
    detector: The model; it is not changed.
    batch: One image with its ground truth.
    num_proposals: Largest number of proposals of each level and of the image.
    mask_targets: (RoIs, masks) of the other program: boxes in pixels, and a
      mask for each. The masks of RoIs that are not foreground are not used.

  Returns:
    A (losses, norms) pair for our mask targets and one for theirs. Both are
    dicts, by the name of the loss and by the path of the parameter.
  """
  config, rcnn = detector.config, detector.rcnn
  number = ProposalLimits(2000, num_proposals, num_proposals)
  rcnn = rcnn._replace(
    rpn=rcnn.rpn._replace(num_samples=65_536, train=number),
    roi=rcnn.roi._replace(num_samples=2_400, foreground_fraction=0.2),
  )
  starts = batch.outlines.starts
  limits = GroundTruthLimits(
    batch.gt_boxes.shape[1],
    batch.outlines.parts.size,
    int(np.diff(starts).max()),
    1,
  )
  trainable, fixed = split_parameters(
    detector.variables['params'], frozen_prefixes(config.freeze_at)
  )
  draw_targets = rcnn_module.make_mask_targets
  rois, masks = map(jnp.asarray, mask_targets)

  def run(trainable, batch, use_theirs):
    inputs = rcnn.prepare(batch, padded_size=config.data.padded_sizes[0])
    keys = jax.random.split(jax.random.key(0), (1, 2))

    def choose_targets(outlines, boxes, objects, foreground, **options):
      ours = draw_targets(outlines, boxes, objects, foreground, **options)
      distance = jnp.abs(boxes[:, None] - rois).max(axis=-1)
      theirs = masks[distance.argmin(axis=1)]
      return jnp.where(use_theirs, theirs, ours)

    def total(trainable):
      params = join_parameters(trainable, fixed)
      losses = rcnn.compute_losses(
        detector.variables | {'params': params}, inputs, keys, limits=limits
      )
      return losses.total(), losses.by_name()

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(rcnn_module, 'make_mask_targets', choose_targets)
      return jax.grad(total, has_aux=True)(trainable)

  run = jax.jit(run)
  results = []
  for use_theirs in (False, True):
    gradients, losses = jax.device_get(run(trainable, batch, use_theirs))
    norms = {
      f'params/{name}': np.linalg.norm(np.asarray(gradient, np.float64))
      for name, gradient in checkpoint.named_leaves(gradients).items()
    }
    results.append(({k: float(v) for k, v in losses.items()}, norms))
  return results


def check_training(golden, detector, program, *, num_proposals):
  """Compares losses, gradients and mask targets with another program's.

  The other program draws a polygon with the COCO API, which rounds it to a grid
  five times as fine; here a cell is inside if its centre is. So a few cells at
  the border differ, and with them the mask loss. The other program's targets in
  place of ours must make all losses and gradients equal.

  Args:
    golden: Results of the other program.
    detector: The model with the weights of the other program.
    program: The other program, a key of `NAMINGS`.
    num_proposals: Largest number of proposals of each level and of the image.
  """
  naming = NAMINGS[program]
  batch = make_batch(
    golden['image'],
    golden['gt_boxes'],
    golden['gt_labels'] + naming.background_last,
    polygons=golden['polys'],
  )
  masks = np.unpackbits(golden['mask_targets'], axis=-1)[..., :28]
  results = train_on_all(
    detector,
    batch,
    num_proposals=num_proposals,
    mask_targets=(golden['mask_rois'], masks.astype(np.float32)),
  )
  names, norms = golden['grad_names'].tolist(), golden['grad_norms'].tolist()
  loss_errors, norm_errors = [], []
  for losses, our_norms in results:
    loss_errors.append(
      {k: abs(v / float(golden[f'train/{k}']) - 1) for k, v in losses.items()}
    )
    named = {peer_names(k, naming)[0]: v for k, v in our_norms.items()}
    assert named.keys() == set(names) and len(names) == 84
    norm_errors.append(
      {k: abs(named[k] / v - 1) for k, v in zip(names, norms, strict=True)}
    )
    print({k: f'{v:.1e}' for k, v in loss_errors[-1].items()})
    print('gradient norms', f'{max(norm_errors[-1].values()):.1e}')
  own, fed = loss_errors
  # With the same targets: 1e-4 of each loss, and ten times as much of each
  # gradient.
  assert not {k: v for k, v in fed.items() if v > 1e-4}
  assert not {k: v for k, v in norm_errors[1].items() if v > 1e-3}
  # With our own targets: only the mask loss differs, and only the gradients of
  # the layers that learn from it.
  assert not {k: v for k, v in own.items() if k != 'loss_mask' and v > 1e-4}
  assert fed['loss_mask'] < own['loss_mask'] < 1e-2
  for name, value in norm_errors[0].items():
    learns_masks = 'mask' in name or name.startswith('backbone')
    assert value < (2e-2 if learns_masks else 1e-3), name


def check_mask_targets(golden, program, *, width_offset, min_side):
  """Compares mask targets with another program's, and finds why they differ.

  The COCO API, given the polygon in cells of the RoI, must draw the other
  program's targets exactly: this is the whole difference of the programs. Where
  our targets differ from it, the centre of the cell is close to the border of
  the polygon.

  Args:
    golden: Results of the other program.
    program: The other program, a key of `NAMINGS`.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels, to find the object of each RoI.
    min_side: Shortest side of a RoI, in pixels.
  """
  side, polygons = 28, golden['polys']
  rois = golden['mask_rois']
  theirs = np.unpackbits(golden['mask_targets'], axis=-1)[..., :side]
  batch = make_batch(
    golden['image'],
    golden['gt_boxes'],
    golden['gt_labels'] + NAMINGS[program].background_last,
    polygons=polygons,
  )
  iou = pairwise_iou(
    jnp.asarray(rois),
    jnp.asarray(golden['gt_boxes']),
    width_offset=width_offset,
    kernels='xla',
  )
  objects = np.asarray(iou).argmax(axis=1)
  ours = make_mask_targets(
    jax.tree.map(lambda x: jnp.asarray(x[0]), batch.outlines),
    jnp.asarray(rois),
    jnp.asarray(objects),
    jnp.ones(len(rois), bool),
    side=side,
    max_object_vertices=polygons.shape[1] + 1,
    max_parts=1,
    min_roi_side=min_side,
  )
  drawn, distances = [], []
  for roi, object_, one, other in zip(rois, objects, ours, theirs, strict=True):
    sides = np.maximum(roi[2:] - roi[:2], min_side).astype(np.float64)
    corners = (polygons[object_].astype(np.float64) - roi[:2]) * (side / sides)
    parts = mask_api.frPyObjects([corners.ravel().tolist()], side, side)
    drawn.append(mask_api.decode(mask_api.merge(parts)))
    rows, columns = np.nonzero(np.asarray(one) != other)
    centres = np.stack([columns, rows], axis=-1) + 0.5
    distances.extend(distances_to_outline(centres, corners))
  np.testing.assert_array_equal(np.stack(drawn), theirs)
  share = len(distances) / theirs.size
  print(
    f'{share:.2%} of cells differ, up to {max(distances):.2f} from the edge'
  )
  assert 0 < share < 0.01
  # The step of the COCO API's grid.
  assert max(distances) < 0.2


def distances_to_outline(points, corners):
  """Returns the distance of each point to the edges of a polygon.

  Args:
    points: (x, y) of each point, [points, 2].
    corners: (x, y) of each corner of the polygon, [corners, 2].
  """
  edges = np.roll(corners, -1, axis=0) - corners
  along = ((points[:, None] - corners) * edges).sum(axis=-1)
  along = np.clip(along / np.maximum((edges**2).sum(axis=-1), 1e-12), 0, 1)
  nearest = corners + along[..., None] * edges
  return np.linalg.norm(points[:, None] - nearest, axis=-1).min(axis=1)
