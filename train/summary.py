"""The final figures of a run, out of its own records."""

import statistics
from collections.abc import Sequence

from .config import StageConfig
from .progress import duration
from .run import METRICS, Run
from .validation import NAMES, name_in

LAST = 50
REPORTED = ("val_bits_per_byte", "val_accuracy")  # before training as well as after it


def epochs_of(names: Sequence[str], epochs: Sequence[float]) -> dict[str, float]:
    """How often the source that was seen most has been seen and, of a mixture, each of them."""
    out = {"epochs": round(max(epochs), 6)}
    if len(names) > 1:
        each = zip(names, epochs, strict=True)
        out |= {f"epochs/{name}": round(one, 6) for name, one in each}
    return out


def summarize(run: Run, config: StageConfig, *, epochs: dict[str, float], seconds: float) -> dict:
    """summary.json of a finished run; epochs: from `epochs_of`."""
    lines = run.lines(METRICS).read()
    steps = [line for line in lines if line.get("loss_nats") is not None]
    evaluated = [line for line in lines if name_in(line)]
    first, last = (evaluated[0], evaluated[-1]) if evaluated else ({}, {})
    best = min(evaluated, key=lambda line: line[name_in(line)], default={})
    name = name_in(last) or NAMES[0]
    experts = bool(config.model.experts)
    active = {"active_parameters": config.model.parameters(active=True)} if experts else {}
    out = {
        "steps": config.steps,
        "tokens": config.steps * config.tokens_per_step,
        **epochs,
        "parameters": config.model.parameters(),
        **active,
        "seconds": round(seconds, 2),
        "loss_nats": _mean(steps[-LAST:], "loss_nats"),
        **{f"{each}_before": first.get(each) for each in (name, *REPORTED) if each in first},
        f"best_{name}": best.get(name),
        "best_step": best.get("step"),
        "tokens_per_second": _median(steps, "tokens_per_second"),
        "mfu": _median(steps, "mfu"),
        "skipped": steps[-1]["skipped"] if steps else 0,
    }
    return out | {name: value for name, value in last.items() if name.startswith("val_")}


def _mean(lines: list[dict], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return statistics.fmean(values) if values else None


def _median(lines: list[dict], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return statistics.median(values) if values else None


def closing(summary: dict, samples: list[dict]) -> list[str]:
    """What to tell at the end: samples, then figures."""
    lines = []
    newest = max((sample["step"] for sample in samples), default=None)
    for sample in samples:
        if sample["step"] == newest:
            lines += ["", "--- a sample ---", f"{sample['prompt']}{sample['text']}".rstrip()]
    lines += ["", f"trained {summary['steps']:,} steps in {duration(summary['seconds'])}"]
    before, after = summary.get("val_bits_per_byte_before"), summary.get("val_bits_per_byte")
    if before is not None and after is not None:
        lines.append(
            f"validation: {before:.4f} bits per byte before, {after:.4f} after "
            f"({summary['val_nats_per_token']:.4f} nats per token)"
        )
    if summary.get("val_accuracy") is not None:
        before = summary.get("val_accuracy_before")
        was = "" if before is None else f"{before:.1%} before, "
        lines.append(
            f"held-out comparisons judged as labelled: {was}{summary['val_accuracy']:.1%} after"
        )
    if summary["skipped"]:
        lines.append(f"the guard skipped {summary['skipped']} steps")
    return lines
