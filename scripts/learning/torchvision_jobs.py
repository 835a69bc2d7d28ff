"""Trains and evaluates Mask R-CNN with torchvision, for a comparison with ours.

  python scripts/torchvision_jobs.py JOBS.json

Needs torch, torchvision and pycocotools, and nothing of this project, so that
it runs in an environment of its own; `learn_beside_torchvision.py` starts it
there. JOBS.json holds a list of jobs, which run one after the other. A job is a
dict: 'task' is the name of a function in `TASKS`, and the other entries are its
arguments. Arrays are exchanged as .npz files; weights have torchvision's names
and layout.
"""

import contextlib
import io
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
import torch
from torch import nn
import torchvision
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import (
  MaskRCNN,
  MaskRCNNHeads,
  MaskRCNNPredictor,
)
from torchvision.ops import FrozenBatchNorm2d

# The order of the losses in all arrays.
LOSSES = (
  'loss_box_reg',
  'loss_classifier',
  'loss_mask',
  'loss_objectness',
  'loss_rpn_box_reg',
)

Arrays = dict[str, np.ndarray]


def group_norm(channels: int) -> nn.Module:
  """Returns a group norm with 32 groups, torchvision's default epsilon 1e-5."""
  return nn.GroupNorm(32, channels)


def build_model(settings: dict[str, Any]) -> nn.Module:
  """Returns torchvision's Mask R-CNN with a ResNet and a feature pyramid.

  Args:
    settings: 'depth' of the ResNet; 'norm', either 'group' (in backbone,
      pyramid and mask head) or 'frozen_batch' (in the backbone); the numbers of
      channels 'fpn_channels', 'box_features', 'mask_convs' and 'mask_channels';
      'num_classes' with background; 'anchor_sizes', a list of sizes for each of
      the five levels; and 'options', the keyword arguments of `MaskRCNN`.
  """
  is_group = settings['norm'] == 'group'
  norm = group_norm if is_group else FrozenBatchNorm2d
  body = getattr(torchvision.models, f'resnet{settings["depth"]}')(
    weights=None, norm_layer=norm
  )
  channels = settings['fpn_channels']
  width = body.inplanes // 8
  backbone = BackboneWithFPN(
    body,
    {f'layer{i + 1}': str(i) for i in range(4)},
    [width * 2**i for i in range(4)],
    channels,
    norm_layer=norm if is_group else None,
  )
  sizes = tuple(map(tuple, settings['anchor_sizes']))
  features, classes = settings['box_features'], settings['num_classes']
  layers = (settings['mask_channels'],) * settings['mask_convs']
  return MaskRCNN(
    backbone,
    rpn_anchor_generator=AnchorGenerator(
      sizes, ((0.5, 1.0, 2.0),) * len(sizes)
    ),
    box_head=TwoMLPHead(channels * 7 * 7, features),
    box_predictor=torchvision.models.detection.faster_rcnn.FastRCNNPredictor(
      features, classes
    ),
    mask_head=MaskRCNNHeads(
      channels, layers, 1, norm_layer=norm if is_group else None
    ),
    mask_predictor=MaskRCNNPredictor(layers[-1], layers[-1], classes),
    **settings['options'],
  )


def load_model(settings: dict[str, Any], weights: str) -> nn.Module:
  """Returns a model with the weights of a .npz or .pth file.

  Args:
    settings: Arguments of `build_model`.
    weights: Path of the file. Its arrays must be those of the model.
  """
  model = build_model(settings)
  if weights.endswith('.npz'):
    with np.load(weights) as arrays:
      state = {name: torch.from_numpy(arrays[name]) for name in arrays}
  else:
    state = torch.load(weights, weights_only=True)
  model.load_state_dict(state)
  return model


def save_weights(model: nn.Module, path: str) -> None:
  """Writes the weights of a model to a .npz file."""
  np.savez(path, **{k: v.numpy() for k, v in model.state_dict().items()})


