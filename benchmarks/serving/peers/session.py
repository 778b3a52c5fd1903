"""The session of ONNX Runtime that every peer makes of a model."""

import os
from pathlib import Path
from typing import Any


def path(model: str) -> Path:
    """The file of a model."""
    return Path(os.environ["PEER_MODELS"]) / model / "1" / "model.onnx"


def session(model: str) -> Any:
    """A session with the threads that everybody has, which do not spin while they wait."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path(model), options, providers=["CPUExecutionProvider"])
