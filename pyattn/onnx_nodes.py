"""ONNX nodes by themselves: their attributes, and the names that they read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Attribute:
    """A parameter that is, inside a function body, a reference to an attribute of the call."""

    name: str
    value: float
    wide: bool  # float64: ONNX has no such attribute but a tensor

    def given(self) -> Any:
        """Return what the call carries."""
        from onnx import numpy_helper

        return numpy_helper.from_array(np.array(self.value)) if self.wide else self.value


def read_names(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Yield every name that the nodes read, in their bodies too."""
    for node in nodes:
        yield from node.input
        for each in node.attribute:
            yield from read_names(each.g.node)


def rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Change names of values in a node, and in its bodies, which read what is around them."""
    for listed in (node.input, node.output):
        for place, name in enumerate(listed):
            if name in names:
                listed[place] = names[name]
    for each in node.attribute:
        for inner in each.g.node:
            rename(inner, names)


def identity(source: str, target: str) -> onnx.NodeProto:
    """Return a node that gives a value another name."""
    from onnx import helper

    return helper.make_node("Identity", [source], [target], name=target)


def attribute(key: str, value: Any) -> onnx.AttributeProto:
    """Return an attribute; a dtype becomes its number, an :class:`Attribute` a reference."""
    from onnx import AttributeProto, helper, numpy_helper

    if isinstance(value, Attribute):
        kind = AttributeProto.TENSOR if value.wide else AttributeProto.FLOAT
        return AttributeProto(name=key, type=kind, ref_attr_name=value.name)
    if isinstance(value, np.dtype):
        value = helper.np_dtype_to_tensor_dtype(value)
    if isinstance(value, np.ndarray):
        value = numpy_helper.from_array(value)
    return helper.make_attribute(key, value)
