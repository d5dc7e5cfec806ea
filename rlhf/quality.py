"""How well scores agree with held-out comparisons: accuracy, calibration, what length explains."""

import numpy as np

BINS = 10


def quality(scores: np.ndarray, ranks: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    """Figures of scores f32[n, K], ranks i32[n, K] (lower is better, -1: none) and lengths [n, K].

    `val_loss_nats`: a comparison's mean of -log sigmoid over its pairs. `val_accuracy` over pairs
    (equal scores count half), and of the third of the pairs that lies closest together by score,
    `_near`, and farthest apart, `_far`. `val_calibration_error`. `val_length_correlation` of
    differences in score and in tokens; `val_longer_accuracy`: what preferring the longer gets.
    """
    there = ranks >= 0
    pairs = there[:, :, None] & there[:, None, :] & (ranks[:, :, None] < ranks[:, None, :])
    row, better, worse = np.nonzero(pairs)
    if not len(row):
        return {}
    ahead = (scores[row, better] - scores[row, worse]).astype(np.float64)
    longer = (lengths[row, better] - lengths[row, worse]).astype(np.float64)
    right = _right(ahead)
    count = np.bincount(row, minlength=len(scores))
    lost = np.bincount(row, np.logaddexp(0.0, -ahead), minlength=len(scores))
    order = np.argsort(np.abs(ahead), kind="stable")
    third = max(1, len(order) // 3)
    return {
        "val_loss_nats": float((lost[count > 0] / count[count > 0]).mean()),
        "val_accuracy": float(right.mean()),
        "val_accuracy_near": float(right[order[:third]].mean()),
        "val_accuracy_far": float(right[order[-third:]].mean()),
        "val_calibration_error": calibration_error(ahead),
        "val_length_correlation": correlation(ahead, longer),
        "val_longer_accuracy": float(_right(longer).mean()),
        "val_pairs": len(row),
    }


def _right(ahead: np.ndarray) -> np.ndarray:
    """1 where the better one is ahead, a half where they are equal."""
    return (ahead > 0) + 0.5 * (ahead == 0)


def calibration_error(ahead: np.ndarray) -> float:
    """The mean distance, over ten equal bins weighted by their sizes, between the probability that
    scores give the higher one and how often it is the better (Guo et al. 2017).

    ahead: by how much the better one's score is higher, of each pair.
    """
    sure = 1.0 / (1.0 + np.exp(-np.abs(ahead)))
    bins = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    total = 0.0
    for number in np.unique(bins):
        here = bins == number
        total += here.sum() * abs(sure[here].mean() - _right(ahead)[here].mean())
    return float(total / len(ahead))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of differences, each taken both ways round, so that their means are 0; 0 where one of them
    does not vary."""
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / norm) if norm > 0 else 0.0
