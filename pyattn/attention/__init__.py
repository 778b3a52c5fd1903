"""Attention mechanisms, one file each: the formula, the checks, the expansion, the operation."""

from pyattn.attention.additive import additive_attention
from pyattn.attention.luong import luong_attention
from pyattn.attention.sdpa import scaled_dot_product_attention

__all__ = ["additive_attention", "luong_attention", "scaled_dot_product_attention"]
