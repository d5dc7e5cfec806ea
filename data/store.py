"""Documents as token ids on disk, tokenised once and read through memory maps.

A store is a folder named by a digest of what was read and of the tokenizer: shards (`shards.py`),
`offsets.bin` (int64 [documents + 1], where each document begins), the tokenizer and `meta.json`.
It grows, shard by shard, in a hidden folder beside its place that is renamed when all is there:
a store is whole or it is not there, and a build that was killed goes on with the shards it has.
Shards that another store has already (of the same corpus before it grew) are linked, not made.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .files import DEFAULTS, ReadOptions
from .parts import Part, load
from .shards import (
    BLOCK,
    Shard,
    Tokens,
    checksum,
    dtype_of,
    make_shard,
    make_shard_with,
    read_shard,
    save,
    shard_name,
)
from .sources import FILE_KINDS, Source, Split, read_parts, source_digest
from .tokenizer import Tokenizer
from .workers import Workers, cores, ready

FORMAT = 2
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
ABANDONED = 7 * 24 * 3600.0
"""Seconds without a new shard after which a killed build is not expected to go on."""
Say = Callable[[str], None]
"""Takes a line that says how far a build is."""


@dataclass(frozen=True)
class TokenStore:
    """The token ids of one part of a source."""

    path: Path
    tokens: "np.ndarray | Tokens"
    """uint16 or uint32 [tokens], memory-mapped; each document begins with the separator."""
    offsets: np.ndarray
    """int64 [documents + 1], memory-mapped: where each document begins."""
    separator: int | None
    bytes: int
    """UTF-8 bytes of the text."""
    first_bytes: int
    """Those of each document's first token, where no separator stands before it to predict it."""
    replaced: int
    """Undecodable pieces that were replaced by U+FFFD (decode_errors=replace)."""
    loss: str | None
    """What the tokenizer lost of the text: the first example, if there is one."""
    digest: str
    """Of the tokens, the offsets and the tokenizer: the same text gives the same digest."""

    @property
    def documents(self) -> int:
        """How many documents."""
        return len(self.offsets) - 1


KEPT = {"meta", "offsets", "tokenizer"}
"""Names of files in a store that are no shards."""


def build_store(
    source: Source,
    split: Split,
    tokenizer: Tokenizer,
    options: ReadOptions = DEFAULTS,
    cache: Path | None = None,
    *,
    workers: int | None = None,
    say: Say | None = None,
) -> TokenStore:
    """The store of one part of a source: opened where it exists, else made.

    workers: processes, by default as many as there are cores. say: told how far it is.
    Warns, once for each tokenizer, of what the tokenizer loses. Raises UserError for what
    cannot be read or encoded, for a part without text, and for a disk that is full.
    """
    from ..paths import cache_dir

    cache = Path(cache) if cache else cache_dir()
    read = source_digest(source, options, cache)
    key = hashlib.sha256(repr((FORMAT, read, split, tokenizer.digest)).encode()).hexdigest()[:32]
    path = cache / "stores" / key
    store = open_store(path)
    if store is None:
        parts = read_parts(source, split, options, cache, whole=tokenizer.kind == "other")
        if source.kind in FILE_KINDS:
            parts = list(parts)  # without their text, so that it is known how many there are
        what = f"{source.kind}:{source.path} ({split})"
        about = {"source": what, "options": asdict(options)}
        store = _make(path, parts, tokenizer, options, about, workers or cores(), say)
    if store.loss and not tokenizer.told_loss:
        tokenizer.told_loss = True
        warnings.warn(f"the tokenizer does not keep all of the text: {store.loss}", stacklevel=2)
    return store


