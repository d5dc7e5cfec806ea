"""The split of compute between parameters and tokens at which a law's loss is lowest."""

from typing import NamedTuple

import numpy as np

from .parametric import Law


class Optimum(NamedTuple):
    """Arrays of one shape."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray

    @property
    def tokens_per_param(self) -> np.ndarray:
        """D / N."""
        return self.tokens / self.params


def compute_optimal(law: Law, flops) -> Optimum:
    """At C = 6 N D: N = G (C/6)^(beta/(alpha+beta)), D = (C/6)^(alpha/(alpha+beta)) / G with
    G = (alpha A / (beta B))^(1/(alpha+beta)) (Hoffmann et al. 2022, equation 4)."""
    total = law.alpha + law.beta
    ratio = (law.alpha * law.A / (law.beta * law.B)) ** (1 / total)
    params = ratio * (np.asarray(flops) / 6) ** (law.beta / total)
    tokens = (np.asarray(flops) / 6) ** (law.alpha / total) / ratio
    return Optimum(params, tokens, law.loss(params, tokens))


def law_of_optima(size_scale, size_exponent, loss_scale, loss_exponent, irreducible) -> Law:
    """The parametric law whose optima are N = size_scale C^size_exponent with the loss
    irreducible + loss_scale C^-loss_exponent.

    With N ~ C^(beta/(alpha+beta)) and L - E ~ C^(-alpha beta/(alpha+beta)) the exponents are
    alpha = loss_exponent / size_exponent and beta = loss_exponent / (1 - size_exponent); at the
    optimum alpha A / N^alpha = beta B / D^beta, which shares the loss out between A and B.
    """
    alpha = loss_exponent / size_exponent
    beta = loss_exponent / (1 - size_exponent)
    of_size = loss_scale * beta / (alpha + beta)
    of_data = loss_scale * alpha / (alpha + beta)
    # At C = 1: N = size_scale, D = 1 / (6 size_scale).
    return Law(
        of_size * size_scale**alpha,
        of_data * (1 / (6 * size_scale)) ** beta,
        irreducible,
        alpha,
        beta,
    )
