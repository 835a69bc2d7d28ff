"""Downloads a file, going on where a connection was cut, and checks it."""

from collections.abc import Iterator
import hashlib
import http.client
import pathlib
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

from absl import logging
from tqdm import tqdm

from maskrcnn_jax import __version__
from maskrcnn_jax.errors import InputError

# Seconds to wait before a new attempt, if the last attempts brought no byte.
# After the last of them the download fails.
WAITS = (1, 2, 4, 8)

_TIMEOUT = 60  # Seconds without a byte after which a connection counts as cut.
_BLOCK = 1 << 20  # Bytes.
# Answers of a server that is overloaded or restarts. Another attempt may help.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class _Interrupted(Exception):
  """The attempt failed in a way that may pass; the text says how."""


def download(address: str, path: pathlib.Path) -> None:
  """Downloads a file.

  The bytes go to PATH.part first. If the connection is cut, the download goes
  on at the first missing byte, also in a later call. On a terminal, a bar shows
  the progress. Proxies are those of the variables `http_proxy`, `https_proxy`
  and `no_proxy`.

  Args:
    address: Address that begins with http:// or https://.
    path: The file to write, in a folder that exists.

  Raises:
    InputError: If the server or a proxy refuses, or cannot be reached.
  """
  part = path.with_name(path.name + '.part')
  logging.info('Downloading %s to %s.', address, path)
  failures = 0
  with tqdm(
    desc=path.name, unit='B', unit_scale=True, unit_divisor=1024, disable=None
  ) as bar:
    while True:
      before = _size(part)
      try:
        _receive(address, part, bar)
        break
      except _Interrupted as error:
        problem = str(error)
      failures = 0 if _size(part) > before else failures
      if failures == len(WAITS):
        raise _failure(address, problem)
      logging.warning(
        '%s: %s; going on at byte %d in %d s.',
        address,
        problem,
        _size(part),
        WAITS[failures],
      )
      time.sleep(WAITS[failures])
      failures += 1
  part.replace(path)


def check(path: pathlib.Path, checksum: str) -> None:
  """Checks that a file has the checksum that its publisher gives.

  A file that has another checksum is removed.

  Args:
    path: The file.
    checksum: 'sha256:' or 'md5:', and the first hex digits. '' checks nothing.

  Raises:
    InputError: If the checksum begins with other digits.
  """
  if not checksum:
    return
  kind, _, digits = checksum.partition(':')
  with path.open('rb') as file:
    found = hashlib.file_digest(
      # MD5 finds damage; it is all that some publishers give.
      file,
      lambda: hashlib.new(kind, usedforsecurity=False),
    ).hexdigest()
  if found.startswith(digits):
    return
  path.unlink()
  raise InputError(
    f'C16: {path} was not the published file: its {kind} is {found}, but its '
    f'publisher says that it begins with {digits}. The file was removed; the '
    'same command downloads it again. If that does not help, a mirror or a '
    'proxy delivers another file.'
  )


def _receive(address: str, part: pathlib.Path, bar: tqdm) -> None:
  """Asks for the missing bytes of a file once, and appends them.

  Args:
    address: The address of the file.
    part: The bytes that are here already; need not exist.
    bar: Shows the number of bytes.

  Raises:
    InputError: If another attempt would not help.
    _Interrupted: If another attempt may help.
  """
  have = _size(part)
  headers = {
    'User-Agent': f'maskrcnn_jax/{__version__}',
    # A server that compresses would make the positions of bytes meaningless.
    'Accept-Encoding': 'identity',
  }
  if have:
    headers['Range'] = f'bytes={have}-'
  request = urllib.request.Request(address, headers=headers)
  try:
    # `urlopen` would keep the proxies that it found at its first call.
    response = urllib.request.build_opener().open(request, timeout=_TIMEOUT)
  except urllib.error.HTTPError as error:
    with error:
      if error.code == 416 and have:
        if error.headers.get('Content-Range') == f'bytes */{have}':
          return
        part.unlink()
        raise _Interrupted('the bytes of an earlier attempt do not fit') from (
          error
        )
      reason = f'the answer is {error.code} {error.reason}'
      if error.code in _PASSING:
        raise _Interrupted(reason) from error
      raise _failure(address, reason) from error
  except (OSError, http.client.HTTPException) as error:
    reason = _reason(error)
    if _may_pass(error):
      raise _Interrupted(reason) from error
    raise _failure(address, reason) from error

  with response:
    total = _total(response, have)
    # A server that knows no ranges sends the file from its beginning.
    is_rest = response.status == 206
    bar.reset(total)
    bar.update(have if is_rest else 0)
    with part.open('ab' if is_rest else 'wb') as file:
      for block in _blocks(response):
        file.write(block)
        bar.update(len(block))
  if total is not None and _size(part) < total:
    raise _Interrupted(
      f'the connection was cut after {_size(part)} of {total} bytes'
    )


