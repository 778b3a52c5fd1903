"""Forward and backward of scaled dot-product attention, float32, against PyTorch's autograd.

Every contender computes the output, the loss ``sum(output * cotangent)`` and the gradients of
query, key and value.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks import attention, limits, peers
from benchmarks.attention import Array, Problem
from benchmarks.attention_peers import checked
from benchmarks.harness import Case, Prepared, UnavailableError

PROBLEMS = (
    Problem(1, 12, 12, 512, 512, 64),
    Problem(1, 8, 8, 4096, 4096, 64, causal=True),
)
TOLERANCE = 1e-5
RELATIVE = 2e-6
# Above this, differentiating the expansion would take many times as much memory as these scores.
EXPANSION_BYTES = 2**27


def cases(threads: int) -> Iterator[Case]:
    """One case per shape; backward counts as five matrix products to forward's two."""
    for problem in PROBLEMS:
        cotangent = partial(_cotangent, problem)
        yield Case(
            name=f"sdpa-backward/{problem.name}",
            operations=3.5 * attention.operations(problem),
            unit="FLOP",
            exact=partial(_exact, problem),
            contenders={
                "pyattn": partial(_pyattn, problem, cotangent, threads),
                "torch": partial(_torch, problem, cotangent, threads),
                "jax": partial(_jax, problem, cotangent, threads),
            },
            tolerance=TOLERANCE,
            relative=RELATIVE,
            limit=limits.FLOAT32,
        )


@cache
def _cotangent(problem: Problem) -> Array:
    return np.random.default_rng(7).standard_normal(problem.query_shape, np.float32)


def _exact(problem: Problem) -> Array:
    return attention.exact_gradients(problem, _cotangent(problem))


def _joined(arrays: Any) -> Array:
    """Output and gradients one after another, as `attention.exact_gradients` returns them."""
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])


def _pyattn(problem: Problem, cotangent: Callable[[], Array], threads: int) -> Prepared:
    library = peers.pyattn(threads)
    op = import_module("pyattn.tensor").REGISTRY.get("sdpa")
    if op is not None and op.vjp is None and problem.score_bytes > EXPANSION_BYTES:
        raise UnavailableError("no fused gradient yet, and by expansion it takes gigabytes")
    given = cotangent()

    def loss(query: Any, key: Any, value: Any) -> Any:
        out = library.scaled_dot_product_attention(query, key, value, is_causal=problem.causal)
        return library.ops.sum(out * given), out

    both = library.value_and_grad(loss, (0, 1, 2), has_aux=True)
    run = checked(partial(both, *attention.inputs(problem)[0]))

    def finish(answer: Any) -> Array:
        (_, out), gradients = answer
        return _joined([out, *gradients])

    return Prepared(run, finish)


def _torch(problem: Problem, cotangent: Callable[[], Array], threads: int) -> Prepared:
    torch = peers.torch(threads)
    arrays = attention.inputs(problem)[0]
    leaves = [torch.from_numpy(array).requires_grad_() for array in arrays]
    given = torch.from_numpy(cotangent())
    call = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=problem.causal)

    def run() -> Any:
        out = call(*leaves)
        return out, *torch.autograd.grad((out * given).sum(), leaves)

    return Prepared(run, lambda answer: _joined([peers.torch_array(x) for x in answer]))


def _jax(problem: Problem, cotangent: Callable[[], Array], threads: int) -> Prepared:
    """In JAX's layout (B, T, H, D), under ``jit``."""
    library = peers.jax(threads)
    call = partial(import_module("jax.nn").dot_product_attention, is_causal=problem.causal)

    def turned(array: Any) -> Array:
        return np.ascontiguousarray(np.asarray(array).transpose(0, 2, 1, 3))

    given = library.device_put(turned(cotangent()))
    leaves = [library.device_put(turned(array)) for array in attention.inputs(problem)[0]]

    def loss(*arrays: Any) -> Any:
        out = call(*arrays)
        return (out * given).sum(), out

    both = library.jit(library.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

    def finish(answer: Any) -> Array:
        (_, out), gradients = answer
        return _joined([turned(x) for x in (out, *gradients)])

    return Prepared(lambda: library.block_until_ready(both(*leaves)), finish)
