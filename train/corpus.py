"""The tokenizer and the token stores of a run, from its settings."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from ..data import (
    ReadOptions,
    Source,
    Tokenizer,
    TokenStore,
    build_store,
    make_tokenizer,
    parse_source,
    read_documents,
)
from ..errors import UserError
from .config import PretrainConfig
from .run import PROVENANCE, TOKENIZER, Run


@dataclass(frozen=True)
class Corpus:
    """The data of a run."""

    sources: tuple[Source, ...]
    names: tuple[str, ...]
    """Of the sources, each once."""
    train: tuple[TokenStore, ...]
    validation: tuple[TokenStore, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the sources in the mixture."""
        return tuple(source.weight for source in self.sources)


def options_of(config: PretrainConfig) -> ReadOptions:
    """How records become text."""
    return ReadOptions(text_field=config.text_field, decode_errors=config.decode_errors)


def sources_of(config: PretrainConfig) -> tuple[Source, ...]:
    """The sources. Raises UserError where there are none."""
    if not config.data:
        raise UserError("no data: name text to train on, for example --data text:my.txt")
    return tuple(map(parse_source, config.data))


def tokenizer_of(config: PretrainConfig, run: Run | None) -> Tokenizer:
    """The run's tokenizer where it has one; else made as the settings say, on the training part."""
    if run is not None and run.exists:
        tokenizer = run.tokenizer()
        known = run.read(PROVENANCE).get("digests", {}).get("tokenizer", tokenizer.digest)
        check_tokenizer(run, tokenizer, known)
        return tokenizer
    options, sources = options_of(config), sources_of(config)

    def texts() -> Iterator[str]:
        for source in sources:
            for document in read_documents(source, "train", options):
                yield document.text

    return make_tokenizer(config.tokenizer, texts)


def check_tokenizer(run: Run, tokenizer: Tokenizer, trained_with: str) -> None:
    """`UserError` where a run's tokenizer is not the one it was trained with."""
    if tokenizer.digest != trained_with:
        raise UserError(
            f"{run.path / TOKENIZER}: does not fit the checkpoints, which were trained with "
            f"another tokenizer (digest {trained_with[:12]} there, {tokenizer.digest[:12]} here); "
            "bring that one back"
        )


def with_vocabulary(config: PretrainConfig, tokenizer: Tokenizer) -> PretrainConfig:
    """The settings with the vocabulary's size filled in; an error where it is too small."""
    size = config.model.vocab_size
    if size and size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size = {size} is too small for the tokenizer, which has "
            f"{tokenizer.vocab_size:,} tokens; leave it at 0 to take the tokenizer's"
        )
    model = config.model.with_vocab(size or tokenizer.vocab_size)
    return dataclasses.replace(config, model=model)


def open_corpus(config: PretrainConfig, tokenizer: Tokenizer) -> Corpus:
    """Every source, tokenised: found in the cache, or made."""
    options, sources = options_of(config), sources_of(config)
    train = tuple(build_store(source, "train", tokenizer, options) for source in sources)
    validation = tuple(build_store(source, "validation", tokenizer, options) for source in sources)
    return Corpus(sources, unique([source.name for source in sources]), train, validation)


def unique(names: list[str]) -> tuple[str, ...]:
    """Names, with a number behind those that came before."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(out)
