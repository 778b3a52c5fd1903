"""Forward and backward of additive attention, float32, against automatic differentiation.

Every contender computes the output, the loss ``sum(output * cotangent)`` and the gradients of
query, key, value and v.
"""

from collections.abc import Iterator
from functools import partial

from benchmarks import additive
from benchmarks.additive import SHAPES, TOLERANCE
from benchmarks.harness import Case

RELATIVE = 1e-4  # of the largest gradient: PyTorch adds that of v up over all rows and keys in turn


def cases(threads: int) -> Iterator[Case]:
    """One case per shape; a tanh is counted once, as in the forward suite."""
    for shape in SHAPES:
        yield Case(
            name=f"additive-backward/{shape.name}",
            operations=shape.operations,
            unit="tanh",
            exact=partial(additive.exact_gradients, shape),
            contenders={
                "pyattn": partial(additive.pyattn_gradient, shape, threads),
                "torch eager": partial(additive.torch_gradient, shape, threads),
                "torch.compile": partial(additive.torch_gradient, shape, threads, compiled=True),
                "jax": partial(additive.jax_gradient, shape, threads),
            },
            tolerance=TOLERANCE,
            relative=RELATIVE,
        )
