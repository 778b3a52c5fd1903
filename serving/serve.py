"""``python serving/serve.py MODEL.onnx``: the command, from the source folder, not installed.

The folder has another name than the package, so the package is loaded from it by hand.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

PACKAGE = "pyattn_serving"


def load_package(folder: Path) -> None:
    """Make `folder` importable as the package it installs as."""
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


def main() -> int:
    """Run the command from the folder of this file."""
    folder = Path(__file__).resolve().parent
    # Python puts a script's folder first on the path, where its modules would hide others.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != folder]
    load_package(folder)
    code: int = importlib.import_module(f"{PACKAGE}.cli").main()
    return code


if __name__ == "__main__":
    sys.exit(main())
