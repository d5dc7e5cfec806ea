"""The figure by which a stage is judged: of a language model its loss by token, of a reward model
its loss by comparison."""

from collections.abc import Mapping

NAMES = ("val_nats_per_token", "val_loss_nats")


def name_in(figures: Mapping) -> str | None:
    """Which of the names is there with a value, None where there is none."""
    return next((name for name in NAMES if figures.get(name) is not None), None)


def validation_of(figures: Mapping) -> float | None:
    """The figure itself; lower is better."""
    name = name_in(figures)
    return None if name is None else figures[name]


def validated(figures: Mapping) -> bool:
    """Whether there are figures of the validation part among these."""
    return any(name.startswith("val_") and value is not None for name, value in figures.items())
