"""TensorBoard events: what is written can be read, and a full disk does not stop training."""

import errno
import struct

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from aludel.train.events import Events


def read(folder) -> list[Event]:
    """The records of the one file in a folder."""
    (path,) = folder.iterdir()
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack("Q", data[at : at + 8])
        found.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += length + 16
    return found


def test_scalars_come_back_and_a_resumed_run_purges(tmp_path):
    said: list[str] = []
    events = Events(tmp_path / "tensorboard", 7, said.append)
    events.add(8, {"loss_nats": 2.5, "grad_norm": 1.0})
    events.close()
    version, start, scalars = read(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert start.step == 8 and start.session_log.status == 1
    assert scalars.step == 8
    assert {v.tag: v.simple_value for v in scalars.summary.value} == {
        "loss_nats": 2.5,
        "grad_norm": 1.0,
    }
    assert not said


def test_a_full_disk_is_told_once(tmp_path, monkeypatch):
    said: list[str] = []
    events = Events(tmp_path, 0, said.append)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    for step in range(3):
        events.add(step, {"loss_nats": 1.0})
    events.close()
    assert len(said) == 1 and "No space left on device" in said[0] and "\n" not in said[0]
