"""Attention kernels: one file each, one signature, `plain` the oracle of all.

Every kernel takes `query [B, T, heads, D]`, `key, value [B, T, kv_heads, D]`, and
`segment_ids [B, T]` or None; token t sees token s where s <= t, both lie in one segment and
t - s < window. It returns `[B, T, heads, D]`.
"""

from .blocked import blocked_attention
from .cudnn import cudnn_attention
from .fused import fused_attention
from .plain import cached_attention, plain_attention

__all__ = [
    "blocked_attention",
    "cached_attention",
    "cudnn_attention",
    "fused_attention",
    "plain_attention",
]
