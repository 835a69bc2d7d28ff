"""Makes single steps of torchvision's Mask R-CNN, each when it is asked for.

  python torchvision_steps.py JOB.json

`torchvision_peer.py` starts this program, with a Python that has torch and
torchvision, which may be another than its own. The file uses nothing of this
project. JOB.json holds a dict; `main` lists its entries. Answers are lines of
JSON on the standard output.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np

try:
  import torch
  from torch import nn
  import torchvision
  from torchvision.models.detection import faster_rcnn, mask_rcnn, rpn
  from torchvision.models.detection.anchor_utils import AnchorGenerator
  from torchvision.models.detection.backbone_utils import BackboneWithFPN
  from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
except (ImportError, OSError) as error:
  print(json.dumps({'error': f'{type(error).__name__}: {error}'}), flush=True)
  sys.exit(0)

# Standard deviations that `calibrate` gives to the outputs of layers.
# A class score has a spread of 4, so that a box has few likely classes, as it
# has in a trained network. The others keep proposals and detections near the
# anchors.
SPREADS = {
  'rpn.head.cls_logits': 1.0,
  'rpn.head.bbox_pred': 0.2,
  'roi_heads.box_predictor.cls_score': 4.0,
  'roi_heads.box_predictor.bbox_pred': 0.5,
  'roi_heads.mask_predictor.mask_fcn_logits': 1.0,
}


def group_norm(channels: int) -> nn.Module:
  """Returns a group norm with 32 groups, torchvision's default epsilon 1e-5."""
  return nn.GroupNorm(32, channels)


def build_model(settings: dict[str, Any]) -> nn.Module:
  """Returns torchvision's Mask R-CNN, or Faster R-CNN, with a pyramid.

  Args:
    settings: `model_settings` of torchvision_job.py lists its entries.
  """
  is_group = settings['norm'] == 'group'
  norm = group_norm if is_group else FrozenBatchNorm2d
  body = getattr(torchvision.models, f'resnet{settings["depth"]}')(
    weights=None, norm_layer=norm, **settings['resnet']
  )
  # Source: torchvision `models/detection/backbone_utils.py`, trainable_layers.
  stages = ['conv1', 'layer1', 'layer2', 'layer3', 'layer4']
  frozen = stages[: settings['freeze_at']]
  for name, parameter in body.named_parameters():
    stage = name.split('.')[0]
    if stage in frozen or (stage == 'bn1' and frozen):
      parameter.requires_grad_(False)
  channels, classes = settings['fpn_channels'], settings['num_classes']
  width = body.inplanes // 8
  backbone = BackboneWithFPN(
    body,
    {f'layer{i + 1}': str(i) for i in range(4)},
    [width * 2**i for i in range(4)],
    channels,
    norm_layer=norm if is_group else None,
  )
  sizes = tuple(map(tuple, settings['anchor_sizes']))
  ratios = tuple(settings['anchor_ratios'])
  features, side = settings['box_features'], settings['box_side']

  def pool(side: int) -> nn.Module:
    """Returns RoIAlign that pools side x side cells."""
    return MultiScaleRoIAlign(
      ['0', '1', '2', '3'], side, settings['sampling_ratio']
    )

  if settings['box_convs']:
    box_head = faster_rcnn.FastRCNNConvFCHead(
      (channels, side, side),
      [channels] * settings['box_convs'],
      [features],
      norm_layer=norm if is_group else None,
    )
  else:
    box_head = faster_rcnn.TwoMLPHead(channels * side**2, features)
  options = dict(
    rpn_anchor_generator=AnchorGenerator(sizes, (ratios,) * len(sizes)),
    rpn_head=rpn.RPNHead(
      channels, len(ratios) * len(sizes[0]), conv_depth=settings['rpn_convs']
    ),
    box_roi_pool=pool(side),
    box_head=box_head,
    box_predictor=faster_rcnn.FastRCNNPredictor(features, classes),
    **settings['options'],
  )
  if not settings['masks']:
    return faster_rcnn.FasterRCNN(backbone, **options)
  wide = settings['mask_channels']
  return mask_rcnn.MaskRCNN(
    backbone,
    mask_roi_pool=pool(settings['mask_side']),
    mask_head=mask_rcnn.MaskRCNNHeads(
      channels,
      [wide] * settings['mask_convs'],
      1,
      norm_layer=norm if is_group else None,
    ),
    mask_predictor=mask_rcnn.MaskRCNNPredictor(wide, wide, classes),
    **options,
  )


