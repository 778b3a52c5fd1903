"""Compressed bodies: requests, within limits, and answers as the client accepts them."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyattn_serving.asgi.compression import Inflater, accepted_encoding

from .asgi_client import Exchange, tensor
from .conftest import MAX_BODY

PATH = "/v2/models/vector/infer"
TEXT = json.dumps({"inputs": [tensor("x", "FP32", (2,), [1, 2])]}).encode()


def raw_deflate(content):
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(content) + stream.flush()


FORMATS = {"gzip": gzip.compress, "deflate": zlib.compress, "raw": raw_deflate}


def infer(client, body, encoding, headers=(), **options):
    headers = [*headers, ("Content-Encoding", encoding.replace("raw", "deflate"))]
    return client.request("POST", PATH, body, headers, **options)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [1, 2, 50, 10_000])
@pytest.mark.parametrize("announce", [True, False])
def test_compressed_request(client, format, size, announce):
    body = FORMATS[format](TEXT)
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    answer = infer(client, b"", format, chunks=chunks, announce=announce)
    assert answer.tensors() == {"y": [1, 2]}


@pytest.mark.parametrize("name", ["GZIP", " gzip ", "x-gzip"])
def test_names_of_gzip(client, name):
    assert infer(client, gzip.compress(TEXT), name).status == 200


@pytest.mark.parametrize("format", FORMATS)
def test_compressed_binary_request(client, format):
    values = np.arange(100_000, dtype=np.float32)
    entry = tensor("x", "FP32", values.shape, binary_data_size=values.nbytes)
    text = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [entry]}).encode()
    headers = [("Inference-Header-Content-Length", str(len(text)))]
    answer = infer(client, FORMATS[format](text + values.tobytes()), format, headers)
    assert answer.tensors() == {"y": values.tobytes()}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", ["short", "long", "noise", "empty"])
def test_damaged_body(client, format, damage):
    body = FORMATS[format](TEXT)
    body = {
        "short": body[:-1],
        "long": body + b"more",
        "noise": b"\xff" * 40,
        "empty": b"",
    }[damage]
    answer = infer(client, body, format)
    assert answer.status == 400
    assert answer.error


@given(st.binary(max_size=300), st.integers(1, 400), st.sampled_from(sorted(FORMATS)))
def test_pieces_are_the_content(content, repeat, format):
    content *= repeat
    body = FORMATS[format](content)
    inflater = Inflater(format.replace("raw", "deflate"))
    assert b"".join(p for i in range(0, len(body), 7) for p in inflater.feed(body[i : i + 7])) == (
        content
    )
    inflater.finish()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1 << 19])
def test_content_of_exactly_one_piece(format, size):
    inflater = Inflater(format.replace("raw", "deflate"))
    assert b"".join(inflater.feed(FORMATS[format](b"a" * size))) == b"a" * size
    inflater.finish()


@pytest.mark.parametrize("format", FORMATS)
def test_body_of_exactly_the_limit(client, format):
    choices = np.frombuffer(b" \t\r\n", np.uint8)
    space = np.random.default_rng(0).choice(choices, MAX_BODY + 1 - len(TEXT)).tobytes()
    assert infer(client, FORMATS[format](TEXT + space[1:]), format).status == 200
    answer = infer(client, FORMATS[format](TEXT + space), format)
    assert (answer.status, str(MAX_BODY) in answer.error) == (413, True)


@pytest.mark.parametrize("format", FORMATS)
def test_bomb(client, format):
    """A hundredfold of what is allowed is refused without its memory."""
    bomb = FORMATS[format](bytes(100 * MAX_BODY))
    assert len(bomb) < MAX_BODY / 5
    tracemalloc.start()
    try:
        answer = infer(client, bomb, format)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status == 413
    assert peak < 5 * MAX_BODY


def test_ratio():
    zeros = zlib.compress(bytes(1 << 20))
    inflater = Inflater("deflate")
    assert sum(map(len, inflater.feed(zeros))) == 1 << 20
    inflater = Inflater("deflate")
    with pytest.raises(Exception, match="more than 100 times") as caught:
        list(inflater.feed(zlib.compress(bytes(4 << 20))))
    assert caught.value.status == 413


def test_others_go_on_while_a_body_is_uncompressed(client):
    body = gzip.compress(TEXT.ljust(MAX_BODY))

    async def run():
        exchange = Exchange("POST", PATH, body, [("Content-Encoding", "gzip")])
        task = asyncio.create_task(client.app(exchange.scope, exchange.receive, exchange.send))
        turns = 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        return turns, exchange.answer()

    turns, answer = asyncio.run(run())
    assert answer.status == 200
    assert turns >= MAX_BODY >> 18


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("br", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.000, deflate", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip; q=0.8 , deflate;q=0.8", "gzip"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("identity;q=1, *;q=0", None),
        ("gzip;q=x", "gzip"),
        (",,;;", None),
    ],
)
def test_negotiation(header, expected):
    assert accepted_encoding(header) == expected


OPEN = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.mark.parametrize("encoding", OPEN)
@pytest.mark.parametrize("count", [500, 50_000])
@pytest.mark.parametrize("binary", [True, False])
def test_compressed_answer(client, encoding, count, binary):
    values = np.arange(count) % 10
    request = {
        "inputs": [tensor("x", "FP32", values.shape, values)],
        "parameters": {"binary_data_output": binary},
    }
    answer = client.infer("vector", request, headers=[("Accept-Encoding", encoding)])
    assert answer.headers["content-encoding"] == encoding
    assert answer.headers["vary"] == "accept-encoding"
    plain = type(answer)(200, answer.headers, OPEN[encoding](answer.body)).tensors()["y"]
    found = np.frombuffer(plain, np.float32) if binary else np.float32(plain)
    np.testing.assert_array_equal(found, values)


def test_accepted_encodings_in_two_headers(client):
    values = np.zeros(5000)
    request = {"inputs": [tensor("x", "FP32", values.shape, values)]}
    headers = [("Accept-Encoding", "br"), ("Accept-Encoding", "deflate")]
    answer = client.infer("vector", request, headers=headers)
    assert answer.headers["content-encoding"] == "deflate"


def test_answers_that_stay_as_they_are(client):
    noise = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    accepts = [("Accept-Encoding", "gzip")]
    for values, binary in ((noise, True), (noise[:3], False)):
        request = {
            "inputs": [tensor("x", "FP32", values.shape, values)],
            "parameters": {"binary_data_output": binary},
        }
        answer = client.infer("vector", request, headers=accepts)
        assert "content-encoding" not in answer.headers
        assert answer.headers["vary"] == "accept-encoding"
        assert "y" in answer.tensors()