def open_store(path: Path) -> TokenStore | None:
    """The store in a folder, or None where there is none or files of it are missing or cut."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        shards = [Shard(**values) for values in meta["shards"]]
        offsets = np.memmap(path / "offsets.bin", np.int64, "r")
        whole = all((path / f"{s.name}.bin").stat().st_size == s.size for s in shards)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not whole or len(offsets) != meta["documents"] + 1:
        return None
    filled = [shard for shard in shards if shard.tokens]
    tokens = filled[0].tokens_in(path) if len(filled) == 1 else Tokens(path, filled)
    fields = ("separator", "bytes", "first_bytes", "replaced", "loss", "digest")
    return TokenStore(path, tokens, offsets, **{name: meta[name] for name in fields})


def _make(
    path: Path,
    parts: list[Part] | Iterator[Part],
    tokenizer: Tokenizer,
    options: ReadOptions,
    about: dict,
    workers: int,
    say: Say | None,
) -> TokenStore:
    say = say or (lambda line: None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with _building(path, say) as folder:
            if open_store(path) is None:  # another process may have been faster
                try:
                    shards = _make_shards(folder, parts, tokenizer, options, workers, say)
                    _finish(folder, shards, tokenizer, about)
                finally:
                    _tidy(folder)
                shutil.rmtree(path, ignore_errors=True)  # a damaged one
                os.rename(folder, path)
            else:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"{path.parent}: no room for the token store ({os.strerror(error.errno)}): free "
                "some, or set ALUDEL_CACHE to a folder on another disk"
            ) from None
        raise UserError(f"{path.parent}: cannot be written: {error.strerror or error}") from None
    store = open_store(path)
    if store is None:
        raise UserError(f"{path}: the token store just written cannot be read back")
    return store


@contextlib.contextmanager
def _building(path: Path, say: Say) -> Iterator[Path]:
    """The folder in which the store `path` grows, ours alone until we leave or die."""
    folder = path.with_name(f".{path.name}")
    while True:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process makes the token store {path}: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:  # a file system without locks: two would do the same work twice
                pass
            try:  # the one who held it may have renamed or removed the folder
                ours = os.path.samestat(os.fstat(lock), folder.stat())
            except FileNotFoundError:
                ours = False
            if ours:
                yield folder
                return
        finally:
            os.close(lock)


def _sweep(stores: Path) -> None:
    """Removes what killed builds left that nobody went on with."""
    for folder in stores.glob(".*"):
        with contextlib.suppress(FileNotFoundError):  # another build goes on in it
            touched = [file.stat().st_mtime for file in (folder, *folder.glob("*"))]
            if max(touched) < time.time() - ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Removes what was half written, and the folder where no shard is finished."""
    for file in folder.glob("*.tmp"):
        file.unlink(missing_ok=True)
    if not any(read_shard(folder, file.stem) for file in folder.glob("*.json")):
        shutil.rmtree(folder, ignore_errors=True)


def _make_shards(
    folder: Path,
    parts: list[Part] | Iterator[Part],
    tokenizer: Tokenizer,
    options: ReadOptions,
    workers: int,
    say: Say,
) -> list[Shard]:
    """The shards of all parts, in their order: found here or in another store, or made."""
    elsewhere = {file.stem: file.parent for file in folder.parent.glob("*/*.json")}

    def find(part: Part) -> tuple[Part, str, Shard | None]:
        name = shard_name(part, options, tokenizer)
        return part, name, read_shard(folder, name) or _link(elsewhere.get(name), folder, name)

    found = map(find, parts)
    total, missing = None, 1
    if isinstance(parts, list):
        found = list(found)
        total = sum(part.size for part, _, shard in found if shard is None)
        missing = sum(shard is None for _, _, shard in found)
        if missing < len(found):
            say(f"{len(found) - missing:,} of {len(found):,} shards are there already")
    else:  # with their texts in memory: not all at once
        first = list(itertools.islice(found, 2))
        found, missing = itertools.chain(first, found), workers if len(first) == 2 else 1
    tokenizer.save(folder / "tokenizer.json")
    vocabulary = (str(folder / "tokenizer.json"), tokenizer.digest)
    progress = Progress(total, say)

    with Workers(max(1, min(workers, missing))) as pool:
        sizes: deque[int] = deque()

        def call(part: Part, name: str, shard: Shard | None) -> Future:
            sizes.append(0 if shard else part.size)
            if shard is not None:
                return ready(shard)
            if pool.count == 1:
                return pool.submit(make_shard, tokenizer, folder, name, load(part), options)
            return pool.submit(make_shard_with, vocabulary, folder, name, load(part), options)

        shards = []
        for shard in pool.in_order(call(*one) for one in found):
            shards.append(shard)
            progress.add(sizes.popleft())
    return shards


class Progress:
    """Says every ten seconds how far a build is."""

    def __init__(self, total: int | None, say: Say):
        self._total, self._say = total, say
        self._done, self._begun = 0, time.monotonic()
        self._told = self._begun

    def add(self, size: int) -> None:
        """So many more bytes of source text are done."""
        self._done += size
        now = time.monotonic()
        if now - self._told < 10 or not self._done:
            return
        self._told, rate = now, self._done / (now - self._begun)
        line = f"tokenised {self._done / 1e6:,.0f} MB at {rate / 1e6:.1f} MB/s"
        if self._total:
            left = (self._total - self._done) / rate / 60
            line += f", of {self._total / 1e6:,.0f} MB; {left:.0f} minutes left"
        self._say(line)


