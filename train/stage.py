"""A stage of training, straight down: from settings to a trained run.

Pretraining and the stages after it differ in where the decoder, the tokenizer and the data come
from; that is a `Stage`. All else is the same.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from ..data import Tokenizer, TrainBatches, eval_batches
from ..errors import UserError
from ..memory import keep_memory
from ..model import Apply, check_length, check_mesh, make_apply, make_mesh, replicated
from . import processes
from .alike import check_alike, check_same_run
from .check import check_loss
from .checkpoint import Say
from .config import StageConfig, with_steps
from .corpus import Corpus, check_tokenizer, with_completions
from .events import Events
from .hardware import describe, peak_flops
from .journal import LAG, Journal
from .layout import Layout, layout_of
from .load import load_loss
from .loop import Plan, Signals, train, without_samples
from .losses import language_loss, lm_loss
from .placing import check_processes, local_rows, placer, row_placer
from .progress import duration, make_display
from .records import write_json, write_text
from .report import write_report
from .run import (
    METRICS,
    PROVENANCE,
    SAMPLES,
    SUMMARY,
    TOKENIZER,
    Run,
    check_same,
    file_digest,
    open_folder,
    record_provenance,
    write_config,
)
from .scoring import figures, rows_at_once, score
from .sizes import expected_seconds
from .step import init_state, make_eval_step, make_step, stream
from .summary import closing, epochs_of, summarize
from .terms import Loss

Sampler = Callable[[Any, int], list[dict]]
Evaluator = Callable[[Any, bool], dict]
Stepper = Callable[[Any, tuple[int, Any], Array], tuple[Any, dict]]


@dataclass(frozen=True)
class Trained:
    """What an evaluation may need of the stage."""

    config: Any
    corpus: Corpus
    apply: Apply
    shardings: Any
    """Of the parameters."""
    mesh: Mesh
    place: Callable[[Any], Any]
    """Puts a batch on the devices."""
    frozen: Any
    """What the stage needs besides, and does not train."""

    @property
    def rows(self) -> int:
        """Rows to evaluate at once."""
        config = self.config
        return rows_at_once(config.batch // config.accumulation, config.row_length)


@dataclass(frozen=True)
class Stage:
    """What is a stage's own. `say` tells the user a line."""

    name: str
    """The command."""
    settle: Callable[[Any, Run, Say], tuple[Any, Tokenizer]]
    """The settings with the decoder that they mean, and the tokenizer: of the run, where it is
    being resumed."""
    open: Callable[[Any, Tokenizer, Say], Corpus]
    """The data, tokenised."""
    begin: Callable[[Any, Mesh, Array], tuple[Any, str | None]]
    """(parameters, the run they are from) before the first step, from the run's key."""
    sampler: Callable[[Any, Tokenizer, Array, Say], Sampler | None]
    """`sample(state, step) -> records`: what the model writes at a step, for samples.jsonl."""
    files: Callable[[Tokenizer], Mapping[str, str]] = lambda tokenizer: {}
    """Further files of the run, by name."""
    loss: Callable[[Any], Loss] = language_loss
    """The loss, where the user brings none."""
    evaluator: "Callable[[Trained, Callable[[], bool]], Evaluator] | None" = None
    """`evaluate(params, whole) -> figures` of the validation part, {} where the function given
    says that a signal has come; `samples` among them are records of `prompt`, `text` and, where
    there is one, `score`. None: a language model's."""
    frozen: Callable[[Any, Tokenizer, Mesh, Array], Any] = lambda *_: None
    """What the stage needs besides, and does not train: networks, mostly."""
    stepper: "Callable[[Trained, Layout, Tokenizer, Array, Say], Stepper] | None" = None
    """`step(state, (number, batch), key) -> (state, metrics)`; None: a step of the loss."""
    enough: Callable[[Any], tuple[Callable[[dict], bool], str] | None] = lambda config: None
    """(whether a step's metrics end the run before its last step, why), of the settings."""
    finish: "Callable[[Trained, Run, Any, Array, Say], None] | None" = None
    """What is to be done with the parameters of the last step."""


def run_stage(stage: Stage, config: StageConfig) -> Path:
    """Train, or go on with, the run in `config.out`; returns its folder.

    Raises UserError for what the user can mend, StoppedError where a signal ended the run.
    """
    with Signals() as signals:
        return _run(stage, config.resolved(), signals)


