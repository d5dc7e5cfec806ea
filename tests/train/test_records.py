"""Files of a run folder: each step stands once, half a line is no line, figures are exact."""

import json

import numpy as np
import pytest

from aludel.errors import UserError
from aludel.train.records import Lines, clean, read_json, write_json


def steps(lines: Lines) -> list[int]:
    return [record["step"] for record in lines.read()]


@pytest.fixture
def lines(tmp_path) -> Lines:
    lines = Lines(tmp_path / "metrics.jsonl")
    for step in range(5):
        lines.append({"step": step, "loss_nats": np.float32(0.1) * step})
    lines.sync()
    return lines


def test_cut_keeps_what_lies_before_a_checkpoint(lines):
    lines.close()
    with open(lines.path, "a") as file:
        file.write('{"step": 5, "loss_na')  # the process was killed here
    assert steps(lines) == [0, 1, 2, 3, 4]
    lines.cut(3)
    lines.append({"step": 4})
    lines.close()
    assert steps(lines) == [0, 1, 2, 3, 4]
    assert all(json.loads(line) for line in lines.path.read_text().splitlines())
    lines.cut(-1)
    assert lines.path.read_text() == ""


def test_cut_of_no_file_makes_none(tmp_path):
    Lines(tmp_path / "none.jsonl").cut(3)
    assert not (tmp_path / "none.jsonl").exists()


def test_amend_adds_to_the_line_of_a_step(lines):
    lines.amend(2, {"val_nats_per_token": 1.5})
    lines.amend(9, {"val_nats_per_token": 1.0})
    assert steps(lines) == [0, 1, 2, 3, 4, 9]
    assert lines.read()[2] == {"step": 2, "loss_nats": 0.2, "val_nats_per_token": 1.5}


@pytest.mark.parametrize("bits", [0x3F9D70A4, 0x00000001, 0x7F7FFFFF, 0x80000000])
def test_float32_comes_back_bit_for_bit(bits):
    value = np.uint32(bits).view(np.float32)
    back = np.float32(json.loads(json.dumps(clean(value))))
    assert back.view(np.uint32) == bits


def test_what_json_lacks_becomes_null():
    values = {"a": np.float32("nan"), "b": [float("inf"), 1], "c": np.int32(3), "d": (1.5,)}
    assert clean(values) == {"a": None, "b": [None, 1], "c": 3, "d": [1.5]}


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2} and [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_errors_name_the_file(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="bad.json: not JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match="none.json: cannot be read"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="gone/a.json: cannot be written"):
        write_json(tmp_path / "gone" / "a.json", {})
    lines = Lines(tmp_path / "gone" / "b.jsonl")
    with pytest.raises(UserError, match="b.jsonl: cannot be written"):
        lines.append({"step": 1})
