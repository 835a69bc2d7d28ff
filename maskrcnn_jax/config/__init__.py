"""Recipes: their keys, how they are read, and which value of a key is used.

A recipe is a `ConfigDict` that says which model is trained, on which data and
how. `keys.py` is the table of all keys; begin reading there.
"""

from maskrcnn_jax.config.coco import coco_arguments, use_coco, use_legacy
from maskrcnn_jax.config.comparison import (
  Difference,
  compilation_facts,
  differences,
  facts_of,
  format_differences,
  plain,
  stored_config,
)
from maskrcnn_jax.config.defaults import (
  c4_config,
  c5_config,
  default_config,
)
from maskrcnn_jax.config.derived import (
  Heads,
  anchor_arguments,
  canvas_arguments,
  drawn_sizes,
  first_level_of,
  geometry_of,
  has_eval_set,
  heads_of,
  pixel_range_of,
  scaled_to_batch,
  source_of,
)

__all__ = [
  'Difference',
  'Heads',
  'anchor_arguments',
  'canvas_arguments',
  'first_level_of',
  'c4_config',
  'c5_config',
  'coco_arguments',
  'compilation_facts',
  'default_config',
  'differences',
  'drawn_sizes',
  'facts_of',
  'format_differences',
  'geometry_of',
  'has_eval_set',
  'heads_of',
  'pixel_range_of',
  'plain',
  'scaled_to_batch',
  'source_of',
  'stored_config',
  'use_coco',
  'use_legacy',
]
