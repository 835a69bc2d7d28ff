"""The images that are annotated, and the objects read from annotations."""

import collections
from collections.abc import Iterator
import contextlib
import dataclasses
import pathlib
import posixpath
from typing import Any, NamedTuple
import urllib.parse

from PIL import Image

from maskrcnn_jax.convert_to_coco.coco_json import Instance, make_instance
from maskrcnn_jax.convert_to_coco.drawn import Drawn, turn_object
from maskrcnn_jax.data import image_files, images, json_stream
from maskrcnn_jax.data.images import ImageFrame
from maskrcnn_jax.errors import InputError


class WholeSetError(InputError):
  """A fault that is not of one file only, so that no file can be left out."""


class Pictures(NamedTuple):
  """The image files of a folder."""

  folder: pathlib.Path
  # Sizes of each readable image, by its file name relative to the folder.
  frames: dict[str, ImageFrame]
  # The message about each image that cannot be read, by its file name.
  unreadable: dict[str, str]
  # File names by their last part in lower-case letters, with and without the
  # extension.
  by_base: dict[str, list[str]]
  by_stem: dict[str, list[str]]

  def of_stem(self, path: pathlib.PurePath) -> str | None:
    """Returns the image that has the name of a file of annotations.

    Among several images, it is the one whose last folders are those of the
    file. Folders named `images` and `labels` do not count.

    Args:
      path: The file of annotations. Its extension does not count.

    Returns:
      The image, or `None` if not exactly one fits best.
    """
    found = self.by_stem.get(path.stem.lower(), [])
    if len(found) < 2:
      return found[0] if found else None
    scores = [_num_equal(path, pathlib.PurePath(name)) for name in found]
    if scores.count(max(scores)) > 1:
      return None
    return found[scores.index(max(scores))]


def _num_equal(path: pathlib.PurePath, other: pathlib.PurePath) -> int:
  """Counts the last folders that two paths have in common."""
  folders = (
    [part for part in p.parent.parts if part not in ('images', 'labels')]
    for p in (path, other)
  )
  count = 0
  for one, two in zip(*(reversed(names) for names in folders), strict=False):
    if one != two:
      break
    count += 1
  return count


