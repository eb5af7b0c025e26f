"""Signals that ask a run to stop: it does so at the end of a step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from t2i import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What schedulers send before they kill, and what Ctrl-C sends."""


class StopRequest:
    """As a context manager: the first SIGTERM or SIGINT that comes in the block is kept, instead of ending the process.

    A second Ctrl-C ends it at once, unless there are several processes, each of which gets it from the terminal and
    from torchrun. Outside of a process's main thread, where Python allows no handlers, signals keep their effect.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._pending: Callable[[], int] = lambda: 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, *, last: bool) -> signal.Signals | None:
        """The signal to stop for, the same in every process. All must call this at the end of every step.

        Of several processes, what one got in a step is known to all at the end of the next, so that none waits; in the
        last step they do wait.
        """
        known, self._pending = self._pending, processes.start_largest(self.signal or 0)
        number = self._pending() if last or processes.count() == 1 else known()
        return signal.Signals(number) if number else None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT and processes.count() == 1:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)
