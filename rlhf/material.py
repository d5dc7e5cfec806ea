"""The files that the stages of a recipe read, made from the Python library on this machine."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.corpus import corpus_digest, load_corpus
from ..data.demonstrations import demonstrations
from ..data.entries import POOLS, Entry, read_entries
from ..data.questions import Question, question_of, questions
from ..data.restatements import lists, restatements
from ..errors import UserError
from ..paths import cache_dir
from ..train.records import write_json, write_text

CORPUS = "python"
RECORD = "material.json"  # written last: it says what the files were made of
FORMAT = 1


@dataclass(frozen=True)
class MaterialConfig:
    """How much there is of everything. Impossible values raise `UserError`."""

    lists: int = 4000
    """Lists of names, each repeated, for pretraining."""
    restatements: int = 4
    """Times that each function for demonstrations is explained in text, for pretraining."""
    demonstrations: int = 16000
    """Conversations for instruction tuning."""
    compared: int = 3600
    """Questions whose answers are compared, for the reward model."""
    completions: int = 4
    """Answers to each of them."""
    flipped: float = 0.15
    """The share of the comparisons that are turned round before the reward model sees them."""
    prompts: int = 4000
    """Questions for PPO."""
    development: int = 256
    """Questions that temperatures are chosen on."""
    evaluation: int = 512
    """Questions that the stages are measured on, the entry quoted."""
    memory: int = 128
    """Questions that the stages are measured on, from memory."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "flipped" and getattr(self, field.name) < 2:
                value = getattr(self, field.name)
                raise UserError(f"material.{field.name} must be at least 2, not {value}")
        if not 0 <= self.flipped < 0.5:
            raise UserError(f"material.flipped must lie in [0, 0.5), not {self.flipped}")


def write_material(folder: Path, config: MaterialConfig, seed: int) -> None:
    """Writes the files, unless they are there already, as these settings make them."""
    made = {
        "format": FORMAT,
        "corpus": corpus_digest(CORPUS, cache_dir()),
        "seed": seed,
        **dataclasses.asdict(config),
    }
    if (folder / RECORD).is_file() and json.loads((folder / RECORD).read_text()) == made:
        return
    folder.mkdir(parents=True, exist_ok=True)
    documents = load_corpus(CORPUS, cache_dir())["train"]
    pools = by_pool(read_entries(documents))
    shown, asked = pools["demonstrations"], pools["alignment"]
    sources = (one["text"] for one in documents if one["name"].startswith("source/"))
    for name, texts in (
        ("restatements", restatements(shown, config.restatements, seed)),
        ("lists", lists(sources, config.lists, seed)),
    ):
        write_lines(folder / f"{name}.jsonl", ({"text": text} for text in texts))
    write_lines(folder / "demonstrations.jsonl", demonstrations(shown, config.demonstrations, seed))
    for name, entries, count, quoted in (
        ("compared", asked, config.compared, None),
        ("prompts", asked, config.prompts, None),
        ("development", pools["development"], config.development, True),
        ("evaluation", pools["evaluation"], config.evaluation, True),
        ("memory", pools["evaluation"], config.memory, False),
    ):
        own = sum(name.encode()) + 1000 * seed  # each file's questions are drawn anew
        found = questions(entries, count, own, held_out=True, quoted=quoted)
        write_lines(folder / f"{name}.jsonl", (one.record for one in found))
    write_json(folder / RECORD, made)


def by_pool(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The entries by what they are for. Raises UserError where there are too few."""
    pools = {pool: [one for one in entries if one.pool == pool] for pool in POOLS}
    for pool, found in pools.items():
        if len(found) < 10:
            raise UserError(
                f"only {len(found)} documented functions for {pool} in this Python's library: "
                "install Python with the sources of its standard library"
            )
    return pools


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """Records as JSON, one a line, whole or not at all."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text(path, "".join(lines))


def read_questions(path: Path) -> list[Question]:
    """The questions of a file."""
    with path.open(encoding="utf-8") as file:
        return [question_of(json.loads(line)) for line in file]
