"""`aludel pretrain`: from settings to a trained run, straight down."""

from pathlib import Path
from typing import Any

import jax

from ..data import Tokenizer, TrainBatches
from ..errors import UserError
from ..memory import keep_memory
from ..model import check_mesh, init_params, make_apply, make_mesh, replicated
from .check import check_loss
from .checkpoint import Say
from .config import PretrainConfig
from .corpus import Corpus, check_tokenizer, open_corpus, tokenizer_of, with_vocabulary
from .events import Events
from .hardware import describe, peak_flops
from .journal import Journal
from .layout import make_layout
from .load import load_loss
from .loop import Plan, Signals, train
from .losses import lm_loss
from .optimizer import make_optimizer
from .placing import local_rows, placer
from .progress import duration, make_display
from .records import write_json
from .report import write_report
from .run import (
    METRICS,
    SAMPLES,
    SUMMARY,
    TOKENIZER,
    check_same,
    file_digest,
    open_folder,
    record_provenance,
    write_config,
)
from .samples import make_writer, writable
from .scoring import figures, rows_at_once, score
from .sizes import expected_seconds
from .step import init_state, make_eval_step, make_step, stream
from .summary import closing, epochs_of, summarize

STAGE = "pretrain"
TEMPERATURE, TOP_P = 0.8, 0.95  # of samples while training


def pretrain(config: PretrainConfig) -> Path:
    """Train, or go on with, the run in `config.out`; returns its folder.

    Raises UserError for what the user can mend, StoppedError where a signal ended the run.
    """
    with Signals() as signals:
        return _pretrain(config.resolved(), signals)


