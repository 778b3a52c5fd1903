"""Models as the extensions of the protocol show them: configuration, statistics, index.

The forms are those of Triton's extensions for the model configuration, the statistics and the
repository, so that its clients read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from ..engine.failures import InvalidRequestError
from ..engine.model import Model, TensorSpec
from ..engine.statistics import STAGES, Tally
from ..engine.store import IndexEntry, State
from .json_text import parse_json

_COMPUTE = {"assemble": "compute_input", "run": "compute_infer", "split": "compute_output"}


def model_config(model: Model) -> dict[str, Any]:
    """Return the answer to ``GET /v2/models/{name}/config``.

    The shapes are whole, batch included, so ``max_batch_size`` is 0 as the extension asks. What it
    has no field for stands in ``parameters``.
    """
    settings = model.settings
    parameters = {
        "pyattn.operators": ",".join(model.operators),
        "pyattn.batching": _batching(model),
        "pyattn.attention_layers": ",".join(map(str, model.attention)) or None,
        "pyattn.tokenizer": getattr(model.tokenizer, "name", None),
        "max_batch": settings.max_batch,
        "preferred_batch": settings.preferred_batch,
        "max_delay": settings.max_delay,
        "max_tokens": settings.max_tokens,
        "max_padding": settings.max_padding,
        "max_queue": settings.max_queue,
        "max_queue_bytes": settings.max_queue_bytes,
        "timeout": settings.timeout,
    }
    policy = settings.versions
    if policy.specific:
        versions: dict[str, Any] = {"specific": {"versions": list(policy.specific)}}
    elif policy.latest is None:
        versions = {"all": {}}
    else:
        versions = {"latest": {"num_versions": policy.latest}}
    return {
        "name": model.name,
        "platform": model.platform,
        "backend": "onnxruntime",
        "version_policy": versions,
        "max_batch_size": 0,
        "input": [_tensor(spec) for spec in model.inputs.values()],
        "output": [_tensor(spec) for spec in model.outputs.values()],
        "default_model_filename": "model.onnx",
        "parameters": {
            key: {"string_value": str(value)}
            for key, value in parameters.items()
            if value is not None
        },
    }


def statistics(models: Iterable[Model]) -> dict[str, Any]:
    """Return the answer to ``GET /v2/models/stats`` and to that of one model."""
    return {"model_stats": [_model_statistics(model) for model in models]}


def index(entries: Iterable[IndexEntry], only_ready: bool) -> list[dict[str, str]]:
    """Return the answer to ``POST /v2/repository/index``."""
    return [
        {
            "name": entry.name,
            "version": entry.version,
            "state": entry.state.value,
            "reason": entry.reason,
        }
        for entry in entries
        if entry.state is State.READY or not only_ready
    ]


def parse_index(body: bytes) -> bool:
    """Return whether a request for the index wants only what is ready."""
    ready = _object(body).get("ready", False)
    if not isinstance(ready, bool):
        raise InvalidRequestError("'ready' must be true or false")
    return ready


def check_load(body: bytes) -> None:
    """Refuse a request to load a model that brings a configuration or files of its own."""
    _check_parameters(body, frozenset())


def check_unload(body: bytes) -> None:
    """Refuse a request to unload a model that asks for what there is not."""
    _check_parameters(body, frozenset({"unload_dependents"}))


def _check_parameters(body: bytes, known: frozenset[str]) -> None:
    parameters = _object(body).get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequestError("'parameters' must be an object")
    for name in parameters:
        if name not in known:
            raise InvalidRequestError(f"the parameter {name[:200]!r} is not supported")


def _object(body: bytes) -> dict[str, Any]:
    value = parse_json(body) if body.strip() else {}
    if not isinstance(value, dict):
        raise InvalidRequestError("the request must be a JSON object")
    return value


def _batching(model: Model) -> str | None:
    return None if model.batching is None else orjson.dumps(model.batching).decode()


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    name = "STRING" if spec.datatype.name == "BYTES" else spec.datatype.name
    return {"name": spec.name, "data_type": f"TYPE_{name}", "dims": spec.wire_shape}


def _model_statistics(model: Model) -> dict[str, Any]:
    found = model.statistics
    with found.lock:
        return {
            "name": model.name,
            "version": model.version,
            "last_inference": found.last_ms,
            "inference_count": found.inferences,
            "execution_count": found.executions,
            "inference_stats": {
                "success": _tally(found.success),
                "fail": _tally(found.fail),
                "queue": _tally(found.stages["queue"]),
                **_compute(found.stages),
                "cache_hit": _tally(Tally()),
                "cache_miss": _tally(Tally()),
            },
            "response_stats": {},
            "batch_stats": [
                {"batch_size": rows, **_compute(stages)}
                for rows, stages in sorted(found.batches.items())
            ],
            "memory_usage": [],
            "rejected_count": found.rejected,
            "expired_count": found.expired,
            "cancelled_count": found.cancelled,
            "token_count": found.real,
            "padded_token_count": found.padded,
        }


def _compute(stages: Mapping[str, Tally]) -> dict[str, Any]:
    return {_COMPUTE[name]: _tally(stages[name]) for name in STAGES if name in _COMPUTE}


def _tally(tally: Tally) -> dict[str, int]:
    return {"count": tally.count, "ns": tally.ns}
