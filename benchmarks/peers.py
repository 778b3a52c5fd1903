"""The libraries compared, imported when a contender needs them and held to the thread count.

A library that is not installed raises ImportError, which the harness records as an absent row.
They are imported by name so that type checking does not depend on which of them is installed.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]


def pyattn(threads: int) -> Any:
    """The library itself."""
    import_module("pyattn.runtime").set_threads(threads)
    return import_module("pyattn")


def torch(threads: int) -> Any:
    """PyTorch on the CPU."""
    module = import_module("torch")
    module.set_num_threads(threads)
    return module


def torch_run(threads: int, call: Callable[[], Any]) -> Callable[[], NDArray[Any]]:
    """A call that returns a tensor, without gradients and as a NumPy array."""
    module = torch(threads)

    def run() -> NDArray[Any]:
        with module.inference_mode():
            answer: NDArray[Any] = call().numpy()
        return answer

    return run


def onnx_model(nodes: Sequence[Any], feeds: Feeds, output: str, constants: Feeds) -> bytes:
    """A serialised opset 24 model with float32 inputs shaped like `feeds` and one output."""
    helper, numpy_helper = import_module("onnx.helper"), import_module("onnx.numpy_helper")
    kind = import_module("onnx").TensorProto.FLOAT
    graph = helper.make_graph(
        list(nodes),
        "case",
        [helper.make_tensor_value_info(name, kind, x.shape) for name, x in feeds.items()],
        [helper.make_tensor_value_info(output, kind, None)],
        [numpy_helper.from_array(x, name) for name, x in constants.items()],
    )
    opsets = [helper.make_opsetid("", 24)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialised: bytes = model.SerializeToString()
    return serialised


def onnx_run(
    threads: int, model: bytes | str, feeds: Feeds, shape: tuple[int, ...]
) -> Callable[[], NDArray[Any]]:
    """ONNX Runtime on a model, inputs and its one float32 output bound in place (no copies)."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    out = np.full(shape, np.nan, dtype=np.float32)
    binding = session.io_binding()
    for name, array in feeds.items():
        value = runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        binding.bind_ortvalue_input(name, value)
    target = runtime.OrtValue.ortvalue_from_numpy(out)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, target)

    def run() -> NDArray[Any]:
        session.run_with_iobinding(binding)
        return out

    return run
