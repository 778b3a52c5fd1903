"""Damaged and hostile models: an error in one line, and nothing else."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pyattn as pa
from pyattn.ort import ModelError, session
from tests import hostile
from tests.runtimes import newest_opset

MOST_MEGABYTES = 400  # beside what the process has already
ROOT = Path(__file__).parent.parent

Told = tuple[str, str, int]  # class and message of the error, growth of memory in megabytes


def load(how: str, paths: list[Path]) -> list[Told]:
    """Load models in processes of their own: a new one when one of them kills it."""
    told: list[Told] = []
    while len(told) < len(paths):
        lines = "\n".join(map(str, paths[len(told) :]))
        child = subprocess.run(
            [sys.executable, "-m", "tests.load_models", how],
            input=lines,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        told += [tuple(json.loads(line)) for line in child.stdout.splitlines()]
        if child.returncode:
            told.append(("died", f"with status {child.returncode}: {child.stderr[-2000:]}", 0))
    return told


def check(told: Told) -> None:
    kind, message, megabytes = told
    assert kind in ("ModelError", "ValueError", "FileNotFoundError", "VerificationError"), told
    assert message, told
    assert "\n" not in message, told
    assert megabytes < MOST_MEGABYTES, told


def content(model: onnx.ModelProto | bytes) -> bytes:
    return model if isinstance(model, bytes) else model.SerializeToString()


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> dict[str, Path]:
    """The files of all models."""
    folder = tmp_path_factory.mktemp("hostile") / "models"
    models = {name: make() for name, make in (hostile.MODELS | hostile.HARMLESS).items()}
    outside = hostile.outside(folder).items()
    models |= {f"weights: {name}": hostile.with_weights(weights) for name, weights in outside}
    paths = {name: folder / f"{i}.onnx" for i, name in enumerate(models)}
    for name, path in paths.items():
        path.write_bytes(content(models[name]))
    return paths


@pytest.fixture(scope="module")
def told(written: dict[str, Path]) -> Any:
    @functools.cache
    def of(how: str) -> dict[str, Told]:
        return dict(zip(written, load(how, list(written.values())), strict=True))

    return of


WEIGHTS = [f"weights: {name}" for name in hostile.OUTSIDE]


@pytest.mark.parametrize("name", [*hostile.MODELS, *WEIGHTS])
def test_a_session_refuses_it(name: str, told: Any) -> None:
    kind, message, _ = found = told("session")[name]
    check(found)
    assert kind in ("ModelError", "FileNotFoundError"), found
    assert message.startswith("session: "), found


@pytest.mark.parametrize("name", hostile.HARMLESS)
def test_a_session_takes_what_is_only_odd(name: str, told: Any) -> None:
    assert told("session")[name][0] == "", told("session")[name]


@pytest.mark.parametrize("name", [*hostile.MODELS, *WEIGHTS])
def test_accelerate_refuses_it_or_finds_no_attention(name: str, told: Any) -> None:
    found = told("accelerate")[name]
    if found[0]:
        check(found)
        assert found[1].startswith("accelerate: "), found
    else:
        # Where in a file the weights lie is not looked at: they are not read.
        assert not name.startswith("weights") or "offset" in name or "length" in name, found
        assert found[2] < MOST_MEGABYTES, found


@functools.cache
def real_model(opset: int) -> bytes:
    rng = np.random.default_rng(0)
    layer = pa.nn.MultiHeadAttention(8, 2, rng=rng)
    x = pa.Input(rng.standard_normal((2, 5, 8)).astype(np.float32), ("b", "t", None))
    return pa.export(lambda x: layer(x, x, x), {"x": x}, opset=opset).SerializeToString()


def mutants(good: bytes, count: int, seed: int) -> list[bytes]:
    """The model cut off, with a part cut out, with other bytes."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        at, length, many = (
            rng.integers(len(good)),
            rng.integers(1, 40),
            rng.choice([1, 1, 2, 4, 16]),
        )
        other = np.frombuffer(good, np.uint8).copy()
        other[rng.integers(len(good), size=many)] = rng.integers(256, size=many)
        forms = [good[:at], good[:at] + good[at + length :], other.tobytes(), other.tobytes()]
        made.append(forms[rng.integers(4)])
    return made


