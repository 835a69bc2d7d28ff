"""The weights that can be named: addresses, published figures, conventions.

This file imports nothing but the standard library and `errors`, so that any
program can read the table, also one without JAX.
"""

import difflib
import pathlib
import re
from typing import NamedTuple
import urllib.parse

from maskrcnn_jax.errors import InputError

# How far below the published AP a measured AP may be, in [0, 1]. Published APs
# are rounded to 0.001. The other half of the tolerance is for decoders and
# resizers that round differently. A wrong convention, such as another order of
# the colors, costs more than this.
TOLERANCE = 0.002

# The part of the catalog of NVIDIA's program with complete models.
_CAFFE2_COCO = 'catalog://Caffe2Detectron/COCO'


class Publisher(NamedTuple):
  """The authors of a group of weights."""

  title: str
  licence: str  # of the weights
  source: str  # where addresses, figures and conventions are published


class NamedWeights(NamedTuple):
  """A weight file that has a name."""

  name: str  # as in --init_from=NAME
  address: str  # the publisher's
  # 'sha256:' or 'md5:', and the first hex digits of the checksum of the file;
  # '' if the publisher gives none.
  checksum: str
  model: str  # a few words that describe it
  # Published AP on COCO val2017, in points of 100. `None` if the model does not
  # predict boxes or masks.
  box_ap: float | None
  mask_ap: float | None
  recall: float | None  # AR of 1000 proposals, in points; only of an RPN
  # Conventions of the weights, as flags of `convert_weights`.
  conventions: tuple[str, ...]
  publisher: Publisher

  @property
  def file_name(self) -> str:
    """Name of the file without its folders."""
    return self.address.rpartition('/')[2]

  @property
  def place(self) -> pathlib.PurePosixPath:
    """Relative path of the file below a mirror: host, folders and name."""
    parts = urllib.parse.urlsplit(self.address)
    return pathlib.PurePosixPath(parts.netloc + parts.path)


TORCHVISION = Publisher(
  'torchvision',
  'no licence of their own; torchvision is under BSD-3-Clause, and says that '
  'terms of the training data may apply',
  'the weight classes in torchvision/models/ of torchvision 0.28',
)
DETECTRON2 = Publisher(
  'detectron2',
  'CC BY-SA 3.0',
  'MODEL_ZOO.md and configs/ of facebookresearch/detectron2',
)
BENCHMARK = Publisher(
  'maskrcnn-benchmark',
  'none stated for the weights; the program is under the MIT licence',
  'MODEL_ZOO.md and configs/ of facebookresearch/maskrcnn-benchmark',
)
DETECTRON = Publisher(
  'Detectron (Caffe2), by the names in the catalog of NVIDIA and '
  'maskrcnn-benchmark',
  'CC BY-SA 3.0',
  'MODEL_ZOO.md of facebookresearch/Detectron; config/paths_catalog.py of '
  "NVIDIA's Mask R-CNN For PyTorch",
)


def _conventions(
  program: str,
  *,
  norm_eps: str,
  stride_in_1x1: bool,
  order: str,
  mean: str,
  std: str,
) -> tuple[str, ...]:
  """Returns conventions as flags of `convert_weights`.

  Args:
    program: The program that the file comes from.
    norm_eps: Epsilon of the frozen batch norm.
    stride_in_1x1: Whether the first convolution of a bottleneck has the stride.
    order: Channel order that the first convolution expects, 'rgb' or 'bgr'.
    mean: Mean of the pixels in [0, 255]: red, green, blue.
    std: Standard deviation of the pixels: red, green, blue.
  """
  return (
    f'--source_format={program}',
    f'--norm_eps={norm_eps}',
    f'--stride_in_1x1={str(stride_in_1x1).lower()}',
    f'--pixel_order={order}',
    f'--pixel_mean={mean}',
    f'--pixel_std={std}',
  )


_IMAGENET_MEAN, _IMAGENET_STD = '123.675,116.28,103.53', '58.395,57.12,57.375'
_MSRA_MEAN, _NO_STD = '122.7717,115.9465,102.9801', '1,1,1'


def _torchvision(
  model: str,
  file: str,
  text: str,
  box_ap: float | None = None,
  mask_ap: float | None = None,
  norm_eps: str = '1e-5',
) -> NamedWeights:
  """Returns a row of torchvision.

  The file name ends with the first 8 digits of the SHA-256, which torch.hub
  checks.
  """
  return NamedWeights(
    f'torchvision:{model}',
    f'https://download.pytorch.org/models/{file}',
    'sha256:' + file.removesuffix('.pth').rpartition('-')[2],
    text,
    box_ap,
    mask_ap,
    None,
    _conventions(
      'torchvision',
      norm_eps=norm_eps,
      stride_in_1x1=False,
      order='rgb',
      mean=_IMAGENET_MEAN,
      std=_IMAGENET_STD,
    ),
    TORCHVISION,
  )


