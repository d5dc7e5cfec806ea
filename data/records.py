"""Records out of JSON files: one a line, or one array; plain or .gz; a file, a folder or a glob."""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import UserError
from .files import expand, json_record, json_value, open_bytes, reading
from .parts import FEW, Split, in_validation

TENTH = 10
Record = TypeVar("Record")


def record_files(path: str) -> list[Path]:
    """The files of records that `path` names; of a folder, those called .json or .jsonl."""
    files = expand(path)
    if not Path(path).expanduser().is_dir():
        return files
    named = [file for file in files if re.search(r"\.jsonl?(\.gz)?$", file.name)]
    if not named:
        raise UserError(f"{path}: no .json or .jsonl file in it")
    return named


def read_records(path: str) -> Iterator[tuple[str, dict]]:
    """(where it stands, record) of every record. Raises UserError where one cannot be read."""
    for file in record_files(path):
        with reading(file), open_bytes(file) as stream:
            yield from _array(file, stream.read()) if _is_array(file) else _lines(file, stream)


def _is_array(file: Path) -> bool:
    with reading(file), open_bytes(file) as stream:
        return stream.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _lines(file: Path, stream) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            where = f"{file}:{number}"
            yield where, json_record(json_value(line, where), where)


def _array(file: Path, raw: bytes) -> Iterator[tuple[str, dict]]:
    for number, record in enumerate(json_value(raw, str(file)), start=1):
        where = f"{file}, record {number}"
        yield where, json_record(record, where)


def part_of(
    found: Sequence[Record], split: Split, text: Callable[[Record], str], path: str
) -> list[Record]:
    """The records of a split: validation is the tenth that the hash of their text chooses, and of
    few records the last tenth (at least one). Raises UserError where there is none."""
    if not found:
        raise UserError(f"{path}: no record in it")
    chosen = [
        one
        for number, one in enumerate(found)
        if split == "all" or (split == "validation") == _held(number, len(found), text(one))
    ]
    if not chosen:
        raise UserError(f"{path}: the {split} part is empty: give two records or more")
    return chosen


def _held(number: int, count: int, text: str) -> bool:
    if count < FEW:
        return number >= min(count - 1, count - count // TENTH)
    return in_validation([text])
