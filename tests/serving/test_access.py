"""Tokens, TLS and the files they come from."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from pyattn_serving.asgi.access import Access, Tokens
from pyattn_serving.asgi.errors import HttpError
from pyattn_serving.asgi.request import Request
from pyattn_serving.asgi.responses import json_response
from pyattn_serving.asgi.routing import Route, Router
from pyattn_serving.network import (
    TOKEN_VARIABLE,
    NetworkError,
    _raise_file_limit,
    read_token,
)

from .asgi_client import Client, Exchange
from .process import COMMAND, PATIENCE, ServerProcess
from .test_bench import SHORT, bench

TOKEN, ADMIN = "user-token-1", "admin-token-1"


def status(tokens, access, *headers):
    """The status that a request with these headers gets from an endpoint."""

    async def endpoint(_request, _path):
        return json_response({})

    exchange = Exchange("GET", "/x", headers=headers)
    router = Router([Route("/x", {"GET": endpoint}, access)], tokens)
    try:
        return asyncio.run(router(Request(exchange.scope, exchange.receive))).status
    except HttpError as error:
        refusal = error
    assert TOKEN not in str(refusal)
    assert (refusal.headers.get("www-authenticate") == "Bearer") == (refusal.status == 401)
    return refusal.status


def bearer(token):
    return ("Authorization", f"Bearer {token}")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # expected: for each level, without a token, with the token, with the admin token
        ((None, None), [(200, 200, 200)] * 3),
        ((TOKEN, None), [(200, 200, 200), (401, 200, 401), (401, 200, 401)]),
        ((TOKEN, ADMIN), [(200, 200, 200), (401, 200, 200), (401, 403, 200)]),
        ((None, ADMIN), [(200, 200, 200), (200, 200, 200), (401, 401, 200)]),
    ],
)
def test_who_may_call_what(tokens, expected):
    known = Tokens(*tokens)
    for access, statuses in zip((Access.OPEN, Access.USER, Access.ADMIN), expected, strict=True):
        found = tuple(status(known, access, *h) for h in ([], [bearer(TOKEN)], [bearer(ADMIN)]))
        assert found == statuses, access


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer tökén",
        "Bearer \x00",
    ],
)
def test_wrong_tokens(header):
    assert status(Tokens(TOKEN), Access.USER, ("Authorization", header)) == 401


@pytest.mark.parametrize("header", [f"bearer {TOKEN}", f"BEARER  {TOKEN} "])
def test_spelling_of_the_scheme(header):
    assert status(Tokens(TOKEN), Access.USER, ("Authorization", header)) == 200


def test_two_tokens_at_once_are_refused():
    assert status(Tokens(TOKEN), Access.USER, bearer(TOKEN), bearer(TOKEN)) == 400


def test_only_the_health_of_a_server_is_open(make_app):
    app = make_app("vector", token=TOKEN)
    app.engine.load()
    client = Client(app)
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status == 200
    for path in ("/v2", "/v2/models/vector", "/v2/models/vector/ready", "/v2/logging"):
        assert client.get(path).status == 401
        assert client.request("GET", path, headers=[bearer(TOKEN)]).status == 200
    answer = client.request("POST", "/v2/models/vector/infer", b"{}")
    assert (answer.status, answer.headers["connection"]) == (401, "close")


def test_tokens_are_not_shown(make_app):
    from pyattn_serving import Settings

    assert TOKEN not in repr(Settings(model=None, token=TOKEN, admin_token=TOKEN))


def test_token_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert read_token(None, TOKEN_VARIABLE) is None
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(None, TOKEN_VARIABLE) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{ADMIN}\n")
    assert read_token(file, TOKEN_VARIABLE) == ADMIN


@pytest.mark.parametrize(
    "content", [b"", b"short", b"two words here", b"\xff" * 9, b"t\xc3\xb6" * 9]
)
def test_token_that_is_none(tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(NetworkError, match="token"):
        read_token(file, TOKEN_VARIABLE)
    with pytest.raises(NetworkError, match="No such file"):
        read_token(tmp_path / "none", TOKEN_VARIABLE)


def test_server_with_tokens(model_folder, tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    model = model_folder / "vector.onnx"
    with ServerProcess(model, "--token-file", str(file)) as server:
        assert server.request("GET", "/v2")[0] == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert server.request("GET", "/v2", headers=headers)[0] == 200
        server.signal()
        assert TOKEN not in server.wait()[1]
    with ServerProcess(model, env={TOKEN_VARIABLE: TOKEN}) as server:
        assert server.request("GET", "/v2")[0] == 401


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the command openssl to make a certificate")
    return files


def fetch(server, context):
    url = f"https://127.0.0.1:{server.port}/v2"
    with urllib.request.urlopen(url, context=context, timeout=PATIENCE) as response:
        return response.status


def test_tls(model_folder, certificate):
    file, key = certificate
    options = ["--tls-certificate", str(file), "--tls-key", str(key)]
    context = ssl.create_default_context(cafile=file)
    with ServerProcess(model_folder / "vector.onnx", *options) as server:
        assert "https://" in server.ready_line
        assert fetch(server, context) == 200
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(server, ssl.create_default_context())
        url = f"https://127.0.0.1:{server.port}"
        load = ["vector", "--url", url, "--tls-ca", file, "--requests", 2, *SHORT]
        assert bench(server, *load)[0] == 0
        server.signal()
        code, errors = server.wait()
        assert code == 0
        assert "Traceback" not in errors


def test_tls_with_certificates_of_clients(model_folder, certificate):
    file, key = certificate
    options = ["--tls-certificate", str(file), "--tls-key", str(key), "--tls-client-ca", str(file)]
    context = ssl.create_default_context(cafile=file)
    with ServerProcess(model_folder / "vector.onnx", *options) as server:
        with pytest.raises(OSError, match=r"(?i)certificate|reset|eof|closed"):
            fetch(server, context)
        context.load_cert_chain(file, key)
        assert fetch(server, context) == 200


def test_tls_files_that_cannot_be_used(model_folder, certificate, tmp_path):
    file, key = map(str, certificate)
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    for options in (
        ["--tls-certificate", "/none.pem", "--tls-key", key],
        ["--tls-certificate", file, "--tls-key", "/none.pem"],
        ["--tls-certificate", file],
        ["--tls-certificate", key, "--tls-key", key],
        ["--tls-certificate", file, "--tls-key", str(locked)],
        ["--tls-certificate", file, "--tls-key", key, "--tls-client-ca", key],
        ["--tls-key", key],
        ["--token-file", "/none"],
    ):
        done = subprocess.run(
            [*COMMAND, str(model_folder / "vector.onnx"), "--port", "0", *options],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("pyattn-serve: error: "), done.stderr
        assert done.stderr.count("\n") == 1


def test_files_for_connections():
    code = (
        "import resource; from pyattn_serving.network import _raise_file_limit as f\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1000))\n"
        "print(f(500), resource.getrlimit(resource.RLIMIT_NOFILE)[0], f(5000), f(20))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["500", "564", "936", "20"]
    assert _raise_file_limit(1) == 1