@dataclasses.dataclass
class Annotations:
  """The objects that were read from the annotations of a set of images."""

  pictures: Pictures
  # Objects of each image that has annotations, by its file name. The list is
  # empty if somebody looked at the image and found no object.
  objects: dict[str, list[Instance]] = dataclasses.field(default_factory=dict)
  # Number of shapes that were left out, by the reason.
  left_out: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  # Number of things that the user should know of, by their description.
  notes: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  # The message about each file or entry that could not be read, by its name.
  faults: dict[str, str] = dataclasses.field(default_factory=dict)
  # Images that must not be used, because their objects are not known.
  set_aside: set[str] = dataclasses.field(default_factory=set)

  @contextlib.contextmanager
  def tolerating(self, entry: str, image: str | None) -> Iterator[None]:
    """Records an `InputError` of the entry that is read inside, and goes on.

    Args:
      entry: The name of the file, or of the entry in a file.
      image: The image of the entry. It is set aside if there is an error: as a
        background image it would teach that its objects are background.
    """
    try:
      yield
    except WholeSetError:
      raise
    except InputError as error:
      self.faults[entry] = str(error)
      if image is not None:
        self.set_aside.add(image)

  def add(
    self,
    image: str,
    drawn: list[Drawn],
    declared_size: tuple[Any, Any] | None,
    source: str,
  ) -> None:
    """Adds the objects of an image, as a viewer shows the image.

    Objects without a pixel inside the image are counted and left out.

    Args:
      image: File name of the image.
      drawn: The objects, in pixels of a picture of the declared size.
      declared_size: (height, width) in pixels of the picture that was
        annotated, as the annotations say. They may be of any type. `None` means
        that they do not say it.
      source: The file of annotations, for messages.

    Raises:
      WholeSetError: If the image has got objects before.
      InputError: If the declared size is not that of the image.
    """
    if image in self.objects:
      raise WholeSetError(
        f'A20: {source} has the second annotations of the image {image};'
        ' remove the first or the second.'
      )
    if image in self.pictures.unreadable:
      return
    frame = self.pictures.frames[image]
    turn = self.check_size(image, declared_size, source)
    if turn is not None:
      drawn = [turn_object(d, turn, frame.stored_size) for d in drawn]
      self.notes[
        'images were annotated without their EXIF orientation; the outlines'
        ' were turned with the picture'
      ] += 1
    elif (
      drawn
      and frame.turn is not None
      and (declared_size is None or frame.shown_size == frame.stored_size)
    ):
      self.notes[
        'images have an EXIF orientation, and their size does not tell whether'
        ' it was applied when they were annotated; the outlines were taken as'
        ' drawn on the picture that viewers show'
      ] += 1
    made = [make_instance(object_, frame.shown_size) for object_ in drawn]
    self.objects[image] = [instance for instance in made if instance]
    num_empty = len(made) - len(self.objects[image])
    if num_empty:
      self.left_out['objects without a pixel inside their image'] += num_empty

  def check_size(
    self, image: str, declared_size: tuple[Any, Any] | None, source: str
  ) -> Image.Transpose | None:
    """Finds out whether the annotated picture was upright.

    The stored pixels were annotated if their size is the declared size and the
    upright picture has another size.

    Args:
      image: File name of a readable image.
      declared_size: (height, width) in pixels, as the annotations say.
      source: The file of annotations, for messages.

    Returns:
      The transposition that makes the outlines upright; `None` if they are.

    Raises:
      InputError: If the image has another size.
    """
    frame = self.pictures.frames[image]
    if declared_size in (None, frame.shown_size):
      return None
    if declared_size != frame.stored_size:
      (height, width), declared = frame.shown_size, declared_size
      raise InputError(
        f'I05: {source} is for {shown(declared[0])}x{shown(declared[1])} pixels'
        f' (height x width), but {image} has {height}x{width}.'
      )
    # The rule is that of the training.
    path = self.pictures.folder / image
    labelled = images.read_orientation(path, frame.stored_size)
    return None if labelled.transpose is frame.turn else frame.turn


def find_images(folder: pathlib.Path, annotations: pathlib.Path) -> Pictures:
  """Reads the size of every image in a folder and its sub-folders.

  Args:
    folder: The folder of the images.
    annotations: The annotations. If they are a folder inside of `folder`, its
      pictures are masks and not images.

  Raises:
    InputError: If there is no such folder, it has no image, or more than half
      of the images cannot be read.
  """
  if not folder.is_dir():
    raise InputError(f'I01: there is no folder of images {folder}.')
  frames: dict[str, ImageFrame] = {}
  unreadable: dict[str, str] = {}
  by_base: dict[str, list[str]] = {}
  by_stem: dict[str, list[str]] = {}
  inside = annotations.is_dir() and folder.resolve() in (
    annotations.resolve().parents
  )
  for path in image_files.list_images(folder):
    if inside and annotations.resolve() in path.resolve().parents:
      continue
    name = path.relative_to(folder).as_posix()
    by_base.setdefault(path.name.lower(), []).append(name)
    by_stem.setdefault(path.stem.lower(), []).append(name)
    try:
      frames[name] = images.image_frame(path)
    except InputError as error:
      unreadable[name] = str(error)
  check_share(unreadable, len(frames), 'images')
  if not frames:
    raise InputError(f'I01: there are no images in {folder}.')
  return Pictures(folder, frames, unreadable, by_base, by_stem)


def check_share(faults: dict[str, str], num_good: int, things: str) -> None:
  """Raises the first of the faults if more than half of the things have one.

  A few damaged files are left out. If most of them are damaged, the fault is
  not that of a few files, and leaving them out would hide it.

  Args:
    faults: The message about each thing that cannot be used.
    num_good: Number of things that can be used.
    things: The things in words, for the message.

  Raises:
    InputError: If there are more faults than good things.
  """
  if len(faults) <= num_good:
    return
  first = next(iter(faults.values()))
  total = len(faults) + num_good
  if total > 1:
    first += (
      f' {len(faults)} of {total} {things} cannot be used; so many are no'
      ' accident, and nothing was written.'
    )
  raise InputError(first)


