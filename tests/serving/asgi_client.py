"""A client that calls an ASGI application in this process, one request per event loop."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body, parse_constant=_no_constant)

    @property
    def error(self):
        """The message of an error answer, which must be one line and tell nothing of the inside."""
        content = self.json
        message = content["error"]
        assert set(content) == {"error"}
        assert "\n" not in message
        assert "Traceback" not in message
        assert "onnxruntime_src" not in message
        return message

    def tensors(self):
        """Outputs by name; those in binary as bytes, the others as their `data` lists."""
        if "inference-header-content-length" not in self.headers:
            return {output["name"]: output["data"] for output in self.json["outputs"]}
        split = int(self.headers["inference-header-content-length"])
        assert self.headers["content-type"] == "application/octet-stream"
        tail, found = self.body[split:], {}
        for output in json.loads(self.body[:split])["outputs"]:
            if "data" in output:
                found[output["name"]] = output["data"]
            else:
                size = output["parameters"]["binary_data_size"]
                found[output["name"]], tail = tail[:size], tail[size:]
        assert tail == b""
        return found


def _no_constant(name):
    raise AssertionError(f"the server wrote {name}, which is not JSON")


class Exchange:
    """One request: gives its messages to the application and keeps what comes back."""

    def __init__(self, method, path, body=b"", headers=(), chunks=None, announce=True):
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "client": ("127.0.0.1", 1),
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in headers],
        }
        self.chunks = [body] if chunks is None else list(chunks)
        if announce and any(self.chunks) and b"content-length" not in dict(self.scope["headers"]):
            size = str(sum(map(len, self.chunks))).encode()
            self.scope["headers"].append((b"content-length", size))
        if not announce:
            self.scope["headers"].append((b"transfer-encoding", b"chunked"))
        self.received = 0
        self.sent = []
        self.gone = asyncio.Event()

    async def receive(self):
        if self.received < len(self.chunks):
            chunk = self.chunks[self.received]
            self.received += 1
            return {
                "type": "http.request",
                "body": chunk,
                "more_body": self.received < len(self.chunks),
            }
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    def answer(self):
        start, *rest = self.sent
        assert start["type"] == "http.response.start"
        assert [message["more_body"] for message in rest] == [True] * (len(rest) - 1) + [False]
        headers = {key.decode(): value.decode() for key, value in start["headers"]}
        body = b"".join(message["body"] for message in rest)
        if self.scope["method"] == "HEAD":
            assert body == b""
        else:
            assert int(headers["content-length"]) == len(body)
        return Answer(start["status"], headers, body)


class Client:
    """Requests to one application."""

    def __init__(self, app):
        self.app = app

    def request(self, method, path, body=b"", headers=(), **options):
        async def run():
            exchange = Exchange(method, path, body, headers, **options)
            await self.app(exchange.scope, exchange.receive, exchange.send)
            return exchange.answer()

        return asyncio.run(run())

    def get(self, path):
        return self.request("GET", path)

    def infer(self, model, request, binary=b"", headers=(), **options):
        """POST an infer request; `binary` follows the JSON when it is given."""
        text = request if isinstance(request, bytes) else json.dumps(request).encode()
        headers = list(headers)
        if binary:
            headers.append(("Inference-Header-Content-Length", str(len(text))))
        elif not any(key.lower() == "content-type" for key, _ in headers):
            headers.append(("Content-Type", "application/json"))
        return self.request("POST", f"/v2/models/{model}/infer", text + binary, headers, **options)


def tensor(name, datatype, shape, data=None, **parameters):
    """An entry of `inputs`."""
    entry = {"name": name, "datatype": datatype, "shape": list(shape)}
    if data is not None:
        entry["data"] = data.tolist() if isinstance(data, np.ndarray) else data
    if parameters:
        entry["parameters"] = parameters
    return entry