def _run(stage: Stage, config: Any, signals: Signals) -> Path:
    display = make_display(silent=not processes.first())
    say = display.note

    # ---- the run folder, the tokenizer, the data
    run = open_folder(config.out or f"runs/{stage.name}")
    check_same_run(config, run.path)
    resumes = processes.told(run.exists)
    config, tokenizer = stage.settle(config, run, say)
    if resumes:
        check_same(run, stage.name, config)
    corpus = stage.open(config, tokenizer, say)
    model = config.model
    batches = TrainBatches(
        corpus.train, corpus.weights, config.batch, config.batch_length, config.seed
    )
    config = with_completions(with_steps(config, batches.rows_per_epoch), corpus)
    for store, name in zip(corpus.train, corpus.names, strict=True):
        if store.replaced:
            say(f"{name}: {store.replaced:,} undecodable pieces replaced by U+FFFD")
    for store, name in zip(corpus.validation, corpus.names, strict=True):
        if store.replaced:
            say(f"{name}, validation: {store.replaced:,} undecodable pieces replaced by U+FFFD")

    # ---- devices and the loss
    keep_memory()  # before the devices' threads begin
    mesh = make_mesh(config.mesh)
    check_mesh(model.heads, config.batch // config.accumulation, mesh, model.experts)
    check_length(config.row_length, mesh)
    check_processes(mesh)
    place = placer(mesh)
    loss = None if stage.stepper else stage.loss(config)
    if config.loss and not stage.stepper:
        loss = load_loss(config.loss)
        if stage.evaluator is None:  # it tries losses of text
            check_loss(loss, experts=model.experts > 0)

    # ---- the state: fresh, or where the run left off
    layout = layout_of(config, mesh)
    checkpoints = run.checkpoints_keeping(config.keep)
    checkpoints.tidy()
    found = checkpoints.newest_usable(layout.target, move=True) if resumes else None
    key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated(mesh))()
    ended_early = False
    begin, seconds, parent = 0, 0.0, run.read(PROVENANCE).get("parent")
    if found:
        stored, meta = found
        check_tokenizer(run, tokenizer, meta["tokenizer"])
        begin, seconds = meta["step"], meta["seconds"]
        ended_early = bool(meta.get("enough"))
        if ended_early:
            config = dataclasses.replace(config, steps=begin)
        state = layout.load(stored)
        del stored, found
    else:
        params, parent = stage.begin(config, mesh, key)
        state = init_state(layout.optimizer, params, layout.shardings, config.extra)
    if begin > config.steps:
        raise UserError(
            f"{run.path}: is at step {begin} already, past steps = {config.steps}; "
            "give more steps, or name another folder with --out"
        )

    # ---- the record
    digests = {
        "tokenizer": tokenizer.digest,
        "data": [store.digest for store in corpus.train],
        "validation": [store.digest for store in corpus.validation],
    }
    if corpus.text:
        digests["text"] = [store.digest for store in corpus.text]
    for use, spec in config.user_code.items():
        digests[use] = file_digest(spec.rpartition(":")[0])
    check_alike({"data": digests, "run": {"step": begin}})  # after this, files are written
    metrics, samples = run.lines(METRICS), run.lines(SAMPLES)
    metrics.cut(begin if begin else -1)
    samples.cut(begin if begin else -1)
    if not resumes and processes.first():
        tokenizer.save(run.path / TOKENIZER)
        for name, text in stage.files(tokenizer).items():
            write_text(run.path / name, text)
    record_provenance(run, digests, begin, parent)
    write_config(run, stage.name, config)
    if resumes:
        at = f"resuming at step {begin:,}" if begin else "no checkpoint yet: starts again"
        say(f"{run.path}: {at}")

    # ---- the step, evaluation, samples
    apply = make_apply(model, config.execution, mesh)
    frozen = stage.frozen(config, tokenizer, mesh, key)
    trained = Trained(config, corpus, apply, layout.shardings.params, mesh, place, frozen)
    lag = 0 if stage.stepper else LAG
    evaluate_params = (stage.evaluator or language_evaluator)(trained, lambda: signals.poll(lag))

    def evaluate(state: Any, whole: bool) -> dict:
        return evaluate_params(state.params, whole)

    if stage.stepper:
        step = stage.stepper(trained, layout, tokenizer, key, say)
    else:
        step_of_loss = make_step(
            loss,
            apply,
            layout.optimizer,
            accumulation=config.accumulation,
            sources=corpus.names if len(corpus.names) > 1 else (),
            guard=config.guard,
            shardings=layout.shardings,
        )

        def step(state: Any, numbered: tuple[int, Any], key: Array) -> tuple[Any, dict]:
            return step_of_loss(state, numbered[1], key)

    sample = stage.sampler(config, tokenizer, stream(key, "samples"), say)
    mine, place_rows = local_rows(mesh, config.batch), row_placer(mesh, config.batch)

    def epochs(step: int) -> dict[str, float]:
        return epochs_of(corpus.names, batches.epochs(step))

    enough = stage.enough(config)
    plan = Plan(
        step=step,
        batch=lambda number: (number, place_rows(batches.batch(number, mine))),
        key=stream(key, "training"),
        steps=config.steps,
        evaluate=evaluate,
        sample=sample,
        store=layout.store,
        meta={"tokenizer": tokenizer.digest},
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        sample_every=config.sample_every,
        profile=config.profile,
        enough=enough and enough[0],
    )
    devices = list(mesh.devices.flat)
    told = config.tensorboard and processes.first()
    events = Events(run.path / "tensorboard", begin, say) if told else None
    journal = Journal(
        metrics,
        display,
        steps=config.steps,
        tokens_per_step=config.tokens_per_step,
        flops_per_token=config.flops_per_token,
        peak_flops=peak_flops(devices),
        log_every=config.log_every,
        events=events,
        seconds=seconds,
        known=epochs,
        lag=lag,
    )

    # ---- train
    for line in opening(config, batches, corpus, devices, config.steps - begin):
        say(line)
    display.start(begin, config.steps)
    try:
        if begin == 0:
            first = without_samples(evaluate(state, False), 0, samples)
            signals.check()  # one whose error was lost has cut these figures short
            journal.add(0, first)
            journal.sync()
        state, steps = train(state, begin, plan, journal, checkpoints, samples, signals, run.path)
        ended_early = ended_early or steps < config.steps
        if steps < config.steps:
            say(f"step {steps:,} of {config.steps:,} is the last: {enough[1]}")
            config = dataclasses.replace(config, steps=steps)
    finally:
        display.stop()
        journal.close()
        samples.close()
    checkpoints.close()
    if stage.finish:
        stage.finish(trained, run, state.params, stream(key, "finish"), say)

    # ---- what came of it
    if not processes.first():
        return run.path
    summary = summarize(run, config, epochs=epochs(config.steps), seconds=journal.seconds)
    summary["ended_early"] = ended_early
    write_json(run.path / SUMMARY, summary)
    write_report(run)
    for line in closing(summary, samples.read()):
        say(line)
    return run.path


