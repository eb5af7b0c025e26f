"""What the packages promise: exactly these names, and nothing heavy imported for them."""

from __future__ import annotations

import subprocess
import sys

import rewards
import t2i


def test_public_names_are_sorted_and_importable() -> None:
    for package in (t2i, rewards):
        assert list(package.__all__) == sorted(package.__all__)
        for name in package.__all__:
            assert getattr(package, name) is not None


def test_public_names_are_frozen() -> None:
    assert t2i.__all__ == ["Recipe", "Sampler", "T2IError", "export_lora", "load_family", "plan", "run"]
    assert rewards.__all__ == ["Reward", "available", "load", "score"]


def test_importing_the_packages_and_stages_does_not_import_torch() -> None:
    program = "import sys, t2i, rewards, t2i.stages, t2i.engine, t2i.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
