"""A step repeated on a state: a plain loop on arrays, one ONNX ``Loop`` when traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from pyattn import interchange
from pyattn.ops._rules import BOOL, INT64
from pyattn.ops.elementwise import astype, logical_not
from pyattn.ops.shape import stack
from pyattn.tensor import (
    Array,
    Dim,
    Node,
    Op,
    Size,
    Spec,
    Tensor,
    TraceError,
    Value,
    apply,
    spec_of,
)
from pyattn.walk import topological

Step = Callable[[Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Body:
    """The trace of one step: the state it was given, and what it made of that."""

    state: tuple[Tensor, ...]
    next_state: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    more: Tensor  # whether another step may follow
    steps: Size

    @property
    def results(self) -> tuple[Tensor, ...]:
        return (self.more, *self.next_state, *self.outputs)

    def outer(self) -> list[Tensor]:
        """Return the traced Tensors that the step uses and the state has no part in."""
        inside: set[Node | Tensor] = set(self.state)
        used = list(self.results)
        for node in topological(self.results):
            if any(x is not None and x.source[0] in inside for x in node.inputs):
                inside.add(node)
                used += [x for x in node.inputs if x is not None]
        outer = [x for x in used if x.value is None and x.source[0] not in inside]
        return list({x.source: x for x in outer}.values())


def _eval(*_: Array, **__: Any) -> NoReturn:
    raise TraceError("loop: only a trace makes a node of it; arrays go through the step itself")


def _shape(*_: Spec, body: Body) -> tuple[Spec, ...]:
    stacked = [Spec((x.shape[0], body.steps, *x.shape[1:]), x.dtype) for x in body.outputs]
    return (*(x.spec for x in body.next_state), *stacked)


def _onnx(graph: Any, node: Node, steps: str, *names: str) -> list[str]:
    body: Body = node.params["body"]
    count, total = len(body.state), len(node.outputs)
    step_and_more = [Tensor.symbolic((), INT64), Tensor.symbolic((), BOOL)]
    inner, shown = graph.subgraph("step", [*step_and_more, *body.state], body.results)
    first = graph.constant(np.array(True))
    found = graph.node("Loop", steps, first, *names[:count], outputs=total + len(shown), body=inner)
    results = [found] if isinstance(found, str) else list(found)
    for weights, spec in zip(results[total:], shown, strict=True):
        graph.show(weights, Spec((body.steps, *spec.shape), spec.dtype))
    for place, x in enumerate(body.outputs, count):  # (steps, B, ...) to (B, steps, ...)
        axes = (1, 0, *range(2, x.ndim + 1))
        results[place] = graph.node("Transpose", results[place], perm=axes)
    return results[:total]


# Inputs: the number of steps, the initial state, then what the step uses from outside.
_LOOP = Op("loop", _eval, _shape, onnx=_onnx)


def loop(step: Step, state: Any, steps: int | Value, *, dim: str | None = None) -> tuple[Any, Any]:
    """Repeat ``state, outputs = step(state)`` and return the last state and all outputs.

    Parameters
    ----------
    step:
        A function of the state that returns ``(state, outputs)`` or ``(state, outputs, done)``,
        with ``done`` a boolean of rank 0: this step is the last if it holds. It has no effect but
        its result; what else it uses it may close over.
    state:
        An array or Tensor, or tuples of these, as deep as needed. Every step returns the same
        structure with the same shapes and dtypes.
    steps:
        How many steps at most: a positive integer, or an integer array or Tensor of rank 0.
    dim:
        Names the number of steps in an exported file, where it is known to a run only. Loops of one
        name make the same number of steps; by default each has a name of its own: ``steps``,
        ``steps_1``, ...

    Returns
    -------
    The state behind the last step, and the outputs ``(B, ...)`` of the steps stacked along axis 1:
    ``(B, steps, ...)``, in the structure that ``step`` gave them.

    Raises
    ------
    TypeError
        Where ``step`` returns something else, or ``steps`` is no integer.
    ValueError
        For ``steps`` below 1, a state that changes its structure, shape or dtype, outputs of
        rank 0.

    Notes
    -----
    With arrays this is a Python loop; with Tensors that need a gradient too, so the gradient goes
    back through every step. When traced it is one ONNX ``Loop`` whose body is one step; parameters
    and whatever else comes from outside are read there, not copied, and what does not depend on the
    state is computed once, before the loop.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> def double(x):
    ...     return 2.0 * x, x, pa.ops.all(pa.ops.greater(x, 3.0))
    >>> last, seen = pa.ops.loop(double, np.array([1.0, 2.0]), 9)
    >>> last.tolist(), seen.tolist()
    ([8.0, 16.0], [[1.0, 2.0, 4.0], [2.0, 4.0, 8.0]])
    """
    limit = _limit(steps)
    initial = leaves(state)
    if _traced([limit, *initial]):
        return _trace(step, state, limit, dim)
    collected: list[list[Any]] = []
    outputs: Any = ()
    for _ in range(int(limit if isinstance(limit, np.ndarray) else limit.numpy())):
        after, outputs, done = _call(step, state)
        if _traced([*leaves(after), *leaves(outputs), done]):
            return _trace(step, state, limit, dim)  # traced Tensors came from outside the state
        state = after
        collected.append(leaves(outputs))
        if done is not None and bool(done):
            break
    stacked = [stack(values, 1) for values in zip(*collected, strict=True)]
    return state, filled(outputs, iter(stacked))


def _limit(steps: Any) -> Value:
    """Return the number of steps as an int64 array or Tensor of rank 0, checked if it is known."""
    limit: Value = np.asarray(steps) if isinstance(steps, (int, np.integer)) else _native(steps)
    spec = spec_of(limit)
    if isinstance(steps, bool) or spec is None or spec.dtype.kind not in "iu":
        raise TypeError(f"loop: steps must be an integer; got {steps!r}")
    if spec.shape != ():
        raise ValueError(f"loop: steps must have rank 0; got shape {spec.shape}")
    known = limit.value if isinstance(limit, Tensor) else limit
    if known is not None and known < 1:
        raise ValueError(f"loop: steps must be positive; got {known}")
    return limit if spec.dtype == INT64 else astype(limit, INT64)


def _call(step: Step, state: Any) -> tuple[Any, Any, Any]:
    """Return the step's state, outputs and ``done`` or None, checked."""
    result = step(state)
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise TypeError(
            "loop: step must return (state, outputs) or (state, outputs, done); got "
            f"{type(result).__name__}" + (f" of {len(result)}" if isinstance(result, tuple) else "")
        )
    after, outputs, done = (*result, None)[:3]
    before, found = ([spec_of(_native(x)) for x in leaves(part)] for part in (state, after))
    if before != found:
        raise ValueError(
            f"loop: the state must keep its shapes and dtypes; got {', '.join(map(str, found))} "
            f"for {', '.join(map(str, before))}"
        )
    for output in leaves(outputs):
        spec = spec_of(_native(output))
        if spec is not None and spec.ndim == 0:
            raise ValueError(f"loop: outputs must be (B, ...) to be stacked; got {spec}")
    done = _native(done)
    ending = spec_of(done)
    if ending is not None and ending != Spec((), BOOL):
        raise TypeError(f"loop: done must be a boolean of rank 0; got {ending}")
    return after, outputs, done


