"""aludel: pretraining, instruction tuning, reward modelling and PPO of one decoder, in JAX."""

__version__ = "0.1.0"
