"""The operations of a compiled step that take most of its time."""

import collections
from collections.abc import Callable, Iterable, Iterator
import dataclasses
import heapq
import math
import pathlib
import shutil
import tempfile
from typing import Any

import jax


def largest_costs(
  step: Callable[[], None], count: int, *, folder: pathlib.Path | None = None
) -> list[dict[str, Any]]:
  """Profiles a step and returns the operations that took most of its time.

  Args:
    step: Function that runs one step and waits for its end. It is called once.
    count: Number of operations to return.
    folder: Folder that keeps the profile, for TensorBoard or ui.perfetto.dev.
      `None` keeps it nowhere.

  Returns:
    For each operation: `operation`, its name in the compiled program; `source`,
    the path of the JAX operation that it comes from, such as
    'jit(step)/jvp/dot_general', or the name of the profiler's event if the
    profiler gives no path; `ms`, its time in milliseconds, without the
    operations that run inside it; and `share`, its part of the time of all
    operations, in [0, 1]. The longest time comes first.
  """
  with tempfile.TemporaryDirectory() as temporary:
    with jax.profiler.trace(temporary, create_perfetto_trace=bool(folder)):
      step()
    (file,) = pathlib.Path(temporary).rglob('*.xplane.pb')
    if folder:
      shutil.copytree(temporary, folder, dirs_exist_ok=True)
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
  source: str  # path of the JAX operation that it comes from, if known
  end: float  # in nanoseconds
  own: float  # duration in nanoseconds without the operations inside it


def _own_times(
  events: Iterable[jax.profiler.ProfileEvent],
) -> Iterator[tuple[str, str, float]]:
  """Computes for each run of an operation the time that it took itself.

  The time of the operations that run inside another operation, such as the
  body of a loop, is subtracted from the time of that operation.

  Args:
    events: The events of one stream or one thread, in any order. Events that
      are no operation of a compiled program are skipped.

  Yields:
    For each run: the name of the operation in the compiled program; the path of
    the JAX operation that it comes from, or the name of the event if the
    profiler gives no path; and its own time in nanoseconds. An operation that
    runs several times is yielded as many times.
  """
  # Each running operation lies inside the one before it.
  running: list[_Running] = []

  def ended(now: float) -> Iterator[tuple[str, str, float]]:
    """Yields the operations that have ended by `now`, in ns; removes them."""
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
