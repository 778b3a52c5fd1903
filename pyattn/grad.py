"""Reverse-mode differentiation: one walk over the recorded nodes, from the outputs back.

The walk knows no operation by name. It reads each node's ``vjp``; where there is none it
differentiates ``expand`` on the spot, so that a fused operation has a gradient from the start and
the intermediate values of its expansion live only while that one node is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pyattn.tensor import Array, Node, Tensor
from pyattn.walk import topological


@runtime_checkable
class Parametrized(Protocol):
    """What a model must offer to be differentiated or exported: its parameters, by name."""

    def parameters(self) -> dict[str, Any]: ...

    def replace(self, values: Mapping[str, Any]) -> Any: ...


def pullback(
    outputs: Sequence[Tensor], cotangents: Sequence[Array | None], inputs: Sequence[Tensor]
) -> list[Array]:
    """Return, for each of ``inputs``, the gradient of ``sum(cotangent * output)``.

    A cotangent of None stands for zeros. An input that the outputs do not depend on gets zeros.
    """
    sums: dict[tuple[Node | Tensor, int], Array] = {}

    def add(tensor: Tensor, gradient: Array) -> None:
        key = tensor.source
        sums[key] = sums[key] + gradient if key in sums else gradient

    for tensor, cotangent in zip(outputs, cotangents, strict=True):
        if cotangent is not None and tensor.requires_grad:
            add(tensor, cotangent)
    for node in reversed(topological(outputs)):
        given = [sums.pop((node, i), None) for i in range(len(node.outputs))]
        if all(g is None for g in given):
            continue
        for x, gradient in zip(node.inputs, _gradients(node, given), strict=True):
            if x is not None and x.requires_grad and gradient is not None:
                add(x, gradient)
    return [sums[x.source] if x.source in sums else np.zeros_like(x.numpy()) for x in inputs]


def _gradients(node: Node, given: list[Array | None]) -> Sequence[Array | None]:
    if node.op.vjp is None:
        return _through_expansion(node, given)
    values = node.values or ()
    # Zeros of stride 0: what a node keeps for its gradient may be large.
    filled = tuple(
        np.broadcast_to(np.zeros((), value.dtype), value.shape) if g is None else g
        for g, value in zip(given, values, strict=True)
    )
    arrays = tuple(None if x is None else x.value for x in node.inputs)
    result: Any = node.op.vjp(node, filled, arrays, values)
    return _through_expansion(node, given) if result is NotImplemented else result


def _through_expansion(node: Node, given: list[Array | None]) -> list[Array | None]:
    if node.op.expand is None:
        raise TypeError(f"{node.op.name} has no gradient")
    leaves = [
        None if x is None else Tensor(x.numpy(), requires_grad=x.requires_grad) for x in node.inputs
    ]
    outputs = node.op.expand(*leaves, **node.params)
    gradients = iter(pullback(_as_tuple(outputs), given, [x for x in leaves if x is not None]))
    return [None if x is None else next(gradients) for x in leaves]


class _Tracked:
    """An argument with its float arrays replaced by Tensors that record."""

    def __init__(self, argument: Any, wrap: Callable[[Array], Tensor]) -> None:
        self.leaves: list[Tensor] = []
        self._wrap = wrap
        self.value = self._replace(argument)
        self._argument = argument

    def _replace(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.requires_grad:
                raise TypeError("grad: gradients of gradients are not supported")
            value = value.numpy()
        if isinstance(value, np.ndarray):
            self.leaves.append(self._wrap(value))
            return self.leaves[-1]
        if isinstance(value, Parametrized):
            return value.replace({k: self._replace(v) for k, v in value.parameters().items()})
        if isinstance(value, Mapping):
            return {k: self._replace(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return _like(value, [self._replace(v) for v in value])
        raise TypeError(
            "grad: an argument to differentiate must be a float array, a Tensor, a module, or a "
            f"list, tuple or mapping of these; got {type(value).__name__}"
        )

    def gradient(self, gradients: Iterable[Any]) -> Any:
        """Return the gradients in the argument's own structure, a module as a dict of names."""
        return self._fill(self._argument, iter(gradients))

    def _fill(self, value: Any, gradients: Any) -> Any:
        if isinstance(value, (np.ndarray, Tensor)):
            return next(gradients)
        if isinstance(value, Parametrized):
            value = value.parameters()
        if isinstance(value, Mapping):
            return {k: self._fill(v, gradients) for k, v in value.items()}
        return _like(value, [self._fill(v, gradients) for v in value])


def _like(sequence: Any, items: list[Any]) -> Any:
    """Return the items as a sequence of the same type, a namedtuple included."""
    make = getattr(sequence, "_make", type(sequence))
    return make(items)


