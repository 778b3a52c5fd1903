"""Bahdanau's translator in the sizes of the paper: 16 sentences of 30 words, 30 are written.

torch's exporters unroll the loop; pyattn's file has it as a loop. The answer compared is the logit
of the word chosen at each step, which depends on the words before.
"""

from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import limits, peers, torch_export
from benchmarks.harness import Build, Case, Run

BATCH, LENGTH, STEPS = 16, 30, 30
WORDS, EMBEDDED, HIDDEN, UNITS, MAXOUT = 30000, 620, 1000, 1000, 500
START = 1
Array = NDArray[Any]


def operations() -> float:
    """Matrix products."""
    encoder = LENGTH * 2 * 3 * HIDDEN * (EMBEDDED + HIDDEN) + LENGTH * 2 * HIDDEN * UNITS
    cell = 3 * HIDDEN * (EMBEDDED + 3 * HIDDEN) + HIDDEN * UNITS
    output = 2 * MAXOUT * (EMBEDDED + 3 * HIDDEN) + MAXOUT * WORDS
    return 2.0 * BATCH * (encoder + STEPS * (cell + output))


def cases(threads: int) -> Iterator[Case]:
    """One batch."""
    contenders: dict[str, Build] = {
        "pyattn": partial(_pyattn, threads, True),
        "pyattn.export in onnxruntime": partial(_pyattn, threads, False),
        "torch.onnx.export dynamo=False in onnxruntime": partial(_exported, threads, False),
        "torch.onnx.export in onnxruntime": partial(_exported, threads, True),
        "openvino": partial(_openvino, threads),
        "torch": partial(_torch, threads),
    }
    yield Case(
        name=f"translator/{BATCH}x{LENGTH}",
        operations=operations(),
        unit="FLOP",
        exact=_exact,
        contenders=contenders,
        tolerance=2e-5,
        relative=1e-5,
        limit=limits.FLOAT32,
    )


def _tokens() -> Array:
    return np.random.default_rng(3).integers(2, WORDS, (BATCH, LENGTH))


