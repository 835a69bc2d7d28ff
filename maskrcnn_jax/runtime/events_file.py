"""The file of scalars that TensorBoard shows."""

import pathlib
import time

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2


class EventsFile:
  """Writes scalars for TensorBoard.

  tensorboardX's own SummaryWriter hands the scalars to a thread that waits by
  the clock of the machine. If the clock is set back by a month, the thread
  fails, and the training would wait for it for ever. This class writes them at
  once.
  """

  def __init__(self, directory: pathlib.Path | None):
    """Makes a new file.

    Args:
      directory: The folder of the file; `None` writes nothing.
    """
    self._writer = None
    if directory is not None:
      # Without the suffix, a second file in the same second replaces the first.
      self._writer = EventsWriter(
        str(directory / 'events'), filename_suffix=f'.{time.time_ns()}'
      )

  def write(self, scalars: dict[str, float], step: int) -> None:
    """Writes some scalars to the disk.

    Args:
      scalars: {name: number}; a '/' in a name separates the group.
      step: Number of steps done.
    """
    if self._writer is None:
      return
    for name, number in scalars.items():
      self._writer.write_event(
        event_pb2.Event(
          wall_time=time.time(),
          step=step,
          summary=summary.scalar(name, number),
        )
      )
    self._writer.flush()

  def close(self) -> None:
    """Closes the file; calling it again does nothing."""
    if self._writer is not None:
      self._writer.close()
      self._writer = None
