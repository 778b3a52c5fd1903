"""Attention for Python without a deep-learning framework.

Functions take NumPy arrays and return NumPy arrays, computed by the compiled core. CPU arrays of
other libraries with ``__dlpack__``, such as PyTorch's and JAX's, are read in place, and the results
are of the kind of the first array; with gradients to compute they have to be detached. The same
functions record what they do when given a :class:`Tensor`, which is how models are differentiated
(:func:`grad`) and exported to ONNX (:func:`export`).
"""

from pyattn import models, nn, ops, optim, ort, runtime
from pyattn.accelerate import Accelerated, accelerate
from pyattn.attention import (
    additive_attention,
    attention_weights,
    luong_attention,
    paged_attention,
    scaled_dot_product_attention,
    update_cache,
    varlen_attention,
)
from pyattn.export import ExportWarning, Input, VerificationError, export
from pyattn.grad import check_grad, grad, value_and_grad
from pyattn.io import load, save
from pyattn.tensor import Tensor, TraceError

__version__: str = runtime.build_info()["version"]

__all__ = [
    "Accelerated",
    "ExportWarning",
    "Input",
    "Tensor",
    "TraceError",
    "VerificationError",
    "accelerate",
    "additive_attention",
    "attention_weights",
    "check_grad",
    "export",
    "grad",
    "load",
    "luong_attention",
    "models",
    "nn",
    "ops",
    "optim",
    "ort",
    "paged_attention",
    "runtime",
    "save",
    "scaled_dot_product_attention",
    "update_cache",
    "value_and_grad",
    "varlen_attention",
]