def load_examples(data: str) -> tuple[list[torch.Tensor], list[dict]]:
  """Reads training images and their objects from a .npz file.

  Args:
    data: Path of the file: uint8 `images` [n, h, w, 3]; `starts` [n + 1], where
      image i has the objects starts[i] to starts[i + 1] - 1; `boxes` [g, 4] in
      pixels, `classes` [g] and uint8 `masks` [g, h, w] of all objects.

  Returns:
    The images and the targets, as torchvision's models take them.
  """
  with np.load(data) as file:
    arrays = {name: file[name] for name in file}
  images = [
    torch.from_numpy(image).permute(2, 0, 1).float() / 255
    for image in arrays['images']
  ]
  starts = arrays['starts']
  targets = []
  for start, end in zip(starts[:-1], starts[1:], strict=True):
    rows = slice(int(start), int(end))
    targets.append(
      {
        'boxes': torch.from_numpy(arrays['boxes'][rows]).float(),
        'labels': torch.from_numpy(arrays['classes'][rows]).long(),
        'masks': torch.from_numpy(arrays['masks'][rows]),
      }
    )
  return images, targets


def initialize(*, settings: dict[str, Any], seed: int, out: str) -> None:
  """Writes the weights that torchvision draws for a new model.

  Args:
    settings: Arguments of `build_model`.
    seed: Seed of the weights.
    out: The .npz file to write.
  """
  torch.manual_seed(seed)
  save_weights(build_model(settings), out)


def train(
  *,
  settings: dict[str, Any],
  weights: str,
  data: str,
  order: list[list[int]],
  rates: list[float],
  momentum: float,
  weight_decay: float,
  seed: int,
  out: str,
  out_weights: str,
) -> None:
  """Trains all parameters of a model and writes its losses and its weights.

  Args:
    settings: Arguments of `build_model`.
    weights: File with the initial weights.
    data: File with the images and objects; see `load_examples`.
    order: For each step, the indices of the images of its batch.
    rates: Learning rate of each step.
    momentum: Momentum of SGD.
    weight_decay: Weight decay of all parameters but biases.
    seed: Seed of the sampling of anchors and RoIs.
    out: The .npz file to write: `losses` [step, loss], in the order of
      `LOSSES`.
    out_weights: The .npz file to write the final weights to.
  """
  model = load_model(settings, weights).train()
  images, targets = load_examples(data)
  biases: list[nn.Parameter] = []
  others: list[nn.Parameter] = []
  for name, parameter in model.named_parameters():
    (biases if name.endswith('.bias') else others).append(parameter)
  optimizer = torch.optim.SGD(
    [{'params': biases, 'weight_decay': 0.0}, {'params': others}],
    lr=rates[0],
    momentum=momentum,
    weight_decay=weight_decay,
  )
  torch.manual_seed(seed)
  curve = []
  for rate, batch in zip(rates, order, strict=True):
    for group in optimizer.param_groups:
      group['lr'] = rate
    losses = model([images[i] for i in batch], [targets[i] for i in batch])
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    curve.append([losses[name].item() for name in LOSSES])
  np.savez(out, losses=np.array(curve))
  save_weights(model, out_weights)


