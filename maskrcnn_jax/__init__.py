"""Mask R-CNN in JAX and Flax: train, evaluate and predict instance masks.

  import maskrcnn_jax

  detector = maskrcnn_jax.load('runs/mine')
  result = detector('photo.jpg')

`load` returns an `ObjectDetector`, which returns a `Result` for each picture.
`train` and `evaluate` do the same as the command line.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from maskrcnn_jax.api import ObjectDetector, evaluate, load, train
  from maskrcnn_jax.prediction.results import Result

__version__ = '0.1.0'

__all__ = ['ObjectDetector', 'Result', 'evaluate', 'load', 'train']


def __getattr__(name: str) -> Any:
  """Imports a public name when it is first used, because JAX takes seconds.

  Args:
    name: One of `__all__`.

  Raises:
    AttributeError: If there is no such name.
  """
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from maskrcnn_jax import api
  from maskrcnn_jax.prediction import results

  value = results.Result if name == 'Result' else vars(api)[name]
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  """Lists the names of the module, for completion in a shell."""
  return sorted({*globals(), *__all__})
