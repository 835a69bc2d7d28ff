"""Published weights by name, such as torchvision:maskrcnn_resnet50_fpn_v2.

`table` has the names, addresses and figures, `download` fetches a file, and
`cache` keeps files and converted checkpoints.
"""

from maskrcnn_jax.named_weights.cache import find_checkpoint, find_file
from maskrcnn_jax.named_weights.table import (
  TABLE,
  NamedWeights,
  conventions,
  is_name,
  list_weights,
  proposal,
  published_ap,
)

__all__ = [
  'TABLE',
  'NamedWeights',
  'conventions',
  'find_checkpoint',
  'find_file',
  'is_name',
  'list_weights',
  'proposal',
  'published_ap',
]
