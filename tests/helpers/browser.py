"""A headless Chromium that is driven through its DevTools protocol, over pipes and without a further package."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
]
#: What a page reports as an error, beside exceptions.
ERRORS = {"error", "assert"}


def find_browser() -> str | None:
    """Path of an installed Chromium or Chrome."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser(profile: Path) -> Iterator["Browser"]:
    """Start a browser with one empty tab; it ends with the block."""
    executable = find_browser()
    assert executable
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()
    # Chromium reads commands from descriptor 3 and writes answers to descriptor 4
    script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, "browser", executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(to_browser, from_browser),
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        with os.fdopen(commands, "wb", buffering=0) as write, os.fdopen(answers, "rb") as read:
            yield Browser(write, read)
    finally:
        process.terminate()
        process.wait(20)


class Browser:
    """One tab: opens pages, runs scripts, takes screenshots, and collects the errors of the console."""

    def __init__(self, write: Any, read: Any) -> None:
        self._write, self._read, self._number, self._session = write, read, 0, ""
        self._events: list[dict[str, Any]] = []
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come before it are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        parts = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser has ended"
            parts += byte
        return json.loads(parts)

    def open(self, page: Path, width: int, dark: bool = False, height: int = 900) -> list[str]:
        """Load a file at a width in pixels; returns the errors that it reported."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.send("Page.navigate", url=page.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._receive())
        self.run("document.fonts.ready.then(() => 0)")  # events of the load come before this answer
        return [text for event in self._events if (text := _error(event))]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, or of its promise."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Write the whole page as PNG."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))


def _error(event: dict[str, Any]) -> str:
    """The text of an event that is an error; "" for others."""
    parameters = event.get("params", {})
    if event["method"] == "Runtime.exceptionThrown":
        return str(parameters["exceptionDetails"])
    if event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ERRORS:
        return str(parameters["args"])
    entry = parameters.get("entry", {})
    return str(entry["text"]) if event["method"] == "Log.entryAdded" and entry["level"] in ERRORS else ""
