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
from typing import Any, NamedTuple

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
from maskrcnn_jax.losses import Losses, LossWeights
from maskrcnn_jax.model.box_head import BoxOutput
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
from maskrcnn_jax.ops.valid_cells import valid_cells
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

# Number of RoIs that the mask head processes at once where it skips RoIs that
# need no mask. Smaller chunks make its matrix products inefficient; larger ones
# waste work on the last chunk.
MASK_CHUNK = 16


class ProposalLimits(NamedTuple):
  """Numbers of boxes that the RPN passes on."""

  pre_nms: int  # boxes of a level that enter NMS
  post_nms: int  # boxes of a level that NMS keeps, at most
  num_proposals: int  # boxes of an image, at most


class RpnOptions(NamedTuple):
  """Numbers and thresholds of the region proposal network."""

  num_samples: int  # anchors of an image that the losses see
  foreground_fraction: float  # largest share of them that may be foreground
  foreground_iou: float  # overlap from which an anchor is foreground
  background_iou: float  # overlap below which an anchor is background
  iou_threshold: float  # overlap above which the NMS drops a box
  train: ProposalLimits  # used in training
  eval: ProposalLimits  # used in evaluation and prediction


class RoiOptions(NamedTuple):
  """Numbers and thresholds of the RoIs that the box and mask heads see."""

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
  """Numbers and thresholds that decide which boxes become detections."""

  min_score: float  # boxes with this score or less are dropped
  iou_threshold: float  # overlap above which the NMS of a class drops a box
  max_detections: int  # boxes of an image, at most


class Samples(NamedTuple):
  """The anchors and RoIs that the losses of a batch are computed from."""

  rpn: RpnTargets
  roi: RoiTargets | None  # None if the model has no box head


class SampleCounts(NamedTuple):
  """Number of samples that each loss is averaged over.

  `None` lets the loss count the samples of the batch that it is computed for.
  """

  anchors: Int[Array, ''] | None = None
  rois: Int[Array, ''] | None = None
  masks: Int[Array, ''] | None = None


OF_THIS_BATCH = SampleCounts()


