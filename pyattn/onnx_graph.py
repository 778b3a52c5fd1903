"""Writes recorded nodes as ONNX nodes, attention mechanisms as model-local functions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyattn.grad import topological
from pyattn.tensor import Array, Node, Spec, Tensor

if TYPE_CHECKING:
    import onnx

DOMAIN = "pyattn"


@dataclass(frozen=True)
class Attribute:
    """A parameter that is, inside a function body, a reference to an attribute of the call."""

    name: str
    value: float


@dataclass
class Shared:
    """What the main graph and the function bodies of one model have in common."""

    opset: int
    functions: dict[str, onnx.FunctionProto] | None  # None: everything is written inline
    attention_outputs: bool


class Graph:
    """A list of ONNX nodes under construction; what the ``onnx`` rules of operations write to."""

    def __init__(self, shared: Shared, *, function: bool = False) -> None:
        self._shared = shared
        self._function = function
        self._numbers = itertools.count()
        self._constants: dict[tuple[Any, ...], str] = {}
        self._names: dict[tuple[int, int], str] = {}
        self._alive: list[Any] = []  # keys are made of id(): what they name must not be freed
        self.nodes: list[onnx.NodeProto] = []
        self._arrays: dict[str, Array] = {}
        self.attention: list[tuple[str, Spec]] = []
        self.specs: dict[str, Spec] = {}  # of the values between nodes, where they are known

    @property
    def opset(self) -> int:
        return self._shared.opset

    def node(
        self,
        op_type: str,
        *inputs: str,
        outputs: int = 1,
        unused: Sequence[int] = (),
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """Add a node; return the name of its output, or a tuple of names for several.

        Outputs at the places in ``unused`` are optional ones that nobody asked for.
        """
        from onnx import helper

        number = next(self._numbers)
        names = tuple(
            "" if i in unused else f"{op_type}_{number}" + (f"_{i}" if i else "")
            for i in range(outputs)
        )
        node = helper.make_node(op_type, inputs, names, name=names[0], domain=domain)
        node.attribute.extend(_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def constant(self, array: Array, name: str | None = None) -> str:
        """Return the name of a constant: an initializer, inside a function a Constant node."""
        from onnx import numpy_helper

        key = (name,) if name else (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            if self._function:
                label: str = self.node("Constant", value=numpy_helper.from_array(array))
            else:
                label = name or f"constant_{next(self._numbers)}"
                self._arrays[label] = array
            self._constants[key] = label
        return self._constants[key]

    def initializers(self) -> list[onnx.TensorProto]:
        """Return the constants that a node reads."""
        from onnx import numpy_helper

        used = {name for node in self.nodes for name in node.input}
        return [
            numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), label)
            for label, array in self._arrays.items()
            if label in used
        ]

    def bind(self, tensor: Tensor | None, name: str) -> None:
        """Let ``tensor`` be known as ``name`` in this graph."""
        if tensor is not None:
            self._names[_key(tensor)] = name
            self._alive.append(tensor)

    def add(self, outputs: Sequence[Tensor]) -> list[str]:
        """Write everything that ``outputs`` depend on; return their names."""
        self._alive.append(outputs)
        for node in topological(outputs):
            traced = any(x is not None and x.value is None for x in node.inputs)
            if traced and (id(node), 0) not in self._names:
                self._lower(node)
        return [self._name(tensor) for tensor in outputs]

    def rename(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Give the graph's outputs their names."""
        self.nodes.extend(map(_identity, sources, targets))

    def _name(self, tensor: Tensor | None) -> str:
        if tensor is None:
            return ""
        key = _key(tensor)
        if key not in self._names:
            if tensor.value is None:
                raise ValueError(f"export: {tensor} does not come from the given inputs")
            self.bind(tensor, self.constant(tensor.value, tensor.name))
        return self._names[key]

    def _lower(self, node: Node) -> None:
        is_attention = node.op.function is not None
        written = node
        if is_attention and self._shared.attention_outputs:
            written = _with_weights(node)
        names = [self._name(x) for x in node.inputs]
        if node.op.function is not None and self._shared.functions is not None:
            results = self._call(written, node.op.function(written), names, self._shared.functions)
        else:
            results = self.body(written, names)
        if written is not node:
            index = 1 + written.params["aux"].index("weights")
            label = f"attention_weights_{len(self.attention)}"
            self.rename([results[index]], [label])
            self.attention.append((label, written.outputs[index]))
        for index, spec in enumerate(node.outputs):
            self._names[id(node), index] = results[index]
            self.specs[results[index]] = spec

    def body(self, node: Node, names: Sequence[str]) -> list[str]:
        """Write a node in standard operators: by its own rule, else by its expansion."""
        if node.op.onnx is not None:
            written = node.op.onnx(self, node, *names)
            if written is not None:
                return [written] if isinstance(written, str) else list(written)
        if node.op.expand is None:
            raise ValueError(f"export: {node.op.name} has no form in ONNX opset {self.opset}")
        leaves = [_leaf(x) for x in node.inputs]
        for leaf, name in zip(leaves, names, strict=True):
            self.bind(leaf, name)
        params = {
            key: self._attribute_value(value, node, names[0])
            if isinstance(value, Attribute)
            else value
            for key, value in node.params.items()
        }
        outputs = node.op.expand(*leaves, **params)
        return self.add(outputs if isinstance(outputs, tuple) else (outputs,))

    def _attribute_value(self, attribute: Attribute, node: Node, like: str) -> Tensor:
        value = self.node("Constant", value_float=attribute)
        tensor = Tensor.symbolic((), node.outputs[0].dtype)
        self.bind(tensor, self.node("CastLike", value, like))
        return tensor

    def _call(
        self, node: Node, function: str, names: list[str], functions: dict[str, Any]
    ) -> list[str]:
        """Write a call of the mechanism's function, and the function at its first call."""
        attributes = {key: node.params[key] for key in node.op.attributes}
        if function not in functions:
            functions[function] = self._define(function, node)
        while names and not names[-1]:
            names.pop()
        results = self.node(
            function, *names, outputs=len(node.outputs), domain=DOMAIN, **attributes
        )
        return [results] if isinstance(results, str) else list(results)

    def _define(self, name: str, node: Node) -> onnx.FunctionProto:
        from onnx import helper

        graph = Graph(self._shared, function=True)
        references = {key: Attribute(key, node.params[key]) for key in node.op.attributes}
        formal = Node(
            node.op, tuple(map(_leaf, node.inputs)), {**node.params, **references}, node.outputs
        )
        present = [
            "" if x is None else argument
            for x, argument in zip(node.inputs, node.op.arguments, strict=True)
        ]
        results = graph.body(formal, present)
        while present and not present[-1]:
            present.pop()
        arguments = node.op.arguments[: len(present)]
        outputs = ["output", *node.params["aux"]]
        graph.rename(results, outputs)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_function(
            DOMAIN, name, arguments, outputs, graph.nodes, opsets, attributes=list(references)
        )


def _key(tensor: Tensor) -> tuple[int, int]:
    return id(tensor.node or tensor), tensor.index


def _leaf(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else Tensor.symbolic(tensor.shape, tensor.dtype)


def _identity(source: str, target: str) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node("Identity", [source], [target], name=target)


def _with_weights(node: Node) -> Node:
    aux = node.params["aux"]
    params = node.params if "weights" in aux else {**node.params, "aux": (*aux, "weights")}
    specs = node.op.shape(*[None if x is None else x.spec for x in node.inputs], **params)
    return Node(node.op, node.inputs, params, specs)


def _attribute(key: str, value: Any) -> onnx.AttributeProto:
    from onnx import AttributeProto, helper

    if isinstance(value, Attribute):
        return AttributeProto(name=key, type=AttributeProto.FLOAT, ref_attr_name=value.name)
    if isinstance(value, np.dtype):
        value = helper.np_dtype_to_tensor_dtype(value)
    return helper.make_attribute(key, value)
