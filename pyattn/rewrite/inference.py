"""Types and sizes of the values of a model, as far as they can be told before it runs."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir

from pyattn.onnx_graph import DOMAIN
from pyattn.ort import session
from pyattn.rewrite.facts import LARGEST, Size, attribute, constant, dims, sizes

MADE_UP = "unk__"  # what ONNX's inference calls a size that it has no name for, before a number
ROUNDS = 8  # of inference at most; each may find sizes that the next one needs


def with_sizes(proto: onnx.ModelProto, folder: str) -> ir.Model:
    """Return the model with every type and size that can be told; large weights are not in it.

    ONNX's own inference, and between its rounds the sizes that follow from a ``-1`` in a reshape,
    for example: the number of heads is often written so. What lies behind operators of ONNX
    Runtime's own, it is asked for.
    """
    light = _without_weights(proto)
    _check(light)
    model = _read(_inferred(light), folder)
    changed = _ask_runtime(proto, model, folder)
    for _ in range(ROUNDS):
        if not _solve(model) | changed:
            break
        changed = False
        model = _read(_inferred(ir.to_proto(model)), folder)
    return model


def _ask_runtime(proto: onnx.ModelProto, model: ir.Model, folder: str) -> bool:
    """Set types and sizes that ONNX Runtime knows and ONNX does not; tell whether there are any."""
    values = {x.name: x for node in model.graph for x in node.outputs if x.name and x.shape is None}
    if not values or all(node.domain in ("", DOMAIN) for node in model.graph):
        return False
    outputs = {output.name for output in proto.graph.output}
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    # An output without a type gets the one that ONNX Runtime infers.
    probe.graph.output.extend(onnx.ValueInfoProto(name=x) for x in values if x not in outputs)
    try:
        found = session(probe, accelerate=False, folder=folder).get_outputs()
    except Exception:  # noqa: BLE001 -- its errors have no common class; then nothing more is known
        return False
    names = {d.dim_param for x in proto.graph.input for d in x.type.tensor_type.shape.dim}
    asked = [x for x in found if x.name in values and x.shape and x.type.startswith("tensor(")]
    for known in asked:
        # A name of its own might be one that ONNX's inference gave to another size.
        shape = [d if isinstance(d, int) or d in names else None for d in known.shape]
        value = values[known.name]
        value.shape = ir.Shape(shape)
        value.dtype = ir.DataType[known.type[len("tensor(") : -1].upper()]
    return bool(asked)


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which large initializers have a type and a shape only."""
    light, graph = onnx.ModelProto(), onnx.GraphProto()
    for part, whole in ((light, proto), (graph, proto.graph)):
        for described, value in whole.ListFields():
            if described.name in ("graph", "initializer"):
                continue
            if isinstance(value, (int, float, str, bytes)):
                setattr(part, described.name, value)
            else:
                getattr(part, described.name).MergeFrom(value)
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) <= LARGEST:
            graph.initializer.append(tensor)
        else:
            kept = graph.initializer.add(
                name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, data_location=1
            )
            kept.external_data.add(key="location", value="weights that are not looked at")
    light.graph.CopyFrom(graph)
    return light


def _check(light: onnx.ModelProto) -> None:
    """Raise ValidationError for a graph that is none: cycles, missing inputs, wrong attributes.

    Weights in files, and outputs without a shape, which ONNX Runtime takes, are left out of it.
    """
    graph = onnx.GraphProto(name="graph")
    for field in ("node", "input", "value_info", "sparse_initializer"):
        getattr(graph, field).MergeFrom(getattr(light.graph, field))
    graph.output.extend(x for x in light.graph.output if x.type.tensor_type.HasField("shape"))
    given = {x.name for x in graph.input}
    for tensor in light.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            kind = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            graph.input.append(onnx.helper.make_value_info(tensor.name, kind))
    whole = onnx.ModelProto(ir_version=light.ir_version, functions=light.functions)
    whole.opset_import.MergeFrom(light.opset_import)
    whole.graph.CopyFrom(graph)
    onnx.checker.check_model(whole)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def _read(proto: onnx.ModelProto, folder: str) -> ir.Model:
    model = ir.from_proto(proto)
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, folder)
    return model


def _solve(model: ir.Model) -> bool:
    """Set sizes that ONNX's inference does not find; tell whether there were any."""
    changed = False
    for graph in model.graphs():
        for node in graph:
            found = _sizes_after(node) if not node.domain else None
            if found is not None:
                changed |= _refine(node.outputs[0], found)
    return changed


def _sizes_after(node: ir.Node) -> list[Size] | None:
    """Return the sizes of the output of a node that rearranges its input."""
    if node.op_type not in ("Reshape", "Expand", "Slice") or len(node.inputs) < 2:
        return None
    before = dims(node.inputs[0])
    if before is None:
        return None
    if node.op_type == "Slice":  # the axes that are not cut stay, whatever the bounds of the others
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        cut = None if axes is None else {int(axis) % len(before) for axis in axes.flat}
        return None if cut is None else [None if i in cut else n for i, n in enumerate(before)]
    target = sizes(node.inputs[1])
    if target is None:
        return None
    if node.op_type == "Expand":
        return broadcast(before, target)
    return reshaped(before, target, keep_zero=not attribute(node, "allowzero", 0))


def _refine(value: ir.Value, found: list[Size]) -> bool:
    known = dims(value)
    if known is not None and len(known) != len(found):
        return False
    old = known or [None] * len(found)
    new = [o if _age(o) <= _age(f) else f for o, f in zip(old, found, strict=True)]
    if known is not None and new == old:
        return False
    value.shape = ir.Shape(new)
    return True


def _age(size: Size) -> float:
    """Return how well a size is known: numbers, names of the model, names of inference by age."""
    if size is None:
        return np.inf
    made_up = isinstance(size, str) and size.startswith(MADE_UP)
    return int(str(size).removeprefix(MADE_UP)) if made_up else -isinstance(size, int) - 1


def broadcast(one: list[Size], other: list[Size]) -> list[Size]:
    """Return the sizes to which both broadcast."""
    count = max(len(one), len(other))
    ones: list[Size] = [1]
    first, second = (ones * (count - len(x)) + x for x in (one, other))
    return [_wider(a, b) for a, b in zip(first, second, strict=True)]


def _wider(a: Size, b: Size) -> Size:
    if a == 1:
        return b
    if b in (1, a):
        return a
    # Of two names, either may turn out to be 1.
    return a if isinstance(a, int) else b if isinstance(b, int) else None


def reshaped(before: list[Size], target: list[Size], *, keep_zero: bool) -> list[Size]:
    """Return the sizes after a reshape, ``-1`` solved where the other sizes leave one answer."""
    after: list[Size] = [
        before[i] if size == 0 and keep_zero and i < len(before) else size
        for i, size in enumerate(target)
    ]
    if after.count(-1) != 1:
        return after
    hole = after.index(-1)
    after[hole] = None
    rest = after[:hole] + after[hole + 1 :]
    if None in before or None in rest:
        return after
    names = Counter(s for s in before if isinstance(s, str))
    names.subtract(s for s in rest if isinstance(s, str))
    left = [name for name, count in names.items() for _ in range(count)]
    number = math.prod(s for s in before if isinstance(s, int))
    divisor = math.prod(s for s in rest if isinstance(s, int))
    if min(names.values(), default=0) < 0 or divisor == 0 or number % divisor:
        return after
    if not left:
        after[hole] = number // divisor
    elif len(left) == 1 and number == divisor:
        after[hole] = left[0]
    return after
