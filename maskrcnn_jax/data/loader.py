"""Loads the images and objects of a data set as batches of static shapes."""

from collections.abc import Callable, Generator
import contextlib
import functools
import pathlib
import tempfile

from jaxtyping import Int
import numpy as np

from maskrcnn_jax import array_types, errors
from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.data import (
  canvases,
  coco_index,
  columns,
  host_resize,
  image_sets,
  images,
  prefetch,
  train_order,
)
from maskrcnn_jax.data.source import DataSet, StoredDataSet, image_file

# The row of a black image that only fills up the last batch of a canvas.
NO_ROW = -1

# A batch, and the row of the index of each of its images.
_BatchAndRows = tuple[array_types.Batch, np.ndarray]


def load_row(
  data_set: DataSet | StoredDataSet,
  plan: canvases.CanvasPlan,
  row: int,
  limits: GroundTruthLimits,
  *,
  with_truth: bool = True,
  pixel_range: tuple[float, float] | None = None,
  apply_exif: bool = True,
) -> array_types.Batch:
  """Decodes an image of a data set and makes a batch of it alone.

  Args:
    data_set: The data set.
    plan: The canvases (static sizes) of the images of the data set.
    row: Row of the image in the index.
    limits: Static sizes of the ground truth. If an image has more objects than
      slots, the objects with the largest areas are taken, in the order of the
      file.
    with_truth: Whether to fill in the objects. If False, all slots of objects
      are padding.
    pixel_range: For images of more than 8 bits a channel, the values (black,
      white) that become 0 and 255. `None` refuses such images.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.

  Raises:
    InputError: If the image cannot be decoded, or if its size is not the one in
      the index.
  """
  one = columns.one_image(data_set.coco_index, row)
  size = int(one.heights[0]), int(one.widths[0])
  file = image_file(data_set.images, row, one.file_names[0])
  try:
    image = images.decode_image(
      file.path,
      expected_size=size,
      content=file.content(),
      pixel_range=pixel_range,
      apply_exif=apply_exif,
    )
    if image.shape[:2] != size:
      raise errors.InputError(
        f'I05: {one.file_names[0]} has changed its size since the start; do'
        ' not change images while they are in use.'
      )
  except errors.InputError as error:
    raise errors.InputError(
      f'{str(error).removesuffix(".")} (image id {one.image_ids[0]!r}).'
    ) from error
  canvas = int(plan.canvas_of_image[row])
  source_size = tuple(plan.source_sizes[row].tolist())
  image = host_resize.fit_array(
    image,
    source_size=source_size,
    image_size=tuple(plan.image_sizes[row].tolist()),
    array_size=plan.canvases[canvas].source,
    antialias=plan.antialias,
  )
  batch = _empty_row(plan, canvas, limits)
  batch.images[0, : image.shape[0], : image.shape[1]] = image
  batch.source_sizes[0] = source_size
  batch.image_sizes[0] = plan.image_sizes[row]
  batch.image_valid[0] = True
  if plan.size_choices is not None:
    choices = plan.size_choices[row : row + 1]
    batch = batch._replace(size_choices=choices)
  if with_truth:
    scale = source_size[1] / size[1], source_size[0] / size[0]
    _fill_truth(batch, one, 0, limits, scale)
  return batch


def train_batches(
  data_set: DataSet,
  plan: canvases.CanvasPlan,
  rows: Int[np.ndarray, 'n'],
  *,
  limits: GroundTruthLimits,
  seed: int,
  start_step: int,
  num_steps: int,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  num_threads: int = 2,
  pixel_range: tuple[float, float] | None = None,
  apply_exif: bool = True,
  scratch_dir: str | pathlib.Path | None = None,
) -> Generator[tuple[array_types.Batch, Int[np.ndarray, 'b']], None, None]:
  """Loads the training batches of `num_steps` steps, in order.

  Args:
    data_set: The data set.
    plan: The canvases (static sizes) of the images of the data set.
    rows: The images to train on, as rows of the index.
    limits: Static sizes of the ground truth.
    seed: Seed of the order of the images. The batch of a step depends on the
      seed and the step only, not on `start_step`.
    start_step: The first step to load.
    num_steps: Number of steps to load.
    batch_size: Number of images of a step, in all processes together. Each
      process loads an equal part of them.
    process_index: Number of this process, from 0. It selects the part that is
      loaded.
    process_count: Number of processes.
    num_workers: Number of worker processes that load. With 0, threads of this
      process load. Workers are spawned, so the main module must be guarded by
      `if __name__ == '__main__'`.
    num_threads: Number of batches that each worker loads at the same time.
    pixel_range: For images of more than 8 bits a channel, the values (black,
      white) that become 0 and 255. `None` refuses such images.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.
    scratch_dir: Folder in which the index is stored for the workers while they
      load. It needs as much space as the index takes memory. `None` means the
      system's folder for temporary files.

  Yields:
    For each step, this process's part of the batch, and the row of the index of
    each image in it. Closing the generator ends its threads and workers.

  Raises:
    InputError: If an image cannot be loaded, if `batch_size` is not a multiple
      of the number of processes, or if the index cannot be stored.
    RuntimeError: If a worker process dies, or loading fails with another error.
  """
  load = functools.partial(
    _load_train_step,
    plan=plan,
    limits=limits,
    pixel_range=pixel_range,
    apply_exif=apply_exif,
    rows=rows,
    order=train_order.make_order(
      plan.canvas_of_image[rows], seed=seed, batch_size=batch_size
    ),
    start_step=start_step,
    part=_part(batch_size, process_index, process_count),
  )
  if not num_workers:
    return prefetch.load_ahead(
      functools.partial(load, data_set=data_set),
      num_steps,
      num_threads=num_threads,
    )
  return _load_in_workers(
    load, data_set, num_steps, num_threads, num_workers, scratch_dir
  )


