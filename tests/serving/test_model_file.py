"""Model files that must not be loaded, and the reader that finds out."""

from __future__ import annotations

import asyncio
import itertools
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import ModelError
from pyattn_serving.engine.model import Model
from pyattn_serving.engine.model_file import inspect
from pyattn_serving.engine.session import SessionSettings

from . import models

WEIGHTS = np.arange(4, dtype=np.float32)


@pytest.fixture
def folder(tmp_path):
    """A model's folder with a file of weights, inside a folder with another one."""
    inside = tmp_path / "model"
    inside.mkdir()
    for place in (tmp_path, inside):
        (place / "weights.bin").write_bytes(WEIGHTS.tobytes())
    return inside


def save_external(folder, location, **options):
    path = folder / "model.onnx"
    path.write_bytes(models.external(location, **options).SerializeToString())
    return path


def test_external_data_inside_the_folder(folder):
    path = save_external(folder, "weights.bin")
    assert inspect(path).external == {"weights.bin"}
    engine = Engine([ModelSource.of(path)])
    engine.load()
    engine.close()


def test_external_data_in_a_folder_below(folder):
    (folder / "data").mkdir()
    (folder / "weights.bin").rename(folder / "data" / "w.bin")
    assert inspect(save_external(folder, "data/w.bin")).external == {"data/w.bin"}


@pytest.mark.parametrize("tensor_field", [True, False])
@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("../weights.bin", "not a path inside"),
        ("data/../../weights.bin", "not a path inside"),
        ("/etc/hostname", "not a path inside"),
        ("..\\weights.bin", "not a path inside"),
        ("C:\\weights.bin", "not a path inside"),
        ("none.bin", "does not exist"),
        ("weights.bin/x", "does not exist"),
        (".", "not a regular file"),
        ("", "not a file name"),
        ("weights.bin\0", "not a file name"),
        ("*/_ORT_MEM_ADDR_/*", "not a file name"),
        (None, "without a location"),
    ],
)
def test_external_data_elsewhere(folder, location, reason, tensor_field):
    path = save_external(folder, location, tensor_field=tensor_field)
    with pytest.raises(ModelError, match=reason):
        inspect(path)


@pytest.mark.parametrize("kind", ["file link", "folder link", "hard link", "pipe"])
def test_external_data_that_is_not_a_plain_file(folder, kind):
    location = "linked.bin"
    if kind == "file link":
        (folder / location).symlink_to(folder.parent / "weights.bin")
    elif kind == "folder link":
        (folder / "up").symlink_to(folder.parent)
        location = "up/weights.bin"
    elif kind == "hard link":
        (folder / location).hardlink_to(folder.parent / "weights.bin")
    else:
        os.mkfifo(folder / location)
    with pytest.raises(ModelError, match=r"leads out|not a regular file"):
        inspect(save_external(folder, location))


def test_link_inside_the_folder_is_allowed(folder):
    (folder / "alias.bin").symlink_to(folder / "weights.bin")
    assert inspect(save_external(folder, "alias.bin")).external == {"alias.bin"}


def external_tensor():
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../weights.bin"
    return tensor


def in_subgraph(tensor):
    body = helper.make_graph([], "body", [], [], [tensor])
    return helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)


def in_nodes(nodes):
    return helper.make_model(helper.make_graph(nodes, "g", [], []))


def in_function(node):
    proto = in_nodes([])
    opset = [helper.make_opsetid("", models.OPSET)]
    proto.functions.append(helper.make_function("d", "F", [], ["y"], [node], opset))
    return proto


def in_function_default(tensor):
    proto = in_function(helper.make_node("Identity", ["x"], ["y"]))
    proto.functions[0].attribute_proto.append(helper.make_attribute("a", tensor))
    return proto


def in_training(tensor):
    proto = in_nodes([])
    proto.training_info.add().algorithm.initializer.append(tensor)
    return proto


def in_sparse(tensor):
    proto = in_nodes([])
    proto.graph.sparse_initializer.add().indices.CopyFrom(tensor)
    return proto


