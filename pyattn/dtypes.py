"""The float dtypes, by name: ml_dtypes, which makes bfloat16, need not be imported to be read."""

from __future__ import annotations

from typing import Any

import numpy as np

# What arrays are stored in, and the dtype in which kernels calculate with it.
COMPUTE: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float32),
    "bfloat16": np.dtype(np.float32),
}
FLOATS = tuple(COMPUTE)
FULL_FLOATS = ("float32", "float64")

# How the name of an ONNX function tells the dtype that its body is for.
IN_A_NAME = {"float32": "", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16"}


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return float64 for float64 and float32 for the other floats."""
    return COMPUTE[dtype.name]


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether values of ``dtype`` have gradients; NumPy's ``kind`` does not know bfloat16."""
    return dtype.kind == "f" or dtype.name in COMPUTE