def _trace(step: Step, state: Any, limit: Value, dim: str | None) -> tuple[Any, Any]:
    """Record one step, and the loop as one node."""
    initial = leaves(state)
    specs = [x.spec if isinstance(x, Tensor) else Spec(x.shape, x.dtype) for x in initial]
    symbols = [Tensor.symbolic(spec.shape, spec.dtype) for spec in specs]
    after, outputs, done = _call(step, filled(state, iter(symbols)))
    known = limit.value if isinstance(limit, Tensor) else limit
    size = Dim("steps", object()) if dim is None else Dim(dim)
    body = Body(
        tuple(symbols),
        tuple(map(_tensor, leaves(after))),
        tuple(map(_tensor, leaves(outputs))),
        _tensor(np.array(True) if done is None else logical_not(done)),
        int(known) if done is None and known is not None else size,
    )
    results = apply(_LOOP, limit, *initial, *body.outer(), body=body)
    last, stacked = results[: len(initial)], results[len(initial) :]
    return filled(after, iter(last)), filled(outputs, iter(stacked))


def _native(value: Any) -> Any:
    """Return another library's array as NumPy's, anything else as it is."""
    return interchange.as_ndarray("loop", value) if interchange.is_foreign(value) else value


def _tensor(value: Value) -> Tensor:
    return value if isinstance(value, Tensor) else Tensor(np.asarray(value))


def _traced(values: Sequence[Any]) -> bool:
    return any(isinstance(x, Tensor) and x.value is None for x in values)


def leaves(value: Any) -> list[Any]:
    """Return what a structure of tuples holds, from left to right; None holds nothing."""
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [] if value is None else [value]


def filled(value: Any, others: Iterator[Any]) -> Any:
    """Return the same structure around other leaves."""
    if isinstance(value, tuple):
        make = getattr(value, "_make", tuple)
        return make([filled(item, others) for item in value])
    return None if value is None else next(others)
