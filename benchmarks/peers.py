"""The libraries compared, imported when a contender needs them and held to the thread count.

A library that is not installed raises ImportError, which the harness records as an absent row.
They are imported by name so that type checking does not depend on which of them is installed.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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


def torch_tensor(module: Any, array: NDArray[Any]) -> Any:
    """A tensor that shares the memory of the array; PyTorch does not know ml_dtypes."""
    if array.dtype.name == "bfloat16":
        return module.from_numpy(array.view(np.int16)).view(module.bfloat16)
    return module.from_numpy(array)


def torch_array(tensor: Any) -> NDArray[Any]:
    """The numbers of a tensor of any float dtype, widened."""
    array: NDArray[Any] = tensor.detach().double().numpy()
    return array


def jax(threads: int) -> Any:
    """JAX on the CPU; the size of its pool is that of the environment when it was loaded."""
    if os.environ.get("PJRT_NPROC") != str(threads):
        raise RuntimeError(f"JAX was not held to {threads} threads before it was loaded")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return import_module("jax")


@dataclass(frozen=True)
class Bound:
    """A call whose inputs and outputs are bound to memory, which `alive` holds."""

    run: Callable[[], None]
    first: NDArray[Any]
    alive: tuple[Any, ...]

    def __call__(self) -> NDArray[Any]:
        """Run and return the first output, always in the same array."""
        self.run()
        return self.first


def openvino_compile(threads: int, model: Any, precision: str) -> Any:
    """An OpenVINO model compiled for one request at a time on the CPU."""
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    return import_module("openvino").Core().compile_model(model, "CPU", settings)


def openvino_tensor(array: NDArray[Any]) -> Any:
    """An OpenVINO tensor that shares the memory of the array."""
    openvino = import_module("openvino")
    if array.dtype.name == "bfloat16":
        return openvino.Tensor(array.view(np.uint16), list(array.shape), openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


def openvino_bound(compiled: Any, arrays: Sequence[NDArray[Any]], out: Any = None) -> Bound:
    """A request bound to its inputs, in their order, and to its first output or an array for it.

    OpenVINO reads and writes their memory where it is, and does not keep it.
    """
    request = compiled.create_infer_request()
    alive = tuple(np.require(array, requirements="C") for array in arrays)
    for index, array in enumerate(alive):
        request.set_input_tensor(index, openvino_tensor(array))
    if out is not None:
        request.set_output_tensor(0, openvino_tensor(out))
    request.infer(share_outputs=True)
    first = request.get_output_tensor(0).data if out is None else out

    def run() -> None:
        request.infer(share_outputs=True)

    return Bound(run, first, alive)


def onnx_model(
    nodes: Sequence[Any], feeds: Feeds, outputs: str | Sequence[str], constants: Feeds
) -> bytes:
    """A serialised opset 24 model with inputs like `feeds` and outputs of the first one's dtype."""
    helper, numpy_helper = import_module("onnx.helper"), import_module("onnx.numpy_helper")
    kinds = [helper.np_dtype_to_tensor_dtype(x.dtype) for x in feeds.values()]
    names = [outputs] if isinstance(outputs, str) else outputs
    graph = helper.make_graph(
        list(nodes),
        "case",
        [
            helper.make_tensor_value_info(name, kind, x.shape)
            for (name, x), kind in zip(feeds.items(), kinds, strict=True)
        ],
        [helper.make_tensor_value_info(name, kinds[0], None) for name in names],
        [numpy_helper.from_array(x, name) for name, x in constants.items()],
    )
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", 24), *(helper.make_opsetid(d, 1) for d in sorted(domains))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialised: bytes = model.SerializeToString()
    return serialised


def onnx_session(threads: int, model: bytes | str) -> Any:
    """An ONNX Runtime session on the CPU."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_bound(session: Any, feeds: Feeds, outputs: Feeds) -> Bound:
    """Bind inputs and outputs in place, so that a call copies nothing.

    An output that is the same array as an input is bound to the same memory, as ONNX Runtime asks
    of a cache that it is to extend in place.
    """
    make = import_module("onnxruntime").OrtValue.ortvalue_from_numpy
    feeds = {name: np.require(array, requirements="C") for name, array in feeds.items()}
    values = {id(array): make(array) for array in (*feeds.values(), *outputs.values())}
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, values[id(array)])
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, values[id(array)])
    first = next(iter(outputs.values()))
    return Bound(partial(session.run_with_iobinding, binding), first, (feeds, outputs, values))


def onnx_run(
    threads: int, model: bytes | str, feeds: Feeds, shape: tuple[int, ...]
) -> Callable[[], NDArray[Any]]:
    """ONNX Runtime on a model with one float32 output."""
    session = onnx_session(threads, model)
    out = np.full(shape, np.nan, dtype=np.float32)
    return onnx_bound(session, feeds, {session.get_outputs()[0].name: out})
