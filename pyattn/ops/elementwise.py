"""Elementwise operations, with NumPy's names and broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pyattn import _core
from pyattn.ops._rules import (
    BOOL,
    broadcast,
    join,
    require_bool,
    require_float,
    require_numbers,
    same_dtypes,
    same_spec,
    standard,
    unbroadcast,
)
from pyattn.tensor import Array, Node, Op, Operand, Spec, Value, apply, same_dtype


def _unary(
    name: str,
    evaluate: Callable[[Array], Array],
    derivative: Callable[[Array, Array], Array],
    onnx: str,
) -> Op:
    """Make the Op of a real function; ``derivative(x, y)`` is dy/dx given input and output."""

    def vjp(_: Node, g: tuple[Array], x: tuple[Array], y: tuple[Array]) -> tuple[Array]:
        return (g[0] * derivative(x[0], y[0]),)

    return Op(name, evaluate, same_spec(name, floating=True), vjp, standard(onnx))


def _sigmoid(x: Array) -> Array:
    half = x.dtype.type(0.5)
    result: Array = np.tanh(x * half) * half + half  # never overflows, unlike 1 / (1 + exp(-x))
    return result


_EXP = _unary("exp", np.exp, lambda _, y: y, "Exp")
_LOG = _unary("log", np.log, lambda x, _: 1 / x, "Log")
_SQRT = _unary("sqrt", np.sqrt, lambda _, y: 0.5 / y, "Sqrt")
_TANH = _unary("tanh", np.tanh, lambda _, y: 1 - y * y, "Tanh")
_SIGMOID = _unary("sigmoid", _sigmoid, lambda _, y: y * (1 - y), "Sigmoid")
_RELU = _unary("relu", lambda x: np.maximum(x, 0), lambda x, _: (x > 0).astype(x.dtype), "Relu")
_ERF = _unary(
    "erf", _core.erf, lambda x, _: np.exp(-x * x) * x.dtype.type(2 / np.sqrt(np.pi)), "Erf"
)
_NEGATIVE = _unary("negative", np.negative, lambda x, _: np.full_like(x, -1), "Neg")


def _binary(
    name: str,
    evaluate: Callable[[Array, Array], Array],
    partials: Callable[..., Any],
    onnx: str,
    require: Callable[..., Any] = require_numbers,
) -> Op:
    """Make the Op of a function of two values; ``partials(g, x, y, out)`` gives both gradients."""

    def shape(x: Spec, y: Spec) -> Spec:
        return Spec(broadcast(name, x.shape, y.shape), require(name, x, y))

    def vjp(
        _: Node, g: tuple[Array], inputs: tuple[Array, Array], out: tuple[Array]
    ) -> tuple[Array, ...]:
        gradients = partials(g[0], *inputs, out[0])
        return tuple(
            unbroadcast(gradient, x.shape) for gradient, x in zip(gradients, inputs, strict=True)
        )

    return Op(name, evaluate, shape, vjp, standard(onnx))


_ADD = _binary("add", np.add, lambda g, _x, _y, _: (g, g), "Add")
_SUBTRACT = _binary("subtract", np.subtract, lambda g, _x, _y, _: (g, -g), "Sub")
_MULTIPLY = _binary("multiply", np.multiply, lambda g, x, y, _: (g * y, g * x), "Mul")
_DIVIDE = _binary(
    "divide", np.divide, lambda g, _, y, out: (g / y, -g * out / y), "Div", require_float
)
_MAXIMUM = _binary("maximum", np.maximum, lambda g, x, y, _: (g * (x >= y), g * (x < y)), "Max")
_MINIMUM = _binary("minimum", np.minimum, lambda g, x, y, _: (g * (x <= y), g * (x > y)), "Min")


def _comparison(
    name: str,
    evaluate: Callable[[Array, Array], Array],
    onnx: str,
    require: Callable[..., Any] = require_numbers,
) -> Op:
    def shape(x: Spec, y: Spec) -> Spec:
        require(name, x, y)
        return Spec(broadcast(name, x.shape, y.shape), BOOL)

    return Op(name, evaluate, shape, onnx=standard(onnx))


_EQUAL = _comparison("equal", np.equal, "Equal")
_LESS = _comparison("less", np.less, "Less")
_LESS_EQUAL = _comparison("less_equal", np.less_equal, "LessOrEqual")
_GREATER = _comparison("greater", np.greater, "Greater")
_LOGICAL_AND = _comparison("logical_and", np.logical_and, "And", require_bool)
_LOGICAL_OR = _comparison("logical_or", np.logical_or, "Or", require_bool)


def _logical_not_shape(x: Spec) -> Spec:
    require_bool("logical_not", x)
    return x


_LOGICAL_NOT = Op("logical_not", np.logical_not, _logical_not_shape, onnx=standard("Not"))


def _power_shape(x: Spec, *, exponent: float) -> Spec:
    del exponent
    require_float("power", x)
    return x


def _power_vjp(node: Node, g: tuple[Array], x: tuple[Array], _: tuple[Array]) -> tuple[Array]:
    exponent = node.params["exponent"]
    if exponent == 0:
        return (np.zeros_like(x[0]),)
    return (g[0] * exponent * x[0] ** (exponent - 1),)


_POWER = Op(
    "power",
    lambda x, exponent: x**exponent,
    _power_shape,
    _power_vjp,
    lambda graph, node, x: graph.node(
        "Pow", x, graph.constant(np.array(node.params["exponent"], node.outputs[0].dtype))
    ),
)


def _where_shape(condition: Spec, x: Spec, y: Spec) -> Spec:
    if condition.dtype != BOOL:
        raise TypeError(f"{join('where', condition)}; the condition must be bool")
    return Spec(broadcast("where", condition.shape, x.shape, y.shape), same_dtypes("where", x, y))


def _where_vjp(
    _: Node, g: tuple[Array], inputs: tuple[Array, Array, Array], __: tuple[Array]
) -> tuple[None, Array, Array]:
    condition, x, y = inputs
    # A select, not a product: a NaN in the branch that was not taken must not come through.
    zero = np.zeros((), g[0].dtype)
    return (
        None,
        unbroadcast(np.where(condition, g[0], zero), x.shape),
        unbroadcast(np.where(condition, zero, g[0]), y.shape),
    )


_WHERE = Op("where", np.where, _where_shape, _where_vjp, standard("Where"))

_ASTYPE = Op(
    "astype",
    lambda x, dtype: x.astype(dtype),
    lambda x, dtype: Spec(x.shape, dtype),
    lambda _, g, x, __: (g[0].astype(x[0].dtype),),
    lambda graph, node, x: graph.node("Cast", x, to=node.params["dtype"]),
)


def add(x: Operand, y: Operand) -> Any:
    """Return ``x + y``."""
    return apply(_ADD, *same_dtype(x, y))


def subtract(x: Operand, y: Operand) -> Any:
    """Return ``x - y``."""
    return apply(_SUBTRACT, *same_dtype(x, y))


def multiply(x: Operand, y: Operand) -> Any:
    """Return ``x * y``."""
    return apply(_MULTIPLY, *same_dtype(x, y))


def divide(x: Operand, y: Operand) -> Any:
    """Return ``x / y``."""
    return apply(_DIVIDE, *same_dtype(x, y))


def maximum(x: Operand, y: Operand) -> Any:
    """Return the larger of ``x`` and ``y``; where they are equal the gradient goes to ``x``."""
    return apply(_MAXIMUM, *same_dtype(x, y))


def minimum(x: Operand, y: Operand) -> Any:
    """Return the smaller of ``x`` and ``y``; where they are equal the gradient goes to ``x``."""
    return apply(_MINIMUM, *same_dtype(x, y))


def power(x: Value, exponent: float) -> Any:
    """Return ``x ** exponent`` for a constant exponent."""
    return apply(_POWER, x, exponent=float(exponent))


def negative(x: Value) -> Any:
    """Return ``-x``."""
    return apply(_NEGATIVE, x)


def exp(x: Value) -> Any:
    """Return the exponential of ``x``."""
    return apply(_EXP, x)


def log(x: Value) -> Any:
    """Return the natural logarithm of ``x``."""
    return apply(_LOG, x)


def sqrt(x: Value) -> Any:
    """Return the square root of ``x``."""
    return apply(_SQRT, x)


def tanh(x: Value) -> Any:
    """Return the hyperbolic tangent of ``x``."""
    return apply(_TANH, x)


def sigmoid(x: Value) -> Any:
    """Return ``1 / (1 + exp(-x))``."""
    return apply(_SIGMOID, x)


def relu(x: Value) -> Any:
    """Return ``max(x, 0)``."""
    return apply(_RELU, x)


def erf(x: Value) -> Any:
    """Return the error function of ``x``."""
    return apply(_ERF, x)


def equal(x: Operand, y: Operand) -> Any:
    """Return, as booleans, where ``x == y``."""
    return apply(_EQUAL, *same_dtype(x, y))


def less(x: Operand, y: Operand) -> Any:
    """Return, as booleans, where ``x < y``."""
    return apply(_LESS, *same_dtype(x, y))


def less_equal(x: Operand, y: Operand) -> Any:
    """Return, as booleans, where ``x <= y``."""
    return apply(_LESS_EQUAL, *same_dtype(x, y))


def greater(x: Operand, y: Operand) -> Any:
    """Return, as booleans, where ``x > y``."""
    return apply(_GREATER, *same_dtype(x, y))


def logical_and(x: Value, y: Value) -> Any:
    """Return where both booleans hold."""
    return apply(_LOGICAL_AND, x, y)


def logical_or(x: Value, y: Value) -> Any:
    """Return where one boolean holds or both do."""
    return apply(_LOGICAL_OR, x, y)


def logical_not(x: Value) -> Any:
    """Return where a boolean does not hold."""
    return apply(_LOGICAL_NOT, x)


def where(condition: Value, x: Operand, y: Operand) -> Any:
    """Return ``x`` where ``condition`` holds and ``y`` elsewhere."""
    return apply(_WHERE, condition, *same_dtype(x, y))


def astype(x: Value, dtype: DTypeLike) -> Any:
    """Return ``x`` with another dtype."""
    return apply(_ASTYPE, x, dtype=np.dtype(dtype))