@pytest.mark.parametrize(
    "proto",
    [
        in_nodes([in_subgraph(external_tensor())]),
        in_nodes([helper.make_node("X", [], ["y"], a=[external_tensor(), external_tensor()])]),
        in_function(helper.make_node("Constant", [], ["y"], value=external_tensor())),
        in_function(in_subgraph(external_tensor())),
        in_function_default(external_tensor()),
        in_training(external_tensor()),
        in_sparse(external_tensor()),
    ],
    ids=["subgraph", "list", "function", "function subgraph", "default", "training", "sparse"],
)
def test_external_data_is_found_wherever_it_hides(folder, proto):
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="not a path inside"):
        inspect(path)


def with_functions(**bodies):
    """A model that calls `f`; `bodies` are the functions with what each of them calls."""
    node = helper.make_node
    kind = TensorProto.FLOAT
    proto = models.model(
        [node("f", ["x"], ["y"], domain="d")],
        [models.value("x", kind, ["N"])],
        [models.value("y", kind, ["N"])],
    )
    proto.opset_import.append(helper.make_opsetid("d", 1))
    opsets = [helper.make_opsetid("", models.OPSET), helper.make_opsetid("d", 1)]
    for name, calls in bodies.items():
        path = ["x", *(f"t{i}" for i in range(len(calls) - 1)), "y"]
        nodes = [
            node(call, [path[i]], [path[i + 1]], domain="d" if call in bodies else "")
            for i, call in enumerate(calls)
        ]
        proto.functions.append(helper.make_function("d", name, ["x"], ["y"], nodes, opsets))
    return proto


def chain(count, each):
    """Functions that call the next one `each` times."""
    names = ["f", *(f"f{i}" for i in range(1, count))]
    bodies = {name: [after] * each for name, after in itertools.pairwise(names)}
    return bodies | {names[-1]: ["Neg"]}


def calls_itself_in_a_branch():
    proto = with_functions(f=["Neg"])
    inner = helper.make_node("f", ["x"], ["z"], domain="d")
    branch = helper.make_graph([inner], "b", [], [models.value("z", TensorProto.FLOAT, ["N"])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    proto.functions[0].node.append(node)
    return proto


def test_functions_are_served(tmp_path):
    path = models.save(with_functions(f=["g", "g", "Neg"], g=["Neg"]), tmp_path / "m.onnx")
    engine = Engine([ModelSource.of(path)], threads=1)
    engine.load()
    feeds = {"x": np.ones(2, np.float32)}
    (y,) = asyncio.run(engine.infer(engine.model("m"), feeds, ["y"]))
    assert y.tolist() == [-1, -1]
    engine.close()


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (with_functions(f=["f"]), "'f' calls itself"),
        (with_functions(f=["g"], g=["Neg", "h"], h=["g"]), "calls itself"),
        (with_functions(f=["Neg"], g=["g"]), "'g' calls itself"),  # nobody calls it
        (calls_itself_in_a_branch(), "'f' calls itself"),
        (with_functions(**chain(100, 1)), "calls itself|100 deep"),
        (with_functions(**dict(reversed(chain(100, 1).items()))), "100 deep"),
        (with_functions(**chain(30, 2)), "make [0-9]+ nodes"),
    ],
    ids=["itself", "circle", "uncalled", "branch", "deep", "deep backwards", "doubling"],
)
def test_functions_without_an_end(tmp_path, proto, reason):
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=reason):
        inspect(path)


