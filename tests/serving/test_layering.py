"""Which part of the server may know which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pyattn_serving
import pytest

FOLDER = Path(pyattn_serving.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
MAX_LINES = 400


def imports(path):
    """Yield the modules that a file imports, those of this package from its top, as ".engine"."""
    package = path.relative_to(FOLDER).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            if node.level:
                module = ["", *package[: len(package) - node.level + 1], *module]
            yield ".".join(module)


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("", ["pyattn", "starlette", "fastapi", "onnx"]),
        ("text", [".asgi", ".settings", ".server", "uvicorn", "orjson"]),
        ("engine", [".text", ".protocol", ".asgi", ".settings", ".server", "uvicorn", "orjson"]),
        ("protocol", [".asgi", ".settings", ".server", "uvicorn", "asyncio", "onnxruntime"]),
        ("asgi", [".server", "uvicorn", "onnxruntime"]),
    ],
)
def test_direction_of_imports(part, forbidden):
    for path in FILES:
        if path.is_relative_to(FOLDER / part):
            for module in imports(path):
                assert not any(
                    module == name or module.startswith(f"{name}.") for name in forbidden
                ), f"{path.relative_to(FOLDER)} imports {module}"


def test_files_are_short():
    assert [path.name for path in FILES if len(path.read_text().splitlines()) > MAX_LINES] == []


def test_missing_dependency_is_named_with_the_remedy():
    code = "import sys; sys.modules['orjson'] = None; import pyattn_serving"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the server needs orjson, which the extra pyattn[serve] brings" in done.stderr


def test_import_has_no_heavy_or_foreign_companions():
    code = (
        "import sys, pyattn_serving; "
        "print([m for m in ('pyattn', 'onnx', 'torch', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
