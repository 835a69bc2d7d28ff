"""Finds image files in folders and by patterns."""

import glob
import os
import pathlib

from maskrcnn_jax import errors

Path = str | pathlib.Path

# When a folder is searched, only files with these extensions are images.
EXTENSIONS = frozenset(
  '.apng .avif .bmp .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png'
  ' .pnm .ppm .tif .tiff .webp'.split()
)
# Extensions of pictures that cannot be decoded; the error message tells how to
# convert them.
FOREIGN_EXTENSIONS = frozenset(('.heic', '.heif'))


def list_images(pattern: Path) -> list[pathlib.Path]:
  """Lists the image files that a path or a pattern stands for, sorted.

  Args:
    pattern: A file, which may have any extension; a folder, which is searched
      with its sub-folders; or a glob, in which `**` stands for any sub-folders.
      Only files with an extension in `EXTENSIONS` are taken from a folder or a
      glob.

  Raises:
    InputError: If there is no such file.
  """
  path = pathlib.Path(pattern)
  if path.is_file():
    return [path]
  images = sorted(
    f for f in find_files(pattern) if f.suffix.lower() in EXTENSIONS
  )
  if not images:
    raise errors.InputError(
      f'I01: there are no images in {pattern}; looked for'
      f' {", ".join(sorted(EXTENSIONS))}.'
    )
  return images


def find_files(pattern: Path) -> list[pathlib.Path]:
  """Lists the files, images or not, that a path or a pattern stands for.

  Args:
    pattern: A file, a folder, which is searched with its sub-folders, or a
      glob, in which `**` stands for any sub-folders.

  Raises:
    InputError: If there is no such file or folder.
  """
  path = pathlib.Path(pattern)
  if path.is_file():
    return [path]
  if path.is_dir():
    return [
      pathlib.Path(folder, name)
      for folder, _, names in os.walk(path)
      for name in names
      # A link to a missing file is no file.
      if os.path.isfile(os.path.join(folder, name))
    ]
  found = [pathlib.Path(f) for f in glob.glob(str(pattern), recursive=True)]
  if not found:
    raise errors.InputError(
      f'I01: there is no file, folder or pattern {pattern} to read images'
      f' from{case_hint(path)}.'
    )
  return [file for file in found if file.is_file()]


def case_hint(path: Path) -> str:
  """Returns a hint if a missing file exists in other letter case, otherwise ''.

  For example, the file is a.JPG and the annotations say a.jpg. The hint can be
  added to a message.

  Args:
    path: The missing file.
  """
  path = pathlib.Path(path)
  try:
    names = os.listdir(path.parent)
  except OSError:
    return ''
  for name in names:
    if name != path.name and name.casefold() == path.name.casefold():
      return f' (there is {name}, in other letter case)'
  return ''
