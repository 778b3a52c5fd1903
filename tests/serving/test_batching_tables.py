"""Tables of axes that say how requests run together: wrong ones are refused at load."""

from __future__ import annotations

import pytest
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import ModelError
from pyattn_serving.engine.layout import parse

from . import models
from .test_batching import INPUTS, OUTPUTS


def with_pad(pad):
    return {
        **models.PADDED,
        "inputs": {**models.PADDED["inputs"], "ids": {"batch": 0, "sequence": 1, "pad": pad}},
    }


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("[", "is not JSON"),
        ("[]", "must be a table"),
        ({**models.PADDED, "kind": "other"}, "'kind' must be"),
        ({**models.PADDED, "more": 1}, "unknown entry 'more'"),
        ({**models.PADDED, "inputs": []}, "'inputs' must be a table"),
        ({**models.PADDED, "inputs": {"ids": {"batch": 0}}, "mask": None}, "'mask' is not des"),
        ({**models.PADDED, "mask": "none"}, "the mask 'none' must be an input"),
        ({**models.PADDED, "offsets": "ids"}, "'offsets' does not belong"),
        ({**models.PADDED, "outputs": {"none": {"batch": 0}}}, "no output 'none'"),
        ({**models.PADDED, "outputs": {"total": {}}}, "'batch' must be an axis"),
        ({**models.PADDED, "outputs": {"total": {"batch": True}}}, "'batch' must be an axis"),
        ({**models.PADDED, "outputs": {"total": {"batch": 0, "sequence": 0}}}, "one axis twice"),
        ({**models.PADDED, "outputs": {"total": 1}}, "must be a table; got 1"),
        (with_pad("x"), "'ids' of INT64 cannot be filled up with 'x'"),
        (with_pad(0.5), "cannot be filled up with 0.5"),
        (with_pad(1 << 64), "cannot be filled up with 18446744073709551616"),
        ({**models.PADDED, "outputs": {"total": {"batch": 0, "pad": None}}}, "'pad' must be"),
        (
            {**models.PADDED, "inputs": {n: {"batch": 0} for n in INPUTS}},
            "must be an input with a 'sequence'",
        ),
    ],
)
def test_wrong_tables_are_refused(tmp_path, table, problem):
    path = models.save(models.table_sum(table), tmp_path / "model.onnx")
    engine = Engine([ModelSource.of(path)])
    with pytest.raises(ModelError, match=r"model file .*model\.onnx: ") as caught:
        engine.load()
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({**models.PACKED, "offsets": None}, "'offsets' must name an input"),
        ({**models.PACKED, "offsets": "ids"}, "'offsets' must name an input"),
        ({**models.PACKED, "mask": "ids"}, "'mask' does not belong"),
        ({**models.PACKED, "outputs": {"total": {"axis": 0}}}, "'per' must be"),
        ({**models.PACKED, "inputs": {"ids": {"axis": -1}}}, "'axis' must be an axis"),
        ({**models.PACKED, "inputs": {}}, "'ids' is not described"),
    ],
)
def test_wrong_packed_tables_are_refused(table, problem):
    with pytest.raises(ModelError) as caught:
        parse(table, ("ids", "offsets"), OUTPUTS)
    assert problem in str(caught.value)
