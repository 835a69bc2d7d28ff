"""Mask R-CNN from top to bottom: extract, propose, sample, losses; detect.

Training and inference share the first half:

  images --extract--> pyramid --rate_anchors--> logits, deltas
    training:  --sample--> anchors and RoIs to learn from --> five losses
    inference: --propose--> boxes --classify, suppress, segment--> detections

`Rcnn` holds everything that does not change during a run: the network, the box
conventions, the sizes. Its methods are pure functions of parameters and arrays
and may be called inside `jit`. Each step is computed by the module
that is named like it: `proposals`, `targets`, `losses`, `detections`.

Source:
  Mask R-CNN (arXiv:1703.06870), section 3.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key
import ml_collections

from maskrcnn_jax import losses
from maskrcnn_jax.array_types import (
  Batch,
  Detections,
  GroundTruthLimits,
  Inputs,
  Outlines,
  Proposals,
  Pyramid,
  RoiTargets,
  RpnTargets,
)
from maskrcnn_jax.config import (
  Heads,
  first_level_of,
  geometry_of,
  heads_of,
)
from maskrcnn_jax.detections import detect_boxes, select_masks
from maskrcnn_jax.geometry import Geometry
from maskrcnn_jax.inputs import Augmentation, prepare_inputs
from maskrcnn_jax.kernels import Kernels, choose_kernels
from maskrcnn_jax.model.layers import WIDE_CHANNELS
from maskrcnn_jax.model.mask_rcnn import MaskRCNN
from maskrcnn_jax.model.rpn_head import RpnOutput
from maskrcnn_jax.ops.anchors import (
  AnchorLevel,
  anchor_levels,
  make_anchors,
  pad_size,
)
from maskrcnn_jax.ops.chosen_rows import apply_to_chosen
from maskrcnn_jax.ops.roi_align import assign_levels, roi_align
from maskrcnn_jax.proposals import make_proposals
from maskrcnn_jax.runtime.cluster import each_image, is_single_cpu
from maskrcnn_jax.targets import (
  make_mask_targets,
  make_roi_targets,
  make_rpn_targets,
)

# The coarsest level that RoIs are pooled from; level 6 is for the RPN alone.
# Source: FPN (arXiv:1612.03144), section 4.2.
MAX_ROI_LEVEL = 5

# Number of RoIs that the mask head processes at once where it skips the
# background. Smaller chunks make its matrix products inefficient; larger ones
# waste work on the last chunk.
MASK_CHUNK = 16


class ProposalLimits(NamedTuple):
  """How many boxes the RPN passes on."""

  pre_nms: int  # boxes of a level that enter its NMS
  post_nms: int  # boxes of a level that leave it, at most
  num_proposals: int  # boxes of an image, at most


class RpnOptions(NamedTuple):
  """Numbers and thresholds of the region proposal network."""

  num_samples: int  # anchors of an image that the losses see
  foreground_fraction: float  # largest share of them that may be foreground
  foreground_iou: float  # overlap from which an anchor is foreground
  background_iou: float  # overlap below which an anchor is background
  iou_threshold: float  # of the NMS
  train: ProposalLimits
  eval: ProposalLimits


class RoiOptions(NamedTuple):
  """The RoIs that the box head and the mask head see."""

  num_samples: int  # RoIs of an image that the losses see
  foreground_fraction: float  # largest share of them that may be foreground
  foreground_iou: float  # overlap from which a RoI is foreground
  box_side: int  # cells along each side of the input of the box head
  mask_side: int  # cells along each side of the input of the mask head

  @property
  def max_foreground(self) -> int:
    """Number of slots that foreground RoIs can take; they come first."""
    return int(self.num_samples * self.foreground_fraction)


class DetectionOptions(NamedTuple):
  """Which boxes become detections."""

  min_score: float  # boxes with this score or less are dropped
  iou_threshold: float  # of the NMS inside each class
  max_detections: int  # boxes of an image


class LossWeights(NamedTuple):
  """Factors of the five losses."""

  objectness: float = 1.0
  rpn_box: float = 1.0
  classification: float = 1.0
  box: float = 1.0
  mask: float = 1.0


class Samples(NamedTuple):
  """The anchors and RoIs that the losses of a batch are computed from."""

  rpn: RpnTargets
  roi: RoiTargets | None  # None if the model has no box head


class SampleCounts(NamedTuple):
  """Number of samples that each loss is averaged over.

  None stands for the number of samples in the batch itself.
  """

  anchors: Int[Array, ''] | None = None
  rois: Int[Array, ''] | None = None
  masks: Int[Array, ''] | None = None


OF_THIS_BATCH = SampleCounts()


class Losses(NamedTuple):
  """The losses of a batch, times their weights; None without their head."""

  box: Float[Array, ''] | None
  classification: Float[Array, ''] | None
  mask: Float[Array, ''] | None
  objectness: Float[Array, '']
  rpn_box: Float[Array, '']

  def by_name(self) -> dict[str, Float[Array, '']]:
    """Returns {name: loss} by the names that the seed's log gives them.

    Source:
      The seed's `modeling/rpn/rpn.py`, `roi_heads/box_head/box_head.py` and
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
    return sum(self.by_name().values())