@pytest.mark.parametrize(("how", "count"), [("session", 1500), ("accelerate", 150)])
@pytest.mark.parametrize("opset", [18, 24])
def test_mutants_of_a_real_model(how: str, count: int, opset: int, tmp_path: Path) -> None:
    good = real_model(min(opset, newest_opset()))
    paths = []
    for number, mutant in enumerate(mutants(good, count, opset)):
        paths.append(tmp_path / f"{number}.onnx")
        paths[-1].write_bytes(mutant)
    told = load(how, paths)
    for path, found in zip(paths, told, strict=True):
        if found[0] or found[2] >= MOST_MEGABYTES:
            check(found)
        assert found[0] != "died", path
    assert sum(bool(kind) for kind, _, _ in told) > count // 2


def test_every_part_is_searched_for_weights(tmp_path: Path) -> None:
    """A hidden place of a file name: all that can hold a tensor."""
    weights = hostile.external("../weights.bin")
    constant = hostile.node("Constant", "", "w", value=weights)
    branch = hostile.helper.make_graph([constant], "g", [], [hostile.info("w")])
    taken = hostile.node("If", "x", "y", then_branch=branch, else_branch=branch)
    sparse = hostile.model([hostile.node("Neg", "x", "y")])
    sparse.graph.sparse_initializer.add().indices.CopyFrom(weights)
    training = hostile.model([hostile.node("Neg", "x", "y")])
    training.training_info.add().algorithm.initializer.append(weights)
    default = hostile.function("F", [constant])
    default.attribute_proto.append(hostile.helper.make_attribute("a", weights))
    places = {
        "constant": hostile.model([constant]),
        "list": hostile.model([hostile.node("X", "", "y", a=[weights, weights])]),
        "branch": hostile.model([taken]),
        "function": hostile.model([], functions=[hostile.function("F", [constant])]),
        "branch of a function": hostile.model([], functions=[hostile.function("F", [taken])]),
        "default": hostile.model([], functions=[default]),
        "sparse": sparse,
        "training": training,
    }
    for name, model in places.items():
        with pytest.raises(ModelError, match="weights lie outside the model's folder"):
            session(model, folder=tmp_path)
        assert name


def test_weights_of_a_model_in_memory(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    model = hostile.with_weights(hostile.external("weights.bin"))
    with pytest.raises(ModelError, match=r"the weights are in the file 'weights\.bin'; give the"):
        session(model)
    with pytest.raises(FileNotFoundError, match=r"session: the file with weights .* is missing"):
        session(model, folder=tmp_path / "elsewhere")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    result = session(path).run(None, {"x": np.ones(4, np.float32)})[0]
    np.testing.assert_array_equal(result, [1, 2, 3, 4])


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    (tmp_path / "alias").symlink_to("weights.bin")
    path = tmp_path / "model.onnx"
    path.write_bytes(hostile.with_weights(hostile.external("alias")).SerializeToString())
    assert session(path).run(None, {"x": np.ones(4, np.float32)})[0].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "error"),
    [("nothing.onnx", FileNotFoundError), (".", ModelError), ("pipe", ModelError)],
)
def test_paths_that_are_no_files(name: str, error: type[Exception], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match=r"session: (there is no file .*|.* is not a regular file)"):
        session(tmp_path / name)


@pytest.mark.parametrize("model", [None, 3, object(), ["x"]])
def test_things_that_are_no_models(model: Any) -> None:
    with pytest.raises(TypeError, match="session: model must be a path, bytes or a ModelProto"):
        session(model)
