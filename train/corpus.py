"""The tokenizer and the token stores of a run, from its settings."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data import (
    ChatStore,
    ComparisonStore,
    PromptStore,
    ReadOptions,
    Source,
    Tokenizer,
    TokenStore,
    build_chats,
    build_comparisons,
    build_prompts,
    build_store,
    make_tokenizer,
    parse_source,
    read_documents,
    read_sample,
    source_bytes,
)
from ..data.sources import Split
from ..errors import UserError
from ..paths import cache_dir
from .config import PpoConfig, PretrainConfig, RewardConfig, SftConfig, StageConfig
from .run import PROVENANCE, TOKENIZER, Run, note

BPE_BYTES = 256_000_000
"""Text that BPE is trained on, at most."""


@dataclass(frozen=True)
class Corpus:
    """The data of a run."""

    sources: tuple[Source, ...]
    names: tuple[str, ...]
    """Of the sources, each once."""
    train: tuple[TokenStore | ChatStore | ComparisonStore | PromptStore, ...]
    validation: tuple[TokenStore | ChatStore | ComparisonStore | PromptStore, ...]
    text: tuple[TokenStore, ...] = ()
    """Pretraining text beside it, where a stage mixes some in."""

    @property
    def stores(self) -> tuple:
        """Those of training, then those of validation."""
        return (*self.train, *self.validation)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the sources in the mixture."""
        return tuple(source.weight for source in self.sources)


def options_of(config: StageConfig) -> ReadOptions:
    """How records become text; as by default in stages that read none."""
    if not isinstance(config, PretrainConfig):
        return ReadOptions()
    return ReadOptions(text_field=config.text_field, decode_errors=config.decode_errors)


def sources_of(config: StageConfig) -> tuple[Source, ...]:
    """The sources. Raises UserError where there are none."""
    if not config.data:
        kinds = {
            SftConfig: "chat:my.jsonl",
            RewardConfig: "pairs:my.jsonl",
            PpoConfig: "chat:my.jsonl",
        }
        example = kinds.get(type(config), "text:my.txt")
        raise UserError(f"no data: name something to train on, for example --data {example}")
    return tuple(map(parse_source, config.data))


def tokenizer_of(
    config: PretrainConfig, run: Run | None, say: Callable[[str], None] = note
) -> Tokenizer:
    """The run's tokenizer where it has one; else made as the settings say, on the training part."""
    if run is not None and run.exists:
        tokenizer = run.tokenizer()
        known = run.read(PROVENANCE).get("digests", {}).get("tokenizer", tokenizer.digest)
        check_tokenizer(run, tokenizer, known)
        return tokenizer
    return train_tokenizer(config.tokenizer, sources_of(config), options_of(config), say)


def train_tokenizer(
    spec: str, sources: Sequence[Source], options: ReadOptions, say: Callable[[str], None]
) -> Tokenizer:
    """A tokenizer as `--tokenizer` says it, made from the training part of the sources.

    BPE is trained on all of the text up to BPE_BYTES of it, else, and then it says so, on a
    sample of that size, evenly spread and always the same.
    """
    cache = cache_dir()

    def texts() -> Iterator[str]:
        share = 1.0
        if spec.startswith("bpe:"):
            total = sum(source_bytes(source, "train", options, cache) for source in sources)
            share = min(1.0, BPE_BYTES / total)
            if share < 1:
                say(
                    f"tokenizer: trained on a sample of {BPE_BYTES / 1e6:,.0f} MB, evenly spread "
                    f"over the {total / 1e6:,.0f} MB to train on"
                )
        for source in sources:
            if share < 1:
                documents = read_sample(source, "train", options, cache, share)
            else:
                documents = read_documents(source, "train", options, cache)
            yield from (document.text for document in documents)

    return make_tokenizer(spec, texts)


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


def open_corpus(
    config: PretrainConfig, tokenizer: Tokenizer, say: Callable[[str], None] = note
) -> Corpus:
    """Every source, tokenised: found in the cache, or made."""
    options, sources = options_of(config), sources_of(config)

    def stores(split: Split) -> tuple[TokenStore, ...]:
        return tuple(build_store(one, split, tokenizer, options, say=say) for one in sources)

    train, validation = stores("train"), stores("validation")
    return Corpus(sources, unique([source.name for source in sources]), train, validation)


def open_records(
    config: StageConfig, kind: str, what: str, build: Callable[[Source, Split], Any]
) -> Corpus:
    """Every source of one kind of records, each of its parts made by `build`."""
    sources = sources_of(config)
    for source in sources:
        if source.kind != kind:
            raise UserError(f"{source.path}: is not a source of {what}; write {kind}:PATH")
    train, held = (
        tuple(build(source, split) for source in sources) for split in ("train", "validation")
    )
    return Corpus(sources, unique([source.name for source in sources]), train, held)


def open_chats(config: SftConfig, tokenizer: Tokenizer, say: Callable[[str], None]) -> Corpus:
    """Every source of conversations, tokenised; it is told what does not fit the rows."""
    corpus = open_records(
        config, "chat", "conversations", lambda source, split: build_chats(source, split, tokenizer)
    )
    cut = [store.cut(config.row_length) for store in corpus.stores]
    left, right = (sum(counts) for counts in zip(*cut, strict=True))
    if left or right:
        say(
            f"too long for rows of {config.row_length:,} tokens: {left:,} conversations lose their "
            f"first turns, {right:,} the end of their last answer"
        )
    return corpus


def open_comparisons(
    config: RewardConfig, tokenizer: Tokenizer, say: Callable[[str], None]
) -> Corpus:
    """Every source of comparisons, tokenised; it is told how many do not fit the rows."""
    corpus = open_records(
        config,
        "pairs",
        "comparisons",
        lambda source, split: build_comparisons(source, split, tokenizer),
    )
    cut = sum(store.fitted(config.row_length)[1] for store in corpus.stores)
    if cut:
        say(f"too long for {config.row_length:,} tokens: {cut:,} comparisons, cut on all sides")
    return corpus


def open_prompts(config: PpoConfig, tokenizer: Tokenizer, say: Callable[[str], None]) -> Corpus:
    """Every source of prompts, tokenised; it is told how many are cut."""
    room = config.batch_length
    if room < 8:
        raise UserError(
            f"answers of {config.new_tokens} tokens leave no room for prompts in rows of "
            f"{config.row_length}: make new_tokens smaller or context larger"
        )
    corpus = open_records(
        config,
        "chat",
        "prompts",
        lambda source, split: build_prompts(source, split, tokenizer, room),
    )
    cut = sum(store.cut for store in corpus.stores)
    if cut:
        say(f"too long for {room:,} tokens: {cut:,} prompts lose their first turns")
    text = tuple(
        build_store(parse_source(one), "train", tokenizer, ReadOptions(), say=say)
        for one in config.ptx_data
    )
    return dataclasses.replace(corpus, text=text)


def with_completions(config: StageConfig, corpus: Corpus) -> StageConfig:
    """The settings with the number of completions that a comparison holds at most, and the tokens
    of the rows that they are packed into."""
    if not isinstance(config, RewardConfig):
        return config
    most = max(store.most for store in corpus.train)
    room = max(store.room(config.row_length) for store in corpus.train)
    return dataclasses.replace(config, completions=most, compared_tokens=room)


def unique(names: list[str]) -> tuple[str, ...]:
    """Names, with a number behind those that came before."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(out)
