"""Stores of many shards: the same however they were made, made once, and checked."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aludel.data import build_store, check_store, extents, make_tokenizer, parse_source
from aludel.data import store as store_module
from aludel.data.store import KEPT
from aludel.errors import UserError

WORDS = "the cat's hat, it'll sit  on the\nmat; 2024\n\n\tdef f(x): 中文字。中文 ü🙂 x".split(" ")
SIZE = 2000


def text(words, seed):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + str(draw.randrange(50)) for _ in range(words))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(extents, "SIZE", SIZE)
    monkeypatch.setattr(extents, "BLOCK", 300)


@pytest.fixture(scope="module")
def bpe():
    return make_tokenizer("bpe:400", lambda: iter([text(2000, 0)]))


@pytest.fixture
def lines(tmp_path):
    """400 documents, 60 kB; a function that adds more."""
    path = tmp_path / "in.jsonl"

    def add(count, seed):
        with open(path, "a") as file:
            for number in range(count):
                file.write(json.dumps({"text": text(20, (seed, number).__repr__())}) + "\n")
        return parse_source(f"jsonl:{path}")

    add(400, 1)
    return add


def names(store):
    """Of the shards in a store."""
    return {path.stem for path in store.path.glob("*.bin")} - KEPT


def whole(store):
    return store.tokens[:].tolist(), np.asarray(store.offsets).tolist()


@pytest.mark.parametrize("split", ["train", "validation", "all"])
def test_the_digest_depends_on_no_worker_and_no_shard(lines, bpe, tmp_path, monkeypatch, split):
    source = lines(0, 0)
    one = build_store(source, split, bpe, cache=tmp_path / "a", workers=1)
    assert len(names(one)) > 5
    two = build_store(source, split, bpe, cache=tmp_path / "b", workers=2)
    assert names(two) == names(one) and whole(two) == whole(one) and two.digest == one.digest
    monkeypatch.setattr(extents, "SIZE", 1 << 25)
    flat = build_store(source, split, bpe, cache=tmp_path / "c")
    assert len(names(flat)) == 1 and whole(flat) == whole(one) and flat.digest == one.digest
    assert isinstance(flat.tokens, np.memmap)
    for field in ("bytes", "first_bytes", "replaced", "documents"):
        assert getattr(flat, field) == getattr(one, field)


@pytest.mark.parametrize("spec", ["char", "byte", "bpe:400", "other"])
@pytest.mark.parametrize("split", ["train", "validation", "all"])
def test_one_long_file_in_many_shards_is_the_file(tmp_path, monkeypatch, spec, split):
    (tmp_path / "a.txt").write_text(text(3000, 2))
    source = parse_source(f"text:{tmp_path}/a.txt")
    tokenizer = make_tokenizer("byte" if spec == "other" else spec, lambda: iter([text(9000, 2)]))
    tokenizer.kind = "other" if spec == "other" else tokenizer.kind
    stores = {}
    for size in (SIZE, 1 << 25):
        monkeypatch.setattr(extents, "SIZE", size)
        stores[size] = build_store(source, split, tokenizer, cache=tmp_path / str(size))
    many, one = stores[SIZE], stores[1 << 25]
    assert many.digest == one.digest and many.documents == 1
    assert len(names(many)) == 1 if spec == "other" else len(names(many)) > (split != "validation")
    joined = (tmp_path / "a.txt").read_text()
    cut = int(0.9 * len(joined))
    joined = {"all": joined, "train": joined[:cut], "validation": joined[cut:]}[split]
    ids = whole(many)[0][tokenizer.separator is not None :]
    assert tokenizer.decode(ids) == joined


def test_replaced_and_refused_bytes_far_into_a_file(tmp_path, bpe):
    raw = text(3000, 2).encode()
    at = raw.index(b" ", 15_000)
    (tmp_path / "a.txt").write_bytes(raw[:at] + b"\xff\xfe" + raw[at:])
    source = parse_source(f"text:{tmp_path}/a.txt")
    with pytest.raises(UserError, match=rf"a.txt: byte {at} \(0xff\) is not UTF-8"):
        build_store(source, "all", bpe, cache=tmp_path / "c")
    options = store_module.ReadOptions(decode_errors="replace")
    store = build_store(source, "train", bpe, options, tmp_path / "c")
    assert store.replaced == 2 and len(names(store)) > 5
    ids = store.tokens[1:]
    joined = (raw[:at] + b"\xff\xfe" + raw[at:]).decode("utf-8", "replace")
    assert bpe.decode(ids) == joined[: int(0.9 * len(joined))]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_mistake_is_told_with_its_line(lines, bpe, tmp_path, workers):
    path = Path(lines(0, 0).path)
    good = path.read_text().splitlines(keepends=True)
    path.write_text("".join(good[:250]) + "{\n" + "".join(good[250:350]) + "[]\n" * 9)
    with pytest.raises(UserError, match="in.jsonl:251: broken JSON"):
        build_store(parse_source(f"jsonl:{path}"), "all", bpe, cache=tmp_path, workers=workers)
    path.write_text("".join(good))  # mended: what was done before it is not done again
    (left,) = (tmp_path / "stores").iterdir()
    done = {file.stem: file.stat().st_mtime_ns for file in left.glob("*.bin")}
    store = build_store(parse_source(f"jsonl:{path}"), "all", bpe, cache=tmp_path)
    kept = [n for n, t in done.items() if (store.path / f"{n}.bin").stat().st_mtime_ns == t]
    assert len(kept) >= len(done) - 1 > 3


def test_an_unknown_character_far_into_a_file_is_named(tmp_path):
    body = text(3000, 2)
    (tmp_path / "a.txt").write_text(body + " ß")
    tokenizer = make_tokenizer("char", lambda: iter([body]))
    for split, workers in itertools.product(("all", "validation"), (1, 2)):
        with pytest.raises(UserError, match=f"character {len(body) + 1} is 'ß'"):
            build_store(
                parse_source(f"text:{tmp_path}/a.txt"),
                split,
                tokenizer,
                cache=tmp_path / f"{split}{workers}",
                workers=workers,
            )


KILLED = """
import sys
from aludel.data import Tokenizer, build_store, extents, parse_source
extents.SIZE, extents.BLOCK = 2000, 300
source, tokenizer, cache, workers = sys.argv[1:]
build_store(parse_source(source), "train", Tokenizer.load(tokenizer), cache=cache,
            workers=int(workers))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_goes_on_where_it_was(lines, bpe, tmp_path, workers):
    source, cache = lines(500, 2), tmp_path / "cache"
    bpe.save(tmp_path / "tokenizer.json")
    words = [sys.executable, "-c", KILLED, f"jsonl:{source.path}", f"{tmp_path}/tokenizer.json"]
    process = subprocess.Popen([*words, str(cache), str(workers)])
    while len(list(cache.glob("stores/.*/*.json"))) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)  # its workers see the end of their pipe
    (folder,) = cache.glob("stores/.*")
    done = {path.stem: path.stat() for path in folder.glob("*.json") if path.stem not in KEPT}
    assert 4 <= len(done) < 60
    made = []
    before = store_module.make_shard
    with mock.patch.object(
        store_module, "make_shard", lambda *args: made.append(args[2]) or before(*args)
    ):
        store = build_store(source, "train", bpe, cache=cache, workers=1)
    assert sorted(made) == sorted(names(store) - set(done))
    for name, stat in done.items():
        assert (store.path / f"{name}.json").stat().st_mtime_ns == stat.st_mtime_ns
    assert os.listdir(cache / "stores") == [store.path.name]
    assert not list(store.path.glob("*.tmp"))
    assert build_store(source, "train", bpe, cache=tmp_path / "other").digest == store.digest


