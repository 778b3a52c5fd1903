"""Operations on arrays and Tensors.

Each takes NumPy arrays and returns an array, or takes at least one Tensor and returns a Tensor that
remembers how it was made; an array of another library gives arrays of that library. Names are
NumPy's where NumPy has the operation.
"""

from pyattn.ops.elementwise import (
    add,
    astype,
    divide,
    equal,
    erf,
    exp,
    greater,
    less,
    less_equal,
    log,
    logical_and,
    maximum,
    multiply,
    negative,
    power,
    relu,
    sigmoid,
    sqrt,
    subtract,
    tanh,
    where,
)
from pyattn.ops.index import arange_like, causal_mask, length_mask, repeat, take
from pyattn.ops.layers import dropout, gelu, layer_norm, rms_norm
from pyattn.ops.linalg import linear, matmul
from pyattn.ops.recurrent import gru, gru_cell, lstm, lstm_cell
from pyattn.ops.reduce import max, mean, softmax, sum
from pyattn.ops.rotary import rotary_embedding
from pyattn.ops.shape import concat, expand_dims, getitem, reshape, transpose

__all__ = [
    "add",
    "arange_like",
    "astype",
    "causal_mask",
    "concat",
    "divide",
    "dropout",
    "equal",
    "erf",
    "exp",
    "expand_dims",
    "gelu",
    "getitem",
    "greater",
    "gru",
    "gru_cell",
    "layer_norm",
    "length_mask",
    "less",
    "less_equal",
    "linear",
    "log",
    "logical_and",
    "lstm",
    "lstm_cell",
    "matmul",
    "max",
    "maximum",
    "mean",
    "multiply",
    "negative",
    "power",
    "relu",
    "repeat",
    "reshape",
    "rms_norm",
    "rotary_embedding",
    "sigmoid",
    "softmax",
    "sqrt",
    "subtract",
    "sum",
    "take",
    "tanh",
    "transpose",
    "where",
]