def _total(response: http.client.HTTPResponse, have: int) -> int | None:
  """Returns the length of the whole file, `None` if the server does not say.

  Args:
    response: The answer of the server.
    have: Number of bytes that are here already.

  Raises:
    _Interrupted: If the answer begins at another byte than the first missing.
  """
  if response.status == 206:
    match = re.fullmatch(
      r'bytes (\d+)-\d+/(\d+|\*)', response.headers.get('Content-Range', '')
    )
    if match is None or int(match[1]) != have:
      raise _Interrupted('the answer holds other bytes than those asked for')
    return None if match[2] == '*' else int(match[2])
  length = response.headers.get('Content-Length')
  return None if length is None else int(length)


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
  """Yields the bytes of an answer as they arrive.

  Raises:
    _Interrupted: If the connection is cut.
  """
  while True:
    try:
      block = response.read1(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
      raise _Interrupted(_reason(error)) from error
    if not block:
      return
    yield block


def _size(path: pathlib.Path) -> int:
  """Returns the length of a file in bytes, 0 if there is none."""
  return path.stat().st_size if path.is_file() else 0


def _cause(error: Exception) -> object:
  """Returns the error, or the text, that an error of urllib wraps."""
  return error.reason if isinstance(error, urllib.error.URLError) else error


def _reason(error: Exception) -> str:
  """Returns the text of an error of the network in one line."""
  cause = _cause(error)
  return ' '.join(str(cause).split()) or type(cause).__name__


def _may_pass(error: Exception) -> bool:
  """Tells whether another attempt may help after an error of the network.

  It does not help if no program listens, the name of the host is unknown, the
  certificate is wrong, or a proxy refuses a tunnel.
  """
  cause = _cause(error)
  if isinstance(cause, socket.gaierror):
    return cause.errno == socket.EAI_AGAIN
  return not (
    isinstance(cause, ConnectionRefusedError | ssl.SSLCertVerificationError)
    or str(cause).startswith('Tunnel connection failed')
    or isinstance(cause, str)
  )


def _failure(address: str, reason: str) -> InputError:
  """Returns the error that a file cannot be downloaded.

  Args:
    address: The address of the file.
    reason: A clause.
  """
  proxy = _proxy_of(address)
  return InputError(
    f'C15: {address} cannot be downloaded'
    + (f' by way of {proxy}' if proxy else '')
    + f': {reason}. Download it by other means and convert it with python -m '
    'maskrcnn_jax.convert_weights FILE CHECKPOINT, or name a mirror in the '
    'variable MASKRCNN_JAX_MIRROR.'
  )


def _proxy_of(address: str) -> str:
  """Names the proxy that an address is asked through.

  Returns:
    The proxy, without a password, and the variable that names it; '' if there
    is none.
  """
  parts = urllib.parse.urlsplit(address)
  proxy = urllib.request.getproxies().get(parts.scheme)
  if not proxy or urllib.request.proxy_bypass(parts.hostname or ''):
    return ''
  place = proxy.rpartition('@')[2].rpartition('://')[2]
  return f'the proxy {place.rstrip("/")} ({parts.scheme}_proxy)'
