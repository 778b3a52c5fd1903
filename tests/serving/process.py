"""A server in a process of its own, and plain sockets to talk to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PATIENCE = 60  # seconds after which a test hangs rather than waits
COMMAND = [sys.executable, "-m", "pyattn_serving"]
GET = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"


class ServerProcess:
    """``pyattn-serve`` on a free port of the loopback interface."""

    def __init__(self, model: Path, *options: str, command=COMMAND, cwd=None, env=None):
        # A file, because a pipe that nobody reads would stop the server when it is full.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, str(model), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
        )
        self.ready_line = self.process.stdout.readline()
        found = re.search(r"https?://127\.0\.0\.1:(\d+)", self.ready_line)
        if found is None:
            raise AssertionError(self.wait())
        self.port = int(found.group(1))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self.process.stdout.close()
        self.errors.close()

    def request(self, method, path, body=None, headers=None):
        """Send one request on a connection of its own; return status, headers and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.getheader("content-type") == "application/json" and content:
            content = json.loads(content)
        return response.status, dict(response.getheaders()), content

    def infer(self, model, request):
        body = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        return self.request("POST", f"/v2/models/{model}/infer", body, headers)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def accepted_request(self, path, size):
        """Open a request and return its connection once the server waits for the body.

        The server asks for the body (100 Continue) from inside its handling of the request, so
        from here on the request is in flight.
        """
        connection = self.connect()
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {size}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")
        return connection

    def resident_memory(self, field="VmRSS"):
        """Bytes of the process that are in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) << 10

    def peak_memory(self):
        """The most bytes of the process that were in memory."""
        return self.resident_memory("VmHWM")

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait_until_draining(self):
        """Wait until the server says that it is not ready; each connection is a new one."""
        while self.request("GET", "/v2/health/ready")[0] != 503:
            pass

    def wait(self):
        """Wait for the end; return the exit code and what was written to standard error."""
        code = self.process.wait(PATIENCE)
        self.errors.seek(0)
        return code, self.errors.read()


def read_response(connection):
    """Read one response from a socket; return its status and content."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def is_closed(connection):
    """Whether the other side has closed the connection, with or without a reset."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def refusal(connection):
    """The answer on a connection that the server closes after it."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    assert response.getheader("content-type") == "application/json"
    content = json.loads(response.read())
    assert set(content) == {"error"}
    assert response.getheader("connection") == "close"
    assert is_closed(connection)
    return response.status, content["error"]
