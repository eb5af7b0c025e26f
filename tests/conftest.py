"""What every test may rely on: no network, a fixed number of threads, and public test data where it is present."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Read by torch when a test first imports it; importing it here would cost every run seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parent.parent
TEST_DATA = Path(os.environ.get("T2I_TEST_DATA") or REPOSITORY / "../shared/data").resolve()

LONGEST = ("test_kill.py", "test_simulated_device.py", "test_recipes.py")
"""Files with single tests of many seconds."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: several workers that end with short tests end together."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def test_data() -> Callable[[str], Path]:
    """`test_data("name")` is a file or folder of the public test data; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = TEST_DATA / name
        if not path.exists():
            pytest.skip(f"no {name} in {TEST_DATA}; set T2I_TEST_DATA to the folder that holds it")
        return path

    return find


@pytest.fixture(autouse=True)
def _fixed_threads() -> None:
    """Results are compared bit for bit, which holds at an equal number of threads."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