def language_evaluator(trained: Trained, asked: Callable[[], bool]) -> Evaluator:
    """Nats per token and bits per byte of the validation part, and of each source in it."""
    config, corpus = trained.config, trained.corpus
    eval_step = make_eval_step(lm_loss(), trained.apply, trained.shardings)

    def evaluate(params: Any, whole: bool) -> dict:
        tokens = config.tokens_to_score(whole) // len(corpus.validation)
        scores = []
        for store in corpus.validation:
            batches = eval_batches(store, trained.rows, config.row_length)
            scores.append(
                score(eval_step, params, batches, trained.place, tokens=tokens, stop=asked)
            )
            if asked():
                return {}
        return figures(scores, corpus.names)

    return evaluate


def opening(
    config: Any, batches: TrainBatches, corpus: Corpus, devices: list, left: int
) -> list[str]:
    """What is about to happen; left: steps still to go."""
    tokens = sum(len(store.tokens) for store in corpus.train)
    held = sum(len(store.tokens) for store in corpus.validation)
    each = batches.epochs(config.steps)
    epochs = f"{max(each):.2g} epochs"
    if len(each) > 1:
        of = zip(corpus.names, each, strict=True)
        epochs = "epochs: " + ", ".join(f"{one:.2g} of {name}" for name, one in of)
    peak = peak_flops(devices)
    active = config.model.parameters(active=True)
    active = f" ({active:,} of them for each token)" if config.model.experts else ""
    lines = [
        f"model: {config.model.parameters():,} parameters{active}, "
        f"vocabulary {config.model.vocab_size:,}, rows of {config.row_length:,} tokens",
        f"data: {', '.join(corpus.names)}: {tokens:,} tokens to train on, {held:,} for validation",
        f"run: {config.steps:,} steps of {config.tokens_per_step:,} tokens, {epochs}, "
        f"on {describe(devices)}",
    ]
    seconds = expected_seconds(config, left, devices, peak)
    if left and seconds is not None:
        lines.append(f"expected time: about {duration(seconds)} at {peak / 1e12:.3g} peak TFLOP/s")
    return lines
