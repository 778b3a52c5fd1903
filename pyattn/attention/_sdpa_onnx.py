"""Scaled dot-product attention as the standard operator Attention of ONNX.

ONNX Runtime 1.32 has kernels for versions 23 and 24 of the operator and writes out later ones. They
reject a scale of 0 or less, want the last two axes of a mask in full, have no bfloat16, and return
0 for a row of a float mask that is everywhere the lowest finite number, where a bias is a bias.
Before 1.28 a row without keys is NaN or the mean of the values there, so such rows are set to 0
behind the operator.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn.attention import _checks as checks
from pyattn.attention import _sdpa_graph as parts
from pyattn.ops import maximum, where
from pyattn.tensor import Node

WITH_KERNEL = (23, 24)


def write(graph: Any, node: Node, *names: str) -> Any:
    """Write the operator where it means the same, else return None.

    In the body of a function that is so for plain calls, for which ONNX Runtime has a fast kernel;
    where the target asks for the operator, for all that it can say by a mask.
    """
    if graph.target == "functions" and graph.opset in WITH_KERNEL and _is_plain(node):
        return _attention(graph, node, *names)
    if graph.target != "onnx24":
        return None
    unsayable = _unsayable(node)
    if unsayable:
        graph.remark(f"{node.op.name} is written out: {unsayable}")
        return None
    if graph.opset not in WITH_KERNEL:
        graph.remark(
            f"ONNX Runtime 1.32 has no kernel for Attention of opset {graph.opset}, and writes it "
            "out in some 70 nodes; it has one for opset 24"
        )
    return _attention(graph, node, *names)


def _is_plain(node: Node) -> bool:
    params: Any = node.params
    mask, scale = node.inputs[3], params["scale"]
    return (
        node.required(0).dtype == np.float32
        and (mask is None or mask.dtype == np.bool_)
        and all(x is None for x in node.inputs[5:])
        and not params["softcap"]
        and not params["start"]
        and not params["bottom_right"]
        and params["left"] == parts.UNBOUNDED
        and params["right"] in (parts.UNBOUNDED, 0)
        and params["dropout_p"] == 0
        and set(params["aux"]) <= {"weights"}
        and getattr(scale, "value", scale) > 0
    )


def _unsayable(node: Node) -> str:
    """Return what the operator, or ONNX Runtime's kernel for it, cannot say of a call."""
    dtype = node.required(0).dtype
    more = [name for name in node.params["aux"] if name != "weights"]
    if dtype != np.float32:
        return f"it is {dtype}, which ONNX Runtime computes less exactly or not at all"
    if node.inputs[7] is not None:
        return "the operator has no sinks"
    if more:
        return f"the operator does not return {', '.join(more)}"
    if node.required(1).shape[2] == 0:
        return "ONNX Runtime takes no attention without keys"
    return ""


def _attention(
    graph: Any, node: Node, query: str, key: str, value: str, mask: str, *more: str
) -> Any:
    for tensor, name in zip(node.inputs, (query, key, value, mask, *more), strict=True):
        graph.bind(tensor, name)
    scale: Any = node.params["scale"]
    if getattr(scale, "value", scale) <= 0:  # no attribute of a function: see _is_plain
        query = graph.node("Mul", query, graph.constant(np.array(scale, np.float32)))
        scale = 1.0
    masked, seen, is_causal = _mask(node)
    inputs = [query, key, value]
    if masked is not None:
        (mask,) = graph.add([masked])
        inputs.append(_full_axes(graph, mask, query, key))
    attributes = {"is_causal": int(is_causal), "scale": scale}
    if node.params["softcap"]:
        attributes["softcap"] = node.params["softcap"]
    if node.params["aux"]:
        # Output 3 is the weights when the mode is 3; 1 and 2 would be a cache.
        names = graph.node(
            "Attention", *inputs, outputs=4, unused=(1, 2), qk_matmul_output_mode=3, **attributes
        )
        found = [names[0], names[3]]
    else:
        found = [graph.node("Attention", *inputs, **attributes)]
    if seen is not None:
        (allowed,) = graph.add([seen])
        some, zero = _any(graph, allowed), graph.constant(np.zeros((), np.float32))
        found = [graph.node("Where", some, name, zero) for name in found]
    return tuple(found)


def _mask(node: Node) -> tuple[Any, Any, bool]:
    """Return a mask for all that is masked or added, which keys may be seen, and if it is causal.

    Where every row certainly has a key the second is None.
    """
    params: Any = node.params
    query, key = node.required(0), node.required(1)
    mask, lengths, starts, slopes = node.inputs[3:7]
    allowed = checks.allowed_keys(key, mask, lengths)
    from_left = starts is None and not params["start"] and not params["bottom_right"]
    is_causal = from_left and params["left"] == parts.UNBOUNDED and params["right"] == 0
    bounded = params["left"] != parts.UNBOUNDED or params["right"] != parts.UNBOUNDED
    distance = parts.distances(query, key, lengths, starts, params)
    if bounded and not (is_causal and allowed is None):
        seen = parts.in_bounds(allowed, distance, params["left"], params["right"])
        allowed = allowed if is_causal else seen
    else:
        seen = allowed
    bias = None
    if mask is not None and mask.dtype != np.bool_:
        bias = mask
    if slopes is not None:
        away = parts.penalty(slopes, distance, np.float32) * -1.0
        bias = away if bias is None else bias + away
    if bias is None:
        return allowed, seen, is_causal
    # Half of the lowest number hides a key as well as -inf, and is a number to every kernel.
    lowest = float(np.finfo(np.float32).min) / 2
    bias = maximum(bias, lowest)
    return (bias if allowed is None else where(allowed, bias, lowest)), seen, is_causal


def _any(graph: Any, allowed: str) -> Any:
    """Return which rows have a key; by nodes that are the same for a mask of any rank."""
    number = graph.node("Cast", allowed, to=np.dtype(np.float32))
    most = graph.node("ReduceMax", number, graph.constant(np.array([-1])), keepdims=1)
    return graph.node("Cast", most, to=np.dtype(np.bool_))


def _full_axes(graph: Any, mask: str, query: str, key: str) -> str:
    """Give the mask its full last two axes: ONNX Runtime broadcasts only those before them."""
    sizes = [graph.node("Shape", name, start=2, end=3) for name in (query, key)]
    full: str = graph.node("Expand", mask, graph.node("Concat", *sizes, axis=0))
    return full
