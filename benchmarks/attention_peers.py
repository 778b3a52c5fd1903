"""Every library's scaled dot-product attention, called as its documentation says.

A library that wants another layout gets its inputs in that layout before the clock starts, and its
answer is put back after it stops.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks import attention, peers
from benchmarks.attention import DTYPES, Array, Problem
from benchmarks.harness import Build, Case, Prepared, Run, UnavailableError
from tests.naive import naive_sdpa

NAIVE_BYTES = 2**28
SCORE_BYTES = 2**30  # above this, libraries that keep the scores are left out
FLOAT32_TOLERANCE = 1e-5
# Of the largest result. bfloat16 has 8 bits: OpenVINO rounds its scores, which are below 8, so the
# exponents are off by up to 2^-6 and the weights by as much; weights and results are rounded too.
# torch and JAX keep the scores in float32 and stay below a quarter of this.
NARROW_TOLERANCE = 2.0**-5
# On CPUs, ONNX Runtime has no bfloat16 and JAX's function no float16, and OpenVINO computes float16
# in bfloat16 where the CPU has that.
ABSENT_KERNELS = {("bfloat16", "onnxruntime"), ("float16", "jax"), ("float16", "openvino")}


def case(
    suite: str,
    problem: Problem,
    threads: int,
    *,
    limit: str | None,
    contenders: Mapping[str, Build] | None = None,
    group: str = "",
) -> Case:
    """A case of the suite with every contender, or those given."""
    narrow = problem.dtype != "float32"
    found = contenders_of(problem, threads) if contenders is None else contenders
    return Case(
        name=f"{suite}/{problem.name}",
        operations=attention.operations(problem),
        unit="FLOP",
        exact=partial(attention.exact, problem),
        contenders=found,
        tolerance=0.0 if narrow else FLOAT32_TOLERANCE,
        relative=NARROW_TOLERANCE if narrow else 0.0,
        bytes_read=problem.key_bytes if problem.decode else None,
        limit=limit,
        group=group,
    )


def contenders_of(problem: Problem, threads: int) -> dict[str, Build]:
    """pyattn and its peers in the problem's dtype, and in float16 where that is bfloat16."""
    found: dict[str, Build] = {"pyattn": partial(pyattn, problem, threads)}
    by_dtype: dict[str, Callable[[Problem, int, str], Run | Prepared]] = {
        "torch": torch,
        "onnxruntime Attention": onnx_attention,
        "onnxruntime MultiHeadAttention": onnx_multi_head,
        "onnxruntime GroupQueryAttention": onnx_grouped,
        "openvino": openvino,
        "jax": jax,
    }
    if problem.decode and problem.heads != problem.groups:
        by_dtype["torch heads as rows"] = partial(heads_as_rows, torch)
        by_dtype["openvino heads as rows"] = partial(heads_as_rows, openvino)
    for name, build in by_dtype.items():
        if problem.dtype == "float32":
            found[name] = partial(build, problem, threads, "float32")
            continue
        for dtype in ("bfloat16", "float16"):
            if (dtype, name.split()[0]) in ABSENT_KERNELS:
                continue
            found[f"{name} {dtype}"] = partial(build, problem, threads, dtype)
    if problem.dtype == "float32":
        found["numpy"] = partial(numpy, problem)
    return found


def _in_turn(runs: list[Run]) -> Run:
    """A call that goes round the copies of the inputs."""
    if len(runs) == 1:
        return runs[0]
    turns = cycle(runs)
    return lambda: next(turns)()


def _no_window(problem: Problem) -> None:
    if problem.window is not None:
        raise UnavailableError("has no window")


def pyattn(problem: Problem, threads: int) -> Run:
    """The library itself; a dtype or an option that it does not know makes it absent."""
    call = peers.pyattn(threads).scaled_dot_product_attention
    options: dict[str, Any] = {"is_causal": problem.causal}
    if problem.window is not None:
        options["window"] = problem.window
    mask = attention.mask_of(problem)
    runs = [partial(call, q, k, v, mask, **options) for q, k, v in attention.inputs(problem)]
    return checked(_in_turn(list(runs)))


def checked(run: Run) -> Run:
    """The call itself, after a first one to see that pyattn knows the dtype and the options."""
    try:
        run()
    except TypeError as unknown:
        raise UnavailableError(str(unknown)) from unknown
    return run


def torch(problem: Problem, threads: int, dtype: str) -> Prepared:
    """``torch.nn.functional.scaled_dot_product_attention`` without a gradient."""
    _no_window(problem)
    module = peers.torch(threads)
    options: dict[str, Any] = {"is_causal": problem.causal}
    if problem.heads != problem.groups:
        options["enable_gqa"] = True
    # Tensors made in this mode skip the bookkeeping of autograd wherever they are used.
    with module.inference_mode():
        tensors = [
            [peers.torch_tensor(module, x) for x in arrays]
            for arrays in attention.inputs(problem, dtype)
        ]
        mask = attention.mask_of(problem)
        if mask is not None:
            options["attn_mask"] = module.from_numpy(mask)
    call = module.nn.functional.scaled_dot_product_attention
    return Prepared(_in_turn([partial(call, *x, **options) for x in tensors]), peers.torch_array)