def _detectron2(
  path: str,
  text: str,
  box_ap: float | None = None,
  mask_ap: float | None = None,
  recall: float | None = None,
) -> NamedWeights:
  """Returns a row of detectron2.

  MODEL_ZOO.md says that the file name of a detector ends with the first digits
  of its MD5. The ImageNet models have no checksum.
  """
  folder, *_, file = path.split('/')
  is_detector = folder != 'ImageNetPretrained'
  model = path.split('/')[1] if is_detector else file.removesuffix('.pkl')
  checksum = file.removesuffix('.pkl').rpartition('_')[2]
  is_resnext = '32x8d' in path
  return NamedWeights(
    f'detectron2:{model}',
    f'https://dl.fbaipublicfiles.com/detectron2/{path}',
    f'md5:{checksum}' if is_detector else '',
    text,
    box_ap,
    mask_ap,
    recall,
    _conventions(
      'detectron2',
      norm_eps='1e-5',
      stride_in_1x1=not (is_resnext or model.endswith('_gn')),
      order='bgr',
      mean=_IMAGENET_MEAN,
      std=_IMAGENET_STD if is_resnext else _NO_STD,
    ),
    DETECTRON2,
  )


def _benchmark(
  model: str, text: str, box_ap: float, mask_ap: float | None = None
) -> NamedWeights:
  """Returns a row of maskrcnn-benchmark, which gives no checksums."""
  return NamedWeights(
    f'maskrcnn_benchmark:{model}',
    f'https://download.pytorch.org/models/maskrcnn/{model}.pth',
    '',
    text,
    box_ap,
    mask_ap,
    None,
    _conventions(
      'maskrcnn_benchmark',
      norm_eps='0',
      stride_in_1x1='32x8d' not in model,
      order='bgr',
      mean=_MSRA_MEAN,
      std=_NO_STD,
    ),
    BENCHMARK,
  )


def _detectron(
  name: str,
  path: str,
  text: str,
  box_ap: float | None = None,
  mask_ap: float | None = None,
  checksum: str = '',
) -> NamedWeights:
  """Returns a row of Detectron."""
  return NamedWeights(
    name,
    f'https://dl.fbaipublicfiles.com/detectron/{path}',
    checksum,
    text,
    box_ap,
    mask_ap,
    None,
    _conventions(
      'caffe2',
      norm_eps='0',
      stride_in_1x1=not ('32x8d' in name or name.endswith('GN')),
      order='bgr',
      mean=_MSRA_MEAN,
      std=_NO_STD,
    ),
    DETECTRON,
  )


def _detectron_coco(
  model: str, signature: str, text: str, box_ap: float, mask_ap: float | None
) -> NamedWeights:
  """Returns a row of a detector of Detectron.

  Args:
    model: Model id and name, 'ID/NAME'.
    signature: End of the name of its folder, 'TIME.LETTERS'.
    text: Description of the model.
    box_ap: Box AP in points.
    mask_ap: Mask AP in points.
  """
  id_, _, name = model.partition('/')
  return _detectron(
    f'{_CAFFE2_COCO}/{model}',
    f'{id_}/12_2017_baselines/{name}.yaml.{signature}/output/train/'
    'coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/'
    'model_final.pkl',
    text,
    box_ap,
    mask_ap,
  )


_SEGMENT, _DETECT = 'COCO-InstanceSegmentation', 'COCO-Detection'
_IMAGENET = 'ImageNet classifier'