def _detached(value: Any) -> Any:
    """Replace the Tensors in a structure by their arrays, so that the graph can be freed."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, Mapping):
        return {k: _detached(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return _like(value, [_detached(v) for v in value])
    return value


def _owned(gradients: Iterable[Array]) -> Iterator[Array]:
    """Copy what shares its memory with another array: callers may change a gradient in place."""
    seen: set[int] = set()
    for gradient in gradients:
        owner = gradient
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        # All of an array in another shape is as good as the array itself.
        whole = owner.flags.owndata and gradient.flags.writeable and gradient.size == owner.size
        alone = whole and id(owner) not in seen
        seen.add(id(owner))
        yield gradient if alone else gradient.copy()


def value_and_grad(
    fn: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False
) -> Callable[..., Any]:
    """Return a function that computes ``fn`` and its gradient.

    Parameters
    ----------
    fn:
        A function of positional arguments that returns a scalar, or ``(scalar, aux)`` with
        ``has_aux``.
    argnums:
        Which arguments to differentiate: float arrays, modules, or lists, tuples and mappings of
        these. ``fn`` receives them with Tensors inside; a module arrives as a copy.

    Returns
    -------
    A function that returns ``(value, gradient)``: the gradient has the structure of the argument
    (a dict from parameter names for a module), and is a tuple when ``argnums`` is a sequence.
    With ``has_aux``, value is ``(value, aux)``, and the Tensors in aux are arrays.

    Raises
    ------
    TypeError
        For an argument without float arrays, or when ``fn`` returns no scalar Tensor.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> x = np.array([1.0, 2.0])
    >>> value, gradient = pa.value_and_grad(lambda x: pa.ops.sum(x * x))(x)
    >>> float(value), gradient.tolist()
    (5.0, [2.0, 4.0])
    """
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def differentiated(*args: Any) -> Any:
        if not all(0 <= i < len(args) for i in chosen):
            raise TypeError(f"grad: argnums {argnums} for {len(args)} arguments")
        tracked = {
            i: _Tracked(args[i], lambda array: Tensor(array, requires_grad=True)) for i in chosen
        }
        result = fn(*[tracked[i].value if i in tracked else arg for i, arg in enumerate(args)])
        loss, aux = result if has_aux else (result, None)
        if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
            raise TypeError(
                f"grad: the function must return a scalar that depends on its argument; got {loss}"
            )
        leaves = [leaf for i in chosen for leaf in tracked[i].leaves]
        gradients = _owned(pullback([loss], [np.ones((), loss.dtype)], leaves))
        by_argument = tuple(tracked[i].gradient(gradients) for i in chosen)
        value = (loss.numpy(), _detached(aux)) if has_aux else loss.numpy()
        return value, by_argument[0] if isinstance(argnums, int) else by_argument

    return differentiated


def grad(fn: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """Return a function that computes the gradient of ``fn``; see :func:`value_and_grad`."""
    both = value_and_grad(fn, argnums)
    return lambda *args: both(*args)[1]


def check_grad(
    fn: Callable[..., Any],
    *args: Any,
    rng: np.random.Generator | None = None,
    directions: int = 3,
    step: float = 1e-5,
    tolerance: float = 1e-6,
) -> float:
    """Compare the gradient of ``fn`` with central differences along random directions, in float64.

    ``fn`` may return an array of any shape, or a tuple; it is contracted with random numbers.
    Returns the largest relative error found; raises AssertionError above ``tolerance``.
    """
    rng = rng or np.random.default_rng(0)
    tracked = [_Tracked(arg, lambda array: _wide(array, requires_grad=True)) for arg in args]
    outputs = _as_tuple(fn(*[t.value for t in tracked]))
    weights = [rng.standard_normal(out.numpy().shape) for out in outputs]
    leaves = [leaf for t in tracked for leaf in t.leaves]
    gradients = pullback(outputs, weights, leaves)

    def value(along: Sequence[Array], distance: float) -> float:
        moves = iter(along)
        moved = [_Tracked(arg, lambda a: _wide(a + distance * next(moves))) for arg in args]
        results = _as_tuple(fn(*[m.value for m in moved]))
        return _dot(weights, [result.numpy() for result in results])

    # What derivatives along random directions come to; one that is small by chance is no measure.
    size = math.sqrt(_dot(gradients, gradients))
    worst = 0.0
    for _ in range(directions):
        along = [rng.standard_normal(leaf.numpy().shape) for leaf in leaves]
        exact = _dot(gradients, along)
        estimate = (value(along, step) - value(along, -step)) / (2 * step)
        worst = max(worst, abs(exact - estimate) / max(abs(exact), abs(estimate), size, 1e-3))
    if not worst <= tolerance:
        raise AssertionError(f"check_grad: relative error {worst:.2e} exceeds {tolerance:.0e}")
    return worst


def _wide(array: Array, *, requires_grad: bool = False) -> Tensor:
    if array.dtype.kind != "f":
        raise TypeError(f"check_grad: arguments must be floats; got dtype {array.dtype}")
    return Tensor(np.asarray(array, np.float64), requires_grad=requires_grad)


def _dot(left: Sequence[Array], right: Sequence[Array]) -> float:
    return sum(float(np.vdot(a, b)) for a, b in zip(left, right, strict=True))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
