"""Modules: thin holders of parameters around the functions of pyattn."""

from pyattn.nn.attention import (
    AdditiveAttention,
    MultiHeadAttention,
    SelfAttention,
)
from pyattn.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm, RotaryEmbedding
from pyattn.nn.luong import LuongAttention
from pyattn.nn.module import Module
from pyattn.nn.transformer import TransformerEncoderLayer

__all__ = [
    "AdditiveAttention",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "LuongAttention",
    "Module",
    "MultiHeadAttention",
    "RMSNorm",
    "RotaryEmbedding",
    "SelfAttention",
    "TransformerEncoderLayer",
]
