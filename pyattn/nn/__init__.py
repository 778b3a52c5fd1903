"""Modules: thin holders of parameters around the functions of pyattn."""

from pyattn.nn.attention import (
    AdditiveAttention,
    LuongAttention,
    MultiHeadAttention,
    SelfAttention,
)
from pyattn.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm, RotaryEmbedding
from pyattn.nn.module import Module
from pyattn.nn.recurrent import GRU, LSTM, GRUCell, LSTMCell
from pyattn.nn.transformer import TransformerEncoderLayer

__all__ = [
    "GRU",
    "LSTM",
    "AdditiveAttention",
    "Dropout",
    "Embedding",
    "GRUCell",
    "LSTMCell",
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
