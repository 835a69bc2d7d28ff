"""A server of files on 127.0.0.1 that can cut connections and refuse."""

import contextlib
import http.server
import re
import threading


class Server:
  """What a server sends and what it was asked for.

  Attributes:
    files: {path: bytes} of the files that it has.
    cuts: For each answer in turn, the number of bytes after which the
      connection is cut. Answers after the last of them are whole.
    statuses: For each answer in turn, an error status that is sent instead.
    knows_ranges: Whether it answers a Range with the rest of the file.
    asked: (method, path, value of the header Range) of each request.
    address: 'http://127.0.0.1:PORT'.
  """

  def __init__(self):
    """Creates a server without files; `serving` starts it."""
    self.files = {}
    self.cuts = []
    self.statuses = []
    self.knows_ranges = True
    self.asked = []
    self.address = ''


@contextlib.contextmanager
def serving():
  """Context manager that runs a server in a thread and yields its `Server`."""
  state = Server()

  class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    def do_GET(self):
      """Sends a file, or the part of it that the client asks for."""
      asked = self.headers.get('Range')
      state.asked.append(('GET', self.path, asked))
      if state.statuses:
        self.send_error(state.statuses.pop(0))
        return
      content = state.files.get(self.path)
      if content is None:
        self.send_error(404)
        return
      match = re.fullmatch(r'bytes=(\d+)-', asked or '')
      if match and state.knows_ranges:
        start = int(match[1])
        if start >= len(content):
          self.send_response(416)
          self.send_header('Content-Range', f'bytes */{len(content)}')
          self.send_header('Content-Length', '0')
          self.end_headers()
          return
        self.send_response(206)
        self.send_header(
          'Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}'
        )
        content = content[start:]
      else:
        self.send_response(200)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      self.wfile.write(content[: state.cuts.pop(0)] if state.cuts else content)

    def do_CONNECT(self):
      """Refuses a tunnel, as a proxy that does not let a client through."""
      state.asked.append(('CONNECT', self.path, None))
      self.send_error(state.statuses.pop(0))

    def log_message(self, *_):
      """Prints nothing."""

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    state.address = f'http://127.0.0.1:{server.server_port}'
    # The argument is the time in seconds that `shutdown` may have to wait.
    thread = threading.Thread(
      target=server.serve_forever, args=(0.01,), daemon=True
    )
    thread.start()
    try:
      yield state
    finally:
      server.shutdown()
      thread.join()
