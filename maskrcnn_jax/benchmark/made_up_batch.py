"""A batch of made-up images, for timing and for tests."""

import numpy as np

from maskrcnn_jax.array_types import Batch, Outlines


def made_up_batch(
  *,
  image_size: tuple[int, int],
  batch_size: int,
  num_objects: int,
  max_objects: int,
  num_classes: int,
) -> Batch:
  """Returns a batch of noise images with random ellipses as ground truth.

  The images have the size that the network works on, so that they are not
  resized. The result is always the same for the same arguments.

  Args:
    image_size: (height, width) in pixels.
    batch_size: Number of images.
    num_objects: Number of objects in each image.
    max_objects: Number of slots for the objects of an image, at least
      `num_objects`. The slots that remain are padding.
    num_classes: Number of classes, background included.
  """
  height, width = image_size
  rng = np.random.default_rng(0)
  corners = 24
  angles = np.linspace(0, 2 * np.pi, corners)
  circle = np.stack([np.cos(angles), np.sin(angles)], -1)
  shape = (batch_size, num_objects)
  center = rng.uniform(0.2, 0.8, (*shape, 2)) * [width, height]
  radius = rng.uniform(0.05, 0.2, (*shape, 2)) * [width, height]
  vertices = center[..., None, :] + radius[..., None, :] * circle
  boxes = np.zeros((batch_size, max_objects, 4), np.float32)
  boxes[:, :num_objects] = np.concatenate(
    [center - radius, center + radius], axis=-1
  )
  classes = np.zeros((batch_size, max_objects), np.int32)
  classes[:, :num_objects] = rng.integers(1, num_classes, shape)
  polygons = np.zeros((batch_size, num_objects, corners), np.int16)
  polygons[:, :, -1] = -1  # -1 means that no edge begins at the last vertex.
  starts = np.minimum(np.arange(max_objects + 1), num_objects) * corners
  sizes = np.tile(np.array([image_size], np.int32), (batch_size, 1))
  return Batch(
    images=rng.integers(0, 256, (batch_size, height, width, 3), np.uint8),
    source_sizes=sizes,
    image_sizes=sizes,
    image_valid=np.ones(batch_size, bool),
    gt_boxes=boxes,
    gt_classes=classes,
    gt_valid=classes > 0,
    outlines=Outlines(
      vertices.reshape(batch_size, -1, 2).astype(np.float32),
      polygons.reshape(batch_size, -1),
      np.tile(starts.astype(np.int32), (batch_size, 1)),
    ),
  )
