"""Mixtures of experts: the demo's decoder with experts in place of its MLPs, and Mixtral's shape.

`demo-experts` computes about as much for a token as `demo`: 2 of 8 experts, each half as wide as
its MLP. Mixtral 8x7B (Jiang et al. 2024, table 1) has 46.7 billion parameters, 12.9 of them for a
token; its training was not published: these are llama2-7b's settings.
"""

import dataclasses

from ..model import DecoderConfig
from ..train import OptimizerConfig
from ..train.config import PretrainConfig
from .demo import CONFIGS as DEMO

demo = DEMO["demo"]
mlp_width = 4 * demo.model.width

CONFIGS = {
    "demo-experts": dataclasses.replace(
        demo,
        model=dataclasses.replace(
            demo.model, experts=8, experts_per_token=2, mlp_width=mlp_width // 2
        ),
    ),
    "mixtral-8x7b": PretrainConfig(
        model=DecoderConfig(
            vocab_size=32_000,
            layers=32,
            width=4096,
            heads=32,
            kv_heads=8,
            mlp_width=14336,
            experts=8,
            experts_per_token=2,
            context=4096,
            norm="rmsnorm",
            position="rotary",
            rope_theta=1_000_000.0,
            activation="swiglu",
            init_std=0.02,
            dtype="bfloat16",
        ),
        tokenizer="bpe:32000",
        steps=round(2e12 / (1024 * 4096)),
        batch=1024,
        optimizer=OptimizerConfig(
            learning_rate=3e-4,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
            clip=1.0,
            schedule="cosine",
            warmup=2000,
            final=0.1,
        ),
        log_every=10,
        eval_every=1000,
        eval_tokens=1 << 20,
    ),
}
