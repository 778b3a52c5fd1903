"""Values, operations and the one graph that everything else reads.

A function of :mod:`pyattn.ops` does three jobs with one definition. Given NumPy arrays it computes
and returns an array. Given a :class:`Tensor` that needs a gradient it computes and records a
:class:`Node`. Given a symbolic Tensor (a shape and a dtype, no numbers) it only records. The
gradient (:mod:`pyattn.grad`) and the exporter (:mod:`pyattn.export`) walk the recorded nodes and
read the rules that each :class:`Op` carries. There is no global mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pyattn import interchange
from pyattn.dims import Dim as Dim
from pyattn.dims import Size as Size
from pyattn.dims import TraceError as TraceError
from pyattn.dtypes import is_floating

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of a value before it is computed: its shape and its dtype."""

    shape: tuple[Size, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.shape))
        return f"{self.dtype}({sizes}{',' if self.ndim == 1 else ''})"


@dataclass(frozen=True, eq=False)
class Op:
    """An operation and its rules, side by side.

    Parameters
    ----------
    name:
        The key in :data:`REGISTRY`, also used in error messages.
    eval:
        ``eval(*arrays, **params)`` computes on NumPy arrays.
    shape:
        ``shape(*specs, **params)`` checks the inputs and returns the output's :class:`Spec`, or a
        tuple of them. An absent optional input is ``None`` here as everywhere.
    vjp:
        ``vjp(node, cotangents, inputs, outputs)`` returns one gradient (or None) per input.
        Without it, or where it returns NotImplemented, the gradient is that of ``expand``.
    onnx:
        ``onnx(graph, node, *names)`` adds standard ONNX nodes and returns the output name(s), or
        None where the graph's opset has no such operator: then ``expand`` is exported.
    expand:
        The same mathematics in smaller operations.
    function:
        For an attention mechanism: ``function(node)`` names the model-local ONNX function whose
        inputs are called ``arguments``; ``attributes`` lists the float parameters that travel as
        attributes of its call. A mechanism has a parameter ``aux``: the names of the outputs behind
        the first, if there are any, ``"weights"`` among them if asked for.
    optional:
        How many of the last inputs may be None.
    has_weights:
        Whether ``aux`` of a mechanism knows ``"weights"``.
    """

    name: str
    eval: Callable[..., Any]
    shape: Callable[..., Any]
    vjp: Callable[..., Any] | None = None
    onnx: Callable[..., Any] | None = None
    expand: Callable[..., Any] | None = None
    function: Callable[[Node], str] | None = None
    arguments: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    optional: int = 0
    has_weights: bool = True

    def __post_init__(self) -> None:
        if self.name in REGISTRY:
            raise ValueError(f"an operation named {self.name!r} exists already")
        REGISTRY[self.name] = self


REGISTRY: dict[str, Op] = {}


@dataclass(eq=False, slots=True)
class Node:
    """One application of an operation: its inputs, its parameters, the specs of its outputs."""

    op: Op
    inputs: tuple[Tensor | None, ...]
    params: dict[str, Any]
    outputs: tuple[Spec, ...]
    values: tuple[Array, ...] | None = field(default=None, repr=False)

    def required(self, index: int) -> Tensor:
        """Return an input that is never left out."""
        tensor = self.inputs[index]
        if tensor is None:
            raise ValueError(f"{self.op.name}: input {index} is missing")
        return tensor


