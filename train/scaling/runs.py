"""Finished pretraining runs as points of a scaling law."""

from pathlib import Path

import numpy as np

from ...errors import UserError
from ..run import PROVENANCE, SUMMARY, Run
from .points import Points


def read_runs(
    folder: str | Path, embeddings: bool = True, source: str = ""
) -> tuple[Points, list[str]]:
    """(a point for each finished pretraining run in a folder, the names of those left out).

    N counts all parameters, or without `embeddings` those of the blocks and norms (Kaplan et al.
    2020), of experts those that a token passes; D is the tokens trained on, the loss that of the
    validation part at the end, in nats per token; of a mixture it may be that of one `source`, by
    its name. Raises UserError where there is none, or where two runs were not measured alike: with
    another tokenizer or another validation part their losses are not comparable.
    """
    folder = Path(folder).expanduser()
    points, left_out, first = [], [], None
    name_of_loss = f"val_nats_per_token/{source}" if source else "val_nats_per_token"
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        run = Run(path)
        if not run.exists or run.stage() != "pretrain":
            continue
        summary, digests = run.read(SUMMARY), run.read(PROVENANCE).get("digests", {})
        loss, config = summary.get(name_of_loss), run.config()
        if source and summary and loss is None:
            raise UserError(f"{path}: was not measured on a source {source!r}{_sources(summary)}")
        if loss is None or summary["steps"] < config.steps:
            left_out.append(path.name)
            continue
        alike = {
            "tokenizer": digests.get("tokenizer"),
            "validation": digests.get("validation"),
            "final_eval_tokens": config.final_eval_tokens,
        }
        first = first or (path.name, alike)
        for name, value in alike.items():
            if value != first[1][name]:
                raise UserError(
                    f"{path}: its {name} is another than that of {first[0]}: the losses are not "
                    "comparable; keep such runs in folders of their own"
                )
        points.append(
            (config.model.parameters(embeddings, active=True), summary["tokens"], loss, path.name)
        )
    if not points:
        unfinished = f"; unfinished: {', '.join(left_out)}" if left_out else ""
        raise UserError(f"{folder}: holds no finished pretraining run{unfinished}")
    params, tokens, losses, names = zip(*points, strict=True)
    arrays = (np.array(one, float) for one in (params, tokens, losses))
    return Points(*arrays, names), left_out


def _sources(summary: dict) -> str:
    """What it was measured on."""
    names = [name.partition("/")[2] for name in summary if name.startswith("val_nats_per_token/")]
    return f"; there are {', '.join(names)}" if names else ": its data is no mixture"