class Rcnn(NamedTuple):
  """A Mask R-CNN: its network and all that does not change during a run."""

  network: MaskRCNN  # the modules with parameters
  heads: Heads  # which heads follow the RPN
  geometry: Geometry  # the box conventions
  kernels: Kernels  # the implementation of each operation
  kernel_choice: str  # a line for the log: which implementations, and why
  mesh: Mesh | None  # devices of the images; None if there is one device
  # Sizes of the anchors of each level, in pixels, finest level first.
  anchor_sizes: tuple[tuple[float, ...], ...]
  anchor_ratios: tuple[float, ...]  # height over width
  first_level: int  # finest pyramid level
  rpn: RpnOptions
  roi: RoiOptions
  detection: DetectionOptions
  loss_weights: LossWeights
  # Whether the mask head runs in chunks, and on the RoIs that need a mask only:
  # in training those with a mask to learn, in inference the detections.
  # Otherwise it runs on all slots at once, with the same losses and detections.
  mask_in_chunks: bool = False

  @classmethod
  def from_config(
    cls,
    config: ml_collections.ConfigDict,
    *,
    num_classes: int,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
  ) -> 'Rcnn':
    """Returns the model of a recipe.

    The fields are plain values: no module below this one reads a recipe.

    Args:
      config: The recipe.
      num_classes: Number of classes, background included.
      dtype: Type that convolutions and matrix products are computed in.
      mesh: Devices that the images of a batch are spread over; `None` if there
        is one device.
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
      # Chunks are faster on a single CPU with a wide mask head only. XLA runs
      # the convolutions of a narrow head several times slower inside the loop
      # over the chunks.
      mask_in_chunks=(
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
      batch: Images and objects, as the host decoded them.
      augmentation: Random changes of the images; `None` changes nothing.
      padded_size: (height, width) of the canvas, in pixels.
      max_object_vertices: Upper limit of the number of vertices of an object.
        It must be given if the augmentation may crop images. The box of a
        cropped object then encloses its visible part only.
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

  def own_sizes(self, image_sizes: Int[Array, '*b 2']) -> Int[Array, '*b 2']:
    """Returns (height, width) of each image on a canvas of its own, in pixels.

    Other programs process an image at this size. On a larger canvas, all that
    lies beyond it is padding and changes no result.

    Args:
      image_sizes: (height, width) of each image before padding.

    Source:
      detectron2, torchvision and maskrcnn-benchmark pad an image to multiples
      of 32 pixels if the model has a pyramid, which needs halves of halves. If
      it has none, detectron2 and maskrcnn-benchmark do not pad at all.
    """
    if self.network.body != 'fpn':
      return image_sizes
    return pad_size(
      image_sizes, padding_multiple=self.geometry.padding_multiple
    )

  def extract(
    self,
    variables: dict,
    images: Float[Array, 'b h w 3'],
    image_sizes: Int[Array, 'b 2'],
  ) -> Pyramid:
    """Returns {level: feature map} of normalised images.

    Args:
      variables: Parameters and constants.
      images: Normalised and padded with zeros, as `prepare` returns them.
      image_sizes: (height, width) of each image before padding.

    Returns:
      Features that do not depend on the size of the canvas; 0 in the padding.
    """
    _, height, width, _ = images.shape
    shapes = {
      level: (-(-height // 2**level), -(-width // 2**level))
      for level in range(1, 6)
    }
    valid = valid_cells(self.own_sizes(image_sizes), shapes)
    return self._apply(variables, 'extract', images, valid)

  def rate_anchors(
    self, variables: dict, pyramid: Pyramid, image_sizes: Int[Array, 'b 2']
  ) -> RpnOutput:
    """Returns the objectness logit and the deltas of every anchor.

    Args:
      variables: Parameters and constants.
      pyramid: The result of `extract`.
      image_sizes: (height, width) of each image before padding. Anchors beyond
        the padding of an image have outputs without a meaning.
    """
    shapes = {level: (x.shape[1], x.shape[2]) for level, x in pyramid.items()}
    valid = valid_cells(self.own_sizes(image_sizes), shapes)
    return self._apply(variables, 'propose', pyramid, valid)

  def classify(
    self, variables: dict, pooled: Float[Array, 'b r s s c']
  ) -> BoxOutput:
    """Returns the class logits of each RoI, and its deltas for each class."""
    return self._apply(variables, 'classify', pooled)

  def segment(
    self,
    variables: dict,
    pooled: Float[Array, 'b r s s c'],
    classes: Int[Array, 'b r'] | None = None,
  ) -> Float[Array, 'b r m m k']:
    """Returns the mask logits of each RoI for each class.

    Args:
      variables: Parameters and constants.
      pooled: Features of the RoIs.
      classes: Class of each RoI, whose mask alone is computed; k is then 1.
    """
    return self._apply(variables, 'segment', pooled, classes)

  def _apply(self, variables: dict, method: str, *arguments: Any) -> Any:
    """Calls a method of the network.

    Args:
      variables: Parameters and constants.
      method: Name of the method: 'extract', 'propose', 'classify' or 'segment'.
      *arguments: The arguments of the method.
    """
    return self.network.apply(variables, *arguments, method=method)

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

    def propose_in_image(
      logits: Float[Array, 'a'],
      deltas: Float[Array, 'a 4'],
      image_size: Int[Array, '2'],
    ) -> Proposals:
      """Selects the proposals of one image."""
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
    """Returns the grid of anchors of each level, and the size it is fitted to.

    Args:
      padded_size: (height, width) of the canvas, in pixels.
      image_size: (height, width) of the image before padding, in pixels.

    Returns:
      The arguments `levels` and `fit_to` of `ops.anchors.make_anchors`.
      `fit_to` is `None` if the strides are the usual powers of two.
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
    self,
    pyramid: Pyramid,
    boxes: Float[Array, 'b r 4'],
    image_sizes: Int[Array, 'b 2'],
    *,
    side: int,
  ) -> Float[Array, 'b r {side} {side} c']:
    """Pools each box from the pyramid level that suits its size.

    Args:
      pyramid: Feature maps of a batch.
      boxes: In pixels of the resized images.
      image_sizes: (height, width) of each image before padding. No features are
        read from the padding.
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
    return pool_batch(features, boxes, levels, self.own_sizes(image_sizes))

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
      keys: Two random keys for each image: for the anchors and for the RoIs.
      limits: Static sizes of the ground truth.
      samples: Anchors and RoIs that are learned from. `None` draws the anchors,
        and the RoIs from the proposals of this batch.
      counts: Numbers of samples that the losses are averaged over. For a
        micro-batch, these are the numbers of the whole batch.
    """
    pyramid = self.extract(variables, inputs.images, inputs.image_sizes)
    rpn = self.rate_anchors(variables, pyramid, inputs.image_sizes)
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
    weights = self.loss_weights
    found = Losses(
      box=None,
      classification=None,
      mask=None,
      objectness=losses.weigh(objectness, weights.objectness),
      rpn_box=losses.weigh(rpn_box, weights.rpn_box),
    )
    if samples.roi is None:
      return found
    pooled = self.pool(
      pyramid, samples.roi.rois, inputs.image_sizes, side=self.roi.box_side
    )
    boxes = self.classify(variables, pooled)
    classification = losses.classification_loss(
      boxes.class_logits, samples.roi, total=counts.rois
    )
    box = losses.box_loss(
      boxes.box_deltas,
      samples.roi,
      smooth_l1_beta=self.geometry.roi_smooth_l1_beta,
      total=counts.rois,
    )
    found = found._replace(
      box=losses.weigh(box, weights.box),
      classification=losses.weigh(classification, weights.classification),
    )
    if not self.heads.masks:
      return found
    return found._replace(
      mask=self._compute_mask_loss(
        variables, pyramid, samples.roi, inputs, limits, counts.masks
      )
    )

  def sample(
    self, rpn: RpnOutput, inputs: Inputs, keys: Key[Array, 'b 2']
  ) -> Samples:
    """Chooses the anchors and the RoIs that the losses are computed from.

    The choice for an image depends on that image and its keys alone.

    Args:
      rpn: Output of `rate_anchors`. No gradient flows back into it.
      inputs: Images and their objects.
      keys: Two random keys for each image: for the anchors and for the RoIs.
    """
    _, height, width, _ = inputs.images.shape
    padded_size = height, width
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

  def _sample_anchors(
    self,
    inputs: Inputs,
    keys: Key[Array, 'b'],
    padded_size: tuple[int, int],
  ) -> RpnTargets:
    """Chooses the anchors that the RPN learns from, and their targets."""

    def sample_in_image(
      image_size: Int[Array, '2'],
      gt_boxes: Float[Array, 'g 4'],
      gt_valid: Bool[Array, 'g'],
      key: Key[Array, ''],
    ) -> RpnTargets:
      """Samples the anchors of one image."""
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

  def _sample_rois(
    self, proposals: Proposals, inputs: Inputs, keys: Key[Array, 'b']
  ) -> RoiTargets:
    """Chooses the RoIs that the heads learn from, and their targets."""

    def sample_in_image(
      proposals: Proposals,
      gt_boxes: Float[Array, 'g 4'],
      gt_classes: Int[Array, 'g'],
      gt_valid: Bool[Array, 'g'],
      key: Key[Array, ''],
    ) -> RoiTargets:
      """Samples the RoIs of one image."""
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
    self,
    variables: dict,
    pyramid: Pyramid,
    targets: RoiTargets,
    inputs: Inputs,
    limits: GroundTruthLimits,
    total: Int[Array, ''] | None,
  ) -> Float[Array, '']:
    """Returns the weighted mask loss of the sampled RoIs that are foreground.

    Args:
      variables: Parameters and constants.
      pyramid: Feature maps of the batch.
      targets: The sampled RoIs.
      inputs: Images and their objects.
      limits: Static sizes of the ground truth.
      total: Number of RoIs with a mask that the loss is averaged over. `None`
        counts the RoIs with a mask of this batch.
    """
    # Foreground RoIs come first, so that no other slot needs the mask head.
    targets = jax.tree.map(lambda x: x[:, : self.roi.max_foreground], targets)
    pooled = self.pool(
      pyramid, targets.rois, inputs.image_sizes, side=self.roi.mask_side
    )
    has_mask = rois_with_mask(targets, inputs.outlines)
    mask_logits = self._segment_chosen(
      variables, pooled, targets.class_targets, has_mask
    )
    _, height, width, _ = inputs.images.shape
    is_bitmap = self.geometry.mask_targets == 'bitmap'

    def draw_in_image(
      outlines: Outlines,
      rois: Float[Array, 'r 4'],
      objects: Int[Array, 'r'],
      foreground: Bool[Array, 'r'],
      image_size: Int[Array, '2'],
    ) -> Float[Array, 'r m m']:
      """Draws the mask targets of the RoIs of one image."""
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
        padded_size=(height, width),
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
      has_mask,
      weights=self.loss_weights,
      total=total,
    )

  def _segment_chosen(
    self,
    variables: dict,
    pooled: Float[Array, 'b r s s c'],
    classes: Int[Array, 'b r'],
    chosen: Bool[Array, 'b r'],
  ) -> Float[Array, 'b r m m']:
    """Returns the mask logits of the class of each chosen RoI.

    With `mask_in_chunks`, the mask head runs on these RoIs only, and the logits
    of the other RoIs are 0. Otherwise it runs on all RoIs.

    Args:
      variables: Parameters and constants.
      pooled: Features of the RoIs.
      classes: Class of each RoI.
      chosen: Which RoIs need a mask.
    """
    if not self.mask_in_chunks:
      return self.segment(variables, pooled, classes)[..., 0]

    def segment_rows(
      variables: dict, rows: tuple[Float[Array, 'n s s c'], Int[Array, 'n']]
    ) -> Float[Array, 'n m m']:
      """Returns the mask logits of n RoIs, given without the axis of images."""
      pooled, classes = rows
      return self.segment(variables, pooled[None], classes[None])[0, ..., 0]

    flat = apply_to_chosen(
      segment_rows,
      variables,
      (pooled.reshape(-1, *pooled.shape[2:]), classes.reshape(-1)),
      chosen.reshape(-1),
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
    pyramid = self.extract(variables, images, image_sizes)
    rpn = self.rate_anchors(variables, pyramid, image_sizes)
    _, height, width, _ = images.shape
    proposals = self.propose(
      rpn, image_sizes, self.rpn.eval, padded_size=(height, width)
    )
    if not self.heads.boxes:
      return Detections(
        proposals.boxes,
        proposals.valid.astype(jnp.int32),
        proposals.scores,
        None,
        proposals.valid,
      )
    pooled = self.pool(
      pyramid, proposals.boxes, image_sizes, side=self.roi.box_side
    )
    heads = self.classify(variables, pooled)

    def detect_in_image(
      class_logits: Float[Array, 'p k'],
      box_deltas: Float[Array, 'p k 4'],
      proposals: Proposals,
      image_size: Int[Array, '2'],
    ) -> tuple[
      Float[Array, 'd 4'], Int[Array, 'd'], Float[Array, 'd'], Bool[Array, 'd']
    ]:
      """Returns the boxes, classes and scores of one image's detections.

      The last result tells which slots are valid, as in `detect_boxes`.
      """
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
    pooled = self.pool(pyramid, boxes, image_sizes, side=self.roi.mask_side)
    if self.mask_in_chunks:
      masks = jax.nn.sigmoid(
        self._segment_chosen(variables, pooled, classes, valid)
      )
    else:
      mask_logits = self.segment(variables, pooled)
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
