"""What a configuration amounts to: parameters, FLOPs, memory, time."""

import dataclasses

from flax.traverse_util import flatten_dict

from ..model import DecoderConfig, Execution, check_mesh, make_mesh, param_shapes
from .config import PretrainConfig, flatten, to_json
from .corpus import sources_of, tokenizer_of, with_vocabulary
from .hardware import describe, peak_flops
from .optimizer import OptimizerConfig
from .progress import duration
from .run import SUMMARY, Run

# The share of peak FLOP/s that a step reaches, for an estimate before anything was measured.
CPU_UTILIZATION = 0.35
ACCELERATOR_UTILIZATION = 0.4


def expected_seconds(
    config: PretrainConfig, steps: int, devices: list, peak: float | None
) -> float | None:
    """Seconds that `steps` should take; None where the devices' peak is not known."""
    if peak is None:
        return None
    flops = config.model.flops_per_token(convention="attention") * config.tokens_per_step
    cpu = devices[0].platform == "cpu"
    return steps * flops / (peak * (CPU_UTILIZATION if cpu else ACCELERATOR_UTILIZATION))


def optimizer_bytes(model: DecoderConfig, optimizer: OptimizerConfig) -> int:
    """Bytes of the optimiser's state: Adam's two moments, or Muon's one for matrices."""
    moments = 2 * model.parameters()
    if optimizer.name == "muon":
        moments -= model.layers * model.block_matrices()
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
    heads = f"{model.heads} heads of {model.size_of_head}"
    if model.number_of_kv_heads != model.heads:
        heads += f", {model.number_of_kv_heads} for keys and values"
    vocabulary = f"{model.vocab_size:,}" if model.vocab_size else "the tokenizer's (counted as 0)"
    gib = model.cache_bytes(1, model.context)
    return [
        ("shape", f"{model.layers} layers, width {model.width:,}, {heads}, {mlp}"),
        ("vocabulary", f"{vocabulary}, {'tied' if model.tied else 'untied'} head"),
        ("context", f"{model.context:,} tokens, {model.position} positions"),
        ("parameters", f"{model.parameters():,}"),
        ("  without embeddings", f"{model.parameters(embeddings=False):,}"),
        ("FLOPs per token", f"{engineering(model.flops_per_token())} (6N)"),
        (
            "  with attention",
            f"{engineering(model.flops_per_token(convention='attention'))} (whole square), "
            f"{engineering(model.flops_per_token(convention='causal'))} (causal half)",
        ),
        ("cache", f"{size(gib)} for a row of {model.context:,} tokens"),
    ]


def training_rows(config: PretrainConfig) -> list[tuple[str, str]]:
    """The run's figures."""
    model, tokens = config.model, config.tokens_per_step
    total = tokens * config.steps
    parameters = 4 * model.parameters()
    state = 2 * parameters + optimizer_bytes(model, config.optimizer)
    return [
        ("batch", f"{config.batch:,} rows, {tokens:,} tokens"),
        ("steps", f"{config.steps:,}, {engineering(total)} tokens in all"),
        (
            "FLOPs",
            f"{total * model.flops_per_token():.3g} (6N), "
            f"{total * model.flops_per_token(convention='attention'):.3g} (with attention)",
        ),
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


def with_expected_vocabulary(config: PretrainConfig) -> PretrainConfig:
    """The settings with the vocabulary that training would find: of bpe:SIZE, SIZE at most."""
    if config.model.vocab_size:
        return config
    kind, _, count = config.tokenizer.partition(":")
    if kind == "bpe" and count.isdecimal():
        model = config.model.with_vocab(int(count))
        return dataclasses.replace(config, model=model)
    if config.tokenizer == "char" and not config.data:
        return config
    return with_vocabulary(config, tokenizer_of(config, None))


def dry_run(config: PretrainConfig) -> list[str]:
    """What training would do: settings, sizes, time. Trains nothing."""
    config = with_expected_vocabulary(config.resolved())
    sources_of(config)
    mesh = make_mesh(config.mesh)
    check_mesh(config.model.heads, config.batch // config.accumulation, mesh)
    devices = list(mesh.devices.flat)
    settings = [(name, str(value)) for name, value in flatten(to_json(config)).items()]
    rows = [*model_rows(config.model), *training_rows(config)]
    peak = peak_flops(devices)
    seconds = expected_seconds(config, config.steps, devices, peak)
    rows.append(("devices", describe(devices)))
    rows.append(("expected time", "unknown" if seconds is None else f"about {duration(seconds)}"))
    return [*table(settings), "", *table(rows), "", "dry run: nothing was trained"]


def describe_config(config: PretrainConfig) -> list[str]:
    """`aludel info CONFIG`."""
    config = with_expected_vocabulary(config)
    rows = [*model_rows(config.model), *training_rows(config)]
    return [*table(rows), "", *table(shape_rows(config.model))]


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


def table(rows: list[tuple[str, str]]) -> list[str]:
    """Rows as aligned lines."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:<{width}}  {value}" for name, value in rows]
