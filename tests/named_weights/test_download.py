"""Tests of downloading from a server on the loopback interface."""

import hashlib
import socket
import time

from loopback import serving
import numpy as np
import pytest

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.named_weights import download as module
from maskrcnn_jax.named_weights.download import check, download

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(autouse=True)
def plain_network(monkeypatch):
  """Removes the proxies of this machine, and the waits between attempts."""
  for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(name.upper(), raising=False)
  monkeypatch.setattr(module, 'WAITS', (0, 0, 0, 0))


@pytest.fixture
def server():
  """A running server with the file /file."""
  with serving() as state:
    state.files['/file'] = CONTENT
    yield state


def test_a_whole_file_arrives(server, tmp_path):
  download(f'{server.address}/file', tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT
  assert [path.name for path in tmp_path.iterdir()] == ['file']
  assert server.asked == [('GET', '/file', None)]


def test_a_cut_connection_goes_on_at_the_missing_byte(server, tmp_path):
  server.cuts = [100_000, 50_000]
  download(f'{server.address}/file', tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT
  assert [asked[2] for asked in server.asked] == [
    None,
    'bytes=100000-',
    'bytes=150000-',
  ]


def test_a_later_call_goes_on_with_the_bytes_of_an_earlier_one(
  server, tmp_path
):
  server.cuts = [70_000, 0, 0, 0, 0, 0]
  with pytest.raises(InputError, match='cut after 70000 of 300000 bytes'):
    download(f'{server.address}/file', tmp_path / 'file')
  assert not (tmp_path / 'file').exists()
  server.asked.clear()
  server.cuts.clear()
  download(f'{server.address}/file', tmp_path / 'file')
  assert server.asked == [('GET', '/file', 'bytes=70000-')]
  assert (tmp_path / 'file').read_bytes() == CONTENT


def test_progress_renews_the_attempts(server, tmp_path):
  # Nine attempts bring some bytes each; four in a row may bring none.
  server.cuts = [10_000] * 9
  download(f'{server.address}/file', tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server, tmp_path):
  server.knows_ranges = False
  server.cuts = [100_000]
  download(f'{server.address}/file', tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT
  assert server.asked[-1] == ('GET', '/file', 'bytes=100000-')


@pytest.mark.parametrize(('extra', 'requests'), [(0, 1), (5, 2)])
def test_bytes_that_are_all_here_are_not_asked_for_again(
  server, tmp_path, extra, requests
):
  # The file is complete, but was not renamed; or it is too long.
  (tmp_path / 'file.part').write_bytes(CONTENT + bytes(extra))
  download(f'{server.address}/file', tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT
  assert len(server.asked) == requests


def test_a_server_that_restarts_is_asked_again(server, tmp_path):
  server.statuses = [503, 500, 429]
  download(f'{server.address}/file', tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT


def test_a_missing_file_is_named_at_once(server, tmp_path):
  with pytest.raises(InputError) as error:
    download(f'{server.address}/none', tmp_path / 'none')
  text = str(error.value)
  assert text.startswith(f'C15: {server.address}/none cannot be downloaded: ')
  assert 'the answer is 404 Not Found' in text
  assert 'convert_weights FILE CHECKPOINT' in text
  assert 'MASKRCNN_JAX_MIRROR' in text
  assert '\n' not in text
  assert len(server.asked) == 1


def unused_port():
  """Returns a port on which no program listens."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def test_a_server_that_is_not_there_is_named_without_waiting(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(module, 'WAITS', (60,))
  start = time.monotonic()
  address = f'http://127.0.0.1:{unused_port()}/file'
  with pytest.raises(InputError, match='C15: .*[Rr]efused'):
    download(address, tmp_path / 'file')
  assert time.monotonic() - start < 30


def test_an_unknown_host_is_named(tmp_path, monkeypatch):
  def getaddrinfo(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

  monkeypatch.setattr(socket, 'getaddrinfo', getaddrinfo)
  with pytest.raises(InputError, match='C15: http://no.example/f .*not known'):
    download('http://no.example/f', tmp_path / 'f')


@pytest.mark.parametrize('status', [403, 407])
@pytest.mark.parametrize('scheme', ['http', 'https'])
def test_a_proxy_that_refuses_is_named_without_its_password(
  server, tmp_path, monkeypatch, scheme, status
):
  # The proxy is the server: it gets the whole address, or is asked for a
  # tunnel.
  port = server.address.rpartition(':')[2]
  monkeypatch.setenv(f'{scheme}_proxy', f'http://me:secret@127.0.0.1:{port}/')
  server.statuses = [status]
  with pytest.raises(InputError) as error:
    download(f'{scheme}://weights.example/file', tmp_path / 'file')
  text = str(error.value)
  assert (
    f'C15: {scheme}://weights.example/file cannot be downloaded by way of the '
    f'proxy 127.0.0.1:{port} ({scheme}_proxy): '
  ) in text
  assert str(status) in text
  assert 'secret' not in text
  (asked,) = server.asked
  assert asked[:2] == (
    ('GET', 'http://weights.example/file')
    if scheme == 'http'
    else ('CONNECT', 'weights.example:443')
  )


def test_a_proxy_that_is_not_there_is_named(tmp_path, monkeypatch):
  port = unused_port()
  monkeypatch.setenv('http_proxy', f'http://127.0.0.1:{port}')
  with pytest.raises(InputError, match=rf'proxy 127.0.0.1:{port} \(http_proxy'):
    download('http://weights.example/file', tmp_path / 'file')


def test_a_proxy_lets_a_file_through(server, tmp_path, monkeypatch):
  monkeypatch.setenv('http_proxy', server.address)
  server.files['http://weights.example/file'] = CONTENT
  server.cuts = [1000]
  download('http://weights.example/file', tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT


@pytest.mark.parametrize('kind', ['sha256', 'md5'])
def test_check_accepts_the_first_digits_of_the_checksum(tmp_path, kind):
  path = tmp_path / 'file'
  path.write_bytes(CONTENT)
  digits = hashlib.new(kind, CONTENT).hexdigest()
  check(path, f'{kind}:{digits[:6]}')
  check(path, f'{kind}:{digits}')
  check(path, '')
  assert path.exists()


@pytest.mark.parametrize('kind', ['sha256', 'md5'])
def test_check_refuses_and_removes_another_file(tmp_path, kind):
  path = tmp_path / 'file'
  path.write_bytes(CONTENT[:-1] + b'x')
  right = hashlib.new(kind, CONTENT).hexdigest()
  wrong = hashlib.new(kind, path.read_bytes()).hexdigest()
  with pytest.raises(InputError, match='C16: ') as error:
    check(path, f'{kind}:{right[:8]}')
  assert wrong in str(error.value)
  assert f'begins with {right[:8]}' in str(error.value)
  assert not path.exists()
