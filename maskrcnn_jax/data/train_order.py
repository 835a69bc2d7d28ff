"""The order of the training images: a pure function of seed and step."""

import bisect
import functools
from typing import NamedTuple

from jaxtyping import Int
import numpy as np

# Numbers of two independent random streams: one shuffles the images of a
# canvas, the other the batches of an epoch.
_IMAGES, _BATCHES = 0, 1


class TrainOrder(NamedTuple):
  """The images of each training step, a pure function of (seed, step).

  All images of a batch have the same canvas, which is the pair of static sizes
  of `data/canvases.py`. The n images of a canvas form an endless stream: one
  random permutation of them after the other. Consecutive pieces of b images,
  where b is the batch size, are the batches of the canvas. Epoch e takes the
  batches floor(e * n / b) to floor((e + 1) * n / b) - 1 of each canvas, and
  shuffles the batches of all canvases together. So every batch is full, and no
  image is left out.

  In the stream of a canvas, no image comes a second time before all others came
  once. This does not hold for the steps: a batch can begin in one permutation
  and end in the next, so that it may contain an image twice, and the batches of
  an epoch come in a random order.
  """

  # For each canvas, the numbers of its images: positions in the array that
  # `make_order` received.
  members: tuple[np.ndarray, ...]
  seed: int
  batch_size: int  # number of images of a step, in all processes together

  def rows(self, step: int) -> Int[np.ndarray, 'b']:
    """Returns the numbers of the images of a step. All have the same canvas."""
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
    """Returns `batch_size` consecutive images from the stream of a canvas.

    Args:
      canvas: Number of the canvas, an index into `members`.
      start: Position of the first image of the batch in the stream, counted in
        images from 0. The stream is endless, so any position is allowed.

    Returns:
      The numbers of the images, as `members` has them.
    """
    images_ = self.members[canvas]
    rounds, places = np.divmod(start + np.arange(self.batch_size), len(images_))
    taken = np.empty(self.batch_size, np.int64)
    for round_ in np.unique(rounds).tolist():
      here = rounds == round_
      order = _permutation(len(images_), self.seed, _IMAGES, canvas, round_)
      taken[here] = images_[order[places[here]]]
    return taken

  def _batches_before(self, epoch: int) -> int:
    """Returns the number of batches in all epochs before an epoch."""
    return sum(epoch * len(m) // self.batch_size for m in self.members)

  def _epoch(self, step: int) -> int:
    """Returns the epoch of a step: the last epoch that does not begin later."""
    num_images = sum(map(len, self.members))
    # Rounding down postpones less than one batch of each canvas, which limits
    # the epoch from both sides.
    low = step * self.batch_size // num_images
    high = (step + len(self.members)) * self.batch_size // num_images + 1
    epochs = range(low, high + 1)
    return epochs[bisect.bisect(epochs, step, key=self._batches_before) - 1]


def make_order(
  canvas_of_image: Int[np.ndarray, 'n'], *, seed: int, batch_size: int
) -> TrainOrder:
  """Makes the endless order of the training batches.

  Args:
    canvas_of_image: Number of the canvas of each image to train on. A canvas is
      the pair of static sizes that all images of a batch share. The order names
      an image by its position in this array.
    seed: Any integer.
    batch_size: Number of images of a step, in all processes together.
  """
  members = tuple(
    np.flatnonzero(canvas_of_image == canvas)
    for canvas in np.unique(canvas_of_image)
  )
  return TrainOrder(members=members, seed=seed, batch_size=batch_size)


@functools.lru_cache(maxsize=32)
def _permutation(n: int, seed: int, *stream: int) -> np.ndarray:
  """Returns a random permutation of range(n), a pure function of the arguments.

  NumPy promises that a bit generator gives the same raw numbers in all later
  versions. It does not promise this of `Generator.permutation`.

  Args:
    n: Length of the permutation.
    seed: Any integer.
    *stream: Numbers that distinguish permutations with the same seed.

  Returns:
    The permutation; read-only, because it is cached.
  """
  entropy = np.random.SeedSequence([seed % 2**64, *stream])
  numbers = np.random.Philox(entropy).random_raw(n)
  permutation = np.argsort(numbers, kind='stable')
  permutation.flags.writeable = False
  return permutation
