"""Files are cut at the same places from wherever one looks, and only where no token is cut."""

import gzip
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aludel.data import ReadOptions, extents, files, make_tokenizer
from aludel.data.extents import Extent, scan, scan_files
from aludel.data.parts import byte_of, ends_part

STRICT, REPLACE = ReadOptions(), ReadOptions(decode_errors="replace")
TEXT = (
    "the cat's hat, it'll sit on the mat;  2024\n\n\tdef f(x):\n    return x\n中文字。中文 ü🙂\n"
    * 9
)
wordy = st.text(
    st.sampled_from("ab1'.,\n\t  \u00a0\u3000\x1c中é🙂sl。，"), min_size=1, max_size=300
)
raw = st.binary(min_size=1, max_size=200) | wordy.map(str.encode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("extents")


def small(size, look=1 << 20, block=16):
    """Extents of `size` bytes, read in blocks of `block`."""
    return mock.patch.multiple(extents, SIZE=size, LOOK=look, BLOCK=block)


@settings(max_examples=150)
@given(raw, st.sampled_from(["text", "jsonl"]), st.integers(1, 40), st.integers(1, 30))
def test_each_multiple_alone_finds_what_a_reading_from_the_start_finds(
    folder, data, kind, size, look
):
    path = folder / "one"
    path.write_bytes(data)
    with small(size, look):
        whole = scan(str(path), kind, REPLACE, size, 0, None)
        alone = [
            extent
            for k in range(-(-len(data) // size))
            for extent in scan(str(path), kind, REPLACE, size, k, k + 1)
        ]
    assert alone == whole
    assert [extent.begin for extent in whole] == [0, *(extent.end for extent in whole[:-1])]
    assert whole[-1].end == len(data)
    if kind == "text":  # no character was cut, nor a broken piece of one
        text = data.decode("utf-8", "replace")
        assert sum(extent.characters for extent in whole) == len(text)
        assert (
            "".join(data[extent.begin : extent.end].decode("utf-8", "replace") for extent in whole)
            == text
        )
    else:
        assert all(data[extent.end - 1] == ord("\n") for extent in whole[:-1])
        assert sum(extent.lines for extent in whole) == data.count(b"\n")


@pytest.fixture(scope="module")
def bpe():
    return make_tokenizer("bpe:400", lambda: iter([TEXT]))


@given(wordy, st.integers(1, 30))
def test_no_extent_cuts_a_token(folder, bpe, text, size):
    path = folder / "two"
    path.write_bytes(text.encode())
    with small(size):
        found = scan(str(path), "text", STRICT, size, 0, None)
    ids = [
        token
        for extent in found
        for token in bpe.encode(text.encode()[extent.begin : extent.end].decode()).tolist()
    ]
    assert ids == bpe._library.encode(text, add_special_tokens=False).ids


def test_what_was_found_of_an_old_file_is_kept_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    monkeypatch.setattr(extents, "RACY", -(10**12))  # our file is not old
    first = scan_files([path], "text", STRICT, tmp_path / "cache")
    opened = []
    before = files.open_bytes
    monkeypatch.setattr(files, "open_bytes", lambda path: opened.append(path) or before(path))
    assert scan_files([path], "text", STRICT, tmp_path / "cache") == first and not opened
    with open(path, "a") as file:
        file.write("more")
    (again,) = scan_files([path], "text", STRICT, tmp_path / "cache")
    assert opened == [path] and again[0].digest != first[0][0].digest
    scan_files([path], "text", REPLACE, tmp_path / "cache")
    assert len(opened) == 2  # characters are counted otherwise


def test_a_young_file_is_read_again(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = scan_files([path], "text", STRICT, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() and isinstance(first[0][0], Extent)


def test_a_packed_file_is_cut_as_the_plain_one(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "a.gz").write_bytes(gzip.compress(TEXT.encode()))
    with small(100):
        plain, packed = scan_files(
            [tmp_path / "a.txt", tmp_path / "a.gz"], "text", STRICT, tmp_path / "cache"
        )
    assert plain == packed and len(plain) > 5


@given(raw, st.data())
def test_the_byte_of_a_character(data, draw):
    text = data.decode("utf-8", "replace")
    character = draw.draw(st.integers(0, len(text)))
    with small(1 << 20, block=7):
        at = byte_of(data, character)
    assert data[:at].decode("utf-8", "replace") == text[:character]
    assert data[at:].decode("utf-8", "replace") == text[character:]


def test_parts_end_by_chance_in_proportion_to_size():
    digests = [f"{number * 0x1000000 // 1000:06x}" + "0" * 58 for number in range(1000)]
    ends = [ends_part(digest, 250, 250, 1000) for digest in digests]
    assert sum(ends) == 250
    assert all(ends_part(digest, 1000, 1000, 1000) for digest in digests)
    assert ends_part("f" * 64, 1, 2000, 1000) and not ends_part("f" * 64, 1, 1999, 1000)
