"""pyattn.accelerate: what is left and why, what comes in and goes out, verification, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

import pyattn as pa
from pyattn.ort import session
from pyattn.rewrite import writer
from tests.written_out import Way, build, feed

ATTENTION = """
    scores = MatMul(q, k)
    weights = Softmax(scores)
    y = MatMul(weights, v)
"""
Q, K, V = "float[B, 4, T, 8] q", "float[B, 4, 8, S] k", "float[B, 4, S, 8] v"


def parsed(
    body: str, inputs: str = f"{Q}, {K}, {V}", outputs: str = "float[B, 4, T, 8] y", opset: int = 20
) -> Any:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return parser.parse_model(text)


LEFT = {
    "weights are an output": (
        parsed(ATTENTION, outputs="float[B, 4, T, 8] y, float[B, 4, T, S] weights"),
        "the weights are an output of the graph",
    ),
    "weights are read": (
        parsed(ATTENTION + "z = ReduceMax(weights)", outputs="float[B, 4, T, 8] y, float z"),
        "the weights are read elsewhere too",
    ),
    "scores are an output": (
        parsed(ATTENTION, outputs="float[B, 4, T, 8] y, float[B, 4, T, S] scores"),
        "the scores scores are read elsewhere too",
    ),
    "softmax over the queries": (
        parsed(ATTENTION.replace("Softmax", "Softmax <axis = 2>")),
        "the softmax is not over the last axis",
    ),
    "one row of scores": (
        parsed("scores = MatMul(q, k) flat = Reshape(scores, n) weights = Softmax(flat) "
               "y = MatMul(weights, v)", f"{Q}, {K}, {V}, int64[4] n"),
        "a reshape of the scores may mix their rows",
    ),
    "scores that are shifted a little": (
        parsed("scores = MatMul(q, k) low = Constant <value_float = -10.0> () "
               "kept = Where(seen, scores, low) weights = Softmax(kept) y = MatMul(weights, v)",
               f"{Q}, {K}, {V}, bool[B, 1, T, S] seen"),
        "scores are replaced by -10, which is no mask",
    ),
    "weights times something": (
        parsed("scores = MatMul(q, k) weights = Softmax(scores) some = Mul(weights, m) "
               "y = MatMul(some, v)", f"{Q}, {K}, {V}, float[4, 1, 1] m"),
        "Mul stands between the softmax and the product with the values",
    ),
    "memory of constants": (
        parsed("scores = MatMul(q, k) weights = Softmax(scores) y = MatMul(weights, v)",
               "float[B, T, 8] q, float[8, 5] k, float[5, 8] v", "float[B, T, 8] y"),
        "axes; expected 3 or 4",
    ),
    "weights of eight bits": (
        parsed("scores = MatMul(q, k) weights = Softmax(scores) "
               "d, s, z = DynamicQuantizeLinear(weights) y = MatMulInteger(d, v, z)",
               f"{Q}, {K}, uint8[B, 4, S, 8] v", "int32[B, 4, T, 8] y"),
        "DynamicQuantizeLinear stands between the softmax and the product with the values",
    ),
    "a sum of products": (
        parsed("scores = MatMul(q, k) weights = Softmax(scores) "
               "y = Einsum <equation = \"bhts,bhsd->bhtd\"> (weights, v)"),
        "Einsum stands between the softmax and the product with the values",
    ),
    "a batch of one": (
        parsed(ATTENTION, f"float[1, 4, T, 8] q, {K}, {V}"),
        "a product broadcasts axis 0, of sizes ['1', 'B']",
    ),
    "scores of different heads": (
        parsed("scores = MatMul(q, k) big = Mul(scores, m) weights = Softmax(big) "
               "y = MatMul(weights, v)", f"{Q}, {K}, {V}, float[4, 1, 1] m"),
        "the scores are scaled by more than one number",
    ),
    "an old opset": (
        parsed(ATTENTION.replace("Softmax", "Softmax <axis = 3>"), opset=12),
        "the model is of opset 12; known are 13",
    ),
    "an opset to come": (parsed(ATTENTION, opset=999), "the model is of opset 999"),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_is_reported(what: str) -> None:
    model, reason = LEFT[what]
    result = pa.accelerate(model)
    assert result.model is model
    assert not result.matched
    (left,) = result.left
    assert reason in left.reason
    assert "the model is unchanged" in str(result)
    assert reason in str(result)


NO_ATTENTION = {
    "a classifier": parsed("s = MatMul(q, k) y = Softmax(s)", outputs="float[B, 4, T, S] y"),
    "a gate": parsed("w = Softmax(q) y = MatMul(w, k)", outputs="float[B, 4, T, S] y"),
    "no softmax": parsed("s = MatMul(q, k) y = MatMul(s, v)"),
}


@pytest.mark.parametrize("what", NO_ATTENTION)
def test_a_model_without_attention_is_unchanged(what: str, tmp_path: Path) -> None:
    model = NO_ATTENTION[what]
    data = model.SerializeToString() + b""
    result = pa.accelerate(data, tmp_path / "out.onnx")
    assert result.model.SerializeToString() == data
    assert (tmp_path / "out.onnx").read_bytes() == data
    assert str(result) == "no attention found; the model is unchanged"
    assert (result.matched, result.left, result.difference) == ((), (), None)


def test_twice_is_once() -> None:
    once = pa.accelerate(build(Way(mask="added"))).model
    again = pa.accelerate(once)
    assert again.model is once
    assert str(again) == "no attention found; the model is unchanged"


def test_what_is_not_attention_stays_as_it_was(rng: np.random.Generator) -> None:
    before = build(Way(mask="added"))
    before.metadata_props.add(key="author", value="somebody")
    before.graph.doc_string = "kept"
    after = pa.accelerate(before).model
    assert after.metadata_props == before.metadata_props
    assert (after.graph.doc_string, after.graph.name) == ("kept", before.graph.name)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert not after.graph.value_info
    names = {node.name for node in after.graph.node}
    assert len(names) >= len(after.graph.node) - len(before.graph.node)
    weights = {tensor.name: tensor for tensor in before.graph.initializer}
    assert all(weights[tensor.name] == tensor for tensor in after.graph.initializer)


def test_two_attentions_share_a_function(rng: np.random.Generator) -> None:
    model = parsed(
        ATTENTION + "s2 = MatMul(y, k) w2 = Softmax(s2) z = MatMul(w2, v)",
        outputs="float[B, 4, T, 8] z",
    )
    result = pa.accelerate(model)
    assert len(result.matched) == 2
    assert [f.name for f in result.model.functions] == ["ScaledDotProductAttention"]


def test_attention_in_the_branches_of_an_if(rng: np.random.Generator) -> None:
    """As in the merged decoders of transformers.js; both branches have the same names in them."""
    branch = "{{ s = MatMul(q, k) {} w = Softmax({}) {} = MatMul(w, v) }}"
    then = f"then_branch = t () => (float[B, 4, T, 8] a) {branch.format('', 's', 'a')}"
    other = (
        f"else_branch = e () => (float[B, 4, T, 8] b) {branch.format('m = Add(s, bias)', 'm', 'b')}"
    )
    model = parsed(
        f"y = If (c) <{then}, {other}>", f"{Q}, {K}, {V}, bool c, float[B, 1, T, S] bias"
    )
    result = pa.accelerate(model)
    assert [m.function for m in result.matched] == [
        "ScaledDotProductAttention",
        "ScaledDotProductAttentionFloatMask",
    ]
    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    inputs = {
        "q": normal(2, 4, 3, 8),
        "k": normal(2, 4, 8, 5),
        "v": normal(2, 4, 5, 8),
        "bias": normal(2, 1, 3, 5),
    }
    for condition in (True, False):
        inputs["c"] = np.array(condition)
        expected, found = (session(m).run(None, inputs)[0] for m in (model, result.model))
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_attention_in_a_function_is_left() -> None:
    model = parsed("y = MatMul(q, k)", outputs="float[B, 4, T, S] y")
    nodes = parsed(ATTENTION).graph.node
    function = helper.make_function("other", "F", ["q", "k", "v"], ["y"], nodes, model.opset_import)
    model.functions.append(function)
    (left,) = pa.accelerate(model).left
    assert "in the function other::F, which is to be inlined first" in left.reason


def test_a_function_of_the_same_name_is_not_overwritten() -> None:
    model = build(Way())
    body = [helper.make_node("Identity", ["query"], ["output"])]
    model.functions.append(
        helper.make_function(
            "pyattn", "ScaledDotProductAttention", ["query", "key", "value"], ["output"], body,
            model.opset_import,
        )
    )  # fmt: skip
    model.opset_import.add(domain="pyattn", version=1)
    (left,) = pa.accelerate(model).left
    assert "another function pyattn::ScaledDotProductAttention" in left.reason


def test_paths(tmp_path: Path, rng: np.random.Generator) -> None:
    way = Way(mask="added")
    model = build(way)
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    result = pa.accelerate(str(source), target)
    assert onnx.load(target) == result.model
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]
    inputs = feed(way, rng, 2, 3, 4)
    expected, found = (session(path).run(None, inputs)[0] for path in (source, target))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    pa.accelerate(source, source)  # in place
    assert onnx.load(source) == result.model


def test_a_failure_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"precious")
    wrong_scale(monkeypatch)
    with pytest.raises(pa.VerificationError):
        pa.accelerate(build(Way()), target)
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileNotFoundError):
        pa.accelerate(build(Way()), tmp_path / "no folder" / "out.onnx", verify=False)


def with_weights_beside(folder: Path) -> Path:
    """A model whose projection of the queries lies in another file."""
    model = parsed(
        "p = MatMul(q, w) scores = MatMul(p, k) weights = Softmax(scores) y = MatMul(weights, v)"
    )
    weights = np.random.default_rng(0).standard_normal((8, 8), dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    return path


def test_weights_beside_the_model_stay_there(tmp_path: Path) -> None:
    source = with_weights_beside(tmp_path / "a")
    before = (source.parent / "model.data").stat().st_mtime_ns
    result = pa.accelerate(source, source.parent / "fast.onnx")
    assert len(result.matched) == 1
    (tensor,) = result.model.graph.initializer
    assert tensor.data_location == onnx.TensorProto.EXTERNAL
    assert not tensor.raw_data
    assert (source.parent / "model.data").stat().st_mtime_ns == before
    other = tmp_path / "b"
    other.mkdir()
    pa.accelerate(source, other / "fast.onnx")
    assert (other / "model.data").read_bytes() == (source.parent / "model.data").read_bytes()
    q, k, v = (np.ones(shape, np.float32) for shape in ((1, 4, 3, 8), (1, 4, 8, 5), (1, 4, 5, 8)))
    paths = (source, source.parent / "fast.onnx", other / "fast.onnx")
    one, two, three = (session(path).run(None, {"q": q, "k": k, "v": v})[0] for path in paths)
    np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_array_equal(two, three)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", ""])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    path = with_weights_beside(tmp_path / "a")
    model = onnx.load(path, load_external_data=False)
    (entry,) = (e for e in model.graph.initializer[0].external_data if e.key == "location")
    entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="accelerate: weights lie outside the model's folder"):
        pa.accelerate(path)


def test_weights_that_are_missing(tmp_path: Path) -> None:
    path = with_weights_beside(tmp_path / "a")
    with pytest.raises(
        ValueError, match=r"the weights are in the file 'model.data'; give the model's path"
    ):
        pa.accelerate(path.read_bytes())
    (path.parent / "model.data").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"the file with weights .*model.data is missing"):
        pa.accelerate(path)
    (path.parent / "model.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="weights lie outside the model's folder"):
        pa.accelerate(path)


def wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the call that is written be another one than was found."""
    traced = writer._traced

    def wrong(call: Any, opset: int) -> Any:
        call.scale *= 1.5
        return traced(call, opset)

    monkeypatch.setattr(writer, "_traced", wrong)


