"""BERT encoders, loaded from Hugging Face checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from pyattn.attention.varlen import places
from pyattn.models.checkpoint import fill, load_weights, read_config
from pyattn.nn import Dropout, Embedding, LayerNorm, Linear, Module, TransformerEncoderLayer
from pyattn.nn.transformer import Activation
from pyattn.onnx_input import Input
from pyattn.ops import arange_like, astype, expand_dims, getitem, take, tanh
from pyattn.tensor import Array, Dim, Tensor, Value, rank_of


@dataclass(frozen=True)
class BertConfig:
    """The entries of a checkpoint's ``config.json`` that decide the architecture."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    pad_token_id: int = 0

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read ``config.json``; ValueError where it does not describe a BERT encoder."""
        required: dict[str, Any] = {"model_type": "bert", "position_embedding_type": "absolute"}
        return read_config(cls, path, required | {"is_decoder": False})


class Bert(Module):
    """The encoder of "BERT", arXiv:1810.04805: embeddings, encoder layers, and the pooler.

    ``Bert(config, rng=...)`` starts with random parameters, :meth:`from_pretrained` with those of a
    checkpoint.
    """

    def __init__(self, config: BertConfig, *, rng: np.random.Generator | None) -> None:
        size = config.hidden_size
        self.config = config
        self.word_embeddings = Embedding(config.vocab_size, size, rng=rng)
        self.position_embeddings = Embedding(config.max_position_embeddings, size, rng=rng)
        self.token_type_embeddings = Embedding(config.type_vocab_size, size, rng=rng)
        self.embeddings_norm = LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.layers = [
            TransformerEncoderLayer(
                size,
                config.num_attention_heads,
                config.intermediate_size,
                activation=cast("Activation", config.hidden_act),  # the layer checks it
                dropout=config.hidden_dropout_prob,
                eps=config.layer_norm_eps,
                rng=rng,
            )
            for _ in range(config.num_hidden_layers)
        ]
        self.pooler: Linear | None = Linear(size, size, rng=rng)

    def __call__(
        self,
        input_ids: Value,
        attention_mask: Value | None = None,
        token_type_ids: Value | None = None,
        *,
        cu_seqlens: Value | None = None,
        rng: np.random.Generator | None = None,
    ) -> Any:
        """Return the last layer's states ``(B, S, hidden_size)``, float32.

        ``input_ids``, ``attention_mask`` (nonzero: a real token) and ``token_type_ids`` are
        ``(B, S)`` integers; without a mask every token is real, without types all are of type 0.
        ``rng`` switches dropout on, for training: of embeddings and of each layer's parts, not yet
        of attention weights.

        With ``cu_seqlens`` ``(B + 1,)`` the sequences are packed, as in
        :func:`pyattn.varlen_attention`: ``input_ids`` and types are ``(N,)``, the states ``(N,
        hidden_size)``, and there is no mask because there is no padding.
        """
        for name, x in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if x is not None and x.shape != input_ids.shape:
                raise ValueError(f"Bert: {name} must be {input_ids.shape}; got shape {x.shape}")
        positions = self._positions(input_ids, attention_mask, cu_seqlens)
        if token_type_ids is None:
            types = getitem(self.token_type_embeddings.weight, 0)
        else:
            types = self.token_type_embeddings(token_type_ids)
        x = (
            self.word_embeddings(input_ids)
            + types
            + take(self.position_embeddings.weight, positions)
        )
        x = self.dropout(self.embeddings_norm(x), rng)
        mask = None
        if attention_mask is not None:
            mask = expand_dims(expand_dims(astype(attention_mask, np.bool_), 1), 1)
        for layer in self.layers:
            x = layer(x, mask, cu_seqlens=cu_seqlens, rng=rng)
        return x

    def _positions(
        self, input_ids: Value, attention_mask: Value | None, cu_seqlens: Value | None
    ) -> Any:
        """Return the position of every token, ``(S,)`` or, of packed ones, ``(N,)``."""
        wanted = (2, "(B, S)") if cu_seqlens is None else (1, "(N,)")
        if rank_of("Bert", input_ids) != wanted[0]:
            raise ValueError(f"Bert: input_ids must be {wanted[1]}; got shape {input_ids.shape}")
        if cu_seqlens is not None:
            if attention_mask is not None:
                raise ValueError("Bert: cu_seqlens excludes attention_mask")
            known = cu_seqlens.value if isinstance(cu_seqlens, Tensor) else cu_seqlens
            if known is not None and known.ndim == 1:
                self._require_length(np.diff(known).max(initial=0), "a sequence of input_ids")
            return places(input_ids, cu_seqlens)[1]
        self._require_length(input_ids.shape[1], "input_ids")
        return arange_like(input_ids, 1)

    def _require_length(self, length: Any, what: str) -> None:
        limit = self.config.max_position_embeddings
        if not isinstance(length, Dim) and length > limit:
            raise ValueError(f"Bert: {what} has {length} positions; the model has {limit}")

    def example_inputs(self, *, packed: bool = False) -> dict[str, Input]:
        """Return the inputs to export with: two sequences of tokens, padded or packed."""
        lengths, longest = (4, 2), 4
        rows = [np.arange(length) % self.config.vocab_size for length in lengths]
        if packed:
            return {
                "input_ids": Input(np.concatenate(rows), ("tokens",)),
                "cu_seqlens": Input(np.cumsum([0, *lengths]), ("offsets",), offsets_of="tokens"),
            }
        pad, dims = self.config.pad_token_id, ("batch", "sequence")
        ids = [np.pad(row, (0, longest - len(row)), constant_values=pad) for row in rows]
        mask = np.arange(longest) < np.array(lengths)[:, None]
        return {
            "input_ids": Input(np.stack(ids), dims, pad=pad),
            "attention_mask": Input(mask.astype(np.int64), dims, mask_of="sequence"),
        }

    def pool(self, states: Value) -> Any:
        """Return ``tanh(W x_0 + b)`` of the first token's state: BERT's pooled output."""
        if self.pooler is None:
            raise ValueError("Bert: the checkpoint has no pooler")
        return tanh(self.pooler(getitem(states, (slice(None), 0))))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, strict: bool = True) -> Self:
        """Load a Hugging Face checkpoint: a folder with ``config.json`` and safetensors weights.

        Float16 and bfloat16 weights become float32. A checkpoint without a pooler is accepted.

        Parameters
        ----------
        folder:
            The checkpoint.
        strict:
            Whether names in the file that the encoder does not have (the head of a classifier, for
            example) are an error; otherwise they are a warning.

        Raises
        ------
        FileNotFoundError
            When a file is missing.
        ValueError
            When the configuration is not BERT's, a file is damaged, or names are missing or
            unexpected; the message lists them.
        """
        config = BertConfig.from_file(Path(folder) / "config.json")
        return cls(config, rng=None)._take(load_weights(folder), folder, strict=strict)

    def _take(
        self, weights: dict[str, Array], folder: str | os.PathLike[str], *, strict: bool
    ) -> Self:
        found = {_plain_name(name): array for name, array in weights.items()}
        found.pop("embeddings.position_ids", None)  # the numbers 0, 1, ...: a buffer of old files
        if not any(name.startswith("pooler.") for name in found):
            self.pooler = None
        names = {name: _checkpoint_name(name) for name in self.parameters()}
        return fill(self, names, found, folder, strict=strict)


def _plain_name(name: str) -> str:
    """Undo what differs between checkpoints: a prefix, and the old names of the norm's arrays."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


_CHECKPOINT_NAMES = (
    # Ours, theirs; longer names stand before the names that they begin with.
    ("attention_norm.", "attention.output.LayerNorm."),
    ("attention.output.", "attention.output.dense."),
    ("attention.", "attention.self."),
    ("hidden.", "intermediate.dense."),
    ("output_norm.", "output.LayerNorm."),
    ("output.", "output.dense."),
)


def _checkpoint_name(name: str) -> str:
    if name.startswith("pooler."):
        return name.replace("pooler.", "pooler.dense.")
    if not name.startswith("layers."):
        return f"embeddings.{name.replace('embeddings_norm.', 'LayerNorm.')}"
    _, number, rest = name.split(".", 2)
    for ours, theirs in _CHECKPOINT_NAMES:
        if rest.startswith(ours):
            return f"encoder.layer.{number}.{theirs}{rest.removeprefix(ours)}"
    raise KeyError(name)
