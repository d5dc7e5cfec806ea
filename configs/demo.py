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
            heads=4,
            context=256,
            norm="rmsnorm",
            norm_affine=False,
            embedding_norm=True,
            position="rotary",
            activation="relu2",
            qk_norm=True,
            zero_init=True,
            logit_cap=15.0,
            embedding_init_std=1.0,
        ),
        data=("python",),
        tokenizer="bpe:4096",
        steps=1000,
        batch=8,
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=0.02,
            embedding_learning_rate=0.02,
            head_learning_rate=0.004,
            schedule="wsd",
            cooldown=0.6,
            final=0.0,
        ),
        eval_every=250,
        eval_tokens=32768,
        sample_every=250,
        sample_tokens=96,
        prompts=("def ", "import os\n\nclass ", "The "),
    ),
}
