"""Where files may be cut: extents of about 32 MB, which are read, hashed and tokenised alone.

A file is cut at the first place after each multiple of `size` where a line ends (jsonl) or
where GPT-2's pattern ends a word (text). So an extent is found without reading what is before it,
and those of a file that has grown stay where they were. What was found of a file is kept in the
cache for as long as the file is untouched.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

from . import files
from .files import ReadOptions, decode, reading
from .pieces import WORD_END
from .workers import Workers, cores

FORMAT = 1
SIZE = 1 << 25
"""Bytes of an extent, and of the source text of a shard."""
BLOCK = 1 << 20
"""Bytes read at once."""
LOOK = 1 << 20
"""Bytes after a multiple of the size in which a cut is looked for (or half the size, if that is
less); where there is none the extent goes on to the next multiple."""
ALONE = 1 << 27
"""Bytes of source up to which other processes would not pay."""
RACY = 2_000_000_000
"""Nanoseconds: a file younger than that when it was read may change without showing it."""

Cut = Callable[[bytes, int], int]
"""(buffer, at) -> the first index > at where the buffer may be cut, or -1."""


class Extent(NamedTuple):
    """Bytes [begin, end) of a file (unpacked, where it is a .gz)."""

    begin: int
    end: int
    lines: int
    """Line ends in it."""
    characters: int
    """Characters in it (text; 0 for jsonl)."""
    digest: str
    """sha256 of its bytes."""


def after_line(buffer: bytes, at: int) -> int:
    """A `Cut` after a line's end."""
    found = buffer.find(b"\n", at)
    return found + 1 if found >= 0 else -1


def after_word(buffer: bytes, at: int) -> int:
    """A `Cut` where no word of GPT-2's pattern is cut, nor a character."""
    begin = between_characters(buffer, at)
    # Bytes that are not UTF-8 become one code point each and come back.
    text = buffer[begin:].decode("utf-8", "surrogateescape")
    found = WORD_END.search(text)
    if found is None:
        return -1
    return begin + len(text[: found.end()].encode("utf-8", "surrogateescape"))


def between_characters(buffer: bytes, at: int) -> int:
    """The first index >= at that is in no UTF-8 character (one has three more bytes at most)."""
    for index in range(at, min(at + 3, len(buffer))):
        if buffer[index] & 0xC0 != 0x80:
            return index
    return min(at + 3, len(buffer))


class Reader:
    """A file read forwards from `at`, to be cut at chosen places."""

    def __init__(self, file: BinaryIO, at: int, end: int | None = None):
        self.at = at
        self._file, self._end, self._buffer = file, end, b""

    def find(self, where: int, cut: Cut, look: int | None = None) -> int | None:
        """Offset of the first cut after `where` >= `at`, or the file's end; None where there is
        neither in `look` bytes. What is found depends on no byte before `where`."""
        window = 4096
        while True:
            window = window if look is None else min(window, look)
            until = where - self.at + window
            ends = self._fill(until)
            if len(self._buffer) <= where - self.at:
                return self.at + len(self._buffer)
            found = cut(self._buffer[:until], where - self.at)
            if 0 <= found < min(until, len(self._buffer)):
                return self.at + found
            if ends:
                return self.at + len(self._buffer)
            if window == look:
                return None
            window *= 2

    def take(self, until: int) -> bytes:
        """The bytes up to an offset, or the file's end; they are behind us then."""
        self._fill(until - self.at)
        taken, self._buffer = self._buffer[: until - self.at], self._buffer[until - self.at :]
        self.at += len(taken)
        return taken

    def _fill(self, count: int) -> bool:
        """Have so many bytes in the buffer; whether the file has no more."""
        while len(self._buffer) < count:
            want = max(count - len(self._buffer), 1 << 16)
            if self._end is not None:
                want = min(want, self._end - self.at - len(self._buffer))
            more = self._file.read(want) if want > 0 else b""
            if not more:
                return True
            self._buffer += more
        return False


def blocks(reader: Reader, end: int, cut: Cut | None) -> Iterator[bytes]:
    """What is left up to offset `end`, in blocks; all at once where there is no `cut`."""
    while reader.at < end:
        until = end
        if cut is not None and reader.at + BLOCK < end:
            until = min(end, reader.find(reader.at + BLOCK, cut))
        raw = reader.take(until)
        if not raw:
            return
        yield raw


