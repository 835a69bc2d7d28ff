"""Writes the folder of an exported model."""

import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from maskrcnn_jax import __version__
from maskrcnn_jax.config import geometry_of, plain
from maskrcnn_jax.detector import Detector, category_of
from maskrcnn_jax.export import loader
from maskrcnn_jax.export.program import Program, default_sizes, make_program
from maskrcnn_jax.runtime.checkpoint import named_leaves
from maskrcnn_jax.runtime.files import make_writable, write_json
from maskrcnn_jax.runtime.status_line import waiting

# Number of the layout of the folder, which export.json stores.
FORMAT = 1


def write_artifact(
  detector: Detector,
  folder: pathlib.Path,
  *,
  sizes: list[tuple[int, int]] | None,
  batch_size: int,
  platforms: tuple[str, ...],
) -> None:
  """Exports a model; prints a line before and after each program.

  Args:
    detector: The model.
    folder: The folder to write.
    sizes: (height, width) of the largest picture of each program, in pixels.
      `None` takes `default_sizes` of the recipe.
    batch_size: Number of pictures in a batch.
    platforms: JAX's names of the platforms that the programs can run on.

  Raises:
    InputError: If the folder cannot be written to.
  """
  make_writable(folder)
  np.savez(
    folder / 'weights.npz',
    allow_pickle=False,
    **jax.device_get(named_leaves(detector.variables)),
  )
  shutil.copyfile(loader.__file__, folder / 'loader.py')
  padded_sizes = tuple(map(tuple, detector.config.data.padded_sizes))
  programs = []
  for size in sizes or default_sizes(padded_sizes):
    print(
      f'Exporting the program for pictures of up to {size[0]}x{size[1]} '
      '(height x width); this can take a minute.',
      flush=True,
    )
    with waiting('Exporting the program'):
      program = make_program(
        detector, size, batch_size=batch_size, platforms=platforms
      )
    for platform, exported in program.exported.items():
      file = folder / file_name(program, platform)
      file.write_bytes(exported.mlir_module_serialized)
      print(f'{file}')
    programs.append(program)
  # This file is the last, so that a folder with it is complete.
  write_json(
    folder / 'export.json', describe(detector, programs, batch_size, platforms)
  )
  print(
    f'{folder} is for batches of {batch_size} on {", ".join(platforms)}. Its '
    'loader.py shows how to use it.'
  )


def file_name(program: Program, platform: str) -> str:
  """Returns the name of the file of a program for one platform."""
  height, width = program.picture_size
  return f'detect_{height}x{width}_{platform}.stablehlo'


def describe(
  detector: Detector,
  programs: list[Program],
  batch_size: int,
  platforms: tuple[str, ...],
) -> dict[str, Any]:
  """Returns the content of export.json.

  Args:
    detector: The model.
    programs: Its programs.
    batch_size: Number of pictures in a batch.
    platforms: JAX's names of the platforms that the programs can run on.
  """
  geometry = geometry_of(detector.config)
  count = len(detector.categories) if detector.rcnn.heads.boxes else 1
  classes = [category_of(detector, i + 1) for i in range(count)]
  return {
    'format': FORMAT,
    'maskrcnn_jax': __version__,
    'jax': jax.__version__,
    'step': detector.step,
    'batch': batch_size,
    'platforms': list(platforms),
    'precision': detector.config.precision,
    'programs': [describe_program(program) for program in programs],
    # Class number c of the results is row c - 1.
    'classes': [{'id': class_.id, 'name': class_.name} for class_ in classes],
    # A box is x2 - x1 plus this many pixels wide.
    'box_width_offset': geometry.width_offset,
    'paste_rule': geometry.paste_rule,
    'mask_threshold': geometry.mask_threshold,
    'geometry': geometry.name,
    # Of red, green and blue in [0, 255].
    'pixel_mean': list(geometry.input_format.mean),
    'pixel_std': list(geometry.input_format.std),
    'sampling_ratio': geometry.sampling_ratio,
    'recipe': plain(detector.config),
  }


def describe_program(program: Program) -> dict[str, Any]:
  """Returns the entry of a program in export.json.

  Arguments and results are (shape, dtype) pairs, by name. With the arguments
  come the weights, {name: array} of weights.npz, as the first argument.

  Args:
    program: The program.
  """
  # Arguments and results are the same on all platforms.
  exported = next(iter(program.exported.values()))
  arguments, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  results = jax.tree.unflatten(exported.out_tree, exported.out_avals)

  def describe(arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns {name: (shape, dtype)} of arrays."""
    return {
      name: (list(array.shape), str(array.dtype))
      for name, array in arrays.items()
    }

  return {
    'files': {
      platform: file_name(program, platform) for platform in program.exported
    },
    'picture_size': list(program.picture_size),
    'padded_size': list(program.padded_size),
    'arguments': describe({'images': arguments[1], 'sizes': arguments[2]}),
    'results': describe(results),
    'calling_convention_version': exported.calling_convention_version,
  }