def heads_as_rows(
    build: Callable[[Problem, int, str], Run | Prepared], problem: Problem, threads: int, dtype: str
) -> Prepared:
    """One query with grouped heads as a library's user may write it to read each key once.

    The H / G query heads that share a key head become its query rows, (B, G, H / G, D): the same
    memory, and the same numbers, without the repeated keys that the library would make.
    """
    turned = replace(problem, heads=problem.groups, rows=problem.heads // problem.groups)
    built = build(turned, threads, dtype)
    prepared = built if isinstance(built, Prepared) else Prepared(built)
    return Prepared(
        prepared.run, lambda answer: prepared.finish(answer).reshape(problem.query_shape)
    )


def jax(problem: Problem, threads: int, dtype: str) -> Prepared:
    """``jax.nn.dot_product_attention`` under ``jit``, in its layout (B, T, H, D)."""
    if problem.score_bytes > SCORE_BYTES:
        raise UnavailableError(f"the scores would take {problem.score_bytes / 2**20:.0f} MiB")
    library = peers.jax(threads)
    mask = attention.mask_of(problem)
    if mask is not None:
        mask = np.broadcast_to(mask, (1, 1, *mask.shape[-2:])) if mask.ndim == 2 else mask
    call = library.jit(
        partial(
            import_module("jax.nn").dot_product_attention,
            is_causal=problem.causal,
            local_window_size=problem.window,
            mask=None if mask is None else library.device_put(mask),
        )
    )
    sets = [
        [library.device_put(np.ascontiguousarray(x.transpose(0, 2, 1, 3))) for x in arrays]
        for arrays in attention.inputs(problem, dtype)
    ]

    def run(arrays: list[Any]) -> Any:
        return call(*arrays).block_until_ready()

    return Prepared(
        _in_turn([partial(run, arrays) for arrays in sets]),
        lambda answer: np.asarray(answer).transpose(0, 2, 1, 3),
    )


def openvino(problem: Problem, threads: int, dtype: str) -> Run:
    """OpenVINO's ``scaled_dot_product_attention``; grouped heads are repeated inside the model."""
    _no_window(problem)
    mask = attention.mask_of(problem)
    model = _openvino_model(problem, dtype, mask)
    compiled = peers.openvino_compile(threads, model, "f32" if dtype == "float32" else "bf16")
    runs: list[Run] = []
    for arrays in attention.inputs(problem, dtype):
        out = np.empty(problem.query_shape, DTYPES[dtype])
        given = [*arrays, *([] if mask is None else [mask])]
        runs.append(peers.openvino_bound(compiled, given, out))
    return _in_turn(runs)


def _openvino_model(problem: Problem, dtype: str, mask: Array | None) -> Any:
    library = import_module("openvino")
    ops = import_module("openvino.opset13")
    kind = {"float32": library.Type.f32, "bfloat16": library.Type.bf16}[dtype]
    shapes = (problem.query_shape, problem.key_shape, problem.key_shape)
    parameters = [ops.parameter(list(shape), kind) for shape in shapes]
    query, *shared = parameters
    if problem.heads != problem.groups:
        batch, groups, size, depth = problem.key_shape
        wide = [batch, groups, problem.heads // groups, size, depth]
        flat = [batch, problem.heads, size, depth]
        shared = [
            ops.reshape(
                ops.broadcast(ops.unsqueeze(x, ops.constant(np.array(2))), np.array(wide)),
                np.array(flat),
                False,
            )
            for x in shared
        ]
    if mask is not None:
        parameters.append(ops.parameter(list(mask.shape), library.Type.boolean))
    extra = parameters[3:]
    node = ops.scaled_dot_product_attention(query, *shared, *extra, causal=problem.causal)
    return library.Model([node], parameters, "attention")


def onnx_attention(problem: Problem, threads: int, dtype: str) -> Run:
    """The ``Attention`` operator of opset 24 on 4-D inputs."""
    _no_window(problem)
    if problem.score_bytes > 2 * SCORE_BYTES:
        raise UnavailableError(f"the scores would take {problem.score_bytes / 2**20:.0f} MiB")
    mask = attention.mask_of(problem)
    extra: peers.Feeds = {}
    if mask is not None:  # the kernel broadcasts only the axes before the last two
        extra["mask"] = np.ascontiguousarray(
            np.broadcast_to(mask, (*mask.shape[:-2], problem.rows, problem.size))
        )
    sets = [
        {"query": q, "key": k, "value": v, **extra} for q, k, v in attention.inputs(problem, dtype)
    ]
    make_node = import_module("onnx.helper").make_node
    node = make_node("Attention", list(sets[0]), ["out"], is_causal=int(problem.causal))
    session = peers.onnx_session(threads, peers.onnx_model([node], sets[0], "out", {}))
    return _in_turn([peers.onnx_bound(session, x, {"out": _empty(problem, dtype)}) for x in sets])


def _empty(problem: Problem, dtype: str) -> Array:
    return np.full(problem.query_shape, np.nan, DTYPES[dtype])


def _flat(array: Array) -> Array:
    """From (B, H, T, D) to (B, T, H * D), the layout of ONNX Runtime's own operators."""
    batch, _, rows, _ = array.shape
    return np.ascontiguousarray(array.transpose(0, 2, 1, 3)).reshape(batch, rows, -1)


def _unflat(problem: Problem, answer: Array) -> Array:
    batch, heads, rows, depth = problem.query_shape
    return answer.reshape(batch, rows, heads, depth).transpose(0, 2, 1, 3)


def onnx_multi_head(problem: Problem, threads: int, dtype: str) -> Prepared:
    """ONNX Runtime's own ``MultiHeadAttention``, on (B, T, H * D)."""
    _no_window(problem)
    if problem.heads != problem.groups:
        raise UnavailableError("MultiHeadAttention has no grouped heads")
    if problem.mask:
        raise UnavailableError("MultiHeadAttention has no boolean mask")
    arrays = [_flat(x) for x in attention.inputs(problem, dtype)[0]]
    feeds = dict(zip(("query", "key", "value"), arrays, strict=True))
    node = import_module("onnx.helper").make_node(
        "MultiHeadAttention",
        list(feeds),
        ["out"],
        domain="com.microsoft",
        num_heads=problem.heads,
        unidirectional=int(problem.causal),
    )
    session = peers.onnx_session(threads, peers.onnx_model([node], feeds, "out", {}))
    run = peers.onnx_bound(session, feeds, {"out": np.full_like(feeds["query"], np.nan)})
    return Prepared(run, partial(_unflat, problem))


def onnx_grouped(problem: Problem, threads: int, dtype: str) -> Prepared:
    """ONNX Runtime's own ``GroupQueryAttention``: causal, or one query behind a cache.

    The cache is extended in place: past and present are one buffer, in which the last key and
    value are missing before the first call.
    """
    right = 0 if problem.window is None else problem.window[1]
    if problem.mask or right or not (problem.causal or problem.decode):
        raise UnavailableError("GroupQueryAttention is always causal and has no boolean mask")
    if problem.rows not in (1, problem.size):
        raise UnavailableError("causality starts at the end of a cache")
    runs: list[Run] = []
    session = None
    for arrays in attention.inputs(problem, dtype):
        feeds, outputs = _grouped_arrays(problem, arrays)
        if session is None:
            session = peers.onnx_session(threads, _grouped_model(problem, feeds, list(outputs)))
        runs.append(peers.onnx_bound(session, feeds, outputs))
    return Prepared(_in_turn(runs), partial(_unflat, problem))


def _grouped_arrays(problem: Problem, arrays: attention.Inputs) -> tuple[peers.Feeds, peers.Feeds]:
    query, key, value = arrays
    past = problem.size - problem.rows
    feeds = {
        "query": _flat(query),
        "key": _flat(key[:, :, past:]),
        "value": _flat(value[:, :, past:]),
    }
    keys, values = key.copy(), value.copy()
    keys[:, :, past:], values[:, :, past:] = np.nan, np.nan
    if past:
        feeds |= {"past_key": keys, "past_value": values}
    feeds["last"] = np.full(problem.batch, problem.size - 1, np.int32)
    feeds["total"] = np.array(problem.size, np.int32)
    out = np.full_like(feeds["query"], np.nan)
    return feeds, {"out": out, "present_key": keys, "present_value": values}


def _grouped_model(problem: Problem, feeds: peers.Feeds, outputs: list[str]) -> bytes:
    past = ["past_key", "past_value"] if "past_key" in feeds else ["", ""]
    # Its window counts the query's own key, and -1 is none.
    left = -1 if problem.window is None else problem.window[0] + 1
    node = import_module("onnx.helper").make_node(
        "GroupQueryAttention",
        ["query", "key", "value", *past, "last", "total"],
        outputs,
        domain="com.microsoft",
        num_heads=problem.heads,
        kv_num_heads=problem.groups,
        local_window_size=left,
    )
    return peers.onnx_model([node], feeds, outputs, {})


def numpy(problem: Problem) -> Run:
    """Whole arrays of scores, as one would write it without a library."""
    if problem.score_bytes > NAIVE_BYTES:
        raise UnavailableError(f"the scores alone would take {problem.score_bytes / 2**20:.0f} MiB")
    _no_window(problem)
    mask = attention.mask_of(problem)
    runs = [
        partial(naive_sdpa, q, k, v, mask=mask, is_causal=problem.causal)
        for q, k, v in attention.inputs(problem)
    ]
    answers = [lambda run=run: run().out for run in runs]
    return _in_turn(list(answers))
