"""TensorBoard events, written at once and never in the way of training."""

import socket
import time
from collections.abc import Callable
from pathlib import Path


class Events:
    """An events file in a folder; what it holds behind step `begin` of earlier ones is purged.

    Records are written in the caller's thread: tensorboardX's own writer has a thread that dies
    of a full disk and then holds up whoever writes. A file that cannot be written ends with one
    line to `say`, and training goes on.
    """

    def __init__(self, folder: Path, begin: int, say: Callable[[str], None]):
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary, self._say = Event, Summary, say
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._file = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(str(self._path))
        except OSError as error:
            self._give_up(error)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if begin:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=begin + 1, session_log=start))

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Scalars of one step."""
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in figures.items()
        ]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        self._write(event)

    def close(self) -> None:
        """Nothing more follows."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)
            self._file = None

    def _write(self, event) -> None:
        if self._file is None:
            return
        try:
            self._file.write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._file = None
        self._say(f"{self._path}: no more TensorBoard events ({error.strerror or error})")
