"""Tests of scripts/{download,verify,extract}_dataset.sh with a local server."""

import hashlib
import http.server
import io
import os
import pathlib
import shutil
import subprocess
import threading
import zipfile

import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / 'scripts'

pytestmark = pytest.mark.skipif(not shutil.which('curl'), reason='needs curl')


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves `server.files`; a Range in a request is obeyed.

  An answer ends after `server.longest` bytes, like a connection that is cut.
  """

  def do_GET(self):  # noqa: N802
    """Answers a request for a file, and records it in `server.requests`."""
    content = self.server.files.get(self.path)
    self.server.requests.append((self.path, self.headers.get('Range')))
    if content is None:
      self.send_error(404)
      return
    start = int((self.headers.get('Range') or '=0-')[:-1].split('=')[1] or 0)
    if start >= len(content):
      self.send_error(416)
      return
    self.send_response(206 if start else 200)
    self.send_header('Content-Length', str(len(content) - start))
    if start:
      self.send_header(
        'Content-Range',
        f'bytes {start}-{len(content) - 1}/{len(content)}',
      )
    self.end_headers()
    self.wfile.write(content[start : start + self.server.longest])
    self.close_connection = True

  def log_message(self, *arguments):
    """Logs nothing."""


def zipped(files):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return buffer.getvalue()


@pytest.fixture
def server(tmp_path):
  """Runs a server of a small COCO 2017.

  Its attribute `environment` makes the scripts use this server.
  """
  noise = np.random.default_rng(0).bytes(20_000)
  folders = {
    'zips/train2017.zip': {f'train2017/{i}.jpg': noise[i:] for i in range(3)},
    'zips/val2017.zip': {'val2017/9.jpg': noise},
    'annotations/annotations_trainval2017.zip': {
      f'annotations/{kind}_{split}2017.json': '{}'
      for kind in ('instances', 'captions')
      for split in ('train', 'val')
    },
  }
  files = {'/' + path: zipped(content) for path, content in folders.items()}
  table = tmp_path / 'table.txt'
  table.write_text(
    '# a comment\n'
    + ''.join(
      f'2017 {path} {len(files["/" + path])}'
      f' {hashlib.md5(files["/" + path]).hexdigest()} {folder} {count}\n'
      for path, folder, count in zip(
        folders,
        ('train2017', 'val2017', 'annotations'),
        (3, 1, '-'),
        strict=True,
      )
    )
  )
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    server.files, server.longest, server.requests = files, 10**9, []
    server.table = table
    server.environment = os.environ | {
      'COCO_URL': f'http://127.0.0.1:{server.server_port}',
      'COCO_ARCHIVES': str(table),
      'COCO_ATTEMPTS': '1',
      'no_proxy': '127.0.0.1',
    }
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def run(script, *arguments, server):
  return subprocess.run(
    ['bash', str(SCRIPTS / f'{script}_dataset.sh'), *map(str, arguments)],
    env=server.environment,
    capture_output=True,
    text=True,
  )


def assert_complete(folder):
  assert sorted(str(p.relative_to(folder)) for p in folder.rglob('*.jpg')) == [
    'train2017/0.jpg',
    'train2017/1.jpg',
    'train2017/2.jpg',
    'val2017/9.jpg',
  ]
  assert (folder / 'annotations' / 'instances_train2017.json').is_file()


def test_download_dataset_gives_the_layout_of_coco(server, tmp_path):
  folder = tmp_path / 'with space' / 'coco'
  done = run('download', folder, server=server)
  assert done.returncode == 0, done.stderr
  assert_complete(folder)
  # A second run has nothing to do.
  server.requests.clear()
  assert run('download', folder, server=server).returncode == 0
  assert not server.requests
  # Neither has a run after the archives were deleted.
  for archive in folder.glob('*.zip'):
    archive.unlink()
  assert run('download', folder, '2017', server=server).returncode == 0
  assert not server.requests
  assert run('verify', folder, server=server).returncode == 0


def test_download_dataset_survives_connections_that_are_cut(server, tmp_path):
  server.longest = 9_000
  done = run('download', tmp_path / 'coco', server=server)
  assert done.returncode == 0, done.stderr
  assert_complete(tmp_path / 'coco')
  ranges = [r for path, r in server.requests if path == '/zips/train2017.zip']
  assert ranges[:3] == [None, 'bytes=9000-', 'bytes=18000-']


def test_download_dataset_goes_on_with_what_an_earlier_run_got(
  server, tmp_path
):
  folder = tmp_path / 'coco'
  folder.mkdir()
  content = server.files['/zips/val2017.zip']
  (folder / 'val2017.zip.part').write_bytes(content[:5_000])
  assert run('download', folder, server=server).returncode == 0
  assert ('/zips/val2017.zip', 'bytes=5000-') in server.requests
  assert_complete(folder)


@pytest.mark.parametrize('has_archives', [True, False])
def test_half_unpacked_annotations_are_unpacked_again(
  server, tmp_path, has_archives
):
  folder = tmp_path / 'coco'
  assert run('download', folder, server=server).returncode == 0
  for archive in () if has_archives else folder.glob('*.zip'):
    archive.unlink()
  path = folder / 'annotations' / 'instances_val2017.json'
  whole = path.read_text()
  path.write_text(whole[: len(whole) // 2])
  done = run('download', folder, server=server)
  assert done.returncode == 0, done.stderr
  assert path.read_text() == whole
  # The user may have made the other file, so that it is kept.
  assert (
    path.with_name(path.name + '.old').read_text() == (whole[: len(whole) // 2])
  )
  assert not (folder / '.unpacking').exists()
  assert ('/zips/val2017.zip', None) in server.requests
  assert len(server.requests) == (3 if has_archives else 4)


def test_a_truncated_image_is_unpacked_again(server, tmp_path):
  folder = tmp_path / 'coco'
  assert run('download', folder, server=server).returncode == 0
  path = folder / 'train2017' / '2.jpg'
  whole = path.read_bytes()
  path.write_bytes(whole[:100])
  assert run('download', folder, server=server).returncode == 0
  assert path.read_bytes() == whole
  assert_complete(folder)


def test_an_unpacking_that_was_cut_off_leaves_no_folder(server, tmp_path):
  folder = tmp_path / 'coco'
  (folder / '.unpacking' / 'annotations').mkdir(parents=True)
  (folder / '.unpacking' / 'annotations' / 'a.json').write_text('{')
  assert run('download', folder, server=server).returncode == 0
  assert_complete(folder)
  assert not (folder / 'annotations' / 'a.json').exists()
  assert not (folder / '.unpacking').exists()


def test_download_dataset_gives_up_where_nothing_comes(server, tmp_path):
  del server.files['/zips/val2017.zip']
  done = run('download', tmp_path / 'coco', server=server)
  assert done.returncode == 1
  line = done.stderr.splitlines()[-1]
  assert line.startswith('error: ')
  assert 'val2017.zip gives nothing more' in line
  # The archive that was complete before is kept for the next run.
  assert (tmp_path / 'coco' / 'train2017.zip').is_file()


def test_download_dataset_refuses_a_wrong_checksum(server, tmp_path):
  content = bytearray(server.files['/zips/val2017.zip'])
  content[100] ^= 1
  server.files['/zips/val2017.zip'] = bytes(content)
  done = run('download', tmp_path / 'coco', server=server)
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ')
  assert 'val2017.zip has MD5' in line and 'remove it and download' in line
  assert not list((tmp_path / 'coco').glob('*/'))  # nothing was unpacked


def test_download_dataset_looks_for_room_first(server, tmp_path):
  text = server.table.read_text().splitlines()
  text[1] = '2017 zips/train2017.zip 9000000000000000 0 train2017 3'
  server.table.write_text('\n'.join(text) + '\n')
  done = run('download', tmp_path / 'coco', server=server)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert 'MB free, but COCO 2017 needs 1845' in line
  assert not server.requests


def test_download_dataset_refuses_a_part_that_is_too_long(server, tmp_path):
  folder = tmp_path / 'coco'
  folder.mkdir()
  (folder / 'val2017.zip.part').write_bytes(bytes(99_999))
  done = run('download', folder, server=server)
  assert done.returncode == 1
  assert 'more than the published' in done.stderr.splitlines()[-1]


def test_verify_dataset_names_all_that_is_missing(server, tmp_path):
  folder = tmp_path / 'coco'
  assert run('download', folder, server=server).returncode == 0
  (folder / 'val2017.zip').unlink()
  (folder / 'val2017' / '9.jpg').write_bytes(b'')
  (folder / 'train2017.zip').write_bytes(b'?')
  done = run('verify', folder, server=server)
  assert done.returncode == 1
  first, second = done.stderr.splitlines()
  assert 'train2017.zip has MD5' in first
  assert 'neither' in second and 'val2017' in second


@pytest.mark.parametrize('script', ['download', 'verify', 'extract'])
@pytest.mark.parametrize(
  ('arguments', 'status', 'text'),
  [
    (['--help'], 0, 'bash scripts/'),
    ([], 2, 'bash scripts/'),
    (['a', '2017', 'b'], 2, 'bash scripts/'),
    (['a', '2018'], 2, 'there is no COCO 2018; give 2014 or 2017'),
  ],
)
def test_dataset_scripts_say_how_they_are_run(
  script, arguments, status, text, server
):
  done = run(script, *arguments, server=server)
  assert done.returncode == status
  assert text in done.stdout + done.stderr


def test_the_table_has_both_years_of_coco():
  rows = [
    line.split()
    for line in (SCRIPTS / 'coco_archives.txt').read_text().splitlines()
    if not line.startswith('#')
  ]
  assert [row[0] for row in rows] == ['2017'] * 3 + ['2014'] * 3
  assert all(len(row) == 6 and len(row[3]) == 32 for row in rows)
  assert len({row[3] for row in rows}) == 6
