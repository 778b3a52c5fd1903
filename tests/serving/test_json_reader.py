"""The reader of arrays in JSON: the same answers as parsing them into Python objects."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyattn_serving.engine.datatypes import DATATYPES
from pyattn_serving.engine.failures import InvalidRequestError
from pyattn_serving.protocol import json_tensors, json_text
from pyattn_serving.protocol.json_text import JsonArray, parse_json, parse_request

_json = pytest.importorskip("pyattn_serving._json", reason="the extension was not built")

NUMERIC = [name for name in DATATYPES if name not in ("BF16", "BYTES")]


def request_of(data):
    text = b'{"inputs": [{"name": "x", "data": ' + data + b'}], "id": "1"}'
    return memoryview(text)


def array_of(data):
    (entry,) = parse_request(request_of(data))["inputs"]
    assert isinstance(entry["data"], JsonArray)
    return entry["data"]


def outcome(data, shape, datatype):
    """The array, or the message of the refusal."""
    try:
        return json_tensors.decode("x", data, shape, int(np.prod(shape)), DATATYPES[datatype])
    except InvalidRequestError as error:
        return str(error)


def both(data, shape, datatype):
    """What the reader and the way over Python objects make of one array."""
    return outcome(array_of(data), shape, datatype), outcome(orjson.loads(data), shape, datatype)


def check_same(data, shape, datatype):
    read, parsed = both(data, shape, datatype)
    if isinstance(parsed, str):
        assert read == parsed
        return
    assert not isinstance(read, str), read
    assert (read.dtype, read.shape) == (parsed.dtype, parsed.shape)
    assert read.tobytes() == parsed.tobytes()  # also the sign of a zero


edges = st.one_of(
    st.sampled_from([0, 127, 128, -128, -129, 255, 256, -1, 32767, 32768, 65535, 65536, 2**31]),
    st.sampled_from([2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64]),
    st.sampled_from([65504, 65519.9, 65520.0, 3.4028235677973362e38, 3.4028235677973366e38]),
    st.sampled_from([-0.0, 1.7976931348623157e308, 5e-324, 1e-46, 6e-8, 1e16, 1e22, 1e23]),
    st.sampled_from([1 + 2**-24, 1 + 3 * 2**-24, 123456789012345678]),
)
scalars = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-(2**70), 2**70),
    st.integers(-200, 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    edges,
)


@given(st.lists(scalars, max_size=6), st.sampled_from(NUMERIC), st.integers(-1, 1))
@example([1, [2, [3]], {"a": [1]}, "]"], "FP32", 0)
def test_flat_lists(values, datatype, excess):
    text = json.dumps(values).encode()
    check_same(text, (max(0, len(values) + excess),), datatype)


numbers = st.one_of(st.integers(-5, 300), st.floats(-1e6, 1e6), edges)
nested = st.recursive(numbers, lambda inner: st.lists(inner, max_size=3), max_leaves=12)


@given(st.lists(nested, max_size=3), st.lists(st.integers(0, 3), max_size=3))
@example([[], []], [2, 0, 3])
@example([[[1], [2]], [[3], [4]]], [2, 2, 1])
@example([[1, 2], 3], [2, 2])
@example([[1, 2], [3]], [2, 2])
@example([[1, 2], [3, 4], [5, 6]], [2, 2])
@example([[1, 2, 3], [4]], [2, 2])
@example([[1, [2]], [3, 4]], [2, 2])
@example([1, 2, 3], [])
def test_nested_lists(values, shape):
    check_same(json.dumps(values).encode(), tuple(shape), "FP64")


@given(st.data())
def test_numbers_as_they_may_be_written(data):
    """Digits, points and exponents that no serialiser would choose."""
    digits = st.text("0123456789", min_size=1, max_size=30)
    whole = data.draw(digits).lstrip("0") or "0"
    text = data.draw(st.sampled_from(["", "-"])) + whole
    if data.draw(st.booleans()):
        text += "." + data.draw(digits)
    if data.draw(st.booleans()):
        power = data.draw(st.one_of(st.integers(0, 400), st.integers(0, 10**25)))
        text += data.draw(st.sampled_from("eE")) + data.draw(st.sampled_from(["", "+", "-"]))
        text += str(power)
    value = float(text)
    read = outcome(array_of(f"[{text}]".encode()), (1,), "FP64")
    if np.isinf(value):
        assert read == json_text.NOT_JSON
    else:
        assert read.tobytes() == np.float64(value).tobytes()


@pytest.mark.parametrize(
    "text", ["1e400", "-1e400", "1" * 400, "0.1e310", "1e99999999999999999999"]
)
def test_beyond_double_precision(text):
    assert outcome(array_of(f"[{text}]".encode()), (1,), "FP32") == json_text.NOT_JSON
    assert outcome(array_of(f"[{text}]".encode()), (1,), "INT8") == json_text.NOT_JSON


@pytest.mark.parametrize("text", ["1e-400", "0e400", "0.00e99999999999999999999", "2e-324", "0.0"])
@pytest.mark.parametrize("sign", ["", "-"])
def test_too_small_is_zero(text, sign):
    (value,) = outcome(array_of(f"[{sign}{text}]".encode()), (1,), "FP64")
    assert value == 0
    assert np.signbit(value) == bool(sign)


@given(st.integers(), st.sampled_from([name for name in NUMERIC if "INT" in name]))
@example(2**64 - 1, "UINT64")
@example(-(2**63), "INT64")
def test_integers(value, datatype):
    check_same(b"[%d]" % value, (1,), datatype)


def accepted(parse, text):
    try:
        parse(text)
    except InvalidRequestError:
        return False
    return True


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(), st.sampled_from(["data", "inputs"])), inner, max_size=3
        ),
    ),
    max_leaves=10,
)


def restored(value):
    """The request with its arrays parsed."""
    if isinstance(value, dict) and isinstance(value.get("inputs"), list):
        for entry in value["inputs"]:
            if isinstance(entry, dict) and "data" in entry:
                entry["data"] = entry["data"].parse()
    return value


@given(json_values, st.booleans(), st.sampled_from([None, 1]))
def test_requests_are_taken_apart_without_loss(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert restored(parse_request(memoryview(text.encode()))) == value


@given(
    st.binary(max_size=8),
    st.integers(0, 60),
    st.integers(0, 4),
    st.sampled_from(
        [
            b'{"inputs": [{"data": [1, -2.5e-3, "\\u00e9\\ud83d\\ude00"], "a": {}}], "b": null}',
            '[true, false, "é☃😀", {"inputs": 0}, 10, 0.5E+1, "\\n"]'.encode(),
        ]
    ),
)
@example(b"\xed\xa0\x80", 19, 0, '[true, false, "é☃😀"]'.encode())  # a surrogate
@example(b"\xc0\x80", 19, 0, '[true, false, "é☃😀"]'.encode())  # a long form
@example(b"\xf4\x90\x80\x80", 19, 0, '[true, false, "é☃😀"]'.encode())  # beyond U+10FFFF
@example(b"\xf0\x80\x80\x80", 19, 0, '[true, false, "é☃😀"]'.encode())
@example(b"\xe0\x80\x80", 19, 0, '[true, false, "é☃😀"]'.encode())
@example(b"\\u12", 19, 0, b'[true, false, "abcdef"]')
@example(b"\\udc00", 19, 0, b'[true, false, "abcdef"]')
@example(b"\\ud800\\u0041", 19, 0, b'[true, false, "abcdef"]')
def test_what_is_json(noise, position, length, text):
    """Neither reader accepts a text that the other refuses."""
    text = text[:position] + noise + text[position + length :]
    assert accepted(parse_request, memoryview(text)) == accepted(parse_json, text)


@pytest.mark.parametrize("end", range(90))
def test_text_that_breaks_off(end):
    text = (
        rb'{"inputs": [{"data": [1.5, -2e-3, "\u00e9\ud83d\ude00", true, {"a": null}]}], "b": []}'
    )
    assert accepted(parse_request, memoryview(text[:end])) == (end >= len(text))


def test_keys_written_with_escapes_and_given_twice():
    text = (
        rb'{"\u0069nputs": [{"data": [1], "d\u0061ta": [2, 3]}], "\n": {"data": 1},'
        rb' "data": [4], "inputs": [[{"data": 5}], {"dat\\a": 6, "data\n": 7, "data ": 8}]}'
    )
    request = parse_request(memoryview(text))
    assert request["data"] == [4]
    assert request["inputs"] == [[{"data": 5}], {"dat\\a": 6, "data\n": 7, "data ": 8}]
    (entry,) = parse_request(memoryview(text.partition(b', "\\n"')[0] + b"}"))["inputs"]
    assert entry["data"].parse() == [2, 3]


@pytest.mark.parametrize("depth", [99, 100, 101])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_depth(depth, brackets):
    opening = "[" if brackets == "[]" else '{"a":'
    text = (opening * (depth - 1) + brackets + brackets[1] * (depth - 1)).encode()
    assert accepted(parse_request, memoryview(text)) == accepted(parse_json, text) == (depth <= 100)


def test_the_rest_of_a_request_is_bounded():
    long = json.dumps({"junk": [0] * 2_000_000, "inputs": []}).encode()
    with pytest.raises(InvalidRequestError, match="besides 'data' is larger than 1048576"):
        parse_request(memoryview(long))
    many = memoryview(b'{"inputs": [' + b'{"data":1},' * 100_000 + b"{}]}")
    with pytest.raises(InvalidRequestError, match="besides 'data'"):
        parse_request(many)


@pytest.mark.parametrize("nesting", [False, True])
def test_memory_is_that_of_the_tensor(nesting):
    values = np.random.default_rng(1).standard_normal((400, 1000)).astype(np.float32)
    data = json.dumps(values.tolist() if nesting else values.ravel().tolist()).encode()
    text = request_of(data)
    tracemalloc.start()
    try:
        data = parse_request(text)["inputs"][0]["data"]
        array = outcome(data, values.shape, "FP32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(array, values)
    assert peak < 1.1 * values.nbytes


def test_no_memory_for_more_than_comes():
    tracemalloc.start()
    try:
        message = outcome(array_of(b"[1, 2, 3]"), (2**40,), "FP64")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert message == f"input 'x': shape [{2**40}] has {2**40} elements; 'data' has 3"
    assert "nested otherwise" in outcome(array_of(b"[[1], [2]]"), (2**20, 2**20), "FP64")


def test_wrong_uses_of_the_module():
    good = np.empty(1)
    with pytest.raises(ValueError, match="no such part"):
        _json.read(b"[1]", 0, 4, [1], good)
    with pytest.raises(ValueError, match="contiguous bytes"):
        _json.read(np.zeros(3, np.int32), 0, 3, [1], good)
    for out, shape in ((np.empty(2), [1]), (np.empty((2, 2))[:, 0], [2])):
        with pytest.raises(ValueError, match="out must be"):
            _json.read(b"[1]", 0, 3, shape, out)
    with pytest.raises(TypeError, match="no array of this dtype"):
        _json.read(b"[1]", 0, 3, [1], np.empty(1, complex))
