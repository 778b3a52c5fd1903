"""The other operators inside ONNX Runtime: against the bodies of their functions, and against ONNX
Runtime's own where it has one. Inputs and outputs are bound.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import limits, peers
from benchmarks.harness import Build, Case, Run
from tests.naive import naive_sdpa
from tests.naive_luong import naive_luong

Array = NDArray[Any]
Model = Callable[[Any], Callable[..., Any]]  # from the library to the function to export

HEADS, SIZE = 12, 64
LENGTHS = (37, 128, 5, 256, 64, 190, 91, 17, 143, 220, 33, 78, 12, 201, 160, 110)
PAGE, CONTEXT, BATCH = 16, 2048, 8
HALF_WIDTH = 10


def cases(threads: int) -> Iterator[Case]:
    """Rotary embedding, packed and paged attention, a local alignment, a cache."""
    yield from (_rotary(threads), _varlen(threads), _paged(threads), _local(threads))
    yield _cache(threads)


def _case(
    name: str,
    threads: int,
    model: Model,
    feeds: Callable[[], peers.Feeds],
    exact: Callable[[], Array],
    operations: float,
    *,
    bytes_moved: float | None = None,
    own: Callable[[], bytes] | None = None,
    own_name: str = "",
    tolerance: float = 2e-5,
) -> Case:
    contenders: dict[str, Build] = {
        "pyattn": partial(_function, threads, True, model, feeds),
        "onnxruntime body": partial(_function, threads, False, model, feeds),
    }
    if own is not None:
        contenders[f"onnxruntime {own_name}"] = partial(_own, threads, own, feeds)
    return Case(
        name=f"operators/{name}",
        operations=operations,
        unit="FLOP",
        exact=exact,
        contenders=contenders,
        tolerance=tolerance,
        bytes_read=bytes_moved,
        limit=limits.READ if bytes_moved else limits.FLOAT32,
    )


def _function(
    threads: int, accelerate: bool, model: Model, feeds: Callable[[], peers.Feeds]
) -> Run:
    library, given = peers.pyattn(threads), feeds()
    proto = library.export(model(library), dict(given), verify=False)
    return _bound(library.ort.session(proto, threads=threads, accelerate=accelerate), given)


def _own(threads: int, proto: Callable[[], bytes], feeds: Callable[[], peers.Feeds]) -> Run:
    return _bound(peers.onnx_session(threads, proto()), feeds())


def _bound(session: Any, given: peers.Feeds) -> Run:
    (output,) = session.get_outputs()
    shape = session.run(None, given)[0].shape
    return peers.onnx_bound(session, given, {output.name: np.full(shape, np.nan, np.float32)})


def _draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _rotary(threads: int) -> Case:
    heads, length, size = 32, 2048, 128

    @cache
    def feeds() -> peers.Feeds:
        angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
        tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
        return {
            "x": _draw(1, 1, heads, length, size),
            **{name: table.astype(np.float32)[None] for name, table in tables.items()},
        }

    def exact() -> Array:
        x, cos, sin = (array.astype(np.float64) for array in feeds().values())
        one, other = np.split(x, 2, -1)
        return np.concatenate([one * cos - other * sin, one * sin + other * cos], -1)

    def own() -> bytes:
        make_node = import_module("onnx.helper").make_node
        node = make_node("RotaryEmbedding", list(feeds()), ["y"])
        return peers.onnx_model([node], feeds(), "y", {})

    moved = 8.0 * heads * length * size
    return _case(
        f"rotary 1,{heads},{length},{size}", threads,
        lambda pa: lambda x, cos, sin: pa.ops.rotary_embedding(x, cos, sin), feeds, exact,
        3.0 * heads * length * size, bytes_moved=moved, own=own, own_name="RotaryEmbedding",
    )  # fmt: skip


def _varlen(threads: int) -> Case:
    offsets = np.cumsum([0, *LENGTHS])

    @cache
    def feeds() -> peers.Feeds:
        rows = int(offsets[-1])
        arrays = {name: _draw(i, rows, HEADS, SIZE) for i, name in enumerate(("q", "k", "v"))}
        return {**arrays, "offsets": offsets}

    def exact() -> Array:
        q, k, v = (feeds()[name].astype(np.float64) for name in ("q", "k", "v"))
        parts = []
        for begin, end in pairwise(offsets):
            one = [x[begin:end].swapaxes(0, 1)[None] for x in (q, k, v)]
            parts.append(naive_sdpa(*one, scale=SIZE**-0.5).out[0].swapaxes(0, 1))
        return np.concatenate(parts)

    def model(pa: Any) -> Callable[..., Any]:
        return lambda q, k, v, offsets: pa.varlen_attention(q, k, v, offsets, offsets)

    operations = 4.0 * HEADS * SIZE * float(np.square(LENGTHS).sum())
    return _case(f"packed, {len(LENGTHS)} sequences", threads, model, feeds, exact, operations)


def _paged(threads: int) -> Case:
    pages = CONTEXT // PAGE

    @cache
    def feeds() -> peers.Feeds:
        table = np.random.default_rng(4).permutation(BATCH * pages).reshape(BATCH, pages)
        return {
            "q": _draw(5, BATCH, HEADS, 1, SIZE),
            "k": _draw(6, BATCH * pages, HEADS, PAGE, SIZE),
            "v": _draw(7, BATCH * pages, HEADS, PAGE, SIZE),
            "table": table.astype(np.int32),
            "lengths": np.full(BATCH, CONTEXT),
        }

    def exact() -> Array:
        given = feeds()
        k, v = (
            given[name][given["table"]].swapaxes(1, 2).reshape(BATCH, HEADS, CONTEXT, SIZE)
            for name in ("k", "v")
        )
        q, k, v = (array.astype(np.float64) for array in (given["q"], k, v))
        return naive_sdpa(q, k, v, scale=SIZE**-0.5).out

    def model(pa: Any) -> Callable[..., Any]:
        return lambda q, k, v, table, lengths: pa.paged_attention(q, k, v, table, lengths)

    count = BATCH * HEADS * CONTEXT * SIZE
    return _case(
        f"paged {BATCH},{HEADS},1,{CONTEXT},{SIZE}", threads, model, feeds, exact,
        4.0 * count, bytes_moved=8.0 * count,
    )  # fmt: skip


def _local(threads: int) -> Case:
    length = 2048

    @cache
    def feeds() -> peers.Feeds:
        scale = np.float32(SIZE**-0.25)
        return {
            "query": _draw(8, 1, length, SIZE) * scale,
            "key": _draw(9, 1, length, SIZE) * scale,
            "value": _draw(10, 1, length, SIZE),
            "position_weight": _draw(11, SIZE, SIZE) * np.float32(SIZE**-0.5),
            "position_v": _draw(12, SIZE) * np.float32(0.5),
        }

    options: dict[str, Any] = {"score": "dot", "align": "local-p", "half_width": HALF_WIDTH}

    def exact() -> Array:
        wide: dict[str, Any] = {name: x.astype(np.float64) for name, x in feeds().items()}
        return np.asarray(naive_luong(**wide, **options)["out"])

    def model(pa: Any) -> Callable[..., Any]:
        return lambda **given: pa.luong_attention(**given, **options)

    return _case(
        f"local-p {length},{length},{SIZE}", threads, model, feeds, exact,
        4.0 * length * (2 * HALF_WIDTH + 1) * SIZE, tolerance=1e-3,
    )  # fmt: skip


def _cache(threads: int) -> Case:
    """One row for each entry, into a cache that the output is bound to as well."""

    @cache
    def feeds() -> peers.Feeds:
        return {
            "cache": _draw(13, BATCH, HEADS, CONTEXT, SIZE),
            "update": _draw(14, BATCH, HEADS, 1, SIZE),
            "at": np.arange(BATCH) * 100,
        }

    def exact() -> Array:
        out = feeds()["cache"].astype(np.float64)
        for b, at in enumerate(feeds()["at"]):
            out[b, :, at] = feeds()["update"][b, :, 0]
        return out

    def in_place(accelerate: bool) -> Run:
        library, given = peers.pyattn(threads), feeds()

        def model(cache: Any, update: Any, at: Any) -> Any:
            return library.update_cache(cache, update, at)

        proto = library.export(model, dict(given), verify=False)
        session = library.ort.session(proto, threads=threads, accelerate=accelerate)
        memory = given["cache"].copy()
        return peers.onnx_bound(session, given | {"cache": memory}, {"output": memory})

    return Case(
        name=f"operators/cache {BATCH},{HEADS},{CONTEXT},{SIZE}",
        operations=float(BATCH * HEADS * SIZE),
        unit="FLOP",
        exact=exact,
        contenders={
            "pyattn": partial(in_place, True),
            "onnxruntime body": partial(in_place, False),
        },
        tolerance=0.0,
    )