def test_names_that_are_no_text(folder):
    proto = external_tensor()
    proto.name = "NAME"
    path = folder / "model.onnx"
    content = helper.make_model(helper.make_graph([], "g", [], [], [proto])).SerializeToString()
    path.write_bytes(content.replace(b"NAME", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(ModelError, match="a name that is not UTF-8"):
        inspect(path)


def test_location_without_the_external_flag_is_checked_too(folder):
    tensor = external_tensor()
    tensor.data_location = TensorProto.DEFAULT
    path = folder / "model.onnx"
    proto = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="not a path inside"):
        inspect(path)


def test_graph_nested_beyond_reason(folder):
    graph = helper.make_graph([], "g", [], [])
    for _ in range(30):
        branch = helper.make_node("If", ["c"], ["y"], then_branch=graph)
        graph = helper.make_graph([branch], "g", [], [])
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelError, match="nested too deeply"):
        inspect(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello world", "is not an ONNX model"),
        (b"\x00" * 100, "is not an ONNX model"),
        (b"PK\x03\x04" + b"\x00" * 100, "is not an ONNX model"),
        (b"\xff" * 100, "is not an ONNX model"),
        (b"\x08\x00\x00\x00ORTM" + b"\x00" * 100, "ORT format"),
        (b'<!DOCTYPE html><html lang="en">', "is not an ONNX model|graph|Protobuf"),
        (b"\x08\x09", "graph"),
    ],
)
def test_foreign_files(tmp_path, content, reason):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        Model("model", path, SessionSettings(threads=1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [1, 10, 50, 0.5, 0.9, -1])
def test_truncated_model(tmp_path, model_folder, length):
    content = (model_folder / "slow.onnx").read_bytes()
    size = int(length * len(content)) if isinstance(length, float) else length
    path = tmp_path / "model.onnx"
    path.write_bytes(content[:size])
    with pytest.raises(ModelError):
        Model("model", path, SessionSettings(threads=1))


def test_every_prefix_is_read_or_refused(tmp_path, model_folder):
    content = (model_folder / "slow.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    refused = 0
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        try:
            inspect(path)
        except ModelError:
            refused += 1
    assert refused > len(content) // 2


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        inspect(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        inspect(tmp_path)


def test_model_with_unknown_operator(tmp_path):
    proto = models.model(
        [helper.make_node("NoSuchOperator", ["x"], ["y"])],
        [models.value("x", TensorProto.FLOAT, ["N"])],
        [models.value("y", TensorProto.FLOAT, ["N"])],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="NoSuchOperator"):
        Model("model", path, SessionSettings(threads=1))


def test_model_that_the_protocol_cannot_carry(tmp_path):
    path = models.save(models.sequence_output(), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="output 'y' is seq"):
        Model("model", path, SessionSettings(threads=1))


def test_bfloat16_with_strings(tmp_path):
    proto = models.model(
        [models.node("Identity", [f"x{i}"], [f"y{i}"]) for i in range(2)],
        [
            models.value(f"x{i}", models.ONNX_TYPES[t], ["N"])
            for i, t in enumerate(("BF16", "BYTES"))
        ],
        [
            models.value(f"y{i}", models.ONNX_TYPES[t], ["N"])
            for i, t in enumerate(("BF16", "BYTES"))
        ],
    )
    path = models.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="bfloat16 and string"):
        Model("model", path, SessionSettings(threads=1))


def test_large_initializers_are_not_read(tmp_path):
    """The walk over a model with weights inside looks at its structure only."""
    weights = helper.make_tensor(
        "w", TensorProto.FLOAT, [1 << 20], np.zeros(1 << 20, np.float32).tobytes(), raw=True
    )
    proto = models.model(
        [models.node("Add", ["x", "w"], ["y"])],
        [models.value("x", TensorProto.FLOAT, ["N"])],
        [models.value("y", TensorProto.FLOAT, None)],
        [weights],
    )
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    assert inspect(path).external == frozenset()
    assert inspect(path).unranked == {"y"}


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "0", "a" * 128])
def test_good_names(tmp_path, name):
    assert ModelSource.of(tmp_path / "x.onnx", name).name == name
    assert ModelSource.of(tmp_path / f"{name}.onnx").name == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a b", "ä", "a" * 129, "a\n", "a\0"])
def test_bad_names(tmp_path, name):
    with pytest.raises(ModelError, match="must match"):
        ModelSource.of(tmp_path / "x.onnx", name)