def test_verification_fails_where_the_result_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_scale(monkeypatch)
    with pytest.raises(pa.VerificationError, match=r"accelerate: the output output differs .* by"):
        pa.accelerate(build(Way()))
    assert pa.accelerate(build(Way()), verify=False).difference is None


def test_verification_tells_what_does_not_run() -> None:
    model = build(Way())
    model.graph.input.add().CopyFrom(
        helper.make_tensor_value_info("text", onnx.TensorProto.STRING, ["N"])
    )
    with pytest.raises(
        pa.VerificationError, match=r"text is of .*, of which there are no random numbers"
    ):
        pa.accelerate(model)
    model = parsed(
        ATTENTION + "n = Constant <value_ints = [3, 999]> () z = Reshape(q, n)",
        outputs="float[B, 4, T, 8] y, float[3, 999] z",
    )
    with pytest.raises(pa.VerificationError, match="no random inputs were found that the original"):
        pa.accelerate(model)


def damaged() -> dict[str, tuple[Any, str]]:
    good = build(Way(mask="added"))
    cyclic = parsed("a = Add(b, q) b = Add(a, q) y = MatMul(b, v)")
    missing = parsed("scores = MatMul(q, nothing) weights = Softmax(scores) y = MatMul(weights, v)")
    twice = parsed(ATTENTION + "y = MatMul(weights, v)")
    unknown = parsed(ATTENTION.replace("Softmax", "Sofmax"))
    attribute = parsed(ATTENTION.replace("Softmax", "Softmax <axes = 3>"))
    return {
        "nothing": (b"", "no nodes"),
        "text": (b"this is no model", "not a readable ONNX model"),
        "truncated": (good.SerializeToString()[:-40], "not a readable ONNX model"),
        "cyclic": (cyclic, "damaged"),
        "missing input": (missing, "damaged"),
        "an output twice": (twice, "damaged"),
        "unknown operator": (unknown, "damaged"),
        "unknown attribute": (attribute, "damaged"),
        "no graph": (onnx.ModelProto(ir_version=8), "no nodes"),
    }


@pytest.mark.parametrize("what", damaged())
def test_damaged_models(what: str) -> None:
    model, reason = damaged()[what]
    with pytest.raises(ValueError, match=f"accelerate: .*{reason}"):
        pa.accelerate(model)


def test_any_damage_is_an_error_or_no_harm(rng: np.random.Generator) -> None:
    data = bytearray(build(Way(mask="two", groups=2, key="views")).SerializeToString())
    messages: list[str] = []
    for _ in range(60):
        broken = data.copy()
        for _ in range(int(rng.integers(1, 4))):
            broken[int(rng.integers(len(broken)))] = int(rng.integers(256))
        try:
            result = pa.accelerate(bytes(broken), verify=False)
        except ValueError as error:
            messages.append(str(error))
        else:
            assert isinstance(result, pa.Accelerated)
    assert all(message.startswith("accelerate: ") for message in messages)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model must be a path, bytes or a ModelProto; got int"):
        pa.accelerate(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="accelerate: there is no file"):
        pa.accelerate(tmp_path / "none.onnx")
    with pytest.raises(FileNotFoundError, match="accelerate: there is no file"):
        pa.accelerate(tmp_path)
