"""What GRU and LSTM have in common: checks, arrays for the kernels, the ONNX node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyattn.ops._rules import join, require_real
from pyattn.tensor import Array, Dim, Node, Size, Spec, Tensor

_UNITS = 16  # whose gates lie together: kGateUnits of the core
FLOAT32, INT32 = np.dtype(np.float32), np.dtype(np.int32)


@dataclass(frozen=True)
class Layer:
    """A kind of recurrent layer: its name, how many gates it has, what a state consists of."""

    name: str
    gates: int
    states: tuple[str, ...]
    onnx: str
    onnx_order: tuple[int, ...]  # ONNX's gates, as places in ours

    @property
    def arguments(self) -> tuple[str, ...]:
        weights = ("weight_input", "weight_hidden", "bias_input", "bias_hidden")
        return ("x", *weights, *self.states, "lengths")

    def kept(self, x: Spec, size: int) -> Spec:
        """Return what the gates of all steps are kept in, by the kernel's rule."""
        batch, length, _ = x.shape
        return Spec((-(-size // _UNITS), length, batch, self.gates * _UNITS), x.dtype)

    def check(
        self,
        x: Spec,
        weight_input: Spec,
        weight_hidden: Spec,
        biases: Sequence[Spec | None],
        states: Sequence[Spec | None],
        lengths: Spec | None,
    ) -> tuple[Size, Size, int]:
        """Return B, T and H; raise where dtypes or shapes do not fit each other."""
        given = [x, weight_input, weight_hidden, *[s for s in (*biases, *states) if s is not None]]
        require_real(self.name, *given)
        if x.ndim != 3:
            raise ValueError(f"{self.name}: x must be (B, T, I); got {x}")
        batch, length, size_in = x.shape
        size = weight_hidden.shape[-1] if weight_hidden.ndim == 2 else 0
        if isinstance(size_in, Dim) or isinstance(size, Dim):
            raise ValueError(
                f"{self.name}: I and H must be static sizes; got {x} and {weight_hidden}"
            )
        rows = self.gates * size
        if size < 1 or weight_hidden.shape != (rows, size) or weight_input.shape != (rows, size_in):
            raise ValueError(
                f"{join(self.name, x, weight_input, weight_hidden)}; expected x (B, T, I), "
                f"weight_input ({self.gates}H, I) and weight_hidden ({self.gates}H, H)"
            )
        for name, bias in zip(("bias_input", "bias_hidden"), biases, strict=True):
            if bias is not None and bias.shape != (rows,):
                raise ValueError(f"{self.name}: {name} must be ({rows},); got {bias}")
        for name, state in zip(self.states, states, strict=True):
            if state is not None and state.shape != (batch, size):
                raise ValueError(f"{self.name}: {name} must be ({batch}, {size}); got {state}")
        if lengths is not None and lengths.dtype not in (np.int32, np.int64):
            raise TypeError(f"{self.name}: lengths must be int32 or int64; got {lengths}")
        if lengths is not None and lengths.shape != (batch,):
            raise ValueError(f"{self.name}: lengths must be ({batch},); got {lengths}")
        return batch, length, size

    def valid(self, x: Array, lengths: Array | None) -> Array | None:
        """Return which steps are read ``(B, T)``."""
        if lengths is None:
            return None
        steps: Array = np.arange(x.shape[1]) < lengths[:, None]
        return steps

    def check_lengths(self, x: Array, lengths: Array) -> None:
        """Raise ValueError for a length that x does not have."""
        length = x.shape[1]
        if lengths.size and (lengths.min() < 0 or lengths.max() > length):
            raise ValueError(
                f"{self.name}: lengths must lie in 0..{length}; got "
                f"{lengths.min()}..{lengths.max()}"
            )

    def dense(
        self, x: Array, weight_hidden: Array, *states_and_lengths: Array | None
    ) -> tuple[Any, ...]:
        """Return weight, states and lengths as the kernel takes them, absent states as zeros."""
        *states, lengths = states_and_lengths
        if lengths is not None:
            self.check_lengths(x, lengths)
        zeros = (x.shape[0], weight_hidden.shape[1])
        return (
            np.ascontiguousarray(weight_hidden),
            *[np.zeros(zeros, x.dtype) if s is None else np.ascontiguousarray(s) for s in states],
            None if lengths is None else lengths.astype(np.int64),
        )

    def write(self, graph: Any, node: Node, names: Sequence[str], **attributes: Any) -> Any:
        """Write the layer as ONNX's operator, half precision by way of float32.

        ``names`` are x, the two weights, the two biases, the states and the lengths.
        """
        dtype, size = node.outputs[0].dtype, node.outputs[1].shape[1]
        given = dict(zip(self.arguments, names, strict=True))
        for key, tensor in zip(self.arguments, node.inputs, strict=True):
            if tensor is not None and key not in ("x", "lengths", *self.states):
                given[key] = self._reordered(graph, tensor, given[key])
            if tensor is not None and key != "lengths" and dtype.itemsize == 2:
                given[key] = graph.node("Cast", given[key], to=FLOAT32)
        first = [given[state] for state in self.states]
        inputs = [
            graph.node("Transpose", given["x"], perm=(1, 0, 2)),
            given["weight_input"],
            given["weight_hidden"],
            self._biases(graph, given, size),
            graph.node("Cast", given["lengths"], to=INT32) if given["lengths"] else "",
            *[_leading(graph, state, 0) if state else "" for state in first],
        ]
        while not inputs[-1]:
            inputs.pop()
        steps, *last = graph.node(
            self.onnx,
            *inputs,
            outputs=1 + len(first),
            hidden_size=size,
            direction="reverse" if node.params["reverse"] else "forward",
            **attributes,
        )
        steps = graph.node("Squeeze", steps, graph.constant(np.array([1], np.int64)))
        results = [graph.node("Transpose", steps, perm=(1, 0, 2))]
        for begin, end in zip(first, last, strict=True):
            end = graph.node("Squeeze", end, graph.constant(np.array([0], np.int64)))
            if given["lengths"] and begin:
                # ONNX Runtime's state after no steps is 0 and not the first one.
                zero = graph.constant(np.zeros(1, node.required(-1).dtype))
                empty = _leading(graph, graph.node("Equal", given["lengths"], zero), 1)
                end = graph.node("Where", empty, begin, end)
            results.append(end)
        if dtype.itemsize == 2:
            results = [graph.node("Cast", result, to=dtype) for result in results]
        return results

    def _biases(self, graph: Any, given: dict[str, str], size: Any) -> str:
        """Return both biases one behind the other, or no name where there is none."""
        names = [given["bias_input"], given["bias_hidden"]]
        if not any(names):
            return ""
        zeros = graph.constant(np.zeros((1, self.gates * size), np.float32))
        both: str = graph.node("Concat", *[name or zeros for name in names], axis=1)
        return both

    def _reordered(self, graph: Any, tensor: Tensor, name: str) -> str:
        """Return the rows of a weight or bias in the order of ONNX's gates, behind an axis of 1."""

        def ordered(array: Array) -> Array:
            parts = np.split(array, self.gates)
            return np.concatenate([parts[place] for place in self.onnx_order])[None]

        if tensor.value is not None:
            constant: str = graph.derived(tensor, self.onnx, ordered)
            return constant
        parts = graph.node("Split", name, axis=0, num_outputs=self.gates, outputs=self.gates)
        joined = graph.node("Concat", *[parts[place] for place in self.onnx_order], axis=0)
        return _leading(graph, joined, 0)


def _leading(graph: Any, name: str, axis: int) -> str:
    unsqueezed: str = graph.node("Unsqueeze", name, graph.constant(np.array([axis], np.int64)))
    return unsqueezed


def rows_of(array: Array, valid: Array | None) -> Array:
    """Return the steps that are read, one after the other: ``(N, ...)`` of ``(B, T, ...)``."""
    return array.reshape(-1, array.shape[-1]) if valid is None else array[valid]


def spread(rows: Array, valid: Array | None, batch: int, length: int) -> Array:
    """Undo :func:`rows_of`; the steps that are not read become zeros."""
    if valid is None:
        return rows.reshape(batch, length, rows.shape[-1])
    result = np.zeros((batch, length, rows.shape[-1]), rows.dtype)
    result[valid] = rows
    return result


def contiguous(*arrays: Array | None) -> list[Any]:
    """Return the arrays as the kernel takes them."""
    return [None if a is None else np.ascontiguousarray(a) for a in arrays]


def states_before(
    after: Array, first: Array | None, lengths: Array | None, *, reverse: bool
) -> Array:
    """Return the state before each step, ``(B, T, H)``, from those after each step."""
    before = np.zeros_like(after)
    if not reverse:
        before[:, 1:] = after[:, :-1]
        if first is not None and after.shape[1]:
            before[:, 0] = first
        return before
    before[:, :-1] = after[:, 1:]
    if first is not None and after.shape[1]:
        if lengths is None:
            before[:, -1] = first
        else:
            read = lengths > 0
            before[read, lengths[read] - 1] = first[read]
    return before


def wide(arrays: Sequence[Array | None]) -> list[Any]:
    """Return the arrays with those of half precision in float32."""
    return [
        a if a is None or a.dtype.kind in "iu" or a.dtype.itemsize > 2 else a.astype(np.float32)
        for a in arrays
    ]
