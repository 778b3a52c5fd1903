"""The page: its headers, and what a browser makes of it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from pyattn_serving.asgi.access import Tokens
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.asgi.page import FILES, FOLDER

from . import models
from .asgi_client import Client
from .browser import EXECUTABLE, Browser
from .process import ServerProcess
from .test_attention import HEADS, LAYERS, eager, encoder  # noqa: F401 -- a fixture

pa = pytest.importorskip("pyattn")

TOKEN = "token-of-the-test"  # noqa: S105
LINE = "the cat sat on the mat ."
HOSTILE = "<img src=x onerror=alert(1)>"
needs_browser = pytest.mark.skipif(EXECUTABLE is None, reason="there is no chromium")


@pytest.mark.parametrize("path", FILES)
def test_files_and_their_headers(engine, path):
    client = Client(Application(engine, Limits(1 << 20, 30.0), Tokens(TOKEN)))
    answer = client.get(path)  # without a token
    assert answer.status == 200
    name, kind = FILES[path]
    assert answer.body == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert client.request("HEAD", path).status == 200
    assert client.request("POST", path, b"x").status == 405


@pytest.mark.parametrize("path", ["/index.html", "/page", "/../page.js", "/page/page.js", "//"])
def test_nothing_else_is_there(client, path):
    assert client.get(path).status == 404


def test_the_files_refer_to_nothing_outside_and_insert_no_markup():
    for name, _ in FILES.values():
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert re.findall(r"https?:|(?:src|href)=.//|@import|\burl\(", text) == []
        assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text) == []
        assert re.findall(r"(?<![\w-])(?:style|on[a-z]+)=\"|<style|javascript:", text) == []
    assert {path.name for path in FOLDER.iterdir()} == {name for name, _ in FILES.values()}


@pytest.fixture(scope="module")
def server(encoder, tmp_path_factory):  # noqa: F811 -- the fixture
    folder = tmp_path_factory.mktemp("page")
    for name in ("maps", "add"):
        (folder / name).mkdir()
    models.save(models.add(), folder / "add" / "model.onnx")
    path = folder / "maps" / "model.onnx"
    pa.export(encoder, encoder.example_inputs(), path, attention_outputs=True, verify=False)
    tokens = tmp_path_factory.mktemp("token") / "token"
    tokens.write_text(TOKEN)
    with ServerProcess(folder, "--token-file", str(tokens)) as server:
        yield server


@pytest.fixture
def browser(server):
    with Browser() as browser:
        browser.open(f"http://127.0.0.1:{server.port}/#maps")
        browser.wait("document.getElementById('status').textContent.includes('needs a token')")
        assert browser.run("document.activeElement.id") == "token"
        [problem] = browser.problems  # the browser's own word on a 401
        assert "401" in problem
        browser.problems.clear()
        browser.run(f"document.getElementById('token').value = '{TOKEN}'")
        browser.run("document.getElementById('access').requestSubmit()")
        browser.wait("!document.getElementById('model').hidden")
        yield browser
        assert browser.problems == []


def text_of(browser, name):
    return browser.run(f"document.getElementById('{name}').textContent")


def type_and_run(browser, first, second=""):
    for index, text in enumerate((first, second)):
        browser.run(f"document.getElementById('text-{index}').value = {json.dumps(text)}")
    browser.run("document.getElementById('text-form').requestSubmit()")
    browser.wait("document.getElementById('status').textContent.includes('tokens')")


def weight(browser):
    query, key, value = re.fullmatch(
        r"Query .+ \((\d+)\) → key .+ \((\d+)\): ([\d.]+)", text_of(browser, "readout")
    ).groups()
    return int(query), int(key), float(value)


@needs_browser
def test_the_map_is_the_attention_of_the_text(browser, encoder):  # noqa: F811
    assert browser.run("document.querySelectorAll('#models button').length") == 2
    type_and_run(browser, LINE)
    right = eager(encoder, *encoder.tokenize([LINE]).values())
    assert not browser.run("document.getElementById('attention').hidden")
    assert browser.run("document.querySelectorAll('#heads canvas').length") == LAYERS * HEADS
    tokens = "[...document.querySelectorAll('#tokens li')].map(e => e.textContent)"
    words = ["[CLS]", "the", "cat", "sat", "on", "the", "mat", ".", "[SEP]"]
    assert browser.run(tokens) == words
    for layer, head in ((0, 0), (1, 2)):
        button = f"document.querySelector('[aria-label=\"Layer {layer}, head {head}\"]')"
        browser.run(f"{button}.click()")
        assert browser.run(f"{button}.getAttribute('aria-checked')") == "true"
        query, key, value = weight(browser)
        assert abs(right[layer][0, head, query, key] - value) <= 1e-4
    # The darkest pixel of a head's thumbnail is its largest weight.
    pixels = browser.run(f"[...{button}.firstChild.getContext('2d').getImageData(0, 0, 9, 9).data]")
    luminance = np.array(pixels).reshape(9, 9, 4)[..., :3].sum(-1)
    assert luminance.min() == luminance.flat[right[1][0, 2].argmax()]
    values = text_of(browser, "outputs")
    expected = np.asarray(encoder(**encoder.tokenize([LINE]))["sentence_embedding"])[0]
    found = [float(x) for x in re.findall(r"-?\d+\.\d{4}", values)]
    np.testing.assert_allclose(found, expected[:8], atol=1e-4)


@needs_browser
def test_keys_and_pointer_move_over_the_map(browser):
    type_and_run(browser, LINE)
    browser.run("document.getElementById('map').focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp"):
        browser.press(key)
    assert weight(browser)[:2] == (1, 1)
    assert browser.run("document.querySelector('#tokens .query').textContent") == "the"
    browser.press("End")
    assert weight(browser)[:2] == (1, 8)
    browser.press("ArrowRight")
    assert weight(browser)[:2] == (1, 8)
    browser.run("document.getElementById('map').scrollIntoView()")
    right, bottom = browser.run(
        "(({right, bottom}) => [right, bottom])"
        "(document.getElementById('map').getBoundingClientRect())"
    )
    browser.move(right - 8, bottom - 8)
    assert weight(browser)[:2] == (8, 8)
    browser.run("document.querySelector('#heads [aria-checked=true]').focus()")
    for key in ("ArrowDown", "ArrowRight"):
        browser.press(key)
    assert browser.run("document.activeElement.getAttribute('aria-label')") == "Layer 1, head 1"
    assert browser.run("document.getElementById('layer').value") == "1"
    stops = browser.run("document.querySelectorAll('#heads [tabindex=\"0\"]').length")
    assert stops == 1


@needs_browser
def test_two_texts_are_compared(browser, encoder):  # noqa: F811
    type_and_run(browser, LINE, "on the mat .")
    a, b = (
        np.asarray(encoder(**encoder.tokenize([text]))["sentence_embedding"])[0]
        for text in (LINE, "on the mat .")
    )
    assert abs(float(text_of(browser, "similarity-value")) - float(a @ b)) < 2e-4
    browser.run(
        "document.getElementById('which').value = 1;"
        "document.getElementById('which').dispatchEvent(new Event('change'))"
    )
    assert browser.run("document.querySelectorAll('#tokens li').length") == 6


@needs_browser
def test_downloads(browser, encoder):  # noqa: F811
    type_and_run(browser, LINE)
    browser.run(
        "window.made = []; HTMLAnchorElement.prototype.click = function () {"
        " made.push(fetch_(this)); };"
        "const blobs = new Map(); const create = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { const url = create(blob); blobs.set(url, blob);"
        " return url; };"
        "window.fetch_ = async (link) => [link.download, await new Promise((done) => {"
        " const reader = new FileReader(); reader.onload = () => done(reader.result);"
        " reader.readAsDataURL(blobs.get(link.href)); })]"
    )
    for ending in ("json", "png"):
        browser.run(f"document.getElementById('{ending}').click()")
    browser.wait("made.length === 2")
    found = {
        name.rsplit(".", 1)[1]: base64.b64decode(data.partition(",")[2])
        for name, data in browser.run("Promise.all(made)")
    }
    assert found["png"].startswith(b"\x89PNG\r\n")
    content = json.loads(found["json"])
    assert content["text"] == LINE
    right = eager(encoder, *encoder.tokenize([LINE]).values())
    weights = np.array(content["layers"][1]["weights"]).reshape(content["layers"][1]["shape"])
    np.testing.assert_allclose(weights, right[1], atol=1e-4)


@needs_browser
def test_markup_is_text(browser):
    type_and_run(browser, HOSTILE, LINE)
    assert browser.run("document.querySelectorAll('img, main script').length") == 0
    assert HOSTILE[:20] in text_of(browser, "which")


@needs_browser
def test_of_long_texts_one_layer_comes_at_a_time(browser, encoder):  # noqa: F811
    line = "the cat sat on " * 100
    type_and_run(browser, line)
    assert browser.run("document.querySelectorAll('#tokens li').length") == 300
    assert browser.run("document.querySelectorAll('#heads canvas').length") == HEADS
    browser.run(
        "document.getElementById('layer').value = 1; document.getElementById('head').value = 2;"
        "document.getElementById('layer').dispatchEvent(new Event('change'))"
    )
    browser.wait("document.getElementById('map').ariaLabel.includes('layer 1, head 2')")
    browser.run("document.getElementById('map').focus()")
    for key in ("PageDown", "End", "ArrowUp"):
        browser.press(key)
    query, key, value = weight(browser)
    assert (query, key) == (298, 299)
    right = eager(encoder, *encoder.tokenize([line]).values())
    assert abs(right[1][0, 2, 298, 299] - value) <= 1e-4


@needs_browser
def test_keys_alone_reach_everything_in_order(browser):
    type_and_run(browser, LINE)
    browser.run("document.querySelector('.skip').focus()")
    reached = []
    while not reached or reached[-1] not in ("json", ""):
        browser.press("Tab")
        reached.append(
            browser.run(
                "document.activeElement.id || document.activeElement.getAttribute('role')"
                " || document.activeElement.textContent"
            )
        )
    wanted = ["token", "Use", "text-0", "text-1", "Run", "layer", "head", "radio", "map", "png"]
    places = [reached.index(name) for name in wanted]
    assert places == sorted(places), reached
    assert reached.count("radio") == 1


@needs_browser
def test_an_empty_text_is_a_text(browser):
    browser.run("document.getElementById('text-0').value = ''")
    browser.run("document.getElementById('text-form').requestSubmit()")
    browser.wait("document.getElementById('status').textContent.startsWith('2 tokens')")


@needs_browser
def test_a_model_of_tensors_has_a_form_and_a_curl_line(browser, server):
    browser.run("document.querySelector('#models button').click()")
    browser.wait("!document.getElementById('tensor-form').hidden")
    for index, (shape, data) in enumerate((("[2]", "[1, 2"), ("[1, 2]", "[10, 20]"))):
        browser.run(
            f"for (const [id, value] of [['shape', '{shape}'], ['data', '{data}']]) {{"
            f"const field = document.getElementById(`${{id}}-{index}`); field.value = value;"
            "field.dispatchEvent(new Event('input', {bubbles: true})) }"
        )
    assert text_of(browser, "curl") == "The data of a is not JSON."
    browser.run("document.getElementById('tensor-form').requestSubmit()")
    assert text_of(browser, "status") == "The data of a is not JSON."
    browser.run(
        "document.getElementById('shape-0').value = '[1, 2]';"
        "document.getElementById('data-0').value = '[1, 2]';"
        "document.getElementById('data-0').dispatchEvent(new Event('input', {bubbles: true}))"
    )
    line = text_of(browser, "curl")
    assert line.startswith(f"curl http://127.0.0.1:{server.port}/v2/models/add/versions/1/infer ")
    body = re.search(r"-d '(.*)'$", line)[1]
    assert TOKEN not in line
    status, _, content = server.request(
        "POST",
        "/v2/models/add/infer",
        body.encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"},
    )
    assert (status, content["outputs"][0]["data"]) == (200, [11.0, 22.0])
    browser.run("document.getElementById('tensor-form').requestSubmit()")
    browser.wait("!document.getElementById('result').hidden")
    assert "11, 22" in text_of(browser, "outputs")
    assert browser.run("document.getElementById('attention').hidden")


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_narrow_screens_do_not_scroll_sideways(server, dark):
    with Browser(380, 700, dark) as browser:
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.run(f"document.getElementById('token').value = '{TOKEN}'")
        browser.run("document.getElementById('access').requestSubmit()")
        browser.wait("document.querySelectorAll('#models button').length === 2")
        browser.run("document.querySelectorAll('#models button')[1].click()")
        browser.wait("!document.getElementById('text-form').hidden")
        type_and_run(browser, LINE)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", ground))) < 100 if dark else ground.endswith("255)")
        assert browser.picture().startswith(b"\x89PNG")


def test_the_page_is_shown_in_the_documents():
    root = Path(__file__).resolve().parents[2]
    picture = root / "docs" / "attention.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 200 << 10