class CountingSampler:
  """Calls a sampler of torchvision and counts the samples that it draws."""

  def __init__(self, sampler: Any):
    """Creates a sampler that draws as another one does.

    Args:
      sampler: The `fg_bg_sampler` of an RPN or of RoI heads.
    """
    self.sampler = sampler
    # Numbers of foreground and of background samples of all images, added up
    # since the last call of `pop`.
    self.counts = np.zeros(2, np.int64)

  def __call__(
    self, labels: list[torch.Tensor]
  ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Draws the samples of a batch; see BalancedPositiveNegativeSampler."""
    found = self.sampler(labels)
    self.counts += [sum(int(x.sum()) for x in part) for part in found]
    return found

  def pop(self) -> list[int]:
    """Returns the counts since the last call and sets them to zero."""
    counts, self.counts = self.counts.tolist(), np.zeros(2, np.int64)
    return counts


@torch.no_grad()
def measure(
  *,
  settings: dict[str, Any],
  weights: str,
  data: str,
  order: list[list[int]],
  draws: int,
  seed: int,
  out: str,
) -> None:
  """Computes the losses of several batches at fixed weights, several times.

  Args:
    settings: Arguments of `build_model`.
    weights: File with the weights.
    data: File with the images and objects; see `load_examples`.
    order: For each batch, the indices of its images.
    draws: How often the anchors and RoIs of each batch are sampled.
    seed: Seed of the sampling.
    out: The .npz file to write: `losses` [batch, draw, loss], and `counts`
      [batch, draw, 4], the numbers of foreground anchors, background anchors,
      foreground RoIs and background RoIs.
  """
  model = load_model(settings, weights).train()
  images, targets = load_examples(data)
  rpn = model.rpn.fg_bg_sampler = CountingSampler(model.rpn.fg_bg_sampler)
  heads = model.roi_heads
  rois = heads.fg_bg_sampler = CountingSampler(heads.fg_bg_sampler)
  torch.manual_seed(seed)
  losses, counts = [], []
  for batch in order:
    for _ in range(draws):
      found = model([images[i] for i in batch], [targets[i] for i in batch])
      losses.append([found[name].item() for name in LOSSES])
      counts.append(rpn.pop() + rois.pop())
  shape = len(order), draws, -1
  np.savez(
    out,
    losses=np.array(losses).reshape(shape),
    counts=np.array(counts).reshape(shape),
  )


@torch.no_grad()
def evaluate(
  *,
  settings: dict[str, Any],
  weights: str,
  images: str,
  annotations: str,
  out: str,
) -> None:
  """Detects objects in the images of a COCO file and writes the AP.

  torchvision resizes and normalises the images, pastes the masks, and
  pycocotools computes the AP.

  Args:
    settings: Arguments of `build_model`. Class i is the category with the i-th
      smallest id.
    weights: File with the weights.
    images: Folder of the images.
    annotations: The COCO file.
    out: The JSON file to write: (AP, AP50) for 'bbox' and for 'segm'.
  """
  model = load_model(settings, weights).eval()
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(annotations)
  ids = sorted(truth.getCatIds())
  results = []
  for entry in truth.loadImgs(sorted(truth.getImgIds())):
    with Image.open(pathlib.Path(images) / entry['file_name']) as file:
      pixels = np.array(file.convert('RGB'))
    found = model([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])[0]
    masks = (found['masks'][:, 0] > 0.5).numpy().astype(np.uint8)
    for box, label, score, mask in zip(
      found['boxes'].tolist(),
      found['labels'].tolist(),
      found['scores'].tolist(),
      masks,
      strict=True,
    ):
      x1, y1, x2, y2 = box
      results.append(
        {
          'image_id': entry['id'],
          'category_id': ids[label - 1],
          'score': score,
          'bbox': [x1, y1, x2 - x1, y2 - y1],
          'segmentation': mask_api.encode(np.asfortranarray(mask)),
        }
      )
  figures = {
    kind: average_precision(truth, results, kind) for kind in ('bbox', 'segm')
  }
  pathlib.Path(out).write_text(json.dumps(figures))


def average_precision(
  truth: COCO, results: list[dict], kind: str
) -> list[float]:
  """Returns the AP and the AP50 of pycocotools, for 100 detections an image.

  Args:
    truth: The ground truth.
    results: The detections in COCO's format for results.
    kind: 'bbox' or 'segm'.
  """
  if not results:  # pycocotools cannot load an empty list.
    return [0.0, 0.0]
  if kind == 'segm':
    # If a detection has a box, pycocotools uses the area of the box.
    results = [
      {k: v for k, v in result.items() if k != 'bbox'} for result in results
    ]
  with contextlib.redirect_stdout(io.StringIO()):
    evaluation = COCOeval(truth, truth.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return [float(x) for x in evaluation.stats[:2]]


TASKS = {
  'initialize': initialize,
  'train': train,
  'measure': measure,
  'evaluate': evaluate,
}


def main() -> None:
  """Runs the jobs of the file that the command line names."""
  for job in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    task = job.pop('task')
    started = time.monotonic()
    TASKS[task](**job)
    seconds = time.monotonic() - started
    print(f'torchvision: {task} {job["out"]}, {seconds:.0f} s', flush=True)


if __name__ == '__main__':
  main()
