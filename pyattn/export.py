"""Export to ONNX: trace a model once on symbolic inputs, then write its nodes down.

Each attention mechanism becomes a call of a model-local function of the domain ``pyattn`` whose
body is its expansion in standard operators. Any ONNX runtime runs the body; a runtime that knows an
operator of that name runs its own kernel instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pyattn import runtime
from pyattn.extras import needs
from pyattn.grad import Parametrized
from pyattn.io import staged
from pyattn.onnx_batching import batching
from pyattn.onnx_graph import DOMAIN, Graph, Shared, Target, value_info
from pyattn.onnx_input import Input, check_inputs
from pyattn.onnx_verify import VerificationError, quantization_error, verify_batching
from pyattn.onnx_verify import verify as verify_file
from pyattn.onnx_weights import (
    Weights,
    check,
    half_type,
    narrowed,
    needs_data_file,
    quantized,
    rounded,
    store,
    unpacked,
)
from pyattn.tensor import Array, Spec, Tensor

if TYPE_CHECKING:
    import onnx

__all__ = ["ExportWarning", "Input", "VerificationError", "export"]

OLDEST_OPSET = 18
OLDEST_ATTENTION = 23  # the opset that brought the operator Attention


class ExportWarning(UserWarning):
    """The exported file is right, but is not all that was asked for."""


def export(
    model: Callable[..., Any],
    inputs: Mapping[str, Input | Array],
    path: str | os.PathLike[str] | None = None,
    *,
    opset: int = 24,
    target: Target = "functions",
    weights: Weights | None = None,
    external_data: bool | None = None,
    attention_outputs: bool = False,
    verify: bool = True,
) -> onnx.ModelProto:
    """Export a model to ONNX.

    Parameters
    ----------
    model:
        A module, or any function of arrays. It is called once, with a symbolic Tensor for each
        entry of ``inputs``, by keyword. It returns a Tensor, a tuple, or a mapping of names to
        Tensors, which become the outputs ``output``, ``output_0``, ... or the mapping's names.
    inputs:
        For each input an :class:`Input`, or an example array when every size is fixed.
    path:
        Where to write the file, if anywhere. It appears there complete, or not at all. Files that
        the model brings along (``companion_files()``, a tokenizer for example) are written beside.
    opset:
        The version of ONNX's operators, 18 or later.
    target:
        How attention is written:

        - ``"functions"``: each mechanism is a call of a model-local function of the domain
          ``pyattn``, which any ONNX Runtime runs, and pyattn's kernels where they are registered.
          At opset 23 and 24 the body of a plain scaled dot-product attention is the standard
          operator ``Attention``;
        - ``"primitive"``: everything is written out in standard operators without ``Attention``,
          for runtimes that know no functions;
        - ``"onnx24"``: scaled dot-product attention is the standard operator ``Attention``, of
          opset 23 or later. What the operator cannot say is written out, and an
          :class:`ExportWarning` and the file's metadata tell so.
    weights:
        What matrices and tables are stored as, None as they are. The file of a float32 model is
        half as large with ``"float16"`` or ``"bfloat16"``: they are rounded, and widened when they
        are read, so that the arithmetic stays float32. With ``"int8"`` it is a quarter, by ONNX
        Runtime's dynamic quantization: products are of integers then. Vectors stay float32.
    external_data:
        Whether weights lie in a file beside the model, ``model.onnx.data`` for ``model.onnx``; with
        None they do if one file, which ONNX bounds at 2 GiB, does not hold them.
    attention_outputs:
        Whether the attention weights of each layer are outputs too: ``attention_weights_0``, ...;
        of a layer within a loop those of all steps, with the axis of steps in front. The input
        ``attention_wanted``, true unless it is given, turns them off: they are empty then and cost
        nothing. Weights of a loop, and those that a model written out has anyway, have no switch.
    verify:
        Whether to run the result in ONNX Runtime, at three choices of the dynamic sizes other than
        the example's, and compare it with the model run on arrays; for weights of 16 bits with the
        model whose parameters were rounded to them. Of ``"int8"`` the float32 file is compared so,
        and the result with that file: the metadata tells the largest difference. A model whose
        sizes depend on each other chooses them: ``verification_sizes()`` returns mappings of names
        to sizes.

    Returns
    -------
    onnx.ModelProto
        With external data, the model that refers to the file beside ``path``.

    Raises
    ------
    TraceError
        Where the model asks for a dynamic size.
    VerificationError
        When ONNX Runtime cannot run the file, or an output differs from the eager one by more
        than 1e-4 (and 1e-5 of its largest entry); the message gives the largest difference. When
        sequences of a batch get other answers than each alone, where the inputs say how a batch is
        made. With ``"int8"`` weights, when an output moves by more than a quarter.
    TypeError
        For weights of 16 bits of a model that is no module.
    ValueError
        For an unknown target, an opset out of range, an operation without a form in it, a model
        without float32 matrices or one with larger numbers than ``weights`` can hold, and more than
        2 GiB without a path.
    OSError
        When the file cannot be written.

    Warns
    -----
    ExportWarning
        When attention is not written as the target says, or will not run as one would think.
    """
    needs("onnx", "onnx")
    import onnx

    _check_options(target, opset, weights, onnx.defs.onnx_opset_version())
    if not callable(model):
        raise TypeError(f"export: model must be a module or a function; got {model!r}")
    given = check_inputs(inputs)
    if external_data and path is None:
        raise ValueError("export: external_data needs a path to lie beside")
    shared = Shared(opset, target, attention_outputs)
    with contextlib.ExitStack() as stack:
        # First: a path that cannot be written must not cost a trace and a check.
        place = None if path is None else stack.enter_context(staged(path))
        half = half_type(weights) if weights in ("float16", "bfloat16") else None
        model = model if half is None else rounded(model, half)
        proto, arrays, outputs = _trace(model, given, shared, half)
        _describe(proto, given, outputs, shared, weights)
        _add_own(proto, model)
        if weights == "int8":
            proto, arrays = _in_eight_bits(model, proto, arrays, given, place, verify)
        if place is not None:
            _write_companions(model, proto, place)
        apart = needs_data_file(proto, arrays, external_data, place is not None)
        store(proto, arrays, place, apart=apart)
        del arrays  # those that were made for the file
        if verify and weights != "int8":
            verify_file(model, place or proto, given)
        how = batching(given, outputs)
        if verify and how is not None:
            verify_batching(model, how, given)
    if shared.remarks:
        told = "; ".join(f"{count} x {what}" for what, count in shared.remarks.items())
        warnings.warn(f"export: {told}", ExportWarning, stacklevel=2)
    return proto


def _check_options(target: Any, opset: Any, weights: Any, newest: int) -> None:
    if target not in get_args(Target):
        raise ValueError(f"export: target must be one of {get_args(Target)}; got {target!r}")
    oldest = OLDEST_ATTENTION if target == "onnx24" else OLDEST_OPSET
    if isinstance(opset, bool) or not isinstance(opset, int) or not oldest <= opset <= newest:
        where = f" for target {target!r}" if oldest != OLDEST_OPSET else ""
        raise ValueError(f"export: opset must lie in {oldest}..{newest}{where}; got {opset!r}")
    if weights is not None and weights not in get_args(Weights):
        raise ValueError(
            f"export: weights must be None or one of {get_args(Weights)}; got {weights!r}"
        )


def _in_eight_bits(
    model: Callable[..., Any],
    proto: onnx.ModelProto,
    arrays: dict[str, Array],
    given: Mapping[str, Input],
    place: Path | None,
    verify: bool,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return the model in eight bits and its weights, measured against the float32 file."""
    beside = None if place is None else place.parent
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        exact, small = Path(folder, "exact.onnx"), Path(folder, "small.onnx")
        store(proto, arrays, exact, apart=needs_data_file(proto, arrays, None, True))
        made = quantized(exact, Path(folder))
        if verify:
            small.write_bytes(made.SerializeToString())
            verify_file(model, exact, given)
            largest, relative = quantization_error(model, exact, small, given)
            made.metadata_props.add(
                key="pyattn.difference",
                value=json.dumps({"largest": largest, "relative": relative}),
            )
    return made, unpacked(made)


