"""Small stores made in memory, without files or tokenizers."""

from pathlib import Path

import numpy as np
import pytest

from aludel.data import TokenStore


@pytest.fixture(scope="session")
def memory_store():
    """A function: lists of token ids -> TokenStore; with `separator`, it begins each."""

    def make(documents, separator=None):
        if separator is not None:
            documents = [[separator, *document] for document in documents]
        lengths = [len(document) for document in documents]
        return TokenStore(
            path=Path("memory"),
            tokens=np.array([token for document in documents for token in document], np.uint16),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            separator=separator,
            bytes=sum(lengths) - (separator is not None) * len(documents),
            first_bytes=0 if separator is not None else len(documents),
            replaced=0,
            loss=None,
            digest="memory",
        )

    return make
