"""A source in parts that can be read, and tokenised, each by itself and in any order.

A part is about 32 MB of source text: extents of files, or records of a data set. It ends after an
extent that its own digest chooses, with a chance in proportion to its size, so that a file that is
added anywhere changes the part it falls into and no other.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from ..errors import UserError
from . import files
from .extents import Extent, Reader, after_word, between_characters, blocks
from .files import Document, ReadOptions, decode, json_text, reading

Split = Literal["train", "validation", "all"]
Rule = Literal["all", "few", "hash"]
FEW = 100
"""With fewer documents than this the split cuts each of them instead of choosing among them."""


@dataclass(frozen=True)
class Span:
    """Bytes [begin, end) of a file (unpacked, where it is a .gz)."""

    path: str
    begin: int
    end: int
    digest: str
    """Of its bytes."""
    before: int = 0
    """Characters (text) or lines (jsonl) of the file before it."""
    begins: bool = True
    """Whether a document begins with it (text)."""
    rule: Rule = "all"
    """How the split is still to be made: by cutting its documents, by their hash, or not at all."""
    raw: bytes | None = None
    """The bytes, where the reader could not find them by itself."""


@dataclass(frozen=True)
class Part:
    """What is tokenised at once: spans of text or jsonl files, or documents."""

    kind: str
    split: Split
    digest: str
    """Of all that its documents are made from, but for the options."""
    size: int
    """Bytes of source text."""
    spans: tuple[Span, ...] = ()
    records: tuple[Document, ...] = ()

    def read(self, options: ReadOptions, kind: str = "bpe") -> Iterator[Document]:
        """Its documents, none of them empty; `kind` of tokenizer says where long ones may be cut.

        Raises UserError for what cannot be read.
        """
        documents: Iterable[Document] = self.records
        if self.spans:
            documents = self._of_files(options, kind)
        return filter(lambda document: document.text, documents)

    def _of_files(self, options: ReadOptions, kind: str) -> Iterator[Document]:
        for span in self.spans:
            read = _text(span, options, kind) if self.kind == "text" else _lines(span, options)
            yield from choose(read, self.split, span.rule)


def choose(documents: Iterable[Document], split: Split, rule: Rule) -> Iterator[Document]:
    """The part of the documents that belongs to a split."""
    if split == "all" or rule == "all":
        yield from documents
    elif rule == "few":
        for document in documents:
            cut = share(len(document.text))
            if split == "train":
                yield replace(document, text=document.text[:cut])
            else:
                yield replace(document, text=document.text[cut:], start=cut, replaced=0)
    else:
        for document in documents:
            if in_validation([document.text]) == (split == "validation"):
                yield document


def share(characters: int) -> int:
    """How many of a document's characters are for training, where the split cuts it."""
    return int(0.9 * characters)


def in_validation(text: Iterable[str]) -> bool:
    """Whether a document's hash puts it into the tenth for validation; the same everywhere.

    The text may come in pieces.
    """
    digest = hashlib.blake2b(digest_size=8)
    for piece in text:
        digest.update(piece.encode("utf-8"))
    return int.from_bytes(digest.digest(), "little") % 10 == 0


def text_spans(
    paths: Sequence[Path],
    extents: Sequence[list[Extent]],
    split: Split,
    options: ReadOptions,
    whole: bool,
) -> Iterator[Span]:
    """The spans of text files, each file one document. `whole`: no document is cut."""
    few = len(paths) < FEW
    for path, found in zip(paths, extents, strict=True):
        if split != "all" and few:
            total = sum(extent.characters for extent in found)
            spans = _cut(path, found, share(total), split, options)
        else:
            spans = _spans(path, found, "hash" if len(found) == 1 else "all")
            if split != "all" and len(found) > 1:
                text = (piece.text for span in spans for piece in _text(span, options, "byte"))
                if in_validation(text) != (split == "validation"):
                    continue
        if whole and len(spans) > 1:
            digest = hashlib.sha256()
            for span in spans:
                digest.update(read_bytes(span))
            spans = [replace(spans[0], end=spans[-1].end, digest=digest.hexdigest())]
        yield from spans


def jsonl_spans(
    paths: Sequence[Path], extents: Sequence[list[Extent]], split: Split, options: ReadOptions
) -> Iterator[Span]:
    """The spans of files of which each line is a record."""
    spans = [
        span for path, found in zip(paths, extents, strict=True) for span in _spans(path, found)
    ]
    rule: Rule = "all"
    if split != "all":
        documents = (document for span in spans for document in _lines(span, options))
        rule = "few" if sum(1 for _ in zip(range(FEW), documents, strict=False)) < FEW else "hash"
    for span in spans:
        yield replace(span, rule=rule)


def _spans(path: Path, extents: list[Extent], rule: Rule = "all") -> list[Span]:
    spans, before = [], 0
    for extent in extents:
        begins = extent.begin == 0
        spans.append(Span(str(path), extent.begin, extent.end, extent.digest, before, begins, rule))
        before += extent.characters or extent.lines
    return spans


def _cut(
    path: Path, extents: list[Extent], cut: int, split: Split, options: ReadOptions
) -> list[Span]:
    """The spans of one file before or after its character number `cut`."""
    out, before = [], 0
    for span, extent in zip(_spans(path, extents), extents, strict=True):
        here = cut - before
        if 0 <= here < extent.characters:
            raw = read_bytes(span)
            at = byte_of(raw, here)
            if split == "train":
                part = replace(span, end=span.begin + at, digest=_sha(raw[:at]))
            else:
                begin = span.begin + at
                part = replace(span, begin=begin, digest=_sha(raw[at:]), before=cut, begins=True)
            if part.begin < part.end:
                out.append(part)
        elif (here >= extent.characters) == (split == "train"):
            out.append(span)
        before += extent.characters
    return out


