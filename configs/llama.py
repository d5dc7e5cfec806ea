"""A Llama-style ladder: RMSNorm, rotary positions, SwiGLU, no biases.

160M, 400M and 1B (TinyLlama's shape) train on 20 tokens a parameter; llama2-7b, llama2-34b (its
shape is Code Llama's) and llama2-70b (Touvron et al. 2023) on 2T, the Llama 3 shapes (Grattafiori
et al. 2024) on 15T, with the papers' learning rates and warm-ups. Llama 3's batch grew during
training; here it is the first stage's, fixed.
"""

from ..model import DecoderConfig
from ..train import OptimizerConfig
from ..train.config import PretrainConfig

LLAMA2 = {"vocab_size": 32_000, "rope_theta": 10_000.0}
LLAMA3 = {"vocab_size": 128_256, "rope_theta": 500_000.0}


def _llama(
    family: dict,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    mlp: int,
    context: int,
    rows: int,
    tokens: float,
    rate: float,
    final: float = 0.1,
    warmup: int = 2000,
) -> PretrainConfig:
    return PretrainConfig(
        model=DecoderConfig(
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            mlp_width=mlp,
            context=context,
            norm="rmsnorm",
            position="rotary",
            activation="swiglu",
            init_std=0.02,
            dtype="bfloat16",
            **family,
        ),
        tokenizer=f"bpe:{family['vocab_size']}",
        steps=round(tokens / (rows * context)),
        batch=rows,
        optimizer=OptimizerConfig(
            learning_rate=rate,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
            clip=1.0,
            schedule="cosine",
            warmup=warmup,
            final=final,
        ),
        log_every=10,
        eval_every=1000,
        eval_tokens=1 << 20,
    )


CONFIGS = {
    "llama-160m": _llama(LLAMA2, 12, 768, 12, 12, 3072, 2048, 256, 3.2e9, 6e-4, warmup=300),
    "llama-400m": _llama(LLAMA2, 24, 1024, 16, 16, 3072, 2048, 256, 8e9, 4e-4, warmup=500),
    "llama-1b": _llama(LLAMA2, 22, 2048, 32, 4, 5632, 2048, 512, 22e9, 4e-4),
    "llama2-7b": _llama(LLAMA2, 32, 4096, 32, 32, 11008, 4096, 1024, 2e12, 3e-4),
    "llama2-34b": _llama(LLAMA2, 48, 8192, 64, 8, 22016, 4096, 1024, 2e12, 1.5e-4),
    "llama2-70b": _llama(LLAMA2, 80, 8192, 64, 8, 28672, 4096, 1024, 2e12, 1.5e-4),
    "llama3-8b": _llama(LLAMA3, 32, 4096, 32, 8, 14336, 8192, 512, 15e12, 3e-4, 0.01, 8000),
    "llama3-70b": _llama(LLAMA3, 80, 8192, 64, 8, 28672, 8192, 512, 15e12, 1.5e-4, 0.01, 8000),
    "llama3-405b": _llama(LLAMA3, 126, 16384, 128, 8, 53248, 8192, 512, 15e12, 8e-5, 0.01, 8000),
}
