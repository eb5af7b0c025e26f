"""A run killed with SIGKILL at any moment goes on to the bits of a run that nobody killed. See killing.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import killing
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
TESTS = Path(__file__).parent
MOMENTS = 20


def kill(recipe: str, folder: Path, moments: int) -> list[dict[str, object]]:
    """Try moments in a fork server; a description of the whole run, then one of each moment."""
    command = [sys.executable, str(TESTS / "killing.py"), recipe, str(folder), str(moments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def check(recipe: str, folder: Path, moments: int) -> None:
    whole, *tried = kill(recipe, folder, moments)
    assert whole["problems"] == [], "two runs that nobody killed differ"
    assert len(tried) == moments
    assert [moment for moment in tried if moment["problems"] or not moment["killed"]] == []
    assert set(killing.TARGETS[recipe]) <= {moment["stage"] for moment in tried}


def test_a_run_killed_at_any_of_20_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    check("adapter", tmp_path, MOMENTS)


@pytest.mark.kill
@pytest.mark.parametrize("recipe", killing.RECIPES)
def test_a_run_killed_at_any_of_100_moments_ends_with_the_same_bits(tmp_path: Path, recipe: str) -> None:
    check(recipe, tmp_path, 100)
