"""Who may import whom, as the design draws it: only what stands lower, or in the same group where groups may mix."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

LAYERS = (
    {"errors", "suggestions", "document", "credentials", "config", "records", "resources", "processes", "devices"}
    | {"encoder_texts", "files", "json_values"},
    {"randomness", "noise", "timesteps"},
    {"objectives", "families", "shapes", "rewards"},
    {"training", "sampling", "data", "captioners", "lora", "export", "report"},
    {"stages"},
    {"recipe", "rounds", "expansion", "changes", "provenance", "rundir", "disk", "engine", "inspection", "starter"}
    | {"label", "commands", "doctor", "locked_inputs", "moved", "outdated", "runlock"},
    {"cli"},
    {"__init__", "__main__"},
)
UNMIXED = {"objectives", "families", "shapes"}
"""Parts that know nothing of each other, although they stand in one layer."""


def part(module: str) -> str:
    """`t2i.data.buckets` -> `data`, `rewards.base` -> `rewards`, `t2i` -> `__init__`."""
    names = module.split(".")
    return "rewards" if names[0] == "rewards" else names[1] if len(names) > 1 else "__init__"


def layer(name: str) -> int:
    """Number of the layer, from below."""
    found = [number for number, names in enumerate(LAYERS) if name in names]
    assert found, f"t2i/{name} has no layer; give it one in {__file__}"
    return found[0]


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, those inside functions and for type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # `from t2i import lora` names a module, `from t2i.lora import inject` does not.
            yield from (f"t2i.{alias.name}" for alias in node.names) if node.module == "t2i" else [node.module or ""]


FILES = sorted([*(REPOSITORY / "t2i").rglob("*.py"), *(REPOSITORY / "rewards").rglob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_downwards(path: Path) -> None:
    own = part(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    for module in imports(path):
        if own == "rewards":
            assert module.split(".")[0] not in ("t2i", "diffusers"), f"{path}: rewards imports {module}"
        elif module.split(".")[0] in ("t2i", "rewards") and part(module) != own:
            other = part(module)
            assert layer(other) <= layer(own), f"{path}: {own} imports {module}, which stands above it"
            assert not {own, other} <= UNMIXED, f"{path}: {own} and {other} meet in a higher layer only"


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys, t2i.cli, t2i.engine, t2i.stages; print(sorted({'torch', 'diffusers', 'scipy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
