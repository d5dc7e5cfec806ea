"""Group-relative policy optimisation (Shao et al. 2024): a group is its own baseline."""

from ..train import Loss
from .advantages import group_normalised
from .kl import k3_for_a_loss
from .policy import Aggregation, policy_loss
from .ppo import CLIP, clipped


def grpo_loss(
    beta: float = 0.04,
    clip: float = CLIP,
    divide: bool = True,
    how: Aggregation = "sequence",
) -> Loss:
    """PPO's clipped loss with the group's advantages, and beta times the KL to the reference.

    A row is a group: tokens [rows, K, time], `reward` [rows, K], `old_logp` and `ref_logp`
    [rows, K, time]. divide False and how "token" give Liu et al. 2025.
    """
    ppo = clipped(clip)

    def per_token(out, batch):
        advantage = group_normalised(batch["reward"], divide)[..., None]
        loss, metrics = ppo(out, {**batch, "advantages": advantage})
        kl = k3_for_a_loss(out["logp"], batch["ref_logp"])
        return loss + beta * kl, {**metrics, "kl": kl}

    return policy_loss(per_token, how)
