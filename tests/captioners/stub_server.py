"""An OpenAI-compatible server that captions images by their colour, and fails in every way that servers do."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from t2i.randomness import generator

KEY = "sk-very-secret-8131"
Fault = Callable[[int], str]
"""Number of a call -> "", "fails", "hangs", "cut", "garbage", "refuses" or "broke"."""

STATUS = {"fails": 500, "refuses": 400, "broke": 402}


def no_fault(call: int) -> str:
    """A server that always answers."""
    return ""


def issue_faults(call: int) -> str:
    """5 % of calls fail, 1 % hang, 2 % are cut, 1 % are garbage."""
    luck = generator(1, "stub", call).random()
    bounds = ((0.05, "fails"), (0.06, "hangs"), (0.08, "cut"), (0.09, "garbage"))
    return next((fault for bound, fault in bounds if luck < bound), "")


def caption_of(colour: tuple[int, int, int]) -> str:
    """What the server says about an image of one colour."""
    return "A wall in the colour {} {} {}.".format(*colour)


class Stub:
    """What the server does and saw. kill_at: numbers of calls at which it ends the client."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.calls = 0
        self.answered: Counter[str] = Counter()
        self.asked: list[str] = []
        self.texts: list[str] = []
        self.kill_at: dict[int, int] = {}
        """Number of a call -> process id."""
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.url = ""

    def take(self, body: dict[str, Any]) -> tuple[str, str]:
        """(fault, text) of one call."""
        content = body["messages"][0]["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        prompt = next(part["text"] for part in parts if part["type"] == "text")
        text = "A fused caption."
        for part in parts:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                colour = Image.open(io.BytesIO(data)).getpixel((0, 0))
                text = caption_of(colour)  # pyright: ignore[reportArgumentType]
        with self.lock:
            call = self.calls
            self.calls += 1
            self.asked.append(text)
            self.texts.append(prompt)
            process = self.kill_at.pop(call, None)
        if process is not None:
            os.kill(process, signal.SIGKILL)
        return self.fault(call), text


class Handler(BaseHTTPRequestHandler):
    """One call."""

    stub: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault, text = self.stub.take(body)
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self._send(401, b"{}")
        if fault == "hangs":
            self.stub.over.wait(30)
            return None
        if fault in STATUS:
            return self._send(STATUS[fault], b"{}")
        if fault == "garbage":
            return self._send(200, b"<html>busy</html>")
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        if fault == "cut":
            choice = {"message": {"content": text[:9]}, "finish_reason": "length"}
        self._send(200, json.dumps({"choices": [choice]}).encode())
        if not fault:
            with self.stub.lock:
                self.stub.answered[text] += 1
        return None

    def _send(self, status: int, data: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client is gone

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on standard error."""


class Server(ThreadingHTTPServer):
    """Quiet about clients that are killed."""

    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A killed client is what is tested."""


@contextmanager
def serve(fault: Fault = no_fault) -> Iterator[Stub]:
    """A running server on a free port."""
    stub = Stub(fault)
    server = Server(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"stub": stub}))
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield stub
    finally:
        stub.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
