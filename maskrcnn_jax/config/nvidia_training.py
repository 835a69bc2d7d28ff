"""Translates the keys of NVIDIA's program about training, data and evaluation.

Each function adds our keys to `values`, the reason to `problems` if a value of
NVIDIA's program has no counterpart, and a remark for the log to `notes`.
"""

from typing import Any

from maskrcnn_jax.config.nvidia_keys import BY_NAME

# {name in DATASETS: (folder of images, annotations)}, in the folder data/coco.
COCO_SETS = {
  'coco_2014_train': ('train2014', 'instances_train2014.json'),
  'coco_2014_val': ('val2014', 'instances_val2014.json'),
  'coco_2014_minival': ('val2014', 'instances_minival2014.json'),
  'coco_2014_valminusminival': (
    'val2014',
    'instances_valminusminival2014.json',
  ),
  'coco_2017_train': ('train2017', 'instances_train2017.json'),
  'coco_2017_val': ('val2017', 'instances_val2017.json'),
}

# {value of DTYPE: precision}.
PRECISIONS = {
  'float32': 'fp32',
  'tf32': 'tf32',
  'float16': 'fp16',
  'bfloat16': 'bf16',
}


def translate_schedule(
  theirs: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  notes: dict[str, str],
) -> None:
  """Translates batch, number of steps and accumulation.

  With accumulation, NVIDIA's program counts MAX_ITER and CHECKPOINT_PERIOD in
  batches of IMS_PER_BATCH images, but STEPS and WARMUP_ITERS in updates of the
  weights. This program counts all four in updates.

  Args:
    theirs: The values of all keys of NVIDIA's program.
    values: {key of this program: value}; entries are added.
    problems: {key of NVIDIA's program: reason}; entries are added.
    notes: {key of NVIDIA's program: remark for the log}; entries are added.

  Source:
    NVIDIA's Mask R-CNN For PyTorch (2022), engine/trainer.py.
    Differs: there, the first update has one batch less.
  """
  steps = theirs['SOLVER.ACCUMULATE_STEPS']
  for name in (
    'SOLVER.ACCUMULATE_STEPS',
    'SOLVER.IMS_PER_BATCH',
    'SOLVER.MAX_ITER',
    'SOLVER.CHECKPOINT_PERIOD',
  ):
    if theirs[name] is not None and theirs[name] < 1:
      problems[name] = f'it is {theirs[name]}; it must be at least 1'
      return
  if not theirs['SOLVER.ACCUMULATE_GRAD']:
    if steps > 1:
      notes['SOLVER.ACCUMULATE_STEPS'] = (
        'no effect, because SOLVER.ACCUMULATE_GRAD is False'
      )
    steps = 1
  values['train.batch_size'] = theirs['SOLVER.IMS_PER_BATCH'] * steps
  values['train.micro_batches'] = steps
  for name, key in (
    ('SOLVER.CHECKPOINT_PERIOD', 'train.checkpoint_every'),
    ('SOLVER.MAX_ITER', 'train.num_steps'),
  ):
    # A recipe of a fine-tuning may leave these keys open.
    if theirs[name] is not None:
      values[key] = max(theirs[name] // steps, 1)
  decays = theirs['SOLVER.STEPS']
  updates = values.get('train.num_steps')
  if steps > 1 and decays and updates and min(decays) >= updates:
    quarter = tuple(step // steps for step in decays)
    notes['SOLVER.ACCUMULATE_GRAD'] = (
      f'SOLVER.STEPS {decays} counts updates, of which there are {updates}, so '
      f"the learning rate never falls; SOLVER.STEPS '{quarter}' lowers it "
      'after as many images as before'
    )


def translate_evaluations(
  theirs: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  notes: dict[str, str],
) -> None:
  """Translates evaluations, expected results and the precision.

  The arguments are those of `translate_schedule`.
  """
  dtype = theirs['DTYPE']
  values['precision'] = 'auto' if dtype is None else PRECISIONS[dtype]
  has_masks = theirs['MODEL.MASK_ON'] and not theirs['MODEL.RPN_ONLY']
  is_regular = theirs['PER_EPOCH_EVAL']
  values['train.eval_every_epochs'] = 1.0 if is_regular else 0.0
  for name, key, is_used in (
    ('MIN_BBOX_MAP', 'train.min_box_ap', True),
    ('MIN_MASK_MAP', 'train.min_mask_ap', has_masks),
  ):
    values[key] = theirs[name] if is_regular and is_used else 0.0
    if not 0 <= theirs[name] <= 1:
      problems[name] = f'it is {theirs[name]}; an AP is between 0 and 1'
    elif not is_regular:
      notes[name] = 'no effect, because PER_EPOCH_EVAL is False'
  for entry in theirs['TEST.EXPECTED_RESULTS']:
    result = _expected(entry)
    if result is None:
      problems['TEST.EXPECTED_RESULTS'] = (
        f'{entry!r} is not understood; only the AP of bbox and segm is '
        "compared: ('bbox', 'AP', (MEAN, STANDARD DEVIATION))"
      )
      return
    key, mean, deviation = result
    values[key] = (mean, deviation * theirs['TEST.EXPECTED_RESULTS_SIGMA_TOL'])


def _expected(entry: Any) -> tuple[str, float, float] | None:
  """Reads an entry of TEST.EXPECTED_RESULTS.

  Args:
    entry: (task, metric, (mean, standard deviation)), or all four in a row.

  Returns:
    The key of this program, the mean and the standard deviation; `None` if the
    entry is something else.
  """
  match entry:
    case (task, 'AP', (mean, deviation)) | (task, 'AP', mean, deviation):
      keys = {'bbox': 'expected.box_ap', 'segm': 'expected.mask_ap'}
      if task in keys and all(
        isinstance(x, int | float) for x in (mean, deviation)
      ):
        return keys[task], float(mean), float(deviation)
  return None


def translate_images(
  theirs: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  notes: dict[str, str],
) -> None:
  """Translates sizes, colors and augmentation.

  The arguments are those of `translate_schedule`.
  """
  short, long = theirs['INPUT.MIN_SIZE_TEST'], theirs['INPUT.MAX_SIZE_TEST']
  sides = theirs['INPUT.MIN_SIZE_TRAIN']
  if not all(isinstance(side, int) and side > 0 for side in (*sides, short)):
    problems['INPUT.MIN_SIZE_TRAIN'] = 'give numbers of pixels'
    return
  if max(sides) > short:
    problems['INPUT.MIN_SIZE_TRAIN'] = (
      f'it is {sides}, above MIN_SIZE_TEST {short}; train with INPUT.'
      f'MIN_SIZE_TEST {max(sides)}, and give --config.data.short_side={short} '
      'in the evaluation'
    )
  if theirs['INPUT.MAX_SIZE_TRAIN'] != long:
    problems['INPUT.MAX_SIZE_TRAIN'] = (
      f'it is {theirs["INPUT.MAX_SIZE_TRAIN"]}, but MAX_SIZE_TEST is {long}; '
      'give the same number, and --config.data.long_side in the evaluation'
    )
  if long < short:
    problems['INPUT.MAX_SIZE_TEST'] = f'it is {long}, below MIN_SIZE_TEST'
  values['data.short_side'] = short
  values['data.long_side'] = long
  values['data.short_sides'] = () if sides == (short,) else sides
  values['data.padded_sizes'] = padded_sizes(short, long)
  values['data.color_jitter'] = tuple(
    theirs[f'INPUT.{name}'] for name in ('BRIGHTNESS', 'CONTRAST', 'SATURATION')
  )
  for name, key in (('MEAN', 'pixel_mean'), ('STD', 'pixel_std')):
    channels = theirs[f'INPUT.PIXEL_{name}']
    if len(channels) != 3 or not all(
      isinstance(x, int | float) for x in channels
    ):
      problems[f'INPUT.PIXEL_{name}'] = (
        f'it is {channels}; give a number for each of three channels'
      )
    elif (
      theirs['INPUT.TO_BGR255']
      and channels == BY_NAME[f'INPUT.PIXEL_{name}'].default
    ):
      notes[f'INPUT.PIXEL_{name}'] = 'as in geometry = legacy'
    elif theirs['INPUT.TO_BGR255']:
      values[f'data.{key}'] = tuple(map(float, reversed(channels)))
    else:
      # Rounded, so that .485 gives 123.675 without the error of a product.
      values[f'data.{key}'] = tuple(round(255 * x, 9) for x in channels)


def padded_sizes(short: int, long: int) -> tuple[tuple[int, int], ...]:
  """Returns the static sizes for images of given sides.

  They are two upright and two lying sizes: one for images of up to 4:3, one for
  all others, as in the defaults of this program for 800 and 1333 pixels.

  Args:
    short: Length of the shorter side, in pixels.
    long: Upper limit of the longer side, in pixels.

  Returns:
    (height, width) pairs in multiples of 32 pixels.
  """

  def round_up(side: int) -> int:
    """Returns the next multiple of 32."""
    return -(-side // 32) * 32

  height = round_up(short)
  widths = sorted({min(round_up(-(-short * 4 // 3)), round_up(long)),
                   round_up(long)})  # fmt: skip
  sizes = [(height, width) for width in widths]
  return (*sizes, *((w, h) for h, w in sizes if w != h))


def translate_sets(
  theirs: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  notes: dict[str, str],
  provided: frozenset[str],
) -> None:
  """Translates the names of data sets to paths.

  Several sets give a tuple of folders and a tuple of annotations.

  Args:
    theirs: As in `translate_schedule`.
    values: As in `translate_schedule`.
    problems: As in `translate_schedule`.
    notes: As in `translate_schedule`.
    provided: Keys of this program that the command line gives.
  """
  for name, part in (('DATASETS.TRAIN', 'train'), ('DATASETS.TEST', 'eval')):
    keys = (f'data.{part}.images', f'data.{part}.annotations')
    sets = theirs[name]
    if provided.issuperset(keys):
      notes[name] = f'--config.{keys[0]} and .annotations are given'
      continue
    unknown = [item for item in sets if item not in COCO_SETS]
    if unknown:
      problems[name] = (
        f'{unknown[0]!r} is none of {", ".join(COCO_SETS)}; give '
        f'--config.{keys[0]}=DIR and --config.{keys[1]}=FILE.json'
      )
      continue
    if part == 'eval' and len(sets) > 1:
      problems[name] = f'{", ".join(sets)}: give only one set'
      continue
    paths = [COCO_SETS[item] for item in sets]
    images = tuple(f'data/coco/{folder}' for folder, _ in paths)
    files = tuple(f'data/coco/annotations/{file}' for _, file in paths)
    for key, several in zip(keys, (images, files), strict=True):
      values[key] = several if len(several) > 1 else ''.join(several)
    if any('minival' in item for item in sets):
      notes[name] = (
        'minival has the images of val2017, and train2014 with '
        'valminusminival those of train2017: with the archives of COCO 2017 '
        'give coco_2017_train and coco_2017_val'
      )
