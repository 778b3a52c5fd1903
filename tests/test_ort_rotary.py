"""The operator of rotary embedding inside ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import ops
from pyattn.ort import describe, session
from tests.test_ort import DTYPES, OPSET, narrow

ROTATIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "heads apart": ((2, 3, 7, 20), {}),
    "part": ((2, 3, 7, 23), {"rotary_embedding_dim": 18}),
    "heads together": ((2, 7, 60), {"num_heads": 3}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("positions", [None, np.int32, np.int64], ids=str)
def test_rotary_bits_are_those_of_the_eager_call(
    dtype: Any, rotation: str, interleaved: bool, positions: Any, rng: Any
) -> None:
    shape, options = ROTATIONS[rotation]
    pairs = options.get("rotary_embedding_dim", 20) // 2
    rows = (2, 7) if positions is None else (11,)
    arrays = {"x": rng.standard_normal(shape).astype(np.float32)}
    for name in ("cos_cache", "sin_cache"):
        arrays[name] = rng.standard_normal((*rows, pairs)).astype(np.float32)
    floats = tuple(arrays)
    if positions is not None:
        arrays["position_ids"] = rng.integers(0, 11, (2, 7)).astype(positions)

    def turn(**inputs: Any) -> Any:
        return ops.rotary_embedding(**inputs, interleaved=interleaved, **options)

    model = narrow(floats, turn, dtype)
    run = session(pa.export(model, arrays, opset=OPSET, verify=False))
    assert [x.accelerated for x in describe(run)] == [True]
    np.testing.assert_array_equal(run.run(None, arrays)[0], model(**arrays)[0])


def test_attention_that_turns_calls_the_same_function(rng: Any) -> None:
    names = ("query", "key", "value", "rotary_cos", "rotary_sin")
    shapes = [(2, 4, 5, 16), (2, 4, 9, 16), (2, 4, 9, 16), (12, 6), (12, 6)]
    given = {
        n: rng.standard_normal(s).astype(np.float32) for n, s in zip(names, shapes, strict=True)
    }

    def model(**inputs: Any) -> Any:
        return pa.scaled_dot_product_attention(**inputs, is_causal="bottom_right")

    run = session(pa.export(model, given, opset=OPSET, verify=False))
    rotary = "RotaryEmbeddingPositionsPairs6Of16"
    operators = [rotary, rotary, "ScaledDotProductAttentionCausalBottomRight"]
    assert [(x.operator, x.accelerated) for x in describe(run)] == [(n, True) for n in operators]
    np.testing.assert_array_equal(run.run(None, given)[0], model(**given))


def test_one_function_serves_all_ways_to_say_the_same(rng: Any) -> None:
    x = rng.standard_normal((2, 3, 5, 8)).astype(np.float32)
    table, at = rng.standard_normal((9, 4)).astype(np.float32), rng.integers(0, 9, (2, 5))

    def model(x: Any, table: Any, at: Any) -> Any:
        short = ops.astype(at, np.int32)
        one = ops.rotary_embedding(x, table, table, at)
        two = ops.rotary_embedding(one, table, table, short, rotary_embedding_dim=8)
        return ops.rotary_embedding(two, table, table, at, num_heads=3)

    given = {"x": x, "table": table, "at": at}
    for opset in (18, OPSET):
        proto = pa.export(model, given, opset=opset)
        assert [f.name for f in proto.functions] == ["RotaryEmbeddingPositionsPairs4Of8"]