def find_image(
  name: Any, pictures: Pictures, source: str, folder: str = ''
) -> str:
  """Finds the image that an annotation names.

  The name may be a path or a URL. If no image has exactly this name, the
  folders in the name and in the names of the images are ignored, then upper and
  lower case, and then the %XX of a URL are.

  Args:
    name: The file name in the annotation; any value of JSON. Slashes and
      backslashes separate folders.
    pictures: All images.
    source: The file of annotations, for the error message.
    folder: The folder that the name may be relative to, itself relative to the
      folder of the images.

  Returns:
    The file name of the image.

  Raises:
    InputError: If no image has this name, or if several images have it when
      folders are ignored.
  """
  if not isinstance(name, str):
    raise InputError(
      f'A25: {source} names an image {shown(name)}; it must be a file name.'
    )
  count = 0
  for text in dict.fromkeys((name, urllib.parse.unquote(name))):
    text = text.replace('\\', '/')
    for exact in (posixpath.normpath(f'{folder}/{text}').lstrip('/'), text):
      if exact in pictures.frames or exact in pictures.unreadable:
        return exact
    base = text.rsplit('/', 1)[-1]
    found = pictures.by_base.get(base.lower(), [])
    same_case = [file for file in found if file.rsplit('/', 1)[-1] == base]
    found = same_case or found
    if len(found) == 1:
      return found[0]
    count = max(count, len(found))
  raise InputError(
    f'I01: {source} is about the image {name[:200]}; {count} images of the'
    ' folder have this name, but it must be exactly one.'
  )


def read_bytes(path: pathlib.Path) -> bytes:
  """Reads a file of annotations.

  Raises:
    InputError: If the file cannot be read, or is no regular file.
  """
  try:
    if path.exists() and not path.is_file():
      raise InputError(f'A25: {path} is no regular file.')
    return path.read_bytes()
  except (OSError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    reason = getattr(error, 'strerror', None) or error
    raise InputError(f'A25: Cannot read {path}: {reason}.') from error


def read_text(path: pathlib.Path) -> str:
  """Reads a text file in UTF-8; a byte order mark is dropped.

  Raises:
    InputError: If the file cannot be read or is not text in UTF-8.
  """
  try:
    return read_bytes(path).decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise InputError(f'A25: {path} is no text in UTF-8: {error}.') from error


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file.

  Raises:
    InputError: If the file cannot be read, or is no JSON.
  """
  text = read_text(path)
  try:
    return json_stream.loads(text)
  except (ValueError, RecursionError) as error:
    raise InputError(f'A25: {path} is not JSON: {error}.') from error


def shown(value: Any) -> str:
  """Formats a value of a file for a message, in at most 60 characters."""
  try:
    text = repr(value)
  except ValueError:  # An integer of thousands of digits has no text.
    return 'a very large number'
  return text if len(text) <= 60 else f'{text[:57]}...'


def reason(error: Exception) -> str:
  """Describes an error that reading a damaged entry raised.

  Args:
    error: A KeyError is a missing part. Other errors have a message, and the
      messages of Python itself are about wrong types.
  """
  match error:
    case KeyError():
      return f'it has no {error}'
    case AttributeError():
      return 'it is no object'
  text = str(error)
  return text if len(text) <= 200 else f'{text[:197]}...'


def class_text(label: Any) -> str | None:
  """Returns the class that a label stands for; `None` if it names none.

  Args:
    label: Any value of JSON. Spaces around a text do not count. An integer
      stands for its digits.
  """
  if isinstance(label, int) and not isinstance(label, bool):
    label = str(label) if abs(label) < 1 << 63 else None
  if not isinstance(label, str) or not label.strip():
    return None
  return label.strip()
