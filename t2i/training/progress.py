"""One progress bar, as a context manager."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(label: str, start: int, total: int, *, visible: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while the block runs; yields a function that sets the number of finished items."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not visible or not console.is_terminal
    ) as progress:
        task = progress.add_task(label, total=total, completed=start)
        yield lambda done: progress.update(task, completed=done)
