"""A headless Chromium driven through chromedriver's HTTP interface (W3C WebDriver), with the standard library alone."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--window-size=1280,900",
)  # fmt: skip
KEYS = {"left": "\ue012", "right": "\ue014", "enter": "\ue007"}


def missing() -> str:
    """What is not installed, or an empty text."""
    if shutil.which("chromedriver") is None:
        return "no chromedriver"
    return "" if any(map(shutil.which, BROWSERS)) else f"none of {', '.join(BROWSERS)}"


@dataclass(frozen=True)
class Browser:
    """One window. address: of its session at chromedriver."""

    address: str

    def open(self, url: str) -> None:
        call("POST", f"{self.address}/url", {"url": url})

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return call("POST", f"{self.address}/execute/sync", {"script": f"return {script}", "args": []})

    def press(self, keys: str) -> None:
        """Press and release keys, one after the other, wherever the focus is."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        call("POST", f"{self.address}/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def click(self, selector: str) -> None:
        found = call("POST", f"{self.address}/element", {"using": "css selector", "value": selector})
        call("POST", f"{self.address}/element/{next(iter(found.values()))}/click", {})

    def until(self, script: str, seconds: float = 10) -> Any:
        """Wait for an expression to be true; its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}\n{self.run('document.body.innerText')}"
        return value

    def console(self) -> list[str]:
        """What the page's console has said since it was last asked."""
        return [line["message"] for line in call("POST", f"{self.address}/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(call("GET", f"{self.address}/screenshot")))


def call(method: str, address: str, body: dict[str, Any] | None = None) -> Any:
    """One WebDriver command; its value."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{address} {body}: {error.read().decode()[:500]}") from error


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A window with a fresh profile, closed at the end."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        port = next(
            int(m[1]) for line in driver.stdout if (m := re.search(r"started successfully on port (\d+)", line))
        )
        options = {
            "args": [*FLAGS, f"--user-data-dir={profile}"],
            "binary": next(filter(None, map(shutil.which, BROWSERS))),
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = call("POST", f"http://127.0.0.1:{port}/session", {"capabilities": {"alwaysMatch": wanted}})
        browser = Browser(f"http://127.0.0.1:{port}/session/{session['sessionId']}")
        yield browser
        call("DELETE", browser.address)
    finally:
        driver.terminate()
        driver.wait()
        driver.stdout.close()
