"""GPT-2: its logits, its checkpoints, its cache, and what is exported of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import pyattn as pa
from pyattn.models import GPT2, BeamDecode, CachedStep, GPT2Config, GreedyDecode
from pyattn.ort import Decoder, session
from tests import reference_gpt2

SMALL = {"vocab_size": 23, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
END = 5


def weights(rng: np.random.Generator) -> dict[str, Any]:
    """The arrays of a published file, of a small model."""

    def draw(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    arrays = {"wte.weight": draw(23, 16) * 4, "wpe.weight": draw(32, 16)}
    for i in range(2):
        for name, size_in, size_out in (
            ("attn.c_attn", 16, 48), ("attn.c_proj", 16, 16), ("mlp.c_fc", 16, 64),
            ("mlp.c_proj", 64, 16),
        ):  # fmt: skip
            arrays[f"h.{i}.{name}.weight"] = draw(size_in, size_out)
            arrays[f"h.{i}.{name}.bias"] = draw(size_out)
        for name in ("ln_1", "ln_2"):
            arrays[f"h.{i}.{name}.weight"] = 1 + 0.1 * draw(16)
            arrays[f"h.{i}.{name}.bias"] = draw(16)
    return arrays | {"ln_f.weight": 1 + 0.1 * draw(16), "ln_f.bias": draw(16)}


def written(folder: Path, arrays: dict[str, Any], **config: Any) -> Path:
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **SMALL, **config}))
    return folder


@pytest.fixture
def arrays(rng: Any) -> dict[str, Any]:
    return weights(rng)


@pytest.fixture
def model(arrays: dict[str, Any], tmp_path: Path) -> GPT2:
    return GPT2.from_pretrained(written(tmp_path, arrays))


def test_logits_are_the_oracle_s(model: GPT2, arrays: dict[str, Any], rng: Any) -> None:
    ids = rng.integers(0, 23, (3, 9))
    found = model(ids)
    for row, tokens in zip(found, ids, strict=True):
        exact = reference_gpt2.logits(arrays, tokens, layers=2, heads=4)
        np.testing.assert_allclose(row, exact, atol=2e-5)
    last = model(ids, lengths=np.array([9, 1, 4]))
    np.testing.assert_allclose(last, found[np.arange(3), [8, 0, 3]], atol=1e-5)


def test_older_files_have_prefixes_constants_and_the_head(
    model: GPT2, arrays: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    more = {f"transformer.{name}": array for name, array in arrays.items()}
    more["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))
    more["transformer.h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    more["lm_head.weight"] = arrays["wte.weight"].copy()
    other = GPT2.from_pretrained(written(folder, more))
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, other.parameters()[name])
    more["lm_head.weight"] += 1
    with pytest.raises(ValueError, match=r"lm_head.weight differs from wte.weight"):
        GPT2.from_pretrained(written(folder, more))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "model_type must be 'gpt2'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx must be False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be True"),
        ({"activation_function": "swish"}, "activation_function must be one of"),
        ({"n_layer": "2"}, "n_layer must be int; got '2'"),
        ({"n_inner": 2.5}, r"n_inner must be int \| None"),
        ({"n_head": 3}, "size must be a multiple of heads"),
        ({"n_layer": 3}, r"missing .*h\.2\.attn\.q\.weight"),
        ({"n_layer": 1}, r"unexpected .*h\.1\.attn"),
    ],
)
def test_other_configurations_are_refused(
    arrays: dict[str, Any], tmp_path: Path, config: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GPT2.from_pretrained(written(tmp_path, arrays, **config))


def test_bad_input(model: GPT2, arrays: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"input_ids must be \(B, T\)"):
        model(np.arange(3))
    with pytest.raises(ValueError, match="input_ids has 33 positions; the model has 32"):
        model(np.zeros((1, 33), np.int64))
    with pytest.raises(ValueError, match="take: indices must lie in"):
        model(np.array([[23]]))
    full = model.empty_cache(np.zeros((1, 40), np.int64))._replace(lengths=np.array([32]))
    with pytest.raises(ValueError, match=r"take: indices must lie in 0\.\.31"):
        model(np.array([[1]]), cache=full)
    arrays["h.0.attn.c_attn.weight"] = np.zeros((16, 47), np.float32)
    with pytest.raises(ValueError, match="47 columns, no multiple of 3"):
        GPT2.from_pretrained(written(tmp_path, arrays))


def test_parts_of_different_lengths_are_read_through_the_cache(model: GPT2, rng: Any) -> None:
    ids = rng.integers(0, 23, (2, 12))
    whole = model(ids)
    cache = model.empty_cache(ids)
    logits, cache = model(ids[:, :5], lengths=np.array([5, 2]), cache=cache)
    np.testing.assert_allclose(logits, [whole[0, 4], whole[1, 1]], atol=1e-5)
    np.testing.assert_array_equal(cache.lengths, [5, 2])
    # The padding of the second is written over.
    again = np.stack([ids[0, 5:9], ids[1, 2:6]])
    logits, cache = model(again, cache=cache)
    np.testing.assert_allclose(logits, [whole[0, 5:9], whole[1, 2:6]], atol=1e-5)
    np.testing.assert_array_equal(cache.lengths, [9, 6])


def greedy(model: GPT2, prompt: Any, steps: int) -> list[int]:
    """The likeliest words, the whole sequence computed anew for each."""
    tokens = list(prompt)
    for _ in range(steps):
        tokens.append(int(model(np.array([tokens]))[0, -1].argmax()))
        if tokens[-1] == END:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("opset", [18, 24])
def test_a_whole_decode_is_one_graph(model: GPT2, opset: int, rng: Any) -> None:
    ids = rng.integers(0, 23, (4, 6))
    lengths = np.array([6, 1, 3, 6])
    feeds = {"input_ids": ids, "lengths": lengths}
    decode = GreedyDecode(model, end=END, steps=9)
    proto = pa.export(decode, decode.example_inputs(), opset=opset)
    beam = BeamDecode(model, end=END, steps=4, beams=3, length_penalty=0.6)
    searched = pa.export(beam, beam.example_inputs(), opset=opset)
    for accelerate in (True, False):
        (tokens,) = session(proto, accelerate=accelerate).run(None, feeds)
        for row, prompt, length in zip(tokens, ids, lengths, strict=True):
            expected = greedy(model, prompt[:length], 9)
            assert row.tolist() == (expected + [END] * 9)[: tokens.shape[1]]
        run = session(searched, accelerate=accelerate)
        eager = beam(**feeds)
        for name, found in zip(eager, run.run(list(eager), feeds), strict=True):
            np.testing.assert_allclose(found, eager[name], atol=1e-5)


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_step_in_onnx_runtime_writes_its_cache_in_place(
    model: GPT2, accelerate: bool, rng: Any
) -> None:
    step = CachedStep(model)
    run = session(pa.export(step, step.example_inputs(), opset=18), accelerate=accelerate)
    ids = rng.integers(0, 23, (2, 12))
    whole = model(ids)
    decoder = Decoder(run, batch=2, capacity=12)
    for _ in range(2):
        first = decoder(ids[:, :4], np.array([4, 2]))
        np.testing.assert_allclose(first, [whole[0, 3], whole[1, 1]], atol=1e-5)
        kept = first.copy()
        for t in range(4):
            tokens = np.stack([ids[0, 4 + t : 5 + t], ids[1, 2 + t : 3 + t]]).astype(np.int32)
            np.testing.assert_allclose(
                decoder(tokens), [whole[0, 4 + t], whole[1, 2 + t]], atol=1e-5
            )
        np.testing.assert_array_equal(first, kept)  # not overwritten by later steps
        np.testing.assert_array_equal(decoder.lengths, [8, 6])
        decoder.reset()


def test_a_decoder_says_what_it_cannot_take(model: GPT2) -> None:
    step = CachedStep(model)
    run = session(pa.export(step, step.example_inputs(), opset=18, verify=False))
    decoder = Decoder(run, batch=1, capacity=4)
    for tokens, lengths, error, message in (
        (np.zeros((1, 1)), None, TypeError, "input_ids must be integers"),
        (np.zeros((2, 1), int), None, ValueError, r"input_ids must be \(1, T\)"),
        (np.zeros((1, 0), int), None, ValueError, r"got shape \(1, 0\)"),
        (np.zeros((1, 2), int), np.array([3]), ValueError, r"lengths must be \(1,\) in 1\.\.2"),
        (np.zeros((1, 2), int), np.array([0]), ValueError, "lengths must be"),
        (np.zeros((1, 5), int), None, ValueError, "room for 4 tokens; it holds 0 and 5 more"),
    ):
        with pytest.raises(error, match=message):
            decoder(tokens, lengths)
    assert decoder.lengths.tolist() == [0]
    decoder(np.zeros((1, 3), int))
    with pytest.raises(ValueError, match="it holds 3 and 2 more"):
        decoder(np.zeros((1, 2), int))
    with pytest.raises(ValueError, match="sizes must be positive"):
        Decoder(run, batch=1, capacity=0)
    plain = session(pa.export(model, model.example_inputs(), opset=18))
    with pytest.raises(ValueError, match="must be that of a CachedStep; it has inputs"):
        Decoder(plain, batch=1, capacity=4)


def test_the_defaults_are_those_of_the_smallest_model() -> None:
    model = GPT2(GPT2Config(n_layer=1), rng=None)
    count = sum(array.size for array in model.parameters().values())
    assert count == 50257 * 768 + 1024 * 768 + 12 * 768 * 768 + 13 * 768 + 2 * 768


def test_files_tell_positions_and_end(model: GPT2) -> None:
    def told(module: Any) -> dict[str, Any]:
        proto = pa.export(module, module.example_inputs(), opset=18, verify=False)
        found = {entry.key: entry.value for entry in proto.metadata_props}
        facts: dict[str, Any] = json.loads(found["pyattn.decoder"])
        return facts

    limit = model.config.n_positions
    assert told(CachedStep(model)) == {"positions": limit}  # the vocabulary lacks 50256
    decode = {"positions": limit, "end": END, "steps": 9}
    assert told(GreedyDecode(model, end=END, steps=9)) == decode
    beam = BeamDecode(model, end=END, steps=9, beams=3)
    assert told(beam) == {**decode, "beams": 3}
    ended = GPT2(replace(model.config, eos_token_id=END), rng=np.random.default_rng(0))
    assert told(CachedStep(ended)) == {"positions": limit, "end": END}


def test_a_decoder_keeps_within_its_positions(rng: Any) -> None:
    config = GPT2Config(
        vocab_size=23, n_positions=12, n_embd=8, n_layer=1, n_head=2, eos_token_id=END
    )
    step = CachedStep(GPT2(config, rng=rng))
    run = session(pa.export(step, step.example_inputs(), opset=18))
    decoder = Decoder(run, batch=2, capacity=64)
    assert (decoder.positions, decoder.end) == (12, END)
    # Padding may stand behind the last position, tokens may not.
    with pytest.raises(ValueError, match="has 12 positions; a sequence would have 13"):
        decoder(np.zeros((2, 13), int), np.array([2, 13]))
    decoder(np.zeros((2, 12), int), np.array([2, 12]))
    with pytest.raises(ValueError, match="has 12 positions; a sequence would have 13"):
        decoder(np.zeros((2, 1), int))
