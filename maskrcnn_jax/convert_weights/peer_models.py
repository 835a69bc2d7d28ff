"""Finds the model and the conventions of another program's weight file."""

from typing import Any, NamedTuple

import ml_collections
import numpy as np

from maskrcnn_jax.config import c4_config, c5_config, default_config
from maskrcnn_jax.config.defaults import set_value
from maskrcnn_jax.config.forms import problem_with
from maskrcnn_jax.config.keys import BY_NAME
from maskrcnn_jax.convert_weights.weight_names import (
  NAMINGS,
  Naming,
  peer_names,
  rows_per_class,
)
from maskrcnn_jax.data.coco_classes import COCO_CLASSES
from maskrcnn_jax.errors import InputError

_MASKS = 'mask_head/mask_fcn_logits'

# Key of the detectron2 files that this program writes. It holds the conventions
# that names and shapes of arrays do not show.
NOTES = 'maskrcnn_jax'

# Keys of the recipe that the notes hold too, because nothing in the arrays
# shows their values.
NOTED_KEYS = (
  'anchors.sizes',
  'anchors.ratios',
  'roi.sampling_ratio',
  'data.short_side',
  'data.long_side',
  'data.padded_sizes',
)

# Mean and standard deviation of pixels in [0, 255], for red, green and blue: of
# ImageNet, and of the training of Microsoft Research Asia's (MSRA) weights.
_IMAGENET = {
  'pixel_mean': (123.675, 116.28, 103.53),
  'pixel_std': (58.395, 57.12, 57.375),
}
_MSRA = {
  'pixel_mean': (122.7717, 115.9465, 102.9801),
  'pixel_std': (1.0, 1.0, 1.0),
}

# The conventions that the models published by each program are trained with.
# Source: torchvision models/detection/transform.py; detectron2
# config/defaults.py and layers/batch_norm.py; maskrcnn-benchmark
# config/defaults.py and layers/batch_norm.py.
_CONVENTIONS = {
  'torchvision': {
    'geometry': 'torchvision',
    'stride_in_1x1': False,
    'norm_eps': 1e-5,
    'antialias': False,
    **_IMAGENET,
  },
  'detectron2': {
    'geometry': 'modern',
    'stride_in_1x1': True,
    'norm_eps': 1e-5,
    'antialias': True,
    'pixel_mean': (123.675, 116.28, 103.53),
    'pixel_std': (1.0, 1.0, 1.0),
  },
  'maskrcnn_benchmark': {
    'geometry': 'legacy',
    'stride_in_1x1': True,
    'norm_eps': 0.0,
    'antialias': True,
    **_MSRA,
  },
  'caffe2': {
    'geometry': 'legacy',
    'stride_in_1x1': True,
    'norm_eps': 0.0,
    'antialias': True,
    **_MSRA,
  },
}


# Authors in files of detectron2 that name the program that made the file.
_DETECTRON2_AUTHORS = (None, 'Detectron2 Model Zoo', 'Caffe2', NOTES)


class Conventions(NamedTuple):
  """Conventions that the user gives. `None` stands for those of the file.

  Names and shapes of arrays do not show them. Some files state them in another
  way; for the others the usual conventions of the program are taken.
  """

  norm_eps: float | None = None  # epsilon of the frozen batch norm
  # Whether the first convolution of a bottleneck, which is 1x1, has the stride,
  # not the second.
  stride_in_1x1: bool | None = None
  # Channel order that the first convolution expects, 'rgb' or 'bgr'.
  pixel_order: str | None = None
  # Mean and standard deviation of pixels in [0, 255], for red, green and blue,
  # also if `pixel_order` is 'bgr'.
  pixel_mean: tuple[float, ...] | None = None
  pixel_std: tuple[float, ...] | None = None


def guess_format(arrays: dict[str, np.ndarray]) -> str:
  """Recognises by the names of a file's arrays which program wrote it.

  Args:
    arrays: Arrays of the file by name.

  Returns:
    The program, a key of `NAMINGS`.

  Raises:
    InputError: If no program in `NAMINGS` uses these names.
  """
  required = (
    'params/backbone/conv1/kernel',
    'params/backbone/layer1/0/conv1/kernel',
  )
  for source_format in NAMINGS:
    if all(find(name, arrays, source_format) for name in required):
      return source_format
  raise InputError(
    'does not hold a ResNet by names that torchvision, detectron2, '
    'maskrcnn-benchmark or Caffe2 give it; it has '
    f'{", ".join(sorted(arrays)[:3])}, ...'
  )


