"""Export to ONNX: trace a model once on symbolic inputs, then write its nodes down.

Each attention mechanism becomes a call of a model-local function of the domain ``pyattn`` whose
body is its expansion in standard operators. Any ONNX runtime runs the body; a runtime that knows an
operator of that name runs its own kernel instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from pyattn import runtime
from pyattn.extras import needs
from pyattn.grad import Parametrized
from pyattn.io import atomic_write
from pyattn.onnx_graph import DOMAIN, Graph, Shared, Target, value_info
from pyattn.tensor import Array, Tensor

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 18
OLDEST_ATTENTION = 23  # the opset that brought the operator Attention
TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-5


class VerificationError(RuntimeError):
    """The exported file and the eager model do not agree."""


class ExportWarning(UserWarning):
    """The exported file is right, but is not all that was asked for."""


@dataclass(frozen=True)
class Input:
    """An input of the exported model: an example array and the names of its dynamic dimensions.

    ``dims`` has one entry for each axis: a string names a dynamic dimension (axes with the same
    name always have the same size), None keeps the example's size. ``at_most`` names the dimension
    that bounds the values of an input of lengths: verification, which repeats and cuts the example
    to other sizes, then keeps within it. ``offsets_of`` names the dimension of packed sequences
    that an input of offsets cuts up: verification then lets it rise from 0 to that size.
    """

    example: Array
    dims: tuple[str | None, ...] = ()
    at_most: str | None = None
    offsets_of: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.example, np.ndarray):
            raise TypeError(f"Input: example must be an array; got {type(self.example).__name__}")
        if not isinstance(self.dims, tuple) or not all(
            name is None or isinstance(name, str) for name in self.dims
        ):
            raise TypeError(f"Input: dims must be a tuple of names and None; got {self.dims!r}")
        if self.dims and len(self.dims) != self.example.ndim:
            raise ValueError(
                f"Input: dims {self.dims} name {len(self.dims)} axes; the example has shape "
                f"{self.example.shape}"
            )
        if self.offsets_of is not None and (self.example.ndim != 1 or self.example.size < 2):
            raise ValueError(
                f"Input: offsets must be a vector of 2 or more; got shape {self.example.shape}"
            )
        if any(self.dims) and self.example.size == 0:
            raise ValueError(f"Input: the example is empty; got shape {self.example.shape}")

    @property
    def shape(self) -> tuple[int | str, ...]:
        names = self.dims or (None,) * self.example.ndim
        return tuple(
            size if name is None else name
            for name, size in zip(names, self.example.shape, strict=True)
        )

    def resized(self, sizes: Mapping[str, int]) -> Array:
        """Return the example repeated or cut along each dynamic dimension to the given sizes."""
        if self.offsets_of is not None:
            count = sizes.get((*self.dims, None)[0] or "", len(self.example))
            return np.linspace(0, sizes[self.offsets_of], count).astype(self.example.dtype)
        array = self.example
        for axis, name in enumerate(self.dims):
            if name is not None:
                array = array.take(np.arange(sizes[name]) % array.shape[axis], axis=axis)
        if self.at_most is not None:
            array = np.minimum(array, sizes[self.at_most]).astype(array.dtype)
        return np.ascontiguousarray(array).reshape(array.shape)  # NumPy makes rank 0 rank 1


def export(
    model: Callable[..., Any],
    inputs: Mapping[str, Input | Array],
    path: str | os.PathLike[str] | None = None,
    *,
    opset: int = 24,
    target: Target = "functions",
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
    attention_outputs:
        Whether the attention weights of each layer are outputs too: ``attention_weights_0``, ...;
        of a layer within a loop those of all steps, with the axis of steps in front.
    verify:
        Whether to run the result in ONNX Runtime, at three choices of the dynamic sizes other than
        the example's, and compare it with the model run on arrays. A model whose sizes depend on
        each other chooses them: ``verification_sizes()`` returns mappings of names to sizes.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    TraceError
        Where the model asks for a dynamic size.
    VerificationError
        When ONNX Runtime cannot run the file, or an output differs from the eager one by more
        than 1e-4 (and 1e-5 of its largest entry); the message gives the largest difference.
    ValueError
        For an unknown target, an opset out of range, or an operation without a form in it.
    OSError
        When the file cannot be written.

    Warns
    -----
    ExportWarning
        When attention is not written as the target says, or will not run as one would think.
    """
    needs("onnx", "onnx")
    import onnx

    if target not in get_args(Target):
        raise ValueError(f"export: target must be one of {get_args(Target)}; got {target!r}")
    oldest = OLDEST_ATTENTION if target == "onnx24" else OLDEST_OPSET
    newest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not oldest <= opset <= newest:
        where = f" for target {target!r}" if oldest != OLDEST_OPSET else ""
        raise ValueError(f"export: opset must lie in {oldest}..{newest}{where}; got {opset!r}")
    if not callable(model):
        raise TypeError(f"export: model must be a module or a function; got {model!r}")
    given = _check_inputs(inputs)
    place = None if path is None else Path(path)
    with contextlib.ExitStack() as stack:
        # Opened first: a path that cannot be written must not cost a trace and a check.
        file = stack.enter_context(atomic_write(place)) if place else None
        shared = Shared(opset, target, attention_outputs)
        proto = _trace(model, given, shared)
        if verify:
            _verify(model, proto, given)
        if shared.remarks:
            proto.metadata_props.add(key="pyattn.remarks", value=json.dumps(shared.remarks))
            told = "; ".join(f"{count} x {what}" for what, count in shared.remarks.items())
            warnings.warn(f"export: {told}", ExportWarning, stacklevel=2)
        if place and file:
            _write_companions(model, proto, place)
            file.write(proto.SerializeToString())
    return proto


