"""PPO: the clipped loss of the policy, that of the critic, and both in one step with pretraining.

Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022 (PPO-ptx).
"""

import jax.numpy as jnp
from jax import Array

from ..train import Loss, Term, objective, sum_rows
from .masked import masked_mean
from .policy import Aggregation, PerToken, aggregate

LONGEST = 20.0  # of a log-ratio: its exponential stays finite
CLIP, VALUE_CLIP, VALUE_SCALE = 0.2, 0.2, 0.1
BOUNDS = {"float32": (1e-4, 1e-5), "bfloat16": (0.5, 0.03)}
"""By how much log-probs of the update may differ from the sampler's: at any token, in the mean."""


def clipped(clip: float = CLIP) -> PerToken:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) with rho = exp(logp - old_logp).

    The batch holds `old_logp` and `advantages`. Metrics: `approximate_kl`, half the squared
    log-ratio; `clip_fraction`; `ratio` and `ratio_squared`, from which its variance follows.
    """

    def per_token(out, batch):
        log_ratio = out["logp"] - batch["old_logp"]
        ratio = jnp.exp(jnp.clip(log_ratio, -LONGEST, LONGEST))
        advantage = batch["advantages"]
        loss = jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1.0 - clip, 1.0 + clip))
        metrics = {
            "approximate_kl": 0.5 * jnp.square(log_ratio),
            "clip_fraction": (jnp.abs(ratio - 1.0) > clip).astype(jnp.float32),
            "ratio": ratio,
            "ratio_squared": jnp.square(ratio),
        }
        if "entropy" in out:
            metrics["entropy"] = out["entropy"]
        return loss, metrics

    return per_token


def clipped_value(value: Array, old_value: Array, returns: Array, clip: float) -> Array:
    """max((V - G)^2, (V_old + clip(V - V_old) - G)^2) / 2, of each token."""
    near = old_value + jnp.clip(value - old_value, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(value - returns), jnp.square(near - returns))


def ppo_loss(
    how: Aggregation = "token",
    clip: float = CLIP,
    value_clip: float = VALUE_CLIP,
    value_scale: float = VALUE_SCALE,
    ptx: float = 0.0,
    per_token: PerToken | None = None,
) -> Loss:
    """One loss of two networks: `apply` and `params` are mappings with `policy` and `critic`.

    The batch holds what `clipped` needs, and `old_values` and `returns` [rows, time]. With ptx > 0
    it also holds `ptx`, a batch of pretraining rows [rows, k, time], whose next-token loss enters
    with that factor (InstructGPT: 27.8, with eight of them to a response). per_token: the policy's
    loss in place of the clipped one; `out` holds `logp` and `entropy`.
    """
    per_token = per_token or clipped(clip)

    @objective(surrogate=True, policy=1.0, value=value_scale, **({"ptx": ptx} if ptx else {}))
    def loss(apply, params, batch, key):
        mask = batch["loss_mask"]
        out = apply["policy"](params["policy"], batch, want=("logp", "entropy"), key=key)
        values, metrics = per_token(out, batch)
        critic = apply["critic"](params["critic"], batch, want=("value",), key=key)["value"]
        error = clipped_value(critic, batch["old_values"], batch["returns"], value_clip)
        terms = {"policy": aggregate(values, mask, how), "value": aggregate(error, mask)}
        terms |= {name: aggregate(x, mask) for name, x in metrics.items()}
        if ptx:
            text = {**batch["ptx"], "row": batch["row"]}
            logp = apply["policy"](params["policy"], text, want=("logp",), key=key)["logp"]
            counts = text["loss_mask"]
            terms["ptx"] = Term(
                sum_rows(jnp.where(counts > 0, -logp, 0.0)),
                sum_rows(counts > 0),
            )
        return terms

    return loss


class BrokenInvariantError(AssertionError):
    """What the update would start from is not what was sampled; the text says how."""


def apart(logp: Array, old_logp: Array, mask: Array) -> Array:
    """f32[2]: by how much log-probs [B, T] of the update differ from the sampler's, at any token
    and in the mean."""
    difference = jnp.where(mask > 0, jnp.abs(logp - old_logp), 0.0)
    return jnp.stack([difference.max(), masked_mean(difference, mask)])


def check_first(
    logp: Array, old_logp: Array, advantages: Array, mask: Array, dtype: str = "float32"
) -> None:
    """Before a batch's first update, over all of it: the log-probs are the sampler's, so the ratio
    is 1, approximate KL and clip fraction are 0, and the loss of whitened advantages is about 0.

    All [B, T]. dtype: that the policy computes in, for BOUNDS; in bfloat16 the log-probs alone are
    held to it. Raises BrokenInvariantError:
    temperature, dropout, padding or keys differ between sampling and training.
    """
    bounds = BOUNDS[dtype]
    worst, mean = map(float, apart(logp, old_logp, mask))
    if not (worst <= bounds[0] and mean <= bounds[1]):
        difference = jnp.where(mask > 0, jnp.abs(logp - old_logp), 0.0)
        row, place = jnp.unravel_index(jnp.argmax(difference), difference.shape)
        raise BrokenInvariantError(
            f"log-probs of the update differ from the sampler's by {mean:.2g} in the mean (allowed "
            f"{bounds[1]:.0e}) and by {worst:.2g} at row {int(row)}, token {int(place)} (allowed "
            f"{bounds[0]:.0e}): temperature, padding, dropout or the parameters are not those "
            "of the sampling"
        )
    loss, metrics = clipped()({"logp": logp}, {"old_logp": old_logp, "advantages": advantages})
    scale = float(masked_mean(jnp.abs(advantages), mask))
    for name, value, bound in (
        ("clip fraction", masked_mean(metrics["clip_fraction"], mask), 0.0),
        ("policy loss", jnp.abs(masked_mean(loss, mask)), 1e-3 * max(scale, 1.0)),
    ):
        if dtype == "float32" and float(value) > bound:
            raise BrokenInvariantError(
                f"the {name} is {float(value):.2g} before the first update, and should be 0: the "
                "advantages are not whitened over this batch"
            )
