"""Errors that nobody planned for, such as a fault in a scorer of one's own, told in one line."""

from __future__ import annotations

import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from rewards.errors import RewardError


class ReportingGroup(TyperGroup):
    """A group of commands that ends with a line and exit code 1 at what it did not foresee.

    Errors of this package, of the command line, and interruptions pass through. The option `--traceback` of the group
    also shows where it arose.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (RewardError, BrokenPipeError, typer.Exit, typer.Abort, typer.TyperException):
            raise
        except Exception as error:
            if ctx.params.get("traceback"):
                traceback.print_exc()
            typer.echo(f"Error: {_in_one_line(error)}", err=True)
            raise typer.Exit(1) from error


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename2 or error.filename}: {error.strerror}"
    first = str(error).strip().split("\n")[0]
    return f"unexpected {type(error).__name__}: {first or 'no message'} (rewards --traceback ... shows where)"
