"""Cuts small square images out of a COCO data set, for two programs to read."""

import contextlib
import io
import json
import pathlib

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

SIZE = 128  # height and width of a crop in pixels
# A crop has at least this number of objects. Objects of which it shows less
# than `MIN_AREA` pixels, or a strip thinner than `MIN_SIDE`, are left out.
MIN_OBJECTS = 3
MIN_AREA = 16
MIN_SIDE = 3


def write_set(
  folder: pathlib.Path,
  part: str,
  images: pathlib.Path,
  annotations: pathlib.Path,
  count: int,
) -> None:
  """Writes one crop of each of the first suitable images of a data set.

  The crop of an image is the square with the most objects among those whose
  corners are multiples of 32 pixels.

  Args:
    folder: Folder to write to: `images/`, and `PART.json` in COCO's format with
      RLE masks, and `PART.npz` for `torchvision_jobs.load_examples`.
    part: Name of the set, such as 'train'.
    images: Folder of the images.
    annotations: Their COCO file.
    count: Number of crops.

  Raises:
    SystemExit: If the data set has fewer suitable images.
  """
  (folder / 'images').mkdir(parents=True, exist_ok=True)
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(str(annotations))
  classes = {id_: i + 1 for i, id_ in enumerate(sorted(truth.getCatIds()))}
  entries: list[dict] = []
  records: list[dict] = []
  pixels, boxes, labels, bitmaps, starts = [], [], [], [], [0]
  for entry in truth.loadImgs(sorted(truth.getImgIds())):
    if len(entries) == count:
      break
    found = truth.loadAnns(truth.getAnnIds(imgIds=entry['id'], iscrowd=False))
    if not found:
      continue
    row, column, chosen = best_crop(
      np.stack([truth.annToMask(annotation) for annotation in found])
    )
    if len(chosen) < MIN_OBJECTS:
      continue
    window = np.s_[row : row + SIZE, column : column + SIZE]
    with Image.open(images / entry['file_name']) as file:
      crop = np.array(file.convert('RGB'))[window]
    name = f'{part}_{len(entries)}.png'
    Image.fromarray(crop).save(folder / 'images' / name)
    entries.append(
      {'id': len(entries), 'file_name': name, 'height': SIZE, 'width': SIZE}
    )
    pixels.append(crop)
    for i, mask in chosen:
      rle = mask_api.encode(np.asfortranarray(mask))
      x, y, width, height = mask_api.toBbox(rle).tolist()
      records.append(
        {
          'id': len(records) + 1,
          'image_id': entries[-1]['id'],
          'category_id': found[i]['category_id'],
          'iscrowd': 0,
          'area': int(mask.sum()),
          'bbox': [x, y, width, height],
          'segmentation': rle | {'counts': rle['counts'].decode()},
        }
      )
      boxes.append([x, y, x + width, y + height])
      labels.append(classes[found[i]['category_id']])
      bitmaps.append(mask)
    starts.append(len(records))
  if len(entries) < count:
    raise SystemExit(
      f'error: {annotations} has {len(entries)} images with a crop of '
      f'{MIN_OBJECTS} objects; {count} are needed.'
    )
  (folder / f'{part}.json').write_text(
    json.dumps(
      {
        'images': entries,
        'annotations': records,
        'categories': truth.loadCats(sorted(truth.getCatIds())),
      }
    )
  )
  np.savez_compressed(
    folder / f'{part}.npz',
    images=np.stack(pixels),
    starts=np.array(starts),
    boxes=np.array(boxes, np.float32),
    classes=np.array(labels),
    masks=np.stack(bitmaps),
  )


def best_crop(
  masks: np.ndarray,
) -> tuple[int, int, list[tuple[int, np.ndarray]]]:
  """Finds the crop of an image that shows the most objects.

  Args:
    masks: Bitmaps of the objects, uint8 [g, h, w]. An image that is smaller
      than a crop has none.

  Returns:
    row: Top row of the crop in pixels.
    column: Left column of the crop in pixels.
    objects: (index, bitmap of the visible part) of each object to keep.
  """
  best: tuple[int, int, list[tuple[int, np.ndarray]]] = (0, 0, [])
  _, height, width = masks.shape
  for row in range(0, height - SIZE + 1, 32):
    for column in range(0, width - SIZE + 1, 32):
      parts = masks[:, row : row + SIZE, column : column + SIZE]
      objects = [
        (i, part)
        for i, part in enumerate(parts)
        if part.sum() >= MIN_AREA
        and min(part.any(axis=0).sum(), part.any(axis=1).sum()) >= MIN_SIDE
      ]
      if len(objects) > len(best[2]):
        best = row, column, objects
  return best
