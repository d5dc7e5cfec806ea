"""Instruction tuning: of a small decoder on a laptop, and as InstructGPT did it."""

from ..train import OptimizerConfig
from ..train.config import SftConfig

CONFIGS = {
    # A decoder of the demo's kind: Muon as in its pretraining, at a fifth of the rates.
    "instruct-small": SftConfig(
        epochs=3.0,
        batch=16,
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=0.002,
            embedding_learning_rate=0.004,
            head_learning_rate=0.0008,
            beta1=0.8,
            clip=0.0,
            schedule="wsd",
            cooldown=0.7,
            final=0.0,
        ),
        eval_every=50,
        eval_tokens=0,
        prompts=("What can you do?",),
    ),
    # Ouyang et al. 2022, appendix C.1: 16 epochs, batch 32, 9.65e-6 falling as a cosine to a tenth,
    # residual dropout .2; the checkpoint to use is the one that the reward model likes best.
    "instruct": SftConfig(
        epochs=16.0,
        batch=32,
        dropout=0.2,
        optimizer=OptimizerConfig(learning_rate=9.65e-6, schedule="cosine", final=0.1),
        eval_every=200,
        prompts=("What can you do?",),
    ),
}
