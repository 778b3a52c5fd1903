"""Recurrent layers in standard operators: a ``Scan`` where none has the dtype, a single step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyattn.ops._rules import BOOL, INT64
from pyattn.ops.elementwise import astype, less, where
from pyattn.ops.index import arange_like, take
from pyattn.ops.linalg import linear
from pyattn.ops.shape import expand_dims, transpose
from pyattn.tensor import Node, Tensor

# From W x + b at a step, ``(B, G * H)``, and the states before it to those behind it.
Step = Callable[..., tuple[Any, ...]]


# Of both weights: from here on the operators of a step beat ONNX Runtime's GRU and LSTM,
# 1.1 to 8 times for 2620 inputs and 1000 units. With 512 units they were level or slower, down to
# 0.8 times.
_MANY_WEIGHTS = 1 << 22


def is_large_cell(node: Node) -> bool:
    """Whether it is one step of each entry, with weights that are worth packing."""
    x, weight_input, weight_hidden = (node.required(i) for i in range(3))
    sizes: list[Any] = [*weight_input.shape, *weight_hidden.shape]
    weights = sizes[0] * sizes[1] + sizes[2] * sizes[3]
    single = x.shape[1] == 1 and node.inputs[-1] is None
    return single and x.dtype.itemsize >= 4 and weights >= _MANY_WEIGHTS


def single(graph: Any, node: Node, step: Step) -> list[str]:
    """Write a single step in standard operators.

    ONNX Runtime packs the weights of its MatMul when it loads a model, those of its GRU and LSTM at
    every call.
    """
    x = node.required(0)[:, 0]
    before = [_zeros(node) if s is None else s for s in node.inputs[5:-1]]
    after = step(linear(x, node.required(1), node.inputs[3]), *before)
    names: list[str] = graph.add([expand_dims(after[0], 1), *after])
    return names


def _zeros(node: Node) -> Any:
    x, size = node.required(0), node.required(2).shape[1]
    return take(np.zeros((1, size), x.dtype), arange_like(x, 0) * 0)


def scan(graph: Any, node: Node, step: Step) -> list[str]:
    """Write a layer whose inputs are x, the two weights, the two biases, the states and lengths.

    A ``Scan`` goes through the steps in either direction; a step that an entry does not take leaves
    its states as they are.
    """
    x, weight_input = node.required(0), node.required(1)
    *states, lengths = node.inputs[5:]
    given = linear(x, weight_input, node.inputs[3])
    size = node.required(2).shape[1]
    scanned = [transpose(given, (1, 0, 2))]
    leaves = [Tensor.symbolic((x.shape[0], given.shape[2]), x.dtype)]
    if lengths is not None:
        steps = expand_dims(expand_dims(arange_like(x, 1), 1), 2)
        scanned.append(less(steps, expand_dims(astype(lengths, INT64), 1)))
        leaves.append(Tensor.symbolic((x.shape[0], 1), BOOL))
    before = [Tensor.symbolic((x.shape[0], size), x.dtype) for _ in states]
    after = step(leaves[0], *before)
    output = after[0]
    if lengths is not None:
        taken = leaves[1]
        output = where(taken, output, 0.0)
        after = tuple(where(taken, a, b) for a, b in zip(after, before, strict=True))
    names = graph.add([*[_zeros(node) if s is None else s for s in states], *scanned])
    body, _ = graph.subgraph("step", [*before, *leaves], [*after, output])
    backwards = int(node.params["reverse"])
    *last, steps = graph.node(
        "Scan",
        *names,
        outputs=len(states) + 1,
        body=body,
        num_scan_inputs=len(scanned),
        scan_input_directions=[backwards] * len(scanned),
        scan_output_directions=[backwards],
    )
    return [graph.node("Transpose", steps, perm=(1, 0, 2)), *last]
