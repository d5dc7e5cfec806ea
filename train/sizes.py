"""What a configuration amounts to: parameters, FLOPs, memory, time."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from ..data import TrainBatches
from ..model import (
    DecoderConfig,
    Execution,
    MeshConfig,
    check_length,
    check_mesh,
    make_mesh,
    param_shapes,
)
from .config import FineTuneConfig, RewardConfig, StageConfig, flatten, to_json, with_steps
from .corpus import (
    open_chats,
    open_comparisons,
    sources_of,
    tokenizer_of,
    with_completions,
    with_vocabulary,
)
from .finetune import settled
from .hardware import describe, peak_flops
from .optimizer import OptimizerConfig
from .progress import duration
from .run import SUMMARY, Run

# The share of peak FLOP/s that a step reaches, for an estimate before anything was measured.
CPU_UTILIZATION = 0.35
ACCELERATOR_UTILIZATION = 0.4
FILLED_IN = ("model.", "critic.")  # settings that a run gives itself, out of the one it begins with


def expected_seconds(
    config: StageConfig, steps: int, devices: list, peak: float | None
) -> float | None:
    """Seconds that `steps` should take; None where the devices' peak or the FLOPs are not known."""
    if peak is None or not config.flops_per_token:
        return None
    flops = config.flops_per_token * config.tokens_per_step
    cpu = devices[0].platform == "cpu"
    return steps * flops / (peak * (CPU_UTILIZATION if cpu else ACCELERATOR_UTILIZATION))


def optimizer_bytes(model: DecoderConfig, optimizer: OptimizerConfig) -> int:
    """Bytes of the optimiser's state: Adam's two moments, or Muon's one for matrices."""
    moments = 2 * model.parameters()
    if optimizer.name == "muon":  # routers are Adam's
        moments -= model.layers * (model.block_matrices() - model.router_weights)
    return 4 * moments


def size(count: float) -> str:
    """A count of bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def engineering(value: float) -> str:
    """A large number with a letter: 1.23 G."""
    for letter in ("", " k", " M", " G", " T", " P", " E", " Z"):
        if abs(value) < 1000:
            return f"{value:.3g}{letter}"
        value /= 1000
    return f"{value:.3g} Y"


def model_rows(model: DecoderConfig) -> list[tuple[str, str]]:
    """The decoder's figures."""
    mlp = f"MLP {model.size_of_mlp:,} ({model.activation})"
    if model.experts:
        mlp = f"{model.experts} experts, {model.experts_per_token} to a token, each an {mlp}"
    heads = f"{model.heads} heads of {model.size_of_head}"
    if model.number_of_kv_heads != model.heads:
        heads += f", {model.number_of_kv_heads} for keys and values"
    vocabulary = f"{model.vocab_size:,}" if model.vocab_size else "the tokenizer's (counted as 0)"
    gib = model.cache_bytes(1, model.context)
    active = [("  active", f"{model.parameters(active=True):,}")] if model.experts else []
    return [
        ("shape", f"{model.layers} layers, width {model.width:,}, {heads}, {mlp}"),
        ("vocabulary", f"{vocabulary}, {'tied' if model.tied else 'untied'} head"),
        ("context", f"{model.context:,} tokens, {model.position} positions"),
        ("parameters", f"{model.parameters():,}"),
        *active,
        ("  without embeddings", f"{model.parameters(embeddings=False):,}"),
        ("FLOPs per token", f"{engineering(model.flops_per_token())} (6N)"),
        (
            "  with attention",
            f"{engineering(model.flops_per_token(convention='attention'))} (whole square), "
            f"{engineering(model.flops_per_token(convention='causal'))} (causal half)",
        ),
        ("cache", f"{size(gib)} for a row of {model.context:,} tokens"),
    ]


def training_rows(config: Any) -> list[tuple[str, str]]:
    """The run's figures."""
    model, tokens = config.model, config.tokens_per_step
    total = tokens * config.steps
    parameters = 4 * model.parameters()
    state = 2 * parameters + optimizer_bytes(model, config.optimizer)
    rows = [("batch", f"{config.batch:,} rows, {tokens:,} tokens")]
    if config.steps:
        whole = total * model.flops_per_token(convention="attention")
        rows += [
            ("steps", f"{config.steps:,}, {engineering(total)} tokens in all"),
            ("FLOPs", f"{total * model.flops_per_token():.3g} (6N), {whole:.3g} (with attention)"),
        ]
    else:
        rows.append(("steps", f"as many as {config.epochs:g} epochs take"))
    return [
        *rows,
        (
            "memory",
            f"parameters {size(parameters)}, gradients {size(parameters)}, optimiser "
            f"{size(state - 2 * parameters)}: {size(state)} and activations, over all devices",
        ),
        ("optimiser", f"{config.optimizer.name}, {config.optimizer.schedule} schedule"),
    ]