class Tensor:
    """A value in a recorded computation: an array, or only a shape and a dtype while tracing.

    ``Tensor(array)`` wraps an array without copying it. Arithmetic works as on NumPy arrays, with
    one rule of its own: dtypes are never mixed, and a Python number takes the Tensor's dtype.
    """

    __slots__ = ("index", "name", "node", "requires_grad", "spec", "value")
    __array_ufunc__ = None  # makes ``array * tensor`` call Tensor.__rmul__

    def __init__(
        self, value: Array, *, requires_grad: bool = False, name: str | None = None
    ) -> None:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"Tensor: value must be a NumPy array; got {type(value).__name__}")
        if requires_grad and not is_floating(value.dtype):
            raise TypeError(f"Tensor: only floats have gradients; got dtype {value.dtype}")
        self.value: Array | None = value
        self.spec = Spec(value.shape, value.dtype)
        self.node: Node | None = None
        self.index = 0
        self.requires_grad = requires_grad
        self.name = name

    @classmethod
    def symbolic(
        cls,
        shape: Sequence[Size | str],
        dtype: DTypeLike,
        *,
        node: Node | None = None,
        index: int = 0,
        name: str | None = None,
    ) -> Tensor:
        """Return a Tensor without numbers; a string in ``shape`` names a dynamic dimension."""
        self = cls.__new__(cls)
        sizes = tuple(Dim(size) if isinstance(size, str) else size for size in shape)
        self.value, self.spec = None, Spec(sizes, np.dtype(dtype))
        self.node, self.index, self.requires_grad, self.name = node, index, False, name
        return self

    @property
    def source(self) -> tuple[Node | Tensor, int]:
        """What this is a result of: a node and which of its outputs, or for a leaf itself."""
        return self.node or self, self.index

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.spec.shape

    @property
    def ndim(self) -> int:
        return self.spec.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.spec.dtype

    def numpy(self) -> Array:
        """Return the array; raises :class:`TraceError` on a symbolic Tensor."""
        if self.value is None:
            raise TraceError(f"Tensor {self} is symbolic: it has no numbers while tracing")
        return self.value

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a Tensor does not turn into an array by itself; call .numpy()")

    def __bool__(self) -> bool:
        return bool(self.numpy())

    def __float__(self) -> float:
        return float(self.numpy())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a Tensor of rank 0")
        return self.shape[0].__index__()

    def __repr__(self) -> str:
        kind = "symbolic" if self.value is None else "requires_grad" if self.requires_grad else ""
        return f"Tensor<{self.spec}{' ' if kind else ''}{kind}>"

    def __add__(self, other: Operand) -> Tensor:
        return _binary("add", self, other)

    def __radd__(self, other: Any) -> Tensor:
        return _binary("add", other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return _binary("subtract", self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _binary("subtract", other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return _binary("multiply", self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return _binary("multiply", other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return _binary("divide", self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _binary("divide", other, self)

    def __matmul__(self, other: Array | Tensor) -> Tensor:
        return cast("Tensor", apply(REGISTRY["matmul"], self, other))

    def __rmatmul__(self, other: Any) -> Tensor:
        return cast("Tensor", apply(REGISTRY["matmul"], other, self))

    def __neg__(self) -> Tensor:
        return cast("Tensor", apply(REGISTRY["negative"], self))

    def __pow__(self, exponent: float) -> Tensor:
        return cast("Tensor", apply(REGISTRY["power"], self, exponent=float(exponent)))

    def __getitem__(self, index: Any) -> Tensor:
        items = index if isinstance(index, tuple) else (index,)
        return cast("Tensor", apply(REGISTRY["getitem"], self, index=items))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))  # without it Python would count up for ever


Value: TypeAlias = Array | Tensor
Operand: TypeAlias = Array | Tensor | float | int


def _binary(name: str, left: Operand, right: Operand) -> Tensor:
    return cast("Tensor", apply(REGISTRY[name], *same_dtype(left, right)))


def same_dtype(left: Operand, right: Operand) -> tuple[Value, Value]:
    """Give a Python or NumPy number the dtype of the array or Tensor that it is combined with."""
    if isinstance(left, (np.ndarray, Tensor)):
        return left, _like(right, left)
    if isinstance(right, (np.ndarray, Tensor)):
        return _like(left, right), right
    if interchange.is_foreign(left):
        return cast("Value", left), _like_foreign(right, left)
    if interchange.is_foreign(right):
        return _like_foreign(left, right), cast("Value", right)
    raise TypeError(
        "expected a NumPy array or a Tensor among the operands; got "
        f"{type(left).__name__} and {type(right).__name__}"
    )


def _like(number: Operand, other: Value) -> Value:
    if isinstance(number, (np.ndarray, Tensor)):
        return number
    if not isinstance(number, (int, float, np.generic)):
        if interchange.is_foreign(number):
            return cast("Value", number)
        raise TypeError(f"expected a NumPy array, Tensor or number; got {type(number).__name__}")
    if other.dtype.kind in "iub" and isinstance(number, (float, np.floating)):
        raise TypeError(f"a float does not combine with dtype {other.dtype}; use ops.astype")
    return np.asarray(number, other.dtype)


def _like_foreign(number: Any, other: Any) -> Any:
    made = _like(number, interchange.as_ndarray("operand", other))
    return number if made is number else interchange.like(other, made)


def spec_of(value: Any) -> Spec | None:
    """Return the Spec of an array or a Tensor, None for None; TypeError for anything else."""
    if isinstance(value, np.ndarray):
        return Spec(value.shape, value.dtype)
    if isinstance(value, Tensor):
        return value.spec
    if value is None:
        return None
    raise TypeError(f"expected a NumPy array or a Tensor; got {type(value).__name__}")


def rank_of(name: str, value: Any) -> int:
    """Return the number of axes; TypeError, which begins with ``name``, for no array or Tensor."""
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim
    if interchange.is_foreign(value):
        return interchange.as_ndarray(name, value).ndim
    raise TypeError(f"{name}: expected a NumPy array or a Tensor; got {type(value).__name__}")


def apply(op: Op, *inputs: Value | None, **params: Any) -> Any:
    """Apply ``op``: arrays in, arrays out; as soon as one input is a Tensor, Tensors out.

    Arrays of another library give arrays of that library.
    """
    required = len(inputs) - op.optional
    for i, x in enumerate(inputs):
        if not (isinstance(x, (np.ndarray, Tensor)) or (x is None and i >= required)):
            if interchange.is_foreign(x):
                return _apply_foreign(op, inputs, params)
            rank_of(op.name, x)  # raises
    specs = op.shape(*[spec_of(x) for x in inputs], **params)
    if not any(isinstance(x, Tensor) for x in inputs):
        value = op.eval(*inputs, **params)
        # NumPy makes a number of an array of rank 0; here it stays an array.
        return value if isinstance(value, tuple) else np.asarray(value)
    tensors = tuple(Tensor(x) if isinstance(x, np.ndarray) else x for x in inputs)
    outputs = specs if isinstance(specs, tuple) else (specs,)
    node = Node(op, tensors, params, outputs)
    if any(x is not None and x.value is None for x in tensors):
        results = tuple(
            Tensor.symbolic(spec.shape, spec.dtype, node=node, index=i)
            for i, spec in enumerate(outputs)
        )
    else:
        results = _evaluate(node)
    return results if isinstance(specs, tuple) else results[0]


def _apply_foreign(op: Op, inputs: tuple[Any, ...], params: dict[str, Any]) -> Any:
    names = op.arguments or tuple(f"input {i}" for i in range(len(inputs)))
    return interchange.through(
        op.name,
        lambda views: apply(op, *views.values(), **params),
        dict(zip(names, inputs, strict=True)),
    )


def _evaluate(node: Node) -> tuple[Tensor, ...]:
    value = node.op.eval(*[x if x is None else x.value for x in node.inputs], **node.params)
    values = value if isinstance(value, tuple) else (value,)
    tracked = any(x is not None and x.requires_grad for x in node.inputs)
    if tracked:
        node.values = values
    results = []
    for i, array in enumerate(values):
        result = Tensor(np.asarray(array))
        if tracked and is_floating(result.dtype):
            result.node, result.index, result.requires_grad = node, i, True
        results.append(result)
    return tuple(results)
