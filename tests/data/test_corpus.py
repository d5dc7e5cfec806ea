"""The embedded corpora: built once, whole or not there, the same everywhere."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aludel.data import corpus
from aludel.data.corpus import CORPORA, corpus_digest, corpus_figures, load_corpus
from aludel.data.python_library import Roots
from aludel.errors import UserError


@pytest.fixture
def roots(tmp_path) -> Roots:
    """A library of 60 modules and a folder with one installed package."""
    library, site = tmp_path / "lib", tmp_path / "site-packages"
    for folder in (library, site / "pack", site / "pack-1.0.dist-info"):
        folder.mkdir(parents=True)
    for i in range(60):
        (library / f"m{i}.py").write_text(f'"""Module {i}: é 漢字."""\nvalue = {i}\n')
        (site / "pack" / f"m{i}.py").write_text(f"packed = {i}\n")
    (site / "pack-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pack\nVersion: 1.0\n"
    )
    return Roots(library, (site,))


def contents(name: str, cache: Path, roots: Roots) -> dict[str, dict[str, str]]:
    splits = load_corpus(name, cache, roots)
    return {split: {r["name"]: r["text"] for r in records} for split, records in splits.items()}


def test_both_corpora_hold_their_documents(tmp_path, roots):
    small = contents("python", tmp_path / "cache", roots)
    large = contents("python-packages", tmp_path / "cache", roots)
    assert set(CORPORA) == {"python", "python-packages", "exercises"}
    for split in ("train", "validation"):
        assert small[split] and small[split].items() < large[split].items()
    assert not set(small["train"]) & set(small["validation"])
    every = small["train"] | small["validation"]
    assert len(every) == 120
    assert every["source/m7.py"] == '"""Module 7: é 漢字."""\nvalue = 7\n'
    assert every["docstrings/m7.py"] == "m7\n\n    Module 7: é 漢字.\n"
    assert len(large["train"]) + len(large["validation"]) == 180


@pytest.mark.slow
def test_exercises_are_the_same_whatever_the_library(tmp_path, roots):
    found = contents("exercises", tmp_path / "cache", roots)
    assert not set(found["train"]) & set(found["validation"])
    assert len(found["train"]) > 8 * len(found["validation"]) > 0
    other = Roots(roots.stdlib / "nothing", ())
    digests = [corpus_digest("exercises", tmp_path / "cache", one) for one in (roots, other)]
    assert digests[0] == digests[1]


def test_records_are_random_access(tmp_path, roots):
    records = load_corpus("python", tmp_path / "cache", roots)["train"]
    assert records[-1] == records[len(records) - 1] != records[0]
    with pytest.raises(IndexError):
        records[len(records)]


def test_figures_count_the_documents(tmp_path, roots):
    (roots.stdlib / "copy.py").write_text('"""Module 3:  é 漢字."""\n\nvalue = 3\n')
    found = contents("python", tmp_path / "cache", roots)
    figures = corpus_figures("python", tmp_path / "cache", roots)
    assert figures["documents"] == {split: len(texts) for split, texts in found.items()}
    assert figures["bytes"] == {
        split: sum(len(text.encode()) for text in texts.values()) for split, texts in found.items()
    }
    assert figures["dropped"] == {"duplicates": 1, "generated": 0, "unreadable": 0}


def test_the_digest_is_of_the_content(tmp_path, roots):
    digest = corpus_digest("python", tmp_path / "cache", roots)
    moved = Roots(roots.stdlib.rename(tmp_path / "elsewhere"), ())
    assert corpus_digest("python", tmp_path / "cache", moved) == digest
    (moved.stdlib / "m3.py").write_text("value = 'another'\n")
    assert corpus_digest("python", tmp_path / "other", moved) != digest


def test_it_is_built_once_and_says_so(tmp_path, roots, capfd, monkeypatch):
    load_corpus("python", tmp_path / "cache", roots)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and "Preparing the corpus python" in printed.err
    monkeypatch.setattr(corpus, "_build", None)
    assert len(load_corpus("python", tmp_path / "cache", roots)["train"])
    assert capfd.readouterr().err == ""


def test_an_installed_package_makes_another_corpus(tmp_path, roots, monkeypatch):
    cache = tmp_path / "cache"
    small, large = (corpus_digest(name, cache, roots) for name in ("python", "python-packages"))
    site = roots.packages[0]
    (site / "new.py").write_text("fresh = 1\n")
    (site / "new-2.0.dist-info").mkdir()
    (site / "new-2.0.dist-info" / "METADATA").write_text("Name: new\nVersion: 2.0\n")
    assert corpus_digest("python-packages", cache, roots) != large
    assert corpus_digest("python", cache, roots) == small


@pytest.mark.parametrize("seconds", [0.2, 0.4])
def test_a_killed_build_is_made_again(tmp_path, roots, seconds):
    cache = tmp_path / "cache"
    program = f"""
import sys
from pathlib import Path
from aludel.data import corpus, python_library
real = corpus.documents
def slowly(*args):
    import time
    for document in real(*args):
        time.sleep(.01)
        yield document
corpus.documents = slowly
print("begun", flush=True)
roots = python_library.Roots(Path({str(roots.stdlib)!r}), ())
corpus.load_corpus("python", Path({str(cache)!r}), roots)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    while not list(cache.glob("corpora/.*")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    (left,) = cache.glob("corpora/.*")
    assert len(load_corpus("python", cache, roots)["train"]) > 90
    assert left.exists()  # it may be another process's: removed only when nobody touches it
    for path in (left, *left.rglob("*")):
        os.utime(path, (1, 1))
    load_corpus("python-packages", cache, roots)
    assert not left.exists()


def test_a_library_without_sources_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no Python source there.*install"):
        load_corpus("python", tmp_path / "cache", Roots(tmp_path / "empty", ()))
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_full_disk_is_a_user_error(tmp_path, roots):
    (roots.stdlib / "large.py").write_text(f"text = {os.urandom(200_000).hex()!r}\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written .*File too large"):
            load_corpus("python", tmp_path / "cache", roots)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "cache" / "corpora").iterdir())


def test_no_tensorflow():
    program = "import sys, aludel.data.corpus; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.slow
def test_the_library_of_this_python(tmp_path):
    splits = load_corpus("python", tmp_path)
    figures = corpus_figures("python", tmp_path)
    total = sum(figures["bytes"].values())
    assert total > 5_000_000 and figures["seconds"] < 60
    assert 0.05 < figures["bytes"]["validation"] / total < 0.15
    train = {" ".join(record["text"].split()) for record in splits["train"]}
    validation = {" ".join(record["text"].split()) for record in splits["validation"]}
    assert len(train) == len(splits["train"]) and not train & validation
    assert corpus_digest("python", tmp_path) == corpus_digest("python", tmp_path / "again")