def _describe(
    proto: onnx.ModelProto,
    given: Mapping[str, Input],
    outputs: Mapping[str, Spec],
    shared: Shared,
    weights: str | None,
) -> None:
    """Write what the file is into its metadata; ``docs/onnx.md`` lists the entries."""
    sizes: dict[str, dict[str, int]] = {}
    for name, i in given.items():
        for axis, dim in enumerate(i.dims):
            if dim is not None:
                sizes.setdefault(dim, {}).setdefault(name, axis)
    entries = {
        "version": runtime.build_info()["version"],
        "opset": str(shared.opset),
        "target": shared.target,
        "weights": weights,
        "dimensions": json.dumps(sizes),
        "remarks": json.dumps(shared.remarks) if shared.remarks else None,
        "attention": shared.switch,
        "batching": json.dumps(how) if (how := batching(given, outputs)) else None,
    }
    for key, value in entries.items():
        if value is not None:
            proto.metadata_props.add(key=f"pyattn.{key}", value=value)


def _add_own(proto: onnx.ModelProto, model: Any) -> None:
    """Write what the model says of itself into the metadata."""
    if hasattr(model, "file_metadata"):
        for key, value in model.file_metadata().items():
            proto.metadata_props.add(key=f"pyattn.{key}", value=json.dumps(value))


