"""Writes recorded nodes as ONNX nodes, attention mechanisms as model-local functions."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyattn.onnx_nodes import Attribute, attribute, identity, read_names, rename
from pyattn.tensor import Array, Dim, Node, Spec, Tensor
from pyattn.walk import topological

if TYPE_CHECKING:
    import onnx

DOMAIN = "pyattn"
SWITCH = "attention_wanted"

Target = Literal["functions", "primitive", "onnx24"]


def _attribute_of(node: Node, key: str) -> Attribute:
    return Attribute(key, node.params[key], node.outputs[0].dtype == np.float64)


@dataclass
class Shared:
    """What the main graph and the function bodies of one model have in common."""

    opset: int
    target: Target = "functions"
    attention_outputs: bool = False
    functions: dict[str, onnx.FunctionProto] = field(default_factory=dict)
    remarks: Counter[str] = field(default_factory=Counter)  # what is not as the target says
    sizes: dict[Dim, str] = field(default_factory=dict)  # what dynamic dimensions are called
    switch: str | None = None  # the input that says whether attention weights are computed

    def label(self, size: Dim) -> str:
        """Return what a dimension is called; no other is called so."""
        if size not in self.sizes:
            taken, label, number = set(self.sizes.values()), size.name, 0
            while size.owner is not None and label in taken:
                number += 1
                label = f"{size.name}_{number}"
            self.sizes[size] = label
        return self.sizes[size]


class Graph:
    """A list of ONNX nodes under construction; what the ``onnx`` rules of operations write to."""

    def __init__(
        self,
        shared: Shared,
        *,
        function: bool = False,
        taken: Sequence[str] = (),
        outer: Graph | None = None,
    ) -> None:
        """``taken`` are the names of inputs and outputs, which nothing else may get.

        Within ``outer``, whose names are known here too, this is the body of one of its nodes.
        """
        self._shared = shared
        self._function = function
        self._outer = outer
        self._taken: set[str] = set(taken) if outer is None else outer._taken
        self._names: ChainMap[tuple[Node | Tensor, int], str] = (
            ChainMap() if outer is None else outer._names.new_child()
        )
        self._constants: dict[tuple[Any, ...], str] = {}
        self._arrays: dict[str, Array] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.attention: list[tuple[str, Spec]] = []

    @property
    def opset(self) -> int:
        return self._shared.opset

    @property
    def target(self) -> Target:
        return self._shared.target

    def remark(self, what: str) -> None:
        """Note something that the user is told once the model is written."""
        self._shared.remarks[what] += 1

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

        names = ["" if i in unused else self._unique(op_type) for i in range(outputs)]
        node = helper.make_node(op_type, inputs, names, name=names[0], domain=domain)
        node.attribute.extend(attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return names[0] if outputs == 1 else tuple(names)

    def _unique(self, wanted: str) -> str:
        """Return ``wanted``, with a number if something has that name already; take it."""
        name, number = wanted, 0
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def constant(self, array: Array, name: str | None = None) -> str:
        """Return the name of a constant: an initializer, inside a function a Constant node."""
        from onnx import numpy_helper

        if self._outer is not None:  # once for all steps, and shared with what is outside
            return self._outer.constant(array, name)
        if name is None and array.nbytes <= 64:
            key: tuple[Any, ...] = (array.dtype.str, array.shape, array.tobytes())
        else:  # a weight: told by where it lies, as long as it is kept in _arrays
            where = array.__array_interface__["data"][0]
            key = (array.dtype.str, array.shape, array.strides, where)
        if key not in self._constants:
            if self._function:
                label: str = self.node("Constant", value=numpy_helper.from_array(array))
            else:
                label = self._unique(name or "constant")
            self._arrays[label] = array
            self._constants[key] = label
        return self._constants[key]

    def derived(self, tensor: Tensor, how: str, make: Callable[[Array], Array]) -> str:
        """Return the name of the constant ``make(array)``, written once however often it is read.

        ``how`` tells what is made of the array of ``tensor``.
        """
        if self._outer is not None:
            return self._outer.derived(tensor, how, make)
        array = tensor.numpy()
        where = array.__array_interface__["data"][0]
        key = (array.dtype.str, array.shape, array.strides, where, how)
        if key not in self._constants:
            label = tensor.name and f"{tensor.name}.{how}"
            self._constants[key] = self.constant(make(array), label)
        return self._constants[key]

    def initializers(self) -> dict[str, Array]:
        """Return the constants that a node reads, by their names."""
        used = set(read_names(self.nodes))
        return {label: array for label, array in self._arrays.items() if label in used}

    def bind(self, tensor: Tensor | None, name: str) -> None:
        """Let ``tensor`` be known as ``name`` in this graph."""
        if tensor is not None:
            self._names[tensor.source] = name

    def add(self, outputs: Sequence[Tensor]) -> list[str]:
        """Write everything that ``outputs`` depend on; return their names."""
        for node in topological(outputs):
            traced = any(x is not None and x.value is None for x in node.inputs)
            if traced and (node, 0) not in self._names:
                self._lower(node)
        return [self._name(tensor) for tensor in outputs]

    def rename(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Give the outputs of the graph, which is complete, their names.

        No Identity stands between where it can be helped: ONNX Runtime would copy what something
        else reads too, a cache for example.
        """
        made = {name for node in self.nodes for name in node.output}
        names: dict[str, str] = {}
        for source, target in zip(sources, targets, strict=True):
            if source in made and source not in names:
                names[source] = target
            else:
                self.nodes.append(identity(source, target))
        for node in self.nodes:
            rename(node, names)

    def subgraph(
        self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> tuple[onnx.GraphProto, list[Spec]]:
        """Return the body of a node that is about to be written, as a graph of its own.

        What the body reads of this graph must be written already, and keeps its name. Attention
        weights that are to be outputs of the model come behind ``outputs``; their Specs are
        returned, for :meth:`show`.
        """
        from onnx import helper

        inner = Graph(self._shared, outer=self)
        names = [inner._unique("input") for _ in inputs]
        for tensor, label in zip(inputs, names, strict=True):
            inner.bind(tensor, label)
        sources = inner.add(outputs) + [weights for weights, _ in inner.attention]
        results = [inner._unique("result") for _ in sources]
        inner.rename(sources, results)
        shown = [spec for _, spec in inner.attention]
        given, made = [x.spec for x in inputs], [x.spec for x in outputs] + shown
        read, written = (
            [value_info(label, spec, self._shared) for label, spec in zip(*pair, strict=True)]
            for pair in ((names, given), (results, made))
        )
        proto = helper.make_graph(inner.nodes, name, read, written)
        return proto, shown

    def show(self, name: str, weights: Spec) -> None:
        """Let attention weights be an output of the model; in a body, one of the body first."""
        if self._outer is None:
            label = f"attention_weights_{len(self.attention)}"
            self.nodes.append(identity(name, label))
            name = label
        self.attention.append((name, weights))

    def _name(self, tensor: Tensor | None) -> str:
        if tensor is None:
            return ""
        if tensor.source not in self._names:
            if tensor.value is None:
                raise ValueError(f"export: {tensor} does not come from the given inputs")
            self.bind(tensor, self.constant(tensor.value, tensor.name))
        return self._names[tensor.source]

    def _lower(self, node: Node) -> None:
        names = [self._name(x) for x in node.inputs]
        is_attention = node.op.function is not None and node.op.has_weights
        write = (
            self._write_shown if is_attention and self._shared.attention_outputs else self._write
        )
        results = write(node, names)
        for index in range(len(node.outputs)):
            self._names[node, index] = results[index]

    def _write(self, node: Node, names: Sequence[str]) -> list[str]:
        """Write a node, where it can be as a call of its function; return its outputs."""
        if node.op.function is not None and self.target == "functions":
            return self._call(node, node.op.function(node), list(names))
        return self.body(node, names)

    def _write_shown(self, node: Node, names: Sequence[str]) -> list[str]:
        """Write attention whose weights are an output of the model.

        Weights take time, and ONNX Runtime computes every output, asked for or not. So they are
        computed apart, if the switch is on. Where they are there anyway they are shown as they
        are, and within a loop, all steps of which have one output.
        """
        full = _with_weights(node)
        index = 1 + full.params["aux"].index("weights")
        there = "weights" in node.params["aux"] or self.target == "primitive"
        if there or self._outer is not None:
            results = self._write(full, names)
            self.show(results[index], full.outputs[index])
            return results
        self.show(self._if_wanted(full, names, index), full.outputs[index])
        return self._write(node, names)

    def _if_wanted(self, node: Node, names: Sequence[str], index: int) -> str:
        """Return an output of a node that is computed if the switch is on, and empty otherwise."""
        from onnx import helper

        spec = node.outputs[index]
        if self._shared.switch is None:
            self._shared.switch = self._unique(SWITCH)
            self._arrays[self._shared.switch] = np.array(True)
        sizes = [size if isinstance(size, int) else 0 for size in spec.shape]
        nothing = self.constant(np.zeros(sizes, spec.dtype))
        wanted, unwanted = (Graph(self._shared, outer=self) for _ in range(2))
        results = wanted._write(node, names)[index], unwanted.node("Identity", nothing)
        kind = helper.np_dtype_to_tensor_dtype(spec.dtype)
        then_branch, else_branch = (
            helper.make_graph(
                graph.nodes, "branch", [], [helper.make_tensor_value_info(result, kind, None)]
            )
            for graph, result in zip((wanted, unwanted), results, strict=True)
        )
        weights: str = self.node(
            "If", self._shared.switch, then_branch=then_branch, else_branch=else_branch
        )
        return weights

    def body(self, node: Node, names: Sequence[str]) -> list[str]:
        """Write a node in standard operators: by its own rule, else by its expansion."""
        if node.op.onnx is not None:
            written = node.op.onnx(self, node, *names)
            if written is not None:
                return [written] if isinstance(written, str) else list(written)
        elif node.op.function is not None and self.target == "onnx24":
            self.remark(f"{node.op.name} is written out: ONNX has no operator for it")
        if node.op.expand is None:
            raise ValueError(f"export: {node.op.name} has no form in ONNX opset {self.opset}")
        leaves = [_leaf(x) for x in node.inputs]
        for leaf, name in zip(leaves, names, strict=True):
            self.bind(leaf, name)
        params = {
            key: self._attribute_value(value) if isinstance(value, Attribute) else value
            for key, value in node.params.items()
        }
        outputs = node.op.expand(*leaves, **params)
        return self.add(outputs if isinstance(outputs, tuple) else (outputs,))

    def _attribute_value(self, attribute: Attribute) -> Tensor:
        """Return the attribute as a value in the dtype of the arithmetic."""
        if attribute.wide:
            value: str = self.node("Constant", value=attribute)
        else:
            value = self.node("Constant", value_float=attribute)
        tensor = Tensor.symbolic((), np.float64 if attribute.wide else np.float32)
        self.bind(tensor, value)
        return tensor

    def _call(self, node: Node, function: str, names: list[str]) -> list[str]:
        """Write a call of the mechanism's function, and the function at its first call."""
        body = self._define(function, node)
        if self._shared.functions.setdefault(function, body) != body:
            raise RuntimeError(f"export: two bodies for the function {function}")
        while names and not names[-1]:
            names.pop()
        results = self.node(
            function,
            *names,
            outputs=len(node.outputs),
            domain=DOMAIN,
            **{key: _attribute_of(node, key).given() for key in node.op.attributes},
        )
        return [results] if isinstance(results, str) else list(results)

    def _define(self, name: str, node: Node) -> onnx.FunctionProto:
        from onnx import helper

        outputs = ["output", *node.params.get("aux", ())]
        graph = Graph(self._shared, function=True, taken=[*node.op.arguments, *outputs])
        references = {key: _attribute_of(node, key) for key in node.op.attributes}
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
        graph.rename(results, outputs)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_function(
            DOMAIN, name, arguments, outputs, graph.nodes, opsets, attributes=list(references)
        )


def value_info(name: str, spec: Spec, shared: Shared) -> onnx.ValueInfoProto:
    """Return the ONNX description of an input or output."""
    from onnx import helper

    sizes = [size if isinstance(size, int) else shared.label(size) for size in spec.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(spec.dtype), sizes)


def _leaf(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else Tensor.symbolic(tensor.shape, tensor.dtype)


def _with_weights(node: Node) -> Node:
    aux = node.params["aux"]
    params = node.params if "weights" in aux else {**node.params, "aux": (*aux, "weights")}
    specs = node.op.shape(*[None if x is None else x.spec for x in node.inputs], **params)
    return Node(node.op, node.inputs, params, specs)
