"""Who is compared: the servers, how each is started, and what each is sent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.forms import (
    LONE_JSON,
    NESTED_JSON,
    PROTOCOL_BINARY,
    PROTOCOL_JSON,
    Form,
)
from benchmarks.serving.process import Server, free_port

PEERS = Path(__file__).with_name("peers")
PROTOCOL = {"json": PROTOCOL_JSON, "binary": PROTOCOL_BINARY}
MODELS = {"small": "small", "image": "image", "minilm": "minilm"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server runs: its Python, the models, a folder of its own, its port and threads."""

    python: Path
    models: Path
    folder: Path
    port: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A server.

    Attributes
    ----------
    environment : str or None
        Its folder below that of the peers; None is the Python that runs this.
    command : function
        Prepares its folder and returns what starts it.
    ready : str
        A path that answers 200 when all models can be asked.
    packages : tuple of str
        Whose versions are told.
    """

    environment: str | None
    command: Callable[[Place], Sequence[str]]
    ready: str = "/v2/health/ready"
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A server with the forms that it takes, and the name of its model for each workload."""

    kind: str
    forms: Mapping[str, Form] = field(default_factory=lambda: PROTOCOL)
    models: Mapping[str, str] = field(default_factory=lambda: MODELS)


def _pyattn(*options: str) -> Callable[[Place], Sequence[str]]:
    def command(place: Place) -> Sequence[str]:
        return [
            *(str(place.python), "-m", "pyattn_serving", str(place.models)),
            *("--port", str(place.port), "--threads", str(place.threads)),
            *("--log-level", "warning", *options),
        ]

    return command


def _mlserver(place: Place) -> Sequence[str]:
    settings = {
        "host": "127.0.0.1",
        "http_port": place.port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    (place.folder / "settings.json").write_text(json.dumps(settings))
    for name in MODELS:
        model: dict[str, Any] = {"name": name, "implementation": "mlserver_runtime.OnnxRuntime"}
        if name != "minilm":  # it joins requests of one length only
            model |= {"max_batch_size": 16, "max_batch_time": 0.001}
        (place.folder / name).mkdir()
        (place.folder / name / "model-settings.json").write_text(json.dumps(model))
    return [str(place.python.with_name("mlserver")), "start", str(place.folder)]


def _litserve(place: Place) -> Sequence[str]:
    return [str(place.python), str(PEERS / "litserve_server.py")]


def _bentoml(place: Place) -> Sequence[str]:
    program = str(place.python.with_name("bentoml"))
    return [
        *(program, "serve", "bentoml_service:OnnxRuntime", "--working-dir", str(PEERS)),
        *("--host", "127.0.0.1", "--port", str(place.port)),
    ]


def _triton(place: Place) -> Sequence[str]:
    from benchmarks.serving.triton import command

    return command(place, list(MODELS))


KINDS = {
    "pyattn-serve": Kind(environment=None, command=_pyattn(), packages=("pyattn", "uvicorn")),
    "pyattn-serve without operators": Kind(environment=None, command=_pyattn("--no-operators")),
    "pyattn-serve two workers": Kind(
        environment=None, command=_pyattn("--workers", "2", "--threads", "1")
    ),
    "MLServer": Kind(environment="mlserver", command=_mlserver, packages=("mlserver",)),
    "LitServe": Kind(
        environment="litserve", command=_litserve, ready="/health", packages=("litserve",)
    ),
    "BentoML": Kind(
        environment="bentoml", command=_bentoml, ready="/readyz", packages=("bentoml",)
    ),
    "Triton": Kind(environment="triton", command=_triton, packages=("nvidia-pytriton",)),
}

CONTENDERS = {
    "pyattn-serve": Contender(kind="pyattn-serve"),
    "pyattn-serve packed": Contender(kind="pyattn-serve", models={"minilm": "minilm-packed"}),
    "pyattn-serve without operators": Contender(
        kind="pyattn-serve without operators", models={"minilm": "minilm"}
    ),
    "pyattn-serve two workers": Contender(
        kind="pyattn-serve two workers", models={"small": "small", "image": "image"}
    ),
    "MLServer": Contender(kind="MLServer", forms={"json": PROTOCOL_JSON}),
    "LitServe": Contender(kind="LitServe", forms={"json": NESTED_JSON}),
    "BentoML": Contender(kind="BentoML", forms={"json": LONE_JSON}),
    "Triton": Contender(kind="Triton"),
}


def start(name: str, peers: Path, models: Path, folder: Path, threads: int) -> Server:
    """Start a server; raises `FileNotFoundError` if its environment is not there."""
    kind = KINDS[name]
    python = python_of(name, peers)
    if not python.exists():
        raise FileNotFoundError(f"there is no {python}: see `make bench-serving`")
    own = folder / name
    own.mkdir(parents=True)
    place = Place(python, models, own, free_port(), threads)
    command = kind.command(place)
    variables = {
        "PEER_MODELS": str(models),
        "PEER_THREADS": str(threads),
        "PEER_PORT": str(place.port),
        "PEER_FOLDER": str(PEERS),
        "OMP_NUM_THREADS": str(threads),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    if kind.environment is not None:
        variables["PYTHONPATH"] = str(PEERS)
    log = folder / f"{name}.log"
    return Server(command, place.port, kind.ready, log, variables, folder=own)


def python_of(name: str, peers: Path) -> Path:
    """The Python of a server."""
    environment = KINDS[name].environment
    return Path(sys.executable) if environment is None else peers / environment / "bin" / "python"


def versions(name: str, peers: Path) -> dict[str, str]:
    """Versions of a server and of ONNX Runtime in its environment."""
    packages = (*KINDS[name].packages, "onnxruntime")
    code = "import sys, importlib.metadata as m\nfor n in sys.argv[1:]: print(n, m.version(n))"
    done = subprocess.run(
        [python_of(name, peers), "-c", code, *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(line.split() for line in done.stdout.splitlines())


def hold_to(cores: int) -> list[int]:
    """Keep this process, and all that it starts, on so many processors; return which."""
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    os.sched_setaffinity(0, chosen)
    return chosen


def remove(folder: Path) -> None:
    """Delete the folder of the servers."""
    shutil.rmtree(folder, ignore_errors=True)
