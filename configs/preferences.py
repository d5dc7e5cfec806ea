"""Reward models: of a small decoder on a laptop, and as InstructGPT did it."""

from ..train import OptimizerConfig
from ..train.config import RewardConfig

CONFIGS = {
    "reward-small": RewardConfig(
        batch=8,
        optimizer=OptimizerConfig(
            learning_rate=3e-4, beta2=0.99, schedule="linear", warmup=10, final=0.0
        ),
        eval_every=50,
    ),
    # Ouyang et al. 2022, appendix C.2: one epoch, 9e-6 falling as a cosine to a tenth, 64 prompts
    # a batch with 4 to 9 ranked completions each; about two share a row, which is as long as the
    # longest.
    "reward": RewardConfig(
        batch=32,
        optimizer=OptimizerConfig(learning_rate=9e-6, schedule="cosine", final=0.1),
        eval_every=100,
    ),
}
