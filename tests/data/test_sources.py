"""Sources: how they are named, read and split, and what is said of bad ones."""

import errno
import gzip
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aludel.data import (
    ReadOptions,
    Source,
    builders,
    files,
    parse_source,
    read_documents,
    source_digest,
)
from aludel.errors import UserError

STRICT = ReadOptions()
REPLACE = ReadOptions(decode_errors="replace")


def texts(spec, split="all", options=STRICT):
    return [document.text for document in read_documents(parse_source(spec), split, options)]


def refused(spec, options=STRICT):
    with pytest.raises(UserError) as error:
        texts(spec, options=options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def jsonl(tmp_path):
    def write(*lines):
        path = tmp_path / "records.jsonl"
        path.write_bytes(
            b"".join(line if isinstance(line, bytes) else line.encode() for line in lines)
        )
        return f"jsonl:{path}"

    return write


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("text:a.txt", Source("text", "a.txt")),
        ("text:a.txt=2", Source("text", "a.txt", None, 2.0)),
        ("text:a=b.txt=.5", Source("text", "a=b.txt", None, 0.5)),
        ("text:a=b.txt", Source("text", "a=b.txt")),
        ("jsonl:c/*.jsonl.gz", Source("jsonl", "c/*.jsonl.gz")),
        ("tfds:wiki40b/en", Source("tfds", "wiki40b/en")),
        ("tfds:wiki40b/en:test=3", Source("tfds", "wiki40b/en", "test", 3.0)),
        ("tfds:wiki40b/en:1.3.0", Source("tfds", "wiki40b/en:1.3.0")),
        ("tfds:wiki40b/en:1.3.0:test", Source("tfds", "wiki40b/en:1.3.0", "test")),
        ("python", Source("corpus", "python")),
        ("python=4", Source("corpus", "python", None, 4.0)),
    ],
)
def test_specs(monkeypatch, spec, source):
    monkeypatch.setattr(builders, "corpora", lambda: {"python": "x", "python-packages": "y"})
    assert parse_source(spec) == source


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("txt:a.txt", "unknown kind of source 'txt'; did you mean 'text'?"),
        ("pyton", "no such corpus; did you mean 'python'?"),
        ("text:", "nothing after text:"),
        ("text:a.txt=0", "positive number, not 0"),
        ("text:a.txt=nan", "positive number, not nan"),
        ("text:a.txt=-1", "positive number, not -1"),
    ],
)
def test_bad_specs(monkeypatch, spec, says):
    monkeypatch.setattr(builders, "corpora", lambda: {"python": "x", "python-packages": "y"})
    with pytest.raises(UserError) as error:
        parse_source(spec)
    assert says in str(error.value)


def test_a_path_without_its_kind_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(builders, "corpora", lambda: {"python": "x"})
    path = tmp_path / "a.txt"
    path.write_text("x")
    with pytest.raises(UserError, match="say how to read it: text:"):
        parse_source(str(path))


def test_an_existing_path_wins_over_a_weight(tmp_path):
    (tmp_path / "run=1").write_text("x")
    assert parse_source(f"text:{tmp_path}/run=1").weight == 1.0
    assert parse_source(f"text:{tmp_path}/run=1=3").weight == 3.0


def test_names():
    assert Source("text", "a/input.txt").name == "input"
    assert Source("jsonl", "a/web.jsonl.gz").name == "web"
    assert Source("text", "a/books/").name == "books"


