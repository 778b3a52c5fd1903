"""Problems in additive (Bahdanau) attention and the contenders that solve them, in float32.

Query and key are projected already. PyTorch, JAX and ONNX Runtime have no such function: the
formula is written out as their users write it.
"""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.harness import Prepared, Run, UnavailableError
from tests.naive import naive_additive
from tests.reference_sdpa import sdpa
from tests.reference_sdpa_grad import sdpa_gradients

Array = NDArray[Any]
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; values have the additive size."""

    batch: int
    rows: int
    size: int
    units: int

    @property
    def name(self) -> str:
        """The sizes in the order B, T, S, A."""
        return f"{self.batch},{self.rows},{self.size},{self.units}"

    @property
    def operations(self) -> float:
        """One tanh per batch entry, row, key and unit; the rest is small beside it."""
        return float(self.batch) * self.rows * self.size * self.units


SHAPES = (
    Shape(16, 50, 50, 256),
    Shape(64, 1, 50, 512),
    Shape(1, 512, 512, 128),
    Shape(4, 256, 256, 256),
)


@cache
def inputs(shape: Shape) -> tuple[Array, ...]:
    """Query, key, value and v, which is drawn so that the scores have about unit variance."""
    rng = np.random.default_rng(shape.rows + shape.size)
    query = rng.standard_normal((shape.batch, shape.rows, shape.units), np.float32)
    key = rng.standard_normal((shape.batch, shape.size, shape.units), np.float32)
    value = rng.standard_normal((shape.batch, shape.size, shape.units), np.float32)
    v = rng.standard_normal(shape.units, np.float32) / np.float32(math.sqrt(shape.units))
    return query, key, value, v


@cache
def cotangent(shape: Shape) -> Array:
    """What the output is multiplied with before it is summed to a loss."""
    return np.random.default_rng(7).standard_normal(inputs(shape)[0].shape, np.float32)


def joined(arrays: Any) -> Array:
    """Output and gradients one after another."""
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])


def exact(shape: Shape) -> Array:
    """The float64 answer."""
    query, key, value, v = inputs(shape)
    return sdpa(query[:, None], key[:, None], value[:, None], v=v[None]).out[:, 0]


def exact_gradients(shape: Shape) -> Array:
    """Output and gradients of query, key, value and v in float64."""
    query, key, value, v = inputs(shape)
    found = sdpa_gradients(
        query[:, None], key[:, None], value[:, None],
        v=v[None], out_cotangent=cotangent(shape)[:, None],
    )  # fmt: skip
    return joined([exact(shape), *(found[name] for name in ("query", "key", "value", "v"))])


def pyattn(shape: Shape, threads: int) -> Run:
    """The kernel."""
    return partial(peers.pyattn(threads).additive_attention, *inputs(shape))


def pyattn_gradient(shape: Shape, threads: int) -> Prepared:
    """Both kernels."""
    library, given = peers.pyattn(threads), cotangent(shape)

    def loss(*arrays: Any) -> Any:
        out = library.additive_attention(*arrays)
        return library.ops.sum(out * given), out

    both = library.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
    return Prepared(partial(both, *inputs(shape)), _join_value_and_grad)


def _join_value_and_grad(answer: Any) -> Array:
    (_, out), gradients = answer
    return joined([out, *gradients])


def numpy(shape: Shape) -> Run:
    """The formula on whole arrays."""
    return lambda: naive_additive(*inputs(shape)).out


def _attend_torch(module: Any, query: Any, key: Any, value: Any, v: Any) -> Any:
    """The formula as PyTorch code usually writes it, with the sums (B, T, S, A) in memory."""
    scores = module.tanh(query.unsqueeze(2) + key.unsqueeze(1)) @ v
    return module.softmax(scores, dim=-1) @ value


def _attend_jax(module: Any, query: Any, key: Any, value: Any, v: Any) -> Any:
    numbers = module.numpy
    scores = numbers.tanh(query[:, :, None] + key[:, None]) @ v
    return module.nn.softmax(scores, axis=-1) @ value


def torch(shape: Shape, threads: int) -> Run:
    """Operation by operation."""
    module = peers.torch(threads)
    tensors = [module.from_numpy(array) for array in inputs(shape)]
    return peers.torch_run(threads, partial(_attend_torch, module, *tensors))


def _compiled(module: Any) -> Callable[..., Any]:
    """The same function fused by Inductor, which needs a C++ compiler on the machine."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise UnavailableError("torch.compile needs a C++ compiler")
    compiled: Callable[..., Any] = module.compile(partial(_attend_torch, module), dynamic=False)
    return compiled


