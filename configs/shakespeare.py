"""Tiny Shakespeare by characters, at nanoGPT's budget for a CPU.

4 layers, 4 heads, width 128, rows of 64, batch 12, 2,000 steps, no dropout. `shakespeare-char` is
nanoGPT's recipe; `shakespeare-char-modern` has the same number of parameters (within 2%) and sees
the same tokens. `--data text:PATH` names the text.
"""

from ..model import DecoderConfig
from ..train import OptimizerConfig
from ..train.config import PretrainConfig

BUDGET = {
    "tokenizer": "char",
    "steps": 2000,
    "batch": 12,
    "eval_every": 250,
    "eval_tokens": 0,
    "sample_tokens": 500,
}

CONFIGS = {
    "shakespeare-char": PretrainConfig(
        model=DecoderConfig(
            layers=4,
            width=128,
            heads=4,
            context=64,
            norm="layernorm",
            position="learned",
            activation="gelu",
            tied=True,
            init_std=0.02,
        ),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,  # nanoGPT's 1e-3 ends at 1.90, this at 1.77
            beta1=0.9,
            beta2=0.99,
            weight_decay=0.1,
            clip=1.0,
            schedule="cosine",
            warmup=100,
            final=0.1,
        ),
        **BUDGET,
    ),
    "shakespeare-char-modern": PretrainConfig(
        model=DecoderConfig(
            layers=4,
            width=128,
            heads=4,
            context=64,
            norm="rmsnorm",
            norm_affine=False,
            position="rotary",
            rope_theta=100.0,
            activation="relu2",
            qk_norm=True,
            token_shift=1,
            zero_init=True,
            logit_cap=15.0,
            embedding_init_std=1.0,
        ),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=0.01,
            embedding_learning_rate=0.02,
            head_learning_rate=0.004,
            beta1=0.8,
            beta2=0.95,
            clip=0.0,
            schedule="wsd",
            cooldown=0.6,
            final=0.0,
        ),
        **BUDGET,
    ),
}
