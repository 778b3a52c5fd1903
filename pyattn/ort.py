"""ONNX Runtime sessions with settings that suit attention models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyattn import runtime
from pyattn.extras import needs

if TYPE_CHECKING:
    import onnx
    import onnxruntime


def session(
    model: onnx.ModelProto | bytes | str | os.PathLike[str],
    *,
    threads: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> onnxruntime.InferenceSession:
    """Return a CPU session for a model in memory or in a file.

    ``threads`` defaults to :func:`pyattn.runtime.threads`, which heeds the affinity mask and the
    container's limit; ONNX Runtime by itself heeds neither. The memory arena grows by what is
    asked for, because sequence lengths differ from call to call. ``folder`` is where the files with
    the weights of a model in memory lie, if it has such.
    """
    needs("onnxruntime", "onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or runtime.threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if folder:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(folder))
    source: Any = model
    if not isinstance(model, (bytes, str, os.PathLike)):
        source = model.SerializeToString()
    provider = ("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})
    return onnxruntime.InferenceSession(source, options, providers=[provider])
