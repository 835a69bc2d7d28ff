"""Tests of data/images.py."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
from numpy.testing import assert_array_equal
from PIL import Image
import pytest

from maskrcnn_jax import errors
from maskrcnn_jax.data import image_checks, image_files, images


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


# For each EXIF orientation, the upright picture of the stored pixels, by the
# table of the EXIF standard: the sides of the picture at which the first row
# and the first column of the stored pixels are.
UPRIGHT = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: a.swapaxes(0, 1)[:, ::-1],
  7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
  8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize('ending', ['png', 'tif', 'webp'])
@pytest.mark.parametrize('width', [4, 6])
@pytest.mark.parametrize('orientation', UPRIGHT)
def test_orientations_follow_the_size_and_are_applied_in_doubt(
  tmp_path, ending, width, orientation
):
  stored = picture(4, width)
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {'lossless': True} if ending == 'webp' else {}
  path = save(tmp_path / f'a.{ending}', stored, exif=exif, **options)
  upright = UPRIGHT[orientation](stored)
  sizes = stored.shape[:2], upright.shape[:2]
  in_doubt = orientation > 1 and sizes[0] == sizes[1]
  cases = [
    (None, True, upright),
    (None, False, upright),
    (sizes[1], True, upright),
    (sizes[1], False, stored if in_doubt else upright),
    (sizes[0], True, upright if in_doubt else stored),
    (sizes[0], False, stored),
  ]
  for size, apply_exif, expected in cases:
    decoded = images.decode_image(
      path, expected_size=size, apply_exif=apply_exif
    )
    assert_array_equal(decoded, expected)
    found = images.read_orientation(path, size, apply_exif=apply_exif)
    assert found.size == expected.shape[:2]
    assert found.is_in_doubt == (in_doubt and size is not None)
    notes = image_checks.header_notes(path, size, apply_exif=apply_exif)
    assert len(notes) == found.is_in_doubt
    assert all(note.startswith('I04: ') for note in notes)
  assert images.image_size(path) == sizes[1]
  with Image.open(path) as image:
    assert_array_equal(images.convert_image(image, 'a'), upright)
    # The image is loaded now.
    assert_array_equal(images.convert_image(image, 'a'), upright)


@pytest.mark.parametrize('orientation', [3, 6])
def test_orientations_behind_the_pixels_of_a_png_are_found(
  tmp_path, orientation
):
  stored = picture(4, 6)
  path = save_turned(tmp_path / 'a.png', stored, orientation)
  content = path.read_bytes()
  start = content.index(b'eXIf') - 4
  end = start + 12 + int.from_bytes(content[start : start + 4])
  chunk, rest = content[start:end], content[:start] + content[end:]
  # The last chunk, IEND, has 12 bytes.
  path.write_bytes(rest[:-12] + chunk + rest[-12:])
  upright = UPRIGHT[orientation](stored)
  assert images.image_size(path) == upright.shape[:2]
  assert_array_equal(images.decode_image(path), upright)
  for is_loaded in (False, True):
    with Image.open(path) as image:
      if is_loaded:
        image.load()
      assert_array_equal(images.convert_image(image, 'a'), upright)


@pytest.mark.parametrize('data', [b'', b'MM', b'\xff' * 50])
def test_an_image_with_damaged_exif_data_is_shown_as_it_is_stored(
  tmp_path, data
):
  stored = picture(4, 6)
  path = save(tmp_path / 'a.png', stored, exif=b'Exif\0\0' + data)
  assert b'eXIf' in path.read_bytes()
  assert_array_equal(images.decode_image(path), stored)
  assert images.image_size(path) == (4, 6)


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


def png_of_16_bits(values, colour_type):
  """Returns a PNG of values [h w c] with 16 bits a channel."""
  height, width = values.shape[:2]
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
  chunks = (
    (b'IHDR', struct.pack('>II5B', width, height, 16, colour_type, 0, 0, 0)),
    (b'IDAT', zlib.compress(rows)),
    (b'IEND', b''),
  )
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(content))
    + name
    + content
    + struct.pack('>I', zlib.crc32(name + content))
    for name, content in chunks
  )


def tiff(values, *, order='<', extra=None, deflate=False, more=()):
  """Returns a TIFF of one strip, with values [h w c] of 8 or 16 bits.

  Args:
    values: The values. Their type gives the number of bits.
    order: '<' for the lower byte first, '>' for the upper byte first.
    extra: Meaning of the channels behind the colours: 0 none, 1 alpha that the
      colours are multiplied by, 2 alpha.
    deflate: Whether the strip is compressed, which libtiff then unpacks.
    more: Further tags, (number, value).
  """
  height, width, channels = values.shape
  strip = values.astype(values.dtype.newbyteorder(order)).tobytes()
  strip = zlib.compress(strip) if deflate else strip
  tags = {
    256: [width],
    257: [height],
    258: [8 * values.itemsize] * channels,
    259: [8 if deflate else 1],
    262: [2],
    273: [400],
    277: [channels],
    278: [height],
    279: [len(strip)],
    **({} if extra is None else {338: extra}),
    **{tag: [value] for tag, value in more},
  }
  directory, long_values = b'', b''
  for tag, numbers in sorted(tags.items()):
    # The type SHORT has 2 bytes, so that two numbers fit into the entry.
    text = struct.pack(f'{order}{len(numbers)}H', *numbers)
    if len(text) > 4:
      place = struct.pack(f'{order}I', 250 + len(long_values))
      long_values += text
    else:
      place = text.ljust(4, b'\0')
    directory += struct.pack(f'{order}HHI', tag, 3, len(numbers)) + place
  head = b'II*\0' if order == '<' else b'MM\0*'
  head += struct.pack(f'{order}IH', 8, len(tags)) + directory
  return head.ljust(250, b'\0') + long_values.ljust(150, b'\0') + strip


def wide_colours():
  """Returns (name, file, values [h w 3]) of images with 16 bits a channel."""
  values = np.random.default_rng(0).integers(0, 65_536, (5, 7, 4), np.uint16)
  values[0, 0] = 0, 1, 256, 65_535
  rgb = values[..., :3]
  yield 'RGB', png_of_16_bits(rgb, 2), rgb
  yield 'RGBA', png_of_16_bits(values, 6), rgb
  yield 'LA', png_of_16_bits(values[..., :2], 4), values[..., [0, 0, 0]]
  for order in '<>':
    for deflate in (False, True):
      name = f'TIFF {order} {"deflate" if deflate else ""}'
      form = dict(order=order, deflate=deflate)
      yield name, tiff(rgb, **form), rgb
      yield f'{name} RGBX', tiff(values, extra=[0], **form), rgb
      yield f'{name} RGBA', tiff(values, extra=[2], **form), rgb
  yield 'PPM', b'P6\n7 5\n65535\n' + rgb.astype('>u2').tobytes(), rgb
  low = rgb >> 4
  yield 'PPM of 12', b'P6\n7 5\n4095\n' + low.astype('>u2').tobytes(), low
  gray = low[..., [0, 0, 0]]
  text = b'P5\n7 5\n4095\n' + gray[..., 0].astype('>u2').tobytes()
  yield 'PGM of 12', text, gray
  buffer = io.BytesIO()
  Image.fromarray(values[..., 0]).save(buffer, 'JPEG2000')
  yield 'JPEG 2000', buffer.getvalue(), values[..., [0, 0, 0]]


@pytest.mark.parametrize(
  ('content', 'values'),
  [pytest.param(*case[1:], id=case[0]) for case in wide_colours()],
)
def test_decode_image_maps_more_than_8_bits_in_colour_too(content, values):
  for low, high in ((0.0, 65_535.0), (0.0, 4_095.0), (1_000.0, 30_000.0)):
    share = (values.astype(np.float64) - low) / (high - low)
    mapped = np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
    options = dict(pixel_range=(low, high))
    assert_array_equal(
      images.decode_image('a', content=content, **options), mapped
    )
    with Image.open(io.BytesIO(content)) as image:
      assert_array_equal(images.convert_image(image, 'a', **options), mapped)
  range_ = rf'from {values.min()} to {values.max()}; .*data\.pixel_range'
  with pytest.raises(errors.InputError, match=f'I09: .*{range_}'):
    images.decode_image('a', content=content)


@pytest.mark.parametrize(
  'content',
  [
    tiff(np.ones((4, 4, 4), np.uint16), extra=[1]),
    tiff(np.ones((4, 4, 3), np.uint16), more=[(284, 2)]),
    b'P3\n1 1\n4095\n1 2 3\n',
  ],
  ids=['multiplied alpha', 'planes', 'text'],
)
def test_decode_image_refuses_wide_colours_that_it_cannot_read(content):
  for range_ in (None, (0.0, 65_535.0)):
    with pytest.raises(errors.InputError, match='I09: .*convert'):
      images.decode_image('a', content=content, pixel_range=range_)


def test_decode_image_takes_16_bits_a_pixel_for_8_bits_a_channel():
  # A BMP whose colours have 5, 6 and 5 bits, of a single red pixel.
  masks = struct.pack('<3I', 0xF800, 0x07E0, 0x001F)
  info = struct.pack('<IiiHHIIiiII', 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0)
  content = b'BM' + struct.pack('<IHHI', 70, 0, 0, 66) + info + masks
  content += struct.pack('<HH', 0xF800, 0)
  for range_ in (None, (0.0, 100.0)):
    pixels = images.decode_image('a', content=content, pixel_range=range_)
    assert_array_equal(pixels, [[[255, 0, 0]]])


@pytest.mark.parametrize('order', ['<', '>'])
def test_look_at_image_names_channels_that_are_not_used(order):
  values = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
  content = tiff(values, extra=[0], order=order)
  assert_array_equal(images.decode_image('a', content=content), values[..., :3])
  facts = image_checks.look_at_image('a', content=content)
  assert not facts.problem
  assert [note[:31] for note in facts.notes] == [
    'I11: a has 1 more channels than'
  ]
  assert (
    image_checks.look_at_image('a', content=tiff(values[..., :3])).notes == ()
  )


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


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_decode_image_refuses_a_small_file_of_very_many_pixels(tmp_path):
  path = tmp_path / 'a.gif'
  size = struct.pack('<HH', 13_000, 13_000)
  head = b'GIF89a' + size + b'\x80\0\0' + bytes(6)
  path.write_bytes(head + b'\x2c' + bytes(4) + size + b'\0\2\1\4\0;')
  with pytest.raises(errors.InputError, match='I12: .*13000x13000.* 34 bytes'):
    images.decode_image(path)


def test_decode_image_reads_a_large_picture_of_one_colour(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(images, '_BOMB_PIXELS', 10_000)
  path = save(tmp_path / 'a.png', np.zeros((100, 100, 3), np.uint8))
  assert not images.decode_image(path).any()
  path = save(tmp_path / 'b.png', np.zeros((2000, 2000, 3), np.uint8))
  assert os.path.getsize(path) * 200 < 2000 * 2000
  with pytest.raises(errors.InputError, match='I12'):
    images.decode_image(path)
  path = save(tmp_path / 'c.png', picture(400, 400))
  assert images.decode_image(path).shape == (400, 400, 3)


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
      os.fspath(p.relative_to(tmp_path))
      for p in image_files.list_images(pattern)
    ]

  assert listed(tmp_path / 'sub/notes.txt') == ['sub/notes.txt']
  assert listed(tmp_path) == ['a.jpg', 'b.PNG', 'sub/c.jpeg']
  assert listed(str(tmp_path / '*')) == ['a.jpg', 'b.PNG']
  assert listed(str(tmp_path / '**/*.jp*')) == ['a.jpg', 'sub/c.jpeg']


def test_list_images_refuses_what_has_none(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'')
  with pytest.raises(errors.InputError, match='I01: there are no images in'):
    image_files.list_images(tmp_path)
  with pytest.raises(errors.InputError, match='I01: there are no images in'):
    image_files.list_images(str(tmp_path / '*.txt'))
  with pytest.raises(errors.InputError, match='I01: there is no file.*a.TXT'):
    image_files.list_images(tmp_path / 'a.TXT')
