"""A decoder of the size of GPT-2: its weights, the exact logits, and how to run it elsewhere."""

import math
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers, torch_export
from tests.naive import naive_sdpa
from tests.reference import layer_norm, linear, split_heads
from tests.reference_gpt2 import gelu

LAYERS, HEADS, WIDTH, WORDS, POSITIONS = 12, 12, 768, 50257, 4096
EPS = 1e-5
LAYER_WEIGHTS = 12 * WIDTH * WIDTH
Array = NDArray[Any]


def tokens(count: int) -> Array:
    """Token ids ``(1, count)``."""
    return np.random.default_rng(7).integers(0, WORDS, (1, count))


def operations(new: int, past: int) -> float:
    """Matrix products of ``new`` tokens behind ``past``, with the logits of the last one."""
    seen = new * past + new * (new + 1) / 2
    attention = 4.0 * WIDTH * seen
    return LAYERS * (2.0 * LAYER_WEIGHTS * new + attention) + 2.0 * WIDTH * WORDS


def bytes_read(past: int) -> float:
    """What a step has to read: every weight, and the keys and values of all tokens."""
    return 4.0 * (LAYERS * (LAYER_WEIGHTS + 2 * WIDTH * past) + WIDTH * WORDS)


@cache
def model() -> Any:
    """The model in pyattn, random."""
    models = import_module("pyattn.models")
    config = models.GPT2Config(n_positions=POSITIONS)
    found = models.GPT2(config, rng=np.random.default_rng(0))
    found.words.weight *= 0.1  # logits of the size that trained models have
    return found


@cache
def exact(count: int) -> Array:
    """Float64 logits ``(1, V)`` behind the last of ``count`` tokens."""
    w = {name: array.astype(np.float64) for name, array in model().parameters().items()}
    x = w["words.weight"][tokens(count)] + w["positions.weight"][:count]
    for i in range(LAYERS):

        def part(rows: Array, name: str, at: str = f"layers.{i}.") -> Array:
            return linear(rows, w[f"{at}{name}.weight"], w[f"{at}{name}.bias"])

        def norm(rows: Array, name: str, at: str = f"layers.{i}.") -> Array:
            return layer_norm(rows, w[f"{at}{name}.weight"], w[f"{at}{name}.bias"], EPS)

        rows = norm(x, "attention_norm")
        q, k, v = (
            split_heads(part(rows, f"attention.{name}"), HEADS)
            for name in ("query", "key", "value")
        )
        seen = np.tril(np.ones((count, count), bool))
        attended = naive_sdpa(q, k, v, mask=seen, scale=1 / math.sqrt(WIDTH // HEADS)).out
        x = x + part(attended.transpose(0, 2, 1, 3).reshape(x.shape), "attention.output")
        x = x + part(gelu_rows(part(norm(x, "output_norm"), "hidden")), "output")
    last = layer_norm(x[:, -1], w["norm.weight"], w["norm.bias"], EPS)
    return np.asarray(last @ w["words.weight"].T)


def gelu_rows(x: Array) -> Array:
    """The GELU of the model, by NumPy's tanh; the oracle's takes minutes for so many numbers."""
    sample = x[..., :1, :4]
    found = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(found[..., :1, :4], gelu(sample), atol=1e-12)
    return np.asarray(found)


@cache
def step_file() -> str:
    """pyattn's file of a step with its cache."""
    target = torch_export.path("gpt2-pyattn.onnx")
    step = import_module("pyattn.models").CachedStep(model())
    import_module("pyattn").export(step, step.example_inputs(), target, verify=False)
    return target


@cache
@torch_export.quiet()
def torch_model() -> Any:
    """transformers' GPT-2 with the same weights."""
    torch, transformers = import_module("torch"), import_module("transformers")
    config = transformers.GPT2Config(n_positions=POSITIONS)
    theirs = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="sdpa").eval()
    state = {name: torch.from_numpy(array) for name, array in _state().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    theirs.tie_weights()
    return theirs


def _state() -> dict[str, Array]:
    """The weights under the names and in the layouts of transformers."""
    ours = model().parameters()
    state = {"wte.weight": ours["words.weight"], "wpe.weight": ours["positions.weight"]}
    state |= {f"ln_f.{kind}": ours[f"norm.{kind}"] for kind in ("weight", "bias")}
    names = {
        "attention_norm": "ln_1", "attention.output": "attn.c_proj", "output_norm": "ln_2",
        "hidden": "mlp.c_fc", "output": "mlp.c_proj",
    }  # fmt: skip
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            for mine, theirs in names.items():
                array = ours[f"layers.{i}.{mine}.{kind}"]
                state[f"h.{i}.{theirs}.{kind}"] = array if "norm" in mine else array.T
            parts = [ours[f"layers.{i}.attention.{x}.{kind}"] for x in ("query", "key", "value")]
            state[f"h.{i}.attn.c_attn.{kind}"] = np.concatenate(parts).T
    return {f"transformer.{name}": np.ascontiguousarray(x) for name, x in state.items()}


def past_names() -> list[str]:
    """Inputs of the files that torch exports, in their order."""
    return [f"past.{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]


@cache
def torch_step() -> Any:
    """A module of token ids and the cache as plain tensors, as one has to export it."""
    torch, cache_class = import_module("torch"), import_module("transformers").DynamicCache
    theirs = torch_model()

    class Step(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = theirs

        def forward(self, input_ids: Any, *past: Any) -> Any:
            before = cache_class()
            for i in range(LAYERS):
                before.update(past[2 * i], past[2 * i + 1], i)
            found = self.model(
                input_ids=input_ids, past_key_values=before, use_cache=True, logits_to_keep=1
            )
            layers = found.past_key_values.layers
            return (found.logits[:, -1], *(x for one in layers for x in (one.keys, one.values)))

    return Step().eval()


@cache
def torch_file(*, dynamo: bool) -> str:
    """The file that one of torch's exporters makes of a step."""
    torch = import_module("torch")
    empty = torch.zeros(1, HEADS, 5, WIDTH // HEADS)
    inputs = {"input_ids": torch.zeros((1, 3), dtype=torch.int64)}
    inputs |= dict.fromkeys(past_names(), empty)
    presents = [name.replace("past", "present") for name in past_names()]
    outputs = ["logits", *presents]
    if not dynamo:
        axes = {"input_ids": {1: "time"}} | {name: {2: "past"} for name in past_names()}
        axes |= {name: {2: "present"} for name in presents}
        return torch_export.traced("gpt2", torch_step(), inputs, outputs, axes)
    free = torch.export.Dim.DYNAMIC
    inputs |= {name: empty.clone() for name in past_names()}  # each a Dim of its own
    shapes = ({1: free}, tuple({2: free} for _ in past_names()))
    return torch_export.dynamo("gpt2", torch_step(), inputs, outputs, shapes)


@cache
def past(count: int) -> dict[str, Array]:
    """Keys and values ``(1, H, count, D)`` of the first tokens, by input."""
    if count == 0:
        return dict.fromkeys(past_names(), np.zeros((1, HEADS, 0, WIDTH // HEADS), np.float32))
    ids = tokens(count)
    _, found = model()(ids, lengths=np.array([count]), cache=model().empty_cache(ids))
    arrays = [array for layer in found.layers for array in layer]
    return dict(zip(past_names(), arrays, strict=True))


def feeds(new: int, before: int) -> peers.Feeds:
    """Inputs of a torch-made file."""
    return {"input_ids": tokens(before + new)[:, before:], **past(before)}
