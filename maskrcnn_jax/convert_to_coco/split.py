"""Splits the images into a training part and an evaluation part.

Source:
  Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data
  (ECML PKDD 2011): the rarest class is distributed first.
"""

import collections
import hashlib
import pathlib

from maskrcnn_jax.convert_to_coco.coco_json import Instance
from maskrcnn_jax.errors import InputError

# Stands for the images without objects, which are distributed like a class.
_NO_OBJECT = ''


def split_images(
  names: list[str],
  objects: dict[str, list[Instance]],
  folder: pathlib.Path,
  share: float,
) -> tuple[list[str], list[str]]:
  """Splits images so that each class has the same share in both parts.

  Images with the same content stay together: an evaluation on images of the
  training tells nothing. The result depends only on the names, the contents and
  the classes of the images.

  Args:
    names: The images.
    objects: The objects of each image.
    folder: The folder of the images.
    share: The share of the images that goes to the evaluation part, above 0 and
      below 1.

  Returns:
    The images of the training part and of the evaluation part, each in the
    order of `names`. A class that at least two images have is in both parts,
    except if these images have the same content.

  Raises:
    InputError: If there are fewer than two different images, or an image cannot
      be read.
  """
  groups: dict[bytes, list[str]] = {}
  for name in names:
    groups.setdefault(_digest(folder / name), []).append(name)
  # Sorting by the digest is a random order that is always the same.
  items = [groups[digest] for digest in sorted(groups)]
  if len(items) < 2:
    raise InputError(
      'A23: --split needs at least two images with different contents.'
    )
  counts = [
    collections.Counter(o.name for name in item for o in objects.get(name, ()))
    or collections.Counter([_NO_OBJECT])
    for item in items
  ]
  chosen = _choose(counts, share)
  names_of_eval = {name for i in chosen for name in items[i]}
  return (
    [name for name in names if name not in names_of_eval],
    [name for name in names if name in names_of_eval],
  )


def _choose(counts: list[collections.Counter[str]], share: float) -> set[int]:
  """Chooses the groups of images of the evaluation part.

  Args:
    counts: The number of objects of each class, for each group.
    share: The share of the objects of each class that goes to the evaluation
      part.

  Returns:
    Indices of the groups; at least one, and not all.
  """
  totals: collections.Counter[str] = sum(counts, collections.Counter())
  having = collections.Counter(name for count in counts for name in count)
  # Number of objects that the evaluation part still needs, by the class. It is
  # below 0 if the part has too many.
  wanted = {name: share * total for name, total in totals.items()}
  num_chosen: collections.Counter[str] = collections.Counter()
  chosen: set[int] = set()

  def gain(i: int) -> float:
    """Returns by how much group i brings the shares nearer to the target."""
    return sum(
      (abs(wanted[n]) - abs(wanted[n] - count)) / totals[n]
      for n, count in counts[i].items()
    )

  def is_free(i: int) -> bool:
    """Tells whether the training part keeps each class without group i."""
    return i not in chosen and all(
      num_chosen[n] + 1 < having[n] for n in counts[i]
    )

  def choose(i: int) -> None:
    """Puts group i into the evaluation part."""
    chosen.add(i)
    num_chosen.update(counts[i].keys())
    for n, count in counts[i].items():
      wanted[n] -= count

  groups_of: dict[str, list[int]] = {name: [] for name in totals}
  for i, count in enumerate(counts):
    for name in count:
      groups_of[name].append(i)
  for name in sorted(totals, key=lambda n: (having[n], n)):
    for i in sorted(groups_of[name], key=gain, reverse=True):
      if 2 * wanted[name] >= counts[i][name] and gain(i) > 0 and is_free(i):
        choose(i)
    if not num_chosen[name]:
      free = [i for i in groups_of[name] if is_free(i)]
      if free:
        choose(max(free, key=gain))
  if not chosen:
    # No class has two groups, so an evaluation part must take a class away.
    chosen.add(max(range(len(counts)), key=gain))
  return chosen


def _digest(path: pathlib.Path) -> bytes:
  """Returns the digest of a file.

  Raises:
    InputError: If the file cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'blake2b').digest()
  except OSError as error:
    raise InputError(f'I01: cannot read {path}: {error.strerror}.') from error
