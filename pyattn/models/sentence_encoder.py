"""Sentence embeddings: a BERT encoder, pooled and normalised."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from pyattn.attention.varlen import places
from pyattn.extras import needs
from pyattn.models.bert import Bert
from pyattn.models.checkpoint import read_json
from pyattn.nn import Module
from pyattn.onnx_input import Input
from pyattn.ops import (
    arange_like,
    astype,
    divide,
    equal,
    expand_dims,
    getitem,
    logical_and,
    matmul,
    maximum,
    sqrt,
)
from pyattn.ops import sum as reduce_sum
from pyattn.tensor import Array, Value

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Pooling = Literal["mean", "cls"]


class SentenceEncoder(Module):
    """Maps sentences to vectors: tokens, BERT, mean pooling, division by the Euclidean norm.

    Parameters
    ----------
    bert:
        The encoder.
    tokenizer:
        A tokenizer of the library ``tokenizers``; its truncation and padding are set here.
    max_length:
        Sentences are cut to this many tokens.
    pooling:
        "mean" over the real tokens, or "cls": the first token's state.
    normalize:
        Whether vectors are divided by their norm.

    References
    ----------
    Reimers and Gurevych 2019, "Sentence-BERT", arXiv:1908.10084.
    """

    def __init__(
        self,
        bert: Bert,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        pooling: Pooling = "mean",
        normalize: bool = True,
    ) -> None:
        limit = bert.config.max_position_embeddings
        self.bert = bert
        self.max_length = limit if max_length is None else max_length
        if not isinstance(self.max_length, int) or not 2 < self.max_length <= limit:
            raise ValueError(
                f"SentenceEncoder: max_length must lie in 3..{limit}; got {max_length!r}"
            )
        self.pooling, self.normalize = pooling, normalize
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def __call__(
        self,
        input_ids: Value,
        attention_mask: Value | None = None,
        token_type_ids: Value | None = None,
        *,
        cu_seqlens: Value | None = None,
    ) -> dict[str, Any]:
        """Return ``{"sentence_embedding": (B, hidden_size)}`` for ``(B, S)`` integers.

        A row whose mask is all zero has the embedding 0. Sentences come padded, with an
        ``attention_mask``, or packed one behind the other, ``(N,)``, with ``cu_seqlens``
        ``(B + 1,)``, as in :func:`pyattn.varlen_attention`: then nothing is computed for padding.
        """
        if (attention_mask is None) == (cu_seqlens is None):
            raise ValueError("SentenceEncoder: expected one of attention_mask and cu_seqlens")
        states = self.bert(input_ids, attention_mask, token_type_ids, cu_seqlens=cu_seqlens)
        if cu_seqlens is not None:
            vectors = self._pool_packed(states, cu_seqlens)
        elif self.pooling == "cls" or attention_mask is None:
            vectors = getitem(states, (slice(None), 0))
        else:
            real = expand_dims(astype(astype(attention_mask, np.bool_), states.dtype), 2)
            vectors = divide(reduce_sum(states * real, 1), maximum(reduce_sum(real, 1), 1e-9))
        if self.normalize:
            # The floor is under the root: at zero the root's slope is infinite.
            square = maximum(reduce_sum(vectors * vectors, -1, keepdims=True), 1e-24)
            vectors = divide(vectors, sqrt(square))
        return {"sentence_embedding": vectors}

    def _pool_packed(self, states: Value, cu_seqlens: Value) -> Any:
        """Return ``(B, hidden_size)``: of each sequence the mean, or the first token's state."""
        sequence, place, _ = places(states, cu_seqlens)
        own = equal(expand_dims(arange_like(cu_seqlens[1:], 0), 1), expand_dims(sequence, 0))
        if self.pooling == "cls":
            own = logical_and(own, expand_dims(equal(place, np.array(0)), 0))
        share = astype(own, states.dtype)  # (B, N): a product with it is the sum of a sequence
        return divide(matmul(share, states), maximum(reduce_sum(share, 1, keepdims=True), 1e-9))

    def tokenize(self, sentences: Sequence[str]) -> dict[str, Array]:
        """Return ``input_ids`` and ``attention_mask``, int64 ``(B, S)``, padded to the longest."""
        return self._pad([encoding.ids for encoding in self._encodings(sentences)])

    def pack(self, sentences: Sequence[str]) -> dict[str, Array]:
        """Return ``input_ids`` ``(N,)`` of all sentences and ``cu_seqlens`` ``(B + 1,)``, int64."""
        return _packed([encoding.ids for encoding in self._encodings(sentences)])

    def encode(
        self, sentences: Sequence[str], *, batch_size: int = 32, progress: bool = False
    ) -> Array:
        """Return the embeddings ``(len(sentences), hidden_size)``, float32.

        The sentences of a batch are packed, so that no padding is computed.
        """
        if batch_size < 1:
            raise ValueError(f"SentenceEncoder: batch_size must be positive; got {batch_size}")
        ids = [encoding.ids for encoding in self._encodings(sentences)]
        result = np.empty((len(ids), self.bert.config.hidden_size), np.float32)
        batches: Any = [slice(i, i + batch_size) for i in range(0, len(ids), batch_size)]
        if progress:
            needs("tqdm", "models")
            from tqdm import tqdm

            batches = tqdm(batches, unit="batch")
        for rows in batches:
            result[rows] = self(**_packed(ids[rows]))["sentence_embedding"]
        return result

    def _encodings(self, sentences: Sequence[str]) -> Any:
        listed = [sentences] if isinstance(sentences, str) else list(sentences)
        if isinstance(sentences, str) or not all(isinstance(s, str) for s in listed):
            raise TypeError("SentenceEncoder: expected a sequence of strings")
        self._tokenizer.enable_truncation(self.max_length)
        return self._tokenizer.encode_batch(listed)

    def _pad(self, rows: list[list[int]]) -> dict[str, Array]:
        longest = max(map(len, rows), default=0)
        ids = np.full((len(rows), longest), self.bert.config.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def example_inputs(self, *, packed: bool = False) -> dict[str, Input]:
        """Return the inputs to export with: two sentences, the second one padded, or packed."""
        sentences = ["An example of a sentence.", "Another."]
        if packed:
            given = self.pack(sentences)
            return {
                "input_ids": Input(given["input_ids"], ("tokens",)),
                "cu_seqlens": Input(given["cu_seqlens"], ("offsets",), offsets_of="tokens"),
            }
        ids, mask = self.tokenize(sentences).values()
        dims = ("batch", "sequence")
        return {
            "input_ids": Input(ids, dims, pad=self.bert.config.pad_token_id),
            "attention_mask": Input(mask, dims, mask_of="sequence"),
        }

    def companion_files(self) -> dict[str, bytes]:
        """Return the tokenizer as a file, to travel with an exported model."""
        self._tokenizer.enable_truncation(self.max_length)
        return {"tokenizer.json": self._tokenizer.to_str().encode()}

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """Load a sentence-transformers checkpoint of a BERT encoder, such as all-MiniLM-L6-v2.

        Reads ``config.json``, ``tokenizer.json``, the safetensors weights and, where there are,
        ``modules.json``, ``1_Pooling/config.json`` and ``sentence_bert_config.json``.

        Raises
        ------
        FileNotFoundError
            When a file is missing.
        ValueError
            When a file is damaged, or asks for an architecture or a pooling that is not this one.
        """
        base = Path(folder)
        bert = Bert.from_pretrained(base)
        settings = base / "sentence_bert_config.json"
        limit = read_json(settings).get("max_seq_length") if settings.is_file() else None
        return cls(
            bert,
            _read_tokenizer(base / "tokenizer.json"),
            max_length=limit,
            pooling=_read_pooling(base / "1_Pooling" / "config.json"),
            normalize=_read_normalize(base / "modules.json"),
        )


def _packed(rows: Sequence[Sequence[int]]) -> dict[str, Array]:
    lengths = [len(row) for row in rows]
    return {
        "input_ids": np.array([token for row in rows for token in row], np.int64),
        "cu_seqlens": np.cumsum([0, *lengths], dtype=np.int64),
    }


def _read_tokenizer(path: Path) -> Tokenizer:
    needs("tokenizers", "models")
    from tokenizers import Tokenizer

    text = path.read_text("utf-8")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 -- the library raises plain Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from None


def _read_pooling(path: Path) -> Pooling:
    if not path.is_file():
        return "mean"
    chosen = [key for key, value in read_json(path).items() if value is True]
    modes: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
    }
    chosen = [key for key in chosen if key.startswith("pooling_mode")]
    if len(chosen) != 1 or chosen[0] not in modes:
        raise ValueError(f"{path}: expected one of {sorted(modes)}; got {chosen}")
    return modes[chosen[0]]


def _read_normalize(path: Path) -> bool:
    if not path.is_file():
        return True
    stages = read_json(path, list)
    return any(isinstance(s, dict) and str(s.get("type")).endswith(".Normalize") for s in stages)
