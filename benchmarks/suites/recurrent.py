"""GRU and LSTM layers over sequences, float32, forward and forward with the gradient.

The gradient is that of ``sum(output * cotangent)`` with respect to the input and all parameters;
the answer compared is the output, and with it the gradients.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import limits, peers
from benchmarks.harness import Case, Prepared, Run

STEPS = 50
TOLERANCE = 1e-5
RELATIVE = 2e-6
KINDS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")

Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class Layer:
    """A layer of as many inputs as units, on a batch."""

    kind: str
    size: int
    batch: int

    @property
    def gates(self) -> int:
        """How many gates a unit has."""
        return 3 if self.kind == "GRU" else 4

    @property
    def name(self) -> str:
        """The sizes in the order H, B."""
        return f"{self.kind.lower()}-{self.size},{self.batch}"


LAYERS = [Layer(k, h, b) for k in ("GRU", "LSTM") for h in (256, 512) for b in (1, 32)]


def operations(layer: Layer) -> float:
    """Both matrix products of all steps."""
    return 2.0 * layer.batch * STEPS * layer.gates * layer.size * (2 * layer.size)


def cases(threads: int) -> Iterator[Case]:
    """Each layer forward, then with its gradient, which is two more products for each."""
    for layer in LAYERS:
        yield Case(
            name=f"recurrent/{layer.name}",
            operations=operations(layer),
            unit="FLOP",
            exact=partial(_exact, layer),
            contenders={
                "pyattn": partial(_pyattn, layer, threads),
                "torch": partial(_torch, layer, threads),
                "onnxruntime": partial(_onnxruntime, layer, threads),
            },
            tolerance=TOLERANCE,
            limit=limits.FLOAT32,
        )
        yield Case(
            name=f"recurrent/{layer.name} gradient",
            operations=3 * operations(layer),
            unit="FLOP",
            exact=partial(_exact_gradients, layer),
            contenders={
                "pyattn": partial(_pyattn_gradient, layer, threads),
                "torch": partial(_torch_gradient, layer, threads),
            },
            tolerance=TOLERANCE,
            relative=RELATIVE,
            limit=limits.FLOAT32,
        )


def _arrays(layer: Layer) -> Arrays:
    """The input, the weights and biases uniform as in a new layer, and a cotangent."""
    rng = np.random.default_rng(layer.size + layer.batch)
    rows, bound = layer.gates * layer.size, layer.size**-0.5
    shapes = [(rows, layer.size), (rows, layer.size), (rows,), (rows,)]
    weights = [rng.uniform(-bound, bound, shape).astype(np.float32) for shape in shapes]
    x, cotangent = (
        rng.standard_normal((layer.batch, STEPS, layer.size), np.float32) for _ in range(2)
    )
    return [x, *weights, cotangent]


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return np.tanh(x / 2) / 2 + 0.5


def _exact(layer: Layer) -> NDArray[Any]:
    return _forward(layer)[0]


def _forward(layer: Layer) -> tuple[NDArray[Any], list[tuple[NDArray[Any], ...]]]:
    """The output in float64, and what the gradient needs of each step."""
    x, w, u, b, c, _ = (a.astype(np.float64) for a in _arrays(layer))
    size = layer.size
    h, cell = np.zeros((2, layer.batch, size))
    outputs: Arrays = []
    kept: list[tuple[NDArray[Any], ...]] = []
    for t in range(STEPS):
        given, inner = x[:, t] @ w.T + b, h @ u.T + c
        if layer.kind == "GRU":
            r, z = np.split(_sigmoid((given + inner)[:, : 2 * size]), 2, 1)
            n = np.tanh(given[:, 2 * size :] + r * inner[:, 2 * size :])
            kept.append((r, z, n, inner[:, 2 * size :], h))
            h = (1 - z) * n + z * h
        else:
            parts = np.split(given + inner, 4, 1)
            i, f, o = (_sigmoid(parts[k]) for k in (0, 1, 3))
            g = np.tanh(parts[2])
            kept.append((i, f, g, o, h, cell))
            cell = f * cell + i * g
            h = o * np.tanh(cell)
        outputs.append(h)
    return np.stack(outputs, 1), kept


def _exact_gradients(layer: Layer) -> NDArray[Any]:
    x, w, u, _, _, cotangent = (a.astype(np.float64) for a in _arrays(layer))
    output, kept = _forward(layer)
    dx, dw, du = np.zeros_like(x), np.zeros_like(w), np.zeros_like(u)
    db, dc = np.zeros((2, len(w)))
    dh, dcell = np.zeros((2, layer.batch, layer.size))
    for t in reversed(range(STEPS)):
        dh = dh + cotangent[:, t]
        if layer.kind == "GRU":
            r, z, n, inner, h = kept[t]
            dn, dz = dh * (1 - z) * (1 - n * n), dh * (h - n) * z * (1 - z)
            dr = dn * inner * r * (1 - r)
            given, recurrent = np.hstack([dr, dz, dn]), np.hstack([dr, dz, dn * r])
            dh = dh * z + recurrent @ u
        else:
            i, f, g, o, h, cell = kept[t]
            squashed = np.tanh(f * cell + i * g)
            dcell = dcell + dh * o * (1 - squashed**2)
            given = recurrent = np.hstack([
                dcell * g * i * (1 - i), dcell * cell * f * (1 - f), dcell * i * (1 - g * g),
                dh * squashed * o * (1 - o),
            ])  # fmt: skip
            dcell, dh = dcell * f, recurrent @ u
        dx[:, t] = given @ w
        dw += given.T @ x[:, t]
        du += recurrent.T @ h
        db += given.sum(0)
        dc += recurrent.sum(0)
    return _joined([output, dx, dw, du, db, dc])


def _joined(arrays: Any) -> NDArray[Any]:
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])


def _module(layer: Layer, threads: int) -> Any:
    nn = peers.pyattn(threads).nn
    weights = dict(zip(KINDS, _arrays(layer)[1:5], strict=True))
    return getattr(nn, layer.kind)(layer.size, layer.size, rng=None).load(weights)


def _pyattn(layer: Layer, threads: int) -> Run:
    module, x = _module(layer, threads), _arrays(layer)[0]
    return lambda: module(x)[0]


def _pyattn_gradient(layer: Layer, threads: int) -> Prepared:
    module, library = _module(layer, threads), peers.pyattn(threads)
    x, *_, cotangent = _arrays(layer)

    def loss(module: Any, x: Any) -> Any:
        output = module(x)[0]
        return library.ops.sum(output * cotangent), output

    both = library.value_and_grad(loss, (0, 1), has_aux=True)

    def finish(answer: Any) -> NDArray[Any]:
        (_, output), (of_module, of_x) = answer
        return _joined([output, of_x, *(of_module[kind] for kind in KINDS)])

    return Prepared(partial(both, module, x), finish)


def _torch_module(layer: Layer, threads: int) -> Any:
    torch = peers.torch(threads)
    module = getattr(torch.nn, layer.kind)(layer.size, layer.size, batch_first=True)
    for kind, array in zip(KINDS, _arrays(layer)[1:5], strict=True):
        getattr(module, kind).data = torch.from_numpy(array)
    module.flatten_parameters()
    return module


def _torch(layer: Layer, threads: int) -> Run:
    module = _torch_module(layer, threads)
    x = peers.torch(threads).from_numpy(_arrays(layer)[0])
    return peers.torch_run(threads, lambda: module(x)[0])


def _torch_gradient(layer: Layer, threads: int) -> Prepared:
    torch, module = peers.torch(threads), _torch_module(layer, threads)
    x, *_, cotangent = map(torch.from_numpy, _arrays(layer))
    leaves = [x.requires_grad_(), *(getattr(module, kind) for kind in KINDS)]

    def run() -> Any:
        output = module(x)[0]
        return output, *torch.autograd.grad((output * cotangent).sum(), leaves)

    def finish(answer: Any) -> NDArray[Any]:
        return _joined([peers.torch_array(part) for part in answer])

    return Prepared(run, finish)


def _onnxruntime(layer: Layer, threads: int) -> Run:
    """The operator with batches behind steps, which is the layout it has kernels for."""
    x, w, u, b, c, _ = _arrays(layer)
    order = (1, 0, 2) if layer.kind == "GRU" else (0, 3, 1, 2)

    def ordered(array: NDArray[Any]) -> NDArray[Any]:
        parts = np.split(array, layer.gates)
        return np.concatenate([parts[i] for i in order])

    constants: peers.Feeds = {
        "w": ordered(w)[None],
        "u": ordered(u)[None],
        "b": np.concatenate([ordered(b), ordered(c)])[None],
        "one": np.array([1]),
    }
    feeds = {"x": x}
    node = import_module("onnx.helper").make_node
    attributes = {"linear_before_reset": 1} if layer.kind == "GRU" else {}
    nodes = [
        node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        node(layer.kind, ["steps", "w", "u", "b"], ["y"], hidden_size=layer.size, **attributes),
        node("Squeeze", ["y", "one"], ["flat"]),
        node("Transpose", ["flat"], ["out"], perm=[1, 0, 2]),
    ]
    model = peers.onnx_model(nodes, feeds, "out", constants)
    return peers.onnx_run(threads, model, feeds, x.shape)
