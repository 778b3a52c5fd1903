"""The shape of the source: who imports whom, what is documented, how large files are."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pyattn
import pyattn.models

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyattn"

# A module may import modules of its own layer and of earlier ones.
LAYERS = [
    {"_core", "dims", "dtypes", "extras", "interchange", "model_file"},
    {"tensor", "walk"},
    {"ops", "runtime"},
    {"grad", "io", "onnx_graph", "onnx_nodes", "optim", "ort", "ort_decoder"},
    {"onnx_batching", "onnx_input", "onnx_verify", "onnx_weights"},
    {"export", "attention"},
    {"accelerate", "rewrite"},
    {"nn"},
    {"models"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
USES_CORE = {"attention", "interchange", "ops", "runtime"}
USES_ONNX = {
    *(
        "accelerate",
        "export",
        "onnx_graph",
        "onnx_nodes",
        "onnx_verify",
        "onnx_weights",
        "optim",
        "ort",
    ),
    *("ort_decoder", "rewrite"),
}
LAZY = {"onnx", "onnx_ir", "onnxruntime", "safetensors", "tokenizers", "tqdm", "ml_dtypes"}
IMPORTED_LAZILY = {"rewrite"}  # itself, so that it may import at once what it needs


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the modules that a file imports and whether that happens on import of the file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "pyattn":
            yield from ((f"pyattn.{alias.name}", top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." * node.level + (node.module or ""), top)


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_one_way(path: Path) -> None:
    mine = layer_of(path)
    for name, top in imports(path):
        first, _, rest = name.partition(".")
        if first == "pyattn":
            theirs = rest.split(".")[0]
            assert LEVEL[theirs] <= LEVEL[mine], f"{mine} imports {theirs}"
            assert theirs != "_core" or mine in USES_CORE
            assert theirs not in IMPORTED_LAZILY or mine == theirs or not top, name
        elif first in LAZY:
            late = not top or mine in IMPORTED_LAZILY
            assert late, f"{path} imports {name} when it is imported itself"
            assert first not in ("onnx", "onnx_ir", "onnxruntime") or mine in USES_ONNX
        else:
            assert first in sys.stdlib_module_names or first == "numpy", name


def test_the_server_does_not_import_pyattn() -> None:
    for path in (ROOT / "serving").rglob("*.py"):
        for name, _ in imports(path):
            assert name.split(".")[0] not in ("pyattn", "torch", "onnx"), path


def test_intrinsics_pybind11_and_python_stay_in_their_folders() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        text, inside = path.read_text(), path.relative_to(ROOT / "csrc").as_posix()
        intrinsics = set(re.findall(r"\b_mm\d*_\w+", text)) - {"_mm_pause"}
        assert not intrinsics or inside.startswith("cpu/vec_"), path
        assert "pybind11" not in text or inside.startswith("python/")
        assert "py::array" not in text or inside.startswith("python/")


def test_importing_pyattn_imports_nothing_heavy() -> None:
    code = "import sys, pyattn; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "pyattn" in loaded
    heavy = LAZY | {"torch", "jax", "tensorflow", "uvicorn", "matplotlib", "pyattn_serving"}
    assert not heavy & set(loaded)


def public_objects() -> list[tuple[str, Any]]:
    modules: list[ModuleType] = [pyattn, pyattn.nn, pyattn.ops, pyattn.models, pyattn.runtime]
    found = []
    for module in modules:
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, ModuleType):
                found.append((f"{module.__name__}.{name}", value))
    return found


@pytest.mark.parametrize(
    ("name", "value"), public_objects(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_public_names_have_docstrings(name: str, value: Any) -> None:
    assert inspect.getdoc(value), name
    if inspect.isclass(value):
        for method, member in vars(value).items():
            if inspect.isfunction(member) and (not method.startswith("_") or method == "__call__"):
                assert inspect.getdoc(member), f"{name}.{method}"


@pytest.mark.parametrize(
    "name",
    [
        "scaled_dot_product_attention",
        "varlen_attention",
        "paged_attention",
        "additive_attention",
        "luong_attention",
    ],
)
def test_mechanisms_are_documented_in_full(name: str) -> None:
    text = inspect.getdoc(getattr(pyattn, name)) or ""
    for part in ("Parameters\n---", "Returns\n---", "Raises\n---", "References\n---", "arXiv:"):
        assert part in text, part
    signature = inspect.signature(getattr(pyattn, name))
    for parameter in signature.parameters:
        assert parameter in text, parameter


def test_examples_in_docstrings_run() -> None:
    import doctest

    attempted = 0
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = sys.modules.get(".".join(parts).removesuffix(".__init__"))
        if module is not None:
            result = doctest.testmod(module)
            assert result.failed == 0
            attempted += result.attempted
    assert attempted >= 8


def test_files_stay_short() -> None:
    for folder in ("pyattn", "serving", "csrc", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".inl"):
                assert len(path.read_text().splitlines()) <= 400, path