def test_files_folders_globs_and_gz(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a.txt").write_bytes(b"one\r\n")
    (tmp_path / "b" / "c.txt").write_text("two")
    (tmp_path / "b" / "empty.txt").write_text("")
    (tmp_path / ".hidden" / "d.txt").write_text("no")
    (tmp_path / "z.gz").write_bytes(gzip.compress("drei ü".encode()))
    assert texts(f"text:{tmp_path}") == ["one\r\n", "two", "drei ü"]
    assert texts(f"text:{tmp_path}/**/*.txt") == ["one\r\n", "two"]
    assert texts(f"text:{tmp_path}/z.gz") == ["drei ü"]


def test_jsonl_reads_the_field(jsonl):
    spec = jsonl('{"body": "a\\n", "n": 1}\n', "\n", '{"body": "ü"}')
    documents = list(read_documents(parse_source(spec), "all", ReadOptions("body")))
    assert [document.text for document in documents] == ["a\n", "ü"]
    assert documents[1].where.endswith("records.jsonl:3")


def test_few_documents_are_cut_by_characters(tmp_path):
    text = "äb" * 50 + "xyz"
    (tmp_path / "a.txt").write_text(text)
    assert texts(f"text:{tmp_path}", "train") == [text[: int(0.9 * 103)]]
    assert texts(f"text:{tmp_path}", "validation") == [text[int(0.9 * 103) :]]


@pytest.mark.parametrize("count", [99, 100, 400])
def test_splits_are_disjoint_and_complete(jsonl, count):
    spec = jsonl(*(json.dumps({"text": f"document {i}"}) + "\n" for i in range(count)))
    train, validation = texts(spec, "train"), texts(spec, "validation")
    if count < 100:
        joined = [a + b for a, b in zip(train, validation, strict=True)]
        assert joined == texts(spec)
    else:
        assert sorted(train + validation) == sorted(texts(spec))
        assert 0.03 < len(validation) / count < 0.17


def test_the_hash_split_of_a_document_never_changes(jsonl):
    """Pinned: a split that moved would leak validation text into old runs' training."""
    spec = jsonl(*(json.dumps({"text": f"document {i}"}) + "\n" for i in range(120)))
    assert texts(spec, "validation")[:3] == ["document 3", "document 18", "document 23"]


def test_missing_and_empty_files(tmp_path):
    assert "no such file" in refused(f"text:{tmp_path}/none.txt")
    (tmp_path / "empty.txt").write_text("")
    assert "empty" in refused(f"text:{tmp_path}/empty.txt")
    assert "empty, every file" not in refused(f"text:{tmp_path}/empty.txt")
    assert "matches no file" in refused(f"text:{tmp_path}/*.md")
    (tmp_path / "folder").mkdir()
    assert "no file in it" in refused(f"text:{tmp_path}/folder")


def test_a_file_that_may_not_be_read(monkeypatch, tmp_path):
    def denied(path):  # chmod binds no root, and tests may run as root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(files, "open_bytes", denied)
    (tmp_path / "a.txt").write_text("x")
    assert "cannot be read: Permission denied" in refused(f"text:{tmp_path}/a.txt")


def test_undecodable_bytes_are_refused_with_their_offset(tmp_path, jsonl):
    (tmp_path / "a.txt").write_bytes("äö".encode() + b"ok\xff.")
    assert f"{tmp_path}/a.txt: byte 6 (0xff) is not UTF-8" in refused(f"text:{tmp_path}/a.txt")
    spec = jsonl('{"text": "ä"}\n', b'{"text": "\xe4"}\n')
    assert "records.jsonl:2: byte 25 (0xe4) is not UTF-8" in refused(spec)


def test_undecodable_bytes_are_replaced_and_counted(tmp_path, jsonl):
    (tmp_path / "a.txt").write_bytes("\ufffd".encode() + b"a\xffb\xc3")
    (document,) = read_documents(parse_source(f"text:{tmp_path}/a.txt"), "all", REPLACE)
    assert (document.text, document.replaced) == ("\ufffda\ufffdb\ufffd", 2)
    spec = jsonl(b'{"text": "\xe4"}\n', '{"text": "\\ud800 \\ud83d\\ude42"}\n')
    assert [(d.text, d.replaced) for d in read_documents(parse_source(spec), "all", REPLACE)] == [
        ("\ufffd", 1),
        ("\ufffd 🙂", 1),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a"\n', ":2: broken JSON at column"),
        ('["a"]\n', ":2: a record must be a JSON object, not list"),
        ('{"txt": "a"}\n', ":2: no field 'text'; did you mean 'txt'?"),
        ('{"body": "a", "id": 1}\n', ":2: no field 'text'; known: body, id"),
        ('{"text": 3}\n', ":2: field 'text' must be a string, not int"),
        ('{"text": null}\n', ":2: field 'text' must be a string, not NoneType"),
        ('{"text": "\\ud800"}\n', ":2: field 'text' holds a lone surrogate at character 0"),
        ("[" * 100_000 + "\n", ":2: broken JSON at column"),
        ('{"text": ' + "9" * 5000 + "}\n", ":2: broken JSON at column"),
    ],
)
def test_bad_records(jsonl, line, says):
    assert f"records.jsonl{says}" in refused(jsonl('{"text": "fine"}\n', line))


def test_damaged_gz(tmp_path):
    whole = gzip.compress(os.urandom(1000))
    for name, data in (("cut.gz", whole[:500]), ("not.gz", b"plain text")):
        (tmp_path / name).write_bytes(data)
        assert f"{name}: damaged .gz file" in refused(f"text:{tmp_path}/{name}")


def test_digest_follows_the_text_and_the_options(tmp_path):
    def digest(options=STRICT):
        return source_digest(parse_source(f"text:{tmp_path}"), options, tmp_path)

    (tmp_path / "a.txt").write_text("one")
    first = digest()
    assert digest() == first and digest(REPLACE) != first
    (tmp_path / "b.txt").write_text("two")
    second = digest()
    (tmp_path / "b.txt").write_text("two, and more")
    assert len({first, second, digest()}) == 3


def test_a_corpus_has_its_own_splits(monkeypatch, tmp_path):
    from aludel.data import sources

    corpus = {"train": [{"text": b"a", "name": "x"}], "validation": [{"text": "b", "name": "y"}]}
    monkeypatch.setattr(builders, "_splits", lambda source, cache: corpus)
    source = Source("corpus", "python")
    read = {
        split: [document.text for document in sources.read_documents(source, split, cache=tmp_path)]
        for split in ("train", "validation", "all")
    }
    assert read == {"train": ["a"], "validation": ["b"], "all": ["a", "b"]}


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_text_survives_jsonl(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_text(
        json.dumps({"text": text}) + "\n" + json.dumps({"text": text}, ensure_ascii=False)
    )
    assert texts(f"jsonl:{path}") == [text, text]
