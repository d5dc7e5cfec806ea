"""What `aludel demo` trains: a modern small decoder on the library that every Python brings along.

A few minutes on two cores.
"""

from ..model import DecoderConfig
from ..train import OptimizerConfig
from ..train.config import PretrainConfig

CONFIGS = {
    "demo": PretrainConfig(
        model=DecoderConfig(
            layers=4,
            width=192,
            heads=3,
            context=256,
            norm="rmsnorm",
            norm_affine=False,
            position="rotary",
            activation="relu2",
            qk_norm=True,
            token_shift=1,
            zero_init=True,
            logit_cap=15.0,
            embedding_init_std=1.0,
        ),
        data=("python",),
        tokenizer="bpe:2048",
        steps=400,
        batch=16,
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=0.01,
            embedding_learning_rate=0.02,
            head_learning_rate=0.004,
            beta1=0.8,
            clip=0.0,
            schedule="wsd",
            cooldown=0.6,
            final=0.0,
        ),
        eval_every=100,
        eval_tokens=32768,
        sample_every=200,
        sample_tokens=96,
        prompts=("def ", "import os\n\nclass ", "The "),
    ),
}
