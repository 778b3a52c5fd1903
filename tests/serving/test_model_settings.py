"""The settings of a model, in the file beside it."""

from __future__ import annotations

import pytest
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import ModelError
from pyattn_serving.engine.model_settings import ModelSettings, VersionPolicy, read_settings

from . import models


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("max_batch = 0", "'max_batch' must be a whole number of 1 or more; got 0"),
        ("max_batch = true", "'max_batch' must be a whole number"),
        ("max_padding = 1.5", "'max_padding' must be a number from 0 to 1"),
        ("max_delay = 'x'", "'max_delay' must be a number"),
        ("timeout = nan", "'timeout' must be a number"),
        ("batching = 3", "'batching' must be a table"),
        ("versions = 3", "'versions' must be 'all', {latest"),
        ("versions = {latest = 0}", "'versions' must be 'all'"),
        ("versions = {specific = []}", "'versions' must be 'all'"),
        ("warmup = 3", "'warmup' must be true"),
        ("warmup = [{x = [-1]}]", "'warmup' must be true"),
        ("tokenizer = 3", "'tokenizer' must be a string; got 3"),
        ("tokenizer = ''", "'tokenizer' must be a string"),
        ("end_tokens = '</s>'", "'end_tokens' must be a list of strings"),
        ("end_tokens = [1]", "'end_tokens' must be a list of strings"),
        ("other = 3", "there is no setting 'other'"),
        ("other", "cannot be read"),
    ],
)
def test_wrong_settings(tmp_path, text, problem):
    file = tmp_path / "model.serving.toml"
    file.write_text(text)
    with pytest.raises(ModelError) as caught:
        read_settings(file, ModelSettings())
    assert problem in str(caught.value)
    assert str(file) in str(caught.value)


def test_settings_that_are_no_table(tmp_path):
    file = tmp_path / "model.serving.json"
    file.write_text("[]")
    with pytest.raises(ModelError, match="must hold a table"):
        read_settings(file, ModelSettings())


def test_all_settings_can_be_set(tmp_path):
    file = tmp_path / "model.serving.toml"
    file.write_text(
        "versions = {specific = [3]}\nmax_batch = 2\npreferred_batch = 1\nmax_delay = 1\n"
        "max_tokens = 9\nmax_padding = 0\nmax_queue = 1\nmax_queue_bytes = 5\ntimeout = 2\n"
        "concurrency = 1\nwarmup = [{x = [1]}]\nbatching = {kind = 'padded'}\n"
    )
    assert read_settings(file, ModelSettings()) == ModelSettings(
        versions=VersionPolicy(None, (3,)),
        max_batch=2,
        preferred_batch=1,
        max_delay=1.0,
        max_tokens=9,
        max_padding=0.0,
        max_queue=1,
        max_queue_bytes=5,
        timeout=2.0,
        concurrency=1,
        warmup=({"x": (1,)},),
        batching={"kind": "padded"},
    )


def test_settings_of_a_single_file(tmp_path):
    models.save(models.table_sum(), tmp_path / "one.onnx")
    (tmp_path / "one.serving.toml").write_text("max_batch = 3")
    engine = Engine([ModelSource.of(tmp_path / "one.onnx")], threads=1)
    engine.load()
    assert engine.model("one").settings.max_batch == 3
    engine.close()
