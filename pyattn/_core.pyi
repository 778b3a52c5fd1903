"""The compiled core.

Every array is a ``numpy.ndarray`` of float32 or float64, of any strides, and is neither cast nor
copied. A wrong dtype is a ``TypeError``, a wrong shape a ``ValueError``. Results are new arrays in
C order. The interpreter lock is released while a kernel runs. Results do not depend on the number
of threads nor on the other entries of the batch.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]
_Float = TypeVar("_Float", np.float32, np.float64)

class _BuildInfo(TypedDict):
    version: str
    compiler: str
    build_type: str
    platform: str
    pybind11: str
    isas: list[str]
    isa_flags: dict[str, str]

class _Options(TypedDict, total=False):
    """What differs from the defaults of the attention functions."""

    kv_lengths: _Array  # (B,): only the first keys are valid
    query_starts: _Array  # (B,): position p of the first query; 0
    left: int  # keys p - left and later only
    softcap: float
    alibi_slopes: _Array  # (H,): -slope |p - j|
    sinks: _Array  # (H,)
    dropout: float
    seed: int
    top_k: int
    rows: _Array  # sdpa_weights: the queries chosen
    lse: _Array  # sdpa_weights (of the rows), column_mass: the log-sum-exp
    out: _Array  # sdpa: receives the output
    rotary: tuple[_Array, _Array, bool, bool]
    """sdpa: cosines and sines (positions, R) in the dtype of the arithmetic, whether pairs are
    interleaved (R counts each twice, the first sine negative), whether keys are turned too."""

def sdpa(
    query: _Array,
    key: _Array,
    value: _Array,
    mask: _Array | None,
    scale: float | None,
    right: int,
    aux: Sequence[str] | None,
    options: Mapping[str, Any] | None,
) -> Any:
    """Return ``softmax(scale * query key^T + mask) value``, or a tuple of it and what aux names.

    query (B, H, T, D), key (B, G, S, D), value (B, G, S, E) of float32, float64, float16 or
    bfloat16, with H a multiple of G; query head h reads key/value head h // (H / G). mask
    broadcasts to (B, H, T, S): bool (True = attend) or the dtype of query (added; -inf = masked);
    keys behind a shorter last axis are masked. A query at position p sees keys up to p + right; -1
    is unbounded; without a scale it is 1 / sqrt(D). `options` may have the keys of `_Options`.
    out (B, H, T, E); aux may name "weights", "lse", "max", "entropy", "top_weights",
    "top_indices", "scores", "capped_scores", "biased_scores".

    A masked key or value is never used. A row without an allowed key has out 0, weights 0 and
    lse -inf, or its sink.
    """

def sdpa_weights(
    query: _Array,
    key: _Array,
    mask: _Array | None,
    scale: float,
    right: int,
    options: Mapping[str, Any],
) -> _Array:
    """Return ``exp(scale * query key^T + mask - lse)`` (B, H, R, S) for the R rows of options."""

def column_mass(
    query: _Array,
    key: _Array,
    mask: _Array | None,
    scale: float,
    right: int,
    options: Mapping[str, Any],
) -> _Array:
    """Return the sum over the queries of these weights, for all queries: (B, H, S)."""

def sdpa_backward(
    query: _Array,
    key: _Array,
    value: _Array,
    mask: _Array | None,
    scale: float,
    right: int,
    options: Mapping[str, Any] | None,
    out: _Array,
    lse: _Array,
    grad_out: _Array,
    grad_lse: _Array | None,
    want: Collection[str],
) -> tuple[_Array | None, _Array | None, _Array | None, _Array | None]:
    """Return the gradients of `sdpa` of "query", "key", "value", "mask"; None if not in want."""

def varlen(
    query: _Array,
    key: _Array,
    value: _Array,
    query_offsets: _Array,
    key_offsets: _Array,
    scale: float,
    right: int,
    want_lse: bool,
    options: Mapping[str, Any] | None,
) -> tuple[_Array, _Array | None]:
    """Return (out, lse) of packed sequences, each of which sees its own keys.

    query (N, H, D), key (M, G, D), value (M, G, E); sequence b is the rows from offset b to offset
    b + 1. out (N, H, E), lse (H, N).
    """

def varlen_backward(
    query: _Array,
    key: _Array,
    value: _Array,
    query_offsets: _Array,
    key_offsets: _Array,
    scale: float,
    right: int,
    options: Mapping[str, Any] | None,
    out: _Array,
    lse: _Array,
    grad_out: _Array,
    grad_lse: _Array,
) -> tuple[_Array, _Array, _Array]:
    """Return the gradients of `varlen` of query, key and value."""

def paged(
    query: _Array,
    key_pages: _Array,
    value_pages: _Array,
    block_table: _Array,
    scale: float,
    right: int,
    options: Mapping[str, Any],
) -> _Array:
    """Return `sdpa` with key j of entry b in row j % page of page block_table[b, j // page].

    query (B, H, T, D), key_pages (N, G, page, D), value_pages (N, G, page, E), block_table
    (B, pages) int32; options has kv_lengths.
    """

def additive(
    query: _Array,
    key: _Array,
    value: _Array,
    v: _Array,
    mask: _Array | None,
    right: int,
    aux: Sequence[str] | None,
    options: Mapping[str, Any] | None,
) -> Any:
    """Return ``softmax(sum_a v_a tanh(query + key) + mask) value``, or a tuple with what aux names.

    query (B, H, T, A), key (B, H, S, A), value (B, H, S, E); v (H, A) in the dtype of the
    arithmetic. The rest is as for `sdpa`. Memory is O(T + S): no (T, S, A) tensor is made.
    """

def positions(
    state: _Array,
    position_weight: _Array,
    position_v: _Array,
    keys: int,
    kv_lengths: _Array | None,
) -> _Array:
    """Return ``keys sigmoid(position_v . tanh(position_weight state))``, ``(B, T)``.

    state (B, T, H) and position_weight (P, H) with unit stride along H, position_v (P,). keys are
    those of kv_lengths where it is given.
    """

def local(
    query: _Array,
    key: _Array,
    value: _Array,
    centre: _Array | tuple[_Array, _Array, _Array],
    half_width: int,
    renormalize: bool,
    v: _Array | None,
    mask: _Array | None,
    kv_lengths: _Array | None,
    aux: Sequence[str] | None,
) -> Any:
    """Attend to the keys s with ``|s - centre| <= half_width``; see csrc/cpu/local.inl.

    query (B, T, D), key (B, S, D), value (B, S, E); centre (B, T) and v (D,), with which the scores
    are v . tanh(query + key), in the dtype of the arithmetic. centre may be the state, the
    position_weight and the position_v from which `positions` predicts it. mask broadcasts to
    (B, T, S). aux names any of "weights" (B, T, S), "lse" (B, T), "window_weights"
    (B, T, 2 half_width + 1).
    """

def local_backward(
    query: _Array,
    key: _Array,
    value: _Array,
    centre: _Array,
    half_width: int,
    renormalize: bool,
    v: _Array | None,
    mask: _Array | None,
    kv_lengths: _Array | None,
    grad_out: _Array,
    grad_lse: _Array | None,
    grad_weights: _Array | None,
    grad_window_weights: _Array | None,
    want: Collection[str],
) -> Any:
    """Return the gradients of query, key, value, centre and v; None for those not in `want`."""

def additive_backward(
    query: _Array,
    key: _Array,
    value: _Array,
    v: _Array,
    mask: _Array | None,
    right: int,
    options: Mapping[str, Any] | None,
    out: _Array,
    lse: _Array,
    grad_out: _Array,
    grad_lse: _Array | None,
    want: Collection[str],
) -> Any:
    """Return the gradients of query, key, value, mask and v; None for those not in `want`."""

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

def rms_norm(
    x: NDArray[_Float], scale: NDArray[_Float], axis: int, epsilon: float
) -> NDArray[_Float]:
    """Return ``x / sqrt(mean(x^2) + epsilon) * scale`` over the axes of x from `axis` on.

    scale broadcasts to the shape of these axes.
    """

def rms_norm_gradient(
    x: NDArray[_Float],
    scale: NDArray[_Float],
    gradient: NDArray[_Float],
    axis: int,
    epsilon: float,
    want_scale: bool,
) -> tuple[NDArray[_Float], NDArray[_Float] | None]:
    """Return the gradients of `rms_norm` with respect to x and scale, given that of its result.

    That of scale is summed over the rows only: it has the shape of the normalised axes.
    """

def product(
    left: NDArray[_Float],
    right: NDArray[_Float],
    bias: NDArray[_Float] | None = None,
    add_to: NDArray[_Float] | None = None,
) -> NDArray[_Float]:
    """Return ``left @ right + bias``; with `add_to`, add it to that dense matrix and return it.

    Each matrix has unit stride along one of its axes; bias (columns,) is dense.
    """

def gru(
    x: NDArray[_Float],
    weight_input: NDArray[_Float],
    weight: NDArray[_Float],
    bias_input: NDArray[_Float] | None,
    bias_hidden: NDArray[_Float] | None,
    h0: NDArray[_Float],
    lengths: NDArray[np.int64] | None,
    reverse: bool,
    reset_after: bool,
    keep: bool,
) -> tuple[NDArray[_Float], NDArray[_Float], NDArray[_Float] | None, NDArray[_Float] | None]:
    """Return the states after all steps, the last ones, gates and what r is multiplied with.

    x is (B, T, I), weight_input (3H, I), weight (3H, H), each bias (3H,), h0 (B, H), all dense and
    in the order r, z, n. With `keep` the gates are for `gru_gradient`, in an order of the kernel's;
    without, the last two may be None.
    """

def lstm(
    x: NDArray[_Float],
    weight_input: NDArray[_Float],
    weight: NDArray[_Float],
    bias_input: NDArray[_Float] | None,
    bias_hidden: NDArray[_Float] | None,
    h0: NDArray[_Float],
    c0: NDArray[_Float],
    lengths: NDArray[np.int64] | None,
    reverse: bool,
    keep: bool,
) -> tuple[
    NDArray[_Float],
    NDArray[_Float],
    NDArray[_Float],
    NDArray[_Float] | None,
    NDArray[_Float] | None,
]:
    """Return the states after all steps, the last h and c, and with `keep` all gates and c.

    x is (B, T, I), weight_input (4H, I), weight (4H, H), each bias (4H,), h0 and c0 (B, H), all
    dense and in the order i, f, g, o. The gates are for `lstm_gradient`, in an order of the
    kernel's.
    """

def gru_gradient(
    gates: NDArray[_Float],
    weight: NDArray[_Float],
    h0: NDArray[_Float],
    lengths: NDArray[np.int64] | None,
    reverse: bool,
    reset_after: bool,
    output: NDArray[_Float],
    inner: NDArray[_Float],
    grad_output: NDArray[_Float],
    grad_state: NDArray[_Float],
) -> tuple[NDArray[_Float], NDArray[_Float]]:
    """Return the gradients of the sums inside the gates (B, T, 4H), and that of h0.

    They are those of r, z, U h + b (with reset_after; else nothing is written there) and n. Steps
    that are not taken are not written. gates, output and inner come from `gru` with `keep`.
    """

def lstm_gradient(
    gates: NDArray[_Float],
    weight: NDArray[_Float],
    h0: NDArray[_Float],
    c0: NDArray[_Float],
    lengths: NDArray[np.int64] | None,
    reverse: bool,
    cells: NDArray[_Float],
    grad_output: NDArray[_Float],
    grad_state: NDArray[_Float],
    grad_cell: NDArray[_Float],
) -> tuple[NDArray[_Float], NDArray[_Float], NDArray[_Float]]:
    """Return the gradients of the sums inside the gates (B, T, 4H), and those of h0 and c0.

    Steps that are not taken are not written. gates and cells come from `lstm` with `keep`.
    """

def rotary_embedding(
    x: NDArray[_Float],
    cos_cache: NDArray[_Float],
    sin_cache: NDArray[_Float],
    position_ids: NDArray[np.int32] | NDArray[np.int64] | None,
    num_heads: int,
    interleaved: bool,
    inverse: bool,
) -> NDArray[_Float]:
    """Turn pairs (u, v) of x into (u cos - v sin, u sin + v cos); by the negative angle if inverse.

    x (B, H, T, D), or (B, T, H * D) with num_heads. The caches are (positions, pairs) beside
    position_ids (B, T), which must lie within them, and (B, T, pairs) without; 2 pairs <= D. Pair k
    is the numbers k and pairs + k, or 2k and 2k + 1 if interleaved; the rest is copied.
    """

class DlpackArray:
    """A NumPy array to be read through DLPack."""

    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a capsule that views the array.

        It holds a copy where ``copy`` is True, or where ``copy`` is None and the consumer could not
        be told that the array is read-only; BufferError for ``copy=False`` then, and for a device
        other than the CPU.
        """

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's name of the CPU."""

def from_dlpack(source: Any) -> NDArray[Any]:
    """Return a view of the memory of a CPU array that has ``__dlpack__``; the view owns it.

    ValueError for another device or an impossible layout, TypeError for a dtype that NumPy or
    ml_dtypes does not have. The view of an exporter without DLPack 1 is read-only.
    """

def to_dlpack(array: NDArray[Any]) -> DlpackArray:
    """Return an object that offers the array, of bfloat16 too, to any ``from_dlpack``."""

def same_kind(original: Any, array: NDArray[Any]) -> Any:
    """Return the array, not copied, as one of the type of ``original``.

    None where that type does not offer DLPack's exchange functions: then its library's
    ``from_dlpack`` has to.
    """

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
