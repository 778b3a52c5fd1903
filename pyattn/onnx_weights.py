"""The weights of an exported model: the types they are stored in, and where.

Weights stay NumPy arrays beside a model without them until they are written, one at a time: into
the model, or into a file beside it where one file, which ONNX bounds at 2 GiB, does not hold them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyattn.extras import needs
from pyattn.grad import Parametrized
from pyattn.onnx_nodes import read_names
from pyattn.tensor import Array, Tensor

if TYPE_CHECKING:
    import onnx

Weights = Literal["float16", "bfloat16", "int8"]

LARGEST_FILE = 2**31 - 1  # bytes that a serialized model may have
SMALLEST_APART = 1024  # bytes from which an array counts as weights, and is kept in another file
PAGE = 4096  # where arrays begin in that file, so that they can be mapped into memory
INTEGERS = {2, 3}  # TensorProto.UINT8, INT8
ENTRY = 256  # bytes, at most, that an array takes besides its numbers


def half_type(weights: str) -> np.dtype[Any]:
    """Return ``"float16"`` or ``"bfloat16"`` as a dtype."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if weights == "bfloat16" else np.float16)


def rounded(model: Any, dtype: np.dtype[Any]) -> Any:
    """Return the module with its float32 matrices rounded to what ``dtype`` can hold."""
    if not isinstance(model, Parametrized):
        raise TypeError(
            f"export: weights={dtype.name!r} needs a module, whose parameters can be rounded for "
            f"the comparison; got {model!r}"
        )
    values = {}
    for name, value in model.parameters().items():
        array: Any = value.numpy() if isinstance(value, Tensor) else value
        if array.dtype == np.float32 and array.ndim >= 2:
            with np.errstate(over="ignore"):
                values[name] = array.astype(dtype).astype(np.float32)
            finite = np.isfinite(values[name])
            if not finite.all() and not np.array_equal(finite, np.isfinite(array)):
                largest = np.abs(array[np.isfinite(array)]).max()
                raise ValueError(
                    f"export: parameter {name} has entries up to {largest:.3g}, beyond the range "
                    f"of {dtype.name}"
                )
    if not values:
        raise ValueError(f"export: the model has no float32 matrix to store as {dtype.name}")
    return model.replace(values)


