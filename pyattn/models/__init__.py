"""Architectures, and loaders of their published checkpoints."""

from pyattn.models.bert import Bert, BertConfig
from pyattn.models.sentence_encoder import SentenceEncoder

__all__ = ["Bert", "BertConfig", "SentenceEncoder"]
