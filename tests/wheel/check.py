"""What a wheel promises, checked where nothing else of the project is: run by make check-wheel.

The interpreter has the wheel and its two dependencies, no extras and no source folder.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

import pyattn as pa

LIMIT = 5 * 2**20


def check_files(wheel: Path) -> None:
    assert wheel.stat().st_size < LIMIT, f"{wheel.name} has {wheel.stat().st_size} bytes"
    files = {str(path) for path in distribution("pyattn").files or ()}
    wanted = {"pyattn/py.typed", "pyattn/_core.pyi", "pyattn/__init__.py"}
    wanted |= {"pyattn_serving/cli.py", "pyattn_serving/page/index.html"}
    assert wanted <= files, wanted - files
    assert any(name.startswith("pyattn_serving/_json.") for name in files - wanted), files
    assert str(pa.ort.custom_ops_library().name) in {Path(name).name for name in files}
    assert pa.ort.has_kernel("ScaledDotProductAttentionCausal")
    strangers = {name.split("/")[0] for name in files} - {"pyattn", "pyattn_serving", "..", "bin"}
    assert all(name.endswith(".dist-info") for name in strangers), strangers
    assert "site-packages" in str(pa.__file__), pa.__file__


def check_core() -> None:
    info = pa.runtime.build_info()
    assert info["version"] == pa.__version__ == distribution("pyattn").version
    assert pa.runtime.available_isas()[-1] == "scalar"
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, n, 16)) for n in (5, 7, 7))
    scores = q @ k.swapaxes(-1, -2) / 4
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = weights / weights.sum(-1, keepdims=True) @ v
    for isa in pa.runtime.available_isas():
        pa.runtime.set_isa(isa)
        found = pa.scaled_dot_product_attention(*(x.astype(np.float32) for x in (q, k, v)))
        assert np.abs(found - exact).max() < 1e-5, isa


def check_missing_extras() -> None:
    """Without the extras, what needs them says so; nothing else is affected."""
    assert all(importlib.util.find_spec(name) is None for name in ("onnx", "uvicorn", "torch"))
    message = ""
    try:
        pa.export(pa.ops.tanh, {"x": np.ones(3)})
    except ModuleNotFoundError as error:
        message = str(error)
    assert "pyattn[onnx]" in message, message
    server = Path(sys.executable).with_name("pyattn-serve")
    run = subprocess.run([server, "none.onnx"], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "pyattn[serve]" in run.stderr, run.stderr


if __name__ == "__main__":
    check_files(Path(sys.argv[1]))
    check_core()
    check_missing_extras()
    print(f"{Path(sys.argv[1]).name}: in order")
