"""Triton's server out of the package nvidia-pytriton, with models of its backend for Python."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.serving.models import IMAGE, WIDTH
from benchmarks.serving.process import free_port

if TYPE_CHECKING:
    from benchmarks.serving.contenders import Place

# Name, type and sizes of inputs and outputs after the rows, as Triton wants to be told.
TENSORS: dict[str, tuple[list[tuple[str, str, Sequence[int]]], tuple[str, Sequence[int]]]] = {
    "small": ([("x", "FP32", [WIDTH])], ("y", [WIDTH])),
    "image": ([("x", "FP32", IMAGE)], ("y", [8])),
    "minilm": (
        [("input_ids", "INT64", [-1]), ("attention_mask", "INT64", [-1])],
        ("sentence_embedding", [384]),
    ),
}


def command(place: Place, models: Sequence[str]) -> Sequence[str]:
    """Write a repository and a folder of backends, and return what starts the server."""
    package = _site(place.python) / "pytriton" / "tritonserver"
    backends = place.folder / "backends"
    shutil.copytree(package / "backends", backends)
    version = ".".join(_ask(place.python, "platform.python_version()").split(".")[:2])
    stub = package / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    for name in models:
        folder = place.folder / "models" / name
        (folder / "1").mkdir(parents=True)
        code = Path(__file__).with_name("peers") / "triton_model.py"
        shutil.copy(code, folder / "1" / "model.py")
        (folder / "config.pbtxt").write_text(_configuration(name))
    libraries = package.parents[1] / "nvidia_pytriton.libs"
    return [
        *("env", f"LD_LIBRARY_PATH={libraries}", f"PEER_PACKAGES={package.parents[1]}"),
        *(str(package / "bin" / "tritonserver"), f"--backend-directory={backends}"),
        *(f"--model-repository={place.folder / 'models'}", "--http-address=127.0.0.1"),
        *(f"--http-port={place.port}", "--allow-grpc=false", "--allow-metrics=false"),
        *(f"--metrics-port={free_port()}", "--log-info=false"),
    ]


def _configuration(name: str) -> str:
    inputs, (output, sizes) = TENSORS[name]
    given = ", ".join(_tensor(*one) for one in inputs)
    return (
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: 16\n'
        f"input [{given}]\noutput [{_tensor(output, 'FP32', sizes)}]\n"
        "dynamic_batching {}\ninstance_group [{kind: KIND_CPU, count: 1}]\n"
    )


def _tensor(name: str, datatype: str, sizes: Sequence[int]) -> str:
    return f'{{name: "{name}", data_type: TYPE_{datatype}, dims: {list(sizes)}}}'


def _site(python: Path) -> Path:
    return Path(_ask(python, "sysconfig.get_path('purelib')"))


def _ask(python: Path, expression: str) -> str:
    code = f"import platform, sysconfig; print({expression})"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