def scan(
    path: str, kind: str, options: ReadOptions, size: int, first: int, last: int | None
) -> list[Extent]:
    """The extents of a file that begin after multiples first, first + 1 ... (not `last`) of `size`.

    Raises UserError for what cannot be read, and for text that is not UTF-8.
    """
    cut = after_line if kind == "jsonl" else after_word
    look = min(LOOK, size // 2)  # a cut belongs to one multiple
    found: list[Extent] = []
    with reading(Path(path)), files.open_bytes(Path(path)) as file:
        at: int | None = 0
        if first:
            file.seek(first * size)
            at = Reader(file, first * size).find(first * size, cut, look)
            if at is None:
                return found  # it belongs to the extent before
            file.seek(at)
        reader = Reader(file, at)
        while last is None or reader.at <= last * size:
            extent = _extent(reader, path, kind, options, size, cut, look)
            if extent is None:
                return found
            found.append(extent)
    return found


def _extent(
    reader: Reader, path: str, kind: str, options: ReadOptions, size: int, cut: Cut, look: int
) -> Extent | None:
    """The extent that begins where the reader is."""
    begin, lines, characters, digest = reader.at, 0, 0, hashlib.sha256()
    goal, end = max(size, -(-begin // size) * size), None
    while end is None:
        if reader.at + BLOCK + 4 < goal:
            until = reader.find(reader.at + BLOCK, between_characters)
        else:
            end = reader.find(goal, cut, look)
            if end is None:
                goal += size
                continue
            until = end
        raw = reader.take(until)
        digest.update(raw)
        lines += raw.count(b"\n")
        if kind == "text":
            characters += len(decode(raw, path, options, reader.at - len(raw))[0])
        if not raw:
            break
    if reader.at == begin:
        return None
    return Extent(begin, reader.at, lines, characters, digest.hexdigest())


def scan_all(tasks: list[tuple]) -> list[list[Extent]]:
    """Several scans, in one call of a worker."""
    return [scan(*task) for task in tasks]


def scan_files(
    paths: Sequence[Path],
    kind: str,
    options: ReadOptions,
    cache: Path,
    size: int | None = None,
    workers: int | None = None,
) -> list[list[Extent]]:
    """The extents of each file; out of the cache where the file is as it was.

    Raises UserError as `scan` does, for the first file that has something wrong.
    """
    size = size or SIZE
    memory = Memory(cache, (kind, options.decode_errors, size), paths)
    found = [memory.get(path) for path in paths]
    missing = [number for number, extents in enumerate(found) if extents is None]
    lengths = {number: paths[number].stat().st_size for number in missing}
    tasks: list[tuple[int, int, int | None]] = []  # file, first and last multiple
    for number in missing:
        found[number] = []
        if paths[number].suffix == ".gz":  # can only be read from its beginning
            tasks.append((number, 0, None))
        else:
            tasks += [(number, k, k + 1) for k in range(-(-lengths[number] // size))]
    batches = list(_batches(tasks, lengths, size))
    started = time.time_ns()
    small = sum(lengths.values()) < ALONE
    with Workers(1 if small else min(workers or cores(), len(batches))) as pool:
        calls = (
            pool.submit(
                scan_all, [(str(paths[n]), kind, options, size, k, last) for n, k, last in batch]
            )
            for batch in batches
        )
        for batch, results in zip(batches, pool.in_order(calls), strict=True):
            for (number, _, _), extents in zip(batch, results, strict=True):
                found[number] += extents
    if missing:
        memory.put({paths[number]: found[number] for number in missing}, started)
    return found


def _batches(tasks: list, lengths: dict[int, int], size: int) -> Iterator[list]:
    """The tasks in their order, about `size` bytes at a time."""
    batch, total = [], 0
    for task in tasks:
        batch.append(task)
        total += min(lengths[task[0]], size)
        if total >= size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


class Memory:
    """What scans found, by file, for as long as size, times and inode of the file stay."""

    def __init__(self, cache: Path, key: tuple, paths: Sequence[Path]):
        folder = paths[0].absolute().parent if paths else Path()
        name = hashlib.sha256(repr((FORMAT, key, str(folder))).encode()).hexdigest()[:32]
        self._path = cache / "scans" / f"{name}.json"
        try:
            self._known = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self._known = {}

    def get(self, path: Path) -> list[Extent] | None:
        """The extents of a file, or None where it is not known as it is now."""
        known = self._known.get(str(path.absolute()))
        if known is None or known[0] != _state(path):
            return None
        return [Extent(*extent) for extent in known[1]]

    def put(self, found: dict[Path, list[Extent]], started: int) -> None:
        """Remember what was found by scans that started at that time (ns)."""
        settled = {
            str(path.absolute()): [_state(path), extents]
            for path, extents in found.items()
            if max(_state(path)[1:3]) < started - RACY
        }
        if not settled:
            return
        self._known |= settled
        with contextlib.suppress(OSError):  # a cache: the scan is made again
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f".{self._path.name}.{uuid4().hex[:8]}")
            temporary.write_text(json.dumps(self._known))
            os.replace(temporary, self._path)


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