def _check_inputs(inputs: Any) -> dict[str, Input]:
    """Return every input as an Input; raise where names and sizes contradict each other."""
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"export: inputs must map names to arrays or Inputs; got {type(inputs).__name__}"
        )
    if not inputs:
        raise ValueError("export: expected one input or more; got none")
    given = {k: v if isinstance(v, Input) else Input(v) for k, v in inputs.items()}
    sizes = _traced_sizes(given)
    for name, i in given.items():
        for what, dim in (("is at most", i.at_most), ("has offsets of", i.offsets_of)):
            if dim is not None and dim not in sizes:
                raise ValueError(f"export: input {name!r} {what} {dim!r}, which is no dim")
        if any(sizes[d] != n for d, n in zip(i.dims, i.example.shape, strict=False) if d):
            raise ValueError(
                f"export: input {name!r} of shape {i.example.shape} with dims {i.dims} contradicts "
                f"the sizes {sizes} of the inputs"
            )
    return given


def _traced_sizes(given: Mapping[str, Input]) -> dict[str, int]:
    """Return the size of each dynamic dimension in the examples; the first counts."""
    sizes: dict[str, int] = {}
    for i in given.values():
        for name, size in zip(i.dims, i.example.shape, strict=False):
            if name is not None:
                sizes.setdefault(name, size)
    return sizes


def _write_companions(model: Any, proto: onnx.ModelProto, target: Path) -> None:
    """Write what the model brings along beside the file, and say in the file's metadata where."""
    if not hasattr(model, "companion_files"):
        return
    for name, content in model.companion_files().items():
        beside = target.with_name(f"{target.stem}.{name}")
        with atomic_write(beside) as file:
            file.write(content)
        proto.metadata_props.add(key=f"pyattn.{Path(name).stem}", value=beside.name)