def find(
  name: str, arrays: dict[str, np.ndarray], source_format: str
) -> str | None:
  """Returns the name that one of our arrays has in a weight file.

  Args:
    name: Our name, such as 'params/backbone/conv1/kernel'.
    arrays: Arrays of the file by name.
    source_format: Program that wrote the file, a key of `NAMINGS`.

  Returns:
    The name in the file; `None` if the file lacks the array.
  """
  for peer_name in peer_names(name, NAMINGS[source_format]):
    if peer_name in arrays:
      return peer_name
  return None


def recipe_of(
  arrays: dict[str, np.ndarray],
  facts: dict[str, Any],
  source_format: str,
  given: Conventions,
) -> ml_collections.ConfigDict:
  """Returns the recipe with the sizes and conventions of a file's model.

  Args:
    arrays: Arrays of the file by name.
    facts: The entries of the file that are not arrays, by name.
    source_format: Program that wrote the file, a key of `NAMINGS`.
    given: Conventions that the user gives.

  Raises:
    InputError: If this program does not have the model, or if an array that the
      model must have is missing.
  """
  sizes = _sizes(arrays, source_format)
  notes = facts.get(NOTES)
  if sizes['body'] == 'dc5' and isinstance(notes, dict):
    # Only the notes of this program tell that the last stage is not dilated.
    sizes['body'] = 'c5' if notes.get('body') == 'c5' else 'dc5'
  config = default_config()
  if sizes['body'] != 'fpn':
    config = (
      c4_config()
      if sizes['body'] == 'c4'
      else c5_config(dilated=sizes['body'] == 'dc5')
    )
    with config.ignore_type():
      config.roi.sampling_ratio = 0
  if sizes['output'] == 'proposals':
    # If a model ends with proposals, the other programs keep more of them.
    # Source: detectron2, configs/COCO-Detection/rpn_R_50_FPN_1x.yaml and
    # rpn_R_50_C4_1x.yaml; maskrcnn-benchmark, configs/rpn_R_50_FPN_1x.yaml.
    config.rpn.eval.num_proposals = 2_000
    if sizes['body'] != 'fpn':
      config.rpn.eval.update(pre_nms=12_000, post_nms=2_000)
  config.model.update(sizes)
  if source_format == 'detectron2' and isinstance(notes, dict):
    _set_noted_keys(config, notes)
  usual = _conventions(arrays, facts, source_format, config.model)
  usual |= {
    key: value
    for key, value in given._asdict().items()
    if value is not None and key in usual
  }
  config.geometry = usual['geometry']
  config.model.norm_eps = float(usual['norm_eps'])
  config.model.stride_in_1x1 = bool(usual['stride_in_1x1'])
  config.data.antialias = bool(usual['antialias'])
  config.data.pixel_mean = tuple(float(x) for x in usual['pixel_mean'])
  config.data.pixel_std = tuple(float(x) for x in usual['pixel_std'])

  fc6 = find('params/box_head/fc6/kernel', arrays, source_format)
  if fc6:
    channels = config.model.fpn_channels
    if sizes['body'] != 'fpn':
      channels = _last_channels(arrays, source_format)
    config.roi.box_side = round((arrays[fc6].shape[-1] / channels) ** 0.5)
  per_cell = find('params/rpn/cls_logits/kernel', arrays, source_format)
  known = len(config.anchors.sizes[0]) * len(config.anchors.ratios)
  if per_cell and len(arrays[per_cell]) != known:
    raise InputError(
      f'{per_cell} has {len(arrays[per_cell])} anchors per cell; only models '
      f'with the usual {known} can be converted.'
    )
  return config


