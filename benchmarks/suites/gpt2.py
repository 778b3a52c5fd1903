"""A decoder of the size of GPT-2: reading a prompt, and one more token behind 2048.

The files that torch's exporters make get the cache as inputs and return a longer one, which is how
models are exported; pyattn's is written in place. All return the logits of the last token.
"""

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks import gpt2, limits, peers
from benchmarks.harness import Build, Case, Prepared, Run

PROMPT, PAST = 512, 2048


def cases(threads: int) -> Iterator[Case]:
    """A prefill and a step of decoding."""
    try:
        import_module("transformers")
    except ImportError as missing:
        print(f"gpt2 is left out: {missing}")
        return
    for name, new, past in ((f"prefill {PROMPT}", PROMPT, 0), (f"decode at {PAST}", 1, PAST)):
        contenders: dict[str, Build] = {
            "pyattn": partial(_pyattn, new, past, threads, True),
            "pyattn.export in onnxruntime": partial(_pyattn, new, past, threads, False),
            "torch.onnx.export in onnxruntime": partial(_exported, new, past, threads, True),
            "torch.onnx.export dynamo=False in onnxruntime": partial(
                _exported, new, past, threads, False
            ),
            "openvino": partial(_openvino, new, past, threads),
            "torch": partial(_torch, new, past, threads),
        }
        yield Case(
            name=f"gpt2/{name}",
            operations=gpt2.operations(new, past),
            unit="FLOP",
            exact=partial(gpt2.exact, new + past),
            contenders=contenders,
            tolerance=1e-4,
            relative=1e-5,
            bytes_read=gpt2.bytes_read(past) if past else None,
            limit=limits.READ if past else limits.FLOAT32,
            group="gpt2",
        )


def _pyattn(new: int, past: int, threads: int, accelerate: bool) -> Run:
    ort = peers.pyattn(threads).ort
    run = ort.session(gpt2.step_file(), threads=threads, accelerate=accelerate)
    decoder = ort.Decoder(run, batch=1, capacity=past + new)
    ids = gpt2.tokens(past + new)
    if past:
        decoder(ids[:, :past])

    def call() -> Any:
        decoder.lengths[:] = past
        return decoder(ids[:, past:])

    return call


def _exported(new: int, past: int, threads: int, dynamo: bool) -> Prepared:
    session = peers.onnx_session(threads, gpt2.torch_file(dynamo=dynamo))
    inputs = session.get_inputs()
    given = dict(zip((x.name for x in inputs), gpt2.feeds(new, past).values(), strict=True))
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    names = [x.name for x in session.get_outputs()]

    def call() -> Any:
        for name in names:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    return Prepared(call, lambda value: value.numpy())


def _openvino(new: int, past: int, threads: int) -> Run:
    model = import_module("openvino").Core().read_model(gpt2.torch_file(dynamo=False))
    compiled = peers.openvino_compile(threads, model, "f32")
    return peers.openvino_bound(compiled, list(gpt2.feeds(new, past).values()))


def _torch(new: int, past: int, threads: int) -> Run:
    """transformers with its growing cache, cut back to the past behind each call."""
    torch = peers.torch(threads)
    model, cache_class = gpt2.torch_model(), import_module("transformers").DynamicCache
    ids = torch.from_numpy(gpt2.tokens(past + new)[:, past:].copy())
    cache = cache_class()
    if past:
        for i in range(gpt2.LAYERS):
            pair = (gpt2.past(past)[f"past.{i}.{kind}"] for kind in ("key", "value"))
            cache.update(*(torch.from_numpy(x) for x in pair), i)

    def call() -> Any:
        found = model(
            input_ids=ids, past_key_values=cache if past else None, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        if past:
            cache.crop(-new)
        return found.logits[:, -1]

    return peers.torch_run(threads, call)
