"""Modules: thin holders of parameters around the functions of pyattn."""

from pyattn.nn.attention import (
    AdditiveAttention,
    MultiHeadAttention,
    SelfAttention,
)
from pyattn.nn.cache import KeyValueCache, LayerCache
from pyattn.nn.decoder import (
    BahdanauDecoderCell,
    BahdanauState,
    LuongDecoderCell,
    LuongState,
    Source,
)
from pyattn.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm, RotaryEmbedding
from pyattn.nn.luong import LuongAttention
from pyattn.nn.module import Module
from pyattn.nn.output import MaxoutOutput, PointerOutput
from pyattn.nn.recurrent import GRU, LSTM, GRUCell, LSTMCell
from pyattn.nn.search import beam_search, greedy_search, repeat_entries
from pyattn.nn.transformer import TransformerEncoderLayer

__all__ = [
    "GRU",
    "LSTM",
    "AdditiveAttention",
    "BahdanauDecoderCell",
    "BahdanauState",
    "Dropout",
    "Embedding",
    "GRUCell",
    "KeyValueCache",
    "LSTMCell",
    "LayerCache",
    "LayerNorm",
    "Linear",
    "LuongAttention",
    "LuongDecoderCell",
    "LuongState",
    "MaxoutOutput",
    "Module",
    "MultiHeadAttention",
    "PointerOutput",
    "RMSNorm",
    "RotaryEmbedding",
    "SelfAttention",
    "Source",
    "TransformerEncoderLayer",
    "beam_search",
    "greedy_search",
    "repeat_entries",
]
