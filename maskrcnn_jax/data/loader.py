"""From an index of files to batches of static shapes, in a fixed order.

A canvas is a pair of sizes, of decoded images and of padded ones, that all
images of a batch share; the jitted step compiles once for each.
"""

import bisect
from collections.abc import Iterator
import contextlib
import functools
import os
import pathlib
import tempfile
from typing import Any, NamedTuple

from jaxtyping import Int
import numpy as np

from maskrcnn_jax import array_types, errors
from maskrcnn_jax.data import (
  coco,
  columns,
  findings,
  images,
  prefetch,
  records,
)

# Coarsest stride of the pyramid up to level 5; level 6 takes every second cell.
_STRIDE = 32

# Share of the objects that `max_objects` may cost before it is an error.
_MAX_LOST = 0.05

_MIN_VERTICES = 64

# Streams of random numbers.
_IMAGES, _BATCHES = 0, 1

# In the rows of a batch: only fills it.
NO_ROW = -1

# Where images are: a folder, or records that hold them.
Images = str | pathlib.Path | records.RecordImages


class Canvas(NamedTuple):
  """A pair of static sizes, (height, width), both multiples of 32."""

  padded: tuple[int, int]  # what the network sees
  source: tuple[int, int]  # holds each decoded image before it is resized


class CanvasPlan(NamedTuple):
  """Which canvas each of n images goes to, and how it gets there."""

  canvases: tuple[Canvas, ...]  # only those that have images
  canvas_of_image: Int[np.ndarray, 'n']
  image_sizes: Int[np.ndarray, 'n 2']  # (height, width) to resize it to
  reduce: Int[np.ndarray, 'n']  # decoded at one reduce-th of the size


class Limits(NamedTuple):
  """Static sizes of the truth of one image."""

  max_objects: int
  max_image_vertices: int  # of all objects together
  max_object_vertices: int
  max_parts: int  # polygons of one object


# Enough where there is no truth.
NO_TRUTH = Limits(1, _MIN_VERTICES, _MIN_VERTICES, 1)


def resized_size(
    height: int,
    width: int,
    *,
    short_side: int,
    long_side: int,
    rule: str = 'nearest',
) -> tuple[int, int]:
  """Picks the size to resize an image to, keeping its aspect.

  Args:
    height: Of the image.
    width: Of the image.
    short_side: What the shorter side becomes,
    long_side: unless the longer one would exceed this.
    rule: How to round. 'nearest': both sides to the nearest. 'down': both
      sides down. 'legacy': the shorter side to the nearest, half to even, the
      longer one down.

  Returns:
    (height, width), each at least 1.

  Source:
    'nearest': detectron2 ResizeShortestEdge.get_output_shape. 'down':
    torchvision `models/detection/transform.py`, `_resize_image_and_masks`.
    'legacy': maskrcnn-benchmark `data/transforms/transforms.py`, `Resize`.
    Differs: sides are at least 1.
  """
  shorter, longer = min(height, width), max(height, width)
  match rule:
    case 'nearest':
      pass
    case 'down':
      scale = min(short_side / shorter, long_side / longer)
      return max(int(height * scale), 1), max(int(width * scale), 1)
    case 'legacy':
      if longer / shorter * short_side > long_side:
        short_side = int(round(long_side * shorter / longer))
      short_side = max(short_side, 1)
      if shorter == short_side:
        return height, width
      if width < height:
        return int(short_side * height / width), short_side
      return short_side, int(short_side * width / height)
    case _:
      raise ValueError(
          f"rule must be 'nearest', 'down' or 'legacy', not {rule!r}."
      )
  scale = short_side / shorter
  if height < width:
    new_height, new_width = float(short_side), scale * width
  else:
    new_height, new_width = scale * height, float(short_side)
  if max(new_height, new_width) > long_side:
    scale = long_side / max(new_height, new_width)
    new_height, new_width = new_height * scale, new_width * scale
  return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


