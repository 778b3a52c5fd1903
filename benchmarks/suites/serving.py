"""The server's batcher: a hundred sentences of many lengths that come at the same time.

Every contender is the engine of ``pyattn-serve`` with the same exported model and the same kernels,
and differs only in what runs together: nothing, whatever waits, requests of similar length, or all
of them packed without padding. HTTP and tokenising are left out. One call answers all sentences.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import limits, torch_export
from benchmarks.harness import Case, Run
from benchmarks.suites import minilm

COUNT = 100
AXES = {"batch": 0, "sequence": 1, "pad": 0}
TABLES: dict[str, dict[str, Any]] = {
    "padded": {
        "kind": "padded",
        "mask": "attention_mask",
        "inputs": {"input_ids": AXES, "attention_mask": AXES},
        "outputs": {"sentence_embedding": {"batch": 0, "sequence": None}},
    },
    "packed": {
        "kind": "packed",
        "offsets": "cu_seqlens",
        "inputs": {"input_ids": {"axis": 0}},
        "outputs": {"sentence_embedding": {"axis": 0, "per": "sequence"}},
    },
}
ALL = {"max_padding": 1.0, "max_tokens": 1 << 40}


def cases(threads: int) -> Iterator[Case]:
    """One case, where the server is installed and the checkpoint is there."""
    if find_spec("pyattn_serving") is None:
        print("serving is left out: the server is not installed")
        return
    try:
        minilm.checkpoint()
    except ImportError as missing:
        print(f"serving is left out: {missing}")
        return
    ids, mask = minilm.sentences(COUNT)
    contenders: dict[str, Callable[[], Run]] = {
        "pyattn-serve packed": partial(_served, "packed", {}, threads),
        "pyattn-serve similar lengths": partial(_served, "padded", {}, threads),
        "pyattn-serve one by one": partial(_served, "padded", {"max_batch": 1}, threads),
        "pyattn-serve padded to the longest": partial(_served, "padded", ALL, threads),
    }
    yield Case(
        name=f"serving/minilm/{COUNT} sentences",
        operations=minilm.operations(mask, minilm._config()),
        unit="FLOP",
        exact=partial(minilm._exact, ids, mask),
        contenders=contenders,
        tolerance=minilm.TOLERANCE,
        limit=limits.FLOAT32,
    )


def _served(kind: str, settings: dict[str, Any], threads: int) -> Run:
    """All sentences at once, in an order that says nothing of their length."""
    engines = import_module("pyattn_serving.engine.engine")
    chosen = import_module("pyattn_serving.engine.model_settings").ModelSettings(**settings)
    source = engines.ModelSource.of(_export(kind), kind)
    engine = engines.Engine([source], threads=threads, concurrency=1, settings=chosen)
    engine.load()
    model = engine.model(kind)
    ids, mask = minilm.sentences(COUNT)
    requests = [_request(kind, row[keep > 0]) for row, keep in zip(ids, mask, strict=True)]
    loop = asyncio.new_event_loop()

    async def answer() -> NDArray[Any]:
        outputs = tuple(model.outputs)
        answers = await asyncio.gather(*(engine.infer(model, one, outputs) for one in requests))
        return np.concatenate([one[0] for one in answers])

    return lambda: loop.run_until_complete(answer())


def _request(kind: str, ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    if kind == "packed":
        return {"input_ids": ids, "cu_seqlens": np.array([0, len(ids)])}
    return {"input_ids": ids[None]}


@cache
def _export(kind: str) -> Path:
    path = Path(torch_export.path(f"serving-{kind}.onnx"))
    model = minilm.encoder()
    export = import_module("pyattn").export
    proto = export(model, model.example_inputs(packed=kind == "packed"))
    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = "pyattn.batching", json.dumps(TABLES[kind])
    path.write_bytes(proto.SerializeToString())
    return path
