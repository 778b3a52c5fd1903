"""Gradients of scaled dot-product attention by its backward kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyattn import _core
from pyattn.attention._sdpa_options import core_options
from pyattn.dtypes import is_floating
from pyattn.tensor import Array, Node

# The inputs that have a gradient, and where they stand among the eight.
PLACES = {"query": 0, "key": 1, "value": 2, "mask": 3, "sinks": 7}


def vjp(
    node: Node,
    cotangents: Sequence[Array],
    inputs: Sequence[Array | None],
    outputs: Sequence[Array],
) -> Any:
    """Return the gradients of the operation's inputs, by the contract of `Op.vjp`.

    With p the weights, m what dropout multiplies them by, and g and l the cotangents of the output
    and of the log-sum-exp::

        delta_i = sum_e g_ie out_ie - l_i      ds_ij = p_ij (m_ij g_i . v_j - delta_i)
        dv_j = sum_i p_ij m_ij g_i             dsink = -sum_i exp(sink - lse_i) delta_i
        dq_i = scale sum_j ds_ij c_ij k_j      dk_j = scale sum_i ds_ij c_ij q_i

    where c = 1 - (s / softcap)^2; a float mask gets ds, summed over the axes along which it was
    broadcast. The weights are computed again from ``lse``, so that memory grows with T + S. A
    masked pair has gradient 0. Slopes are constants. NotImplemented, for the gradient of the
    expansion, where another output has a cotangent (Dao et al. 2022, arXiv:2205.14135).
    """
    results = forward_results(node, cotangents, outputs)
    if results is None:
        return NotImplemented
    query, key, value, mask, kv_lengths, starts, slopes, sinks = inputs
    if query is None or key is None or value is None:
        raise ValueError("sdpa: query, key and value are required")
    want = {name for name, place in PLACES.items() if needs_gradient(node, place)}
    options = core_options(query, key, kv_lengths, starts, slopes, sinks, node.params)
    by_kernel = _core.sdpa_backward(
        query, key, value, mask, node.params["scale"], node.params["right"], options or None,
        *results, want,
    )  # fmt: skip
    grad_sinks = None
    if sinks is not None and "sinks" in want:
        grad_sinks = sink_gradient(sinks, *results)
    return (*by_kernel, None, None, None, grad_sinks)


def forward_results(
    node: Node, cotangents: Sequence[Array], outputs: Sequence[Array]
) -> tuple[Array, Array, Array, Array] | None:
    """Return output and log-sum-exp and their cotangents; None where another output has one."""
    names = ("output", *node.params["aux"])
    given = dict(zip(names, cotangents, strict=True))
    found = dict(zip(names, outputs, strict=True))
    others = set(names) - {"output", "lse"}
    if "lse" not in found or any(is_floating(given[n].dtype) and given[n].any() for n in others):
        return None
    return found["output"], found["lse"], given["output"], given["lse"]


def sink_gradient(sinks: Array, out: Array, lse: Array, grad_out: Array, grad_lse: Array) -> Array:
    """Return the gradient ``(H,)`` of the sinks; ``lse`` and the others have axes (B, H, T)."""
    wide = lse.dtype
    delta = np.einsum(
        "bhte,bhte->bht", grad_out.astype(wide, copy=False), out.astype(wide, copy=False)
    )
    delta -= grad_lse
    share = np.exp(sinks[:, None] - np.where(lse > -np.inf, lse, np.inf))
    gradient: Array = -(share * delta).sum((0, 2))
    return gradient


def needs_gradient(node: Node, place: int) -> bool:
    """Whether the gradient of this input of the node is asked for."""
    tensor = node.inputs[place]
    return tensor is not None and tensor.requires_grad
