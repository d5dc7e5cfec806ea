"""The corpora that every machine has: TFDS builders over the Python library (`python_library.py`)
and over exercises (`exercises.py`).

`load_corpus(name, cache)` builds once (array_record, no TensorFlow: seconds) and opens after that.
A build is keyed by the interpreter and, for `python-packages`, by what is installed. It is written
beside its place and renamed into it, so a corpus is whole or it is not there.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import tensorflow_datasets as tfds
from absl import logging

from ..errors import UserError
from .exercises import exercise_documents
from .python_library import Document, Dropped, Roots, documents, roots_of_this_python

CORPORA: dict[str, str] = {
    "python": "Python's standard library: source, docstrings, language reference (13 MB)",
    "python-packages": "the same and the Python sources of the installed packages",
    "exercises": "copying, sums, brackets, ... made by programs: what probes ask (8 MB)",
}
SPLITS = ("train", "validation")
ABANDONED = 3600.0
"""Seconds after which a half-written corpus that nobody touches is taken for a dead one."""


class AludelPython(tfds.core.GeneratorBasedBuilder):
    """Documents of `text` and `name`, in two splits."""

    VERSION = tfds.core.Version("1.0.0")
    PACKAGES = False

    def __init__(self, *, roots: Roots | None = None, **kwargs) -> None:
        self.roots = roots or roots_of_this_python()
        self.figures: dict[str, object] = {}
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {"text": tfds.features.Text(), "name": tfds.features.Text()}
        )
        return tfds.core.DatasetInfo(builder=self, description=self.__doc__, features=features)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        """Both splits out of one reading; its figures and digest stay in `self.figures`."""
        del dl_manager  # nothing is downloaded
        dropped = Dropped()
        splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
        for document in self.read(dropped):
            splits[document.split].append(document)
        for split, found in splits.items():
            if not found:
                raise UserError(
                    f"{self.roots.stdlib}: no Python source there for the {split} part: install "
                    "Python with the sources of its standard library"
                )
        self.figures = {
            "digest": _digest(splits),
            "documents": {split: len(found) for split, found in splits.items()},
            "bytes": {split: _bytes(found) for split, found in splits.items()},
            "dropped": vars(dropped),
        }
        return {split: self._generate_examples(found) for split, found in splits.items()}

    def read(self, dropped: Dropped) -> Iterator[Document]:
        """The documents of both splits."""
        return documents(self.roots, self.PACKAGES, dropped)

    def _generate_examples(self, found: list[Document]) -> Iterator[tuple[str, dict[str, str]]]:
        for document in found:
            yield document.name, {"text": document.text, "name": document.name}


class AludelPythonPackages(AludelPython):
    """Documents of `text` and `name`, in two splits, installed packages included."""

    PACKAGES = True


class AludelExercises(AludelPython):
    """Documents of `text` and `name`, in two splits, made by programs."""

    def read(self, dropped: Dropped) -> Iterator[Document]:
        """The same on every machine."""
        return exercise_documents()


BUILDERS = {
    "python": AludelPython,
    "python-packages": AludelPythonPackages,
    "exercises": AludelExercises,
}


class Records(Sequence[dict[str, str]]):
    """Random access to one split: `records[i]` is {"text": str, "name": str}."""

    def __init__(self, source: Sequence) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, str]:
        record = self.source[range(len(self))[index]]
        return {name: bytes(record[name]).decode("utf-8") for name in ("text", "name")}


def load_corpus(name: str, cache: Path, roots: Roots | None = None) -> dict[str, Sequence]:
    """The splits `train` and `validation` of a corpus, made first where they are not yet.

    Each is a sequence of {"text", "name"}. `roots`: the library to read, by default that of the
    running Python. Raises UserError for a library without sources or a cache without room.
    """
    builder = tfds.builder_from_directory(str(_records(_prepared(name, cache, roots))))
    sources = builder.as_data_source(split=list(SPLITS))
    return {split: Records(source) for split, source in zip(SPLITS, sources, strict=True)}


def corpus_digest(name: str, cache: Path, roots: Roots | None = None) -> str:
    """Digest of names, texts and split: the same for the same Python and packages anywhere."""
    return str(corpus_figures(name, cache, roots)["digest"])


def corpus_figures(name: str, cache: Path, roots: Roots | None = None) -> dict:
    """What was built: digest, documents and bytes by split, what was dropped, seconds."""
    return json.loads((_prepared(name, cache, roots) / "figures.json").read_text())


def _digest(splits: dict[str, list[Document]]) -> str:
    digest = hashlib.sha256()
    for split, found in splits.items():
        for document in sorted(found):
            text = document.text.encode()
            digest.update(f"{split} {document.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def _bytes(found: list[Document]) -> int:
    return sum(len(document.text.encode()) for document in found)


def _key(name: str, roots: Roots) -> str:
    """What decides a build: the code's version, the interpreter, the roots and what is in them."""
    parts = [name, str(BUILDERS[name].VERSION), sys.version, str(roots.stdlib)]
    if BUILDERS[name].PACKAGES:
        found = importlib.metadata.distributions(path=[str(root) for root in roots.packages])
        parts += [str(root) for root in roots.packages]
        parts += sorted(f"{d.metadata['Name']} {d.version}" for d in found)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _records(folder: Path) -> Path:
    """Where TFDS keeps the records below a corpus's folder."""
    (found,) = folder.glob("records/*/*/dataset_info.json")
    return found.parent


def _prepared(name: str, cache: Path, roots: Roots | None) -> Path:
    """The folder of a whole corpus, built where it is missing."""
    roots = roots or roots_of_this_python()
    folder = Path(cache) / "corpora" / f"{name}-{_key(name, roots)}"
    if not (folder / "figures.json").is_file():
        print(f"Preparing the corpus {name} ...", file=sys.stderr, flush=True)
        try:
            _build(name, folder, roots)
        except (OSError, RuntimeError) as error:  # array_record raises the latter
            reason = getattr(error, "strerror", None) or str(error).partition(";")[0]
            raise UserError(
                f"{folder.parent}: the corpus cannot be written ({reason}): free "
                "some room, or set ALUDEL_CACHE to a folder on another disk"
            ) from None
    return folder


def _build(name: str, folder: Path, roots: Roots) -> None:
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    partial = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
    try:
        with _silence():
            builder = BUILDERS[name](roots=roots, data_dir=str(partial / "records"))
            download = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=download)
        figures = builder.figures | {"seconds": round(time.monotonic() - started, 1)}
        (partial / "figures.json").write_text(json.dumps(figures, indent=1))
        try:
            os.rename(partial, folder)
        except OSError:
            if not (folder / "figures.json").is_file():  # no other process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(corpora: Path) -> None:
    """Removes what killed processes left half-written."""
    for left in corpora.glob(".*"):
        with contextlib.suppress(FileNotFoundError):  # its owner is at work
            touched = [path.stat().st_mtime for path in (left, *left.rglob("*"))]
            if max(touched) < time.time() - ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without TFDS's progress bars, announcements and log lines; errors still raise."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
