"""Folders of small pictures to compare, a server of them in a process of its own, and plain requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.records import GeneratedImage, write_jsonl

RED, BLUE = (220, 30, 30), (30, 30, 220)


def folders(parent: Path, count: int = 3) -> tuple[Path, Path]:
    """`red` and `blue`: the same prompts, told apart by colour; the shade is the picture's number."""
    made = []
    for name, colour in (("red", RED), ("blue", BLUE)):
        folder = parent / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 12), tuple(part + number for part in colour)).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(f"prompt <b>{number}</b>")
        made.append(folder)
    return made[0], made[1]


def generations(folder: Path, prompts: int, samples: int, shade: int = 0) -> Path:
    """Folder as a generate stage leaves it, with pictures that all differ."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for prompt in range(prompts):
        for sample in range(samples):
            name = f"images/{prompt}-{sample}.png"
            Image.new("RGB", (8, 8), (40 * prompt, 40 * sample, shade)).save(folder / name)
            rows.append(GeneratedImage(f"p{prompt}", f"prompt {prompt}", 7, name, sample))
    write_jsonl(folder / "generations.jsonl", rows)
    return folder


@dataclass
class Server:
    """A running `t2i label`. said: the lines that it has printed."""

    process: subprocess.Popen[str]
    port: int = 0
    said: list[str] = field(default_factory=list)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str | None] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, body) of a request as our page sends it, but for `headers`; None leaves one out."""
        own = f"127.0.0.1:{self.port}"
        sent: dict[str, str | None] = {"Host": own}
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if method == "POST":
            sent |= {"Origin": f"http://{own}", "Content-Type": "application/json", "Content-Length": str(len(data))}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in (sent | dict(headers or {})).items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(data)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def session(self, rater: str) -> dict[str, Any]:
        return json.loads(self.ask("GET", f"/session?rater={rater}")[2])

    def vote(self, session: Mapping[str, Any], pair: int, choice: str) -> int:
        """Status of a vote."""
        row = {"rater": session["rater"], "session": session["session"], "pair": pair, "choice": choice, "seconds": 1}
        return self.ask("POST", "/votes", row)[0]

    def stop(self, how: signal.Signals = signal.SIGINT) -> str:
        """Send a signal and wait; what the process printed after its address, errors included."""
        self.process.send_signal(how)
        return self.process.communicate(timeout=30)[0]


@contextlib.contextmanager
def serving(sources: tuple[Path, ...], output: Path, *options: str) -> Iterator[Server]:
    """The server as a person starts it, at a free port."""
    arguments = ["label", *map(str, sources), "--output", str(output), "--port", "0", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "t2i.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    server = Server(process)
    try:
        for line in process.stdout:
            server.said.append(line)
            if line.startswith("http://127.0.0.1:"):
                server.port = int(line.strip().rstrip("/").rpartition(":")[2])
                break
        assert server.port, "".join(server.said)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