def plan_canvases(
    heights: Int[np.ndarray, 'n'],
    widths: Int[np.ndarray, 'n'],
    *,
    short_side: int,
    long_side: int,
    padded_sizes: tuple[tuple[int, int], ...],
    max_source_side: int,
    resize_rule: str = 'nearest',
) -> CanvasPlan:
  """Gives each image the smallest padded size that it fits in once resized.

  Args:
    heights: Of the images, as their annotations say.
    widths: Likewise.
    short_side: See `resized_size`.
    long_side: See `resized_size`.
    padded_sizes: The (height, width) to choose from, multiples of 32.
    max_source_side: A longer image is decoded at the largest 1/2, 1/3, ... of
      its size that has no longer side.
    resize_rule: See `resized_size`.

  Raises:
    InputError: If a padded size is no multiple of 32, or none is large enough.
  """
  padded_sizes = sorted(
      (tuple(map(int, size)) for size in padded_sizes),
      key=lambda size: size[0] * size[1],
  )
  for size in padded_sizes:
    if min(size) < 1 or any(side % _STRIDE for side in size):
      raise errors.InputError(
          f'The padded size {size} must be two multiples of {_STRIDE}.'
      )
  sizes, size_of_image = np.unique(
      np.stack([heights, widths], axis=1), axis=0, return_inverse=True
  )
  size_of_image = size_of_image.reshape(-1)
  canvas_of_size = np.zeros(len(sizes), np.int32)
  resized = np.zeros((len(sizes), 2), np.int32)
  for i, (height, width) in enumerate(sizes.tolist()):
    h, w = resized_size(
        height, width, short_side=short_side, long_side=long_side,
        rule=resize_rule,
    )
    resized[i] = h, w
    fits = (
        k
        for k, padded in enumerate(padded_sizes)
        if h <= padded[0] and w <= padded[1]
    )
    canvas_of_size[i] = next(fits, -1)
    if canvas_of_size[i] < 0:
      enough = _round_up(h, _STRIDE), _round_up(w, _STRIDE)
      raise errors.InputError(
          f'An image of {height}x{width} (height x width) is resized to'
          f' {h}x{w}, which fits in none of the padded sizes'
          f' {padded_sizes}; add {enough}.'
      )
  reduce = -(-sizes.max(axis=1, initial=0) // max_source_side)
  source = -(-sizes // reduce[:, None])
  kept, canvas_of_size = np.unique(canvas_of_size, return_inverse=True)
  canvases = []
  for k, padded in enumerate(kept):
    largest = source[canvas_of_size == k].max(axis=0).tolist()
    canvases.append(
        Canvas(
            padded=padded_sizes[padded],
            source=tuple(_round_up(side, _STRIDE) for side in largest),
        )
    )
  return CanvasPlan(
      canvases=tuple(canvases),
      canvas_of_image=canvas_of_size[size_of_image].astype(np.int32),
      image_sizes=resized[size_of_image],
      reduce=reduce[size_of_image].astype(np.int32),
  )


def share_padding(plan: CanvasPlan, rows: Int[np.ndarray, 'n']) -> float:
  """Returns how much of the pixels that the network sees is padding, [0, 1].

  Args:
    plan: Says how large each image and its canvas are.
    rows: Of the images, at least one.
  """
  padded = np.array([canvas.padded for canvas in plan.canvases])
  seen = padded[plan.canvas_of_image[rows]].prod(axis=1).sum()
  return float(1 - plan.image_sizes[rows].prod(axis=1).sum() / seen)


class TrainOrder(NamedTuple):
  """The images of each training step, a pure function of (seed, step).

  The n images of a canvas form an endless stream of permutations.  Epoch e
  takes batches floor(e * n / b) to floor((e + 1) * n / b) - 1 of it, so that
  none is short and no image comes twice before all others came once.  The
  batches of an epoch, of all canvases, are shuffled.
  """

  members: tuple[np.ndarray, ...]  # the images of each canvas
  seed: int
  batch_size: int

  def rows(self, step: int) -> Int[np.ndarray, 'b']:
    """Returns the images of a step, all of one canvas."""
    epoch = self._epoch(step)
    before = self._batches_before(epoch)
    count = self._batches_before(epoch + 1) - before
    shuffled = _permutation(count, self.seed, _BATCHES, epoch)
    batch = int(shuffled[step - before])
    for canvas, images_ in enumerate(self.members):
      first = epoch * len(images_) // self.batch_size
      count = (epoch + 1) * len(images_) // self.batch_size - first
      if batch < count:
        return self._take(canvas, (first + batch) * self.batch_size)
      batch -= count
    raise AssertionError('The batches of an epoch add up.')

  def _take(self, canvas: int, start: int) -> np.ndarray:
    """Takes a batch from the stream of a canvas."""
    images_ = self.members[canvas]
    rounds, places = np.divmod(
        start + np.arange(self.batch_size), len(images_)
    )
    taken = np.empty(self.batch_size, np.int64)
    for round_ in np.unique(rounds).tolist():
      here = rounds == round_
      order = _permutation(len(images_), self.seed, _IMAGES, canvas, round_)
      taken[here] = images_[order[places[here]]]
    return taken

  def _batches_before(self, epoch: int) -> int:
    """Counts the batches of all epochs before."""
    return sum(epoch * len(m) // self.batch_size for m in self.members)

  def _epoch(self, step: int) -> int:
    """Finds the epoch of a step: the last that begins at it or before."""
    num_images = sum(map(len, self.members))
    # Rounding down takes less than one batch a canvas.
    low = step * self.batch_size // num_images
    high = (step + len(self.members)) * self.batch_size // num_images + 1
    epochs = range(low, high + 1)
    return epochs[bisect.bisect(epochs, step, key=self._batches_before) - 1]


def train_order(
    canvas_of_image: Int[np.ndarray, 'n'], *, seed: int, batch_size: int
) -> TrainOrder:
  """Makes the endless order of training batches.

  Args:
    canvas_of_image: Of the images to train on; `TrainOrder.rows` speaks of
      them by their position here.
    seed: Any integer.
    batch_size: Of all processes together.
  """
  members = tuple(
      np.flatnonzero(canvas_of_image == canvas)
      for canvas in np.unique(canvas_of_image)
  )
  return TrainOrder(members=members, seed=seed, batch_size=batch_size)


@functools.lru_cache(maxsize=32)
def _permutation(n: int, seed: int, *stream: int) -> np.ndarray:
  """Shuffles range(n) as a pure function of the arguments.

  NumPy promises the raw numbers of a bit generator for all versions to come,
  but not how `Generator.permutation` uses them.
  """
  entropy = np.random.SeedSequence([seed % 2**64, *stream])
  numbers = np.random.Philox(entropy).random_raw(n)
  permutation = np.argsort(numbers, kind='stable')
  permutation.flags.writeable = False
  return permutation


def read_set(
    annotations: str | pathlib.Path,
    images_dir: str | pathlib.Path,
    found: records.Records | None = None,
    **options: Any,
) -> tuple[coco.CocoIndex, Images]:
  """Reads the index of a set and says where its images are.

  Args:
    annotations: COCO JSON, unless `found` is given.
    images_dir: The folder of its images.
    found: Records to read instead.
    **options: Of `coco.read_coco`.
  """
  if found is None:
    return coco.read_coco(annotations, **options), pathlib.Path(images_dir)
  content, in_records = records.read_records(found)
  return coco.index_coco(content, str(found), **options), in_records


def read_content(
    source: str | pathlib.Path | records.Records
) -> dict[str, Any]:
  """Reads what a COCO JSON holds, or what records stand for."""
  if isinstance(source, records.Records):
    return records.read_records(source)[0]
  return coco.read_json(pathlib.Path(source))


def count_objects_over(index: coco.CocoIndex, max_objects: int) -> int:
  """Counts the objects that go untrained as their image has more than that."""
  return int(np.maximum(_objects_per_image(index) - max_objects, 0).sum())


def most_objects(index: coco.CocoIndex) -> int:
  """Counts the objects of the image that has most; crowds are none."""
  return int(_objects_per_image(index).max(initial=0))


def find_limits(index: coco.CocoIndex, *, max_objects: int) -> Limits:
  """Finds the static sizes that hold the truth of every image.

  Args:
    index: The training data.
    max_objects: What an image may have; of more, those of the largest area
      are trained on.

  Raises:
    InputError: If more than 5 % of all objects would go untrained.
  """
  per_image = _objects_per_image(index)
  lost = count_objects_over(index, max_objects)
  if lost > _MAX_LOST * per_image.sum():
    raise errors.InputError(
        f'A24: with max_objects={max_objects}, {lost} of {per_image.sum()}'
        ' objects would not be trained on; set it to'
        f' {per_image.max()} to train on all.'
    )
  kept = ~index.crowd
  for row in np.flatnonzero(per_image > max_objects):
    kept[index.object_starts[row] : index.object_starts[row + 1]] = False
    kept[_training_objects(index, int(row), max_objects)] = True
  lengths = np.where(kept, np.diff(index.outline_starts), 0)
  total = np.concatenate([[0], np.cumsum(lengths)])
  of_image = np.diff(total[index.object_starts])
  return Limits(
      max_objects=max_objects,
      max_image_vertices=_power_of_two(int(of_image.max(initial=0))),
      max_object_vertices=_power_of_two(int(lengths.max(initial=0))),
      max_parts=int(index.parts.max(initial=0)) + 1,
  )


def filter_images(
    index: coco.CocoIndex, *, keep_empty: bool
) -> tuple[Int[np.ndarray, 'n'], list[tuple[str, int]]]:
  """Picks the images to train on.

  Args:
    index: The training data.
    keep_empty: Train on images without objects (or with crowds only) too; all
      of such an image is background.

  Returns:
    Rows of the index, rising, and how many images and objects were left at
    each step, for `format_waterfall`.

  Raises:
    InputError: If there is not a single object to train on.
  """
  per_image = _objects_per_image(index)
  empty = per_image == 0
  rows = np.flatnonzero(~empty | keep_empty)
  lost = {
      reason: count
      for reason, count in index.dropped.items()
      if reason != coco.BAD_POLYGON
  }
  num_objects = len(index.classes) + sum(lost.values())
  fate = 'kept as background' if keep_empty else 'left out'
  waterfall = [
      ('images in the file', len(per_image)),
      (f'images without objects, {fate}', int(empty.sum())),
      ('images trained on', len(rows)),
      ('objects in the file', num_objects),
      *index.dropped.items(),
      ('crowd regions, not trained on', int(index.crowd.sum())),
      ('objects trained on', int(per_image.sum())),
  ]
  if not per_image.sum():
    steps = '; '.join(f'{count} {what}' for what, count in waterfall)
    raise errors.InputError(f'A23: nothing to train on: {steps}.')
  return rows, waterfall


def format_waterfall(waterfall: list[tuple[str, int]]) -> str:
  """Lays out what `filter_images` counted, one line a step."""
  return '\n'.join(f'{count:>9,} {what}' for what, count in waterfall)


def check_images_exist(
    index: coco.CocoIndex,
    images_dir: Images,
    *,
    report: findings.Report | None = None,
) -> list[int]:
  """Checks that each image file of the index is there.

  Args:
    index: Has the file names.
    images_dir: The folder that they are relative to; records hold their images
      by construction.
    report: Gets what is wrong. None: the first error is raised.

  Returns:
    The rows of those that are missing.

  Raises:
    InputError: Without a report, if some are missing, or named outside of the
      folder.
  """
  if isinstance(images_dir, records.RecordImages):
    return []
  report = report or findings.Report(stop=True)
  images_dir = os.fspath(images_dir)
  if not os.path.isdir(images_dir):
    report.error(
        'I01', '', '', f'there is no folder of images {images_dir}.'
    )
    return list(range(len(index.file_names)))
  outside, missing = [], []
  for row, name in enumerate(index.file_names):
    if coco.is_outside(name):
      outside.append(row)
      report.error(
          'I15', '', f'image {index.image_ids[row]!r}',
          f'its file_name {name!r} leads out of the folder {images_dir}; it'
          ' must be relative to it.',
      )
    elif not os.path.isfile(os.path.join(images_dir, name)):
      missing.append(row)
  if missing:
    names = [index.file_names[row] for row in missing[:5]]
    shown = ', '.join(names) + (', ...' if len(missing) > 5 else '')
    hint = images.case_hint(os.path.join(images_dir, names[0]))
    report.error(
        'I01', '', '',
        f'{len(missing)} of {len(index.file_names)} images are not in'
        f' {images_dir}: {shown}{hint}.', count=0,
    )
    for row in missing:
      report.error(
          'I01', '', f'image {index.image_ids[row]!r}',
          f'there is no {index.file_names[row]}.', row=row,
      )
  return sorted(outside + missing)


def load_row(
    index: coco.CocoIndex | columns.StoredIndex,
    plan: CanvasPlan,
    images_dir: Images,
    row: int,
    limits: Limits,
    *,
    with_truth: bool = True,
    upright: bool = False,
) -> array_types.Batch:
  """Decodes an image of the index into a batch of one.

  Args:
    index: Images and objects.
    plan: Of the same index.
    images_dir: The folder that file names are relative to, or records.
    row: Of the index.
    limits: Static sizes of the truth. Of more objects than that the largest
      are taken; their order stays.
    with_truth: Fill in the objects; else all their slots are padding.
    upright: The sizes in the index are those after the EXIF orientation, as
      `images.image_size` gives them, and not those of annotations.

  Raises:
    InputError: If the file is not the image that the index speaks of.
  """
  one = columns.one_image(index, row)
  size = int(one.heights[0]), int(one.widths[0])
  reduce = int(plan.reduce[row])
  if isinstance(images_dir, records.RecordImages):
    path, content = one.file_names[0], images_dir.read(row)
  else:
    path, content = os.path.join(images_dir, one.file_names[0]), None
  try:
    image = images.decode_image(
        path,
        expected_size=None if upright else size,
        reduce=reduce,
        content=content,
    )
    source_size = tuple(-(-side // reduce) for side in size)
    if image.shape[:2] != source_size:
      raise errors.InputError(
          f'I05: {one.file_names[0]} changed its size while running.'
      )
  except errors.InputError as error:
    raise errors.InputError(
        f'{str(error).removesuffix(".")} (image id {one.image_ids[0]!r}).'
    ) from error
  batch = _empty_row(plan, int(plan.canvas_of_image[row]), limits)
  batch.images[0, : image.shape[0], : image.shape[1]] = image
  batch.source_sizes[0] = source_size
  batch.image_sizes[0] = plan.image_sizes[row]
  batch.image_valid[0] = True
  if with_truth:
    _fill_truth(batch, one, 0, limits, reduce)
  return batch


def train_batches(
    index: coco.CocoIndex,
    plan: CanvasPlan,
    rows: Int[np.ndarray, 'n'],
    *,
    images_dir: Images,
    limits: Limits,
    seed: int,
    start_step: int,
    num_steps: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
    scratch_dir: str | pathlib.Path | None = None,
) -> Iterator[tuple[array_types.Batch, Int[np.ndarray, 'b']]]:
  """Loads the batches of `num_steps` steps from `start_step` on.

  Args:
    index: Images and objects.
    plan: Of the same index.
    rows: Of the images to train on.
    images_dir: The folder that file names are relative to, or records.
    limits: Static sizes of the truth.
    seed: Of the order; step s has the same batch whatever `start_step` is.
    start_step: The first step to load.
    num_steps: How many to load.
    batch_size: Of all processes together; each loads its equal part.
    process_index: Which part this process loads.
    process_count: How many parts there are.
    num_workers: Processes that load; 0 loads in threads of this one. Workers
      are spawned, so the main module must be guarded by `__name__`.
    num_threads: Batches loaded at a time, in each worker.
    scratch_dir: Where workers find the index while they load; None: where
      temporary files go. As large as the index in memory.

  Yields:
    This process's part of the batch of each step, and its rows of the index.

  Raises:
    InputError: If an image cannot be loaded.
  """
  load = functools.partial(
      _load_train_step,
      plan=plan,
      images_dir=images_dir,
      limits=limits,
      rows=rows,
      order=train_order(
          plan.canvas_of_image[rows], seed=seed, batch_size=batch_size
      ),
      start_step=start_step,
      part=_part(batch_size, process_index, process_count),
  )
  if not num_workers:
    return prefetch.load_ahead(
        functools.partial(load, index=index), num_steps,
        num_threads=num_threads,
    )
  return _load_in_workers(
      load, index, num_steps, num_threads, num_workers, scratch_dir
  )


def _load_in_workers(
    load, index, count, num_threads, num_workers, scratch_dir
):
  """Does what `load_ahead` does, with the index in files.

  Each worker would be sent, and hold, a copy of its own.
  """
  folder = pathlib.Path(scratch_dir or tempfile.gettempdir())
  with contextlib.ExitStack() as stack:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      stored = stack.enter_context(columns.temporarily_stored(index, folder))
    except OSError as error:
      raise errors.InputError(
          f'C10: cannot write the index that workers read to {folder}:'
          f' {error.strerror or error}; make room, or set'
          ' --config.data.num_workers=0.'
      ) from error
    yield from prefetch.load_ahead(
        functools.partial(load, index=stored), count, num_threads=num_threads,
        num_workers=num_workers,
    )


def share_of_process(
    plan: CanvasPlan, process_index: int, process_count: int
) -> Int[np.ndarray, 'm']:
  """Returns the images that a process evaluates: an equal part of each canvas.

  The parts of all processes together are all images, each once.

  Args:
    plan: Of all images.
    process_index: Whose part.
    process_count: How many there are.
  """
  # One canvas after the other, so that the sizes of the parts differ by one.
  rows = np.argsort(plan.canvas_of_image, kind='stable')
  return np.sort(rows[process_index::process_count])


def eval_batches(
    index: coco.CocoIndex,
    plan: CanvasPlan,
    *,
    images_dir: Images,
    batch_size: int,
    rows: Int[np.ndarray, 'm'] | None = None,
    num_threads: int = 2,
    upright: bool = False,
) -> Iterator[tuple[array_types.Batch, Int[np.ndarray, 'b']]]:
  """Loads every image once, without its objects, canvas after canvas.

  Args:
    index: The images; objects are not looked at.
    plan: Of the same index.
    images_dir: The folder that file names are relative to, or records.
    batch_size: Of this process.
    rows: Of the images to load; None: all.
    num_threads: Batches loaded at a time.
    upright: See `load_row`.

  Yields:
    Batches and their rows of the index. The last batch of a canvas is filled
    with black images that are not valid, whose row is `NO_ROW`.

  Raises:
    InputError: If an image cannot be loaded.
  """
  if rows is None:
    rows = np.arange(len(index.file_names))
  steps = []
  for canvas in range(len(plan.canvases)):
    members = rows[plan.canvas_of_image[rows] == canvas]
    for start in range(0, len(members), batch_size):
      step = np.full(batch_size, NO_ROW, np.int64)
      chosen = members[start : start + batch_size]
      step[: len(chosen)] = chosen
      steps.append((canvas, step))
  load = functools.partial(
      _load_eval_step,
      steps=steps,
      index=index,
      plan=plan,
      images_dir=images_dir,
      upright=upright,
  )
  return prefetch.load_ahead(load, len(steps), num_threads=num_threads)


def _load_train_step(
    i: int,
    *,
    rows: np.ndarray,
    order: TrainOrder,
    start_step: int,
    part: slice,
    **source: Any,
) -> tuple[array_types.Batch, np.ndarray]:
  """Loads the i-th batch from `start_step` on."""
  chosen = rows[order.rows(start_step + i)[part]].astype(np.int64)
  return _concatenate([load_row(row=int(row), **source) for row in chosen]), (
      chosen
  )


def _load_eval_step(
    i: int,
    *,
    steps: list[tuple[int, np.ndarray]],
    plan: CanvasPlan,
    **source: Any,
) -> tuple[array_types.Batch, np.ndarray]:
  """Loads the i-th batch of all."""
  canvas, chosen = steps[i]
  batch = [
      _empty_row(plan, canvas, NO_TRUTH)
      if row == NO_ROW
      else load_row(
          row=int(row), plan=plan, limits=NO_TRUTH, with_truth=False, **source
      )
      for row in chosen
  ]
  return _concatenate(batch), chosen


def _empty_row(
    plan: CanvasPlan, canvas: int, limits: Limits
) -> array_types.Batch:
  """Makes a batch of one black image, not valid, with no objects."""
  padded, source = plan.canvases[canvas]
  objects = limits.max_objects
  vertices = limits.max_image_vertices
  return array_types.Batch(
      images=np.zeros((1, *source, 3), np.uint8),
      source_sizes=np.array([source], np.int32),
      image_sizes=np.array([padded], np.int32),
      image_valid=np.zeros(1, bool),
      gt_boxes=np.zeros((1, objects, 4), np.float32),
      gt_classes=np.zeros((1, objects), np.int32),
      gt_valid=np.zeros((1, objects), bool),
      outlines=array_types.Outlines(
          vertices=np.zeros((1, vertices, 2), np.float32),
          parts=np.full((1, vertices), -1, np.int32),
          starts=np.zeros((1, objects + 1), np.int32),
      ),
  )


def _fill_truth(
    batch: array_types.Batch,
    index: coco.CocoIndex,
    row: int,
    limits: Limits,
    reduce: int,
) -> None:
  """Writes the objects of a row into a batch of one."""
  objects = _training_objects(index, row, limits.max_objects)
  count = len(objects)
  batch.gt_boxes[0, :count] = index.boxes[objects] / reduce
  batch.gt_classes[0, :count] = index.classes[objects]
  batch.gt_valid[0, :count] = True
  end = 0
  for slot, object_ in enumerate(objects):
    first, last = index.outline_starts[object_ : object_ + 2]
    start, end = end, end + last - first
    if end > limits.max_image_vertices:
      raise ValueError(
          f'Image {index.image_ids[row]!r} has more than max_image_vertices'
          f' ({limits.max_image_vertices}); find_limits of its data says how'
          ' many there must be.'
      )
    batch.outlines.vertices[0, start:end] = index.vertices[first:last] / reduce
    batch.outlines.parts[0, start:end] = index.parts[first:last]
    batch.outlines.starts[0, slot + 1] = end
  batch.outlines.starts[0, count + 1 :] = end


def _concatenate(batches: list[array_types.Batch]) -> array_types.Batch:
  """Joins batches of one."""
  *fields, outlines = zip(*batches, strict=True)
  return array_types.Batch(
      *map(np.concatenate, fields),
      outlines=array_types.Outlines(
          *map(np.concatenate, zip(*outlines, strict=True))
      ),
  )


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
  """Cuts the part of a process out of a batch."""
  if batch_size % process_count:
    raise errors.InputError(
        f'C06: batch_size ({batch_size}) must be a multiple of the number of'
        f' processes ({process_count}).'
    )
  size = batch_size // process_count
  return slice(process_index * size, (process_index + 1) * size)


def _objects_per_image(index: coco.CocoIndex) -> np.ndarray:
  """Counts the objects that are no crowd."""
  before = np.concatenate([[0], np.cumsum(~index.crowd)])
  return np.diff(before[index.object_starts])


def _training_objects(
    index: coco.CocoIndex, row: int, max_objects: int
) -> np.ndarray:
  """Picks the objects of an image to train on, in the order of the file."""
  start, end = index.object_starts[row : row + 2]
  objects = start + np.flatnonzero(~index.crowd[start:end])
  largest = np.argsort(-index.areas[objects], kind='stable')[:max_objects]
  return np.sort(objects[largest])


def _round_up(value: int, multiple: int) -> int:
  """Rounds up to a multiple."""
  return -(-value // multiple) * multiple


def _power_of_two(value: int) -> int:
  """Rounds a count of vertices up."""
  return max(1 << max(value - 1, 0).bit_length(), _MIN_VERTICES)
