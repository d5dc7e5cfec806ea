"""Where text comes from: `text:PATH`, `jsonl:PATH`, `tfds:NAME[:SPLIT]` or an embedded corpus.

A source is read as a stream of documents, and split for training and validation here.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..paths import cache_dir
from . import builders
from .files import (
    DEFAULTS,
    Document,
    ReadOptions,
    expand,
    jsonl_documents,
    nearest,
    reading,
    text_documents,
)

Split = Literal["train", "validation", "all"]
FILE_KINDS = {"text": text_documents, "jsonl": jsonl_documents}
KINDS = (*FILE_KINDS, "tfds")
FEW = 100
"""With fewer documents than this the split cuts each of them instead of choosing among them."""


@dataclass(frozen=True)
class Source:
    """One source of documents, and its weight in a mixture."""

    kind: Literal["text", "jsonl", "tfds", "corpus"]
    path: str
    split: str | None = None
    weight: float = 1.0

    @property
    def name(self) -> str:
        """A short name for metrics and reports: the corpus, or the file or folder."""
        if self.kind in FILE_KINDS:
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

    A source that has splits of its own (a corpus, most TFDS data sets) is taken at its word.
    Else validation is the tenth of the documents that their hash chooses or, with fewer than
    100 documents, the last tenth of each. Raises UserError for what cannot be read.
    """
    if split not in ("train", "validation", "all"):
        raise ValueError(f"split must be train, validation or all, not {split!r}")
    if source.kind in FILE_KINDS:
        paths = expand(source.path)
        few = len(paths) < FEW
        if source.kind == "jsonl" and split != "all":
            few = len(list(islice(jsonl_documents(paths, options), FEW))) < FEW
        documents = FILE_KINDS[source.kind](paths, options)
    else:
        documents, records = builders.open_split(source, split, options, cache or cache_dir())
        split, few = ("all", False) if records is None else (split, records < FEW)
    return filter(lambda document: document.text, _split(documents, split, few))


def _split(documents: Iterator[Document], split: Split, few: bool) -> Iterator[Document]:
    if split == "all":
        yield from documents
    elif few:
        for document in documents:
            cut = int(0.9 * len(document.text))
            if split == "train":
                yield replace(document, text=document.text[:cut])
            else:
                yield replace(document, text=document.text[cut:], start=cut, replaced=0)
    else:
        for document in documents:
            if in_validation(document.text) == (split == "validation"):
                yield document


def in_validation(text: str) -> bool:
    """Whether a document's hash puts it into the tenth for validation; the same everywhere."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 10 == 0


def source_digest(source: Source, options: ReadOptions, cache: Path) -> str:
    """A digest of what would be read: of the files' bytes, or of the data set's records."""
    digest = hashlib.sha256(repr((source.kind, source.split, options)).encode())
    if source.kind in FILE_KINDS:
        for path in expand(source.path):
            with reading(path), open(path, "rb") as file:
                part = hashlib.file_digest(file, "sha256").digest()
            digest.update(part + path.suffix.encode() + b"\0")
    else:
        digest.update(builders.identity(source, options, cache).encode())
    return digest.hexdigest()