def _trace(
    model: Callable[..., Any], given: Mapping[str, Input], shared: Shared
) -> onnx.ModelProto:
    """Call the model on symbolic Tensors and return what that recorded as a ModelProto."""
    from onnx import ModelProto, checker, helper

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
    described = [(name, tensor.spec) for name, tensor in outputs.items()] + graph.attention
    initializers = graph.initializers()
    size = sum(len(tensor.raw_data) for tensor in initializers)
    if size >= 2**31:
        raise ValueError(f"export: {size} bytes of weights exceed the 2 GiB of one ONNX file")
    opsets = [helper.make_opsetid("", shared.opset)]
    if shared.functions:
        opsets.append(helper.make_opsetid(DOMAIN, 1))
    proto: ModelProto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            type(model).__name__,
            given_info,
            [value_info(name, spec, shared) for name, spec in described],
            initializers,
            # No value_info: told the shapes between nodes, ONNX Runtime 1.32 fuses additions with
            # normalisations, and MiniLM then takes 10 to 17 % longer.
        ),
        functions=list(shared.functions.values()),
        opset_imports=opsets,
        ir_version=max(10, helper.find_min_ir_version_for(opsets[:1])),
        producer_name="pyattn",
        producer_version=runtime.build_info()["version"],
    )
    checker.check_model(proto, full_check=True)
    return proto


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


def _verify(model: Callable[..., Any], proto: onnx.ModelProto, given: Mapping[str, Input]) -> None:
    """Run the file and the model at other sizes than the traced ones; raise where they differ."""
    from pyattn.ort import session

    try:
        run = session(proto, accelerate=False)
    except Exception as error:
        raise VerificationError(f"export: ONNX Runtime does not load the file: {error}") from error
    chosen = getattr(model, "verification_sizes", None)
    for sizes in chosen() if chosen else _other_sizes(given):
        arrays = {name: i.resized(sizes) for name, i in given.items()}
        where = f"at sizes {sizes}" if sizes else "at the sizes of the example"
        try:
            # Copies, because a model may write to its inputs: to a cache, for example.
            eager = _eager_outputs(model, {name: x.copy() for name, x in arrays.items()})
        except Exception as error:
            error.add_note(
                f"raised by the model while export verified it {where}; if an input holds "
                "lengths, bound them with Input(..., at_most=dimension)"
            )
            raise
        try:
            exported = run.run(list(eager), arrays)
        except Exception as error:
            raise VerificationError(f"export: ONNX Runtime failed {where}: {error}") from error
        for (name, expected), found in zip(eager.items(), exported, strict=True):
            _compare(f"output {name!r} {where}", expected, found)


def _compare(where: str, expected: Array, found: Array) -> None:
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        raise VerificationError(
            f"export: {where} is {found.dtype} {found.shape}; eager is {expected.dtype} "
            f"{expected.shape}"
        )
    difference = _largest_difference(expected, found)
    finite = np.abs(expected[np.isfinite(expected)]) if expected.dtype.kind == "f" else expected[:0]
    # Float32 has seven digits: entries above 10 cannot be held to the same absolute difference.
    bound = max(TOLERANCE, RELATIVE_TOLERANCE * float(finite.max(initial=0.0)))
    if not difference <= bound:
        raise VerificationError(
            f"export: {where} differs from eager by {difference:.3g}, more than {bound:.3g}"
        )


def _eager_outputs(model: Callable[..., Any], arrays: Mapping[str, Array]) -> dict[str, Array]:
    result = model(**arrays)
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, tuple):
        return {f"output_{i}": array for i, array in enumerate(result)}
    return {"output": result}


def _largest_difference(expected: Array, found: Array) -> float:
    if expected.dtype.kind != "f":
        return float(np.count_nonzero(expected != found))
    equal = (expected == found) | (np.isnan(expected) & np.isnan(found))
    difference = np.where(equal, 0.0, np.abs(expected.astype(np.float64) - found))
    return float(difference.max(initial=0.0))


def _other_sizes(given: Mapping[str, Input]) -> list[dict[str, int]]:
    """Return three choices of the dynamic sizes, small and unlike the example's."""
    traced = _traced_sizes(given)
    if not traced:
        return [{}]
    # One sequence has two offsets.
    offsets = {name for i in given.values() if i.offsets_of is not None for name in i.dims}
    return [
        {
            name: [n for n in (3, 1, 7, 2, 5, 4) if n != size][(k + 2 * j) % 5] + (name in offsets)
            for j, (name, size) in enumerate(traced.items())
        }
        for k in range(3)
    ]
