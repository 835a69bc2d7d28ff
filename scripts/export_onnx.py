"""Writes a model as an ONNX file, with torchvision and torch's exporter.

  python -m maskrcnn_jax.export --checkpoint=CHECKPOINT --out=DIR
  python -m maskrcnn_jax.convert_weights CHECKPOINT DIR/model.pth \
      --to=torchvision
  python scripts/export_onnx.py DIR/export.json DIR/model.pth DIR/model.onnx

The third command needs torch, torchvision and onnx, but nothing of this
project, so that it runs in an environment of its own.

The ONNX model has the input `image`, float32 [3, height, width], RGB in [0, 1];
height and width may vary. Its results are `boxes` [d, 4], (x1, y1, x2, y2) in
pixels of the picture; `classes` [d], from 1 on; `scores` [d]; and, if the model
has a mask head, `masks` [d, 1, height, width], the probability that a pixel
belongs to the object. Resizing and normalisation are inside.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import torch
from torch import nn
import torchvision
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import (
  FasterRCNN,
  FastRCNNPredictor,
  TwoMLPHead,
)
from torchvision.models.detection.mask_rcnn import (
  MaskRCNN,
  MaskRCNNHeads,
  MaskRCNNPredictor,
)
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign


def main() -> None:
  """Exports the weights that the command line names."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('about', type=pathlib.Path, help='export.json')
  parser.add_argument('weights', type=pathlib.Path, help='.pth file')
  parser.add_argument('out', type=pathlib.Path, help='.onnx file to write')
  arguments = parser.parse_args()
  about = json.loads(arguments.about.read_text('utf-8'))
  reason = why_not(about)
  if reason:
    print(f'error: {arguments.about}: {reason}', file=sys.stderr)
    sys.exit(2)
  if about['geometry'] != 'torchvision':
    print(
      f'The model has the geometry {about["geometry"]}, which torchvision does '
      'not have. Its boxes and scores will differ; convert_weights has printed '
      'how.',
      file=sys.stderr,
    )
  model = build_model(about)
  model.load_state_dict(torch.load(arguments.weights, weights_only=True))
  write_onnx(model, about, arguments.out)
  print(f'{arguments.out} is written.')


def why_not(about: dict[str, Any]) -> str:
  """Returns why torchvision cannot compute a model; '' if it can.

  Args:
    about: The content of export.json.
  """
  model = about['recipe']['model']
  if model['output'] == 'proposals':
    return 'the model has no box head; torchvision has no such model.'
  if model['backbone'] != 'resnet' or model['body'] != 'fpn':
    return 'the model is no ResNet with a feature pyramid.'
  if model['norm'] == 'group' or model['box_convs'] or model['box_fcs'] != 2:
    return (
      'the model has group norm, or a box head that is not two dense layers.'
    )
  if model['width'] != 64:
    return f'the stem of the model has {model["width"]} channels, not 64.'
  return ''


def build_model(about: dict[str, Any]) -> nn.Module:
  """Returns torchvision's model of a recipe, with random weights.

  Args:
    about: The content of export.json.
  """
  recipe = about['recipe']
  network, roi = recipe['model'], recipe['roi']
  eps = network['norm_eps']
  resnet = getattr(torchvision.models, f'resnet{network["depth"]}')(
    weights=None,
    norm_layer=lambda channels: FrozenBatchNorm2d(channels, eps=eps),
    **(
      {'groups': network['groups'], 'width_per_group': network['group_width']}
      if network['groups'] > 1
      else {}
    ),
  )
  channels = network['fpn_channels']
  # The numbers of channels of the four stages.
  width = resnet.inplanes // 8
  backbone = BackboneWithFPN(
    resnet,
    {f'layer{i + 1}': str(i) for i in range(4)},
    [width * 2**i for i in range(4)],
    channels,
  )
  sizes = tuple(map(tuple, recipe['anchors']['sizes']))
  ratios = tuple(recipe['anchors']['ratios'])
  features, classes = network['box_features'], len(about['classes']) + 1
  limits, detections = recipe['rpn']['eval'], recipe['detections']
  levels = [str(i) for i in range(4)]
  options = {
    'min_size': recipe['data']['short_side'],
    'max_size': recipe['data']['long_side'],
    'image_mean': [x / 255 for x in about['pixel_mean']],
    'image_std': [x / 255 for x in about['pixel_std']],
    'rpn_anchor_generator': AnchorGenerator(sizes, (ratios,) * len(sizes)),
    'rpn_pre_nms_top_n_test': limits['pre_nms'],
    'rpn_post_nms_top_n_test': limits['num_proposals'],
    'rpn_nms_thresh': recipe['rpn']['iou_threshold'],
    'box_roi_pool': MultiScaleRoIAlign(
      levels, roi['box_side'], about['sampling_ratio']
    ),
    'box_head': TwoMLPHead(channels * roi['box_side'] ** 2, features),
    'box_predictor': FastRCNNPredictor(features, classes),
    'box_score_thresh': detections['min_score'],
    'box_nms_thresh': detections['iou_threshold'],
    'box_detections_per_img': detections['max_detections'],
  }
  if network['output'] == 'boxes':
    return with_exact_sizes(FasterRCNN(backbone, **options))
  layers = (network['mask_channels'],) * network['mask_convs']
  model = MaskRCNN(
    backbone,
    mask_roi_pool=MultiScaleRoIAlign(
      levels, roi['mask_side'], about['sampling_ratio']
    ),
    mask_head=MaskRCNNHeads(channels, layers, 1),
    mask_predictor=MaskRCNNPredictor(layers[-1], layers[-1], classes),
    **options,
  )
  return with_exact_sizes(model)


