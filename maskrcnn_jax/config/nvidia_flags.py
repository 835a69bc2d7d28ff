"""The keys OUTPUT_DIR and MODEL.WEIGHT of NVIDIA's program, flags in this one.

OUTPUT_DIR is the workdir, and MODEL.WEIGHT the checkpoint to start from.
"""

import pathlib

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.named_weights import is_name


def advice_on_weights(weight: str) -> str:
  """Returns the remark on a value of MODEL.WEIGHT.

  Args:
    weight: The name of published weights, such as 'catalog://...', an address,
      the path of a file, or a folder with a checkpoint of this program.

  Returns:
    The flag to give and, if the weights must be converted first, the commands
    that make its value.
  """
  if pathlib.Path(weight).is_dir() or is_name(weight):
    return f'--init_from={weight}'
  stem = pathlib.PurePosixPath(weight.replace('\\', '/')).stem
  file = pathlib.PurePosixPath(weight).name if '://' in weight else weight
  download = f'download {weight}, then ' if '://' in weight else ''
  return (
    f'--init_from=weights/{stem}: {download}python -m '
    f'maskrcnn_jax.convert_weights {file} weights/{stem}'
  )


def flags_from(
  settings: dict[str, tuple[str, bool]],
  flags: dict[str, str | None],
  *,
  mode: str,
) -> dict[str, str]:
  """Returns the flags that OUTPUT_DIR and MODEL.WEIGHT stand for.

  MODEL.WEIGHT counts only if it is a folder, which must be a checkpoint, or the
  name of published weights. To evaluate or predict, the checkpoints of the
  workdir are used instead of the MODEL.WEIGHT of a file, if there are any; and
  a name in a file counts only in a training, which it is meant to start. A flag
  on the command line is used instead of a key in a file.

  Args:
    settings: The two keys, as `yaml_recipe.settings_of` returns them.
    flags: {name: value} of the flags workdir, init_from and checkpoint.
    mode: 'train', 'eval' or 'predict'.

  Returns:
    {name: value} of the flags to fill in.

  Raises:
    InputError: If a flag and a pair on the command line name different folders.
  """
  source = 'init_from' if mode == 'train' else 'checkpoint'
  result: dict[str, str] = {}
  for key, name in (('OUTPUT_DIR', 'workdir'), ('MODEL.WEIGHT', source)):
    value, is_pair = settings.get(key, ('', False))
    if not value:
      continue
    if key == 'MODEL.WEIGHT':
      workdir = pathlib.Path(flags['workdir'] or result.get('workdir', ''))
      is_trained = (workdir / 'checkpoints').is_dir()
      is_usable = pathlib.Path(value).is_dir() or is_name(value)
      if not is_usable or (
        mode != 'train' and not is_pair and (is_trained or is_name(value))
      ):
        continue
    if not flags[name]:
      result[name] = value
    elif is_pair and flags[name] != value:
      raise InputError(
        f'--{name}={flags[name]} and {key} {value} name different folders; '
        'leave one of them out.'
      )
  return result


def require_weights(weight: str, workdir: pathlib.Path) -> None:
  """Raises an InputError if a training lacks the weights of MODEL.WEIGHT.

  It is called if --init_from is not given. A training that continues a run
  needs no weights, and MODEL.WEIGHT is not a name or a folder.

  Args:
    weight: The value of MODEL.WEIGHT.
    workdir: The folder of the run.
  """
  if not (workdir / 'checkpoints').is_dir():
    raise InputError(
      f'MODEL.WEIGHT is {weight}, but this program downloads only weights that '
      '--list_weights lists, and reads only converted weights. Give '
      f"{advice_on_weights(weight)}. MODEL.WEIGHT '' trains from random "
      'weights.'
    )