def shape_rows(model: DecoderConfig) -> list[tuple[str, str]]:
    """Every parameter of the decoder, in the stored layout, with its shape; none of a decoder
    whose vocabulary is not known yet."""
    if not model.vocab_size:
        return []
    shapes = param_shapes(model, Execution(scan=True))
    return [
        ("/".join(path), " x ".join(f"{n:,}" for n in leaf.shape) or "scalar")
        for path, leaf in flatten_dict(shapes).items()
    ]


def with_expected_model(config: Any) -> Any:
    """The settings with the decoder that training would find: that of the run it begins with,
    where it is named; else with the vocabulary, of bpe:SIZE SIZE at most."""
    if isinstance(config, FineTuneConfig):
        return settled(config)[0] if config.init else config
    if config.model.vocab_size:
        return config
    kind, _, count = config.tokenizer.partition(":")
    if kind == "bpe" and count.isdecimal():
        model = config.model.with_vocab(int(count))
        return dataclasses.replace(config, model=model)
    if config.tokenizer == "char" and not config.data:
        return config
    return with_vocabulary(config, tokenizer_of(config, None))


def with_expected_steps(config: FineTuneConfig) -> Any:
    """The settings with the steps that their epochs come to: the data is read for it."""
    config, tokenizer = settled(config)
    read = open_comparisons if isinstance(config, RewardConfig) else open_chats
    corpus = read(config, tokenizer, lambda line: None)
    batches = TrainBatches(
        corpus.train, corpus.weights, config.batch, config.row_length, config.seed
    )
    return with_completions(with_steps(config, batches.rows_per_epoch), corpus)


def dry_run(config: StageConfig) -> list[str]:
    """What training would do: settings, sizes, time. Trains nothing."""
    config = with_expected_model(config.resolved())
    sources_of(config)
    if not config.steps:
        config = with_expected_steps(config)
    mesh = make_mesh(config.mesh)
    rows, model = config.batch // config.accumulation, config.model
    check_mesh(model.heads, rows, mesh, model.experts)
    check_length(config.row_length, mesh)
    devices = list(mesh.devices.flat)
    settings = [
        (name, str(value))
        for name, value in flatten(to_json(config)).items()
        if not name.startswith("critic.")
    ]
    rows = [*model_rows(config.model), *training_rows(config)]
    peak = peak_flops(devices)
    seconds = expected_seconds(config, config.steps, devices, peak)
    rows.append(("devices", describe(devices)))
    rows.append(("expected time", "unknown" if seconds is None else f"about {duration(seconds)}"))
    return [*table(settings), "", *table(rows), "", "dry run: nothing was trained"]


def describe_config(config: StageConfig) -> list[str]:
    """`aludel info CONFIG`."""
    if isinstance(config, FineTuneConfig) and not config.init:
        settings = flatten(to_json(config))
        own = [(n, str(x)) for n, x in settings.items() if not n.startswith(FILLED_IN)]
        return [*table(own), "", "the decoder is that of the run named with --init"]
    config = with_expected_model(config)
    rows = [*model_rows(config.model), *training_rows(config), *layout_rows(config)]
    return [*table(rows), "", *table(shape_rows(config.model))]


def layout_rows(config: StageConfig) -> list[tuple[str, str]]:
    """How the settings lay devices out, where they say it."""
    if config.mesh == MeshConfig():
        return []
    sizes = dataclasses.asdict(config.mesh)
    mesh = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1)
    kept = f"microbatches {config.accumulation}, remat {config.execution.remat}"
    return [("mesh", f"{mesh or 'one device'}, {kept}")]


def describe_run(run: Run) -> list[str]:
    """`aludel info RUN`."""
    config = run.config()
    steps = run.checkpoints.steps()
    rows = [
        ("run", str(run.path)),
        ("checkpoints", ", ".join(f"{step:,}" for step in steps) or "none yet"),
        *model_rows(config.model),
        *training_rows(config),
    ]
    final = run.read(SUMMARY)
    rows += [
        (name, f"{final[name]:.4f}")
        for name in ("val_nats_per_token", "val_bits_per_byte")
        if final.get(name) is not None
    ]
    return [*table(rows), "", *table(shape_rows(config.model))]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of as many cells each, as aligned lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]
