"""Documents out of TFDS data sets and the embedded corpora; TFDS is imported only when needed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .files import DEFAULTS, Document, ReadOptions, nearest, record_text

if TYPE_CHECKING:
    from .sources import Source


def corpora() -> Mapping[str, str]:
    """Names and descriptions of the embedded corpora."""
    from .corpus import CORPORA

    return CORPORA


def open_split(
    source: "Source", split: str, options: ReadOptions, cache: Path
) -> tuple[Iterator[Document], int | None]:
    """Documents still to be split and their number, or the wanted split itself and None."""
    splits = _splits(source, cache)
    whole = source.split or "train"
    if whole not in splits:
        raise UserError(f"{source.path}: no split {whole!r}{nearest(whole, splits)}")
    if split == "all":
        names = [source.split] if source.split else list(splits)
        return _chain(source, splits, names, options), None
    if whole == "train" and "validation" in splits:
        return _chain(source, splits, [split], options), None
    return _chain(source, splits, [whole], options), len(splits[whole])


def identity(source: "Source", options: ReadOptions, cache: Path) -> str:
    """A digest of the records: the corpus's own, or that of the text of a TFDS data set."""
    if source.kind == "corpus":
        from .corpus import corpus_digest

        return corpus_digest(source.path, cache)
    digest = hashlib.sha256()
    splits = _splits(source, cache)
    for name in sorted(splits):
        for document in _chain(source, splits, [name], options):
            text = document.text.encode("utf-8")
            digest.update(f"{name} {len(text)} ".encode() + text)
    return digest.hexdigest()


def _splits(source: "Source", cache: Path) -> Mapping[str, Sequence]:
    if source.kind == "corpus":
        from .corpus import load_corpus

        return load_corpus(source.path, cache)
    return _tfds(source.path)


def _tfds(name: str) -> Mapping[str, Sequence]:
    """Random access to each split of a prepared data set (array_record, no TensorFlow)."""
    import tensorflow_datasets as tfds

    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            builder = tfds.builder_from_directory(str(folder))
        else:
            builder = tfds.builder(name, try_gcs=False)
    except Exception as error:  # TFDS raises many kinds for a name it does not know
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"tfds:{name}: {reason}") from None
    if not builder.info.splits:
        raise UserError(
            f"tfds:{name}: not prepared on this machine (looked in {builder.data_dir}): prepare it "
            "with builder.download_and_prepare(file_format='array_record')"
        )
    try:
        return {split: builder.as_data_source(split=split) for split in builder.info.splits}
    except NotImplementedError:
        raise UserError(
            f"tfds:{name}: stored as {builder.info.file_format.value}, which has no random access: "
            "prepare it with file_format='array_record'"
        ) from None


def _chain(
    source: "Source", splits: Mapping[str, Sequence], names: list[str], options: ReadOptions
) -> Iterator[Document]:
    if source.kind == "corpus":
        options = DEFAULTS  # its field is `text`, and its text is UTF-8
    for split in names:
        records = splits[split]
        for number in range(len(records)):
            where = f"{source.kind}:{source.path}:{split}[{number}]"
            text, replaced = record_text(records[number], where, options)
            yield Document(text, where, replaced=replaced)
