"""The recipe of the defaults, made from the table of keys."""

import operator

import ml_collections
from ml_collections import config_dict

from maskrcnn_jax.config.keys import KEYS


def default_config() -> ml_collections.ConfigDict:
  """Returns all keys with their defaults, locked against unknown ones.

  A key whose default is None is a placeholder of its type.
  """
  tree = {}
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
  """Returns the defaults with a C4 body and the values that go with it.

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


def value_of(config: ml_collections.ConfigDict, name: str):
  """Returns the value of a key such as 'rpn.train.pre_nms'."""
  return operator.attrgetter(name)(config)


def set_value(config: ml_collections.ConfigDict, name: str, value) -> None:
  """Sets a key such as 'rpn.train.pre_nms'; None leaves it open."""
  *groups, last = name.split('.')
  with config.ignore_type():
    for group in groups:
      config = config[group]
    config[last] = value