@cache
def _model() -> Any:
    """The module in pyattn; its class is made here, because the suite loads without pyattn."""
    pa = import_module("pyattn")
    rng = np.random.default_rng(5)

    class Translator(pa.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.source = pa.nn.Embedding(WORDS, EMBEDDED, rng=rng)
            self.encoder = pa.nn.GRU(EMBEDDED, HIDDEN, bidirectional=True, rng=rng)
            self.target = pa.nn.Embedding(WORDS, EMBEDDED, rng=rng)
            self.decoder = pa.nn.BahdanauDecoderCell(
                EMBEDDED, HIDDEN, 2 * HIDDEN, UNITS, maxout=MAXOUT, reset_after=True, rng=rng
            )
            self.output = pa.nn.Linear(MAXOUT, WORDS, rng=rng)

        def __call__(self, tokens: Any) -> Any:
            ops = pa.ops
            states, _ = self.encoder(self.source(tokens))
            source = self.decoder.prepare(states)

            def step(state: Any) -> Any:
                hidden, word = state
                hidden, out = self.decoder(self.target(word), hidden, source)
                logits = self.output(out)
                return (hidden, ops.argmax(logits)), ops.max(logits, -1)

            first = self.decoder.initial_state(source), ops.zeros_like(tokens[:, 0]) + START
            return ops.loop(step, first, STEPS)[1]

    return Translator()


def _pyattn(threads: int, accelerate: bool) -> Run:
    library = peers.pyattn(threads)
    proto = library.export(_model(), {"tokens": _tokens()}, verify=False)
    session = library.ort.session(proto, threads=threads, accelerate=accelerate)
    out = np.full((BATCH, STEPS), np.nan, np.float32)
    return peers.onnx_bound(session, {"tokens": _tokens()}, {"output": out})


@cache
def _torch_model() -> Any:
    torch = import_module("torch")
    functional = torch.nn.functional

    class Translator(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.source = torch.nn.Embedding(WORDS, EMBEDDED)
            self.encoder = torch.nn.GRU(EMBEDDED, HIDDEN, bidirectional=True, batch_first=True)
            self.target = torch.nn.Embedding(WORDS, EMBEDDED)
            self.first = torch.nn.Linear(HIDDEN, HIDDEN)
            self.query = torch.nn.Linear(HIDDEN, UNITS, bias=False)
            self.key = torch.nn.Linear(2 * HIDDEN, UNITS, bias=False)
            self.v = torch.nn.Parameter(torch.zeros(UNITS))
            self.cell = torch.nn.GRUCell(EMBEDDED + 2 * HIDDEN, HIDDEN)
            self.maxout = torch.nn.Linear(EMBEDDED + 3 * HIDDEN, 2 * MAXOUT)
            self.output = torch.nn.Linear(MAXOUT, WORDS)

        def forward(self, tokens: Any) -> Any:
            states, _ = self.encoder(self.source(tokens))
            keys = self.key(states)
            hidden = torch.tanh(self.first(states[:, 0, HIDDEN:]))
            word, chosen = torch.full_like(tokens[:, 0], START), []
            for _ in range(STEPS):
                y = self.target(word)
                scores = torch.tanh(self.query(hidden)[:, None] + keys) @ self.v
                weights = functional.softmax(scores, 1)
                context = (weights[:, None] @ states)[:, 0]
                after = self.cell(torch.cat([y, context], 1), hidden)
                both = self.maxout(torch.cat([hidden, y, context], 1))
                logits = self.output(both.unflatten(1, (MAXOUT, 2)).amax(2))
                best, word = logits.max(1)
                chosen.append(best)
                hidden = after
            return torch.stack(chosen, 1)

    theirs = Translator()
    theirs.load_state_dict({name: torch.from_numpy(x) for name, x in _state().items()})
    return theirs.eval()


def _state() -> dict[str, Array]:
    """Our parameters under torch's names."""
    ours = dict(_model().parameters())
    for mine, theirs in (
        ("decoder.attention.", ""), ("decoder.first.", "first."), ("decoder.cell.", "cell."),
        ("decoder.output.linear.", "maxout."),
    ):  # fmt: skip
        for name in [name for name in ours if name.startswith(mine)]:
            ours[theirs + name.removeprefix(mine)] = ours.pop(name)
    return ours


@cache
def _file(*, dynamo: bool) -> str:
    tokens = import_module("torch").from_numpy(_tokens())
    if dynamo:
        return torch_export.dynamo("translator", _torch_model(), {"tokens": tokens}, ["out"], None)
    return torch_export.traced("translator", _torch_model(), {"tokens": tokens}, ["out"], {})


def _exported(threads: int, dynamo: bool) -> Run:
    return peers.onnx_run(threads, _file(dynamo=dynamo), {"tokens": _tokens()}, (BATCH, STEPS))


def _openvino(threads: int) -> Run:
    model = import_module("openvino").Core().read_model(_file(dynamo=False))
    return peers.openvino_bound(peers.openvino_compile(threads, model, "f32"), [_tokens()])


def _torch(threads: int) -> Run:
    torch = peers.torch(threads)
    model, tokens = _torch_model(), torch.from_numpy(_tokens())
    return peers.torch_run(threads, lambda: model(tokens))


@cache
def _exact() -> Array:
    """In float64, step by step (arXiv:1409.0473, appendix A; the reset gate as in cuDNN)."""
    w = {name: array.astype(np.float64) for name, array in _state().items()}
    x = w["source.weight"][_tokens()]
    both = []
    for end, order in (("", range(LENGTH)), ("_reverse", reversed(range(LENGTH)))):
        names = [f"encoder.{name}_l0{end}" for name in _GRU]
        h, states = np.zeros((BATCH, HIDDEN)), np.zeros((BATCH, LENGTH, HIDDEN))
        for t in order:
            states[:, t] = h = _gru(x[:, t], h, *(w[name] for name in names))
        both.append(states)
    states = np.concatenate(both, 2)
    keys = states @ w["key.weight"].T
    hidden = np.tanh(states[:, 0, HIDDEN:] @ w["first.weight"].T + w["first.bias"])
    word, chosen = np.full(BATCH, START), []
    for _ in range(STEPS):
        y = w["target.weight"][word]
        scores = np.tanh((hidden @ w["query.weight"].T)[:, None] + keys) @ w["v"]
        weights = np.exp(scores - scores.max(1, keepdims=True))
        context = np.einsum("bs,bse->be", weights / weights.sum(1, keepdims=True), states)
        given = np.concatenate([y, context], 1)
        after = _gru(given, hidden, *(w[f"cell.{name}"] for name in _GRU))
        pairs = np.concatenate([hidden, y, context], 1) @ w["maxout.weight"].T + w["maxout.bias"]
        out = pairs.reshape(BATCH, MAXOUT, 2).max(2)
        logits = out @ w["output.weight"].T + w["output.bias"]
        word, hidden = logits.argmax(1), after
        chosen.append(logits.max(1))
    return np.stack(chosen, 1)


_GRU = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _gru(x: Array, h: Array, w: Array, u: Array, b: Array, c: Array) -> Array:
    given, inner = np.split(x @ w.T + b, 3, 1), np.split(h @ u.T + c, 3, 1)
    r, z = ((1 + np.tanh((given[i] + inner[i]) / 2)) / 2 for i in (0, 1))
    n = np.tanh(given[2] + r * inner[2])
    return np.asarray((1 - z) * n + z * h)
