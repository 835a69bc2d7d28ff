"""The order of training batches: a pure function of seed and step."""

import bisect
import functools
from typing import NamedTuple

from jaxtyping import Int
import numpy as np

# Streams of random numbers.
_IMAGES, _BATCHES = 0, 1


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
    rounds, places = np.divmod(start + np.arange(self.batch_size), len(images_))
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


def make_order(
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
