"""The files in deploy/: valid, of one piece, and the options in them are ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pyattn_serving.cli import _options

from .process import ServerProcess
from .test_store import put

FOLDER = Path(__file__).resolve().parents[2] / "deploy"
CONTAINERFILE = (FOLDER / "Containerfile").read_text(encoding="utf-8")
IMAGE_VERSION = re.compile(r"registry\.example\.com/pyattn-serve:\d+\.\d+\.\d+")


def documents(name):
    yaml = pytest.importorskip("yaml")
    return {entry["kind"]: entry for entry in yaml.safe_load_all((FOLDER / name).read_text())}


def containers():
    for name, kind in (("kubernetes.yaml", "Deployment"), ("kserve.yaml", "ServingRuntime")):
        spec = documents(name)[kind]["spec"]
        yield from spec.get("template", {}).get("spec", spec)["containers"]


def test_kubernetes_schemas():
    validate = pytest.importorskip("kubernetes_validate").validate
    entries = documents("kubernetes.yaml")
    assert set(entries) == {"Deployment", "Service", "PodDisruptionBudget"}
    for entry in entries.values():
        for version in ("1.30", "1.33"):
            validate(entry, version, strict=True)
    # KServe's containers are those of Kubernetes.
    runtime = documents("kserve.yaml")["ServingRuntime"]["spec"]
    pod = {"containers": runtime["containers"]}
    entry = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
    validate(entry, "1.30", strict=True)


def test_kserve():
    """The fields of serving.kserve.io, which no package has the schemas of."""
    runtime, service = documents("kserve.yaml").values()
    assert runtime["apiVersion"] == "serving.kserve.io/v1alpha1"
    assert set(runtime["spec"]) == {
        *("annotations", "supportedModelFormats", "protocolVersions", "multiModel", "containers")
    }
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"  # KServe looks for this one
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    (predictor,) = service["spec"].values()
    assert set(predictor) == {"minReplicas", "model"}
    model = predictor["model"]
    assert set(model) == {"modelFormat", "runtime", "protocolVersion", "storageUri"}
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (form,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"]["name"] == form["name"]


def test_containers_run_our_command_without_rights():
    for container in containers():
        options = _options([word.replace("{{.Name}}", "minilm") for word in container["args"]])
        assert options.host == "0.0.0.0"  # noqa: S104 - within its own network
        assert {port["containerPort"] for port in container["ports"]} == {options.port}
        assert IMAGE_VERSION.fullmatch(container["image"])
        assert container["resources"]["limits"] == container["resources"]["requests"]
        rights = container["securityContext"]
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert rights["readOnlyRootFilesystem"]
        assert not rights["allowPrivilegeEscalation"]


def test_probes_are_answered(tmp_path):
    paths = {
        probe["httpGet"]["path"]
        for container in containers()
        for name, probe in container.items()
        if name.endswith("Probe")
    }
    assert paths == {"/v2/health/live", "/v2/health/ready"}
    put(tmp_path / "models" / "1")
    with ServerProcess(tmp_path / "models", "--name", "minilm") as server:
        for path in paths:
            assert server.request("GET", path)[0] == 200
        assert server.request("GET", "/v2/models/minilm")[0] == 200


def test_the_drain_has_time():
    spec = documents("kubernetes.yaml")["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = _options(container["args"]).drain_timeout
    assert spec["terminationGracePeriodSeconds"] > sleep + drain
    assert spec["securityContext"]["runAsNonRoot"]


def test_service_finds_the_pods():
    entries = documents("kubernetes.yaml")
    template = entries["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert entries["Service"]["spec"]["selector"] == labels
    assert entries["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert entries["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    names = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in entries["Service"]["spec"]["ports"]} <= names


def test_containerfile():
    """Two stages, no root, a command that parses, and no model inside."""
    lines = [line for line in CONTAINERFILE.splitlines() if line and not line.startswith("#")]
    words = [line.split(maxsplit=1) for line in lines]
    assert [word for word, _ in words].count("FROM") == 2
    rest = dict(words)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", rest["USER"])
    arguments = re.findall(r'"([^"]*)"', rest["CMD"])
    assert re.findall(r'"([^"]*)"', rest["ENTRYPOINT"]) == ["pyattn-serve"]
    assert str(_options(arguments).port) == rest["EXPOSE"]
    for word, line in words:
        assert not re.search(r"curl|wget|\bADD\b|https?://|huggingface", f"{word} {line}")
