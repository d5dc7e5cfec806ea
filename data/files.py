"""Documents out of text and JSON-lines files: plain or .gz, one file, a folder or a glob."""

import glob
import gzip
import json
import zlib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ..errors import UserError

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class ReadOptions:
    """How records become text."""

    text_field: str = "text"
    """The field of a record (jsonl, tfds) that holds its text."""
    decode_errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: refuse them, or put U+FFFD in their place and count them."""


DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class Document:
    """One text, and where it came from."""

    text: str
    where: str
    """File, file:line or data set[record]."""
    start: int = 0
    """Characters of the original before `text`, where a split cut it."""
    replaced: int = 0
    """Undecodable pieces that became U+FFFD."""
    begins: bool = True
    """False where it goes on from the one before: a long file is read in parts."""


def nearest(name: str, known) -> str:
    """ "; did you mean 'x'?" when something known is close to `name`, else the known names."""
    known = [str(one) for one in known]
    close = get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known)[:12])}" if known else ""


def expand(path: str) -> list[Path]:
    """The files that `path` (file, folder, glob) names, sorted; empty ones are left out.

    A folder is read recursively without what is hidden (a name that begins with a dot).
    Raises UserError where there is no file, or none with anything in it.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        files = [
            file
            for file in root.rglob("*")
            if file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(root).parts)
        ]
    elif root.exists():
        files = [root]
    elif glob.has_magic(path):
        files = [Path(name) for name in glob.glob(str(root), recursive=True)]
        files = [file for file in files if file.is_file()]
    else:
        raise UserError(f"{path}: no such file or folder")
    if not files:
        raise UserError(f"{path}: no file in it" if root.is_dir() else f"{path}: matches no file")
    filled = [file for file in sorted(files) if file.stat().st_size]
    if not filled:
        raise UserError(f"{path}: empty{', every file in it' if len(files) > 1 else ''}")
    return filled


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def decode(raw: bytes, where: str, options: ReadOptions, offset: int = 0) -> tuple[str, int]:
    """The text of UTF-8 bytes and the number of replaced pieces; `offset` is that of raw[0]."""
    try:
        return raw.decode("utf-8"), 0
    except UnicodeDecodeError as error:
        if options.decode_errors == "strict":
            raise UserError(
                f"{where}: byte {offset + error.start} (0x{raw[error.start]:02x}) is not UTF-8; "
                "mend the file, or pass --decode-errors replace to replace and count such bytes"
            ) from None
    text = raw.decode("utf-8", "replace")
    return text, text.count(REPLACEMENT) - raw.count(REPLACEMENT.encode())


def json_text(line: str, where: str, options: ReadOptions) -> tuple[str, int]:
    """The text of a line of JSON, and the number of replaced pieces."""
    return record_text(json_record(json_value(line, where), where), where, options)


def json_value(raw: str | bytes, where: str) -> Any:
    """What JSON says. Raises UserError where it is broken."""
    try:
        return json.loads(raw.rstrip())  # without the line's end: it would count as another
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error)
        column, line = getattr(error, "colno", 1), getattr(error, "lineno", 1)
        place = f", line {line}" if line > 1 else ""
        raise UserError(f"{where}{place}: broken JSON at column {column}: {reason}") from None


def json_record(value: Any, where: str) -> dict:
    """A value that must be an object."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: a record must be a JSON object, not {type(value).__name__}")
    return value


def record_text(record: dict, where: str, options: ReadOptions) -> tuple[str, int]:
    """The text field of a record (str or UTF-8 bytes), and the number of replaced pieces."""
    field = options.text_field
    if field not in record:
        raise UserError(f"{where}: no field {field!r}{nearest(field, record)}")
    text = record[field]
    if isinstance(text, bytes):
        return decode(text, f"{where}, field {field!r}", options)
    if not isinstance(text, str):
        kind = type(text).__name__
        raise UserError(f"{where}: field {field!r} must be a string, not {kind}")
    try:  # JSON can spell half a surrogate pair, which is not Unicode text
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if options.decode_errors == "strict":
            raise UserError(
                f"{where}: field {field!r} holds a lone surrogate at character {error.start}; "
                "mend it, or pass --decode-errors replace to replace and count such characters"
            ) from None
        mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return mended, mended.count(REPLACEMENT) - text.count(REPLACEMENT)
    return text, 0


class reading:
    """Turns what can go wrong with a file into a UserError."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, (gzip.BadGzipFile, EOFError, zlib.error)):
            raise UserError(f"{self.path}: damaged .gz file: {error}") from None
        if isinstance(error, OSError):
            raise UserError(f"{self.path}: cannot be read: {error.strerror or error}") from None
