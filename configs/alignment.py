"""PPO of a small policy on a laptop."""

from ..train import OptimizerConfig
from ..train.config import PpoConfig

CONFIGS = {
    "ppo-small": PpoConfig(
        steps=100,
        batch=64,
        passes=2,
        new_tokens=64,
        kl=0.02,
        optimizer=OptimizerConfig(
            learning_rate=1e-4, eps=1e-5, beta2=0.99, schedule="linear", final=0.0
        ),
        critic_learning_rate=3e-4,
        eval_every=0,
        checkpoint_every=20,
        prompts=("What can you do?",),
    ),
}
