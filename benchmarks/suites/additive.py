"""Additive (Bahdanau) attention, forward, float32, query and key projected already."""

from collections.abc import Iterator
from functools import partial

from benchmarks import additive
from benchmarks.additive import SHAPES, TOLERANCE
from benchmarks.harness import Case


def cases(threads: int) -> Iterator[Case]:
    """One case per shape."""
    for shape in SHAPES:
        yield Case(
            name=f"additive/{shape.name}",
            operations=shape.operations,
            unit="tanh",
            exact=partial(additive.exact, shape),
            contenders={
                "pyattn": partial(additive.pyattn, shape, threads),
                "torch eager": partial(additive.torch, shape, threads),
                "torch.compile": partial(additive.torch_compiled, shape, threads),
                "jax": partial(additive.jax, shape, threads),
                "keras": partial(additive.keras, shape, threads),
                "onnxruntime": partial(additive.onnxruntime, shape, threads),
                "numpy": partial(additive.numpy, shape),
            },
            tolerance=TOLERANCE,
        )
