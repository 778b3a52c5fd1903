"""GPT-2 decoders, loaded from Hugging Face checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from pyattn.export import Input
from pyattn.models.checkpoint import fill, load_weights, read_config
from pyattn.nn import Dropout, Embedding, LayerNorm, Module, TransformerEncoderLayer
from pyattn.nn.cache import KeyValueCache
from pyattn.nn.transformer import Activation
from pyattn.ops import arange_like, expand_dims, linear, reshape, size, take
from pyattn.tensor import Array, Dim, Value, rank_of

ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}


@dataclass(frozen=True)
class GPT2Config:
    """The entries of a checkpoint's ``config.json`` that decide the architecture.

    The defaults are those of the smallest model: 12 layers, 124 million parameters.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # 4 n_embd
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    resid_pdrop: float = 0.1
    eos_token_id: int | None = 50256

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read ``config.json``; ValueError where it does not describe a GPT-2."""
        required = {
            "model_type": "gpt2",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        }
        return read_config(cls, path, required)


class GPT2(Module):
    """The decoder of "Language Models are Unsupervised Multitask Learners".

    Embeddings of words and positions, layers that normalise before each part, a last normalisation,
    and the table of words again for the logits. ``GPT2(config, rng=...)`` starts with random
    parameters, :meth:`from_pretrained` with those of a checkpoint.

    References
    ----------
    Radford et al. 2019; Radford et al. 2018, "Improving Language Understanding by Generative
    Pre-Training".
    """

    def __init__(self, config: GPT2Config, *, rng: np.random.Generator | None) -> None:
        if config.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"GPT2: activation_function must be one of {sorted(ACTIVATIONS)}; got "
                f"{config.activation_function!r}"
            )
        width = config.n_embd
        self.config = config
        self.words = Embedding(config.vocab_size, width, rng=rng)
        self.positions = Embedding(config.n_positions, width, rng=rng)
        self.dropout = Dropout(config.resid_pdrop)
        self.layers = [
            TransformerEncoderLayer(
                width,
                config.n_head,
                config.n_inner or 4 * width,
                activation=ACTIVATIONS[config.activation_function],
                norm_first=True,
                dropout=config.resid_pdrop,
                eps=config.layer_norm_epsilon,
                rng=rng,
            )
            for _ in range(config.n_layer)
        ]
        self.norm = LayerNorm(width, eps=config.layer_norm_epsilon)

    def __call__(
        self,
        input_ids: Value,
        *,
        lengths: Value | None = None,
        cache: KeyValueCache | None = None,
        rng: np.random.Generator | None = None,
    ) -> Any:
        """Return the logits ``(B, T, vocab_size)`` of what follows each of ``input_ids (B, T)``.

        Parameters
        ----------
        input_ids:
            Integers. With a cache, the tokens behind those that it holds.
        lengths:
            ``(B,)``: how many tokens of each entry are real, padding being at the end. The logits
            are those behind the last real token only, ``(B, vocab_size)``.
        cache:
            Of the tokens before, from :meth:`empty_cache` or a call. The cache with the new tokens
            in it is returned behind the logits; its arrays are the same, written in place.
        rng:
            Switches dropout on, for training.
        """
        if rank_of("GPT2", input_ids) != 2:
            raise ValueError(f"GPT2: input_ids must be (B, T); got shape {input_ids.shape}")
        places: Any = arange_like(input_ids, 1)
        if cache is not None:
            places = expand_dims(cache.lengths, 1) + places
        self._require_positions(input_ids, cache)
        x = self.dropout(self.words(input_ids) + self.positions(places), rng)
        renewed = []
        for i, layer in enumerate(self.layers):
            if cache is None:
                x = layer(x, is_causal=True, rng=rng)
            else:
                start = cache.lengths
                x, one = layer(x, cache=cache.layers[i], query_start=start, rng=rng)
                renewed.append(one)
        if lengths is not None:
            x = _last_rows(x, lengths)
        logits = linear(self.norm(x), self.words.weight)
        if cache is None:
            return logits
        added = size(input_ids, 1) if lengths is None else lengths
        return logits, KeyValueCache(tuple(renewed), cache.lengths + added)

    def _require_positions(self, input_ids: Value, cache: KeyValueCache | None) -> None:
        length, limit = input_ids.shape[1], self.config.n_positions
        if cache is None and not isinstance(length, Dim) and length > limit:
            raise ValueError(f"GPT2: input_ids has {length} positions; the model has {limit}")

    def empty_cache(self, input_ids: Value, room: int = 0) -> KeyValueCache:
        """Return a cache without tokens, with room for ``input_ids (B, T)`` and ``room`` more."""
        config = self.config
        return KeyValueCache.empty(
            input_ids,
            layers=config.n_layer,
            kv_heads=config.n_head,
            head_size=config.n_embd // config.n_head,
            room=room,
        )

    @property
    def max_positions(self) -> int:
        """Most tokens of a text."""
        return self.config.n_positions

    @property
    def end_token(self) -> int | None:
        """The token that ends a text, None where the vocabulary does not have it."""
        end = self.config.eos_token_id
        return end if end is not None and 0 <= end < self.config.vocab_size else None

    def example_inputs(self) -> dict[str, Input]:
        """Return inputs for :func:`pyattn.export` of the logits of all tokens."""
        ids = np.arange(10).reshape(2, 5) % self.config.vocab_size
        return {"input_ids": Input(ids, ("batch", "time"))}

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, strict: bool = True) -> Self:
        """Load a Hugging Face checkpoint: a folder with ``config.json`` and safetensors weights.

        Float16 and bfloat16 weights become float32. With ``strict``, names in the file that the
        model does not have are an error; otherwise a warning.

        Raises
        ------
        FileNotFoundError
            When a file is missing.
        ValueError
            When the configuration is not GPT-2's, a file is damaged, or names are missing or
            unexpected; the message lists them.
        """
        config = GPT2Config.from_file(Path(folder) / "config.json")
        model = cls(config, rng=None)
        found = _plain(load_weights(folder), folder)
        names = {name: _checkpoint_name(name) for name in model.parameters()}
        return fill(model, names, found, folder, strict=strict)


def _last_rows(x: Value, lengths: Value) -> Any:
    """Return row ``lengths[b] - 1`` of each entry of ``x (B, T, size)``."""
    flat = reshape(x, (-1, x.shape[-1]))  # type: ignore[arg-type]
    return take(flat, arange_like(x, 0) * size(x, 1) + lengths - 1)


def _plain(weights: dict[str, Array], folder: str | os.PathLike[str]) -> dict[str, Array]:
    """Return the arrays one for each parameter: matrices (out, in), query, key and value apart."""
    plain = {}
    for full, array in weights.items():
        name = full.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue  # constants of old files
        if name == "lm_head.weight":
            words = weights.get("transformer.wte.weight", weights.get("wte.weight"))
            if words is not None and not np.array_equal(array, words):
                raise ValueError(f"{folder}: lm_head.weight differs from wte.weight")
            continue
        if ".c_" in name and array.ndim == 2:
            array = array.T
        if ".attn.c_attn." not in name:
            plain[name] = array
        elif array.shape[0] % 3 == 0:
            for part, rows in zip("qkv", np.split(array, 3), strict=True):
                plain[name.replace("c_attn", part)] = rows
        else:
            raise ValueError(f"{folder}: {full} has {array.shape[0]} columns, no multiple of 3")
    return plain


_CHECKPOINT_NAMES = {
    "attention.query": "attn.q",
    "attention.key": "attn.k",
    "attention.value": "attn.v",
    "attention.output": "attn.c_proj",
    "attention_norm": "ln_1",
    "hidden": "mlp.c_fc",
    "output": "mlp.c_proj",
    "output_norm": "ln_2",
    "words": "wte",
    "positions": "wpe",
    "norm": "ln_f",
}


def _checkpoint_name(name: str) -> str:
    owner, _, kind = name.rpartition(".")
    if not owner.startswith("layers."):
        return f"{_CHECKPOINT_NAMES[owner]}.{kind}"
    _, number, part = owner.split(".", 2)
    return f"h.{number}.{_CHECKPOINT_NAMES[part]}.{kind}"
