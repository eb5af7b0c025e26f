"""Run the server until it is interrupted, and say what came of it."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from t2i.errors import ConfigError, MissingDependencyError, RunError
from t2i.label.agreement import agreements

if TYPE_CHECKING:
    from t2i.label.study import Study
    from t2i.label.votes import Ballots, VoteLog


def require_server() -> None:
    """Raise MissingDependencyError, with the command that installs them, unless the server's packages are there."""
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                f"t2i label needs the package {package!r}, which is not installed: pip install 't2i-toolkit[label]'"
            )


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of votes. Raises RunError if another process has it, ConfigError if it is no folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: {folder} cannot be a folder ({error.strerror}).") from error
    try:
        # flock: the kernel gives it back when the process dies.
        with FileLock(folder / ".lock", timeout=0, fallback_to_soft=False):
            yield
    except Timeout as error:
        raise RunError(
            f"{folder}: another t2i label has it open; use its page, it takes any number of raters."
        ) from error


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1, port 0 for any free one. Raises ConfigError if the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        # From here on connections wait for the server instead of failing.
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"--port: {port} cannot be had ({error}); give another one, or 0 for any that is free."
        ) from error
    return listener


def serve(study: Study, log: VoteLog, listener: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM."""
    import uvicorn

    from t2i.label.web import application

    config = uvicorn.Config(
        application(study, log), log_level="error", access_log=False, server_header=False, lifespan="off",
        ws="none", http="h11", proxy_headers=False, timeout_graceful_shutdown=3,
    )  # fmt: skip
    # uvicorn raises SIGINT again once it has shut down; that is our usual end.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def summary(ballots: Ballots, pairs: int) -> Iterator[str]:
    """Lines for the terminal: what each rater chose, and how far they agree."""
    for rater, own in sorted(ballots.items()):
        counts = Counter(own.values())
        said = ", ".join(f"{name} {counts[name]}" for name in ("left", "right", "tie", "skip"))
        yield f"{rater}: {len(own)} of {pairs} pairs: {said}"
    for one in agreements(ballots):
        kappa = "not defined, all chose the same" if one.kappa is None else f"{one.kappa:.2f}"
        yield f"{', '.join(one.raters)}: kappa {kappa} ({one.share:.0%} the same, {one.pairs} pairs)"
