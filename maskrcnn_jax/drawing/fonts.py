"""Finds a font that has the characters of a label.

Pillow's own font has ASCII only, and no well-kept Python package has a font for
Chinese. Most systems have fonts, so these are searched.
"""

from collections.abc import Iterable, Iterator
import functools
import os
import pathlib
import sys
import threading
import unicodedata

from absl import logging
from PIL import ImageFont

from maskrcnn_jax.errors import InputError

# Characters without a glyph of their own, which join or separate the letters
# next to them in Arabic, Persian and the scripts of India.
_JOINERS = '\u200c\u200d'

# Characters of a text that are drawn. A name may have millions.
_MAX_TEXT = 300

# Text that every label has besides the name of a class.
_SCORE = '0123456789.:, '

# Fonts with these words in their name are tried last, because they are harder
# to read in a small label.
_SPECIAL = (
  'bold italic oblique light thin black mono serif condensed math symbol emoji'
).split()

# The search of one thread is enough for all.
_lock = threading.Lock()


def choose_font(text: str, font_file: str = '') -> tuple[str, str | None]:
  """Chooses a font for a text.

  Args:
    text: The text.
    font_file: A font file of the user, which is taken if it has all characters
      of the text. '' if there is none.

  Returns:
    The text as it can be drawn, and the file of a font, `None` for Pillow's own
    font. If no font has a character, its accent is dropped or, if that does not
    help, it becomes '?'.
  """
  text, path, _ = _find(text, font_file)
  return text, path


def warn_of_missing(texts: Iterable[str], font_file: str) -> None:
  """Logs which characters of texts no font has, each character only once.

  Args:
    texts: The texts, such as the names of the classes.
    font_file: As for `choose_font`.
  """
  found = {text: _find(text, font_file)[2] - _named for text in texts}
  bad = [text for text, missing in found.items() if missing]
  if not bad:
    return
  new = set().union(*found.values())
  _named.update(new)
  characters = ''.join(sorted(new))
  logging.warning(
    'No font of this machine has all characters of the class name %s%s. %s are '
    'drawn without their accents or as "?". Give a font that has them, such as '
    'one of the Noto fonts: --config.predict.font=FILE',
    bad[0],
    f' and {len(bad) - 1} more' if len(bad) > 1 else '',
    characters if len(characters) < 60 else f'{characters[:60]}...',
  )


def _find(text: str, font_file: str) -> tuple[str, str | None, frozenset[str]]:
  """Does the work of `choose_font`; also returns the missing characters."""
  text = ''.join(
    c if c.isprintable() or c in _JOINERS else '?'
    for c in unicodedata.normalize('NFC', text[:_MAX_TEXT])
  )
  if text.isascii() and not font_file:
    return text, None, frozenset()
  with _lock:
    return _choose(text, font_file)


def open_font(font_file: str | None, size: int) -> ImageFont.FreeTypeFont:
  """Opens a font.

  Args:
    font_file: The file; `None` for Pillow's own font.
    size: Height of the font, in pixels.

  Raises:
    InputError: If the file cannot be read.
  """
  if font_file is None:
    font = ImageFont.load_default(size)
    # load_default returns this type whenever it gets a size.
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
  try:
    return ImageFont.truetype(font_file, size)
  except OSError as error:
    raise InputError(
      f'C05: --config.predict.font={font_file} cannot be read ({error}); give '
      'a font file, such as FONT.ttf or FONT.otf.'
    ) from error


@functools.cache
def _choose(
  text: str, font_file: str
) -> tuple[str, str | None, frozenset[str]]:
  """Does the work of `_find`; its text can be printed."""
  fewest, best = None, None
  for path in _candidates(font_file):
    missing = _missing(path, text + _SCORE)
    if fewest is None or len(missing) < len(fewest):
      fewest, best = missing, path
    if not missing:
      # Other names are probably in the same script.
      if path is not None and path in _font_files():
        _font_files().remove(path)
        _font_files().insert(0, path)
      return text, path, frozenset()
  assert fewest is not None  # Pillow's own font is a candidate.
  text = ''.join(_without_accent(c) if c in fewest else c for c in text)
  return text, best, frozenset(fewest)


# The characters that a warning has named.
_named: set[str] = set()


def _candidates(font_file: str) -> Iterator[str | None]:
  """Yields the fonts to try in their order; `None` is Pillow's own font."""
  if font_file:
    yield font_file
  yield None
  yield from list(_font_files())


def _without_accent(character: str) -> str:
  """Returns a letter of ASCII for a letter with an accent, otherwise '?'."""
  plain = unicodedata.normalize('NFKD', character)
  plain = ''.join(c for c in plain if not unicodedata.combining(c))
  return plain if plain and plain.isascii() and plain.isprintable() else '?'


def _missing(font_file: str | None, text: str) -> set[str]:
  """Returns the characters of a text that a font has no glyph for.

  A missing character is drawn like one that no font has, such as U+FFFF, or it
  is invisible. Spaces and joiners are never missing. If the file cannot be
  opened, all characters are missing.
  """
  characters = {c for c in text if not c.isspace() and c not in _JOINERS}
  if font_file is None:
    return {c for c in characters if not c.isascii()}
  try:
    font = ImageFont.truetype(
      font_file, 24, layout_engine=ImageFont.Layout.BASIC
    )
    unknown = font.getmask('\uffff')
    signs = {c: font.getmask(c) for c in characters}
  except OSError:  # It is damaged, or a font of bitmaps in another size.
    return characters
  return {
    c
    for c, sign in signs.items()
    if sign.getbbox() is None
    or (sign.size == unknown.size and bytes(sign) == bytes(unknown))
  }


@functools.cache
def _font_files() -> list[str]:
  """Lists the font files of this system, those that are easiest to read first.

  The list is searched once; `_choose` changes its order.
  """
  files = [
    os.path.join(folder, name)
    for top in _font_folders()
    for folder, _, names in os.walk(top)
    for name in names
    if name.lower().endswith(('.ttf', '.ttc', '.otf', '.otc'))
  ]

  def rank(path: str) -> tuple[int, str]:
    """Returns the place of a font file in the order of the search."""
    name = os.path.basename(path).lower()
    return sum(word in name for word in _SPECIAL), name

  return sorted(files, key=rank)


def _font_folders() -> list[pathlib.Path]:
  """Returns the folders in which this system and this user keep fonts."""
  home = pathlib.Path.home()
  if sys.platform == 'darwin':
    return [
      pathlib.Path('/System/Library/Fonts'),
      pathlib.Path('/Library/Fonts'),
      home / 'Library/Fonts',
    ]
  data = os.environ.get('XDG_DATA_HOME') or home / '.local/share'
  return [
    pathlib.Path('/usr/share/fonts'),
    pathlib.Path('/usr/local/share/fonts'),
    pathlib.Path(data) / 'fonts',
    home / '.fonts',
  ]
