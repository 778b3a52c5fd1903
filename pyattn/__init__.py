"""Attention for Python without a deep-learning framework.

Functions take NumPy arrays and return NumPy arrays, computed by the compiled core. The same
functions record what they do when given a :class:`Tensor`, which is how models are differentiated
(:func:`grad`) and exported to ONNX (:func:`export`).
"""

from pyattn import models, nn, ops, ort, runtime
from pyattn.attention import additive_attention, luong_attention, scaled_dot_product_attention
from pyattn.export import Input, VerificationError, export
from pyattn.grad import check_grad, grad, value_and_grad
from pyattn.io import load, save
from pyattn.tensor import Tensor, TraceError

__version__: str = runtime.build_info()["version"]

__all__ = [
    "Input",
    "Tensor",
    "TraceError",
    "VerificationError",
    "additive_attention",
    "check_grad",
    "export",
    "grad",
    "load",
    "luong_attention",
    "models",
    "nn",
    "ops",
    "ort",
    "runtime",
    "save",
    "scaled_dot_product_attention",
    "value_and_grad",
]
