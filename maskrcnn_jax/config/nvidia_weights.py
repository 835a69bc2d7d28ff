"""Says which file MODEL.WEIGHT of NVIDIA's program names, and how to use it."""

import pathlib

# Folder of the files of Detectron, which catalog://ImageNetPretrained names.
# Source: NVIDIA's Mask R-CNN For PyTorch, config/paths_catalog.py.
_ADDRESS = 'https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained'
_FILES = {
  'MSRA/R-50': 'MSRA/R-50.pkl',
  'MSRA/R-50-GN': '47261647/R-50-GN.pkl',
  'MSRA/R-101': 'MSRA/R-101.pkl',
  'MSRA/R-101-GN': '47592356/R-101-GN.pkl',
  'FAIR/20171220/X-101-32x8d': '20171220/X-101-32x8d.pkl',
}


def advice_on_weights(weight: str) -> str:
  """Returns the remark on a value of MODEL.WEIGHT.

  Args:
    weight: 'catalog://...', an address, the path of a file, or a folder with a
      checkpoint of this program.

  Returns:
    The flag to give and, if the weights must be converted first, the commands
    that make its value.
  """
  if pathlib.Path(weight).is_dir():
    return f'--init_from={weight}'
  name = weight.removeprefix('catalog://ImageNetPretrained/')
  if name in _FILES:
    file = _FILES[name]
    stem = pathlib.PurePosixPath(file).stem
    return (
      f'--init_from=weights/{stem}: download {_ADDRESS}/{file}, then python -m '
      f'maskrcnn_jax.convert_weights {stem}.pkl weights/{stem}'
    )
  if weight.startswith('catalog://'):
    return (
      '--init_from=CHECKPOINT: this entry of the catalog is not known; take a '
      'file that python -m maskrcnn_jax.convert_weights FILE CHECKPOINT reads'
    )
  stem = pathlib.PurePosixPath(weight.replace('\\', '/')).stem
  file = pathlib.PurePosixPath(weight).name if '://' in weight else weight
  download = f'download {weight}, then ' if '://' in weight else ''
  return (
    f'--init_from=weights/{stem}: {download}python -m '
    f'maskrcnn_jax.convert_weights {file} weights/{stem}'
  )
