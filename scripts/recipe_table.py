"""Writes the table of the recipes for COCO into README.md.

  python scripts/recipe_table.py           # prints the table
  python scripts/recipe_table.py --write   # replaces the table in README.md

Schedule and batch size come from the recipes, the number of parameters from the
shapes of the network with COCO's 80 classes. FLOPs are those of the layers for
one image of 800x1333 pixels, padded to 800x1344, with 1000 proposals and 100
masks. They are XLA's count: a multiplication with its addition counts as 2, and
products with the zeros around an image do not count. Nothing is compiled. The
published APs and the memory on a GPU are written down in this file.

A new recipe for COCO needs a line in `PEERS` and in `MEMORY`.
"""

import argparse
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.rcnn import Rcnn

README = pathlib.Path(__file__).parents[1] / 'README.md'
BEGIN = '<!-- recipes: written by scripts/recipe_table.py -->\n'
END = '<!-- end of recipes -->\n'

NUM_CLASSES = 81  # COCO's 80 and the background
IMAGE_SIZE = (800, 1333)
PADDED_SIZE = (800, 1344)
NUM_PROPOSALS = 1000
NUM_MASKS = 100


class Peer(NamedTuple):
  """The published result that a recipe is compared with."""

  ap: str  # box AP, and mask AP if there are masks, in points
  source: str  # who published it, for a reader of the table


_NVIDIA = 'NVIDIA'
_BENCHMARK = 'maskrcnn-benchmark'

# Source: README of NVIDIA's Mask R-CNN For PyTorch, June 2020; for 96 images
# its README of 2022; MODEL_ZOO.md and configs/gn_baselines/README.md of
# maskrcnn-benchmark; projects/GN/README.md of Detectron; MODEL_ZOO.md of
# detectron2.
PEERS: dict[str, Peer | None] = {
  'r50_fpn': Peer('37.8 / 34.2', _BENCHMARK),
  'r50_fpn_bs32': Peer('37.7 / 34.2', f'{_NVIDIA}, 8 V100'),
  'r50_fpn_bs64': Peer('37.7 / 34.2', f'{_NVIDIA}, 8 A100'),
  'r50_fpn_bs96': Peer('37.65 / 34.08', f'{_NVIDIA} in 2022'),
  'r50_fpn_1gpu': None,
  'r101_fpn': Peer('40.1 / 36.1', _BENCHMARK),
  'x101_32x8d_fpn': Peer('42.2 / 37.8', _BENCHMARK),
  'r50_c4': Peer('35.6 / 31.5', _BENCHMARK),
  'r101_c4': None,
  'r50_c5': None,
  'r101_c5': None,
  'r50_dc5': Peer('38.3 / 34.2', 'detectron2, several sizes'),
  'r50_fpn_gn': Peer('40.2 / 36.0', f'{_BENCHMARK}, twice as many steps'),
  'r101_fpn_gn': Peer('41.8 / 36.8', 'Detectron, twice as many steps'),
  'r50_fpn_gn_scratch': Peer('38.9 / 35.1', _BENCHMARK),
  'faster_rcnn_r50_fpn': Peer('36.8', _BENCHMARK),
  'faster_rcnn_r50_c4': Peer('34.8', _BENCHMARK),
  'rpn_r50_fpn': Peer('recall 58.0', 'detectron2, several sizes'),
}

# Memory of a training step on one H200 in GiB, arguments and temporary arrays:
# in bf16, for an eighth of the recipe's images, or all 4 of r50_fpn_1gpu.
# Source: XLA's `memory_analysis` in the output of
#   python scripts/compile_kernels.py --targets=h200 --recipes=NAMES
MEMORY = {
  'r50_fpn': 1.86,
  'r50_fpn_bs32': 3.27,
  'r50_fpn_bs64': 6.15,
  'r50_fpn_bs96': 8.93,
  'r50_fpn_1gpu': 3.27,
  'r101_fpn': 2.63,
  'x101_32x8d_fpn': 2.99,
  'r50_c4': 1.96,
  'r101_c4': 2.38,
  'r50_c5': 3.14,
  'r101_c5': 3.45,
  'r50_dc5': 3.34,
  'r50_fpn_gn': 2.74,
  'r101_fpn_gn': 4.05,
  'r50_fpn_gn_scratch': 3.36,
  'faster_rcnn_r50_fpn': 1.59,
  'faster_rcnn_r50_c4': 1.57,
  'rpn_r50_fpn': 1.44,
}