@torch.no_grad()
def calibrate(model: nn.Module, images: list[torch.Tensor]) -> None:
  """Scales the random weights of a model so that it detects many objects.

  A new network finds nothing: all its class scores are about equal. And with
  frozen batch norm its features grow from block to block. Here the scale of
  each frozen batch norm is set so that its output has the standard deviation 1,
  and the weights of the last layers so that theirs are those of `SPREADS`.

  Args:
    model: The model; its weights are changed.
    images: The images to compute the standard deviations with.
  """
  done = set()
  hooks = []

  def scale(spread: float) -> Any:
    """Returns a hook that scales a layer once, when it is first called."""

    def hook(layer: nn.Module, _: Any, output: torch.Tensor) -> Any:
      """Scales the layer, and returns its output with the new weights."""
      if layer in done:
        return None
      done.add(layer)
      factor = spread / float(output.std().clamp(min=1e-9))
      layer.weight.mul_(factor)
      if layer.bias is not None:
        layer.bias.mul_(factor)
      return output * factor

    return hook

  for name, layer in model.named_modules():
    if isinstance(layer, FrozenBatchNorm2d):
      hooks.append(layer.register_forward_hook(scale(1.0)))
    elif name in SPREADS:
      hooks.append(layer.register_forward_hook(scale(SPREADS[name])))
  model.eval()(images)
  for hook in hooks:
    hook.remove()


def load_batches(
  path: str, device: torch.device
) -> list[tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]]:
  """Reads the batches that the steps take in turn; returns images and targets.

  Args:
    path: File of NumPy arrays: `count`, the number of images of each batch; and
      for image i of all batches uint8 `image_i` [h, w, 3], `boxes_i` [g, 4] in
      pixels, `labels_i` [g], and `masks_i` [g, h, w] as packed bits.
    device: The device to put them on.
  """
  batches = []
  number = 0
  with np.load(path) as arrays:
    for count in arrays['count'].tolist():
      images, targets = [], []
      for _ in range(count):
        image = arrays[f'image_{number}']
        height, width, _ = image.shape
        masks = np.unpackbits(arrays[f'masks_{number}'], axis=-1, count=width)
        assert masks.shape[1:] == (height, width)
        images.append(
          torch.from_numpy(image).permute(2, 0, 1).float().to(device) / 255
        )
        targets.append(
          {
            'boxes': torch.from_numpy(arrays[f'boxes_{number}']).to(device),
            'labels': torch.from_numpy(arrays[f'labels_{number}']).to(device),
            'masks': torch.from_numpy(masks).to(device),
          }
        )
        number += 1
      batches.append((images, targets))
  return batches


