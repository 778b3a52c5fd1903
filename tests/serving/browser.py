"""Chromium without a window, driven by its DevTools protocol over a websocket."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import time

import pytest

PATIENCE = 60
EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def _start(stack):
    """Start a browser that ends with `stack`, and return its address."""
    profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    process = subprocess.Popen(
        [
            EXECUTABLE,
            *options,
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def end():
        process.kill()
        process.wait(PATIENCE)
        process.stderr.close()

    stack.callback(end)
    found = (re.search(r"ws://\S+", line) for line in process.stderr)
    return next(filter(None, found))[0]


class Browser:
    """One page of a browser of its own; keeps what the console and the network had to say."""

    def __init__(self, width=1280, height=900, dark=False):
        connect = pytest.importorskip("websockets.sync.client").connect
        self.problems = []
        self._numbers = itertools.count(1)
        self._session = None
        with contextlib.ExitStack() as stack:
            self._socket = stack.enter_context(connect(_start(stack), max_size=None))
            target = self("Target.createTarget", url="about:blank")["targetId"]
            attached = self("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self(f"{domain}.enable")
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self("Emulation.setEmulatedMedia", features=[scheme])
            self.resize(width, height)
            self._stack = stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def __call__(self, method, **parameters):
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(PATIENCE))
            self._note(answer)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _note(self, event):
        """Keep errors and warnings, of scripts, of the policy and of what could not be loaded."""
        told = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(told["exceptionDetails"])
        if event.get("method") == "Runtime.consoleAPICalled":
            self.problems.append([each.get("value") for each in told["args"]])
        if event.get("method") == "Log.entryAdded":
            self.problems.append(told["entry"]["text"])

    def resize(self, width, height):
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, address):
        self("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script):
        """Return the value of an expression, a promise awaited."""
        answer = self(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script):
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, (script, self.run("document.body.innerText"))
            time.sleep(0.02)

    def press(self, key, modifiers=0):
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
        code = codes.get(key, 0)
        for kind in ("rawKeyDown", "keyUp"):
            self(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
            )

    def move(self, x, y):
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self):
        """The whole page as PNG."""
        return base64.b64decode(
            self("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        )