def _set_noted_keys(
  config: ml_collections.ConfigDict, notes: dict[str, Any]
) -> None:
  """Sets the keys of a recipe that the notes of this program hold.

  Args:
    config: The recipe; it is changed.
    notes: The notes of a file that this program has written. Files of older
      versions lack some of `NOTED_KEYS`.

  Raises:
    InputError: If the notes have a value that the key must not have.
  """

  def nested_tuple(value: Any) -> Any:
    """Turns lists into tuples, also within each other."""
    if isinstance(value, list | tuple):
      return tuple(map(nested_tuple, value))
    return value

  for name in NOTED_KEYS:
    # `None` leaves the key to the preset, which the notes name too.
    if notes.get(name) is not None:
      value = nested_tuple(notes[name])
      problem = problem_with(BY_NAME[name].form, value)
      if problem:
        raise InputError(
          f'notes the value {value!r} for {name}, which it cannot have; '
          f'{problem}. The notes are damaged; write the file again with --to.'
        )
      set_value(config, name, value)


def naming_of(
  arrays: dict[str, np.ndarray],
  facts: dict[str, Any],
  source_format: str,
  pixel_order: str | None = None,
) -> Naming:
  """Returns how a weight file names and lays out its arrays.

  Names and layout depend on the program only. For detectron2, which has a
  setting for the order of the color channels, `arrays` and `facts` show the
  order: by the mean of the pixels or, if there is none, by `is_converted`.

  Args:
    arrays: Arrays of the file by name.
    facts: The entries of the file that are not arrays, by name.
    source_format: Program that wrote the file, a key of `NAMINGS`.
    pixel_order: Channel order that the first convolution expects, 'rgb' or
      'bgr'. `None` finds it in a file of detectron2, and uses the usual order
      of any other program.
  """
  naming = NAMINGS[source_format]
  if pixel_order is not None:
    return naming._replace(is_bgr=pixel_order == 'bgr')
  if source_format == 'detectron2':
    # detectron2 has a setting for the order. The mean of ImageNet's pixels is
    # larger in red than in blue.
    mean = arrays.get('pixel_mean')
    if mean is not None:
      return naming._replace(is_bgr=bool(mean.ravel()[0] < mean.ravel()[-1]))
    return naming._replace(is_bgr=not is_converted(arrays, facts))
  return naming