class Steps:
  """A model with its optimizer, whose steps are timed."""

  def __init__(self, job: dict[str, Any]):
    """Builds the model and loads weights and images.

    Args:
      job: The entries that `main` lists.
    """
    self.device = torch.device(job['device'])
    self.trains = job['mode'] == 'train'
    model = build_model(job['settings'])
    with np.load(job['weights']) as arrays:
      model.load_state_dict({k: torch.from_numpy(arrays[k]) for k in arrays})
    if not job['pastes']:
      model.transform.postprocess = lambda found, *_: found
    model = model.to(self.device)
    if job['channels_last']:
      model = model.to(memory_format=torch.channels_last)
    self.model = model.train(self.trains)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = job['optimizer']
    if optimizer['name'] == 'adamw':
      self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        parameters,
        lr=optimizer['learning_rate'],
        weight_decay=optimizer['weight_decay'],
      )
    else:
      self.optimizer = torch.optim.SGD(
        parameters,
        lr=optimizer['learning_rate'],
        momentum=optimizer['momentum'],
        weight_decay=optimizer['weight_decay'],
      )
    dtypes = {'bf16': torch.bfloat16, 'fp16': torch.float16}
    self.dtype = dtypes.get(job['autocast'])
    self.scaler = torch.amp.GradScaler(
      self.device.type, init_scale=8192, enabled=job['autocast'] == 'fp16'
    )
    self.batches = load_batches(job['batches'], self.device)

  def synchronize(self) -> None:
    """Waits for the end of the work on the device."""
    if self.device.type == 'cuda':
      torch.cuda.synchronize()

  def run(self, number: int) -> dict[str, float]:
    """Makes a step; returns its seconds, and its loss or its detections.

    Args:
      number: Number of the step; steps take the batches in turn.
    """
    images, targets = self.batches[number % len(self.batches)]
    cast = (
      torch.autocast(self.device.type, dtype=self.dtype)
      if self.dtype
      else contextlib.nullcontext()
    )
    self.synchronize()
    started = time.perf_counter()
    if self.trains:
      with cast:
        losses = self.model(images, targets)
      loss = sum(losses.values())
      self.scaler.scale(loss).backward()
      self.scaler.step(self.optimizer)
      self.scaler.update()
      self.optimizer.zero_grad(set_to_none=True)
      self.synchronize()
      seconds = time.perf_counter() - started
      return {'seconds': seconds, 'loss': float(loss)}
    with torch.inference_mode(), cast:
      found = self.model(images)
    self.synchronize()
    seconds = time.perf_counter() - started
    return {
      'seconds': seconds,
      'detections': sum(len(image['boxes']) for image in found),
    }

  def peak_mib(self) -> float:
    """Returns the largest memory so far, of the GPU or of this process, MiB."""
    if self.device.type == 'cuda':
      return torch.cuda.max_memory_allocated() / 2**20
    with open('/proc/self/status') as file:
      lines = [line for line in file if line.startswith('VmHWM:')]
    return int(lines[0].split()[1]) / 2**10 if lines else 0.0


def main() -> None:
  """Writes weights, or makes a step for each line of the standard input.

  Entries of the job:
    settings: Arguments of `build_model`.
    batches: The file that `load_batches` reads.
    weights: File of weights. If it does not exist, calibrated random weights
      are written to it, and the program ends.
    device: 'cpu' or 'cuda'.
    mode: 'train' or 'inference'.
    pastes: Whether inference pastes the masks into the images.
    optimizer: The name, learning_rate, momentum and weight_decay of the recipe.
    autocast: 'bf16', 'fp16' or '' for no autocast.
    channels_last: Whether the channels are the innermost axis in memory.
    tf32: Whether products and convolutions use TF32; None leaves torch's own
      choice, which is for convolutions only.
    tunes: Whether cuDNN tries several algorithms first.
  """
  # If the process that started this one dies, this one is killed, even while it
  # is stopped. PR_SET_PDEATHSIG is 1; see prctl(2).
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)
  with open(sys.argv[1]) as file:
    job = json.load(file)
  if job['device'] == 'cuda' and not torch.cuda.is_available():
    print(json.dumps({'error': 'torch finds no GPU'}), flush=True)
    return
  torch.manual_seed(0)
  if job['tf32'] is not None:
    torch.backends.cuda.matmul.allow_tf32 = job['tf32']
    torch.backends.cudnn.allow_tf32 = job['tf32']
  torch.backends.cudnn.benchmark = job['tunes']
  versions = {
    'torch': torch.__version__,
    'torchvision': torchvision.__version__,
    'threads': torch.get_num_threads(),
  }
  if not os.path.exists(job['weights']):
    model = build_model(job['settings'])
    images, _ = load_batches(job['batches'], torch.device('cpu'))[0]
    calibrate(model, images[:1])
    np.savez(
      job['weights'], **{k: v.numpy() for k, v in model.state_dict().items()}
    )
    print(json.dumps(versions), flush=True)
    return
  steps = Steps(job)
  print(json.dumps(versions), flush=True)
  for line in sys.stdin:
    figures = steps.run(int(line))
    print(json.dumps(figures | {'peak_mib': steps.peak_mib()}), flush=True)


if __name__ == '__main__':
  main()
