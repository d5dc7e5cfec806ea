"""Best of n samples by a score: what it costs in KL, beside which PPO stands."""

import math


def best_of_n_kl(n: int) -> float:
    """Nats between the best of n and one sample: log n - (n - 1) / n (Stiennon et al. 2020)."""
    return math.log(n) - (n - 1) / n
