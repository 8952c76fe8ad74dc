"""A real headless browser (Chromium or Chrome) for tests of pages, driven over a pipe by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
PATIENCE = 120.0
"""Seconds that an answer may take."""

START = """
import os, sys
for number, place in zip(sys.argv[1:3], (103, 104)):  # first out of the way of each other
    os.dup2(int(number), place)
for place in (3, 4):
    os.dup2(place + 100, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Program that becomes the browser, which reads descriptor 3 and writes descriptor 4."""


def find_browser() -> str | None:
    """Path of an installed browser."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Visit:
    """What happened while a page was open."""

    console: list[str] = field(default_factory=list)
    """Messages and errors of the page."""
    requests: list[str] = field(default_factory=list)
    """Addresses that the page asked for, itself included."""
    width: int = 0
    """Width of the content in CSS pixels; more than the window's if the page can be scrolled sideways."""
    background: str = ""
    """Colour of the page, as CSS."""
    picture: bytes = b""
    """PNG of the whole page."""


class Browser:
    """Connection to a running browser.

    Args:
        reading: descriptor of what the browser says.
        writing: descriptor of what it is told.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._last, self._buffer = 0, b""
        self._events: list[dict[str, Any]] = []

    def visit(self, page: Path, width: int, dark: bool, opened: bool = True) -> Visit:
        """Open a page in a window of ``width`` pixels; ``opened`` opens its folded sections."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

        def call(method: str, **arguments: Any) -> dict[str, Any]:
            return self._call(method, session, **arguments)

        for domain in ("Page", "Network", "Log", "Runtime"):
            call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        call("Emulation.setEmulatedMedia", features=[scheme])
        call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self._events.clear()
        call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()
        if opened:
            call("Runtime.evaluate", expression="document.querySelectorAll('details').forEach(d => d.open = true)")
        found = Visit()
        found.width = self._value(call, "document.documentElement.scrollWidth")
        found.background = self._value(call, "getComputedStyle(document.body).backgroundColor")
        shot = call("Page.captureScreenshot", captureBeyondViewport=True)
        found.picture = base64.b64decode(shot["data"])
        for event in self._events:
            name, about = event["method"], event["params"]
            if name == "Network.requestWillBeSent":
                found.requests.append(about["request"]["url"])
            elif name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.console.append(json.dumps(about)[:500])
        self._call("Target.closeTarget", targetId=target)
        return found

    def _value(self, call: Any, expression: str) -> Any:
        return call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def _call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": arguments}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._writing, data) :]
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        """The next message; events are kept as well."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            part = os.read(self._reading, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message


@contextmanager
def running_browser(path: str) -> Iterator[Browser]:
    """Start the browser at ``path``, and end it with the block."""
    told, tell = os.pipe()
    hear, said = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        start = [sys.executable, "-c", START, str(told), str(said), path, *options]
        process = subprocess.Popen(start, pass_fds=(told, said), stderr=subprocess.DEVNULL)
        os.close(told)
        os.close(said)
        try:
            yield Browser(hear, tell)
        finally:
            process.kill()
            process.wait()
            os.close(tell)
            os.close(hear)
