"""Makes the recipe of all defaults, and reads and sets single keys."""

import operator
from typing import Any

import ml_collections
from ml_collections import config_dict

from maskrcnn_jax.config.keys import KEYS


def default_config() -> ml_collections.ConfigDict:
  """Returns a recipe in which every key has its default.

  The recipe is locked: setting a key that does not exist is an error. A key
  whose default is `None` accepts only values of its type.
  """
  tree: dict[str, Any] = {}
  for key in KEYS:
    *groups, name = key.name.split('.')
    group = tree
    for part in groups:
      group = group.setdefault(part, {})
    group[name] = (
      config_dict.placeholder(key.form.kind)
      if key.default is None
      else key.default
    )
  config = ml_collections.ConfigDict(tree)
  config.lock()
  return config


def c4_config() -> ml_collections.ConfigDict:
  """Returns a recipe of a model with the body 'c4', which has no pyramid.

  Some keys need other values than in a model with a pyramid, and have the
  values of detectron2: the body; no convolutions and no fully connected layers
  in the heads, which consist of the last stage of the ResNet and the
  predictions; all sizes of anchors on the only level; the numbers of boxes
  before and after NMS; and the side of pooled RoIs. All other keys have their
  defaults.

  Source:
    detectron2 `configs/Base-RCNN-C4.yaml` and config/defaults.py.
  """
  config = default_config()
  config.model.update(
    {
      'body': 'c4',
      'box_convs': 0,
      'box_fcs': 0,
      'mask_convs': 0,
    }
  )
  config.anchors.sizes = ((32.0, 64.0, 128.0, 256.0, 512.0),)
  config.rpn.train.update(pre_nms=12_000, post_nms=2_000, num_proposals=2_000)
  config.rpn.eval.update(pre_nms=6_000, post_nms=1_000, num_proposals=1_000)
  config.roi.box_side = 14
  return config


def value_of(config: ml_collections.ConfigDict, name: str) -> Any:
  """Returns the value of a key, given a full name like 'rpn.train.pre_nms'."""
  return operator.attrgetter(name)(config)


def set_value(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
  """Sets a key of any recipe, without a check of the type.

  Args:
    config: The recipe; it is changed.
    name: The full name of the key, such as 'rpn.train.pre_nms'.
    value: The new value, of any type. `None` leaves a key that must have a
      value open: it must be filled in later.

  Raises:
    KeyError: If the recipe has no such group, or is locked and has no such key.
  """
  *groups, last = name.split('.')
  with config.ignore_type():
    for group in groups:
      config = config[group]
    config[last] = value
