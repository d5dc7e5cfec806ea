"""Probes of a ladder: what the checkpoints of every size of a sweep answer, each asked once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from ...errors import UserError
from ...model import Execution, MeshConfig, make_mesh
from ..loop import Signals, due
from ..restore import load_params
from ..run import SUMMARY, Run, note
from .asking import Asked, Question, make_asker
from .measured import Measured, add_measured, read_measured
from .probing import figures

TABLE = "probes.csv"

Say = Callable[[str], None]


class Probe(NamedTuple):
    """Questions of one kind, each after so many examples."""

    name: str
    shots: int
    questions: Sequence[Question]


def rungs(folder: Path) -> list[Run]:
    """The rungs of a ladder: of each size in a sweep's folder the finished run with the most
    tokens, of several the one of the lowest seed; those of least compute first. Raises UserError
    where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    best: dict[tuple[int, int], tuple] = {}
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        run = Run(path)
        if not run.exists or run.stage() != "pretrain":
            continue
        config, summary = run.config(), run.read(SUMMARY)
        model = config.model
        if summary.get("steps", 0) < config.steps or not run.checkpoints.steps():
            continue
        rank = (-summary["tokens"], config.seed, path.name)
        found = (rank, 6 * model.parameters(active=True) * summary["tokens"], run)
        size = (model.layers, model.width)
        best[size] = min(best.get(size, found), found, key=lambda one: one[0])
    if not best:
        raise UserError(f"{folder}: holds no finished pretraining run with a checkpoint")
    return [run for _, _, run in sorted(best.values(), key=lambda one: (one[1], one[0]))]


def probe_ladder(
    folder: Path, probes: Sequence[Probe], signals: Signals, run_code: bool, say: Say = note
) -> list[Measured]:
    """What every kept checkpoint of every rung answers, asked where folder/probes.csv does not
    know it yet, and added there as it comes: what is interrupted goes on where it was.

    Raises UserError for what the user can mend, StoppedError where a signal came.
    """
    known = {one.key: one for one in read_measured(folder / TABLE)}
    runs, out = rungs(folder), []
    for number, run in enumerate(runs, 1):
        say(f"{number} of {len(runs)}: {run.path.name}")
        for one in of_run(run, probes, known, signals, run_code, say):
            if one.key not in known:
                add_measured(folder / TABLE, one)
            out.append(one)
        jax.clear_caches()  # of programs: the next run has other shapes
    return out


def of_run(
    run: Run,
    probes: Sequence[Probe],
    known: Mapping[tuple, Measured],
    signals: Signals,
    run_code: bool,
    say: Say,
) -> Iterator[Measured]:
    """Yields what each checkpoint that was due answers to each probe, from `known` where it is
    there. One asker serves all, so that its programs are compiled once."""
    execution, mesh, config = Execution(), make_mesh(MeshConfig(data=1)), run.config()
    ask = make_asker(config.model, run.tokenizer(), execution, run_code)
    for step in run.checkpoints.steps():
        # Another one was saved because a signal came: a run that none stopped has it not.
        if step == 0 or not due(step, config.checkpoint_every, config.steps):
            continue
        params = None
        for probe in probes:
            signals.check()
            key = (run.path.name, step, probe.name, probe.shots, len(probe.questions))
            if key in known:
                yield known[key]
                continue
            if params is None:
                say(f"  step {step:,}")
                params, _ = load_params(run, mesh, execution, str(step))
            yield measured(run, step, probe, ask(params, probe.questions))


def measured(run: Run, step: int, probe: Probe, answers: Sequence[Asked]) -> Measured:
    """A line of the table: where in the ladder, and what came of the questions."""
    config, found = run.config(), figures(answers)
    model, tokens = config.model, step * config.tokens_per_step
    flops = 6 * model.parameters(active=True) * tokens
    return Measured(
        *(run.path.name, model.layers, model.width),
        *(model.parameters(), model.parameters(embeddings=False), step, tokens, flops),
        *(probe.name, probe.shots, found["questions"]),
        *(*found["right"], *found["logp_nats"], *found["logp_nats_per_token"]),
    )
