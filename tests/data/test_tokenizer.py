"""Tokenizers: every text comes back, ids are the library's own, imports are GPT-2's."""

import json
import random

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from aludel.data import SEPARATOR, Tokenizer, UnknownCharacterError, make_tokenizer
from aludel.data.pieces import cut
from aludel.data.tokenizer import byte_names
from aludel.errors import UserError

anything = st.text(st.characters(codec="utf-8"))
wordy = st.text(st.sampled_from("ab1'.,\n\t  \u00a0\u3000\x1c中é🙂sl。，！"), max_size=60)
TEXT = (
    "the cat's hat, it'll sit on the mat;  2024\n\n\tdef f(x):\n        return x\n中文字 中文\n" * 8
)


def no_text():
    raise AssertionError("this tokenizer is not made from text")


@pytest.fixture(scope="module")
def made():
    return {
        spec: make_tokenizer(spec, lambda: iter([TEXT])) for spec in ("char", "byte", "bpe:400")
    }


@given(anything)
def test_every_text_comes_back_from_bytes_and_bpe(made, text):
    for spec in ("byte", "bpe:400"):
        assert made[spec].decode(made[spec].encode(text)) == text


@given(st.text(st.sampled_from(sorted(set(TEXT)))))
def test_known_characters_come_back(made, text):
    assert made["char"].decode(made["char"].encode(text)) == text
    assert len(made["char"].encode(text)) == len(text)


@given(st.text(st.sampled_from(sorted(set(TEXT)))))
def test_tables_give_the_ids_of_the_library(made, text):
    """What tokenizer.json says to other programs is what we do."""
    for spec in ("char", "byte"):
        library = made[spec]._library
        assert made[spec].encode(text).tolist() == library.encode(text).ids


def test_merges_across_words_are_cut_nowhere():
    library = tokenizers.Tokenizer(
        models.BPE({**{n: i for i, n in enumerate(byte_names())}, "aĠ": 256}, [("a", "Ġ")])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(library)
    assert tokenizer.kind == "other" and list(cut("a a", tokenizer.kind, 1)) == [(0, 3)]
    assert tokenizer.encode("a a").tolist() == library.encode("a a").ids


@given(anything | wordy)
def test_special_tokens_in_text_are_text(made, text):
    text = f"{text}{SEPARATOR} {text}"
    for spec in ("byte", "bpe:400"):
        ids = made[spec].encode(text)
        assert made[spec].separator not in ids
        assert made[spec].decode(ids) == text


@given(wordy | anything, st.integers(1, 20))
def test_pieces_have_the_tokens_of_the_whole(made, text, size):
    for tokenizer in made.values():
        if tokenizer.kind == "char" and not set(text) <= set(TEXT):
            continue
        pieces = [text[begin:end] for begin, end in cut(text, tokenizer.kind, size)]
        assert "".join(pieces) == text
        parts = [tokenizer.encode(piece).tolist() for piece in pieces]
        assert sum(parts, []) == tokenizer.encode(text).tolist()


def test_vocabularies(made):
    assert made["char"].vocab_size == len(set(TEXT)) and made["char"].separator is None
    assert made["byte"].vocab_size == 257 and made["byte"].separator == 256
    assert made["byte"].encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert 300 < made["bpe:400"].vocab_size <= 400
    assert len(made["bpe:400"].encode(TEXT)) < 0.6 * len(TEXT)
    assert made["bpe:400"].decode([made["bpe:400"].separator]) == SEPARATOR


def test_training_again_gives_the_same_tokenizer(made):
    again = make_tokenizer("bpe:400", lambda: iter([TEXT]))
    assert again.digest == made["bpe:400"].digest


def test_saved_and_loaded(made, tmp_path):
    digests = set()
    for spec, tokenizer in made.items():
        tokenizer.save(tmp_path / "tokenizer.json")
        back = make_tokenizer(str(tmp_path / "tokenizer.json"), no_text)
        assert (back.kind, back.digest) == (tokenizer.kind, tokenizer.digest), spec
        assert (back.separator, back.vocab_size) == (tokenizer.separator, tokenizer.vocab_size)
        sample = TEXT[:80] if spec == "char" else TEXT[:80] + SEPARATOR
        assert back.encode(sample).tolist() == tokenizer.encode(sample).tolist()
        digests.add(back.digest)
    assert len(digests) == 3


def test_a_batch_is_its_texts(made):
    for tokenizer in made.values():
        parts = ["the cat", "", "mat\n"]
        got = [ids.tolist() for ids in tokenizer.encode_batch(parts)]
        assert got == [tokenizer.encode(part).tolist() for part in parts]


def test_an_unknown_character_is_named(made):
    with pytest.raises(UnknownCharacterError, match=r"character 4 is 'ß' \(U\+00DF\)") as error:
        made["char"].encode("the ß")
    assert (error.value.character, error.value.index) == ("ß", 4)
    for character in ("\U0010ffff", "\x00"):
        with pytest.raises(UnknownCharacterError):
            made["char"].encode(character)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("bpe:256", "SIZE of at least 257"),
        ("bpe", "SIZE of at least 257"),
        ("bpe:many", "SIZE of at least 257"),
        ("chars", "did you mean 'char'?"),
        ("none/tokenizer.json", "no such file"),
    ],
)
def test_bad_specs(spec, says):
    with pytest.raises(UserError) as error:
        make_tokenizer(spec, no_text)
    assert says in str(error.value)


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match="not a tokenizer.json that can be read") as error:
        make_tokenizer(str(tmp_path / "tokenizer.json"), no_text)
    assert "\n" not in str(error.value)


MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ã", "©"), ("i", "n"), ("in", "g")]


def reference_bpe(text, merges):
    """GPT-2's algorithm by its definition, on a text that is one word: merge the lowest rank."""
    symbols = [byte_names()[byte] for byte in text.encode()]
    while True:
        pairs = set(zip(symbols, symbols[1:], strict=False)) & set(merges)
        if not pairs:
            return symbols
        best, out = min(pairs, key=merges.index), []
        while symbols:
            if tuple(symbols[:2]) == best:
                out.append("".join(best))
                symbols = symbols[2:]
            else:
                out.append(symbols[0])
                symbols = symbols[1:]
        symbols = out


def write_merges(folder, encoder=None):
    path = folder / "vocab.bpe"
    path.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES), encoding="utf-8")
    if encoder:
        (folder / "encoder.json").write_text(json.dumps(encoder))
    return str(path)


def test_gpt2_merges_alone_are_numbered_as_gpt2_does(tmp_path):
    tokenizer = make_tokenizer(write_merges(tmp_path), no_text)
    assert tokenizer.kind == "bpe"
    assert tokenizer.vocab_size == 256 + len(MERGES) + 1
    assert tokenizer.separator == 256 + len(MERGES)  # 50256 with GPT-2's 50,000 merges
    # GPT-2: "!" is 0, "0" is 15, the blank 220, the line's end 198.
    assert tokenizer.encode("!0 \n").tolist() == [0, 15, 220, 198]
    assert tokenizer.encode(" the").tolist() == [256 + 2]
    assert tokenizer.encode("é").tolist() == [256 + 3]
    for word in (" the", " thething", "théine", "inginin", " he"):
        symbols = reference_bpe(word, MERGES)
        assert [tokenizer._library.id_to_token(i) for i in tokenizer.encode(word)] == symbols


def test_gpt2_encoder_beside_the_merges_gives_the_ids(tmp_path):
    symbols = [*byte_names(), *(a + b for a, b in MERGES), SEPARATOR]
    random.Random(0).shuffle(symbols)
    encoder = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = make_tokenizer(write_merges(tmp_path, encoder), no_text)
    assert tokenizer.separator == encoder[SEPARATOR]
    assert tokenizer.encode(" theing").tolist() == [encoder["Ġthe"], encoder["ing"]]
    assert tokenizer.vocab_size == len(encoder)


def test_broken_merges(tmp_path):
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\nonlyone\n")
    with pytest.raises(UserError, match="vocab.bpe:3: a merge must be two symbols"):
        make_tokenizer(str(tmp_path / "vocab.bpe"), no_text)
    with pytest.raises(UserError, match="merges and vocabulary do not fit"):
        make_tokenizer(write_merges(tmp_path, {"a": 0, "b": 1}), no_text)


def imported(path, *, lower=True):
    """A tokenizer of another make: it adds tokens, cuts long texts, and may lose capitals."""
    library = tokenizers.Tokenizer(models.BPE({name: i for i, name in enumerate(byte_names())}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    if lower:
        library.normalizer = normalizers.Lowercase()
    library.add_special_tokens(["</s>"])
    library.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 256)]
    )
    library.enable_truncation(5)
    library.enable_padding(length=9)
    library.save(str(path))
    return make_tokenizer(str(path), no_text)


def test_an_imported_tokenizer_neither_adds_nor_cuts_nor_pads(tmp_path):
    tokenizer = imported(tmp_path / "tokenizer.json", lower=False)
    assert tokenizer.kind == "bpe" and tokenizer.separator == 256
    text = "a longer text </s>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("ab")) == 2


def test_what_may_lose_text_is_known_as_such(tmp_path):
    tokenizer = imported(tmp_path / "tokenizer.json")
    assert tokenizer.kind == "other"
    assert tokenizer.decode(tokenizer.encode("ABC")) == "abc"
    assert list(cut("a b " * 100, "other", 10)) == [(0, 400)]


def test_ids_are_int32(made):
    assert all(tokenizer.encode("the").dtype == np.int32 for tokenizer in made.values())
    assert isinstance(made["byte"], Tokenizer)
