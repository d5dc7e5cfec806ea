"""Finished pretraining runs as points of a scaling law."""

from pathlib import Path

import numpy as np

from ...errors import UserError
from ..run import PROVENANCE, SUMMARY, Run
from .points import Points


def read_runs(folder: str | Path, embeddings: bool = True) -> tuple[Points, list[str]]:
    """(a point for each finished pretraining run in a folder, the names of those left out).

    N counts all parameters, or without `embeddings` those of the blocks and norms (Kaplan et al.
    2020); D is the tokens trained on, the loss that of the validation part at the end, in nats per
    token. Raises UserError where there is none, or where two runs were not measured alike: with
    another tokenizer or another validation part their losses are not comparable.
    """
    folder = Path(folder).expanduser()
    points, left_out, first = [], [], None
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        run = Run(path)
        if not run.exists or run.stage() != "pretrain":
            continue
        summary, digests = run.read(SUMMARY), run.read(PROVENANCE).get("digests", {})
        loss, config = summary.get("val_nats_per_token"), run.config()
        if loss is None or summary["steps"] < config.steps:
            left_out.append(path.name)
            continue
        alike = {"tokenizer": digests.get("tokenizer"), "validation": digests.get("validation")}
        first = first or (path.name, alike)
        for name, value in alike.items():
            if value != first[1][name]:
                raise UserError(
                    f"{path}: its {name} is another than that of {first[0]}: the losses are not "
                    "comparable; keep such runs in folders of their own"
                )
        points.append((config.model.parameters(embeddings), summary["tokens"], loss, path.name))
    if not points:
        unfinished = f"; unfinished: {', '.join(left_out)}" if left_out else ""
        raise UserError(f"{folder}: holds no finished pretraining run{unfinished}")
    params, tokens, losses, names = zip(*points, strict=True)
    arrays = (np.array(one, float) for one in (params, tokens, losses))
    return Points(*arrays, names), left_out
