"""GPT-3's ladder, 125M to 175B (Brown et al. 2020, table 2.1), 300B tokens each.

As used, not as printed: 1.3B has 16 heads of 128 (printed: 24), 13B is 5,120 wide (printed: 5,140),
so that heads x their width is the width. Two things differ from the paper: attention is dense in
every layer (theirs alternated with a banded sparse pattern), and the cosine ends with the run
(theirs ended after 260B tokens and stayed at 10%).
"""

from ..model import DecoderConfig
from ..train import OptimizerConfig
from ..train.config import PretrainConfig

CONTEXT = 2048
TOKENS = 300e9
WARMUP_TOKENS = 375e6

SHAPES = {  # layers, width, heads, rows of 2,048 tokens in a batch, learning rate
    "gpt3-125m": (12, 768, 12, 256, 6.0e-4),
    "gpt3-350m": (24, 1024, 16, 256, 3.0e-4),
    "gpt3-760m": (24, 1536, 16, 256, 2.5e-4),
    "gpt3-1.3b": (24, 2048, 16, 512, 2.0e-4),
    "gpt3-2.7b": (32, 2560, 32, 512, 1.6e-4),
    "gpt3-6.7b": (32, 4096, 32, 1024, 1.2e-4),
    "gpt3-13b": (40, 5120, 40, 1024, 1.0e-4),
    "gpt3-175b": (96, 12288, 96, 1536, 0.6e-4),
}


def _gpt3(layers: int, width: int, heads: int, rows: int, rate: float) -> PretrainConfig:
    return PretrainConfig(
        model=DecoderConfig(
            vocab_size=50257,
            layers=layers,
            width=width,
            heads=heads,
            context=CONTEXT,
            norm="layernorm",
            position="learned",
            activation="gelu_tanh",
            bias=True,
            tied=True,
            init_std=0.02,
            dtype="bfloat16",
        ),
        tokenizer="bpe:50257",
        steps=round(TOKENS / (rows * CONTEXT)),
        batch=rows,
        optimizer=OptimizerConfig(
            learning_rate=rate,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            weight_decay=0.1,
            clip=1.0,
            schedule="cosine",
            warmup=round(WARMUP_TOKENS / (rows * CONTEXT)),
            final=0.1,
        ),
        log_every=10,
        eval_every=1000,
        eval_tokens=1 << 20,
    )


CONFIGS = {name: _gpt3(*shape) for name, shape in SHAPES.items()}
