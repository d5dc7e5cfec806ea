"""The figures of a recipe's report, drawn so that the page chooses the colours."""

from collections.abc import Sequence

import numpy as np

from ..train.curves import INK, MAIN, RAW, SECOND, dress, smoothed, svg, thinned

Lines = Sequence[dict]


def series(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a figure in metrics.jsonl, where it is logged."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def band(axes, runs: Sequence[tuple[np.ndarray, np.ndarray]], color: str, label: str) -> None:
    """The mean of runs at the steps that all have, and what they span."""
    runs = [run for run in runs if len(run[0])]
    if not runs:
        return
    common = sorted(set.intersection(*(set(steps) for steps, _ in runs)))
    values = np.array([[dict(zip(*run, strict=True))[s] for s in common] for run in runs])
    axes.plot(common, values.mean(axis=0), color=color, lw=1.8, label=label)
    if len(runs) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(common, low, high, color=color, alpha=0.18, lw=0)


def figure(title: str, wide: bool = False):
    """(figure, axes) of the page's size."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9.2, 3.4) if wide else (4.5, 2.9), layout="constrained")
    axes = made.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    return made, axes


def training_loss(
    title: str, runs: Sequence[Lines], validation: str, training: str = "loss_nats"
) -> str:
    """The loss of each run, smoothed, and the validation part's, under these names."""
    made, axes = figure(title)
    for number, lines in enumerate(runs):
        steps, values = thinned(*series(lines, training))
        if len(values):
            label = "training" if number == 0 else None
            axes.plot(
                steps, smoothed(values, max(5, len(values) // 30)), color=RAW, lw=1.2, label=label
            )
    band(axes, [series(lines, validation) for lines in runs], SECOND, "validation")
    dress(axes, "step")
    values = [v for lines in runs for v in series(lines, training)[1][10:]]
    if values:  # room for the curves but for their first steps
        axes.set_ylim(top=float(np.percentile(values, 99.5)) * 1.08)
    return svg(made, title)


def distance(title: str, runs: Sequence[Lines]) -> str:
    """The KL of the policy's answers to the tuned model, over PPO's iterations."""
    made, axes = figure(title)
    band(axes, [series(lines, "kl_nats") for lines in runs], MAIN, "nats an answer")
    dress(axes, "iteration")
    return svg(made, title)


def accuracy(title: str, runs: Sequence[Lines]) -> str:
    """How many held-out comparisons the reward model judges as they are labelled."""
    made, axes = figure(title)
    band(axes, [series(lines, "val_accuracy") for lines in runs], MAIN, "as labelled")
    dress(axes, "step")
    return svg(made, title)


def rewards(title: str, runs: Sequence[Lines]) -> str:
    """The reward model's score and the judge's over PPO, each as a gain in its deviations."""
    made, axes = figure(title)
    band(axes, [gain(lines, "val_reward_mean") for lines in runs], MAIN, "reward model's score")
    band(axes, [gain(lines, "gold_mean") for lines in runs], SECOND, "judge's score")
    dress(axes, "iteration")
    return svg(made, title)


def gain(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A figure less what it was at the beginning."""
    steps, values = series(lines, name)
    return steps, values - values[0] if len(values) else values


def overoptimisation(
    title: str, runs: Sequence[Lines], best_of_n: Sequence[dict], gold_of_best: Sequence[float]
) -> str:
    """Gains by the reward model and by the judge against the square root of the KL to the tuned
    policy (Gao et al. 2022), with best of n beside them."""
    made, axes = figure(title, wide=True)
    for number, lines in enumerate(runs):
        steps, kl = series(lines, "val_kl_nats")
        far = np.sqrt(np.maximum(kl, 0.0))
        order = np.argsort(far)
        for name, color, label in (
            ("val_reward_mean", MAIN, "PPO, reward model's score"),
            ("gold_mean", SECOND, "PPO, judge's score"),
        ):
            values = gain(lines, name)[1]
            if len(values) == len(far):
                label = label if number == 0 else None
                axes.plot(
                    far[order], values[order], color=color, lw=1.6, marker="o", ms=3.5, label=label
                )
    for number, (best, gold) in enumerate(zip(best_of_n, gold_of_best, strict=True)):
        at = best["kl_nats"] ** 0.5
        first = number == 0
        axes.plot(
            at,
            best["gain"],
            "D",
            color=MAIN,
            ms=7,
            label="best of 4, reward model's" if first else None,
        )
        axes.plot(at, gold, "D", color=SECOND, ms=7, label="best of 4, judge's" if first else None)
    dress(axes, "square root of the KL to the tuned model, in nats")
    return svg(made, title)


def length(title: str, runs: Sequence[Lines]) -> str:
    """The score of answers against how long they are, over PPO's iterations."""
    made, axes = figure(title)
    for lines in runs:
        tokens, reward = series(lines, "response_tokens_mean")[1], series(lines, "reward_mean")[1]
        axes.scatter(tokens, reward, s=9, color=MAIN, lw=0, alpha=0.7)
    dress(axes, "tokens of an answer")
    return svg(made, title)
