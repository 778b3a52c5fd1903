"""MiniLM embeddings: eager, exported and served, against transformers on PyTorch."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import pyattn as pa
from pyattn.models import SentenceEncoder
from pyattn.ort import session

SENTENCES = (
    (Path(__file__).parent.parent / "data" / "sentences.txt").read_text("utf-8").splitlines()
)
BOUND = 1e-5
Embed = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(minilm)


@pytest.fixture(scope="module")
def path(encoder: SentenceEncoder, tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("model") / "minilm.onnx"
    pa.export(encoder, encoder.example_inputs(), path)
    return path


@pytest.fixture(scope="module")
def batches() -> list[list[str]]:
    """The sentences in an order of their own, in batches of 1 to 32 of mixed lengths."""
    rng = np.random.default_rng(7)
    order, result = list(rng.permutation(len(SENTENCES))), []
    while order:
        size = int(rng.choice([1, 2, 3, 5, 8, 13, 32]))
        result.append([SENTENCES[i] for i in order[:size]])
        order = order[size:]
    return result


@pytest.fixture(scope="module")
def expected(minilm: Path, batches: list[list[str]]) -> list[Any]:
    """What the model card of the checkpoint prescribes, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    result = []
    for batch in batches:
        tokens = tokenizer(
            batch, padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        with torch.no_grad():
            states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        result.append(torch.nn.functional.normalize(pooled).numpy())
    return result


@contextlib.contextmanager
def served(path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pyattn_serving", str(path), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/v2/health/ready")  # noqa: S310
                    break
                assert process.poll() is None
                time.sleep(0.1)
            yield f"{url}/v2/models/minilm/infer"
        finally:
            process.terminate()
            assert process.wait(30) == 0


def post(url: str, body: bytes, headers: dict[str, str]) -> tuple[bytes, Any]:
    request = urllib.request.Request(url, body, headers)  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310
        return response.read(), response.headers


def ask_in_json(url: str, feed: dict[str, Any]) -> Any:
    inputs = [
        {"name": n, "shape": a.shape, "datatype": "INT64", "data": a.tolist()}
        for n, a in feed.items()
    ]
    body = json.dumps({"inputs": inputs}).encode()
    answer, _ = post(url, body, {"Content-Type": "application/json"})
    (output,) = json.loads(answer)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def ask_in_binary(url: str, feed: dict[str, Any]) -> Any:
    inputs = [
        {
            "name": n, "shape": a.shape, "datatype": "INT64",
            "parameters": {"binary_data_size": a.nbytes},
        }
        for n, a in feed.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    body = head + b"".join(a.tobytes() for a in feed.values())
    answer, received = post(url, body, headers)
    length = int(received["Inference-Header-Content-Length"])
    (output,) = json.loads(answer[:length])["outputs"]
    return np.frombuffer(answer[length:], np.float32).reshape(output["shape"])


def test_there_are_200_sentences_of_1_to_256_tokens(encoder: SentenceEncoder) -> None:
    lengths = [len(encoder.tokenize([s])["input_ids"][0]) - 2 for s in SENTENCES]
    assert len(set(SENTENCES)) >= 200
    assert min(lengths) == 1
    assert max(lengths) >= 200


@pytest.mark.parametrize("way", ["eager", "onnxruntime", "server JSON", "server binary"])
def test_embeddings(
    way: str, encoder: SentenceEncoder, path: Path, batches: list[list[str]], expected: list[Any]
) -> None:
    with contextlib.ExitStack() as stack:
        embed: Embed
        if way == "eager":
            embed = lambda feed: encoder(**feed)["sentence_embedding"]  # noqa: E731
        elif way == "onnxruntime":
            run = session(path)
            embed = lambda feed: run.run(None, feed)[0]  # noqa: E731
        else:
            url = stack.enter_context(served(path))
            ask = ask_in_json if way.endswith("JSON") else ask_in_binary
            embed = lambda feed: ask(url, feed)  # noqa: E731
        worst = 0.0
        for batch, exact in zip(batches, expected, strict=True):
            found = embed(encoder.tokenize(batch))
            assert found.shape == exact.shape
            worst = max(worst, float(np.abs(found - exact).max()))
    print(f"{way}: largest difference {worst:.2e}")
    assert worst <= BOUND
