"""Files of a run folder: JSON written whole or not at all, and JSON lines that only grow."""

import contextlib
import errno
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..errors import UserError

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class writing:
    """Turns what can go wrong with writing a file into a UserError."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, OSError):
            advice = "; make room and run the same command again" if error.errno in FULL else ""
            reason = error.strerror or error
            raise UserError(f"{self.path}: cannot be written: {reason}{advice}") from None


def write_text(path: Path, text: str) -> None:
    """Replace a file by a new one, atomically, whoever else does."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    with writing(path):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def final_name(name: str) -> str:
    """Of a file that `write_text` left unfinished the name that it was to get; else its own."""
    found = re.fullmatch(r"\.(.+?)(\.[0-9a-f]{8})?\.new", name)
    return found[1] if found else name


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file, atomically; numbers that JSON lacks become null."""
    write_text(path, json.dumps(clean(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file's value. Raises UserError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def clean(value: Any) -> Any:
    """JSON values: float32 in the fewest digits that give it back, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(name): clean(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(one) for one in value]
    if isinstance(value, (np.floating, np.ndarray)):
        value = float(str(np.float32(value)))
    if isinstance(value, np.integer):
        return int(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Lines:
    """A file of JSON objects, one a line, each with a `step`.

    kept: where not, nothing is written and nothing read: of several processes one keeps the file.
    """

    def __init__(self, path: Path, kept: bool = True):
        self.path, self._kept = path, kept
        self._file: TextIO | None = None

    def append(self, record: dict) -> None:
        """Add a line; it lies on disk after `sync`."""
        if not self._kept:
            return
        with writing(self.path):
            if self._file is None:
                self._file = open(self.path, "a", encoding="utf-8")
            self._file.write(json.dumps(clean(record), ensure_ascii=False) + "\n")

    def sync(self) -> None:
        """Force what was added onto the disk."""
        with writing(self.path):
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what could not be written was told when it was tried."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def flush(self) -> None:
        """Let other programs see what was added."""
        with writing(self.path):
            if self._file is not None:
                self._file.flush()

    def cut(self, step: int) -> None:
        """Keep the lines up to a step; a partial last line goes as well."""
        kept = [line for line, record in self._whole() if record["step"] <= step]
        if self._kept and self.path.exists():
            write_text(self.path, "".join(kept))

    def amend(self, step: int, figures: dict) -> None:
        """Add figures to the line of a step, which is made where there is none."""
        if not self._kept:
            return
        self.close()
        records = {record["step"]: record for record in self.read()}
        records[step] = {"step": step, **records.get(step, {}), **clean(figures)}
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records.values()]
        write_text(self.path, "".join(lines))

    def read(self) -> list[dict]:
        """The records; a partial last line is left out."""
        return [record for _, record in self._whole()]

    def _whole(self) -> Iterator[tuple[str, dict]]:
        if not self._kept or not self.path.exists():
            return
        with open(self.path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if line.endswith("\n") and isinstance(record, dict) and "step" in record:
                    yield line, record