def _link(other: Path | None, folder: Path, name: str) -> Shard | None:
    """The shard of another store, if it is whole: linked into `folder`, or copied."""
    shard = read_shard(other, name) if other and other != folder else None
    if shard is None:
        return None
    try:
        if checksum(other / f"{name}.bin") != shard.checksum:
            return None
        for file in (f"{name}.bin", f"{name}.json"):  # this one last: with it the shard is there
            (folder / file).unlink(missing_ok=True)
            try:
                os.link(other / file, folder / file)
            except OSError:  # a file system without links
                shutil.copyfile(other / file, folder / file)
    except OSError:  # gone meanwhile, or no room: it is made, or that is told
        return None
    return shard


def _finish(folder: Path, shards: list[Shard], tokenizer: Tokenizer, about: dict) -> None:
    """Writes what makes a store of the shards, and removes what does not belong to it."""
    documents = sum(shard.documents for shard in shards)
    if not documents:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{about['source']}: no text in it; add documents, or choose another split")
    with open(folder / "offsets.bin", "wb") as index:
        begin = 0
        for shard in shards:
            index.write((shard.begins_in(folder) + begin).tobytes())
            begin += shard.tokens
        index.write(np.int64(begin).tobytes())
        index.flush()
        os.fsync(index.fileno())
    meta = {
        "format": FORMAT,
        **about,
        "dtype": dtype_of(tokenizer).name,
        "documents": documents,
        "tokens": begin,
        "separator": tokenizer.separator,
        "tokenizer": tokenizer.digest,
        "bytes": sum(shard.bytes for shard in shards),
        "first_bytes": sum(shard.first_bytes for shard in shards),
        "replaced": sum(shard.replaced for shard in shards),
        "loss": next((shard.loss for shard in shards if shard.loss), None),
        "digest": content_digest(folder, shards, tokenizer.digest),
        "shards": [asdict(shard) for shard in shards],
    }
    meta["checksum"] = meta_checksum(meta)
    save(folder / "meta.json", json.dumps(meta, indent=1).encode())
    names = {shard.name for shard in shards}
    for file in folder.iterdir():
        if file.suffix in (".bin", ".json") and file.stem not in names | KEPT:
            file.unlink()


def content_digest(folder: Path, shards: list[Shard], tokenizer: str) -> str:
    """The digest of a store: of the tokens and the offsets, however they lie in shards."""
    digest = hashlib.sha256(tokenizer.encode())
    for shard in shards:
        with open(folder / f"{shard.name}.bin", "rb") as file:
            left = shard.size - 8 * shard.documents
            while left:
                data = file.read(min(BLOCK, left))
                if not data:
                    break
                digest.update(data)
                left -= len(data)
    with open(folder / "offsets.bin", "rb") as file:
        while data := file.read(BLOCK):
            digest.update(data)
    return digest.hexdigest()


def meta_checksum(meta: dict) -> str:
    """sha256 of all that meta.json says but this."""
    rest = {name: value for name, value in meta.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_meta(path: Path) -> dict:
    """What meta.json says of a store. Raises UserError where there is none or it is damaged."""
    if not (path / "meta.json").is_file():
        raise UserError(f"{path}: not a token store (there is no meta.json in it)")
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        if meta["checksum"] == meta_checksum(meta):
            return meta
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(
        f"{path}/meta.json: damaged: its checksum does not fit; remove it and build the store "
        "again: no shard is made again"
    )


def check_store(path: Path) -> dict:
    """Reads all of a store and compares checksums; what meta.json says of it.

    Raises UserError that names what is damaged, and for a folder that holds no store.
    """
    meta = read_meta(path)
    shards = [Shard(**values) for values in meta["shards"]]
    damaged = []
    for number, shard in enumerate(shards, start=1):
        file = path / f"{shard.name}.bin"
        where = f"{file} (shard {number:,} of {len(shards):,})"
        if not file.is_file():
            damaged.append(f"{where} is missing")
        elif file.stat().st_size != shard.size:
            damaged.append(f"{where} has {file.stat().st_size:,} bytes and not {shard.size:,}")
        elif checksum(file) != shard.checksum:
            damaged.append(f"{where} is damaged: its checksum does not fit")
    if damaged:
        raise UserError(
            f"{'; '.join(damaged)}; remove {'it' if len(damaged) == 1 else 'them'} and build the "
            "store again: only what is missing is made"
        )
    try:
        sound = Tokenizer.load(path / "tokenizer.json").digest == meta["tokenizer"]
    except UserError:
        sound = False
    if not sound:
        raise UserError(f"{path}/tokenizer.json: damaged: not what the store was made with")
    try:
        sound = content_digest(path, shards, meta["tokenizer"]) == meta["digest"]
    except OSError:
        sound = False
    if not sound:
        raise UserError(
            f"{path}/offsets.bin: damaged: does not fit the shards; remove it and build the store "
            "again: no shard is made again"
        )
    return meta
