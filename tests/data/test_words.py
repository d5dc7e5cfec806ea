"""Ids that are looked up are the library's, whatever was seen before, in a table of any size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aludel.data import make_tokenizer, words
from aludel.data.pieces import WORD_END
from aludel.data.words import Words, cuts, keys

TEXT = "the cat's hat, it'll sit on the mat;  2024\n\n\tdef f(x):\n  return x\n中文字 中文\n" * 8
LETTERS = st.sampled_from("ab1'.,\n\t   \u00a0\u3000\u2028\x1c\x00\x7f中é🙂sl。，！")
wordy = st.text(LETTERS, max_size=80) | st.text(st.characters(codec="utf-8"))
repeating = st.lists(st.sampled_from(TEXT.split(" ") + ["x" * 40]), max_size=30).map(" ".join)


@pytest.fixture(scope="module")
def bpe():
    return make_tokenizer("bpe:400", lambda: iter([TEXT]))


@given(st.lists(wordy | repeating, min_size=1, max_size=5), st.sampled_from([1, 3, 19]))
def test_the_ids_are_the_librarys(bpe, texts, bits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "BITS", bits)  # 2, 8 or very many places
        patch.setattr(words, "KEPT", 2)
        table = Words(bpe._encode)
        for text in [*texts, *texts]:
            expected = bpe._library.encode(text, add_special_tokens=False).ids
            assert table.ids(text).tolist() == expected


@given(wordy)
def test_every_cut_is_one_that_pieces_may_have(text):
    raw = text.encode()
    begins = cuts(raw).tolist()
    assert begins[0] == 0
    allowed = {len(text[: found.end()].encode()) for found in WORD_END.finditer(text)}
    assert set(begins[1:]) <= allowed


def test_plain_text_is_cut_at_each_word():
    assert cuts(b"a bc\n\n d  e\tf g").tolist() == [0, 1, 4, 8, 13]
    assert cuts("中文字 ü é".encode()).tolist() == [0, 9, 12]


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=20))
def test_keys_tell_words_apart(several):
    raw, ends = b"".join(several), np.cumsum([len(one) for one in several])
    begins = np.concatenate([[0], ends[:-1]])
    low, high = keys(raw, begins, ends - begins)
    for one, a, b in zip(several, low.tolist(), high.tolist(), strict=True):
        packed = a.to_bytes(8, "little") + b.to_bytes(8, "little")
        expected = one.ljust(15, b"\0") + bytes([len(one)]) if len(one) < 16 else None
        assert packed == expected if expected else packed[8:] == b"\xff" * 8


def test_a_word_is_encoded_once():
    asked = []

    class Encoding:
        def __init__(self, text):
            self.ids = list(text.encode())

    def encode(texts):
        asked.extend(texts)
        return [Encoding(text) for text in texts]

    table = Words(encode)
    text = "one two two\nthree " + "long" * 8 + " two"
    for _ in range(3):
        assert table.ids(text).tolist() == list(text.encode())
    assert sorted(asked) == sorted(["one", " two", "\nthree", " " + "long" * 8])
