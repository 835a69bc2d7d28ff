"""The backbones that a model can have: the one place where one is chosen.

A backbone is a linen module that keeps this contract:

- `__call__(images, valid)` returns the features {2: ..., 3: ..., 4: ...,
  5: ...}. The features of level l have stride 2**l: one cell for 2**l rows and
  columns of the image. With `num_stages=3` the levels end at 4.
- The canvas that an image is on may be larger than the image. `valid[l]` tells
  which cells of level l, from 1 to 5, belong to the image; the images are zero
  beyond it. The features of valid cells do not depend on the size of the
  canvas: `layers.zero_padding` comes before each convolution or pooling whose
  window is larger than its stride, and norms over several cells take the valid
  ones only. Features of other cells may be anything. `valid` may be `None`,
  which means that all cells are valid.
- `last_stage(pooled)` applies the fourth stage to the features of RoIs, which
  were pooled from level 4, and halves their side; an odd side may be rounded
  up or down. C4 models use it as the first part of their heads.
- The four stages are named `layer1`, ..., `layer4`, and the layers before them
  are named `stem`, so that `frozen_prefixes` finds them. (The stem of the
  ResNet is `conv1` and `bn1`, as in torchvision.) No other part has parameters.
- Parameters are float32; arithmetic and features have the dtype `dtype`.

To add a backbone, write it in a file of its own beside this one, add one line
to `BACKBONES`, and add its name to `_BACKBONES` in `config/keys.py`.
CONTRIBUTING.md has an example.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from maskrcnn_jax.model.convnext import ConvNeXt
from maskrcnn_jax.model.resnet import ResNet

# Options that describe a ResNet. No other backbone can follow them.
RESNET_OPTIONS = (
  'depth',
  'width',
  'groups',
  'group_width',
  'stride_in_1x1',
  'dilate_last',
)


class BackboneOptions(NamedTuple):
  """The recipe's options of the backbone; `ResNet` explains the fields."""

  depth: int = 50  # ResNet only
  width: int = 64  # ResNet only: channels of the stem
  groups: int = 1  # ResNet only
  group_width: int = 64  # ResNet only
  norm: str = 'frozen_batch'  # ResNet only
  norm_eps: float = 1e-5  # ResNet only: of the frozen batch norm
  stride_in_1x1: bool = False  # ResNet only
  dilate_last: bool = False  # ResNet only: the fourth stage keeps stride 16
  num_stages: int = 4  # 3 in a C4 model, which calls `last_stage` later
  dtype: DTypeLike = jnp.float32  # dtype of the arithmetic


# {value of `model.backbone` in a recipe: function that makes the backbone}.
BACKBONES: dict[str, Callable[[BackboneOptions], nn.Module]] = {
  'resnet': lambda options: ResNet(**options._asdict()),
  'convnext_tiny': lambda options: ConvNeXt(
    num_stages=options.num_stages, dtype=options.dtype
  ),
}


def make_backbone(name: str, options: BackboneOptions) -> nn.Module:
  """Makes the backbone of a model.

  Args:
    name: A key of `BACKBONES`.
    options: Options of the recipe. `norm` and `norm_eps` are accepted by every
      backbone, because they also say which norm the heads have. A backbone
      that is not a ResNet may ignore them.

  Raises:
    ValueError: If there is no such backbone, or if the backbone is not a ResNet
      and `options` changes an option that only a ResNet has, such as `depth`.
  """
  if name not in BACKBONES:
    known = ' or '.join(map(repr, BACKBONES))
    raise ValueError(f'backbone must be {known}, not {name!r}.')
  if name != 'resnet':
    _refuse_resnet_options(name, options)
  return BACKBONES[name](options)


def frozen_prefixes(freeze_at: int) -> tuple[tuple[str, ...], ...]:
  """Names the parts of the backbone that are not trained.

  The names of the stems of all backbones are returned together. A name that a
  model does not have freezes nothing.

  Args:
    freeze_at: Number of parts to freeze, counted from the image: 0 freezes
      nothing, 1 the stem, 2 also `layer1`, ..., 5 the whole backbone.

  Returns:
    Prefixes of paths into `params`: (('backbone', 'stem'), ...).

  Raises:
    ValueError: If `freeze_at` is not in 0..5.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, MODEL.BACKBONE.FREEZE_CONV_BODY_AT.
  """
  if freeze_at not in range(6):
    raise ValueError(f'freeze_at must be 0, 1, ..., 5, not {freeze_at}.')
  if freeze_at == 0:
    return ()
  stems = ('conv1', 'bn1', 'stem')
  stages = tuple(f'layer{i}' for i in range(1, freeze_at))
  return tuple(('backbone', part) for part in stems + stages)


def _refuse_resnet_options(name: str, options: BackboneOptions) -> None:
  """Raises a ValueError if an option that only a ResNet has was changed."""
  defaults = BackboneOptions()
  for option in RESNET_OPTIONS:
    value, default = getattr(options, option), getattr(defaults, option)
    if value != default:
      raise ValueError(
        f'{option} ({value}) describes a ResNet, but the backbone is '
        f'{name!r}; leave {option} at {default}.'
      )
