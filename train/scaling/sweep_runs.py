"""Making the runs of a sweep: what is missing, one after another."""

import csv
import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from ...data import Tokenizer, TrainBatches
from ...errors import UserError
from ..config import FREE_TO_CHANGE, PretrainConfig, difference, from_json, to_json
from ..corpus import Corpus, open_corpus, tokenizer_of, with_vocabulary
from ..loop import Signals
from ..pretrain import PRETRAIN
from ..records import final_name, read_json, write_json, write_text
from ..run import REPORT, SUMMARY, TOKENIZER, Run, check_same, note
from ..sizes import table, with_expected_model
from ..stage import run_stage
from .sweep import Planned, Sweep, planned, share_of, tuning_runs, with_rates

SWEEP, TUNED, TABLE = "sweep.json", "tuning.json", "runs.csv"
PAUSE = 5.0  # seconds between looks at what another shard does
VALIDATION = "val_nats_per_token"
COLUMNS = ("run", "layers", "width", "seed", "N", "N_blocks", "D", "C", "loss", "seconds")

Say = Callable[[str], None]


def run_sweep(sweep: Sweep, shard: tuple[int, int] = (1, 1), *, say: Say = note) -> Path:
    """Make the runs of a sweep that are missing, in `sweep.out`, or, of `shard` (i, n), the i-th of
    n parts of them; returns the folder, with a table of all that are finished in runs.csv.

    Runs of several shards may be made at the same time, on machines that share nothing but the
    folder. Raises UserError for what the user can mend, StoppedError where a signal ended a run.
    """
    sweep = sweep.resolved()
    folder = Path(sweep.out)
    with Signals() as signals:
        whole, tokenizer = settled(sweep, say)
        begin(sweep, tokenizer)
        whole = tuned(whole, tokenizer, shard, signals, say)
        runs = share_of(planned(whole), shard)
        for _ in made(runs, folder, tokenizer, signals, say):
            write_table(folder)
        write_table(folder)
    return folder


def made(
    runs: Sequence[Planned], folder: Path, tokenizer: Tokenizer, signals: Signals, say: Say
) -> Iterator[Planned]:
    """Make those of the runs that are missing; each is given once it is finished."""
    missing = [run for run in runs if not finished(folder, run)]
    for run in runs:
        if run not in missing:
            check_same(Run(folder / run.name), PRETRAIN.name, run.config)
    say(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished")
    stage = dataclasses.replace(PRETRAIN, settle=lambda config, *_: (config, tokenizer))
    for number, run in enumerate(missing, 1):
        signals.check()
        say(f"\n{number} of {len(missing)}: {run.name}")
        run_stage(stage, dataclasses.replace(run.config, out=str(folder / run.name)))
        jax.clear_caches()  # of programs: the next run has other shapes
        yield run


def tuned(
    sweep: Sweep, tokenizer: Tokenizer, shard: tuple[int, int], signals: Signals, say: Say
) -> Sweep:
    """The sweep with the rates that are best at the smallest size. The first shard tries them; the
    others wait for what it finds, in tuning.json."""
    folder = Path(sweep.out)
    runs = tuning_runs(sweep)
    if not runs:
        return sweep
    path = folder / TUNED
    if not path.exists() and shard[0] > 1:
        say(f"waiting for {path}: the first shard tries the learning rates")
        while not path.exists():
            signals.check()
            time.sleep(PAUSE)
    tried = {"runs": [Path(run.name).name for run in runs]}
    if not path.exists():
        say("learning rates, tried at the smallest size")
        for _ in made(runs, folder, tokenizer, signals, say):
            pass
        losses = [Run(folder / run.name).read(SUMMARY).get(VALIDATION) for run in runs]
        write_json(path, tried | tuning_of(sorted(set(sweep.tune)), losses))
    found = read_json(path)
    if found["runs"] != tried["runs"]:
        raise UserError(f"{path}: other learning rates or sizes were tried: name another --out")
    say(f"learning rates: times {found['best']:g}{' (of those tried the last)' * found['edge']}")
    return dataclasses.replace(sweep, base=with_rates(sweep.base, found["best"]))


def tuning_of(factors: Sequence[float], losses: Sequence[float | None]) -> dict:
    """tuning.json: what was tried, which is best, and whether none was tried beyond it. A loss that
    is None or no number is that of a run that diverged; `UserError` where all did."""
    comparable = [math.inf if x is None or math.isnan(x) else x for x in losses]
    best = min(range(len(factors)), key=comparable.__getitem__)
    if comparable[best] == math.inf:
        raise UserError(f"with every learning rate that was tried a run diverged: {factors}")
    tried = [{"factor": f, "loss": x} for f, x in zip(factors, losses, strict=True)]
    edge = len(factors) > 1 and best in (0, len(factors) - 1)
    return {"best": factors[best], "edge": edge, "tried": tried}


def settled(sweep: Sweep, say: Say = note) -> tuple[Sweep, Tokenizer]:
    """The sweep with the vocabulary of its tokenizer, which is that of its folder where there is
    one. Nothing is written.

    `UserError` where the folder is another sweep's, or a run would see its text too often.
    """
    folder = Path(sweep.out)
    check_folder(sweep, folder)
    kept = folder / TOKENIZER
    tokenizer = Tokenizer.load(kept) if kept.exists() else tokenizer_of(sweep.base, None, say)
    whole = dataclasses.replace(sweep, base=with_vocabulary(sweep.base, tokenizer))
    check_epochs(whole, open_corpus(whole.base, tokenizer, say))
    return whole, tokenizer


def begin(sweep: Sweep, tokenizer: Tokenizer) -> None:
    """The folder of a sweep, which keeps its recipe and the tokenizer: it is trained once."""
    folder = Path(sweep.out)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SWEEP).exists():
        write_json(folder / SWEEP, to_json(sweep.base))
    if not (folder / TOKENIZER).exists():
        write_text(folder / TOKENIZER, tokenizer.to_json())


