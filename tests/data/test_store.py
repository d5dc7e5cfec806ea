"""The store: what it holds, when it is made again, and that it is whole or not there."""

import json
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from aludel.data import build_store, make_tokenizer, open_store, parse_source, pieces
from aludel.data import store as store_module
from aludel.data.files import ReadOptions
from aludel.errors import UserError

TEXTS = ["The first document.\n", "Second, with ü and 中文.", "x"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return parse_source(f"jsonl:{path}")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def tokenizer(spec):
    return make_tokenizer(spec, lambda: iter(TEXTS))


@pytest.mark.parametrize("spec", ["char", "byte", "bpe:300"])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_documents_come_back(source, cache, monkeypatch, spec, piece):
    monkeypatch.setattr(pieces.batches, "__defaults__", (piece, 3 * piece))
    tok = tokenizer(spec)
    store = build_store(source, "all", tok, cache=cache)
    assert store.documents == 3 and store.tokens.dtype == np.uint16
    assert store.bytes == sum(len(text.encode()) for text in TEXTS)
    assert store.first_bytes == (3 if spec == "char" else 0)
    for number, text in enumerate(TEXTS):
        ids = store.tokens[store.offsets[number] : store.offsets[number + 1]].astype(int)
        if tok.separator is not None:
            assert ids[0] == tok.separator
            ids = ids[1:]
        assert ids.tolist() == tok.encode(text).tolist()


def test_digest_does_not_depend_on_pieces(source, cache, monkeypatch):
    first = build_store(source, "all", tokenizer("bpe:300"), cache=cache / "a").digest
    monkeypatch.setattr(pieces.batches, "__defaults__", (5, 11))
    assert build_store(source, "all", tokenizer("bpe:300"), cache=cache / "b").digest == first


def test_wide_vocabularies_take_uint32(source, cache, monkeypatch):
    tok = tokenizer("byte")
    tok.vocab_size = 70_000
    assert build_store(source, "all", tok, cache=cache).tokens.dtype == np.uint32


def test_made_once(source, cache, monkeypatch):
    first = build_store(source, "train", tokenizer("byte"), cache=cache)
    monkeypatch.setattr(store_module, "_make", None)  # calling it would fail
    again = build_store(source, "train", tokenizer("byte"), cache=cache)
    assert again.path == first.path and again.digest == first.digest


def test_another_text_split_option_or_tokenizer_is_another_store(source, cache, tmp_path):
    stores = [
        build_store(source, "train", tokenizer("byte"), cache=cache),
        build_store(source, "validation", tokenizer("byte"), cache=cache),
        build_store(source, "train", tokenizer("char"), cache=cache),
        build_store(source, "train", tokenizer("byte"), ReadOptions("text", "replace"), cache),
    ]
    with open(source.path, "a") as file:
        file.write('{"text": "one more"}\n')
    stores.append(build_store(source, "train", tokenizer("byte"), cache=cache))
    assert len({store.path for store in stores}) == 5
    assert len({store.digest for store in stores}) == 4  # the option changed no token


@pytest.mark.parametrize("damage", ["[0-9a-f]*.bin", "offsets.bin", "meta.json"])
def test_a_damaged_store_is_made_again(source, cache, damage):
    store = build_store(source, "all", tokenizer("byte"), cache=cache)
    (path,) = store.path.glob(damage)
    path.write_bytes(path.read_bytes()[:-8])
    assert open_store(store.path) is None
    again = build_store(source, "all", tokenizer("byte"), cache=cache)
    assert again.digest == store.digest


def test_nothing_is_left_when_making_fails(source, cache):
    with open(source.path, "a") as file:
        file.write('{"text": \n')
    with pytest.raises(UserError, match="broken JSON"):
        build_store(source, "all", tokenizer("byte"), cache=cache)
    assert os.listdir(cache / "stores") == []


def test_what_a_killed_process_left_is_swept_away_but_not_what_may_go_on(source, cache):
    for name, age in (("dead", 1e6), ("alive", 1e5)):
        folder = cache / "stores" / f".{name}"
        folder.mkdir(parents=True)
        (folder / "tokens.bin").write_bytes(b"x")
        for path in (folder / "tokens.bin", folder):
            os.utime(path, (time.time() - age, time.time() - age))
    path = build_store(source, "all", tokenizer("byte"), cache=cache).path
    assert sorted(os.listdir(cache / "stores")) == [".alive", path.name]


def test_an_unknown_character_is_named_with_its_place(source, cache):
    tok = make_tokenizer("char", lambda: iter([TEXTS[0]]))
    with pytest.raises(UserError, match=r"in.jsonl:2: character 0 is 'S' \(U\+0053\)"):
        build_store(source, "all", tok, cache=cache)
    tok = make_tokenizer("char", lambda: iter(["".join(TEXTS).replace(".", "")]))
    with pytest.raises(UserError, match=r"in.jsonl:1: character 18 is '\.'"):
        build_store(source, "validation", tok, cache=cache)


def test_a_part_without_text_is_refused(tmp_path, cache):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="no text in it"):
        build_store(
            parse_source(f"jsonl:{tmp_path}/a.jsonl"), "all", tokenizer("byte"), cache=cache
        )


def test_replaced_bytes_are_counted(tmp_path, cache):
    (tmp_path / "a.txt").write_bytes(b"a\xff\xfeb" * 10)
    options = ReadOptions(decode_errors="replace")
    source = parse_source(f"text:{tmp_path}/a.txt")
    assert build_store(source, "all", tokenizer("byte"), options, cache).replaced == 20


def test_what_a_tokenizer_loses_is_said_once(source, cache, tmp_path):
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    library = tokenizers.Tokenizer(models.WordLevel({"the": 0, "<unk>": 1}, unk_token="<unk>"))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    for attempt in ("made", "found on disk"):
        tok = make_tokenizer(str(tmp_path / "tokenizer.json"), None)
        with pytest.warns(
            UserWarning, match="in.jsonl:1: 'The first document.* comes back as 'the <"
        ):
            build_store(source, "train", tok, cache=cache)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build_store(source, "validation", tok, cache=cache), attempt
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_store(source, "all", tokenizer("bpe:300"), cache=cache)


FULL_DISK = """
import resource, sys
from aludel.data import build_store, make_tokenizer, parse_source
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    build_store(parse_source(sys.argv[1]), "all", make_tokenizer("byte", None), cache=sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path, cache):
    (tmp_path / "a.txt").write_text("x" * 100_000)
    spec = f"text:{tmp_path}/a.txt"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, spec, str(cache)], capture_output=True, text=True
    )
    assert done.stdout.startswith("UserError") and "no room for the token store" in done.stdout
    assert os.listdir(cache / "stores") == []
    assert build_store(parse_source(spec), "all", tokenizer("byte"), cache=cache).bytes == 100_000


def test_a_cache_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        build_store(source, "all", tokenizer("byte"), cache=tmp_path / "file")


def test_memory_does_not_grow_with_the_text(tmp_path, cache):
    """40 MB of text, in one process whose peak is read: far less than the text is added."""
    line = json.dumps({"text": "some words and more of them, " * 300}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 4600)
    program = """
import resource, sys
from aludel.data import build_store, make_tokenizer, parse_source
byte = make_tokenizer("byte", None)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
build_store(parse_source(sys.argv[1]), "all", byte, cache=sys.argv[2])
print((peak() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, f"jsonl:{tmp_path}/a.jsonl", str(cache)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 30  # MiB
