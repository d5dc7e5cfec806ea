"""The tokenizer of a run is made from its training part, or a stated sample of it."""

import json

import pytest

from aludel.data import ReadOptions, extents, parse_source
from aludel.train import corpus
from aludel.train.corpus import train_tokenizer


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("ALUDEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extents, "SIZE", 4000)
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"number {n} " * 9 + chr(0x4E00 + n)}) for n in range(400)]
    path.write_text("\n".join(lines))
    return parse_source(f"jsonl:{path}")


def trained_on(monkeypatch, spec, source):
    """The texts that reach the trainer, and what is said."""
    seen, said = [], []
    monkeypatch.setattr(corpus, "make_tokenizer", lambda spec, texts: seen.extend(texts()))
    train_tokenizer(spec, [source], ReadOptions(), said.append)
    return seen, said


def test_bpe_is_trained_on_all_of_a_small_corpus(monkeypatch, source):
    texts, said = trained_on(monkeypatch, "bpe:300", source)
    assert 300 < len(texts) < 400 and not said


def test_bpe_is_trained_on_a_sample_of_a_large_one_and_says_so(monkeypatch, source):
    whole, _ = trained_on(monkeypatch, "bpe:300", source)
    monkeypatch.setattr(corpus, "BPE_BYTES", 8000)
    texts, said = trained_on(monkeypatch, "bpe:300", source)
    assert 6000 < sum(len(text.encode()) for text in texts) <= 8000
    assert len(said) == 1 and "a sample of 0 MB, evenly spread" in said[0]
    assert trained_on(monkeypatch, "bpe:300", source)[0] == texts
    places = [next(n for n, one in enumerate(whole) if one.startswith(text)) for text in texts]
    assert max(b - a for a, b in zip([0, *places], [*places, len(whole)], strict=True)) < 60


def test_char_sees_all_characters_of_a_large_one(monkeypatch, source):
    monkeypatch.setattr(corpus, "BPE_BYTES", 8000)
    texts, said = trained_on(monkeypatch, "char", source)
    assert len(texts) > 300 and not said