def with_exact_sizes(model: FasterRCNN) -> FasterRCNN:
  """Replaces the transform of a detector by an `ExactTransform`."""
  old = model.transform
  model.transform = ExactTransform(
    old.min_size, old.max_size, old.image_mean, old.image_std
  )
  return model.eval()


class ExactTransform(GeneralizedRCNNTransform):
  """Prepares an image as torchvision does, also when it is traced.

  When torchvision's own class is traced, it computes the scale in float32, as a
  product with a reciprocal: a picture of 200 pixels that should have 160 then
  gets 159, and other objects are found.
  """

  def resize(
    self, image: torch.Tensor, target: dict | None = None
  ) -> tuple[torch.Tensor, dict | None]:
    """Resizes an image to the size that torchvision computes in float64.

    Args:
      image: Normalised pixels, [3, height, width].
      target: Not used; returned as it is.
    """
    shape = torch._shape_as_tensor(image)[1:].double()
    scale = torch.minimum(
      torch.div(torch.tensor(float(self.min_size[0])).double(), shape.min()),
      torch.div(torch.tensor(float(self.max_size)).double(), shape.max()),
    )
    size = torch.floor(shape * scale).long().clamp(min=1)
    image = nn.functional.interpolate(
      image[None], size=[size[0], size[1]], mode='bilinear', align_corners=False
    )[0]
    return image, target


class OneImage(nn.Module):
  """A detector whose argument and results are arrays, not lists of dicts."""

  def __init__(self, model: nn.Module, has_masks: bool):
    """Wraps a detector of torchvision.

    Args:
      model: The detector.
      has_masks: Whether it has a mask head.
    """
    super().__init__()
    self.model = model
    self.has_masks = has_masks

  def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns boxes, classes, scores and, if there are any, masks."""
    found = self.model([image])[0]
    results = found['boxes'], found['labels'], found['scores']
    return (*results, found['masks']) if self.has_masks else results


def write_onnx(
  model: nn.Module, about: dict[str, Any], path: pathlib.Path
) -> None:
  """Writes a detector of torchvision as an ONNX file.

  Args:
    model: The detector, with its weights.
    about: The content of export.json.
    path: The file to write.
  """
  has_masks = about['recipe']['model']['output'] == 'masks'
  names = ['boxes', 'classes', 'scores', 'masks'][: 4 if has_masks else 3]
  height, width = about['programs'][0]['picture_size']
  torch.manual_seed(0)
  torch.onnx.export(
    OneImage(model, has_masks).eval(),
    (torch.rand(3, height, width),),
    str(path),
    # The default, torch.export, fails in torchvision's NMS: the number of boxes
    # depends on the picture.
    dynamo=False,
    opset_version=17,
    input_names=['image'],
    output_names=names,
    dynamic_axes={
      'image': {1: 'height', 2: 'width'},
      **{name: {0: 'detections'} for name in names},
      **(
        {'masks': {0: 'detections', 2: 'height', 3: 'width'}}
        if has_masks
        else {}
      ),
    },
  )


if __name__ == '__main__':
  main()
