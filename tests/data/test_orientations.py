"""Pictures of all EXIF orientations, labelled as a viewer shows them."""

import json

import numpy as np
from PIL import Image
import pytest

from maskrcnn_jax.check_data import command_line, contact_sheet
from maskrcnn_jax.config import default_config
from maskrcnn_jax.data import canvases as canvas_plans
from maskrcnn_jax.data import coco, image_sets, loader, outlines, source
from maskrcnn_jax.data.source import DataSet
from maskrcnn_jax.prediction.picture_batches import read_picture
from maskrcnn_jax.training import checks

# The object: a bright triangle in a dark picture.
TRIANGLE = [10, 8, 52, 14, 20, 40]
BRIGHT = 128

# Makes the stored pixels of the upright picture.
STORED = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: a[:, ::-1].swapaxes(0, 1),
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: a[::-1].swapaxes(0, 1),
}


def write_set(folder, orientation, width, *, unturned=False):
  """Writes a data set of one JPEG, labelled as a viewer shows it.

  Args:
    folder: The folder to write to.
    orientation: EXIF orientation of the file.
    width: Width of the upright picture, which is 64 pixels high.
    unturned: Whether the labels are drawn on the pixels as stored instead.

  Returns:
    The folder of the images, and the file of annotations.
  """
  (folder / 'images').mkdir(parents=True)
  upright = np.full((64, width, 3), 20, np.uint8)
  vertices, parts = outlines.polygons_to_outline([TRIANGLE])
  upright[outlines.fill_outline(vertices, parts, 64, width)] = 230
  pixels = upright if unturned else STORED[orientation](upright)
  exif = Image.Exif()
  exif[0x0112] = orientation
  file = folder / 'images/0.jpg'
  Image.fromarray(pixels).save(file, exif=exif, quality=95)
  content = {
    'images': [
      {'id': 1, 'file_name': '0.jpg', 'height': 64, 'width': width},
    ],
    'annotations': [
      {
        'id': 1,
        'image_id': 1,
        'category_id': 1,
        'bbox': [10, 8, 42, 32],
        'area': int((upright[..., 0] > BRIGHT).sum()),
        'iscrowd': 0,
        'segmentation': [TRIANGLE],
      }
    ],
    'categories': [{'id': 1, 'name': 'triangle'}],
  }
  (folder / 'a.json').write_text(json.dumps(content))
  return folder / 'images', folder / 'a.json'


def share_on_object(data_set, **options):
  """Returns the share of label pixels on the object in a training batch."""
  index = data_set.coco_index
  plan = canvas_plans.plan_canvases(
    index.heights,
    index.widths,
    short_side=64,
    long_side=128,
    padded_sizes=((128, 128),),
    max_source_side=1000,
  )
  batches = loader.train_batches(
    data_set,
    plan,
    np.arange(1),
    limits=image_sets.find_limits(index, max_objects=4),
    seed=0,
    start_step=0,
    num_steps=1,
    batch_size=1,
    num_threads=1,
    **options,
  )
  batch, _ = next(batches)
  batches.close()
  height, width = batch.source_sizes[0].tolist()
  end = batch.outlines.starts[0, 1]
  mask = outlines.fill_outline(
    batch.outlines.vertices[0, :end],
    batch.outlines.parts[0, :end],
    height,
    width,
  )
  assert mask.sum() > 500
  return (batch.images[0, :height, :width, 0][mask] > BRIGHT).mean()


@pytest.mark.parametrize('width', [64, 96], ids=['square', 'wide'])
@pytest.mark.parametrize('orientation', STORED)
def test_labels_are_on_the_object_in_every_command(
  tmp_path, monkeypatch, orientation, width
):
  monkeypatch.setattr(contact_sheet, 'NUM_EXAMPLES', 1)
  folder, annotations = write_set(tmp_path, orientation, width)
  data_set = DataSet(coco.read_coco(annotations), folder)
  assert share_on_object(data_set) > 0.95

  # An evaluation loads the same pixels as a training, and predict too.
  index = data_set.coco_index
  plan = canvas_plans.plan_canvases(
    index.heights,
    index.widths,
    short_side=64,
    long_side=128,
    padded_sizes=((128, 128),),
    max_source_side=1000,
  )
  batches = loader.eval_batches(data_set, plan, batch_size=1)
  batch, _ = next(batches)
  batches.close()
  shown = read_picture(folder / '0.jpg', '0.jpg')
  assert (batch.images[0, :64, :width] == shown).all()

  # The size tells in all cases but these.
  in_doubt = orientation > 1 and (width == 64 or orientation < 5)
  lines = source.header_warnings(data_set, apply_exif=True)
  assert [line[:5] for line in lines] == ['I04: '] * in_doubt
  status = command_line.main(
    [
      f'--images={folder}',
      f'--annotations={annotations}',
      f'--out={tmp_path / "out"}',
      '--workers=1',
    ]
  )
  assert status == 0
  report = json.loads((tmp_path / 'out/report.json').read_text())
  codes = [found['code'] for found in report['findings']]
  assert codes == ['I04'] * in_doubt


@pytest.mark.parametrize('orientation', [2, 6])
def test_a_key_says_that_labels_in_doubt_were_drawn_on_unturned_pixels(
  tmp_path, orientation
):
  folder, annotations = write_set(tmp_path, orientation, 64, unturned=True)
  data_set = DataSet(coco.read_coco(annotations), folder)
  assert share_on_object(data_set, apply_exif=False) > 0.95
  assert share_on_object(data_set) < 0.9


def test_labels_on_unturned_pixels_are_seen_by_their_size(tmp_path):
  folder, annotations = write_set(tmp_path, 8, 96, unturned=True)
  data_set = DataSet(coco.read_coco(annotations), folder)
  assert share_on_object(data_set) > 0.95
  assert source.header_warnings(data_set, apply_exif=True) == []


def test_a_training_looks_at_a_sample_of_many_images(tmp_path, monkeypatch):
  monkeypatch.setattr(source, '_NUM_HEADERS', 3)
  folder, annotations = write_set(tmp_path, 3, 64)
  content = json.loads(annotations.read_text())
  first = content['images'][0]
  content['images'] += [first | {'id': i} for i in range(2, 8)]
  annotations.write_text(json.dumps(content))
  index = coco.read_coco(annotations)
  (line,) = source.header_warnings(DataSet(index, folder), apply_exif=False)
  assert 'is not applied; config.data.apply_exif decides' in line
  assert '(3 such cases) Only 3 of 7 images were looked at' in line


def test_a_training_counts_the_images_in_doubt(tmp_path, caplog):
  folder, annotations = write_set(tmp_path, 6, 64)
  content = json.loads(annotations.read_text())
  for i in (1, 2):
    (folder / f'{i}.jpg').write_bytes((folder / '0.jpg').read_bytes())
    entry = content['images'][0] | {'id': i + 1, 'file_name': f'{i}.jpg'}
    content['images'].append(entry)
  annotations.write_text(json.dumps(content))
  config = default_config()
  config.data.train.images = str(folder)
  config.data.train.annotations = str(annotations)
  with caplog.at_level('WARNING'):
    checks.read_training_set(config)
  lines = [r.getMessage() for r in caplog.records if 'I04' in r.getMessage()]
  assert len(lines) == 1
  assert '(3 such cases)' in lines[0]
