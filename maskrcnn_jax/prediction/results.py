"""The result of a detector for one picture, for use from Python."""

from collections.abc import Iterable
import dataclasses
import difflib
import functools
import os
import pathlib
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Int, UInt8
import ml_collections
import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from maskrcnn_jax.config import geometry_of, pixel_range_of
from maskrcnn_jax.data.image_files import EXTENSIONS
from maskrcnn_jax.detector import Detector, category_of, to_xywh
from maskrcnn_jax.drawing.draw import draw_detections
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.prediction.picture_batches import Found, Picture, read_picture

if TYPE_CHECKING:
  # The library need not be installed. Without it, mypy takes this for Any.
  import supervision

# A class of a model: its name, or its number from 1 on.
Class = str | int | np.integer

# Number of objects that `repr` names.
_NAMED = 5


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
  """The objects that were found in one picture, the highest score first.

  n is the number of objects, `len(result)`. All pixels are those of the picture
  as a viewer shows it, with its EXIF orientation applied.

  Attributes:
    boxes: (x1, y1, x2, y2) of each object, in pixels; float32 [n, 4]. Pixel i
      covers [i, i + 1), so the width is x2 - x1. Only in models with the
      conventions `legacy`, x2 and y2 are the last pixels inside the box.
    classes: Class number of each object, from 1 on; int32 [n].
    scores: Score of each object, [0, 1]; float32 [n].
    names: Class name of each object.
    category_ids: Id of the class of each object in the annotations that the
      model was trained with.
    rle: Mask of each object as compressed COCO RLE: a dictionary with `size`,
      (height, width), and `counts`, a text. `None` if the model has no masks.
    size: (height, width) of the picture, in pixels.
    path: The path of the picture; 'picture N' for an array.
    image_id: Number of the picture in its call, from 1; for `to_coco`.
    class_names: The names of all classes of the model, class number 1 first.
    drawn_score: Objects with a lower score are not drawn, unless `draw` is told
      otherwise. The key `predict.min_score` of the recipe sets it, and `filter`
      with a score lowers or raises it to that score.
  """

  boxes: Float[np.ndarray, 'n 4']
  classes: Int[np.ndarray, 'n']
  scores: Float[np.ndarray, 'n']
  names: list[str]
  category_ids: list[int | str]
  rle: list[dict[str, Any]] | None
  size: tuple[int, int]
  path: str
  image_id: int
  class_names: tuple[str, ...]
  drawn_score: float | int
  _picture: Picture  # the file, or the pixels in RGB
  _pixel_range: tuple[float, float] | None  # for `read_picture`
  _width_offset: float  # see `to_xywh`
  _font_file: str = ''  # see `draw_detections`

  @functools.cached_property
  def masks(self) -> Bool[np.ndarray, 'n h w'] | None:
    """The mask of each object in the size of the picture.

    They are made from `rle` when they are first used. Many objects in a large
    picture need much memory, a byte for each object and pixel. `None` if the
    model has no masks.
    """
    if self.rle is None:
      return None
    masks = np.zeros((len(self), *self.size), bool)
    for mask, rle in zip(masks, self.rle, strict=True):
      mask[:] = mask_api.decode(rle)
    return masks

  @property
  def image(self) -> UInt8[np.ndarray, 'h w 3']:
    """The pixels of the picture in RGB; a file is read once more.

    Raises:
      InputError: If the file is no longer there.
    """
    return read_picture(self._picture, self.path, pixel_range=self._pixel_range)

  def __len__(self) -> int:
    """Returns the number of objects."""
    return len(self.boxes)

  def __repr__(self) -> str:
    """Returns a line with the picture, its size and the first objects."""
    height, width = self.size
    count = f'{len(self)} object{"" if len(self) == 1 else "s"}'
    objects = [
      f'{name} {score:.2f}'
      for name, score in zip(self.names, self.scores, strict=True)
    ]
    if len(objects) > _NAMED:
      objects[_NAMED:] = [f'{len(objects) - _NAMED} more']
    return (
      f'Result({self.path!r}, {height}x{width} pixels, {count}'
      f'{": " if objects else ""}{", ".join(objects)})'
    )

  def filter(
    self,
    *,
    min_score: float | int | None = None,
    classes: Class | Iterable[Class] | None = None,
  ) -> 'Result':
    """Returns a result with some of the objects, in the same order.

    Args:
      min_score: The objects with at least this score are kept; [0, 1].
      classes: The classes that are kept: names, or numbers from 1 on; one of
        them or several. `None` keeps all.

    Raises:
      InputError: If the model has no such class.

    Examples:
      >>> good = result.filter(min_score=0.25, classes=result.class_names[0])
      >>> all(score >= 0.25 for score in good.scores)
      True
      >>> set(good.names) <= {result.class_names[0]}
      True
      >>> result.filter(min_score=1.1)
      Result('photo.jpg', 80x64 pixels, 0 objects)
    """
    keep = np.ones(len(self), bool)
    if min_score is not None:
      keep &= self.scores >= min_score
    if classes is not None:
      if isinstance(classes, str | int | np.integer):
        classes = [classes]
      wanted = {number for class_ in classes for number in self._find(class_)}
      keep &= np.isin(self.classes, sorted(wanted))
    rows = np.flatnonzero(keep)
    return dataclasses.replace(
      self,
      boxes=self.boxes[rows],
      classes=self.classes[rows],
      scores=self.scores[rows],
      names=[self.names[i] for i in rows],
      category_ids=[self.category_ids[i] for i in rows],
      rle=None if self.rle is None else [self.rle[i] for i in rows],
      drawn_score=self.drawn_score if min_score is None else min_score,
    )

  def _find(self, class_: Class) -> list[int]:
    """Returns the numbers of the classes with a name, or a number itself.

    Raises:
      InputError: If the model has no such class.
    """
    names = self.class_names
    if isinstance(class_, str):
      numbers = [i for i, name in enumerate(names, 1) if name == class_]
      if not numbers:
        near = difflib.get_close_matches(class_, names, 1)
        raise InputError(
          f'The model has no class {class_!r}'
          + (f'; did you mean {near[0]!r}?' if near else '.')
          + f' Its classes are {", ".join(names[:100])}.'
        )
      return numbers
    if not 1 <= class_ <= len(names):
      raise InputError(
        f'The model has no class number {class_}; its classes have the numbers '
        f'1 to {len(names)}.'
      )
    return [int(class_)]

  def draw(self, *, min_score: float | int | None = None) -> Image.Image:
    """Returns the picture with the objects drawn on it.

    A picture whose longer side is below 400 pixels is enlarged by a whole
    factor, so that the labels can be read. Without objects it is unchanged.

    Args:
      min_score: Objects with a lower score are not drawn; [0, 1]. By default
        `drawn_score`.
    """
    # A copy is made when the pixels become an image of PIL.
    is_array = isinstance(self._picture, np.ndarray)
    image = np.asarray(self._picture) if is_array else self.image
    return draw_detections(
      image,
      self.boxes,
      self.names,
      self.scores,
      self.rle,
      min_score=float(self.drawn_score if min_score is None else min_score),
      font_file=self._font_file,
    )

  def save(
    self, path: str | os.PathLike[str], *, min_score: float | int | None = None
  ) -> None:
    """Writes the picture with the objects drawn on it to a file.

    Args:
      path: The file, such as 'found/photo.png'. Its ending decides the format.
        Its folder is made if it does not exist.
      min_score: As for `draw`.

    Raises:
      InputError: If the ending is not that of a known format.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in EXTENSIONS:
      raise InputError(
        f'{path} must end with one of {", ".join(sorted(EXTENSIONS))}. To save '
        'the objects themselves, write the list of to_coco() with json.dump.'
      )
    drawing = self.draw(min_score=min_score)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The usual level of 6 takes five times as long for a few percent less.
    options = {'compress_level': 1} if path.suffix.lower() == '.png' else {}
    drawing.save(path, None, **options)

  def to_coco(
    self, *, image_id: int | str | None = None
  ) -> list[dict[str, Any]]:
    """Returns the objects as COCO results, as `--mode=predict` writes them.

    Args:
      image_id: Id of the picture in the results. By default, the attribute
        `image_id`.

    Returns:
      A dictionary for each object: `image_id`, `file_name`, `category_id`,
      `category_name`, `score`, `bbox` (x, y, width, height) in pixels and, if
      the model has masks, `segmentation`, a compressed RLE. The json module
      can write them.

    Examples:
      >>> sorted(result.to_coco()[0])  # doctest: +NORMALIZE_WHITESPACE
      ['bbox', 'category_id', 'category_name', 'file_name', 'image_id',
       'score', 'segmentation']
    """
    results: list[dict[str, Any]] = [
      {
        'image_id': self.image_id if image_id is None else image_id,
        'file_name': self.path,
        'category_id': category_id,
        'category_name': name,
        'score': float(score),
        'bbox': to_xywh(box, width_offset=self._width_offset),
      }
      for category_id, name, score, box in zip(
        self.category_ids, self.names, self.scores, self.boxes, strict=True
      )
    ]
    for result, rle in zip(results, self.rle or (), strict=False):
      result['segmentation'] = rle
    return results

  def to_supervision(self) -> 'supervision.Detections':
    """Returns the objects as `Detections` of the library supervision.

    `xyxy` are the boxes, `mask` the masks, `confidence` the scores, `class_id`
    the class numbers, from 1 on, and `data['class_name']` the names.

    Raises:
      InputError: If the library is not installed.
    """
    try:
      import supervision
    except ImportError as error:
      raise InputError(
        f'to_supervision() needs the library supervision ({error}); install '
        'it with: pip install supervision'
      ) from error
    return supervision.Detections(
      xyxy=self.boxes
      + np.array([0, 0, self._width_offset, self._width_offset], np.float32),
      mask=self.masks,
      confidence=self.scores,
      class_id=self.classes,
      data={'class_name': np.array(self.names, np.str_)},
    )


def make_result(
  detector: Detector,
  found: Found,
  picture: Picture,
  path: str,
  *,
  config: ml_collections.ConfigDict,
) -> Result:
  """Makes the result of a picture.

  Args:
    detector: The model.
    found: The objects of the picture.
    picture: The file, or the pixels in RGB.
    path: The path of the picture; 'picture N' if it has none.
    config: The recipe. Its conventions, `data.pixel_range`,
      `predict.min_score` and `predict.font` are used.
  """
  objects = found.objects
  categories = [category_of(detector, class_) for class_ in objects.classes]
  return Result(
    boxes=objects.boxes,
    classes=objects.classes,
    scores=objects.scores,
    names=[category.name for category in categories],
    category_ids=[category.id for category in categories],
    rle=objects.masks,
    size=found.size,
    path=path,
    image_id=objects.row + 1,
    class_names=class_names_of(detector),
    drawn_score=config.predict.min_score,
    _picture=picture,
    _pixel_range=pixel_range_of(config),
    _width_offset=geometry_of(config).width_offset,
    _font_file=config.predict.font,
  )


def class_names_of(detector: Detector) -> tuple[str, ...]:
  """Returns the names of the classes of a model, class number 1 first.

  A model that only makes proposals has the class 'object'.
  """
  if not detector.rcnn.heads.boxes:
    return (category_of(detector, 1).name,)
  return tuple(category.name for category in detector.categories)
