"""The compiled core.

Every array is a ``numpy.ndarray`` of float32 or float64, of any strides, and is neither cast nor
copied. A wrong dtype is a ``TypeError``, a wrong shape a ``ValueError``. Results are new arrays in
C order. The interpreter lock is released while a kernel runs. Results do not depend on the number
of threads nor on the other entries of the batch.
"""

from typing import TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

_Float = TypeVar("_Float", np.float32, np.float64)

class _BuildInfo(TypedDict):
    version: str
    compiler: str
    build_type: str
    platform: str
    pybind11: str
    isas: list[str]
    isa_flags: dict[str, str]

def sdpa(
    query: NDArray[_Float],
    key: NDArray[_Float],
    value: NDArray[_Float],
    mask: NDArray[np.bool_] | NDArray[_Float] | None,
    kv_lengths: NDArray[np.int32] | NDArray[np.int64] | None,
    is_causal: bool,
    scale: float,
    want_weights: bool,
    want_lse: bool,
) -> tuple[NDArray[_Float], NDArray[_Float] | None, NDArray[_Float] | None]:
    """Return (out, weights, lse) of ``softmax(scale * query key^T + mask) value``.

    query (B, H, T, D), key (B, G, S, D), value (B, G, S, E) with H a multiple of G; query head h
    reads key/value head h // (H / G). mask broadcasts to (B, H, T, S): bool (True = attend) or the
    dtype of query (added; -inf = masked). kv_lengths (B,) counts the valid keys. is_causal allows
    key j for query i when j <= i. out (B, H, T, E), weights (B, H, T, S), lse (B, H, T).

    A masked key or value is never read. A row without an allowed key has out 0, weights 0 and
    lse -inf.
    """

def additive(
    query: NDArray[_Float],
    key: NDArray[_Float],
    value: NDArray[_Float],
    v: NDArray[_Float],
    mask: NDArray[np.bool_] | NDArray[_Float] | None,
    kv_lengths: NDArray[np.int32] | NDArray[np.int64] | None,
    is_causal: bool,
    want_weights: bool,
    want_lse: bool,
) -> tuple[NDArray[_Float], NDArray[_Float] | None, NDArray[_Float] | None]:
    """Return (out, weights, lse) of ``softmax(sum_a v_a tanh(query + key) + mask) value``.

    query (B, T, A), key (B, S, A), value (B, S, E), v (A,); mask broadcasts to (B, T, S); the rest
    is as for `sdpa`. Memory is O(T + S): no (T, S, A) tensor is made.
    """

def erf(x: NDArray[_Float]) -> NDArray[_Float]:
    """Return the error function of every element."""

def gelu(x: NDArray[_Float]) -> NDArray[_Float]:
    """Return ``x (1 + erf(x / sqrt 2)) / 2`` of every element."""

def softmax(x: NDArray[_Float]) -> NDArray[_Float]:
    """Return the softmax over the last axis; a row of -inf gives NaN."""

def layer_norm(
    x: NDArray[_Float],
    weight: NDArray[_Float] | None,
    bias: NDArray[_Float] | None,
    eps: float,
) -> NDArray[_Float]:
    """Return ``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis."""

def isa() -> str:
    """Return the name of the instruction set whose kernels run."""

def set_isa(name: str) -> None:
    """Use the kernels of one of `available_isas`; ValueError names them."""

def available_isas() -> list[str]:
    """Return the instruction sets that this build and this processor have, best first."""

def threads() -> int:
    """Return the largest number of threads that a call uses."""

def set_threads(n: int) -> None:
    """Set `threads`, from 1 to 1024."""

def build_info() -> _BuildInfo:
    """Return version, compiler, flags and instruction sets of this build."""
