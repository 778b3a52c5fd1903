"""PyTorch's tensors and JAX's arrays in place of NumPy's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import pyattn as pa
from pyattn import _core, interchange, ops

SDPA = torch.nn.functional.scaled_dot_product_attention
DTYPES = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.bool: np.bool_,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.uint8: np.uint8,
}
SHAPES = ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8))


def heads(rng: Any) -> list[Any]:
    return [rng.standard_normal(shape, dtype=np.float32) for shape in SHAPES]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "expanded", "empty"])
def test_tensors_are_viewed_in_both_directions(dtype: Any, layout: str) -> None:
    whole = (torch.arange(60) % 7).reshape(3, 4, 5).to(dtype)
    tensor = {
        "contiguous": whole,
        "transposed": whole.permute(2, 0, 1),
        "strided": whole[1:, ::2, 1:],
        "expanded": whole[:, :1].expand(3, 9, 5),
        "empty": whole[:, :0],
    }[layout]
    view = interchange.as_ndarray("f: x", tensor)
    assert view.dtype == DTYPES[dtype]
    assert view.shape == tuple(tensor.shape)
    assert np.array_equal(view.astype(float), tensor.to(torch.float64).numpy())
    for back in (
        interchange.like(tensor, view),
        _core.same_kind(whole, view),
        torch.from_dlpack(_core.to_dlpack(view)),
    ):
        assert back.dtype == dtype
        assert torch.equal(back, tensor)
        if layout != "empty":
            assert view.ctypes.data == tensor.data_ptr() == back.data_ptr()


def test_writes_reach_the_tensor() -> None:
    tensor = torch.zeros(3, 4, dtype=torch.bfloat16)
    interchange.writable_ndarray("f: out", tensor)[1] = 2
    assert (tensor[1] == 2).all()
    array = np.zeros(3, np.float32)
    interchange.like(tensor, array)[1] = 5
    assert array[1] == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_attention_on_tensors(dtype: Any, rng: Any) -> None:
    query, key, value = (torch.tensor(a).to(dtype) for a in heads(rng))
    mask = torch.tensor(rng.random((2, 1, 5, 7)) < 0.7)
    mask[..., 0] = True
    expected = SDPA(query, key, value, mask, enable_gqa=True)
    # As a model has them: heads behind positions in memory.
    laid_out = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    out, weights = pa.scaled_dot_product_attention(*laid_out, mask, aux=("weights",))
    assert type(out) is type(weights) is torch.Tensor
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5, dtype=dtype))
    plain = pa.scaled_dot_product_attention(*(x.numpy() for x in laid_out), mask.numpy())
    assert np.array_equal(out.numpy(), plain)


def test_additive_and_luong_attention_on_tensors(rng: Any) -> None:
    arrays = [torch.tensor(rng.standard_normal((2, n, 6))) for n in (3, 4, 4)]
    v, lengths = torch.tensor(rng.standard_normal(6)), torch.tensor([2, 4])
    found = pa.additive_attention(*arrays, v, bias=v, kv_lengths=lengths)
    numbers = [a.numpy() for a in arrays]
    expected = pa.additive_attention(
        *numbers, v.numpy(), bias=v.numpy(), kv_lengths=lengths.numpy()
    )
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), expected)
    found = pa.luong_attention(*arrays)
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), pa.luong_attention(*numbers))


def test_operations_on_tensors() -> None:
    x = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    torch.testing.assert_close(ops.softmax(x.T), torch.softmax(x.T, -1))
    torch.testing.assert_close(ops.add(1, x), 1 + x)
    torch.testing.assert_close(ops.gelu(x), torch.nn.functional.gelu(x))
    turned = ops.transpose(x, (1, 0))
    assert turned.data_ptr() == x.data_ptr()
    assert turned.stride() == (1, 4)


def test_subclasses_of_tensors(rng: Any) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 4), requires_grad=False)
    assert torch.equal(ops.add(parameter, 1), torch.full((3, 4), 2.0))


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "gradient": (lambda: torch.ones(3, requires_grad=True), ValueError, r"\.detach\(\)"),
    "parameter": (lambda: torch.nn.Parameter(torch.ones(3)), ValueError, r"\.detach\(\)"),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), TypeError, "code 5, 64 bits"),
    "float8": (lambda: torch.ones(3, dtype=torch.float8_e5m2), TypeError, "not supported"),
    "conjugate": (lambda: torch.ones(3, dtype=torch.complex64).conj(), TypeError, "code 5"),
    "negated": (lambda: torch.ones(3, dtype=torch.complex64).conj().imag, ValueError, "lazily"),
    "sparse": (lambda: torch.ones(3).to_sparse(), ValueError, "storage"),
    "meta": (lambda: torch.ones(3, device="meta"), ValueError, "meta"),
    "mkldnn": (lambda: torch.ones(3).to_mkldnn(), ValueError, "storage|layout"),
}


@pytest.mark.parametrize("name", BAD)
def test_tensors_that_cannot_be_read(name: str) -> None:
    make, error, message = BAD[name]
    with pytest.raises(error, match=f"^softmax: input 0.*({message})") as caught:
        ops.softmax(make())
    assert "\n" not in str(caught.value)


def test_fifty_thousand_tensors_leave_nothing() -> None:
    tensor = torch.arange(6.0)
    storage = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    for _ in range(50_000):
        interchange.like(tensor, interchange.as_ndarray("f: x", tensor))
    assert torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) == storage


def test_the_example_of_the_readme() -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "import torch" in b]
    names: dict[str, Any] = {"pa": pa}
    exec(block, names)  # noqa: S102 - our own README
    expected = SDPA(names["query"], names["key"], names["value"], is_causal=True)
    assert type(names["out"]) is torch.Tensor
    torch.testing.assert_close(names["out"], expected)


def test_jax(rng: Any) -> None:
    jax = pytest.importorskip("jax")
    jnp, arrays = jax.numpy, [jax.numpy.asarray(a) for a in heads(rng)]
    mask = jnp.asarray(rng.random((5, 7)) < 0.7)
    expected = pa.scaled_dot_product_attention(*map(np.asarray, arrays), np.asarray(mask))
    found = pa.scaled_dot_product_attention(*arrays, mask)
    assert isinstance(found, jax.Array)
    assert np.array_equal(np.asarray(found), expected)
    out, lse = pa.scaled_dot_product_attention(
        arrays[0], *map(torch.tensor, heads(rng)[1:]), aux="lse"
    )
    assert isinstance(out, jax.Array)
    assert isinstance(lse, jax.Array)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.bool_):
        array = jnp.arange(12).reshape(3, 4).astype(dtype)
        view = interchange.as_ndarray("f: x", array)
        assert view.dtype == np.dtype(dtype)
        assert view.ctypes.data == array.unsafe_buffer_pointer()
        assert not view.flags.writeable
        back = interchange.like(array, view)
        assert back.dtype == array.dtype
        assert (back == array).all()
        # A strided array is no array of JAX: it is copied for it.
        assert (interchange.like(array, view[:, ::2]) == array[:, ::2]).all()
    with pytest.raises(ValueError, match="f: out is read-only"):
        interchange.writable_ndarray("f: out", arrays[0])
    with pytest.raises(TypeError, match=r"^softmax: input 0: Abstract tracer value"):
        jax.jit(ops.softmax)(arrays[0])


def test_jax_takes_aligned_memory_over() -> None:
    jax = pytest.importorskip("jax")
    memory = np.zeros(1024 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + 1024].view(np.float32).reshape(16, 16)
    taken = interchange.like(jax.numpy.zeros(1), array)
    assert taken.unsafe_buffer_pointer() == array.ctypes.data


def test_jax_has_finished_computing_what_is_read(rng: Any) -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    x = jnp.asarray(rng.standard_normal((700, 700), dtype=np.float32))
    compute = jax.jit(lambda x: jnp.linalg.matrix_power(x / 30, 16))
    expected = np.asarray(compute(x))
    for _ in range(5):
        assert np.array_equal(interchange.as_ndarray("f: x", compute(x)), expected)
