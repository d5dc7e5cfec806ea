"""Attention kernels: one file each, one signature, `plain` the oracle of all.

Every kernel takes `query [B, T, heads, D]`, `key, value [B, T, kv_heads, D]`, and
`segment_ids [B, T]` or None; token t sees token s where s <= t, both lie in one segment and
t - s < window. It returns `[B, T, heads, D]`.
"""

from .blocked import blocked_attention
from .cudnn import cudnn_attention
from .decoding import CachedKernels, cached_kernels, for_decoding, head_product
from .fused import fused_attention
from .plain import plain_attention, write_slots
from .products import Products, products_by, training_product

__all__ = [
    "CachedKernels",
    "Products",
    "blocked_attention",
    "cached_kernels",
    "cudnn_attention",
    "fused_attention",
    "for_decoding",
    "head_product",
    "plain_attention",
    "products_by",
    "training_product",
    "write_slots",
]
