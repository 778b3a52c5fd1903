"""Attention mechanisms, one file each: the formula, the checks, the expansion, the operation."""

from pyattn.attention.additive import additive_attention
from pyattn.attention.cache import update_cache
from pyattn.attention.luong import luong_attention
from pyattn.attention.paged import paged_attention
from pyattn.attention.rows import attention_weights
from pyattn.attention.sdpa import scaled_dot_product_attention
from pyattn.attention.varlen import varlen_attention

__all__ = [
    "additive_attention",
    "attention_weights",
    "luong_attention",
    "paged_attention",
    "scaled_dot_product_attention",
    "update_cache",
    "varlen_attention",
]
