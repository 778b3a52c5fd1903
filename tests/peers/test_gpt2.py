"""GPT-2 against transformers: a saved checkpoint, its logits, and what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers as tf

from pyattn.models import GPT2, GreedyDecode

END = 5


def peer() -> tf.GPT2LMHeadModel:
    torch.manual_seed(0)
    config = tf.GPT2Config(
        vocab_size=57, n_positions=40, n_embd=32, n_layer=3, n_head=4, eos_token_id=END,
        bos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    model = tf.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for array in model.parameters():
            array.mul_(6 if array.ndim == 2 else 1)  # far from uniform, so that words differ
    return model


def test_a_saved_checkpoint_has_the_same_logits(tmp_path: Path) -> None:
    theirs = peer()
    theirs.save_pretrained(tmp_path)
    ours = GPT2.from_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 57, (3, 17))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(ours(ids), expected, atol=1e-5 * np.abs(expected).max())


def test_greedy_search_writes_the_same(tmp_path: Path) -> None:
    theirs = peer()
    theirs.save_pretrained(tmp_path)
    ours = GPT2.from_pretrained(tmp_path)
    decode = GreedyDecode(ours, end=END, steps=20)
    for seed in range(5):
        ids = np.random.default_rng(seed).integers(6, 57, (1, 4))
        expected = theirs.generate(
            torch.from_numpy(ids), attention_mask=torch.ones(1, 4), max_new_tokens=20,
            do_sample=False,
        )  # fmt: skip
        found = decode(ids, np.array([4]))["tokens"][0]
        np.testing.assert_array_equal(found, expected[0, 4:].numpy())
