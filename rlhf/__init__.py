"""From a tuned run to an aligned one: rewards, advantages and the losses of PPO and its relatives.

Pure functions so far: what they need of a decoder reaches them through `apply`, and what they
return are the named terms of every other loss, so the step, the mesh and the loop are the same.
"""

from .advantages import gae, group_normalised, leave_one_out
from .best_of_n import best_of_n_kl
from .dpo import dpo_loss
from .experience import experience
from .grpo import grpo_loss
from .kl import adapted, k1, k2, k3, k3_for_a_loss
from .masked import masked_mean, whiten
from .policy import aggregate, policy_loss
from .ppo import BrokenInvariantError, check_first, clipped, clipped_value, ppo_loss
from .ranking import ranking_loss
from .rewards import token_rewards
from .rloo import rloo_loss
from .rollouts import make_rollout, rollout_batch

__all__ = [
    "BrokenInvariantError",
    "adapted",
    "aggregate",
    "best_of_n_kl",
    "check_first",
    "clipped",
    "clipped_value",
    "dpo_loss",
    "experience",
    "gae",
    "group_normalised",
    "grpo_loss",
    "k1",
    "k2",
    "k3",
    "k3_for_a_loss",
    "leave_one_out",
    "masked_mean",
    "make_rollout",
    "policy_loss",
    "ppo_loss",
    "ranking_loss",
    "rloo_loss",
    "rollout_batch",
    "token_rewards",
    "whiten",
]
