"""The operations of a compiled step that take most of its time."""

import collections
from collections.abc import Callable, Iterable, Iterator
import math
import pathlib
import tempfile
from typing import Any

import jax


def largest_costs(step: Callable[[], None], count: int) -> list[dict[str, Any]]:
  """Profiles a step and returns the operations that took most of its time.

  Args:
    step: Runs one step and waits for its end. It is called once.
    count: Number of operations to return.

  Returns:
    For each operation its name in the compiled program, its name in the source
    if that is known, its time in milliseconds, and its share of the time of
    all operations.
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      step()
    (file,) = pathlib.Path(folder).rglob('*.xplane.pb')
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
  on_gpu = [plane for plane in planes if plane.name.startswith('/device:GPU')]
  spent, sources = collections.Counter(), {}
  for plane in on_gpu or planes:
    for line in plane.lines:
      # The other lines of a GPU repeat the events of its streams.
      if on_gpu and not line.name.startswith('Stream'):
        continue
      for name, source, nanoseconds in _own_times(line.events):
        spent[name] += nanoseconds
        sources[name] = source
  total = sum(spent.values())
  return [
    {
      'operation': name,
      'source': sources[name],
      'ms': nanoseconds / 1e6,
      'share': nanoseconds / total,
    }
    for name, nanoseconds in spent.most_common(count)
  ]


def _own_times(events: Iterable) -> Iterator[tuple[str, str, float]]:
  """Yields (operation, source, own time in nanoseconds) of each operation.

  The own time of an operation is without that of the operations inside it.
  """
  # [end, own time, operation, source]; each lies inside the one before.
  open_ = []

  def close(until):
    while open_ and open_[-1][0] <= until:
      _, own, name, source = open_.pop()
      yield name, source, max(own, 0)

  for event in sorted(events, key=lambda e: (e.start_ns, -e.duration_ns)):
    stats = dict(event.stats)
    name = stats.get('hlo_op')
    if name is None:
      continue
    yield from close(event.start_ns)
    if open_:
      open_[-1][1] -= event.duration_ns
    source = stats.get('tf_op') or stats.get('name') or event.name
    open_.append(
      [event.start_ns + event.duration_ns, event.duration_ns, name, source]
    )
  yield from close(math.inf)