class Rcnn(NamedTuple):
  """Everything about a Mask R-CNN that does not change during a run."""

  network: MaskRCNN  # everything with parameters
  heads: Heads  # which heads follow the RPN
  geometry: Geometry  # the box conventions
  kernels: Kernels  # the implementation of each operation
  kernel_choice: str  # a line for the log: which implementations, and why
  mesh: Mesh | None  # devices that the images are spread over; None: one
  # Sizes of the anchors of each level, in pixels, finest level first.
  anchor_sizes: tuple[tuple[float, ...], ...]
  anchor_ratios: tuple[float, ...]  # height over width
  first_level: int  # finest pyramid level
  rpn: RpnOptions
  roi: RoiOptions
  detection: DetectionOptions
  loss_weights: LossWeights
  # Whether the mask head runs on the RoIs with a mask only, in chunks, instead
  # of on all slots that such a RoI could take. The losses are the same.
  skip_background: bool = False

  @classmethod
  def from_config(
    cls,
    config: ml_collections.ConfigDict,
    *,
    num_classes: int,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
  ) -> 'Rcnn':
    """Returns the model of a recipe. Nothing below this function reads one.

    Args:
      config: The recipe.
      num_classes: Number of classes, background included.
      dtype: Type that convolutions and matrix products are computed in.
      mesh: Devices that the images of a batch are spread over; None for one
        device.
    """
    heads = heads_of(config)
    device = mesh.devices.flat[0] if mesh else jax.local_devices()[0]
    kernels, kernel_choice = choose_kernels(
      config.kernels,
      platform=device.platform,
      device_kind=device.device_kind,
      jax_version=jax.__version__,
      compute_capability=float(getattr(device, 'compute_capability', 8)),
    )
    network_options = dict(config.model)
    # `heads_of` has read the output; the module calls its backbone `backbone`.
    network_options.pop('output')
    network_options['backbone_name'] = network_options.pop('backbone')
    rpn, roi = config.rpn, config.roi
    return cls(
      network=MaskRCNN(
        num_classes=num_classes,
        anchors_per_cell=len(config.anchors.sizes[0])
        * len(config.anchors.ratios),
        has_box_head=heads.boxes,
        has_mask_head=heads.masks,
        dtype=dtype,
        **network_options,
      ),
      heads=heads,
      geometry=geometry_of(config),
      kernels=kernels,
      kernel_choice=kernel_choice,
      mesh=mesh,
      anchor_sizes=tuple(map(tuple, config.anchors.sizes)),
      anchor_ratios=tuple(config.anchors.ratios),
      first_level=first_level_of(config),
      rpn=RpnOptions(
        num_samples=rpn.num_samples,
        foreground_fraction=rpn.foreground_fraction,
        foreground_iou=rpn.foreground_iou,
        background_iou=rpn.background_iou,
        iou_threshold=rpn.iou_threshold,
        train=ProposalLimits(**rpn.train),
        eval=ProposalLimits(**rpn.eval),
      ),
      roi=RoiOptions(
        num_samples=roi.num_samples,
        foreground_fraction=roi.foreground_fraction,
        foreground_iou=roi.foreground_iou,
        box_side=roi.box_side,
        mask_side=roi.mask_side,
      ),
      detection=DetectionOptions(**config.detections),
      loss_weights=LossWeights(**config.loss_weights),
      # It pays on a single CPU with a wide mask head. XLA runs the
      # convolutions of a narrow one several times slower inside the loop
      # over the chunks.
      skip_background=(
        mesh is not None
        and is_single_cpu(mesh)
        and config.model.mask_channels >= WIDE_CHANNELS
      ),
    )

  def init(self, key: Key[Array, '']) -> dict:
    """Returns random `params` and, under frozen batch norm, `constants`."""
    images = jnp.zeros((1, 64, 64, 3))
    return dict(
      self.network.init(
        key,
        images,
        box_side=self.roi.box_side,
        mask_side=self.roi.mask_side,
      )
    )

  # Training and inference.

  def prepare(
    self,
    batch: Batch,
    augmentation: Augmentation | None = None,
    *,
    padded_size: tuple[int, int],
    max_object_vertices: int | None = None,
  ) -> Inputs:
    """Resizes, normalises and pads the images of a batch, and their objects.

    Args:
      batch: As decoded by the host.
      augmentation: Random changes of the images; None changes nothing.
      padded_size: (height, width) of the canvas.
      max_object_vertices: See `prepare_inputs`.
    """
    pixels = self.geometry.input_format
    mean, std = pixels.rgb_255()
    if augmentation is None:
      augmentation = Augmentation(jnp.zeros(batch.images.shape[0], bool))
    return prepare_inputs(
      batch,
      augmentation.flips,
      padded_size=padded_size,
      pixel_mean=mean,
      pixel_std=std,
      antialias=pixels.antialias,
      width_offset=self.geometry.width_offset,
      placement=augmentation.placement,
      color_factors=augmentation.color_factors,
      max_object_vertices=max_object_vertices,
    )

  def extract(
    self, variables: dict, images: Float[Array, 'b h w 3']
  ) -> Pyramid:
    """Returns the feature maps of normalised images, by level."""
    return self.network.apply(variables, images, method='extract')

  def rate_anchors(self, variables: dict, pyramid: Pyramid) -> RpnOutput:
    """Returns, for every anchor, whether it holds an object and its deltas."""
    return self.network.apply(variables, pyramid, method='propose')

  def propose(
    self,
    rpn: RpnOutput,
    image_sizes: Int[Array, 'b 2'],
    limits: ProposalLimits,
    *,
    padded_size: tuple[int, int],
  ) -> Proposals:
    """Selects the boxes that the heads will process.

    Args:
      rpn: Output of `rate_anchors`.
      image_sizes: (height, width) of each image before padding.
      limits: Number of boxes to keep.
      padded_size: (height, width) of the canvas.
    """

    def propose_in_image(logits, deltas, image_size):
      levels, fit_to = self.anchors(padded_size, image_size)
      return make_proposals(
        logits,
        deltas,
        levels,
        image_size,
        fit_to=fit_to,
        iou_threshold=self.rpn.iou_threshold,
        delta_weights=self.geometry.anchor_delta_weights,
        padding_multiple=self.geometry.padding_multiple,
        min_size=self.geometry.proposal_min_size,
        width_offset=self.geometry.width_offset,
        kernels=self.kernels,
        **limits._asdict(),
      )

    return each_image(propose_in_image, self.mesh)(
      rpn.objectness_logits, rpn.anchor_deltas, image_sizes
    )

  def anchors(
    self, padded_size: tuple[int, int], image_size: Int[Array, '2']
  ) -> tuple[tuple[AnchorLevel, ...], Int[Array, '2'] | None]:
    """Returns where the anchors of an image are: the levels, and `fit_to`.

    Args:
      padded_size: (height, width) of the canvas.
      image_size: (height, width) of the image before padding.

    Returns:
      Arguments of `ops.anchors.make_anchors`.
    """
    levels = anchor_levels(
      padded_size,
      sizes=dict(enumerate(self.anchor_sizes, start=self.first_level)),
      ratios=self.anchor_ratios,
      rounding=self.geometry.anchor_rounding,
    )
    if not self.geometry.fit_strides:
      return levels, None
    return levels, pad_size(
      image_size, padding_multiple=self.geometry.padding_multiple
    )

  def pool(
    self, pyramid: Pyramid, boxes: Float[Array, 'b r 4'], *, side: int
  ) -> Float[Array, 'b r {side} {side} c']:
    """Pools each box from the pyramid level that suits its size.

    Args:
      pyramid: Feature maps of a batch.
      boxes: In pixels of the resized images.
      side: Number of cells along each side of the result.
    """
    features = {
      level: x for level, x in pyramid.items() if level <= MAX_ROI_LEVEL
    }
    levels = assign_levels(
      boxes,
      min_level=min(features),
      max_level=max(features),
      epsilon=self.geometry.level_epsilon,
      shift=self.geometry.level_shift,
      width_offset=self.geometry.width_offset,
    )
    kernels = self.kernels.roi_align
    pool_in_image = functools.partial(
      roi_align,
      side=side,
      sampling_ratio=self.geometry.sampling_ratio,
      offset=self.geometry.roi_offset,
      min_side=self.geometry.roi_min_side,
      kernels=kernels,
    )
    # XLA distributes the code that it compiles itself. It cannot split a
    # kernel over devices.
    pool_batch = each_image(
      pool_in_image, self.mesh if kernels != 'xla' else None
    )
    return pool_batch(features, boxes, levels)

  # Training.

  def compute_losses(
    self,
    variables: dict,
    inputs: Inputs,
    keys: Key[Array, 'b 2'],
    *,
    limits: GroundTruthLimits,
    samples: Samples | None = None,
    counts: SampleCounts = OF_THIS_BATCH,
  ) -> Losses:
    """Returns the losses of a batch, from images to five numbers.

    Args:
      variables: Parameters and constants.
      inputs: Images and their objects, as `prepare` returns them.
      keys: Random keys of each image: for its anchors and for its RoIs.
      limits: Static sizes of the ground truth.
      samples: Anchors and RoIs that are learned from; None draws them here.
      counts: Number of samples the losses are averaged over. For a
        micro-batch, the numbers of the whole batch.
    """
    pyramid = self.extract(variables, inputs.images)
    rpn = self.rate_anchors(variables, pyramid)
    if samples is None:
      samples = self.sample(rpn, inputs, keys)

    over_slots = self.geometry.anchor_loss_over_slots
    objectness = losses.objectness_loss(
      rpn.objectness_logits,
      samples.rpn,
      over_slots=over_slots,
      total=counts.anchors,
    )
    rpn_box = losses.anchor_box_loss(
      rpn.anchor_deltas,
      samples.rpn,
      smooth_l1_beta=self.geometry.anchor_smooth_l1_beta,
      over_slots=over_slots,
      total=counts.anchors,
    )
    classification = box = mask = None
    if self.heads.boxes:
      pooled = self.pool(pyramid, samples.roi.rois, side=self.roi.box_side)
      boxes = self.network.apply(variables, pooled, method='classify')
      classification = losses.classification_loss(
        boxes.class_logits, samples.roi, total=counts.rois
      )
      box = losses.box_loss(
        boxes.box_deltas,
        samples.roi,
        smooth_l1_beta=self.geometry.roi_smooth_l1_beta,
        total=counts.rois,
      )
    if self.heads.masks:
      mask = self._compute_mask_loss(
        variables, pyramid, samples.roi, inputs, limits, counts.masks
      )
    weights = self.loss_weights
    return Losses(
      box=_weigh(box, weights.box),
      classification=_weigh(classification, weights.classification),
      mask=_weigh(mask, weights.mask),
      objectness=_weigh(objectness, weights.objectness),
      rpn_box=_weigh(rpn_box, weights.rpn_box),
    )

  def sample(
    self, rpn: RpnOutput, inputs: Inputs, keys: Key[Array, 'b 2']
  ) -> Samples:
    """Chooses the anchors and the RoIs that the losses are computed from.

    The choice for an image depends on that image and its keys alone.

    Args:
      rpn: Output of `rate_anchors`. No gradient flows back into it.
      inputs: Images and their objects.
      keys: Random keys of each image: for its anchors and for its RoIs.
    """
    padded_size = inputs.images.shape[1:3]
    rpn_targets = self._sample_anchors(inputs, keys[:, 0], padded_size)
    if not self.heads.boxes:
      return Samples(rpn_targets, None)
    # The gradient is cut here, so that the backward pass of `each_image` on a
    # mesh is not built.
    proposals = self.propose(
      jax.lax.stop_gradient(rpn),
      inputs.image_sizes,
      self.rpn.train,
      padded_size=padded_size,
    )
    roi_targets = self._sample_rois(proposals, inputs, keys[:, 1])
    return Samples(rpn_targets, roi_targets)

  def count_samples(self, samples: Samples, outlines: Outlines) -> SampleCounts:
    """Returns the number of samples that each loss is averaged over.

    Args:
      samples: As `sample` returns them.
      outlines: Outlines of the objects of the same images.
    """
    anchors = jnp.sum(
      losses.counted_anchors(samples.rpn, self.geometry.anchor_loss_over_slots)
    )
    if samples.roi is None:
      return SampleCounts(anchors)
    return SampleCounts(
      anchors,
      jnp.sum(samples.roi.valid),
      jnp.sum(rois_with_mask(samples.roi, outlines)),
    )

  def _sample_anchors(self, inputs, keys, padded_size) -> RpnTargets:
    """Chooses the anchors to learn from, and their targets."""

    def sample_in_image(image_size, gt_boxes, gt_valid, key):
      levels, fit_to = self.anchors(padded_size, image_size)
      return make_rpn_targets(
        jnp.concatenate(make_anchors(levels, fit_to=fit_to)),
        image_size,
        gt_boxes,
        gt_valid,
        key,
        num_samples=self.rpn.num_samples,
        foreground_fraction=self.rpn.foreground_fraction,
        foreground_iou=self.rpn.foreground_iou,
        background_iou=self.rpn.background_iou,
        delta_weights=self.geometry.anchor_delta_weights,
        padding_multiple=self.geometry.padding_multiple,
        ignore_straddling=self.geometry.ignore_straddling,
        width_offset=self.geometry.width_offset,
        kernels=self.kernels,
      )

    return each_image(sample_in_image, self.mesh)(
      inputs.image_sizes, inputs.gt_boxes, inputs.gt_valid, keys
    )

  def _sample_rois(self, proposals, inputs, keys) -> RoiTargets:
    """Chooses the RoIs to learn from, and their targets."""

    def sample_in_image(proposals, gt_boxes, gt_classes, gt_valid, key):
      return make_roi_targets(
        proposals,
        gt_boxes,
        gt_classes,
        gt_valid,
        key,
        num_samples=self.roi.num_samples,
        foreground_fraction=self.roi.foreground_fraction,
        foreground_iou=self.roi.foreground_iou,
        delta_weights=self.geometry.roi_delta_weights,
        width_offset=self.geometry.width_offset,
        kernels=self.kernels,
      )

    return each_image(sample_in_image, self.mesh)(
      proposals, inputs.gt_boxes, inputs.gt_classes, inputs.gt_valid, keys
    )

  def _compute_mask_loss(
    self, variables, pyramid, targets, inputs, limits, count
  ) -> Float[Array, '']:
    """Returns the mask loss of the sampled RoIs that are foreground."""
    # Foreground RoIs come first, so that no other slot needs the mask head.
    targets = jax.tree.map(lambda x: x[:, : self.roi.max_foreground], targets)
    pooled = self.pool(pyramid, targets.rois, side=self.roi.mask_side)
    has_mask = rois_with_mask(targets, inputs.outlines)
    mask_logits = self._segment_chosen(variables, pooled, has_mask)
    padded_size = inputs.images.shape[1:3]
    is_bitmap = self.geometry.mask_targets == 'bitmap'

    def draw_in_image(outlines, rois, objects, foreground, image_size):
      return make_mask_targets(
        outlines,
        rois,
        objects,
        foreground,
        side=mask_logits.shape[2],
        max_object_vertices=limits.max_object_vertices,
        max_parts=limits.max_parts,
        min_roi_side=self.geometry.mask_min_side,
        image_size=image_size if is_bitmap else None,
        padded_size=padded_size,
        kernels=self.kernels,
      )

    mask_targets = each_image(draw_in_image, self.mesh)(
      inputs.outlines,
      targets.rois,
      targets.objects,
      targets.foreground,
      inputs.image_sizes,
    )
    return losses.mask_loss(
      mask_logits,
      mask_targets,
      targets.class_targets,
      has_mask,
      total=count,
    )

  def _segment_chosen(
    self, variables, pooled, has_mask
  ) -> Float[Array, 'b r m m k']:
    """Runs the mask head on all RoIs, or on those with a mask only."""
    if not self.skip_background:
      return self.network.apply(variables, pooled, method='segment')

    def segment(variables, rows):
      return self.network.apply(variables, rows[None], method='segment')[0]

    flat = apply_to_chosen(
      segment,
      variables,
      pooled.reshape(-1, *pooled.shape[2:]),
      has_mask.reshape(-1),
      MASK_CHUNK,
    )
    return flat.reshape(*pooled.shape[:2], *flat.shape[1:])

  # Inference.

  def detect(
    self,
    variables: dict,
    images: Float[Array, 'b h w 3'],
    image_sizes: Int[Array, 'b 2'],
  ) -> Detections:
    """Finds the objects in a batch of images, best first.

    Args:
      variables: Parameters and constants.
      images: Normalised and padded, as `prepare` returns them.
      image_sizes: (height, width) of each image before padding.

    Returns:
      Boxes in pixels of the resized images. A model without a box head returns
      its proposals, all of class 1; one without a mask head has no masks.
    """
    pyramid = self.extract(variables, images)
    rpn = self.rate_anchors(variables, pyramid)
    proposals = self.propose(
      rpn, image_sizes, self.rpn.eval, padded_size=images.shape[1:3]
    )
    if not self.heads.boxes:
      return Detections(
        proposals.boxes,
        proposals.valid.astype(jnp.int32),
        proposals.scores,
        None,
        proposals.valid,
      )
    pooled = self.pool(pyramid, proposals.boxes, side=self.roi.box_side)
    heads = self.network.apply(variables, pooled, method='classify')

    def detect_in_image(class_logits, box_deltas, proposals, image_size):
      return detect_boxes(
        class_logits,
        box_deltas,
        proposals,
        image_size,
        delta_weights=self.geometry.roi_delta_weights,
        min_size=self.geometry.detection_min_size,
        width_offset=self.geometry.width_offset,
        kernels=self.kernels,
        **self.detection._asdict(),
      )

    boxes, classes, scores, valid = each_image(detect_in_image, self.mesh)(
      heads.class_logits, heads.box_deltas, proposals, image_sizes
    )
    if not self.heads.masks:
      return Detections(boxes, classes, scores, None, valid)
    pooled = self.pool(pyramid, boxes, side=self.roi.mask_side)
    mask_logits = self.network.apply(variables, pooled, method='segment')
    masks = jax.vmap(select_masks)(mask_logits, classes)
    return Detections(boxes, classes, scores, masks, valid)


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


def _weigh(loss, weight: float):
  """Multiplies a loss by its weight, where there is such a loss."""
  # Multiplying by 1 changes no result, but compiles another program.
  return loss if loss is None or weight == 1 else weight * loss
