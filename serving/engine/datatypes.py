"""The element types of the Open Inference Protocol and what they are in ONNX Runtime and NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class Datatype:
    """One element type.

    Attributes
    ----------
    name : str
        Name in the protocol, such as ``"FP32"``.
    onnxruntime : str
        Name in ONNX Runtime, such as ``"tensor(float)"``.
    dtype : numpy.dtype
        Element type of the array; ``object`` (of ``str``) for ``BYTES``.
    kind : str
        ``"b"`` boolean, ``"i"`` integer, ``"f"`` floating point, ``"s"`` string.
    """

    name: str
    onnxruntime: str
    dtype: np.dtype[Any]
    kind: str

    @property
    def itemsize(self) -> int:
        """Bytes of one element; for ``BYTES`` the least that an element takes, its length field."""
        return 4 if self.kind == "s" else self.dtype.itemsize


def _table() -> tuple[Datatype, ...]:
    numeric = [
        Datatype("BOOL", "tensor(bool)", np.dtype(np.bool_), "b"),
        Datatype("FP16", "tensor(float16)", np.dtype(np.float16), "f"),
        Datatype("FP32", "tensor(float)", np.dtype(np.float32), "f"),
        Datatype("FP64", "tensor(double)", np.dtype(np.float64), "f"),
        Datatype("BF16", "tensor(bfloat16)", np.dtype(ml_dtypes.bfloat16), "f"),
        Datatype("BYTES", "tensor(string)", np.dtype(np.object_), "s"),
    ]
    integers = [
        Datatype(f"{prefix.upper()}{bits}", f"tensor({prefix}{bits})", np.dtype(prefix + bits), "i")
        for prefix in ("int", "uint")
        for bits in ("8", "16", "32", "64")
    ]
    return (*numeric, *integers)


DATATYPES = {datatype.name: datatype for datatype in _table()}
BY_ONNXRUNTIME = {datatype.onnxruntime: datatype for datatype in DATATYPES.values()}
