"""A library of arrays in pure Python, which others can reach through DLPack only.

It writes the structures of the protocol byte by byte (https://dmlc.github.io/dlpack/latest), so
that tests may ask for what real libraries do and for what none should do, and counts how often the
deleter of each export has been called.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, pythonapi
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

CODES = {"i": 0, "u": 1, "f": 2, "V": 4, "b": 6}  # V: bfloat16, the only such dtype here


class Tensor(ctypes.Structure):
    _fields_: ClassVar = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", POINTER(ctypes.c_int64)),
        ("strides", POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Unversioned(ctypes.Structure):
    _fields_: ClassVar = [
        ("tensor", Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class Versioned(ctypes.Structure):
    _fields_: ClassVar = [
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


@dataclass(frozen=True)
class Export:
    """How an array is exported; the fields after the first two are for lies."""

    versioned: bool = True
    read_only: bool = False
    byte_offset: int = 0
    null_strides: bool = False
    device: tuple[int, int] = (1, 0)
    version: tuple[int, int] = (1, 1)
    code: int | None = None
    lanes: int = 1
    null_data: bool = False
    shape: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None


LIVE: dict[int, tuple[Any, ...]] = {}  # what each export keeps alive, by its address
deleted: list[int] = []


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _delete(address: int) -> None:
    del LIVE[address]  # a second call is a KeyError, which pytest reports
    deleted.append(address)


_is_valid = pythonapi.PyCapsule_IsValid
_is_valid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_pointer = pythonapi.PyCapsule_GetPointer
_pointer.argtypes, _pointer.restype = [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p
_new = pythonapi.PyCapsule_New
_new.argtypes, _new.restype = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p], ctypes.py_object
# A capsule does not copy its name, so that these have to live.
NAMES = (b"dltensor", b"dltensor_versioned")
EXCHANGE = b"dlpack_exchange_api"


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destroy(capsule: int) -> None:
    for name in NAMES:
        if _is_valid(capsule, name):
            _delete(_pointer(capsule, name))


def managed(array: np.ndarray[Any, Any], export: Export) -> int:
    """Return the address of a structure that describes ``array``."""
    holder = Versioned() if export.versioned else Unversioned()
    sizes = array.shape if export.shape is None else export.shape
    steps = export.strides or tuple(step // array.itemsize for step in array.strides)
    shape = (ctypes.c_int64 * len(sizes))(*sizes)
    strides = (ctypes.c_int64 * len(steps))(*steps)
    tensor = holder.tensor
    if not export.null_data:
        tensor.data = array.ctypes.data - export.byte_offset
    tensor.device, tensor.ndim = export.device, len(sizes)
    tensor.code = CODES[array.dtype.kind] if export.code is None else export.code
    tensor.bits, tensor.lanes = array.itemsize * 8, export.lanes
    tensor.shape = shape
    if not export.null_strides:
        tensor.strides = strides
    tensor.byte_offset = export.byte_offset
    holder.deleter = ctypes.cast(_delete, ctypes.c_void_p)
    if isinstance(holder, Versioned):
        holder.version, holder.flags = export.version, int(export.read_only)
    address = ctypes.addressof(holder)
    LIVE[address] = (holder, shape, strides, array)
    return address


class Exported:
    """An array that knows the versioned protocol, and exports by it unless told otherwise."""

    def __init__(self, array: np.ndarray[Any, Any], **export: Any) -> None:
        self.array, self.export = array, Export(**export)

    def __dlpack__(self, *, max_version: tuple[int, int] | None = None) -> Any:
        versioned = self.export.versioned and max_version is not None and max_version >= (1, 0)
        address = managed(self.array, replace(self.export, versioned=versioned))
        return _new(address, NAMES[versioned], ctypes.cast(_destroy, ctypes.c_void_p))

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.export.device

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda other: type(self)(np.from_dlpack(other)))


class OldExported(Exported):
    """An array of before DLPack 1: there is no keyword ``max_version``."""

    def __dlpack__(self) -> Any:  # type: ignore[override]
        return super().__dlpack__()


class ReadableOnly:
    """An array whose library has no from_dlpack."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.__dlpack = array.__dlpack__

    def __dlpack__(self, **options: Any) -> Any:
        return self.__dlpack(**options)


class _Header(ctypes.Structure):
    _fields_: ClassVar = [("version", ctypes.c_uint32 * 2), ("older", ctypes.c_void_p)]


class _Functions(ctypes.Structure):
    _fields_: ClassVar = [("header", _Header), ("functions", ctypes.c_void_p * 5)]


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, POINTER(ctypes.c_void_p))
def _from_object(array: FastExported, out: Any) -> int:
    array.calls.append("from_object")
    if array.export.code == 99:
        return -1
    out[0] = managed(array.array, array.export)
    return 0


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, POINTER(ctypes.py_object))
def _to_object(address: int, out: Any) -> int:
    """Take over what another library exports."""
    holder = Versioned.from_address(address)
    tensor, free = holder.tensor, ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(holder.deleter)
    shape, steps = tensor.shape[: tensor.ndim], tensor.strides[: tensor.ndim]
    memory = ctypes.c_float * (1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True)))
    flat = np.frombuffer(memory.from_address(tensor.data), np.float32)
    result = FastExported(np.lib.stride_tricks.as_strided(flat, shape, [4 * s for s in steps]))
    result.calls.append("to_object")
    result.free = lambda: free(address)
    pythonapi.Py_IncRef(ctypes.py_object(result))
    ctypes.cast(out, POINTER(ctypes.c_void_p))[0] = id(result)
    return 0


class FastExported(Exported):
    """An array whose type offers DLPack's exchange functions: its methods are never called."""

    def __init__(self, array: np.ndarray[Any, Any], **export: Any) -> None:
        super().__init__(array, **export)
        self.calls: list[str] = []
        self.free: Any = lambda: None

    def __dlpack__(self, *, max_version: tuple[int, int] | None = None) -> Any:
        raise AssertionError("the exchange functions should have been used")

    _table = _Functions(
        header=_Header(version=(1, 3)),
        functions=(
            None,
            ctypes.cast(_from_object, ctypes.c_void_p).value,
            ctypes.cast(_to_object, ctypes.c_void_p).value,
            None,
            None,
        ),
    )
    _newer = _Header(version=(2, 0), older=ctypes.addressof(_table))
    __dlpack_c_exchange_api__ = _new(ctypes.addressof(_newer), EXCHANGE, None)