def _load_in_workers(
  load: Callable[..., _BatchAndRows],
  data_set: DataSet,
  count: int,
  num_threads: int,
  num_workers: int,
  scratch_dir: str | pathlib.Path | None,
) -> Generator[_BatchAndRows, None, None]:
  """Loads batches in worker processes, which read the index from files.

  If the index were pickled for the workers, each would hold a copy of it.

  Args:
    load: Returns batch i, given i and the keyword argument `data_set`.
    data_set: The data set. Its index is stored in files for the workers.
    count: Number of batches.
    num_threads: Number of batches that each worker loads at the same time.
    num_workers: Number of worker processes.
    scratch_dir: Folder for the stored index. `None` means the system's folder
      for temporary files.

  Yields:
    The results of `load` for 0, 1, ..., `count` - 1.

  Raises:
    InputError: If the index cannot be stored, or if `load` raises one.
  """
  folder = pathlib.Path(scratch_dir or tempfile.gettempdir())
  with contextlib.ExitStack() as stack:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      stored = stack.enter_context(
        columns.temporarily_stored(data_set.coco_index, folder)
      )
    except OSError as error:
      raise errors.InputError(
        f'C10: cannot write the index for the loading processes to {folder}:'
        f' {error.strerror or error}; free some disk space, or set'
        ' --config.data.num_workers=0.'
      ) from error
    yield from prefetch.load_ahead(
      functools.partial(load, data_set=StoredDataSet(stored, data_set.images)),
      count,
      num_threads=num_threads,
      num_workers=num_workers,
    )


def eval_batches(
  data_set: DataSet,
  plan: canvases.CanvasPlan,
  *,
  batch_size: int,
  rows: Int[np.ndarray, 'm'] | None = None,
  num_threads: int = 2,
  pixel_range: tuple[float, float] | None = None,
  apply_exif: bool = True,
) -> Generator[tuple[array_types.Batch, Int[np.ndarray, 'b']], None, None]:
  """Loads each image once, without its objects, one canvas after the other.

  Args:
    data_set: The data set. Its objects are not used.
    plan: The canvases (static sizes) of the images of the data set.
    batch_size: Number of images of a batch, in this process.
    rows: The images to load, as rows of the index. `None` loads all images.
    num_threads: Number of batches that are loaded at the same time.
    pixel_range: For images of more than 8 bits a channel, the values (black,
      white) that become 0 and 255. `None` refuses such images.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.

  Yields:
    A batch, and the row of the index of each of its images. The last batch of
    a canvas is filled up with black images, whose row is `NO_ROW`.

  Raises:
    InputError: If an image cannot be loaded.
  """
  if rows is None:
    rows = np.arange(len(data_set.coco_index.file_names))
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
    data_set=data_set,
    plan=plan,
    pixel_range=pixel_range,
    apply_exif=apply_exif,
  )
  return prefetch.load_ahead(load, len(steps), num_threads=num_threads)


def _load_train_step(
  i: int,
  *,
  data_set: DataSet | StoredDataSet,
  plan: canvases.CanvasPlan,
  limits: GroundTruthLimits,
  pixel_range: tuple[float, float] | None,
  apply_exif: bool,
  rows: np.ndarray,
  order: train_order.TrainOrder,
  start_step: int,
  part: slice,
) -> _BatchAndRows:
  """Loads the batch of step `start_step + i`.

  Args:
    i: Number of the step, counted from `start_step`.
    data_set: The data set.
    plan: The canvases (static sizes) of the images of the data set.
    limits: Static sizes of the ground truth.
    pixel_range: The values (black, white) that become 0 and 255 in images of
      more than 8 bits a channel; `None` refuses such images.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.
    rows: The images to train on, as rows of the index.
    order: Chooses the positions in `rows` of the images of a step.
    start_step: The first step.
    part: The part of the images of a step that this process loads.

  Returns:
    This process's part of the batch, and the row of the index of each image.

  Raises:
    InputError: If an image cannot be loaded.
  """
  chosen = rows[order.rows(start_step + i)[part]].astype(np.int64)
  batches = [
    load_row(
      data_set,
      plan,
      int(row),
      limits,
      pixel_range=pixel_range,
      apply_exif=apply_exif,
    )
    for row in chosen
  ]
  return _concatenate(batches), chosen


