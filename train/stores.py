"""`aludel data`: token stores made for a tokenizer, and described."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data import ReadOptions, Tokenizer, build_store, open_store, parse_source, read_meta
from ..errors import UserError
from .corpus import train_tokenizer
from .run import TOKENIZER, note
from .sizes import size, table


def build(
    data: Sequence[str],
    tokenizer: str,
    *,
    splits: Sequence[str],
    text_field: str,
    decode_errors: str,
    workers: int | None = None,
) -> Iterator[tuple[Path, str, str]]:
    """Make the stores of all sources and splits; yields the path, the source and the split of each.

    tokenizer: as `--tokenizer` has it, or a run folder. Raises UserError for what cannot be done.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}")
    options = ReadOptions(text_field=text_field, decode_errors=decode_errors)
    sources = [parse_source(spec) for spec in data]
    run = Path(tokenizer).expanduser() / TOKENIZER
    if run.is_file():
        vocabulary = Tokenizer.load(run)
    else:
        vocabulary = train_tokenizer(tokenizer, sources, options, note)
    for spec, source in zip(data, sources, strict=True):
        for split in splits:
            store = build_store(source, split, vocabulary, options, workers=workers, say=note)
            yield store.path, spec, split


def describe(path: Path, rows: Sequence[tuple[str, str]] = ()) -> list[str]:
    """`aludel data info`: what a store holds."""
    meta = read_meta(path)
    if open_store(path) is None:
        raise UserError(f"{path}: files are missing or cut; `aludel data check` names them")
    rows = list(rows) or [("source", meta["source"])]
    per_token = f"{meta['bytes'] / max(1, meta['tokens']):.2f} bytes of text each"
    rows += [
        ("documents", f"{meta['documents']:,}"),
        ("tokens", f"{meta['tokens']:,} ({meta['dtype']}), {per_token}"),
        ("text", f"{meta['bytes']:,} bytes ({size(meta['bytes'])})"),
        ("shards", f"{len(meta['shards']):,}"),
        ("separator", "none" if meta["separator"] is None else str(meta["separator"])),
        ("tokenizer", meta["tokenizer"][:12]),
        ("digest", meta["digest"]),
    ]
    if meta["replaced"]:
        rows.append(("replaced", f"{meta['replaced']:,} undecodable pieces, by U+FFFD"))
    if meta["loss"]:
        rows.append(("lost", f"the tokenizer does not keep all of the text: {meta['loss']}"))
    return [*table(rows), str(path)]