def _write_companions(model: Any, proto: onnx.ModelProto, place: Path) -> None:
    """Write what the model brings along beside the file, and say in the file's metadata where."""
    if not hasattr(model, "companion_files"):
        return
    for name, content in model.companion_files().items():
        beside = place.with_name(f"{place.stem}.{name}")
        beside.write_bytes(content)
        proto.metadata_props.add(key=f"pyattn.{Path(name).stem}", value=beside.name)


def _trace(
    model: Callable[..., Any], given: Mapping[str, Input], shared: Shared, half: Any
) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, Spec]]:
    """Call the model on symbolic Tensors; return what that recorded, its weights, its outputs."""
    from onnx import ModelProto, TensorProto, helper

    symbols = {
        name: Tensor.symbolic(i.shape, i.example.dtype, name=name) for name, i in given.items()
    }
    if isinstance(model, Parametrized):
        named = {k: Tensor(_array(v), name=k) for k, v in model.parameters().items()}
        model = model.replace(named)
    # First, so that dimensions of the inputs have the names they were given.
    given_info = [value_info(name, tensor.spec, shared) for name, tensor in symbols.items()]
    outputs = _named_outputs(model(**symbols))
    if set(outputs) & set(symbols):
        raise ValueError(f"export: inputs {list(symbols)} and outputs {list(outputs)} share a name")
    graph = Graph(shared, taken=[*symbols, *outputs])
    for name, tensor in symbols.items():
        graph.bind(tensor, name)
    sources = graph.add(list(outputs.values()))
    graph.rename(sources, list(outputs))
    described = {name: tensor.spec for name, tensor in outputs.items()} | dict(graph.attention)
    nodes, arrays = graph.nodes, graph.initializers()
    if half is not None:
        nodes, arrays = narrowed(nodes, arrays, half)
    if shared.switch is not None:
        # An input with a value of its own: it need not be given.
        given_info.append(helper.make_tensor_value_info(shared.switch, TensorProto.BOOL, []))
    opsets = [helper.make_opsetid("", shared.opset)]
    if shared.functions:
        opsets.append(helper.make_opsetid(DOMAIN, 1))
    proto: ModelProto = helper.make_model(
        helper.make_graph(
            nodes,
            type(model).__name__,
            given_info,
            [value_info(name, spec, shared) for name, spec in described.items()],
            # No value_info: told the shapes between nodes, ONNX Runtime 1.32 fuses additions with
            # normalisations, and MiniLM then takes 10 to 17 % longer.
        ),
        functions=list(shared.functions.values()),
        opset_imports=opsets,
        ir_version=max(10, helper.find_min_ir_version_for(opsets[:1])),
        producer_name="pyattn",
        producer_version=runtime.build_info()["version"],
    )
    check(proto, arrays)
    return proto, arrays, described


def _array(value: Any) -> Array:
    array: Array = value.numpy() if isinstance(value, Tensor) else value
    return array


def _named_outputs(result: Any) -> dict[str, Tensor]:
    if isinstance(result, Mapping):
        named = dict(result)
    elif isinstance(result, tuple):
        named = {f"output_{i}": tensor for i, tensor in enumerate(result)}
    else:
        named = {"output": result}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor) or tensor.value is not None:
            raise TypeError(
                f"export: {name} must be a Tensor that depends on the inputs; got "
                f"{type(tensor).__name__}"
            )
    return named
