"""Tests of the choice of a font for a label."""

import pathlib
import shutil

from absl import logging
from PIL import Image, ImageDraw
import pytest

from maskrcnn_jax.drawing import fonts
from maskrcnn_jax.errors import InputError

# A font with Polish and Arabic letters, but without Chinese ones. It comes with
# most systems.
DEJAVU = pathlib.Path('/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf')

needs_dejavu = pytest.mark.skipif(
  not DEJAVU.exists(), reason='needs the fonts DejaVu'
)


@pytest.fixture
def system_fonts(tmp_path, monkeypatch):
  """Pretends that the fonts of this system are those of an empty folder.

  Returns:
    The folder.
  """
  folder = tmp_path / 'fonts'
  folder.mkdir()
  monkeypatch.setattr(fonts, '_font_folders', lambda: [folder])
  monkeypatch.setattr(fonts, '_named', set())
  caches = (fonts._font_files, fonts._choose)
  for cache in caches:
    cache.cache_clear()
  yield folder
  for cache in caches:
    cache.cache_clear()


@pytest.fixture
def warnings(monkeypatch):
  """Returns the list of the lines that are logged as warnings."""
  lines = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *args: lines.append(text % args)
  )
  return lines


def test_choose_font_takes_pillows_own_font_for_ascii(system_fonts):
  assert fonts.choose_font('cat: 0.5') == ('cat: 0.5', None)


@needs_dejavu
@pytest.mark.parametrize(
  'name',
  ['zażółć gęślą jaźń', 'مشبك جراحي', 'crème', 'zaz\u0307o\u0301łc\u0301'],
)
def test_choose_font_finds_a_font_of_the_system(system_fonts, name):
  (system_fonts / 'damaged.ttf').write_bytes(b'no font')
  (system_fonts / 'sub').mkdir()
  shutil.copy(DEJAVU, system_fonts / 'sub' / 'font.ttf')
  text, path = fonts.choose_font(name)
  assert path == str(system_fonts / 'sub' / 'font.ttf')
  assert '?' not in text
  # Each letter is drawn as itself: the picture differs from that of a name
  # whose letters the font lacks.
  pictures = []
  for shown in (text, '手' * len(text)):
    picture = Image.new('L', (400, 40))
    ImageDraw.Draw(picture).text(
      (5, 5), shown, fill=255, font=fonts.open_font(path, 20)
    )
    pictures.append(picture.tobytes())
  assert pictures[0] != pictures[1]
  assert any(pictures[0])


@needs_dejavu
def test_missing_agrees_with_the_table_of_a_font():
  # DejaVu Sans 2.37 has these characters, and not those.
  assert not fonts._missing(str(DEJAVU), 'aZ09żأعΩЖ€ \u200d')
  assert fonts._missing(str(DEJAVU), 'a手b鉗नé') == set('手鉗न')


def test_a_name_that_no_font_has_is_spelled_in_ascii_with_one_warning(
  system_fonts, warnings
):
  names = ['crème', '手术钳', '手', 'cat']
  assert fonts.choose_font('crème 手') == ('creme ?', None)
  fonts.warn_of_missing(names, '')
  fonts.warn_of_missing(names, '')
  (line,) = warnings
  assert 'crème and 2 more' in line
  assert all(c in line for c in 'è手术钳')
  assert '--config.predict.font=FILE' in line


@needs_dejavu
def test_choose_font_takes_the_font_of_the_user(system_fonts, tmp_path):
  mine = tmp_path / 'mine.ttf'
  shutil.copy(DEJAVU, mine)
  assert fonts.choose_font('cat', str(mine)) == ('cat', str(mine))
  assert fonts.choose_font('żuk', str(mine)) == ('żuk', str(mine))
  assert fonts.choose_font('手 żuk', str(mine)) == ('? żuk', str(mine))


def test_open_font_refuses_a_file_that_is_no_font(tmp_path):
  (tmp_path / 'a.ttf').write_bytes(b'no font')
  for name in ('a.ttf', 'none.ttf'):
    with pytest.raises(InputError, match=f'C05: --config.predict.font.*{name}'):
      fonts.open_font(str(tmp_path / name), 12)


def test_a_name_in_two_lines_is_one_line(system_fonts):
  assert fonts.choose_font('a\nb\x1b[1m') == ('a?b?[1m', None)


@needs_dejavu
def test_arabic_letters_are_joined():
  # At the beginning of a word, the letter mim is narrower than alone. Pillow
  # needs the library RAQM to know that.
  font = fonts.open_font(str(DEJAVU), 40)
  assert font.getlength('ممم') < 3 * font.getlength('م')
