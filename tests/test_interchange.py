"""Arrays of other libraries in, the same kind out; here the library is one written for tests."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import interchange, ops
from tests import dlpack_exporter
from tests.dlpack_exporter import LIVE, Exported, FastExported, OldExported, ReadableOnly

KINDS = [Exported, OldExported, FastExported]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    dlpack_exporter.deleted.clear()
    yield
    if LIVE:
        gc.collect()
    assert not LIVE


@pytest.fixture
def heads(rng: np.random.Generator) -> list[Any]:
    """A query, a key and a value of four axes."""
    shapes = ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 3))
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def same(kind: type, result: Any, expected: Any) -> bool:
    return type(result) is kind and np.array_equal(result.array, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_dot_product_attention(kind: Any, heads: list[Any]) -> None:
    options = {"attn_mask": np.arange(7) < 5, "kv_lengths": np.array([4, 7])}
    expected = pa.scaled_dot_product_attention(*heads, **options, aux=("lse", "weights"))
    wrapped = {name: Exported(option) for name, option in options.items()}
    found = pa.scaled_dot_product_attention(*map(kind, heads), **wrapped, aux=("lse", "weights"))
    assert isinstance(found, tuple)
    assert all(same(kind, f, e) for f, e in zip(found, expected, strict=True))
    alone = pa.scaled_dot_product_attention(*map(kind, heads), **wrapped)
    assert same(kind, alone, expected[0])


def test_the_other_mechanisms(rng: np.random.Generator) -> None:
    query, key, value = (rng.standard_normal((2, n, 6), dtype=np.float32) for n in (3, 4, 4))
    v, weight = rng.standard_normal(6, dtype=np.float32), np.eye(6, dtype=np.float32)
    mask, lengths = rng.random((3, 4)) < 0.7, np.array([2, 4])
    additive: Any = ([query, key, value, v], {"bias": v, "kv_lengths": lengths, "attn_mask": mask})
    luong: Any = ([query, key], {"score": "general", "weight": weight, "kv_lengths": lengths})
    for function, (arrays, options) in (
        (pa.additive_attention, additive),
        (pa.luong_attention, luong),
    ):
        expected = function(*arrays, **options)
        wrapped = {k: Exported(o) if isinstance(o, np.ndarray) else o for k, o in options.items()}
        assert same(Exported, function(*map(Exported, arrays), **wrapped), expected)
        found = function(arrays[0], *map(Exported, arrays[1:]), **wrapped)
        assert type(found) is np.ndarray
        assert np.array_equal(found, expected)


def test_the_query_decides(heads: list[Any]) -> None:
    query, key, value = heads
    expected = pa.scaled_dot_product_attention(*heads)
    found = pa.scaled_dot_product_attention(query, Exported(key), value)
    assert type(found) is np.ndarray
    assert np.array_equal(found, expected)
    tracked = pa.Tensor(query, requires_grad=True)
    for result in (
        pa.scaled_dot_product_attention(tracked, Exported(key), Exported(value)),
        pa.scaled_dot_product_attention(Exported(query), key, pa.Tensor(value)),
    ):
        assert isinstance(result, pa.Tensor)
        assert np.array_equal(result.numpy(), expected)


X = np.arange(12, dtype=np.float32).reshape(3, 4)
OPS: dict[str, Callable[[Any], Any]] = {
    "number after": lambda x: ops.add(x, 1),
    "number before": lambda x: ops.subtract(1.5, x),
    "two": lambda x: ops.multiply(x, x),
    "numpy after": lambda x: ops.divide(x, X + 1),
    "axis": lambda x: ops.sum(x, -1),
    "softmax": lambda x: ops.softmax(x),
    "where": lambda x: ops.where(ops.greater(x, 3), x, 0.0),
    "linear": lambda x: ops.linear(x, X, None),
    "concat": lambda x: ops.concat([x, X], 0),
    "transpose": lambda x: ops.transpose(x, (1, 0)),
    "getitem": lambda x: ops.getitem(x, (slice(None), 2)),
    "expand_dims": lambda x: ops.expand_dims(x, 1),
    "rank 0": lambda x: ops.max(x),
    "causal": lambda x: ops.causal_mask(x, x),
    "take": lambda x: ops.take(x, np.array([2, 0])),
    "norm": lambda x: ops.layer_norm(x, X[0], X[1]),
    "zeros": lambda x: ops.zeros_like(x),
    "take along": lambda x: ops.take_along(x, np.array([[0, 1], [2, 2], [1, 0]])),
    "scatter": lambda x: ops.scatter_add(x, np.array([[0], [2], [2]]), X[:, :1]),
    "loop": lambda x: ops.loop(lambda y: (ops.add(y, 1.0), y, ops.all(ops.greater(y, x))), x, 3)[1],
    "dropout": lambda x: ops.dropout(x, 0.5, np.random.default_rng(0)),
}


@pytest.mark.parametrize("name", OPS)
def test_operations(name: str) -> None:
    expected, found = OPS[name](X), OPS[name](Exported(X))
    assert isinstance(found, Exported)
    assert np.array_equal(found.array, expected)
    assert found.array.dtype == expected.dtype


def test_no_copy_on_the_way_in_nor_out() -> None:
    array = X.copy()
    view = interchange.as_ndarray("f: x", Exported(array))
    view[0, 0] = 42
    assert array[0, 0] == 42
    turned = ops.transpose(Exported(array), (1, 0)).array
    assert turned.ctypes.data == array.ctypes.data
    back = interchange.like(Exported(array), array)
    assert back.array.ctypes.data == array.ctypes.data


def test_what_comes_through_unchanged_is_the_same_object() -> None:
    source = Exported(X)
    assert ops.dropout(source, 0.5, None) is source
    assert interchange.through("f", lambda views: views["x"], {"x": source}) is source
    assert interchange.as_ndarray("f: x", X) is X
    assert interchange.like(X, X) is X
    tensor = pa.Tensor(X)
    assert interchange.like(source, tensor) is tensor


def test_a_library_without_strided_arrays_gets_a_copy() -> None:
    class Compact(Exported):
        def __array_namespace__(self) -> Any:
            make = super().__array_namespace__().from_dlpack

            def from_dlpack(other: Any) -> Any:
                result = make(other)
                if not result.array.flags.c_contiguous:
                    raise RuntimeError("only compact arrays")
                return result

            return type("", (), {"from_dlpack": staticmethod(from_dlpack)})

    assert same(Compact, ops.transpose(Compact(X), (1, 0)), X.T)


def fill(x: Any, value: float, *, out: Any = None) -> Any:
    """A function with ``out=``, as :func:`interchange.call` expects it."""
    if not all(isinstance(a, (np.ndarray, type(None))) for a in (x, out)):
        unrelated = value
        return interchange.call(fill, locals() | {"unrelated": unrelated})
    result = np.empty_like(x) if out is None else interchange.writable_ndarray("fill: out", out)
    result[...] = value
    return result


def test_results_are_written_into_the_callers_array() -> None:
    out = Exported(X.copy())
    for x in (Exported(X), X):
        assert fill(x, 5.0, out=out) is out
        assert (out.array == 5).all()
    assert same(Exported, fill(Exported(X), 6.0), np.full_like(X, 6))
    with pytest.raises(ValueError, match="fill: out is read-only; got ndarray"):
        fill(Exported(X), 5.0, out=Exported(X, read_only=True))


def test_writable_ndarray() -> None:
    array = X.copy()
    interchange.writable_ndarray("f: out", Exported(array))[0] = 7
    assert (array[0] == 7).all()
    for source in (Exported(array, read_only=True), OldExported(array)):
        with pytest.raises(ValueError, match=r"^f: out is read-only; got .*Exported \(3, 4\)"):
            interchange.writable_ndarray("f: out", source)


class Differentiable(Exported):
    requires_grad = True


class Negated(Exported):
    def is_neg(self) -> bool:
        return True


class Traced(Exported):
    def __dlpack__(self, **_: Any) -> Any:
        raise TypeError("no value in a trace\nwith a second line")


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "list": ([[1.0]], TypeError, " must be a NumPy array or a Tensor; got list"),
    "device": (lambda a: Exported(a, device=(2, 0)), ValueError, ": must be in the memory of the"),
    "dtype": (lambda a: Exported(a, code=5), TypeError, ": the DLPack dtype with code 5, 32 bits"),
    "gradient": (Differentiable, ValueError, r" requires a gradient.*\.detach\(\)"),
    "negated": (Negated, ValueError, " is negated lazily"),
    "traced": (Traced, TypeError, ": no value in a trace$"),
    "exchange": (lambda a: FastExported(a, code=99), ValueError, ": the array's DLPack exchange"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_function_and_the_argument(name: str, heads: list[Any]) -> None:
    make, error, message = BAD[name]
    query, key, value = map(Exported, heads)
    bad = make(heads[1]) if callable(make) else make
    with pytest.raises(error, match="^scaled_dot_product_attention: key" + message):
        pa.scaled_dot_product_attention(query, bad, value)
    del query, key, value
    if name != "list":
        with pytest.raises(error, match="^softmax: input 0" + message):
            ops.softmax(bad)


def test_checks_of_shapes_and_dtypes_are_the_same(heads: list[Any]) -> None:
    for args in (
        (heads[0], heads[1][..., :4], heads[2]),
        (heads[0], heads[1].astype("f8"), heads[2]),
    ):
        with pytest.raises((TypeError, ValueError)) as eager:
            pa.scaled_dot_product_attention(*args)
        with pytest.raises(type(eager.value)) as foreign:
            pa.scaled_dot_product_attention(*map(Exported, args))
        assert str(eager.value) == str(foreign.value)


def test_a_library_that_cannot_take_results_is_told_before_the_work(heads: list[Any]) -> None:
    query, key, value = heads
    found = pa.scaled_dot_product_attention(query, ReadableOnly(key), value)
    assert np.array_equal(found, pa.scaled_dot_product_attention(*heads))
    with pytest.raises(TypeError, match="ReadableOnly can be read but not made"):
        interchange.through("f", lambda _: pytest.fail("called"), {"x": ReadableOnly(query)})


def test_results_outlive_the_arguments_and_the_other_way_round(heads: list[Any]) -> None:
    arrays = [Exported(a) for a in heads]
    result = pa.scaled_dot_product_attention(*arrays)
    expected = result.array.copy()
    gc.collect()
    assert len(dlpack_exporter.deleted) == 3
    assert not LIVE
    del arrays
    np.empty_like(expected)[...] = np.nan
    assert np.array_equal(result.array, expected)