# The formatter is off, because it would spread each row over many lines.
# fmt: off
TABLE: tuple[NamedWeights, ...] = (
    # COCO_V1 of version 1 was trained without epsilon; torchvision's function
    # `overwrite_eps` sets it to 0.
    _torchvision('maskrcnn_resnet50_fpn_v2',
                 'maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth',
                 'Mask R-CNN R50-FPN, version 2', 47.4, 41.8),
    _torchvision('maskrcnn_resnet50_fpn',
                 'maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth',
                 'Mask R-CNN R50-FPN', 37.9, 34.6, norm_eps='0'),
    _torchvision('fasterrcnn_resnet50_fpn_v2',
                 'fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth',
                 'Faster R-CNN R50-FPN, version 2', 46.7),
    _torchvision('fasterrcnn_resnet50_fpn',
                 'fasterrcnn_resnet50_fpn_coco-258fb6c6.pth',
                 'Faster R-CNN R50-FPN', 37.0, norm_eps='0'),
    _torchvision('resnet50', 'resnet50-0676ba61.pth',
                 f'{_IMAGENET}, IMAGENET1K_V1'),
    _torchvision('resnet50_v2', 'resnet50-11ad3fa6.pth',
                 f'{_IMAGENET}, IMAGENET1K_V2'),
    _torchvision('resnet101', 'resnet101-63fe2227.pth',
                 f'{_IMAGENET}, IMAGENET1K_V1'),
    _torchvision('resnet101_v2', 'resnet101-cd907fc2.pth',
                 f'{_IMAGENET}, IMAGENET1K_V2'),
    _torchvision('resnext101_32x8d', 'resnext101_32x8d-8ba56ff5.pth',
                 f'{_IMAGENET}, IMAGENET1K_V1'),
    _torchvision('resnext101_32x8d_v2', 'resnext101_32x8d-110c445d.pth',
                 f'{_IMAGENET}, IMAGENET1K_V2'),
    _torchvision('resnet34', 'resnet34-b627a593.pth',
                 f'{_IMAGENET}, IMAGENET1K_V1'),
    _torchvision('resnet18', 'resnet18-f37072fd.pth',
                 f'{_IMAGENET}, IMAGENET1K_V1'),

    _detectron2(f'{_SEGMENT}/mask_rcnn_X_101_32x8d_FPN_3x/139653917/'
                'model_final_2d9806.pkl', 'Mask R-CNN X101-FPN', 44.3, 39.5),
    _detectron2(f'{_SEGMENT}/mask_rcnn_R_101_FPN_3x/138205316/'
                'model_final_a3ec72.pkl', 'Mask R-CNN R101-FPN', 42.9, 38.6),
    _detectron2(f'{_SEGMENT}/mask_rcnn_R_101_C4_3x/138363239/'
                'model_final_a2914c.pkl', 'Mask R-CNN R101-C4', 42.6, 36.7),
    _detectron2(f'{_SEGMENT}/mask_rcnn_R_101_DC5_3x/138363294/'
                'model_final_0464b7.pkl', 'Mask R-CNN R101-DC5', 41.9, 37.3),
    _detectron2('Misc/mask_rcnn_R_50_FPN_3x_gn/138602888/'
                'model_final_dc5d9e.pkl', 'Mask R-CNN R50-FPN, group norm',
                42.6, 38.6),
    _detectron2('Misc/scratch_mask_rcnn_R_50_FPN_3x_gn/138602908/'
                'model_final_01ca85.pkl',
                'Mask R-CNN R50-FPN, group norm, from random weights',
                39.9, 36.6),
    _detectron2(f'{_SEGMENT}/mask_rcnn_R_50_FPN_3x/137849600/'
                'model_final_f10217.pkl', 'Mask R-CNN R50-FPN', 41.0, 37.2),
    _detectron2(f'{_SEGMENT}/mask_rcnn_R_50_FPN_1x/137260431/'
                'model_final_a54504.pkl', 'Mask R-CNN R50-FPN', 38.6, 35.2),
    _detectron2(f'{_SEGMENT}/mask_rcnn_R_50_DC5_3x/137849551/'
                'model_final_84107b.pkl', 'Mask R-CNN R50-DC5', 40.0, 35.9),
    _detectron2(f'{_SEGMENT}/mask_rcnn_R_50_DC5_1x/137260150/'
                'model_final_4f86c3.pkl', 'Mask R-CNN R50-DC5', 38.3, 34.2),
    _detectron2(f'{_SEGMENT}/mask_rcnn_R_50_C4_3x/137849525/'
                'model_final_4ce675.pkl', 'Mask R-CNN R50-C4', 39.8, 34.4),
    _detectron2(f'{_SEGMENT}/mask_rcnn_R_50_C4_1x/137259246/'
                'model_final_9243eb.pkl', 'Mask R-CNN R50-C4', 36.8, 32.2),
    _detectron2(f'{_DETECT}/faster_rcnn_X_101_32x8d_FPN_3x/139173657/'
                'model_final_68b088.pkl', 'Faster R-CNN X101-FPN', 43.0),
    _detectron2(f'{_DETECT}/faster_rcnn_R_101_FPN_3x/137851257/'
                'model_final_f6e8b1.pkl', 'Faster R-CNN R101-FPN', 42.0),
    _detectron2(f'{_DETECT}/faster_rcnn_R_101_C4_3x/138204752/'
                'model_final_298dad.pkl', 'Faster R-CNN R101-C4', 41.1),
    _detectron2(f'{_DETECT}/faster_rcnn_R_101_DC5_3x/138204841/'
                'model_final_3e0943.pkl', 'Faster R-CNN R101-DC5', 40.6),
    _detectron2(f'{_DETECT}/faster_rcnn_R_50_FPN_3x/137849458/'
                'model_final_280758.pkl', 'Faster R-CNN R50-FPN', 40.2),
    _detectron2(f'{_DETECT}/faster_rcnn_R_50_FPN_1x/137257794/'
                'model_final_b275ba.pkl', 'Faster R-CNN R50-FPN', 37.9),
    _detectron2(f'{_DETECT}/faster_rcnn_R_50_DC5_3x/137849425/'
                'model_final_68d202.pkl', 'Faster R-CNN R50-DC5', 39.0),
    _detectron2(f'{_DETECT}/faster_rcnn_R_50_DC5_1x/137847829/'
                'model_final_51d356.pkl', 'Faster R-CNN R50-DC5', 37.3),
    _detectron2(f'{_DETECT}/faster_rcnn_R_50_C4_3x/137849393/'
                'model_final_f97cb7.pkl', 'Faster R-CNN R50-C4', 38.4),
    _detectron2(f'{_DETECT}/faster_rcnn_R_50_C4_1x/137257644/'
                'model_final_721ade.pkl', 'Faster R-CNN R50-C4', 35.7),
    _detectron2(f'{_DETECT}/rpn_R_50_FPN_1x/137258492/model_final_02ce48.pkl',
                'RPN R50-FPN', recall=58.0),
    _detectron2(f'{_DETECT}/rpn_R_50_C4_1x/137258005/model_final_450694.pkl',
                'RPN R50-C4', recall=51.6),
    _detectron2('ImageNetPretrained/MSRA/R-50.pkl', _IMAGENET),
    _detectron2('ImageNetPretrained/MSRA/R-101.pkl', _IMAGENET),
    _detectron2('ImageNetPretrained/FAIR/X-101-32x8d.pkl', _IMAGENET),

    _benchmark('e2e_mask_rcnn_X_101_32x8d_FPN_1x', 'Mask R-CNN X101-FPN',
               42.2, 37.8),
    _benchmark('e2e_mask_rcnn_R_101_FPN_1x', 'Mask R-CNN R101-FPN', 40.1, 36.1),
    _benchmark('e2e_mask_rcnn_R_50_FPN_1x', 'Mask R-CNN R50-FPN', 37.8, 34.2),
    _benchmark('e2e_mask_rcnn_R_50_C4_1x', 'Mask R-CNN R50-C4', 35.6, 31.5),
    _benchmark('e2e_faster_rcnn_X_101_32x8d_FPN_1x', 'Faster R-CNN X101-FPN',
               41.2),
    _benchmark('e2e_faster_rcnn_R_101_FPN_1x', 'Faster R-CNN R101-FPN', 39.1),
    _benchmark('e2e_faster_rcnn_R_50_FPN_1x', 'Faster R-CNN R50-FPN', 36.8),
    _benchmark('e2e_faster_rcnn_R_50_C4_1x', 'Faster R-CNN R50-C4', 34.8),

    # The checksum is in weights.md5 of NVIDIA's program.
    _detectron('catalog://ImageNetPretrained/MSRA/R-50',
               'ImageNetPretrained/MSRA/R-50.pkl', _IMAGENET,
               checksum='md5:b19105fdd7baafb40480251377de18f2'),
    _detectron('catalog://ImageNetPretrained/MSRA/R-101',
               'ImageNetPretrained/MSRA/R-101.pkl', _IMAGENET),
    _detectron('catalog://ImageNetPretrained/MSRA/R-50-GN',
               'ImageNetPretrained/47261647/R-50-GN.pkl',
               f'{_IMAGENET}, group norm'),
    _detectron('catalog://ImageNetPretrained/MSRA/R-101-GN',
               'ImageNetPretrained/47592356/R-101-GN.pkl',
               f'{_IMAGENET}, group norm'),
    _detectron('catalog://ImageNetPretrained/FAIR/20171220/X-101-32x8d',
               'ImageNetPretrained/20171220/X-101-32x8d.pkl', _IMAGENET),
    _detectron_coco('36761843/e2e_mask_rcnn_X-101-32x8d-FPN_1x',
                    '06_35_59.RZotkLKI', 'Mask R-CNN X101-FPN', 42.1, 37.3),
    _detectron_coco('35861795/e2e_mask_rcnn_R-101-FPN_1x',
                    '02_31_37.KqyEK4tT', 'Mask R-CNN R101-FPN', 40.0, 35.9),
    _detectron_coco('35858933/e2e_mask_rcnn_R-50-FPN_1x',
                    '01_48_14.DzEQe4wC', 'Mask R-CNN R50-FPN', 37.7, 33.9),
    _detectron_coco('36761737/e2e_faster_rcnn_X-101-32x8d-FPN_1x',
                    '06_31_39.5MIHi1fZ', 'Faster R-CNN X101-FPN', 41.3, None),
    _detectron_coco('35857890/e2e_faster_rcnn_R-101-FPN_1x',
                    '01_38_50.sNxI7sX7', 'Faster R-CNN R101-FPN', 39.4, None),
    _detectron_coco('35857345/e2e_faster_rcnn_R-50-FPN_1x',
                    '01_36_30.cUF7QR7I', 'Faster R-CNN R50-FPN', 36.7, None),
)
# fmt: on