def _tried(run: Run) -> Run:
    """The call after a first one, which compiles."""
    try:
        run()
    except Exception as failure:
        reason = str(failure).strip().splitlines()[0]
        raise UnavailableError(f"torch.compile failed: {reason}") from failure
    return run


def torch_compiled(shape: Shape, threads: int) -> Run:
    """`torch` under ``torch.compile``."""
    module = peers.torch(threads)
    tensors = [module.from_numpy(array) for array in inputs(shape)]
    return _tried(peers.torch_run(threads, partial(_compiled(module), *tensors)))


def torch_gradient(shape: Shape, threads: int, *, compiled: bool = False) -> Prepared:
    """Forward and autograd, operation by operation or compiled."""
    module = peers.torch(threads)
    leaves = [module.tensor(array, requires_grad=True) for array in inputs(shape)]
    given = module.from_numpy(cotangent(shape))
    attend = _compiled(module) if compiled else partial(_attend_torch, module)

    def run() -> Any:
        out = attend(*leaves)
        return out, *module.autograd.grad((out * given).sum(), leaves)

    call = _tried(run) if compiled else run
    return Prepared(call, lambda answer: joined([peers.torch_array(x) for x in answer]))


def jax(shape: Shape, threads: int) -> Prepared:
    """Under ``jit``."""
    library = peers.jax(threads)
    arrays = [library.device_put(array) for array in inputs(shape)]
    call = library.jit(partial(_attend_jax, library))
    return Prepared(lambda: library.block_until_ready(call(*arrays)))


def jax_gradient(shape: Shape, threads: int) -> Prepared:
    """``value_and_grad`` under ``jit``."""
    library = peers.jax(threads)
    given = library.device_put(cotangent(shape))
    arrays = [library.device_put(array) for array in inputs(shape)]

    def loss(*leaves: Any) -> Any:
        out = _attend_jax(library, *leaves)
        return (out * given).sum(), out

    both = library.jit(library.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    return Prepared(lambda: library.block_until_ready(both(*arrays)), _join_value_and_grad)


def keras(shape: Shape, threads: int) -> Prepared:
    """Keras's ``AdditiveAttention``, whose ``scale`` is v, on JAX under ``jit``."""
    library = peers.jax(threads)
    os.environ["KERAS_BACKEND"] = "jax"
    module = import_module("keras")
    query, key, value, v = (library.device_put(array) for array in inputs(shape))
    layer = module.layers.AdditiveAttention()
    layer.build([query.shape, value.shape, key.shape])
    layer.scale.assign(v)
    state = [weight.value for weight in layer.trainable_variables]
    call = library.jit(lambda given, *arrays: layer.stateless_call(given, [], [*arrays])[0])
    return Prepared(lambda: library.block_until_ready(call(state, query, value, key)))


def onnxruntime(shape: Shape, threads: int) -> Run:
    """The formula in primitive operators."""
    query, key, value, v = inputs(shape)
    feeds = {"query": query, "key": key, "value": value}
    node = import_module("onnx.helper").make_node
    nodes = [
        node("Unsqueeze", ["query", "two"], ["rows"]),
        node("Unsqueeze", ["key", "one"], ["columns"]),
        node("Add", ["rows", "columns"], ["sums"]),
        node("Tanh", ["sums"], ["activated"]),
        node("MatMul", ["activated", "v"], ["scores"]),
        node("Softmax", ["scores"], ["weights"], axis=-1),
        node("MatMul", ["weights", "value"], ["out"]),
    ]
    constants: peers.Feeds = {"v": v, "one": np.array([1]), "two": np.array([2])}
    model = peers.onnx_model(nodes, feeds, "out", constants)
    return peers.onnx_run(threads, model, feeds, query.shape)
