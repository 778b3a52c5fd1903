"""pyattn's operators inside ONNX Runtime, against its own and against the bodies of functions.

All contenders but those of the sentences are sessions with bound inputs and outputs.
"""

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks import additive, attention, attention_peers, limits, peers
from benchmarks.attention import Problem
from benchmarks.harness import Build, Case, Run
from benchmarks.suites import minilm

PROBLEMS = (
    Problem(1, 32, 8, 1, 4096, 128, decode=True),
    Problem(1, 8, 8, 4096, 4096, 64, causal=True),
)
SENTENCES = 32


def cases(threads: int) -> Iterator[Case]:
    """Decoding, prefill, additive attention, and a packed sentence encoder."""
    for problem in PROBLEMS:
        contenders = {
            "pyattn": partial(_attention, problem, threads),
            "onnxruntime Attention": partial(
                attention_peers.onnx_attention, problem, threads, "float32"
            ),
        }
        limit = limits.READ if problem.decode else limits.FLOAT32
        yield attention_peers.case("onnx", problem, threads, limit=limit, contenders=contenders)
    for shape in additive.SHAPES[:1]:
        yield Case(
            name=f"onnx/additive {shape.name}",
            operations=shape.operations,
            unit="tanh",
            exact=partial(additive.exact, shape),
            contenders={
                "pyattn": partial(_additive, shape, threads, True),
                "onnxruntime body": partial(_additive, shape, threads, False),
            },
            tolerance=additive.TOLERANCE,
        )
    yield from _sentences(threads)


def _bound(session: Any, sets: list[peers.Feeds], shape: tuple[int, ...]) -> Run:
    """A call that goes round the sets of inputs."""
    name = session.get_outputs()[0].name
    runs = [
        peers.onnx_bound(session, feeds, {name: np.full(shape, np.nan, np.float32)})
        for feeds in sets
    ]
    turns = cycle(runs)
    return lambda: next(turns)()


def _attention(problem: Problem, threads: int) -> Run:
    library = peers.pyattn(threads)

    def model(query: Any, key: Any, value: Any) -> Any:
        return library.scaled_dot_product_attention(query, key, value, is_causal=problem.causal)

    sets = [
        dict(zip(("query", "key", "value"), arrays, strict=True))
        for arrays in attention.inputs(problem)
    ]
    proto = library.export(model, sets[0], verify=False)
    session = library.ort.session(proto, threads=threads)
    return _bound(session, sets, problem.query_shape)


def _additive(shape: additive.Shape, threads: int, accelerate: bool) -> Run:
    library = peers.pyattn(threads)
    feeds = dict(zip(("query", "key", "value", "v"), additive.inputs(shape), strict=True))

    def model(query: Any, key: Any, value: Any, v: Any) -> Any:
        return library.additive_attention(query, key, value, v)

    proto = library.export(model, feeds, verify=False)
    session = library.ort.session(proto, threads=threads, accelerate=accelerate)
    return _bound(session, [feeds], feeds["query"].shape)


def _sentences(threads: int) -> Iterator[Case]:
    """Sentences of different lengths, packed, against the padded file and other libraries."""
    try:
        padded = minilm.sentences_case(SENTENCES, threads)
    except ImportError as missing:
        print(f"onnx/minilm is left out: {missing}")
        return
    contenders: dict[str, Build] = {
        "pyattn": partial(_packed, threads, True),
        "packed in onnxruntime": partial(_packed, threads, False),
        **{
            name: build
            for name, build in padded.contenders.items()
            if name not in ("pyattn", "pyattn.export in onnxruntime")
        },
        "padded in onnxruntime": padded.contenders["pyattn.export in onnxruntime"],
        "openvino": partial(_openvino, threads),
    }
    yield Case(
        name=f"onnx/minilm {SENTENCES} sentences",
        operations=padded.operations,
        unit="FLOP",
        exact=padded.exact,
        contenders=contenders,
        tolerance=padded.tolerance,
        limit=limits.FLOAT32,
    )


def _packed(threads: int, accelerate: bool) -> Run:
    library = peers.pyattn(threads)
    ids, mask = minilm.sentences(SENTENCES)
    feeds = {
        "input_ids": ids[mask > 0],
        "cu_seqlens": np.cumsum([0, *mask.sum(axis=1)], dtype=np.int64),
    }
    encoder = minilm.encoder()
    proto = library.export(encoder, encoder.example_inputs(packed=True), verify=False)
    session = library.ort.session(proto, threads=threads, accelerate=accelerate)
    return _bound(session, [feeds], (len(ids), encoder.bert.config.hidden_size))


def _openvino(threads: int) -> Run:
    """OpenVINO on the padded file in standard operators."""
    openvino = import_module("openvino")
    library, encoder = peers.pyattn(threads), minilm.encoder()
    inputs = encoder.example_inputs()
    proto = library.export(encoder, inputs, target="primitive", opset=18, verify=False)
    model = openvino.Core().read_model(proto.SerializeToString())
    compiled = peers.openvino_compile(threads, model, "f32")
    return peers.openvino_bound(compiled, minilm.sentences(SENTENCES))
