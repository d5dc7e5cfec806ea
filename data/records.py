"""Records out of JSON files: one a line, or one array; plain or .gz; a file, a folder or a glob."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import expand, open_bytes, reading
from .permutation import derive_key

FEW, TENTH = 100, 10


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
            yield where, _object(_json(line, where), where)


def _array(file: Path, raw: bytes) -> Iterator[tuple[str, dict]]:
    for number, record in enumerate(_json(raw, str(file)), start=1):
        where = f"{file}, record {number}"
        yield where, _object(record, where)


def _json(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise UserError(
            f"{where}{line}: broken JSON at column {error.colno}: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON: {error}") from None


def _object(record: Any, where: str) -> dict:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be a JSON object, not {type(record).__name__}")
    return record


def in_validation(number: int, count: int, text: str) -> bool:
    """Whether a record belongs to the validation part: by its hash a tenth of them do, and of
    fewer than 100 the last tenth (at least one)."""
    if count < FEW:
        return number >= min(count - 1, count - count // TENTH)
    return derive_key("split", text) % TENTH == 0