def narrowed(
    nodes: Sequence[onnx.NodeProto], arrays: Mapping[str, Array], dtype: np.dtype[Any]
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Return nodes and weights in which matrices are stored in ``dtype`` and widened when read.

    That is done for those that ``dtype`` holds exactly, which those of a rounded model are. Of a
    table that is only looked up in, the rows that are found are widened.
    """
    from onnx import helper

    readers = Counter(read_names(nodes))
    tables = Counter(node.input[0] for node in nodes if node.op_type == "Gather")
    casts, lookups = [], {}
    stored: dict[str, Array] = {}
    widen = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    for name, array in arrays.items():
        narrow = _exactly(array, dtype)
        if narrow is None:
            stored[name] = array
            continue
        label = f"{name}.{dtype.name}"
        stored[label] = narrow
        if tables[name] == readers[name]:
            lookups[name] = label
        else:
            casts.append(helper.make_node("Cast", [label], [name], name=f"{name}.Cast", to=widen))
    for node in nodes:
        if node.op_type == "Gather" and node.input[0] in lookups:
            rows, found = f"{node.output[0]}.{dtype.name}", node.output[0]
            node.input[0], node.output[0] = lookups[node.input[0]], rows
            casts.append(node)
            node = helper.make_node("Cast", [rows], [found], name=f"{found}.Cast", to=widen)
        casts.append(node)
    return casts, stored


def _exactly(array: Array, dtype: np.dtype[Any]) -> Array | None:
    """Return a float32 matrix in ``dtype`` if that holds all its numbers."""
    if array.dtype != np.float32 or array.ndim < 2 or array.nbytes < SMALLEST_APART:
        return None
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    return narrow if np.array_equal(narrow.astype(np.float32), array) else None


def check(proto: onnx.ModelProto, arrays: Mapping[str, Array]) -> None:
    """Let ONNX check a model and infer its shapes, with inputs in place of its weights."""
    from onnx import ModelProto, checker, helper

    whole = ModelProto()
    whole.CopyFrom(proto)
    small = {name: array for name, array in arrays.items() if array.nbytes < SMALLEST_APART}
    _embed(whole, small)
    for name, array in arrays.items():
        if name not in small:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            info = helper.make_tensor_value_info(name, kind, array.shape)
            whole.graph.input.append(info)
    checker.check_model(whole, full_check=True)


def needs_data_file(
    proto: onnx.ModelProto, arrays: Mapping[str, Array], wanted: bool | None, has_path: bool
) -> bool:
    """Return whether weights go into a file beside the model; ValueError where they cannot."""
    size = proto.ByteSize() + sum(array.nbytes + ENTRY for array in arrays.values())
    too_large = size > LARGEST_FILE
    if too_large and (wanted is False or not has_path):
        way = "external_data=None" if has_path else "a path, for a second file beside the first"
        raise ValueError(
            f"export: a model of {size} bytes is larger than one ONNX file, {LARGEST_FILE}; give "
            f"{way}"
        )
    return too_large if wanted is None else wanted


def store(
    proto: onnx.ModelProto, arrays: Mapping[str, Array], place: Path | None, *, apart: bool
) -> None:
    """Put the weights into the model, or beside ``place``; write the model there, if anywhere."""
    large: dict[str, Array] = {}
    if apart:
        large = {name: array for name, array in arrays.items() if array.nbytes >= SMALLEST_APART}
    _embed(proto, {name: array for name, array in arrays.items() if name not in large})
    if place is not None and large:
        _write_data(proto, large, place)
    if place is not None:
        place.write_bytes(proto.SerializeToString())


def _embed(proto: onnx.ModelProto, arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        tensor = _described(proto, name, array)
        tensor.raw_data = array.tobytes()


def _described(proto: onnx.ModelProto, name: str, array: Array) -> onnx.TensorProto:
    from onnx import helper

    tensor: onnx.TensorProto = proto.graph.initializer.add()
    tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    return tensor


def _write_data(proto: onnx.ModelProto, arrays: Mapping[str, Array], place: Path) -> None:
    """Write the arrays into ``model.onnx.data``, and into the model where they lie."""
    from onnx import TensorProto

    beside = place.with_name(f"{place.name}.data")
    with beside.open("wb") as file:
        for name, array in arrays.items():
            file.seek(-file.tell() % PAGE, 1)
            tensor = _described(proto, name, array)
            tensor.data_location = TensorProto.EXTERNAL
            where = {"location": beside.name, "offset": file.tell(), "length": array.nbytes}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def quantized(source: Path, folder: Path) -> onnx.ModelProto:
    """Return the model of a file with its matrices and tables in eight bits.

    The work is that of ONNX Runtime's own tool: products get integers made of their left side as
    they run, one scale for each column of the right; tables have one scale. Nothing else is
    touched, calls of functions and their bodies among it.
    """
    needs("onnxruntime", "onnx")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = folder / "prepared.onnx"
    proto = onnx.load(source, load_external_data=False)
    # The tool warns where its own preparation, which removes the functions, was not run.
    proto.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    prepared.write_bytes(proto.SerializeToString())
    result = folder / "quantized.onnx"
    quantize_dynamic(
        prepared,
        result,
        op_types_to_quantize=["MatMul", "Gather"],  # it would take Attention for another operator
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # to seven bits: sums of eight overflow on processors without VNNI
    )
    made = onnx.load(result)
    del made.graph.value_info[:]  # see _trace in export.py
    del made.metadata_props[:]
    made.metadata_props.extend(p for p in proto.metadata_props if not p.key.startswith("onnx."))
    if not {x.data_type for x in made.graph.initializer if len(x.dims) >= 2} & INTEGERS:
        raise ValueError("export: the model has no float32 matrix to store as int8")
    return made


def unpacked(proto: onnx.ModelProto) -> dict[str, Array]:
    """Take the weights out of a model."""
    from onnx import numpy_helper

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    del proto.graph.initializer[:]
    return arrays
