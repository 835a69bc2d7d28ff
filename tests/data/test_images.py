"""Tests of data/images.py."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
from numpy.testing import assert_array_equal
from PIL import Image, ImageOps
import pytest

from maskrcnn_jax import errors
from maskrcnn_jax.data import images


def picture(height=4, width=6, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, channels), np.uint8)


def save(path, image, **options):
  if not isinstance(image, Image.Image):
    image = Image.fromarray(image)
  image.save(path, **options)
  return path


def save_turned(path, array, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  return save(path, array, exif=exif)


def test_decode_image_gives_the_pixels_of_a_png(tmp_path):
  array = picture()
  decoded = images.decode_image(save(tmp_path / 'a.png', array))
  assert decoded.dtype == np.uint8
  assert decoded.flags.writeable
  assert_array_equal(decoded, array)


def test_decode_image_reads_a_jpeg_with_a_false_extension(tmp_path):
  save(tmp_path / 'a.png', np.full((9, 7, 3), 100, np.uint8), format='JPEG')
  decoded = images.decode_image(tmp_path / 'a.png', expected_size=(9, 7))
  np.testing.assert_allclose(decoded, 100, atol=2)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK'])
def test_decode_image_turns_other_modes_into_rgb(tmp_path, mode):
  gray = np.repeat(np.array([[0, 255, 255, 0]], np.uint8), 3, axis=0)
  image = Image.fromarray(gray).convert('RGB').convert(mode)
  path = save(tmp_path / ('a.tif' if mode == 'CMYK' else 'a.png'), image)
  with Image.open(path) as saved:
    assert saved.mode == mode
  decoded = images.decode_image(path)
  assert decoded.shape == (3, 4, 3)
  assert_array_equal(decoded, np.stack([gray] * 3, axis=-1))


def test_decode_image_drops_the_alpha_channel(tmp_path):
  array = picture(channels=4)
  array[..., 3] = 0
  decoded = images.decode_image(save(tmp_path / 'a.png', array))
  assert_array_equal(decoded, array[..., :3])


def test_decode_image_reads_a_transparent_palette_without_a_warning(tmp_path):
  image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), 'P')
  image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
  path = save(tmp_path / 'a.png', image, transparency=bytes([0, 128, 255]))
  assert_array_equal(
    images.decode_image(path), [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
  )


def test_decode_image_reads_a_cmyk_jpeg(tmp_path):
  white = Image.new('CMYK', (8, 8), (0, 0, 0, 0))
  decoded = images.decode_image(save(tmp_path / 'a.jpg', white))
  assert_array_equal(decoded, np.full((8, 8, 3), 255))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_decode_image_applies_the_exif_orientation(tmp_path, orientation):
  path = save_turned(tmp_path / 'a.png', picture(), orientation)
  with Image.open(path) as image:
    upright = np.asarray(ImageOps.exif_transpose(image))
  assert_array_equal(images.decode_image(path), upright)
  assert images.image_size(path) == upright.shape[:2]


def test_decode_image_leaves_pixels_alone_that_have_the_expected_size(tmp_path):
  array = picture(4, 6)
  path = save_turned(tmp_path / 'a.png', array, 6)
  decoded = images.decode_image(path, expected_size=(4, 6))
  assert_array_equal(decoded, array)


def test_decode_image_turns_pixels_to_the_expected_size(tmp_path):
  array = picture(4, 6)
  path = save_turned(tmp_path / 'a.png', array, 6)
  decoded = images.decode_image(path, expected_size=(6, 4))
  assert_array_equal(decoded, np.rot90(array, -1))


def test_decode_image_refuses_another_size_and_names_all_three(tmp_path):
  path = save_turned(tmp_path / 'a.png', picture(4, 6), 6)
  with pytest.raises(errors.InputError, match='I05: .*4x6.*6x4.*say 8x8'):
    images.decode_image(path, expected_size=(8, 8))


@pytest.mark.parametrize(
  ('name', 'array', 'code'),
  [
    ('a.png', np.full((4, 4), 40_000, np.uint16), 'I09'),
    ('a.tif', np.full((4, 4), 40_000, np.uint16), 'I09'),
    ('a.tif', np.full((4, 4), 40_000, np.int32), 'I09'),
    ('a.tif', np.full((4, 4), 0.5, np.float32), 'I10'),
  ],
)
def test_decode_image_refuses_pixels_of_unknown_range(
  tmp_path, name, array, code
):
  path = save(tmp_path / name, array)
  with pytest.raises(errors.InputError, match=f'{code}: .*{name}.*8 bits'):
    images.decode_image(path)


def as_oracle(values, low, high):
  """Maps gray values to 0..255 and to RGB, one pixel at a time."""
  gray = [
    [round(255 * (min(max(v, low), high) - low) / (high - low)) for v in row]
    for row in values.tolist()
  ]
  return np.repeat(np.array(gray, np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
  ('name', 'dtype'),
  [
    ('a.png', np.uint16),
    ('a.tif', np.uint16),
    ('a.tif', '>u2'),
    ('a.tif', np.int32),
  ],
)
@pytest.mark.parametrize(
  'pixel_range', [(0.0, 65_535.0), (0.0, 4_095.0), (1_000.0, 1_500.5)]
)
def test_decode_image_maps_a_pixel_range(tmp_path, name, dtype, pixel_range):
  values = np.random.default_rng(0).integers(0, 5_000, (9, 7)).astype(dtype)
  values[0] = [0, 1000, 1001, 1500, 1501, 4095, 65_535]
  path = save(tmp_path / name, Image.fromarray(values))
  decoded = images.decode_image(path, pixel_range=pixel_range)
  assert_array_equal(decoded, as_oracle(values, *pixel_range))


def test_decode_image_maps_a_pixel_range_before_it_turns(tmp_path):
  values = np.arange(35, dtype=np.uint16).reshape(5, 7) * 100
  path = save_turned(tmp_path / 'a.png', values, 6)
  mapped = as_oracle(np.rot90(values, -1), 0, 4095)
  decoded = images.decode_image(path, pixel_range=(0.0, 4095.0))
  assert_array_equal(decoded, mapped)


def test_decode_image_leaves_8_bits_alone_whatever_the_pixel_range(tmp_path):
  array = picture()
  path = save(tmp_path / 'a.png', array)
  decoded = images.decode_image(path, pixel_range=(0.0, 100.0))
  assert_array_equal(decoded, array)


def test_decode_image_names_the_range_of_an_image(tmp_path):
  values = np.full((4, 4), 37, np.uint16)
  values[1, 2] = 4012
  path = save(tmp_path / 'a.png', values)
  with pytest.raises(
    errors.InputError, match=r"I09: .*data\.pixel_range='\(37,4012\)'"
  ):
    images.decode_image(path)


def colours_of_16_bits():
  """Returns a PNG of one pixel with 16 bits a channel."""
  chunks = (
    (b'IHDR', struct.pack('>II5B', 1, 1, 16, 2, 0, 0, 0)),
    (b'IDAT', zlib.compress(b'\0' + struct.pack('>3H', 1000, 2000, 60_000))),
    (b'IEND', b''),
  )
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(content))
    + name
    + content
    + struct.pack('>I', zlib.crc32(name + content))
    for name, content in chunks
  )


def test_decode_image_refuses_a_pixel_range_for_colours_of_16_bits(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(colours_of_16_bits())
  assert_array_equal(images.decode_image(path), [[[3, 7, 234]]])
  images.decode_image(path, pixel_range=(0.0, 65_535.0))
  with pytest.raises(errors.InputError, match='I09: .*colours of 16 bits'):
    images.decode_image(path, pixel_range=(0.0, 4095.0))


def test_decode_image_refuses_unknown_channels(tmp_path):
  path = save(tmp_path / 'a.tif', Image.new('LAB', (4, 4)))
  with pytest.raises(errors.InputError, match='I11: .*a.tif.* LAB.*--fix'):
    images.decode_image(path)


@pytest.mark.parametrize('format_', ['JPEG', 'PNG', 'GIF', 'BMP', 'TIFF'])
@pytest.mark.parametrize('share', [0.99, 0.5, 0.1])
def test_decode_image_refuses_truncated_files(tmp_path, format_, share):
  buffer = io.BytesIO()
  Image.fromarray(picture(64, 64)).save(buffer, format_)
  data = buffer.getvalue()
  path = tmp_path / 'a.img'
  path.write_bytes(data[: int(len(data) * share)])
  # Pillow warns of some damage before it raises.
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    with pytest.raises(errors.InputError, match='I0[23]: .*a.img'):
      images.decode_image(path)


def test_decode_image_refuses_what_is_no_image(tmp_path):
  (tmp_path / 'a.jpg').write_bytes(b'')
  (tmp_path / 'b.jpg').write_text('<html>404</html>')
  for name, complaint in (('a.jpg', 'is empty'), ('b.jpg', 'is no image')):
    for read in (images.decode_image, images.image_size):
      with pytest.raises(errors.InputError, match=f'I03: .*{name} {complaint}'):
        read(tmp_path / name)
  with pytest.raises(errors.InputError, match='I01: cannot read'):
    images.decode_image(tmp_path)


def test_decode_image_hints_at_other_letter_case(tmp_path):
  save(tmp_path / 'a.JPG', picture())
  with pytest.raises(errors.InputError, match=r'I01: .*a\.jpg .*is a\.JPG'):
    images.decode_image(tmp_path / 'a.jpg')
  with pytest.raises(errors.InputError, match=r'I01: .*b\.jpg\.$'):
    images.decode_image(tmp_path / 'b.jpg')


def test_decode_image_refuses_a_decompression_bomb(tmp_path, monkeypatch):
  path = save(tmp_path / 'a.png', picture(20, 20))
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  with pytest.raises(errors.InputError, match='I12: .*400 pixels.*--fix'):
    images.decode_image(path)


def test_image_size_does_not_decode(tmp_path):
  buffer = io.BytesIO()
  Image.fromarray(picture(64, 48)).save(buffer, 'PNG')
  (tmp_path / 'a.png').write_bytes(buffer.getvalue()[:200])
  assert images.image_size(tmp_path / 'a.png') == (64, 48)


def test_list_images_reads_a_file_a_folder_and_a_glob(tmp_path):
  names = ['b.PNG', 'a.jpg', 'sub/c.jpeg', 'sub/notes.txt']
  (tmp_path / 'sub').mkdir()
  for name in names:
    (tmp_path / name).write_bytes(b'')

  def listed(pattern):
    return [
      os.fspath(p.relative_to(tmp_path)) for p in images.list_images(pattern)
    ]

  assert listed(tmp_path / 'sub/notes.txt') == ['sub/notes.txt']
  assert listed(tmp_path) == ['a.jpg', 'b.PNG', 'sub/c.jpeg']
  assert listed(str(tmp_path / '*')) == ['a.jpg', 'b.PNG']
  assert listed(str(tmp_path / '**/*.jp*')) == ['a.jpg', 'sub/c.jpeg']


def test_list_images_refuses_what_has_none(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'')
  with pytest.raises(errors.InputError, match='I01: there are no images in'):
    images.list_images(tmp_path)
  with pytest.raises(errors.InputError, match='I01: there are no images in'):
    images.list_images(str(tmp_path / '*.txt'))
  with pytest.raises(errors.InputError, match='I01: there is no file.*a.TXT'):
    images.list_images(tmp_path / 'a.TXT')
