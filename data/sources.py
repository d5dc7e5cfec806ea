"""Where text comes from: `text:PATH`, `jsonl:PATH`, `tfds:NAME[:SPLIT]` or an embedded corpus.

A source is read as a stream of documents, and split for training and validation here.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..paths import cache_dir
from . import builders, extents
from .extents import scan_files
from .files import DEFAULTS, Document, ReadOptions, expand, nearest
from .parts import (
    FEW,
    Part,
    Split,
    choose,
    group,
    jsonl_spans,
    load,
    record_parts,
    text_spans,
)

FILE_KINDS = ("text", "jsonl")
RECORD_KINDS = ("chat", "pairs")  # conversations, comparisons
KINDS = (*FILE_KINDS, *RECORD_KINDS, "tfds")


@dataclass(frozen=True)
class Source:
    """One source of documents, and its weight in a mixture."""

    kind: Literal["text", "jsonl", "chat", "pairs", "tfds", "corpus"]
    path: str
    split: str | None = None
    weight: float = 1.0

    @property
    def name(self) -> str:
        """A short name for metrics and reports: the corpus, or the file or folder."""
        if self.kind in (*FILE_KINDS, *RECORD_KINDS):
            return re.sub(r"(\.(txt|jsonl|json|gz))+$", "", Path(self.path).name) or self.path
        return self.path


def parse_source(spec: str) -> Source:
    """`text:PATH`, `jsonl:PATH`, `tfds:NAME[:SPLIT]` or a corpus's name; `=WEIGHT` may follow."""
    rest, weight = _weight(spec)
    kind, colon, path = rest.partition(":")
    if not colon:
        return _corpus(spec, rest, weight)
    if kind not in KINDS:
        raise UserError(f"{spec}: unknown kind of source {kind!r}{nearest(kind, KINDS)}")
    if not path:
        raise UserError(f"{spec}: nothing after {kind}:")
    split = None
    if kind == "tfds":
        found = re.fullmatch(r"(.+?):([A-Za-z_][^:/]*)", path)  # a version begins with a digit
        path, split = found.groups() if found else (path, None)
    return Source(kind, path, split, weight)


def _weight(spec: str) -> tuple[str, float]:
    rest, equals, tail = spec.rpartition("=")
    path = spec.partition(":")[2]
    if not equals or (path and Path(path).exists()):
        return spec, 1.0
    try:
        weight = float(tail)
    except ValueError:
        return spec, 1.0  # an equals sign in a file's name
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"{spec}: the weight must be a positive number, not {tail}")
    return rest, weight


def _corpus(spec: str, name: str, weight: float) -> Source:
    known = builders.corpora()
    if name in known:
        return Source("corpus", name, None, weight)
    if Path(name).exists():
        raise UserError(f"{spec}: say how to read it: text:{name} or jsonl:{name}")
    raise UserError(f"{spec}: no such corpus{nearest(name, known)} (files: text:PATH, jsonl:PATH)")


def read_documents(
    source: Source, split: Split, options: ReadOptions = DEFAULTS, cache: Path | None = None
) -> Iterator[Document]:
    """The documents of one part of a source, as a stream, in a fixed order; none is empty.

    A long text file comes in pieces, of which all but the first have `begins` False.

    A source that has splits of its own (a corpus, most TFDS data sets) is taken at its word.
    Else validation is the tenth of the documents that their hash chooses or, with fewer than
    100 documents, the last tenth of each. Raises UserError for what cannot be read.
    """
    for part in read_parts(source, split, options, cache or cache_dir()):
        yield from load(part).read(options)


def check_text(source: Source) -> None:
    """`UserError` where a source holds something else than text."""
    if source.kind in RECORD_KINDS:
        stage = "sft" if source.kind == "chat" else "reward"
        raise UserError(f"{source.kind}:{source.path}: holds no text; it is for aludel {stage}")


def read_parts(
    source: Source, split: Split, options: ReadOptions, cache: Path, whole: bool = False
) -> Iterator[Part]:
    """The same documents in parts, in their order. `whole`: no document is in two of them."""
    if split not in ("train", "validation", "all"):
        raise ValueError(f"split must be train, validation or all, not {split!r}")
    check_text(source)
    if source.kind in FILE_KINDS:
        paths = expand(source.path)
        found = scan_files(paths, source.kind, options, cache)
        if source.kind == "text":
            spans = text_spans(paths, found, split, options, whole)
        else:
            spans = jsonl_spans(paths, found, split, options)
        yield from group(spans, source.kind, split, extents.SIZE)
        return
    documents, records = builders.open_split(source, split, options, cache)
    if records is not None:
        documents = choose(documents, split, "few" if records < FEW else "hash")
    yield from record_parts(filter(lambda document: document.text, documents), extents.SIZE)


def source_digest(source: Source, options: ReadOptions, cache: Path) -> str:
    """A digest of what would be read: of the files' bytes, or of the data set's records."""
    check_text(source)
    digest = hashlib.sha256(repr((source.kind, source.split, options)).encode())
    if source.kind in FILE_KINDS:
        for found in scan_files(expand(source.path), source.kind, options, cache):
            digest.update("".join(extent.digest for extent in found).encode() + b"\0")
    else:
        digest.update(builders.identity(source, options, cache).encode())
    return digest.hexdigest()


def read_sample(
    source: Source, split: Split, options: ReadOptions, cache: Path, share: float
) -> Iterator[Document]:
    """Text spread evenly: the beginning of each part, so long as that share of it."""
    for part in read_parts(source, split, options, cache):
        left = int(share * part.size)
        for document in load(part).read(options):
            raw = document.text.encode("utf-8")[:left]
            yield replace(document, text=raw.decode("utf-8", "ignore"))
            left -= len(raw)
            if not left:
                break


def source_bytes(source: Source, split: Split, options: ReadOptions, cache: Path) -> int:
    """Bytes of source text in a split, before documents are chosen by their hash."""
    return sum(part.size for part in read_parts(source, split, options, cache))
