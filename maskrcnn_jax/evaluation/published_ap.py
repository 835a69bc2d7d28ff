"""The published AP of named weights as the expected AP of an evaluation."""

import pathlib

import ml_collections

from maskrcnn_jax.config.defaults import set_value
from maskrcnn_jax.named_weights import published_ap

# Annotation files of the 5,000 images that published APs are for. minival 2014
# has the images of val2017.
PUBLISHED_SETS = ('instances_val2017.json', 'instances_minival2014.json')


def expect_published_ap(config: ml_collections.ConfigDict, name: str) -> str:
  """Makes the published AP of named weights the expected AP, in place.

  The recipe keeps an expected AP that it has already. On another set than the
  one that the AP is published for, nothing is expected.

  Args:
    config: The recipe of the evaluation.
    name: The name of the weights.

  Returns:
    A line for the log.
  """
  if config.expected.box_ap or config.expected.mask_ap:
    return 'The AP is compared with config.expected, not with the published AP.'
  published = published_ap(name)
  if not any(published.values()):
    return f'No AP is published for {name}.'
  file = pathlib.PurePath(config.data.eval.annotations).name
  if file not in PUBLISHED_SETS:
    return (
      f'The AP is not compared with the published AP of {name}, which is for '
      f'COCO val2017 ({" or ".join(PUBLISHED_SETS)}).'
    )
  for key, value in published.items():
    set_value(config, f'expected.{key}', value)
  return f'The AP is compared with the published AP of {name}.'
