"""Weights on disk: round trips, damaged files, interrupted writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pyattn as pa
from pyattn import nn
from pyattn.io import atomic_write


def test_a_round_trip(rng: Any, tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, rng=rng)
    path = tmp_path / "layer.safetensors"
    pa.save(layer, path)
    other = nn.TransformerEncoderLayer(8, 2, 16, rng=None).load(pa.load(path))
    for name, array in layer.parameters().items():
        np.testing.assert_array_equal(array, other.parameters()[name])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_dtypes_and_layouts(dtype: Any, tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(12).reshape(3, 4).astype(dtype))[:, ::2]
    pa.save({"x": array}, tmp_path / "x")
    found = pa.load(tmp_path / "x")["x"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_rank_0_and_links_and_what_the_format_does_not_have(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.touch()
    link.symlink_to(real)
    pa.save({"x": np.array(3.0)}, link)
    assert link.is_symlink()
    assert pa.load(real)["x"].shape == ()
    wrong: list[dict[str, Any]] = [
        {"x": np.array(["a"])}, {"x": [1.0]}, {"__metadata__": np.ones(1)},
    ]  # fmt: skip
    for values in wrong:
        with pytest.raises(TypeError, match="save: "):
            pa.save(values, real)
    assert pa.load(real)["x"] == 3.0


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:0],
        lambda whole: whole[:4],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: b"\xff" * 8 + whole[8:],
        lambda whole: b"PK\x03\x04" + whole,
        lambda whole: b"\x80\x04\x95" + whole,
    ],
)
def test_damaged_and_foreign_files(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    pa.save({"x": np.arange(100.0)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.safetensors is not a readable safetensors file"):
        pa.load(path)


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}},
        {"x": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": "none"},
        b"not json",
    ],
)
def test_headers_that_lie(header: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        pa.load(write(tmp_path / "x", header, b"\0" * 4))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        pa.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        pa.load(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="none"):
        pa.save({"x": np.ones(1)}, tmp_path / "none" / "x")
    with pytest.raises(OSError, match="folder"):
        pa.save({"x": np.ones(1)}, tmp_path)