def _pretrain(config: PretrainConfig, signals: Signals) -> Path:
    display = make_display()
    say = display.note

    # ---- the run folder, the tokenizer, the data
    run = open_folder(config.out or "runs/pretrain")
    resumes = run.exists
    say(f"preparing: {', '.join(config.data)}; tokenizer {config.tokenizer}")
    tokenizer = tokenizer_of(config, run, say)
    config = with_vocabulary(config, tokenizer)
    if resumes:
        check_same(run, STAGE, config)
    corpus = open_corpus(config, tokenizer, say)
    model = config.model
    batches = TrainBatches(corpus.train, corpus.weights, config.batch, model.context, config.seed)
    for store, name in zip(corpus.train, corpus.names, strict=True):
        if store.replaced:
            say(f"{name}: {store.replaced:,} undecodable pieces replaced by U+FFFD")
    for store, name in zip(corpus.validation, corpus.names, strict=True):
        if store.replaced:
            say(f"{name}, validation: {store.replaced:,} undecodable pieces replaced by U+FFFD")

    # ---- devices and the loss
    keep_memory()  # before the devices' threads begin
    mesh = make_mesh(config.mesh)
    check_mesh(model.heads, config.batch // config.accumulation, mesh)
    place = placer(mesh)
    loss = load_loss(config.loss) if config.loss else lm_loss(config.z_loss)
    if config.loss:
        check_loss(loss)

    # ---- the state: fresh, or where the run left off
    layout = make_layout(
        model,
        config.execution,
        lambda groups: make_optimizer(config.optimizer, config.steps, groups),
        mesh,
    )
    checkpoints = run.checkpoints
    checkpoints.tidy()
    found = checkpoints.newest_usable(layout.target, move=True) if resumes else None
    key = jax.device_put(jax.random.key(config.seed), replicated(mesh))
    begin, seconds = 0, 0.0
    if found:
        stored, meta = found
        check_tokenizer(run, tokenizer, meta["tokenizer"])
        begin, seconds = meta["step"], meta["seconds"]
        state = layout.load(stored)
        del stored, found
    else:
        params = init_params(model, config.execution, stream(key, "parameters"), mesh)
        state = init_state(layout.optimizer, params, layout.shardings)
    if begin > config.steps:
        raise UserError(
            f"{run.path}: is at step {begin} already, past steps = {config.steps}; "
            "give more steps, or name another folder with --out"
        )

    # ---- the record
    metrics, samples = run.lines(METRICS), run.lines(SAMPLES)
    metrics.cut(begin if begin else -1)
    samples.cut(begin if begin else -1)
    if not resumes:
        tokenizer.save(run.path / TOKENIZER)
    digests = {
        "tokenizer": tokenizer.digest,
        "data": [store.digest for store in corpus.train],
        "validation": [store.digest for store in corpus.validation],
    }
    if config.loss:
        digests["loss"] = file_digest(config.loss.rpartition(":")[0])
    record_provenance(run, digests, begin, parent=None)
    write_config(run, STAGE, config)
    if resumes:
        at = f"resuming at step {begin:,}" if begin else "no checkpoint yet: starts again"
        say(f"{run.path}: {at}")

    # ---- the step, evaluation, samples
    apply = make_apply(model, config.execution, mesh)
    step = make_step(
        loss,
        apply,
        layout.optimizer,
        accumulation=config.accumulation,
        sources=corpus.names if len(corpus.names) > 1 else (),
        guard=config.guard,
        shardings=layout.shardings,
    )
    eval_step = make_eval_step(lm_loss(), apply, layout.shardings.params)
    rows = rows_at_once(config.batch // config.accumulation, model.context)

    def evaluate(state: Any, whole: bool) -> dict:
        tokens = 0 if whole else config.eval_tokens // len(corpus.validation)
        scores = []
        for store in corpus.validation:
            scores.append(
                score(
                    eval_step,
                    state.params,
                    store,
                    rows,
                    model.context,
                    place,
                    tokens=tokens,
                    stop=lambda: signals.asked,
                )
            )
            if signals.asked:
                return {}
        return figures(scores, corpus.names)

    sample = make_samples(config, tokenizer, stream(key, "samples"), say)
    mine = local_rows(mesh, config.batch)

    def epochs(step: int) -> dict[str, float]:
        return epochs_of(corpus.names, batches.epochs(step))

    plan = Plan(
        step=step,
        batch=lambda number: place(batches.batch(number, mine)),
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
    )
    devices = list(mesh.devices.flat)
    journal = Journal(
        metrics,
        display,
        steps=config.steps,
        tokens_per_step=config.tokens_per_step,
        flops_per_token=model.flops_per_token(convention="attention"),
        peak_flops=peak_flops(devices),
        log_every=config.log_every,
        events=Events(run.path / "tensorboard", begin, say) if config.tensorboard else None,
        seconds=seconds,
        known=epochs,
    )

    # ---- train
    for line in opening(config, batches, corpus, devices, config.steps - begin):
        say(line)
    display.start(begin, config.steps)
    try:
        if begin == 0:
            journal.add(0, evaluate(state, True))
            journal.sync()
        state = train(state, begin, plan, journal, checkpoints, samples, signals, run.path)
    finally:
        display.stop()
        journal.close()
        samples.close()
    checkpoints.close()

    # ---- what came of it
    summary = summarize(run, config, epochs=epochs(config.steps), seconds=journal.seconds)
    write_json(run.path / SUMMARY, summary)
    write_report(run)
    for line in closing(summary, samples.read()):
        say(line)
    return run.path


def opening(
    config: PretrainConfig, batches: TrainBatches, corpus: Corpus, devices: list, left: int
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
    lines = [
        f"model: {config.model.parameters():,} parameters, vocabulary {config.model.vocab_size:,}, "
        f"context {config.model.context:,}",
        f"data: {', '.join(corpus.names)}: {tokens:,} tokens to train on, {held:,} for validation",
        f"run: {config.steps:,} steps of {config.tokens_per_step:,} tokens, {epochs}, "
        f"on {describe(devices)}",
    ]
    seconds = expected_seconds(config, left, devices, peak)
    if left and seconds is not None:
        lines.append(f"expected time: about {duration(seconds)} at {peak / 1e12:.3g} peak TFLOP/s")
    return lines


def make_samples(config: PretrainConfig, tokenizer: Tokenizer, key: Any, say: Say):
    """`sample(state, step) -> records`: what the model writes at a step, for samples.jsonl."""
    prompts = writable(config.prompts, tokenizer, say)
    if not prompts:
        return None
    write = make_writer(
        config.model,
        tokenizer,
        prompts,
        tokens=min(config.sample_tokens, config.model.context),
        temperature=TEMPERATURE,
        top_p=TOP_P,
        execution=config.execution,
    )

    def sample(state: Any, step: int) -> list[dict]:
        texts = write(state.params, jax.random.fold_in(key, step))
        return [
            {"step": step, "prompt": prompt, "text": text}
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    return sample