def made_by(*args, **kwargs):
    """A store, and the names of the shards that were made for it."""
    made = []
    before = store_module.make_shard
    with mock.patch.object(
        store_module, "make_shard", lambda *all: made.append(all[2]) or before(*all)
    ):
        store = build_store(*args, workers=1, **kwargs)
    return store, made


def test_what_is_added_to_a_file_is_all_that_is_tokenised(lines, bpe, tmp_path):
    first, made = made_by(lines(0, 0), "train", bpe, cache=tmp_path)
    assert set(made) == names(first)
    kept = {path.name: path.stat().st_ino for path in first.path.glob("*.bin")}
    source = lines(30, 3)
    second, made = made_by(source, "train", bpe, cache=tmp_path)
    assert second.digest != first.digest and len(made) <= 5 < len(kept)
    shared = names(first) & names(second)
    assert len(shared) >= len(names(first)) - 1
    assert all((second.path / f"{n}.bin").stat().st_ino == kept[f"{n}.bin"] for n in shared)
    assert build_store(source, "train", bpe, cache=tmp_path / "b").digest == second.digest
    check_store(first.path), check_store(second.path)


def test_a_file_added_to_a_folder_changes_the_part_it_falls_into(bpe, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(150):
        (folder / f"{number:03d}.txt").write_text(text(60, number))
    source = parse_source(f"text:{folder}")
    first, _ = made_by(source, "train", bpe, cache=tmp_path)
    assert len(names(first)) > 10
    (folder / "070b.txt").write_text(text(60, 999))
    second, made = made_by(source, "train", bpe, cache=tmp_path)
    assert 1 <= len(made) <= 2
    assert build_store(source, "train", bpe, cache=tmp_path / "b").digest == second.digest


def test_packed_files_give_the_same_store(lines, bpe, tmp_path):
    import gzip

    source = lines(0, 0)
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(source.path).read_bytes()))
    plain = build_store(source, "train", bpe, cache=tmp_path / "a")
    for workers in (1, 2):
        other = build_store(
            parse_source(f"jsonl:{packed}"),
            "train",
            bpe,
            cache=tmp_path / f"b{workers}",
            workers=workers,
        )
        assert other.digest == plain.digest and len(names(other)) > 5


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_byte_is_found_and_named(lines, bpe, tmp_path, place):
    source = lines(0, 0)
    store = build_store(source, "train", bpe, cache=tmp_path)
    assert check_store(store.path)["tokens"] == len(store.tokens)
    shard = sorted(store.path / f"{name}.bin" for name in names(store))[3]
    raw = bytearray(shard.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(UserError, match=f"{shard.name}.* is damaged: its checksum") as error:
        check_store(store.path)
    assert "\n" not in str(error.value) and "shard " in str(error.value)
    shard.unlink()  # as it says
    again, made = made_by(source, "train", bpe, cache=tmp_path)
    assert made == [shard.stem] and again.digest == store.digest
    check_store(again.path)


@pytest.mark.parametrize("file", ["meta.json", "offsets.bin", "tokenizer.json"])
def test_a_flipped_byte_elsewhere_is_found_and_named(lines, bpe, tmp_path, file):
    store = build_store(lines(0, 0), "train", bpe, cache=tmp_path)
    raw = bytearray((store.path / file).read_bytes())
    raw[len(raw) // 2] ^= 1
    (store.path / file).write_bytes(raw)
    with pytest.raises(UserError, match=f"{file}: damaged"):
        check_store(store.path)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a token store"):
        check_store(tmp_path)


def test_two_builds_at_once_make_one_store(lines, bpe, tmp_path):
    source = lines(100, 2)
    bpe.save(tmp_path / "tokenizer.json")
    words = [sys.executable, "-c", KILLED, f"jsonl:{source.path}", f"{tmp_path}/tokenizer.json"]
    both = [subprocess.Popen([*words, str(tmp_path / "cache"), "1"]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    store, made = made_by(source, "train", bpe, cache=tmp_path / "cache")
    assert not made
    check_store(store.path)


def test_reading_many_shards_is_reading_one_array(lines, bpe, tmp_path):
    tokens = build_store(lines(0, 0), "train", bpe, cache=tmp_path).tokens
    flat = tokens[:]
    assert len(flat) == len(tokens) and flat.dtype == tokens.dtype == np.uint16
    draw = np.random.default_rng(0)
    where = draw.integers(0, len(flat), (7, 33))
    assert np.array_equal(tokens[where], flat[where])
    for _ in range(20):
        begin, end = sorted(draw.integers(0, len(flat), 2))
        assert np.array_equal(tokens[begin:end], flat[begin:end])
    assert np.array_equal(tokens[5:900:7], flat[5:900:7]) and tokens[4:4].size == 0


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=120), min_size=1, max_size=40))
def test_random_documents_come_back(tmp_path_factory, bpe, documents):
    folder = tmp_path_factory.mktemp("any")
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
    wanted = [one for one in documents if one]
    with mock.patch.multiple(extents, SIZE=500, BLOCK=100):
        if not wanted:
            with pytest.raises(UserError, match="no text in it"):
                build_store(parse_source(f"jsonl:{path}"), "all", bpe, cache=folder)
            return
        store = build_store(parse_source(f"jsonl:{path}"), "all", bpe, cache=folder, workers=1)
    ids = [store.tokens[a:b] for a, b in itertools.pairwise(store.offsets.tolist())]
    assert [bpe.decode(one[1:]) for one in ids] == wanted
    assert all(one[0] == bpe.separator for one in ids)
    check_store(store.path)


HOST = """
import hashlib, json, sys
from aludel.data import Tokenizer, TrainBatches, build_store, extents, parse_source
sources, tokenizer, cache, host, hosts, size = sys.argv[1:]
extents.SIZE = int(size)
host, hosts, rows = int(host), int(hosts), 8
tokenizer = Tokenizer.load(tokenizer)
sources = [parse_source(one) for one in sources.split()]
stores = [build_store(one, "train", tokenizer, cache=cache, workers=1 + host % 2)
          for one in sources]
batches = TrainBatches(stores, [one.weight for one in sources], rows, 16, seed=3)
mine = slice(host * rows // hosts, (host + 1) * rows // hosts)
digests = []
for number in (0, 1, 999):
    batch = batches.batch(number, mine)
    for row in range(rows // hosts):
        digest = hashlib.sha256()
        for name in sorted(batch):
            digest.update(batch[name][row].tobytes())
        digests.append((number, digest.hexdigest()))
print(json.dumps(digests))
"""


def test_a_batch_is_the_same_on_one_host_and_on_four(lines, bpe, tmp_path):
    """Each host is a process with a cache of its own, other workers and, for one, other shards."""
    lines(0, 0)
    for name in ("b", "c"):
        (tmp_path / f"{name}.txt").write_text(text(3000, name))
    sources = f"jsonl:{tmp_path}/in.jsonl=.6 text:{tmp_path}/b.txt=.3 text:{tmp_path}/c.txt=.1"
    bpe.save(tmp_path / "tokenizer.json")

    def start(host, hosts, size):
        cache = str(tmp_path / f"cache{host}of{hosts}")
        args = [sources, f"{tmp_path}/tokenizer.json", cache, str(host), str(hosts), str(size)]
        return subprocess.Popen(
            [sys.executable, "-c", HOST, *args], stdout=subprocess.PIPE, text=True
        )

    def rows(processes):
        return sorted(
            (row for process in processes for row in json.loads(process.communicate()[0])),
            key=lambda row: row[0],
        )

    alone = rows([start(0, 1, 1 << 25)])
    four = rows([start(host, 4, 9000) for host in range(4)])
    assert four == alone and len({digest for _, digest in alone}) == 24