# Names of the weights that a message proposes to a user who has none.
PROPOSED = (
  'torchvision:maskrcnn_resnet50_fpn_v2',
  'detectron2:mask_rcnn_R_50_FPN_3x',
  'detectron2:mask_rcnn_R_101_FPN_3x',
)


def is_name(text: str) -> bool:
  """Tells whether a text has the form of a name of weights, known or not."""
  return bool(
    re.match(r'(torchvision|detectron2|maskrcnn_benchmark):|catalog://', text)
  )


def find_row(name: str) -> NamedWeights:
  """Finds the weights that a name stands for.

  Raises:
    InputError: If there are no weights of this name.
  """
  rows = {row.name: row for row in TABLE}
  if name in rows:
    return rows[name]
  near = difflib.get_close_matches(name, rows, 1)
  hint = f'did you mean {near[0]}? ' if near else ''
  raise InputError(
    f'There are no weights of the name {name}; {hint}--list_weights lists all '
    'names. Another weight file is converted with python -m '
    'maskrcnn_jax.convert_weights FILE CHECKPOINT.'
  )


def conventions(name: str) -> tuple[str, ...]:
  """Returns the conventions of named weights, as flags of `convert_weights`.

  Raises:
    InputError: If there are no weights of this name.
  """
  return find_row(name).conventions


