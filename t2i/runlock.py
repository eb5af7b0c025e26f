"""`run.lock.json`: everything that decided what a finished run wrote, and doing it again to compare.

The lock stands in the run's folder and holds hashes only: of the files that the recipe names (images, captions, base
weights), file by file, of the toolkit's own code, and of everything written; beside them the recipe with all stages
written out, commits of hub models, versions, device, threads and seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue, ValidationError

from t2i.config import PathMark
from t2i.errors import ConfigError, DataError, RunError
from t2i.locked_inputs import commit_mismatches, contents, hub_commits, what_changed
from t2i.provenance import environment
from t2i.resources import ContentHashes, local_path
from t2i.rounds import RoundStop
from t2i.rundir import CONFIG, DONE, PROVENANCE, read_done, read_json, write_json

if TYPE_CHECKING:
    from t2i.engine import PlannedStage
    from t2i.recipe import Recipe

LOCK = "run.lock.json"
_VERSION = 1
_TIMED = (CONFIG, DONE, PROVENANCE, "metrics.jsonl", "trained.json", "report.html")
"""Files that tell times, places or speeds: never the same twice, and nothing is made from them."""


@dataclass(frozen=True)
class Verdict:
    """How a run that was done again compares. first: the first file that differs, or empty."""

    word: str
    """`bit-identical`, `within tolerance` or `different`."""
    files: int
    first: str = ""

    def __str__(self) -> str:
        where = f", first at {self.first}" if self.first else ""
        return f"{self.word}: {self.files} files compared{where}"


def write_lock(recipe: Recipe, planned: list[PlannedStage], folder: Path) -> Path:
    """Write the lock of a run all of whose stages are finished."""
    hashes = ContentHashes()
    provenances = [read_json(item.folder / PROVENANCE) or {} for item in planned]
    machine = next((found for found in reversed(provenances) if found.get("torch")), provenances[-1])
    stages: dict[str, JsonValue] = {}
    for item in planned:
        files: Any = item.config["files"]
        stages[item.name] = {
            "fingerprint": item.fingerprint,
            "folder": item.folder.name,
            "seed": item.seed,
            "files": item.config["files"],
            "contents": contents(files, hashes),
            "hub": hub_commits(item.stage),
            "settings": item.stage.model_dump(mode="json"),
            "outputs": dict(_outputs(item.folder, hashes)),
        }
    lock: dict[str, JsonValue] = {
        "lock": _VERSION,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "code": _code_hashes(hashes),
        "environment": {key: machine.get(key) for key in environment()},
        "stages": stages,
        **({"stop": asdict(recipe.stop)} if recipe.stop else {}),
    }
    write_json(folder / LOCK, lock)
    return folder / LOCK


def _outputs(folder: Path, hashes: ContentHashes) -> Iterator[tuple[str, JsonValue]]:
    done = read_done(folder)
    for name in sorted(done.files if done else {}):
        if Path(name).name not in _TIMED:
            yield name, hashes.hash_path(folder / name)


def _code_hashes(hashes: ContentHashes) -> dict[str, JsonValue]:
    import rewards

    packages = {"t2i": Path(__file__).parent, "rewards": Path(str(rewards.__file__)).parent}
    return {name: hashes.hash_path(path) for name, path in packages.items()}


def reproduce(path: Path, root: Path, *, accept: bool) -> tuple[Verdict, list[str]]:
    """Run what a lock describes once more, under `root`, and compare all files. Returns verdict and mismatches.

    accept: go on although something differs from the lock. Raises ConfigError that names every mismatch otherwise, and
    for a file that is no lock.
    """
    from t2i.engine import run

    lock = _read(path)
    recipe = _recipe(lock, path)
    hashes = ContentHashes()
    found = mismatches(lock, hashes)
    if found and not accept:
        lines = "\n".join(f"  {line}" for line in found)
        raise ConfigError(f"{path}: not what the lock was made with (--accept runs all the same):\n{lines}")
    planned = run(recipe, root)
    return _compare(lock, path.parent, {item.name: item.folder for item in planned}, hashes), found


def _read(path: Path) -> dict[str, Any]:
    lock = read_json(path)
    if lock is None:
        raise DataError(f"{path}: no such lock, or not JSON; expected the {LOCK} of a finished run.")
    expected = {"lock", "recipe", "seed", "code", "environment", "stages"}
    if lock.get("lock") != _VERSION or not expected <= lock.keys() or not isinstance(lock["stages"], dict):
        raise DataError(f"{path}: not a lock of version {_VERSION}; it lacks {sorted(expected - lock.keys())}.")
    return lock


def _recipe(lock: dict[str, Any], path: Path) -> Recipe:
    """The recipe, from the settings of its stages. A lock comes from elsewhere: it is read as strictly as a recipe."""
    from t2i.recipe import Recipe, is_safe_name
    from t2i.stages import STAGE_TYPES

    stages = []
    for label, entry in lock["stages"].items():
        try:
            settings = entry["settings"]
            stages.append(STAGE_TYPES[settings["type"]].model_validate_json(json.dumps(settings)))
        except (KeyError, TypeError, ValidationError) as error:
            raise DataError(f"{path}: stage {label} cannot be read by this version: {_first_line(error)}") from error
        if stages[-1].label != label or not is_safe_name(label):
            raise DataError(f"{path}: stage {label!r} has settings of another stage, or an unsafe name.")
    if not is_safe_name(str(lock["recipe"])) or "/" in str(lock["recipe"]):
        raise DataError(f"{path}: {lock['recipe']!r} is no name of a recipe.")
    return Recipe(str(lock["recipe"]), int(lock["seed"]), tuple(stages), stop=_stop(lock, path))


def _stop(lock: dict[str, Any], path: Path) -> RoundStop | None:
    if "stop" not in lock:
        return None
    try:
        stop = RoundStop(str(lock["stop"]["by"]), tuple(tuple(map(str, names)) for names in lock["stop"]["rounds"]))
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: its `stop` cannot be read by this version: {_first_line(error)}") from error
    named = {stop.by, *(name for names in stop.rounds for name in names)}
    if not named <= lock["stages"].keys():
        raise DataError(f"{path}: its `stop` names stages that it does not hold.")
    return stop


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def mismatches(lock: dict[str, Any], hashes: ContentHashes) -> list[str]:
    """What is not as the lock says, one line each: named files, code, packages, machine."""
    import torch  # noqa: F401 (so that its facts are known)

    return [*_file_mismatches(lock, hashes), *_machine_mismatches(lock, hashes)]


def _file_mismatches(lock: dict[str, Any], hashes: ContentHashes) -> Iterator[str]:
    for label, entry in lock["stages"].items():
        for key, file in entry.get("files", {}).items():
            path = local_path(file["path"], PathMark(may_be_hub_id=False))
            if path is None or not path.exists():
                yield f"{label}.{key}: {file['path']} is not here"
            elif hashes.hash_path(path) != file["sha256"]:
                listed = entry.get("contents", {}).get(key)
                yield f"{label}.{key}: {file['path']} has other content{what_changed(path, listed, hashes)}"
        yield from commit_mismatches(label, entry.get("hub", {}))


def _machine_mismatches(lock: dict[str, Any], hashes: ContentHashes) -> Iterator[str]:
    for name, digest in _code_hashes(hashes).items():
        if lock["code"].get(name) != digest:
            yield f"code of {name}: other files than the lock was made with"
    here, there = _flat(environment()), _flat(lock["environment"])
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) != there.get(key):
            yield f"{key}: {there.get(key)} in the lock, {here.get(key)} here"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _compare(lock: dict[str, Any], originals: Path, folders: dict[str, Path], hashes: ContentHashes) -> Verdict:
    """Compare every output, stage by stage. How far apart is known where the originals stand by the lock."""
    first, count, is_near = "", 0, True
    for label, entry in lock["stages"].items():
        again = dict(_outputs(folders[label], hashes))
        for name in sorted(entry["outputs"].keys() | again.keys()):
            count += 1
            if entry["outputs"].get(name) == again.get(name):
                continue
            near, how = _difference(originals / str(entry["folder"]) / name, folders[label] / name)
            first = first or f"{label}/{name} ({how})"
            is_near = is_near and near
    if not count:
        raise RunError("the lock lists no outputs; there is nothing to compare.")
    return Verdict("bit-identical" if not first else "within tolerance" if is_near else "different", count, first)


_TOLERANCE = 1e-3
"""Largest relative difference of the weights of a file, or of pixels in [0, 1], that counts as rounding."""


def _difference(original: Path, again: Path) -> tuple[bool, str]:
    """(whether rounding explains it, in words)."""
    if not again.is_file():
        return False, "was not written this time"
    if not original.is_file():
        return False, "the original is not beside the lock, so how far is not known"
    if again.suffix == ".safetensors":
        size = _tensor_difference(original, again)
    elif again.suffix == ".png":
        size = _pixel_difference(original, again)
    else:
        return False, "other content"
    return size <= _TOLERANCE, f"by {size:.2g} relative"


def _tensor_difference(original: Path, again: Path) -> float:
    from safetensors.torch import load_file

    one, other = load_file(original), load_file(again)
    if {name: value.shape for name, value in one.items()} != {name: value.shape for name, value in other.items()}:
        return float("inf")
    parts = [
        float((other[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-30))
        for name, value in one.items()
    ]
    return max(parts, default=0.0)


def _pixel_difference(original: Path, again: Path) -> float:
    import numpy as np
    from PIL import Image

    with Image.open(original) as one, Image.open(again) as other:
        if one.size != other.size:
            return float("inf")
        return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean() / 255)
