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

    @property
    def first(self) -> bool:
        """Whether the document begins with it."""
        return self.start == 0 and self.document.begins


# GPT-2's pattern never joins a blank or a line's end to what is not white space before it, nor
# punctuation other than the apostrophe to a letter or digit before it, and never looks behind:
# between the two the tokens are the same whether the text is cut or not. The letters are those of
# scripts that write no blanks, and ASCII's (tables, minified files), the same in every Unicode.
WORD_END = re.compile(
    r"\S(?=[ \n])"
    r"|[0-9A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3](?=[.,;:!?。，、；：！？])"
)


def cut(text: str, kind: str, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of pieces of `size` characters or more whose tokens are those of the whole.

    `kind` is the tokenizer's: anywhere for "char" and "byte", at the end of a word for "bpe",
    nowhere for "other".
    """
    begin = 0
    while kind != "other" and len(text) - begin > size:
        end = begin + size
        if kind == "bpe":
            found = WORD_END.search(text, end - 1)
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
            pieces.append(Piece(document, document.text[begin:end], begin))
            size += end - begin
            if size >= batch:
                yield pieces
                pieces, size = [], 0
    if pieces:
        yield pieces
