"""The operations of a compiled step that take most of its time."""

import collections
from collections.abc import Callable, Iterable, Iterator
import dataclasses
import heapq
import math
import pathlib
import tempfile
from typing import Any

import jax


def largest_costs(step: Callable[[], None], count: int) -> list[dict[str, Any]]:
  """Profiles a step and returns the operations that took most of its time.

  Args:
    step: Function that runs one step and waits for its end. It is called once.
    count: Number of operations to return.

  Returns:
    For each operation: `operation`, its name in the compiled program; `source`,
    its name in the source code if that is known; `ms`, its own time in
    milliseconds; and `share`, its part of the time of all operations. The
    longest time comes first.
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      step()
    (file,) = pathlib.Path(folder).rglob('*.xplane.pb')
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
  on_gpu = [plane for plane in planes if plane.name.startswith('/device:GPU')]
  spent: dict[str, float] = collections.defaultdict(float)
  sources: dict[str, str] = {}
  for plane in on_gpu or planes:
    for line in plane.lines:
      # A GPU has other lines too, but they repeat the events of its streams.
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
    for name, nanoseconds in heapq.nlargest(
      count, spent.items(), key=lambda item: item[1]
    )
  ]


@dataclasses.dataclass
class _Running:
  """An operation that has started and not yet ended."""

  name: str  # in the compiled program
  source: str  # its name in the source code
  end: float  # in nanoseconds
  own: float  # duration in nanoseconds without the operations inside it


def _own_times(
  events: Iterable[jax.profiler.ProfileEvent],
) -> Iterator[tuple[str, str, float]]:
  """Computes the time that each operation took itself.

  The time of the operations that run inside another operation, such as the
  body of a loop, is subtracted from the time of that operation.

  Args:
    events: The events of one stream or one thread.

  Yields:
    The name of each operation in the compiled program, its name in the source
    code, and its own time in nanoseconds.
  """
  # Each running operation lies inside the one before it.
  running: list[_Running] = []

  def ended(now: float) -> Iterator[tuple[str, str, float]]:
    """Yields and removes the operations that have ended by a time."""
    while running and running[-1].end <= now:
      done = running.pop()
      yield done.name, done.source, max(done.own, 0)

  for event in sorted(events, key=lambda e: (e.start_ns, -e.duration_ns)):
    stats = dict(event.stats)
    name = stats.get('hlo_op')
    if name is None:
      continue
    yield from ended(event.start_ns)
    if running:
      running[-1].own -= event.duration_ns
    source = stats.get('tf_op') or stats.get('name') or event.name
    end = event.start_ns + event.duration_ns
    running.append(_Running(str(name), str(source), end, event.duration_ns))
  yield from ended(math.inf)
