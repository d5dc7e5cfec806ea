"""GPT-2's four sizes (Radford et al. 2019), its tokens and context.

The settings of its training were not published: these are nanoGPT's reproduction (0.5M tokens a
step, 600,000 steps), with GPT-3's learning rates for the larger sizes. The vocabulary is trained
on your text; `--tokenizer PATH/vocab.bpe` takes GPT-2's own.
"""

from ..model import DecoderConfig
from ..train import OptimizerConfig
from ..train.config import PretrainConfig

SHAPES = {  # layers, width, heads, learning rate
    "gpt2": (12, 768, 12, 6e-4),
    "gpt2-medium": (24, 1024, 16, 3e-4),
    "gpt2-large": (36, 1280, 20, 2.5e-4),
    "gpt2-xl": (48, 1600, 25, 2e-4),
}


def _gpt2(layers: int, width: int, heads: int, rate: float) -> PretrainConfig:
    return PretrainConfig(
        model=DecoderConfig(
            vocab_size=50257,
            layers=layers,
            width=width,
            heads=heads,
            context=1024,
            norm="layernorm",
            position="learned",
            activation="gelu_tanh",
            bias=True,
            tied=True,
            init_std=0.02,
            dtype="bfloat16",
        ),
        tokenizer="bpe:50257",
        steps=600_000,
        batch=480,
        optimizer=OptimizerConfig(
            learning_rate=rate,
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
    )


CONFIGS = {name: _gpt2(*shape) for name, shape in SHAPES.items()}
