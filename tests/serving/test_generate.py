"""Text in, text out over HTTP: the generate extension, and OpenAI's completions."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import time

import pytest
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.model_settings import ModelSettings

pytest.importorskip("tokenizers")

from . import models, text_models
from .asgi_client import Client, Exchange
from .process import PATIENCE, ServerProcess

PROMPT = "Attention is"
STREAM = "/v2/models/gpt2/generate_stream"
LONG = 4000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    models.save(models.add(), folder / "add.onnx")
    text_models.named(
        models.save(models.fixed(), folder / "fixed.onnx"), text_models.byte_tokenizer()
    )
    return folder


@pytest.fixture(scope="module")
def decoder(folder):
    decoder, _ = text_models.gpt2(folder / "gpt2.onnx", positions=LONG)
    return decoder


def make_engine(folder, **settings):
    sources = [ModelSource.of(path) for path in sorted(folder.glob("*.onnx"))]
    # No token ends a text, so that those that shall be long are.
    chosen = ModelSettings(capacity=LONG, end_tokens=(), **settings)
    engine = Engine(sources, threads=1, settings=chosen)
    engine.load()
    return engine


@pytest.fixture(scope="module")
def engine(folder, decoder):
    engine = make_engine(folder, slots=2)
    yield engine
    engine.close()


@pytest.fixture
def client(engine):
    return Client(Application(engine, Limits(1 << 20, 30.0)))


def exchange(path, request):
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return Exchange("POST", path, body, [("Content-Type", "application/json")])


def post(client, path, request):
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return client.request("POST", path, body, [("Content-Type", "application/json")])


def events(sent):
    """The data of the events of an answer, and its headers."""
    start, *rest = sent
    assert start["status"] == 200
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert b"content-length" not in headers
    assert [message["more_body"] for message in rest] == [True] * (len(rest) - 1) + [False]
    return parsed(b"".join(message["body"] for message in rest))


def parsed(body):
    lines = body.decode().split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    found = [line.removeprefix("data: ") for line in lines]
    return [line if line == "[DONE]" else json.loads(line) for line in found]


def stream(client, path, request):
    async def run():
        asked = exchange(path, request)
        await client.app(asked.scope, asked.receive, asked.send)
        return events(asked.sent)

    return asyncio.run(run())


def expected(engine, decoder, prompt, most):
    tokenizer = engine.model("gpt2").tokenizer
    (tokens,) = tokenizer.encode([prompt])
    written = text_models.alone(decoder, tokens, most, tokenizer.ends)
    return tokenizer.decode([*tokens, *written]).removeprefix(prompt)


@pytest.mark.parametrize("priority", [-1, 1.5, "high", True])
def test_a_wrong_priority(client, priority):
    parameters = {"priority": priority}
    answer = post(client, "/v2/models/gpt2/generate", {"text_input": "a", "parameters": parameters})
    assert answer.status == 400
    assert "'priority' must be a whole number of 0 or more" in answer.error


def test_generate(client, engine, decoder):
    request = {"text_input": PROMPT, "id": "7", "parameters": {"max_tokens": 30}}
    text = expected(engine, decoder, PROMPT, 30)
    for path in ("/v2/models/gpt2/generate", "/v2/models/gpt2/versions/1/generate"):
        answer = post(client, path, request)
        assert answer.status == 200
        assert answer.json == {
            "model_name": "gpt2",
            "model_version": "1",
            "id": "7",
            "text_output": text,
        }
    assert post(client, path, {"text_input": PROMPT}).json["text_output"] == expected(
        engine, decoder, PROMPT, 16
    )


def test_generate_stream(client, engine, decoder):
    found = stream(client, STREAM, {"text_input": PROMPT, "parameters": {"max_tokens": 30}})
    assert len(found) > 10
    assert {(e["model_name"], e["model_version"]) for e in found} == {("gpt2", "1")}
    assert "".join(e["text_output"] for e in found) == expected(engine, decoder, PROMPT, 30)


def test_completions(client, engine, decoder):
    prompts = [PROMPT, "the", "日本"]
    request = {"model": "gpt2", "prompt": prompts, "max_tokens": 20, "temperature": 0}
    answer = post(client, "/v1/completions", request).json
    texts = [expected(engine, decoder, prompt, 20) for prompt in prompts]
    assert answer["choices"] == [
        {"index": i, "text": text, "logprobs": None, "finish_reason": "length"}
        for i, text in enumerate(texts)
    ]
    tokens = engine.model("gpt2").tokenizer.encode(prompts)
    read = sum(map(len, tokens))
    assert answer["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": 60,
        "total_tokens": read + 60,
    }
    assert (answer["object"], answer["model"]) == ("text_completion", "gpt2")
    as_tokens = post(client, "/v1/completions", {**request, "prompt": tokens}).json
    assert as_tokens["choices"] == answer["choices"]
    request |= {"stream": True, "stream_options": {"include_usage": True}}
    *found, usage, done = stream(client, "/v1/completions", request)
    assert done == "[DONE]"
    assert (usage["choices"], usage["usage"]) == ([], answer["usage"])
    joined, ends = [""] * 3, {}
    for event in found:
        (choice,) = event["choices"]
        joined[choice["index"]] += choice["text"]
        ends[choice["index"]] = choice["finish_reason"]
        assert event["usage"] is None
    assert (joined, ends) == (texts, dict.fromkeys(range(3), "length"))


def test_answers_are_as_the_document_says(client):
    jsonschema = pytest.importorskip("jsonschema_rs")
    components = json.loads(client.get("/v2/openapi.json").body)["components"]

    def check(name, content):
        schema = {"$ref": f"#/components/schemas/{name}", "components": components}
        jsonschema.validate(schema, content)

    completion = {"model": "gpt2", "prompt": ["a", "b"], "max_tokens": 3}
    generation = {"text_input": "a", "parameters": {"seed": 5}, "id": "x"}
    check("CompletionsRequest", completion)
    check("Completions", post(client, "/v1/completions", completion).json)
    check("GenerateRequest", generation)
    check("Generated", post(client, "/v2/models/gpt2/generate", generation).json)
    for event in stream(client, STREAM, generation):
        check("Generated", event)
    check("OpenaiError", post(client, "/v1/completions", {}).json)
    with pytest.raises(jsonschema.ValidationError):
        check("CompletionsRequest", {**completion, "max_tokens": 0})


def test_a_seed_gives_the_same_text_and_none_another(client):
    def text(**options):
        request = {"model": "gpt2", "prompt": PROMPT, "max_tokens": 40, **options}
        return post(client, "/v1/completions", request).json["choices"][0]["text"]

    assert text(seed=3) == text(seed=3)
    assert text(seed=3) != text(seed=4)
    assert text() != text()
    assert text(seed=3, top_k=1) == text(temperature=0) == text(seed=4, top_p=0)


def test_the_text_ends_at_a_stop_string_and_where_the_room_does(client, engine, decoder):
    whole = expected(engine, decoder, PROMPT, 40)
    stop = whole[20:22]
    request = {"model": "gpt2", "prompt": PROMPT, "max_tokens": 40, "temperature": 0, "stop": stop}
    (choice,) = post(client, "/v1/completions", request).json["choices"]
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    full = [5] * (LONG - 2)
    request = {"model": "gpt2", "prompt": full, "max_tokens": 40, "temperature": 0}
    answer = post(client, "/v1/completions", request).json
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [1] * (LONG + 1)}, "prompt"),
        ({"model": "add"}, None),
        ({"model": "fixed"}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"n": 2}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"stream": True, "stream_options": 5}, None),
        ({"stream": True, "prompt": ""}, "prompt"),
    ],
)
def test_wrong_completions(client, fields, param):
    answer = post(client, "/v1/completions", {"model": "gpt2", "prompt": "a", **fields})
    assert answer.status == 400
    error = answer.json["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    ("model", "request_", "status", "message"),
    [
        ("none", {"text_input": "a"}, 404, "no model 'none'"),
        ("add", {"text_input": "a"}, 400, "takes no text"),
        ("fixed", {"text_input": "a"}, 400, "writes no text"),
        ("gpt2", {}, 400, "'text_input' must be a string; it is missing"),
        ("gpt2", {"text_input": "a", "parameters": []}, 400, "parameters must be a JSON object"),
        ("gpt2", {"text_input": "a", "parameters": {"top_k": -1}}, 400, "'top_k' must be"),
        ("gpt2", {"text_input": "a", "id": 5}, 400, "'id' must be a string"),
    ],
)
@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
def test_wrong_generation(client, kind, model, request_, status, message):
    answer = post(client, f"/v2/models/{model}/{kind}", request_)
    assert answer.status == status
    assert message in answer.error


def until(condition):
    async def wait():
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.001)

    return wait()


def writer_of(app):
    (route,) = [r for r in app._router.routes if r.path == "/v1/completions"]
    writers = route.endpoints["POST"].__self__._writers._writers
    return writers[app.engine.model("gpt2")]


ENDLESS = {"text_input": PROMPT, "parameters": {"max_tokens": 3000, "timeout": 60_000_000}}


@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
def test_a_client_that_goes_frees_its_slot(client, engine, kind):
    path = f"/v2/models/gpt2/{kind}"
    post(client, "/v2/models/gpt2/generate", {"text_input": "a"})
    writer, statistics = writer_of(client.app), engine.model("gpt2").statistics

    async def run():
        before = statistics.cancelled
        asked = [exchange(path, ENDLESS) for _ in range(3)]
        tasks = [asyncio.create_task(client.app(e.scope, e.receive, e.send)) for e in asked]
        await until(lambda: writer.busy == 2 and writer.waiting == 1)
        for each in asked:
            each.gone.set()
        await asyncio.gather(*tasks)
        await until(lambda: writer.busy == 0 and writer.waiting == 0)
        assert statistics.cancelled == before + 3

    asyncio.run(run())
    assert client.app.lifecycle.in_flight == 0


def test_time_that_is_over(client):
    request = {"text_input": PROMPT, "parameters": {"max_tokens": 3000, "timeout": 50_000}}
    post(client, "/v2/models/gpt2/generate", {"text_input": "a"})
    answer = post(client, "/v2/models/gpt2/generate", request)
    assert (answer.status, answer.error) == (504, "the timeout of 0.05 seconds is over")
    *_, last = stream(client, STREAM, request)
    assert last == {"error": "the timeout of 0.05 seconds is over"}
    completion = {"model": "gpt2", "prompt": "a", "stream": True, **request["parameters"]}
    *_, last, done = stream(client, "/v1/completions", completion)
    assert (last["error"]["type"], done) == ("server_error", "[DONE]")


def test_a_full_queue_and_the_end_of_the_server(folder, decoder):
    engine = make_engine(folder, slots=1, max_queue=1)
    client = Client(Application(engine, Limits(1 << 20, 30.0)))
    post(client, "/v2/models/gpt2/generate", {"text_input": "a"})
    writer = writer_of(client.app)

    async def run():
        asked = [exchange(f"/v2/models/gpt2/{k}", ENDLESS) for k in ("generate", "generate_stream")]
        tasks = []
        await until(lambda: not writer.busy)
        for i, each in enumerate(asked):
            tasks.append(asyncio.create_task(client.app(each.scope, each.receive, each.send)))
            await until(lambda i=i: (writer.busy, writer.waiting) == (1, i))
        third = exchange(STREAM, ENDLESS)
        await client.app(third.scope, third.receive, third.send)
        assert third.answer().status == 429
        assert third.answer().headers["retry-after"] == "1"
        engine.terminate()
        await asyncio.gather(*tasks)
        assert asked[0].answer().status == 503
        assert events(asked[1].sent) == [{"error": "the server is stopping"}]

    asyncio.run(run())
    assert post(client, "/v2/models/gpt2/generate", {"text_input": "a"}).status == 503
    engine.close()


@pytest.fixture(scope="module")
def server(folder, decoder):
    options = folder / "gpt2.serving.toml"
    options.write_text(f"capacity = {LONG}\nslots = 2\nend_tokens = []\n")
    with ServerProcess(folder / "gpt2.onnx", "--threads", "1") as server:
        yield server
        server.signal()
        assert server.wait()[0] == 0
    options.unlink()


def test_a_real_process_sends_each_piece_as_it_comes(server, engine, decoder):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    body = json.dumps({"text_input": PROMPT, "parameters": {"max_tokens": 400}})
    start = time.perf_counter()
    connection.request("POST", STREAM, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
    parts, times = [], []
    while part := response.read1(1 << 16):
        parts.append(part)
        times.append(time.perf_counter() - start)
    text = "".join(event["text_output"] for event in parsed(b"".join(parts)))
    assert text == expected(engine, decoder, PROMPT, 400)
    assert len(parts) > 10
    assert times[0] < times[-1] / 2
    connection.request("GET", "/v2/health/live")  # the connection is whole
    assert connection.getresponse().status == 200
    connection.close()


def test_a_real_connection_that_closes_ends_the_text(server):
    def cancelled():
        _, _, text = server.request("GET", "/metrics")
        (count,) = re.findall("^pyattn_requests_cancelled_total{.* (.*)$", text.decode(), re.M)
        return float(count)

    before = cancelled()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    body = json.dumps({"model": "gpt2", "prompt": "a", "max_tokens": 3900, "stream": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.read1(10)
    response.close()
    connection.close()
    end = time.monotonic() + PATIENCE
    while cancelled() == before:
        assert time.monotonic() < end
        time.sleep(0.01)
