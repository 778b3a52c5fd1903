"""DLPack in and out: the same memory, deleted once, and a clear error for what cannot be read."""

from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pyattn import _core
from tests import dlpack_exporter
from tests.dlpack_exporter import LIVE, Exported, FastExported, OldExported

DTYPES = ["f4", "f8", "f2", ml_dtypes.bfloat16, "?", "i4", "i8", "u1", "i2", "u8"]
LAYOUTS: dict[str, Any] = {
    "C": lambda a: a,
    "Fortran": lambda a: a.T,
    "strided": lambda a: a[:, 1::2],
    "backwards": lambda a: a[::-1, :, ::-1],
    "broadcast": lambda a: np.broadcast_to(a[0], (5, *a.shape[1:])),
    "empty": lambda a: a[:, :0],
    "rank 0": lambda a: a[1, 2, 3, ...],
}


class Watched(np.ndarray[Any, Any]):
    """An array that a weak reference can watch under its own type."""


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    dlpack_exporter.deleted.clear()
    yield
    if LIVE:
        gc.collect()
    assert not LIVE


def numbers(dtype: Any = "f4") -> Any:
    return (np.arange(60) % 7).reshape(3, 4, 5).astype(dtype)


def equal(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", [Exported, OldExported, FastExported])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_in_views_the_memory(kind: Any, layout: str, dtype: Any) -> None:
    array = LAYOUTS[layout](numbers(dtype))
    view = _core.from_dlpack(kind(array))
    assert equal(view, array)
    if array.size:
        assert view.ctypes.data == array.ctypes.data
        steps = zip(view.shape, view.strides, array.strides, strict=True)
        assert all(size == 1 or ours == theirs for size, ours, theirs in steps)
    assert view.flags.writeable == (kind is not OldExported)  # version 0 cannot say


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_out_and_in_again(layout: str, dtype: Any) -> None:
    array = LAYOUTS[layout](numbers(dtype))
    view = _core.from_dlpack(_core.to_dlpack(array))
    assert equal(view, array)
    assert array.size == 0 or view.ctypes.data == array.ctypes.data
    assert view.flags.writeable == array.flags.writeable
    if np.dtype(dtype) != ml_dtypes.bfloat16:
        theirs = np.from_dlpack(_core.to_dlpack(array))
        assert equal(theirs, array)
        assert array.size == 0 or theirs.ctypes.data == array.ctypes.data


def test_writes_are_shared() -> None:
    array = numbers()
    _core.from_dlpack(Exported(array))[1, 2, 3] = 42
    assert array[1, 2, 3] == 42
    np.from_dlpack(_core.to_dlpack(array))[0, 0, 0] = 43
    assert array[0, 0, 0] == 43


@pytest.mark.parametrize("versioned", [True, False])
def test_byte_offset_and_null_strides(versioned: bool) -> None:
    array = numbers()
    options: dict[str, Any] = {"byte_offset": 24, "null_strides": True, "versioned": versioned}
    view = _core.from_dlpack(Exported(array, **options))
    assert equal(view, array)
    assert view.ctypes.data == array.ctypes.data


def test_read_only_is_kept() -> None:
    view = _core.from_dlpack(Exported(numbers(), read_only=True))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    assert not _core.from_dlpack(_core.to_dlpack(view)).flags.writeable


def test_an_empty_array_may_have_no_memory() -> None:
    assert _core.from_dlpack(Exported(numbers()[:, :0], null_data=True)).shape == (3, 0, 5)


@pytest.mark.parametrize("kind", [Exported, OldExported, FastExported])
def test_the_deleter_is_called_once_when_the_last_view_goes(kind: Any) -> None:
    array = numbers().view(Watched)
    watch = weakref.ref(array)
    view = _core.from_dlpack(kind(array))
    part = view[1:, ::2]
    del array, view
    assert watch() is not None
    assert len(LIVE) == 1
    assert part.sum() > 0
    del part
    assert watch() is None
    assert len(dlpack_exporter.deleted) == 1


def test_a_view_may_go_in_another_thread_and_during_an_error() -> None:
    held = [_core.from_dlpack(Exported(numbers()))]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert len(dlpack_exporter.deleted) == 1

    def fails() -> None:
        view = _core.from_dlpack(Exported(numbers()))
        raise ZeroDivisionError(view.shape)

    with pytest.raises(ZeroDivisionError):
        fails()


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "CUDA": ({"device": (2, 1)}, ValueError, "memory of the CPU; got an array on CUDA device 1"),
    "Metal": ({"device": (8, 0)}, ValueError, "Metal device 0"),
    "ROCm": ({"device": (10, 0)}, ValueError, "ROCm device 0"),
    "managed": ({"device": (13, 0)}, ValueError, "device 0 of DLPack's type 13"),
    "complex": ({"code": 5}, TypeError, "code 5, 32 bits"),
    "float8": ({"code": 10}, TypeError, "code 10"),
    "lanes": ({"lanes": 4}, TypeError, "4 lanes"),
    "version": ({"version": (2, 0)}, ValueError, r"version 2\.0"),
    "no memory": ({"null_data": True}, ValueError, "NULL"),
    "negative size": ({"shape": (3, -4, 5)}, ValueError, "negative size, -4, on axis 1"),
    "stride": ({"strides": (2**62, 5, 1)}, ValueError, "stride of 4611686018427387904"),
    "size": ({"shape": (2**31,) * 3, "null_strides": True}, ValueError, "too many elements"),
    "strided size": ({"shape": (2**31,) * 3}, ValueError, "too big"),
    "rank": ({"shape": (1,) * 65, "strides": (1,) * 65}, ValueError, "64"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kind", [Exported, FastExported])
def test_what_cannot_be_read_is_refused_and_released(name: str, kind: Any) -> None:
    export, error, message = BAD[name]
    array = numbers().view(Watched)
    source = kind(array, **export)
    before = sys.getrefcount(source)
    with pytest.raises(error, match=message) as caught:
        _core.from_dlpack(source)
    del caught
    gc.collect()
    assert len(dlpack_exporter.deleted) == 1
    assert sys.getrefcount(source) == before


@pytest.mark.parametrize("device", [(3, 0), (11, 0)])
def test_pinned_memory_is_the_memory_of_the_cpu(device: Any) -> None:
    assert equal(_core.from_dlpack(Exported(numbers(), device=device)), numbers())


def test_what_is_no_exporter_is_refused() -> None:
    class Used:
        def __dlpack__(self, **_: Any) -> Any:
            capsule = numbers().__dlpack__()
            np.from_dlpack(type("", (), {"__dlpack__": lambda *_, **__: capsule,
                                         "__dlpack_device__": lambda _: (1, 0)})())  # fmt: skip
            return capsule

    class Number:
        def __dlpack__(self, **_: Any) -> Any:
            return 3

    for source in (Used(), Number()):
        with pytest.raises(TypeError, match="no DLPack capsule, or one that was used"):
            _core.from_dlpack(source)
    with pytest.raises(RuntimeError, match="failed without an error"):
        _core.from_dlpack(FastExported(numbers(), code=99))
    with pytest.raises(AttributeError, match="__dlpack__"):
        _core.from_dlpack(3)


def test_a_subclass_with_its_own_method_is_asked_by_it() -> None:
    class Own(FastExported):
        def __dlpack__(self, **options: Any) -> Any:
            self.calls.append("method")
            return Exported.__dlpack__(self, **options)

    own = Own(numbers())
    assert equal(_core.from_dlpack(own), numbers())
    assert own.calls == ["method"]
    assert _core.same_kind(own, numbers()) is None


def test_exchange_functions_take_an_array_over() -> None:
    array = numbers().view(Watched)
    watch, address = weakref.ref(array), array.ctypes.data
    made = _core.same_kind(FastExported(numbers()), array[:, ::2])
    assert made.calls == ["to_object"]
    assert made.array.ctypes.data == address
    assert np.array_equal(made.array, numbers()[:, ::2])
    del array
    assert watch() is not None
    made.free()
    assert watch() is None
    assert _core.same_kind(Exported(numbers()), numbers()) is None
    assert _core.same_kind(3, numbers()) is None


def test_an_export_keeps_its_array_and_an_unused_one_lets_it_go() -> None:
    array = numbers().view(Watched)
    watch, count = weakref.ref(array), sys.getrefcount(array)
    for options in ({}, {"max_version": (1, 0)}, {"max_version": (0, 8)}, {"copy": True}):
        _core.to_dlpack(array).__dlpack__(**options)
    assert sys.getrefcount(array) == count
    capsule = _core.to_dlpack(array).__dlpack__(max_version=(1, 0))
    assert '"dltensor_versioned"' in repr(capsule)
    del array
    assert watch() is not None
    del capsule
    assert watch() is None


def test_copies_are_made_where_asked_for_or_unavoidable() -> None:
    array = numbers()
    array.flags.writeable = False
    exported = _core.to_dlpack(array)
    assert '"dltensor"' in repr(exported.__dlpack__())  # cannot say read-only: a copy
    with pytest.raises(BufferError, match="without a copy"):
        exported.__dlpack__(copy=False)
    copy = np.from_dlpack(exported, copy=True)
    assert equal(copy, array)
    assert not np.shares_memory(copy, array)
    fields = np.zeros(4, [("a", "i1"), ("b", "<f4")])
    odd = np.lib.stride_tricks.as_strided(fields["b"][:0], (0, 2), (5, 5))
    assert _core.from_dlpack(_core.to_dlpack(odd)).shape == (0, 2)
    assert np.array_equal(_core.from_dlpack(_core.to_dlpack(fields["b"])), fields["b"])


def test_out_refuses_what_the_protocol_cannot_say() -> None:
    for dtype in (">f4", "c8", "S3", "O", ml_dtypes.float8_e4m3fn, np.longdouble):
        with pytest.raises(TypeError, match="to_dlpack: array has dtype"):
            _core.to_dlpack(np.zeros(3, dtype))
    with pytest.raises(TypeError, match=r"must be a numpy\.ndarray, got list"):
        _core.to_dlpack([1.0])  # type: ignore[arg-type]
    exported = _core.to_dlpack(numbers())
    assert tuple(exported.__dlpack_device__()) == (1, 0)
    with pytest.raises(BufferError, match="stays there"):
        exported.__dlpack__(dl_device=(2, 0))
    with pytest.raises(ValueError, match="no streams"):
        exported.__dlpack__(stream=1)  # type: ignore[arg-type]


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_hundred_thousand_round_trips_leave_nothing() -> None:
    array = numbers()
    count = sys.getrefcount(array)

    def trips(n: int) -> None:
        for _ in range(n):
            _core.from_dlpack(_core.to_dlpack(array))
            _core.to_dlpack(array).__dlpack__()

    trips(1000)
    tracemalloc.start()
    before, pages = tracemalloc.get_traced_memory()[0], resident()
    trips(1000)
    assert tracemalloc.get_traced_memory()[0] - before < 10_000
    tracemalloc.stop()
    trips(100_000)
    assert sys.getrefcount(array) == count
    assert resident() - pages < 8_000_000  # one export is over 100 bytes


def test_thousands_of_exports_are_deleted_once_each() -> None:
    array = numbers()
    for kind in (Exported, OldExported, FastExported):
        source = kind(array)
        for _ in range(2000):
            _core.from_dlpack(source)
            with pytest.raises(TypeError):
                _core.from_dlpack(kind(array, lanes=2))
    assert len(dlpack_exporter.deleted) == 3 * 2 * 2000
