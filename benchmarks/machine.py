"""What a figure depends on: the machine, the versions, the commit."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LIBRARIES = (
    "pyattn", "numpy", "torch", "transformers", "onnx", "onnxruntime", "onnxscript", "tokenizers",
    "openvino", "jax",
)  # fmt: skip
ISA_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "asimdhp", "bf16", "sve",
)  # fmt: skip


def describe(threads: int) -> dict[str, Any]:
    """Machine, versions and commit, as kept at the head of a results file."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "threads": threads,
        "machine": {
            "cpu": _cpu_field("model name") or platform.processor() or "unknown",
            "architecture": platform.machine(),
            "isa": _isa(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _cpu_field(name: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def _isa() -> list[str]:
    present = set((_cpu_field("flags") or _cpu_field("Features")).split())
    return [flag for flag in ISA_FLAGS if flag in present]


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The commit of the working tree, with "+" after it if files under version control differ."""
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")
