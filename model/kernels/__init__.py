"""Attention kernels: one file each, one signature, `plain` the oracle of all.

Every kernel takes `query [B, T, heads, D]`, `key, value [B, T, kv_heads, D]`, and
`segment_ids [B, T]` or None; token t sees token s where s <= t, both lie in one segment and
t - s < window. It returns `[B, T, heads, D]`.
"""

from .blocked import blocked_attention
from .context import context_attention
from .cudnn import cudnn_attention
from .decoding import cached_kernels, draw, for_decoding, head_product
from .divided import reading, scattered, writing
from .fused import fused_attention
from .plain import Kernels, plain_attention, write_slots
from .splash import splash_attention
from .training import for_training, gradient_by, training_kernels

__all__ = [
    "Kernels",
    "blocked_attention",
    "cached_kernels",
    "context_attention",
    "cudnn_attention",
    "draw",
    "fused_attention",
    "gradient_by",
    "for_decoding",
    "for_training",
    "head_product",
    "plain_attention",
    "reading",
    "scattered",
    "splash_attention",
    "training_kernels",
    "write_slots",
    "writing",
]