class Costs(NamedTuple):
  """The size of a network and the work that it does for one image."""

  parameters: int  # the constants of frozen batch norm are not counted
  flops: float


def costs_of(config: ml_collections.ConfigDict) -> Costs:
  """Counts the parameters and the FLOPs of the network of a recipe.

  Args:
    config: The recipe.
  """
  rcnn = Rcnn.from_config(config, num_classes=NUM_CLASSES, dtype=jnp.float32)
  variables = jax.eval_shape(rcnn.init, jax.random.key(0))

  def extract_and_rate(variables: dict, images: jax.Array) -> Any:
    """Computes everything before the proposals."""
    sizes = jnp.array([IMAGE_SIZE])
    pyramid = rcnn.extract(variables, images, sizes)
    return pyramid, rcnn.rate_anchors(variables, pyramid, sizes)

  def flops_of(function: Any, *shape: int) -> float:
    """Returns XLA's count for a function of the variables and one array."""
    # On a CPU, wide convolutions have fewer FLOPs, in loops that XLA does not
    # count.
    lowered = (
      jax.jit(function)
      .trace(variables, jax.ShapeDtypeStruct(shape, jnp.float32))
      .lower(lowering_platforms=('cuda',))
    )
    costs = lowered.cost_analysis()
    assert costs is not None  # Every backend of XLA can count.
    return costs['flops']

  image_shape = (1, *PADDED_SIZE, 3)
  flops = flops_of(extract_and_rate, *image_shape)
  pyramid, _ = jax.eval_shape(
    extract_and_rate, variables, jax.ShapeDtypeStruct(image_shape, jnp.float32)
  )
  channels = next(iter(pyramid.values())).shape[-1]
  if rcnn.heads.boxes:
    side = rcnn.roi.box_side
    flops += flops_of(rcnn.classify, 1, NUM_PROPOSALS, side, side, channels)
  if rcnn.heads.masks:
    side = rcnn.roi.mask_side
    flops += flops_of(rcnn.segment, 1, NUM_MASKS, side, side, channels)
  return Costs(
    sum(math.prod(x.shape) for x in jax.tree.leaves(variables['params'])),
    flops,
  )


def rows() -> list[tuple[str, ...]]:
  """Returns the cells of each line of the table, the heading first."""
  lines: list[tuple[str, ...]] = [
    (
      'recipe',
      'images a step',
      'steps',
      'parameters, 10^6',
      'FLOPs, 10^9',
      'GPU memory, GiB',
      'published AP, box / mask',
      'published by',
      'AP here',
    )
  ]
  known: dict[str, Costs] = {}  # by the keys that the network depends on
  for name, peer in PEERS.items():
    config = read_recipe(name).config
    network = str((config.model, config.anchors, config.roi))
    if network not in known:
      known[network] = costs_of(config)
    costs = known[network]
    lines.append(
      (
        f'`{name}`',
        f'{config.train.batch_size}',
        f'{config.train.num_steps:,}',
        f'{costs.parameters / 1e6:.2f}',
        f'{costs.flops / 1e9:.0f}',
        f'{MEMORY[name]:.1f}',
        peer.ap if peer else '',
        peer.source if peer else '',
        '*not run*',
      )
    )
  return lines


def as_markdown() -> str:
  """Returns the table in Markdown."""
  heading, *others = rows()
  lines = [heading, ('---',) * len(heading), *others]
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def stored_table() -> str:
  """Returns the table that README.md has."""
  text = README.read_text(encoding='utf-8')
  return text.partition(BEGIN)[2].partition(END)[0]


def main() -> None:
  """Prints the table, or writes it into README.md."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--write', action='store_true', help='write the table into README.md'
  )
  flags = parser.parse_args()
  table = as_markdown()
  if not flags.write:
    print(table, end='')
    return
  before, _, rest = README.read_text(encoding='utf-8').partition(BEGIN)
  _, _, after = rest.partition(END)
  README.write_text(before + BEGIN + table + END + after, encoding='utf-8')


if __name__ == '__main__':
  main()
