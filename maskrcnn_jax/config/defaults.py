"""Makes the recipe of all defaults, and reads and sets single keys."""

import operator
from typing import Any

import ml_collections
from ml_collections import config_dict

from maskrcnn_jax.config.keys import KEYS


def default_config() -> ml_collections.ConfigDict:
  """Returns a recipe in which every key has its default.

  The recipe is locked: setting a key that does not exist is an error. A key
  whose default is `None` accepts only values of its type. A key that may have a
  text or several accepts values of all types; `check_values` checks them.
  """
  tree: dict[str, Any] = {}
  for key in KEYS:
    *groups, name = key.name.split('.')
    group = tree
    for part in groups:
      group = group.setdefault(part, {})
    if key.default is None:
      group[name] = config_dict.placeholder(key.form.kind)
    elif key.form.several:
      group[name] = config_dict.FieldReference(key.default, field_type=object)
    else:
      group[name] = key.default
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
  config = _config_without_pyramid('c4')
  config.model.update(box_convs=0, box_fcs=0, mask_convs=0)
  config.roi.box_side = 14
  return config


def c5_config(*, dilated: bool) -> ml_collections.ConfigDict:
  """Returns a recipe of a model with the body 'c5' or 'dc5'.

  It has no pyramid. RoIs are pooled from the last stage of the backbone, and
  the heads are those of a model with a pyramid.

  Args:
    dilated: Whether the last stage is dilated and has stride 16 ('dc5'), as in
      detectron2. Otherwise it has stride 32 ('c5'), as in maskrcnn-benchmark.

  Source:
    detectron2 `configs/Base-RCNN-DilatedC5.yaml` and config/defaults.py.
  """
  return _config_without_pyramid('dc5' if dilated else 'c5')


def _config_without_pyramid(body: str) -> ml_collections.ConfigDict:
  """Returns a recipe whose model has anchors on a single level.

  All sizes of anchors are on that level, and more boxes enter the NMS than on
  one of several levels. All other keys have their defaults.

  Args:
    body: 'c4', 'c5' or 'dc5'.
  """
  config = default_config()
  config.model.body = body
  config.anchors.sizes = ((32.0, 64.0, 128.0, 256.0, 512.0),)
  config.rpn.train.update(pre_nms=12_000, post_nms=2_000, num_proposals=2_000)
  config.rpn.eval.update(pre_nms=6_000, post_nms=1_000, num_proposals=1_000)
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
