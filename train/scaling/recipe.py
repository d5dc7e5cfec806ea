"""The recipe that the runs of a fit shared: what to train a run with that was not made."""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...model import DecoderConfig
from ..config import PretrainConfig, from_json, to_json
from ..records import read_json
from .predict import fit_file
from .sweep import sized

RATES = {
    "learning_rate": "matrix",
    "embedding_learning_rate": "embedding",
    "head_learning_rate": "head",
    "vector_learning_rate": "vector",
}
"""Fields of a recipe, and of the optimiser's settings, by their group of parameters."""


@dataclass(frozen=True)
class Recipe:
    """What all runs had; None where they differ."""

    optimizer: str | None = None
    """Its name."""
    learning_rate: float | None = None
    """Peak learning rate of matrices."""
    embedding_learning_rate: float | None = None
    """Of the embedding."""
    head_learning_rate: float | None = None
    """Of an untied head."""
    vector_learning_rate: float | None = None
    """Of norms and biases."""
    tuned_width: int | None = None
    """model.tuned_width; 0: rates do not carry over to other widths."""
    tuned_layers: int | None = None
    """model.tuned_layers; 0: nor to other depths."""
    tokens_per_step: int | None = None
    """Of a batch."""
    width_of_layer: int | None = None
    """Width for each block; None also where that is no whole number."""
    layers: tuple[int, ...] = ()
    """Blocks of the runs, each once."""
    widths: tuple[int, ...] = ()
    """Widths of the runs, each once."""
    model: dict | None = None
    """The widest decoder, as JSON, that the others are when it is sized. None: they are not."""
    embeddings: bool = True
    """Whether N counts embeddings and head."""


def recipe_of(configs: Sequence[PretrainConfig], embeddings: bool) -> Recipe:
    """The recipe of runs with these settings; `embeddings`: how their parameters are counted."""
    models = [config.model for config in configs]
    widest = max(models, key=lambda model: model.width)
    of_one_shape = all(_is_sized(widest, model, embeddings) for model in models)
    ratio = _agreed(model.width / model.layers for model in models)
    return Recipe(
        optimizer=_agreed(config.optimizer.name for config in configs),
        **{
            name: _agreed(config.optimizer.rate(group) for config in configs)
            for name, group in RATES.items()
        },
        tuned_width=_agreed(model.tuned_width or 0 for model in models),
        tuned_layers=_agreed(model.tuned_layers or 0 for model in models),
        tokens_per_step=_agreed(config.tokens_per_step for config in configs),
        width_of_layer=None if ratio is None or ratio % 1 else int(ratio),
        layers=tuple(sorted({model.layers for model in models})),
        widths=tuple(sorted({model.width for model in models})),
        model=to_json(widest) if of_one_shape else None,
        embeddings=embeddings,
    )


def _agreed(values: Iterable[Hashable]) -> Any:
    """The value that all are, else None."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _is_sized(base: DecoderConfig, model: DecoderConfig, embeddings: bool) -> bool:
    """Whether `base`, sized as a sweep would, counts as many parameters as `model`."""
    made = _sized(base, model.layers, model.width)
    if made is None:
        return False
    return made.parameters(embeddings, active=True) == model.parameters(embeddings, active=True)


def _sized(base: DecoderConfig, layers: int, width: int) -> DecoderConfig | None:
    """As a sweep sizes it; None where heads do not come out."""
    try:
        return sized(base, layers, width)
    except UserError:
        return None


def read_recipe(path: str | Path) -> Recipe | None:
    """Of a fit.json or its folder; None where the fit comes of no runs. UserError: damaged."""
    file = fit_file(path)
    values = read_json(file).get("recipe")
    return None if values is None else from_json(Recipe, values, f"{file}: recipe")


def nearest_size(recipe: Recipe, params: float) -> tuple[DecoderConfig, int] | None:
    """(the decoder of the runs' rule whose N is nearest to `params` in ratio, that N); None where
    the runs have no one rule."""
    if recipe.model is None or recipe.width_of_layer is None:
        return None
    base = from_json(DecoderConfig, recipe.model, "recipe: model")

    width = recipe.width_of_layer
    # Heads divide the width, and keys the heads, at every multiple of the first such depth.
    first = next(n for n in range(1, base.layers + 1) if _sized(base, n, n * width) is not None)

    def size(multiple: int) -> DecoderConfig:
        layers = first * multiple
        return sized(base, layers, layers * width)

    def count(multiple: int) -> int:
        return size(multiple).parameters(recipe.embeddings, active=True)

    low, high = 0, 1
    while count(high) < params:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < params else (low, middle)
    best = min((max(low, 1), high), key=lambda one: abs(math.log(count(one) / params)))
    return size(best), count(best)