def check_folder(sweep: Sweep, folder: Path) -> None:
    """`UserError` where the folder holds something else, or runs made from another recipe."""
    if not (folder / SWEEP).exists():
        strange = [path.name for path in folder.glob("*") if final_name(path.name) != SWEEP]
        if strange:
            raise UserError(f"{folder}: holds {strange[0]!r} and no sweep; name another with --out")
        return
    kept = from_json(PretrainConfig, read_json(folder / SWEEP), str(folder / SWEEP))
    found = difference(to_json(kept), to_json(sweep.base), FREE_TO_CHANGE)
    if found:
        raise UserError(f"{folder}: holds the runs of another sweep: base.{found}")


def check_epochs(sweep: Sweep, corpus: Corpus) -> None:
    """`UserError` where a run would see its text more often than `most_epochs`."""
    base = sweep.base
    batches = TrainBatches(corpus.train, corpus.weights, base.batch, base.batch_length, base.seed)
    longest = max(planned(sweep), key=lambda run: run.config.steps)
    epochs = max(batches.epochs(longest.config.steps))
    if epochs > sweep.most_epochs:
        raise UserError(
            f"{longest.name} would see its text {epochs:.1f} times, of most_epochs = "
            f"{sweep.most_epochs:g}: more of it would measure repetition; bring more text, or "
            "train less"
        )


def finished(folder: Path, run: Planned) -> bool:
    """Whether this run has been made to its end, its report with it."""
    return (folder / run.name / REPORT).exists() and (folder / run.name / SUMMARY).exists()


def write_table(folder: Path) -> None:
    """runs.csv: a line for each finished run in the folder, those of other shards among them."""
    written: list[Path] = []
    while (found := sorted(path.parent for path in folder.glob(f"*/{SUMMARY}"))) != written:
        rows = sorted(
            (line_of(Run(path)) for path in found), key=lambda row: (row["C"], row["run"])
        )
        columns = dict.fromkeys(name for row in rows for name in row) or COLUMNS
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / TABLE, text.getvalue())
        written = found  # one that was finished meanwhile may have been written over


def line_of(run: Run) -> dict[str, Any]:
    """The figures of a run, as COLUMNS names them, and of a mixture the loss on each source; C =
    6 N D of all parameters that are active."""
    config, summary = run.config(), run.read(SUMMARY)
    model, tokens = config.model, summary["tokens"]
    flops = 6 * model.parameters(active=True) * tokens
    values = (
        *(run.path.name, model.layers, model.width, config.seed),
        *(model.parameters(), model.parameters(embeddings=False), tokens, flops),
        *(summary[VALIDATION], summary["seconds"]),
    )
    of_source = f"{VALIDATION}/"
    each = {f"loss/{k.removeprefix(of_source)}": v for k, v in summary.items() if of_source in k}
    return {**dict(zip(COLUMNS, values, strict=True)), **each}


def describe_sweep(sweep: Sweep) -> list[str]:
    """`aludel info SWEEP`: its runs, the vocabulary as large as the tokenizer may have it."""
    whole = dataclasses.replace(sweep, base=with_expected_model(sweep.base))
    return table(plan_rows([*tuning_runs(whole), *planned(whole)]))


def plan_rows(runs: Sequence[Planned]) -> list[tuple[str, ...]]:
    """A table of runs before they are made."""
    rows = [("run", "layers", "width", "N", "D", "D/N", "C")]
    for run in runs:
        model = run.config.model
        rows.append(
            (
                *(run.name, f"{model.layers}", f"{model.width}", f"{run.params:,}"),
                *(f"{run.tokens:,}", f"{run.tokens / run.params:.1f}", f"{run.flops:.3g}"),
            )
        )
    rows.append((f"{len(runs)} runs", *[""] * 5, f"{sum(run.flops for run in runs):.3g}"))
    return rows