def _load_eval_step(
  i: int,
  *,
  steps: list[tuple[int, np.ndarray]],
  data_set: DataSet,
  plan: canvases.CanvasPlan,
  pixel_range: tuple[float, float] | None,
  apply_exif: bool,
) -> _BatchAndRows:
  """Loads batch i of an evaluation, without objects.

  Args:
    i: Number of the batch, from 0.
    steps: For each batch, the number of its canvas and the row of the index of
      each of its images. `NO_ROW` stands for a black image, which only fills up
      the batch.
    data_set: The data set.
    plan: The canvases (static sizes) of the images of the data set.
    pixel_range: The values (black, white) that become 0 and 255 in images of
      more than 8 bits a channel; `None` refuses such images.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.

  Returns:
    The batch, and the rows of its images as `steps` has them.

  Raises:
    InputError: If an image cannot be decoded.
  """
  canvas, chosen = steps[i]
  batches = [
    _empty_row(plan, canvas, image_sets.NO_TRUTH)
    if row == NO_ROW
    else load_row(
      data_set,
      plan,
      int(row),
      image_sets.NO_TRUTH,
      with_truth=False,
      pixel_range=pixel_range,
      apply_exif=apply_exif,
    )
    for row in chosen
  ]
  return _concatenate(batches), chosen


def _empty_row(
  plan: canvases.CanvasPlan, canvas: int, limits: GroundTruthLimits
) -> array_types.Batch:
  """Makes a batch of one black image that is padding and has no objects.

  Args:
    plan: Defines the canvases.
    canvas: Number of the canvas of the image.
    limits: Static sizes of the ground truth.
  """
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
    size_choices=None
    if plan.size_choices is None
    else np.full((1, *plan.size_choices.shape[1:]), padded, np.int32),
  )


def _fill_truth(
  batch: array_types.Batch,
  index: coco_index.CocoIndex,
  row: int,
  limits: GroundTruthLimits,
  scale: tuple[float, float],
) -> None:
  """Writes the objects of an image into a batch of one image.

  Args:
    batch: The batch, whose objects are all padding. It is changed in place.
    index: An index that has the image.
    row: Row of the image in this index.
    limits: Static sizes of the ground truth, which the batch has.
    scale: Factors of x and of y for boxes and outlines: the size to which the
      host has resized the image, divided by the size of the file.

  Raises:
    ValueError: If the objects have more vertices than the limits allow.
  """
  objects = image_sets.training_objects(index, row, limits.max_objects)
  count = len(objects)
  batch.gt_boxes[0, :count] = index.boxes[objects] * (*scale, *scale)
  batch.gt_classes[0, :count] = index.classes[objects]
  batch.gt_valid[0, :count] = True
  end = 0
  for slot, object_ in enumerate(objects):
    first, last = index.outline_starts[object_ : object_ + 2]
    start, end = end, end + last - first
    if end > limits.max_image_vertices:
      raise ValueError(
        f'Image {index.image_ids[row]!r} has more than max_image_vertices'
        f' ({limits.max_image_vertices}) outline vertices; find_limits computes'
        ' the limits that hold all images of a data set.'
      )
    batch.outlines.vertices[0, start:end] = index.vertices[first:last] * scale
    batch.outlines.parts[0, start:end] = index.parts[first:last]
    batch.outlines.starts[0, slot + 1] = end
  batch.outlines.starts[0, count + 1 :] = end


def _concatenate(batches: list[array_types.Batch]) -> array_types.Batch:
  """Joins batches with the same static sizes into one batch."""
  outlines = [batch.outlines for batch in batches]
  choices = [b.size_choices for b in batches if b.size_choices is not None]
  return array_types.Batch(
    images=np.concatenate([b.images for b in batches]),
    source_sizes=np.concatenate([b.source_sizes for b in batches]),
    image_sizes=np.concatenate([b.image_sizes for b in batches]),
    image_valid=np.concatenate([b.image_valid for b in batches]),
    gt_boxes=np.concatenate([b.gt_boxes for b in batches]),
    gt_classes=np.concatenate([b.gt_classes for b in batches]),
    gt_valid=np.concatenate([b.gt_valid for b in batches]),
    outlines=array_types.Outlines(
      vertices=np.concatenate([o.vertices for o in outlines]),
      parts=np.concatenate([o.parts for o in outlines]),
      starts=np.concatenate([o.starts for o in outlines]),
    ),
    size_choices=np.concatenate(choices) if choices else None,
  )


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
  """Returns the part of the images of a step that a process loads, as a slice.

  Args:
    batch_size: Number of images of a step, in all processes together.
    process_index: Number of the process, from 0.
    process_count: Number of processes.

  Raises:
    InputError: If the images cannot be divided equally.
  """
  if batch_size % process_count:
    raise errors.InputError(
      f'C06: batch_size ({batch_size}) must be a multiple of the number of'
      f' processes ({process_count}).'
    )
  size = batch_size // process_count
  return slice(process_index * size, (process_index + 1) * size)
