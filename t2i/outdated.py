"""Finished work whose input is made anew: it is done again, although its fingerprint is what it was.

A field outside the fingerprint can ask more of a stage than it finished with (`Stage.unmet`). All that was made from
its files is marked before they are replaced, so that a kill at any moment leaves nothing that only looks finished.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from t2i.rundir import CONFIG, DONE, RunDirectory, read_json, write_json

OUTDATED = "outdated.json"
"""Marker in a stage folder: what is in it was made from files that are replaced."""


def done_again(name: str) -> str:
    """Why a stage that reads this one runs, for people."""
    return f"input {name} is done again"


def why_outdated(folder: Path) -> str:
    """The reason in a folder's marker; empty if it has none."""
    marker = read_json(folder / OUTDATED)
    return str(marker["because"]) if marker else ""


def mark_readers(directory: RunDirectory, fingerprint: str, name: str) -> None:
    """Mark every folder that was made from this stage, directly or not; other versions of the recipe left some too."""
    configs: dict[Path, Any] = {folder: read_json(folder / CONFIG) or {} for folder in directory.stage_folders()}
    redone = [(fingerprint, name)]
    while redone:
        made, label = redone.pop()
        for folder in [folder for folder, config in configs.items() if made in _read_by(config)]:
            config = configs.pop(folder)
            write_json(folder / OUTDATED, {"because": done_again(label)})
            (folder / DONE).unlink(missing_ok=True)
            redone.append((config["fingerprint"], config["stage"]))


def _read_by(config: Any) -> set[str | None]:
    """Fingerprints of what a stage reads."""
    return {made for refs in config.get("identity", {}).get("inputs", {}).values() for made in refs}


def clear_outdated(folder: Path) -> None:
    """Empty a folder that is marked; the marker goes last, so that a kill in between leaves it marked."""
    if not why_outdated(folder):
        return
    for path in [path for path in folder.iterdir() if path.name != OUTDATED]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / OUTDATED).unlink()
