"""The published description of the endpoints, against the endpoints."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
from pyattn_serving.asgi.endpoints import Endpoints
from pyattn_serving.asgi.openapi import FILE, document
from pyattn_serving.engine.datatypes import DATATYPES
from pyattn_serving.engine.engine import NAME_RULE

from .process import ServerProcess

DOCUMENT = json.loads(FILE.read_text())


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from references(each)


def test_no_route_is_missing_and_none_is_invented(client):
    routes = {
        (route.path, method.lower())
        for route in client.app._router.routes
        for method in route.endpoints
    }
    described = {(path, method) for path, item in DOCUMENT["paths"].items() for method in item}
    assert described == routes


def test_names_in_paths_are_described():
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            given = [r.rpartition("/")[2] for r in references(operation.get("parameters", []))]
            named = [DOCUMENT["components"]["parameters"][name] for name in given]
            inside = {each["name"] for each in named if each["in"] == "path"}
            assert inside == {p[1:-1] for p in path.split("/") if p.startswith("{")}


def test_references_lead_somewhere():
    for reference in references(DOCUMENT):
        node = DOCUMENT
        for key in reference.removeprefix("#/").split("/"):
            node = node[key]
        assert node


def test_operations_have_names_of_their_own():
    names = [op["operationId"] for item in DOCUMENT["paths"].values() for op in item.values()]
    assert len(set(names)) == len(names)


def test_names_and_datatypes_are_those_of_the_server():
    components = DOCUMENT["components"]
    assert set(components["schemas"]["Datatype"]["enum"]) == set(DATATYPES)
    assert components["parameters"]["Model"]["schema"]["pattern"] == f"^{NAME_RULE}$"


def test_the_server_publishes_it(client):
    assert client.get("/v2/openapi.json").json == DOCUMENT
    assert document() is document()
    assert Endpoints.openapi.__doc__


@pytest.fixture(scope="module")
def server(model_folder):
    with ServerProcess(model_folder / "add.onnx", "--log-format", "json") as server:
        yield server
        server.signal()
        code, errors = server.wait()
        assert code == 0
        assert "exception" not in errors


def test_what_may_be_made_of_it_is_answered_as_it_says(server):
    """Requests that the document allows, and such that it forbids: the answers are described."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi import checks

    wanted = [
        schemathesis.checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.response_headers_conformance,
    ]
    known = copy.deepcopy(DOCUMENT)
    known["components"]["parameters"]["Model"]["schema"] = {"enum": ["add", "none"]}
    known["components"]["parameters"]["Version"]["schema"] = {"enum": ["1", "2"]}
    for description in (DOCUMENT, known):
        schema = schemathesis.openapi.from_dict(description)
        schema.config.update(base_url=f"http://127.0.0.1:{server.port}")
        asked = {}
        for result in schema.get_all_operations():
            for mode in schemathesis.GenerationMode:
                operation = result.ok()
                asked[operation.label, mode.value] = ask(operation, mode, wanted)
        for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
            for mode in ("positive", "negative"):
                assert asked[f"POST {path}", mode] >= 20, asked
        assert all(asked[label, "positive"] for label, _ in asked), asked


def ask(operation, mode, checks):
    """Send requests of one kind to an operation; return how many."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable

    asked = 0

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case):
        nonlocal asked
        asked += 1
        case.call_and_validate(checks=checks)

    with contextlib.suppress(Unsatisfiable):  # nothing that could be wrong
        check()
    return asked