def byte_of(raw: bytes, character: int) -> int:
    """The byte at which a character begins; bytes that are not UTF-8 count as they are replaced."""
    reader = Reader(io.BytesIO(raw), 0)
    for block in blocks(reader, len(raw), between_characters):
        length = len(block.decode("utf-8", "replace"))
        if character < length:
            low, high = 0, len(block)  # the longest beginning that has no more characters
            while low < high:
                middle = (low + high + 1) // 2
                fits = len(block[:middle].decode("utf-8", "replace")) <= character
                low, high = (middle, high) if fits else (low, middle - 1)
            return reader.at - len(block) + low
        character -= length
    return len(raw)


def group(spans: Iterable[Span], kind: str, split: Split, size: int) -> Iterator[Part]:
    """Parts of consecutive spans."""
    held: list[Span] = []
    total = 0
    for span in spans:
        held.append(span)
        total += span.end - span.begin
        if ends_part(span.digest, span.end - span.begin, total, size):
            yield _part(kind, split, held, total)
            held, total = [], 0
    if held:
        yield _part(kind, split, held, total)


def ends_part(digest: str, length: int, total: int, size: int) -> bool:
    """Whether a part ends after something of that digest and length, being `total` with it."""
    return total >= 2 * size or int(digest[:12], 16) * size < length << 48


def _part(kind: str, split: Split, spans: list[Span], total: int) -> Part:
    made_of = [(span.digest, span.begins, span.rule) for span in spans]
    chosen = any(span.rule != "all" for span in spans)
    digest = _sha(repr((kind, made_of, split if chosen else "")).encode())
    return Part(kind, split, digest, total, spans=tuple(spans))


def record_parts(documents: Iterable[Document], size: int) -> Iterator[Part]:
    """Parts of consecutive documents, which are in memory."""
    held: list[Document] = []
    total, digest = 0, hashlib.sha256()
    for document in documents:
        text = document.text.encode("utf-8")
        one = _sha(text)
        held.append(document)
        total += len(text)
        digest.update(one.encode())
        if ends_part(one, len(text), total, size):
            yield Part("records", "all", digest.hexdigest(), total, records=tuple(held))
            held, total, digest = [], 0, hashlib.sha256()
    if held:
        yield Part("records", "all", digest.hexdigest(), total, records=tuple(held))


def load(part: Part) -> Part:
    """The part with the bytes of .gz files in it, which are quickly read in their order only."""
    spans = (
        replace(span, raw=read_bytes(span)) if span.path.endswith(".gz") else span
        for span in part.spans
    )
    return replace(part, spans=tuple(spans))


_unpacked: dict[str, BinaryIO] = {}


def read_bytes(span: Span) -> bytes:
    """The bytes of a span. A .gz file stays open, for what comes after it."""
    path = Path(span.path)
    with reading(path):
        if path.suffix != ".gz":
            with files.open_bytes(path) as file:
                file.seek(span.begin)
                return file.read(span.end - span.begin)
        file = _unpacked.get(span.path)
        if file is None or span.begin == 0:  # from its beginning: it may be another file now
            for other in _unpacked.values():
                other.close()
            _unpacked.clear()
            file = _unpacked[span.path] = files.open_bytes(path)
        file.seek(span.begin)
        return file.read(span.end - span.begin)


def _open(span: Span) -> BinaryIO:
    if span.raw is not None:
        return io.BytesIO(span.raw)
    file = files.open_bytes(Path(span.path))
    file.seek(span.begin)
    return file


def _text(span: Span, options: ReadOptions, kind: str) -> Iterator[Document]:
    """The document in a span, or its next pieces."""
    # What the hash decides on must be whole, and so must what a foreign tokenizer reads.
    cuts = {"bpe": after_word, "char": between_characters, "byte": between_characters}
    cut = None if span.rule == "hash" else cuts.get(kind)
    before, begins, digest = span.before, span.begins, hashlib.sha256()
    with reading(Path(span.path)), _open(span) as file:
        reader = Reader(file, span.begin, span.end)
        for raw in blocks(reader, span.end, cut):
            digest.update(raw)
            text, replaced = decode(raw, span.path, options, reader.at - len(raw))
            yield Document(text, span.path, before, replaced, begins)
            before, begins = before + len(text), False
    _check(span, digest.hexdigest())


def _lines(span: Span, options: ReadOptions) -> Iterator[Document]:
    """The documents in a span of which each line is a record."""
    offset, number, digest = span.begin, span.before, hashlib.sha256()
    with reading(Path(span.path)), _open(span) as file:
        while offset < span.end and (raw := file.readline()):
            number += 1
            digest.update(raw)
            where = f"{span.path}:{number}"
            line, replaced = decode(raw, where, options, offset)
            offset += len(raw)
            if line.strip():
                text, lost = json_text(line, where, options)
                yield Document(text, where, replaced=replaced + lost)
    _check(span, digest.hexdigest())


def _check(span: Span, digest: str) -> None:
    if digest != span.digest:
        raise UserError(f"{span.path}: changed while it was read: run the same command again")


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
