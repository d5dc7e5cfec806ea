"""Cuts a stream of documents into pieces to encode, so that memory is bounded and cores are busy.

A document is cut only where that changes none of its tokens.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .files import Document

PIECE = 1 << 16
"""Characters of a piece, at least, where a document is cut."""
BATCH = 1 << 19
"""Characters that are encoded at once."""


@dataclass(frozen=True)
class Piece:
    """A part of a document (mostly all of it) that is encoded by itself."""

    document: Document
    text: str
    start: int
    last: bool


# GPT-2's pattern never joins a blank or a line's end to what is not white space before it, and
# never looks behind: between the two the tokens are the same whether the text is cut or not.
_WORD_END = re.compile(r"\S(?=[ \n])")


def cut(text: str, kind: str, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of pieces of `size` characters or more whose tokens are those of the whole.

    `kind` is the tokenizer's: anywhere for "char" and "byte", at the end of a word for "bpe",
    nowhere for "other".
    """
    begin = 0
    while kind != "other" and len(text) - begin > size:
        end = begin + size
        if kind == "bpe":
            found = _WORD_END.search(text, end - 1)
            end = found.end() if found else len(text)
        yield begin, end
        begin = end
    if begin < len(text):
        yield begin, len(text)


def batches(
    documents: Iterator[Document], kind: str, piece: int = PIECE, batch: int = BATCH
) -> Iterator[list[Piece]]:
    """The pieces of all documents in their order, about `batch` characters at a time."""
    pieces: list[Piece] = []
    size = 0
    for document in documents:
        for begin, end in cut(document.text, kind, piece):
            last = end == len(document.text)
            pieces.append(Piece(document, document.text[begin:end], begin, last))
            size += end - begin
            if size >= batch:
                yield pieces
                pieces, size = [], 0
    if pieces:
        yield pieces
