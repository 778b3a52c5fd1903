"""Recurrent layers: gated recurrent units (GRU) and long short-term memory (LSTM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyattn import _core
from pyattn.ops import _gru, _lstm
from pyattn.ops.shape import expand_dims
from pyattn.tensor import Tensor, Value, apply, rank_of


def gru(
    x: Value,
    weight_input: Value,
    weight_hidden: Value,
    bias_input: Value | None = None,
    bias_hidden: Value | None = None,
    h0: Value | None = None,
    lengths: Value | None = None,
    *,
    reverse: bool = False,
    reset_after: bool = True,
) -> tuple[Any, Any]:
    """One layer of gated recurrent units over a sequence, in one direction.

    With the rows of ``weight_input`` W, of ``weight_hidden`` U and of the sum b of the biases in
    the order r, z, n::

        r_t = sigmoid(W_r x_t + U_r h + b_r)              reset gate; h is the state before
        z_t = sigmoid(W_z x_t + U_z h + b_z)              update gate
        n_t = tanh(W_n x_t + b_in + r_t * (U_n h + b_hn))     with reset_after
        n_t = tanh(W_n x_t + b_in + U_n (r_t * h) + b_hn)     without
        h_t = (1 - z_t) * n_t + z_t * h

    Parameters
    ----------
    x:
        ``(B, T, I)``; float32, float64, float16 or bfloat16. Half precision is computed in float32
        and rounded once.
    weight_input:
        ``(3H, I)``: PyTorch's ``weight_ih``, its layout and the order of its gates.
    weight_hidden:
        ``(3H, H)``: PyTorch's ``weight_hh``.
    bias_input, bias_hidden:
        ``(3H,)``: PyTorch's ``bias_ih`` and ``bias_hh``.
    h0:
        ``(B, H)``, the first state; zeros unless given.
    lengths:
        ``(B,)``, int32 or int64: how many steps each sequence has, T unless given. What is in ``x``
        at and behind that step has no effect, and ``output`` is 0 there.
    reverse:
        Whether to go from the last step of each sequence to its first.
    reset_after:
        Whether r multiplies behind the product with U, as in PyTorch, cuDNN and ONNX's
        ``linear_before_reset = 1``, or before it, as in the papers.

    Returns
    -------
    output:
        ``(B, T, H)``: the state after each step, at the place of its step.
    h_n:
        ``(B, H)``: the state after the last step that is taken; ``h0`` for a length of 0.

    Raises
    ------
    TypeError
        For a dtype other than these, or dtypes that differ.
    ValueError
        For shapes that do not fit each other, and for a length outside 0..T.

    Notes
    -----
    Memory is linear in T: for a gradient the gates of all steps are kept, ``(B, T, 4H)``. In ONNX
    this is the operator ``GRU`` in float32; in float64, for which ONNX Runtime has none, a ``Scan``
    over the operators of a step.

    References
    ----------
    Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
    Machine Translation", arXiv:1406.1078. Bahdanau et al. 2014, arXiv:1409.0473, appendix A.1.1,
    where z and 1 - z have changed places.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> x, w, u = np.ones((1, 3, 1)), np.zeros((3, 1)), np.zeros((3, 1))
    >>> w[2] = 100  # n is 1; z is 1/2, so each step goes half of the way
    >>> output, h_n = pa.ops.gru(x, w, u)
    >>> output.ravel().tolist(), h_n.tolist()
    ([0.5, 0.75, 0.875], [[0.875]])
    """
    given = (x, weight_input, weight_hidden, bias_input, bias_hidden, h0, lengths)
    results = apply(
        _gru.OP, *given, reverse=bool(reverse), reset_after=bool(reset_after), keep=_tracked(given)
    )
    return results[0], results[1]


def lstm(
    x: Value,
    weight_input: Value,
    weight_hidden: Value,
    bias_input: Value | None = None,
    bias_hidden: Value | None = None,
    h0: Value | None = None,
    c0: Value | None = None,
    lengths: Value | None = None,
    *,
    reverse: bool = False,
) -> tuple[Any, Any, Any]:
    """One layer of long short-term memory over a sequence, in one direction.

    With the rows of ``weight_input`` W, of ``weight_hidden`` U and of the sum b of the biases in
    the order i, f, g, o::

        i_t = sigmoid(W_i x_t + U_i h + b_i)       input gate; h and c are the state before
        f_t = sigmoid(W_f x_t + U_f h + b_f)       forget gate
        g_t = tanh(W_g x_t + U_g h + b_g)
        o_t = sigmoid(W_o x_t + U_o h + b_o)       output gate
        c_t = f_t * c + i_t * g_t
        h_t = o_t * tanh(c_t)

    Parameters
    ----------
    x:
        ``(B, T, I)``; float32, float64, float16 or bfloat16. Half precision is computed in float32
        and rounded once.
    weight_input:
        ``(4H, I)``: PyTorch's ``weight_ih``, its layout and the order of its gates.
    weight_hidden:
        ``(4H, H)``: PyTorch's ``weight_hh``.
    bias_input, bias_hidden:
        ``(4H,)``: PyTorch's ``bias_ih`` and ``bias_hh``.
    h0, c0:
        ``(B, H)``, the first state; zeros unless given.
    lengths:
        ``(B,)``, int32 or int64: how many steps each sequence has, T unless given. What is in ``x``
        at and behind that step has no effect, and ``output`` is 0 there.
    reverse:
        Whether to go from the last step of each sequence to its first.

    Returns
    -------
    output:
        ``(B, T, H)``: h after each step, at the place of its step.
    h_n, c_n:
        ``(B, H)``: the state after the last step that is taken; ``h0`` and ``c0`` for a length of
        0.

    Raises
    ------
    TypeError
        For a dtype other than these, or dtypes that differ.
    ValueError
        For shapes that do not fit each other, and for a length outside 0..T.

    Notes
    -----
    There are no peepholes. Memory is linear in T: for a gradient the gates and c of all steps are
    kept, ``(B, T, 5H)``. In ONNX this is the operator ``LSTM`` in float32; in float64, for which
    ONNX Runtime has none, a ``Scan`` over the operators of a step.

    References
    ----------
    Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", Neural Computation 9(8); the forget
    gate is of Gers, Schmidhuber and Cummins 2000, "Learning to Forget", Neural Computation 12(10).
    As here in Greff et al. 2015, arXiv:1503.04069, without peepholes.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> x, w, u = np.ones((1, 3, 1)), np.zeros((4, 1)), np.zeros((4, 1))
    >>> w[:3] = 100  # everything comes in and nothing is forgotten: c counts the steps
    >>> output, h_n, c_n = pa.ops.lstm(x, w, u)
    >>> c_n.tolist(), output.ravel().round(2).tolist()
    ([[3.0]], [0.38, 0.48, 0.5])
    """
    given = (x, weight_input, weight_hidden, bias_input, bias_hidden, h0, c0, lengths)
    results = apply(_lstm.OP, *given, reverse=bool(reverse), keep=_tracked(given))
    return results[0], results[1], results[2]


def gru_cell(
    x: Value,
    h: Value,
    weight_input: Value,
    weight_hidden: Value,
    bias_input: Value | None = None,
    bias_hidden: Value | None = None,
    *,
    reset_after: bool = True,
) -> Any:
    """Return the state ``(B, H)`` after one step of :func:`gru` from ``h (B, H)``.

    ``x`` is ``(B, I)``; the other arguments are those of :func:`gru`.
    """
    weights = weight_input, weight_hidden, bias_input, bias_hidden
    found = _common(_core.gru, x, *weights, h, None, False, bool(reset_after))
    if found is not None:
        return found[1]
    step = _step("gru_cell", x)
    return gru(step, *weights, h, reset_after=reset_after)[1]


def lstm_cell(
    x: Value,
    h: Value,
    c: Value,
    weight_input: Value,
    weight_hidden: Value,
    bias_input: Value | None = None,
    bias_hidden: Value | None = None,
) -> tuple[Any, Any]:
    """Return the state h and c, each ``(B, H)``, after one step of :func:`lstm` from that state.

    ``x`` is ``(B, I)``; the other arguments are those of :func:`lstm`.
    """
    weights = weight_input, weight_hidden, bias_input, bias_hidden
    found = _common(_core.lstm, x, *weights, h, c, None, False)
    if found is not None:
        return found[1], found[2]
    step = _step("lstm_cell", x)
    return lstm(step, *weights, h, c)[1:]


def _common(kernel: Callable[..., Any], x: Any, *given: Any) -> Any:
    """Return what the kernel makes of one step on dense arrays; None where something does not fit.

    The checks of an operation take longer than such a step; where it fails, they say why.
    """
    if type(x) is not np.ndarray:
        return None
    try:
        return kernel(x[:, None], *given, False)
    except (TypeError, ValueError, IndexError):
        return None


def _step(name: str, x: Value) -> Any:
    """Return ``x (B, I)`` as a sequence of one step."""
    if rank_of(name, x) != 2:
        raise ValueError(f"{name}: x must be (B, I); got shape {tuple(x.shape)}")
    return expand_dims(x, 1)


def _tracked(given: tuple[Value | None, ...]) -> bool:
    """Whether the gates are kept for a gradient. It computes them anew for half precision."""
    return any(
        isinstance(value, Tensor) and value.requires_grad and value.dtype.itemsize > 2
        for value in given
    )