def published_ap(name: str) -> dict[str, tuple[float, float] | None]:
  """Returns the AP on COCO val2017 that is published for named weights.

  Args:
    name: A name of the table.

  Returns:
    'box_ap' and 'mask_ap', each with (AP, tolerance), both in [0, 1], as the
    keys `expected` of a recipe. `None` if no AP is published.
  """
  row = find_row(name)

  def expected(points: float | None) -> tuple[float, float] | None:
    """Returns the value of the key for an AP in points."""
    return None if points is None else (round(points / 100, 4), TOLERANCE)

  return {'box_ap': expected(row.box_ap), 'mask_ap': expected(row.mask_ap)}


def proposal() -> str:
  """Returns the names to propose, with their published AP, in one line."""
  return ', '.join(
    f'{row.name} (box AP {row.box_ap}, mask AP {row.mask_ap})'
    for row in map(find_row, PROPOSED)
  )


def list_weights() -> str:
  """Returns the whole table as text, for --list_weights."""
  lines = [
    'Weights that --init_from=NAME and --checkpoint=NAME download and convert '
    'at first use.',
    'AP: published by the authors, for COCO val2017 (the images of minival '
    '2014), in points: box / mask.',
  ]
  publisher = None
  for row in TABLE:
    if row.publisher != publisher:
      publisher = row.publisher
      lines += [
        '',
        f'From {publisher.title}',
        f'  licence: {publisher.licence}',
        f'  source of addresses, figures and conventions: {publisher.source}',
      ]
    figures = ''
    if row.recall is not None:
      figures = f'AR@1000 {row.recall}'
    elif row.box_ap is not None:
      mask = '' if row.mask_ap is None else f' / {row.mask_ap}'
      figures = f'AP {row.box_ap}{mask}'
    facts = ', '.join(filter(None, (row.model, figures)))
    lines += [
      '',
      f'{row.name}',
      f'  {facts}',
      f'  {row.address}',
      f'  {row.checksum or "no checksum published"}; '
      f'{" ".join(row.conventions)}',
    ]
  return '\n'.join(lines)
