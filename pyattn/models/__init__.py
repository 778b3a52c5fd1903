"""Architectures, and loaders of their published checkpoints."""

from pyattn.models.bert import Bert, BertConfig
from pyattn.models.decoding import BeamDecode, CachedStep, GreedyDecode
from pyattn.models.gpt2 import GPT2, GPT2Config
from pyattn.models.sentence_encoder import SentenceEncoder

__all__ = [
    "GPT2",
    "BeamDecode",
    "Bert",
    "BertConfig",
    "CachedStep",
    "GPT2Config",
    "GreedyDecode",
    "SentenceEncoder",
]