def is_converted(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> bool:
  """Tells whether a file in detectron2's names is a ResNet of another program.

  Such files come from scripts that rename the arrays of torchvision's ResNet
  for detectron2: detectron2's own script with the author 'torchvision', MoCo's
  with 'MOCO', and scripts that were made after them. These ResNets expect
  torchvision's pixels, and the stride is in the 3x3 convolutions.

  Args:
    arrays: Arrays of the file by name.
    facts: The entries of the file that are not arrays, by name.
  """
  author = facts.get('__author__')
  is_resnet_alone = not find('params/rpn/conv/kernel', arrays, 'detectron2')
  return author == 'torchvision' or (
    is_resnet_alone
    and author not in _DETECTRON2_AUTHORS
    and bool(facts.get('matching_heuristics'))
  )


def count_classes(
  arrays: dict[str, np.ndarray], source_format: str, names: list[list] | None
) -> int:
  """Returns the number of classes with background.

  Any layer that depends on the classes shows it, because a file may lack the
  others. Without such a layer, it is the number of the given names.

  Args:
    arrays: Arrays of the file by name.
    source_format: Program that wrote the file, a key of `NAMINGS`.
    names: The classes that the user names, or `None`.
  """
  lacks_background = NAMINGS[source_format].background_last
  for module in ('box_head/cls_score', 'box_head/bbox_pred', _MASKS):
    name = find(f'params/{module}/kernel', arrays, source_format)
    if name:
      rows = len(arrays[name]) // rows_per_class(f'params/{module}/kernel')
      return rows + (lacks_background and module != 'box_head/cls_score')
  return len(names or ()) + 1


def class_table(
  num_classes: int, names: list[list] | None, *, keep_91: bool = False
) -> tuple[list[list], list[int] | None]:
  """Returns the classes of a model, and the rows of its scores to keep.

  Args:
    num_classes: Number of rows of the class scores, with background.
    names: The classes, [[id, name], ...], in the order of their class numbers.
      `None` uses COCO's if the number of rows is COCO's, and else names without
      a meaning.
    keep_91: Whether the ids that COCO never used stay classes, if there is a
      row for each of the ids 0 to 90.

  Returns:
    categories: The classes, [[id, name], ...], in the order of class numbers.
    rows: Indices of the rows to keep. `None` keeps all.

  Raises:
    InputError: If names are given, but not one for each class.
  """
  if names is not None:
    if len(names) != num_classes - 1:
      raise InputError(
        f'has {num_classes - 1} classes, but {len(names)} names were given.'
      )
    return names, None
  if num_classes == len(COCO_CLASSES) + 1:
    return [[id_, name] for id_, name in COCO_CLASSES.items()], None
  last = max(COCO_CLASSES)
  if num_classes == last + 1 and keep_91:
    return [
      [id_, COCO_CLASSES.get(id_, f'unused {id_}')]
      for id_ in range(1, last + 1)
    ], None
  if num_classes == last + 1:
    return [[id_, name] for id_, name in COCO_CLASSES.items()], coco_rows()
  return [[i, f'class {i}'] for i in range(1, num_classes)], None


def coco_rows() -> list[int]:
  """Returns the rows to keep of 91 class scores: 0 and the 80 ids of COCO.

  The row of a class is its COCO id; row 0 is background.
  """
  return [0, *COCO_CLASSES]


def _sizes(
  arrays: dict[str, np.ndarray], source_format: str
) -> dict[str, str | int]:
  """Reads the sizes of a model off the names and shapes of its arrays.

  Args:
    arrays: Arrays of the weight file by name.
    source_format: Program that wrote the file, a key of `NAMINGS`.

  Returns:
    The keys of `config.model` that are known from the file, and their values.

  Raises:
    InputError: If this program does not have the model, or if an array that the
      model must have is missing.
  """

  def has(module: str) -> bool:
    """Tells whether the file has the kernel of one of our modules."""
    return find(f'params/{module}/kernel', arrays, source_format) is not None

  def shape_of(module: str) -> tuple[int, ...]:
    """Returns the shape of a module's kernel.

    Raises:
      InputError: If the file lacks the kernel.
    """
    name = find(f'params/{module}/kernel', arrays, source_format)
    if name is None:
      raise InputError(f'lacks the weights of {module}; it is damaged.')
    return arrays[name].shape

  def count(pattern: str, start: int) -> int:
    """Counts modules whose numbers follow each other from `start` on."""
    number = 0
    while has(pattern.format(start + number)):
      number += 1
    return number

  blocks = [count(f'backbone/layer{i}/{{}}/conv1', 0) for i in (1, 2, 3, 4)]
  is_bottleneck = has('backbone/layer1/0/conv3')
  depth = {(False, 2): 18, (False, 6): 34, (True, 6): 50, (True, 23): 101}.get(
    (is_bottleneck, blocks[2])
  )
  if depth is None:
    raise InputError(
      f'has a ResNet of {blocks} blocks; only ResNet-18, 34, 50 and 101 and '
      'ResNeXt of such depths can be converted.'
    )
  body = 'fpn'
  if has('rpn/conv') and not has('fpn/inner2'):
    # The RPN follows the third stage in a C4 model, the last stage in a C5
    # model. Nothing in a file shows whether the last stage is dilated.
    body = 'c4'
    if shape_of('rpn/conv')[1] == _last_channels(arrays, source_format):
      body = 'dc5' if source_format == 'detectron2' else 'c5'
  norm_scale = find('params/backbone/bn1/scale', arrays, source_format) or ''
  has_mean = find('constants/backbone/bn1/mean', arrays, source_format)
  is_group = not has_mean and not norm_scale.endswith('_bn_s')
  width = shape_of('backbone/conv1')[0]
  sizes: dict[str, str | int] = {
    'body': body,
    'depth': depth,
    'norm': 'group' if is_group else 'frozen_batch',
    'width': width,
  }
  if find('constants/fpn/inner2_norm/mean', arrays, source_format):
    sizes['norm'] = 'frozen_batch_all'
  if is_bottleneck:
    inner, per_group = shape_of('backbone/layer1/0/conv2')[:2]
    sizes['groups'] = inner // per_group
    sizes['group_width'] = per_group * 64 // width
  # A backbone without heads can start the training of any model, so the default
  # stays.
  sizes['output'] = 'masks'
  if not has('mask_head/conv5_mask') and not has('mask_head/mask_fcn1'):
    if has('box_head/fc6') or has('box_head/cls_score'):
      sizes['output'] = 'boxes'
    elif has('rpn/conv'):
      sizes['output'] = 'proposals'
  if has('rpn/conv'):
    sizes['rpn_convs'] = 1 + count('rpn/conv{}', 2)
  # Published models with group norm have this box head. The sizes of a box head
  # in the file replace these numbers below.
  if is_group:
    sizes |= {'box_convs': 4, 'box_fcs': 1}
  if has('fpn/inner2'):
    sizes['fpn_channels'] = shape_of('fpn/inner2')[0]
  if has('box_head/fc6'):
    sizes['box_convs'] = count('box_head/conv{}', 1)
    sizes['box_fcs'] = count('box_head/fc{}', 6)
    sizes['box_features'] = shape_of('box_head/fc6')[0]
  if has('mask_head/mask_fcn1') or has('mask_head/conv5_mask'):
    sizes['mask_convs'] = count('mask_head/mask_fcn{}', 1)
  if has('mask_head/mask_fcn1'):
    sizes['mask_channels'] = shape_of('mask_head/mask_fcn1')[0]
  elif has('mask_head/conv5_mask'):
    # The second axis of a transposed convolution is the output channels.
    sizes['mask_channels'] = shape_of('mask_head/conv5_mask')[1]
  return sizes


def _last_channels(arrays: dict[str, np.ndarray], source_format: str) -> int:
  """Returns the number of channels that the last stage of the ResNet gives.

  It is 0 if the file has no last stage.

  Args:
    arrays: Arrays of the weight file by name.
    source_format: Program that wrote the file, a key of `NAMINGS`.
  """
  for conv in ('conv3', 'conv2'):  # The last convolution of a block.
    name = find(
      f'params/backbone/layer4/0/{conv}/kernel', arrays, source_format
    )
    if name is not None:
      return len(arrays[name])
  return 0


def _conventions(
  arrays: dict[str, np.ndarray],
  facts: dict[str, Any],
  source_format: str,
  sizes: ml_collections.ConfigDict,
) -> dict[str, Any]:
  """Finds the conventions that the model of a weight file was trained with.

  Args:
    arrays: Arrays of the file by name.
    facts: The entries of the file that are not arrays, by name.
    source_format: Program that wrote the file, a key of `NAMINGS`.
    sizes: `config.model` of the model.

  Returns:
    The values of geometry, stride_in_1x1, norm_eps, antialias, pixel_mean and
    pixel_std.
  """
  usual: dict[str, Any] = dict(_CONVENTIONS[source_format])
  # Only the bottlenecks of MSRA's ResNets have the stride in a 1x1 convolution.
  if sizes.norm == 'group' or sizes.depth < 50 or sizes.groups > 1:
    usual['stride_in_1x1'] = False
  if source_format == 'detectron2' and sizes.groups > 1:
    usual |= _IMAGENET
  lateral = find('params/fpn/inner2/kernel', arrays, source_format)
  if source_format == 'torchvision' and lateral and '.0.0.' not in lateral:
    # Weights with these names are so old that torchvision added no epsilon when
    # they were trained.
    usual['norm_eps'] = 0.0
  if source_format == 'detectron2':
    if is_converted(arrays, facts):
      usual |= _IMAGENET | {'stride_in_1x1': False}
    if 'pixel_mean' in arrays and 'pixel_std' in arrays:
      is_bgr = naming_of(arrays, facts, source_format).is_bgr
      for key in ('pixel_mean', 'pixel_std'):
        values = [round(float(x), 4) for x in arrays[key].ravel()]
        usual[key] = values[::-1] if is_bgr else values
      usual['stride_in_1x1'] &= usual['pixel_std'] == [1.0, 1.0, 1.0]
    notes = facts.get(NOTES)
    if isinstance(notes, dict):
      usual |= {
        key: notes[key]
        for key in usual.keys() & notes.keys()
        if notes[key] is not None
      }
  return usual
