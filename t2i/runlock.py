"""`run.lock.json`: everything that decided what a finished run wrote, and doing it again to compare.

The lock stands in the run's folder and holds hashes only: of the files that the recipe names (images, captions, base
weights), file by file, and of everything written; beside them the recipe with all stages written out, commits of hub
models, seeds, and for every stage the code, versions, device and threads that it was made with.
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
from t2i.rundir import CONFIG, DONE, PROVENANCE, RunDirectory, prune, read_done, read_json, write_json

if TYPE_CHECKING:
    from t2i.engine import PlannedStage
    from t2i.recipe import Recipe

LOCK = "run.lock.json"
_VERSION = 2
_TIMED = (CONFIG, DONE, PROVENANCE, "metrics.jsonl", "trained.json", "report.html")
"""Files of a stage's folder that tell times, places or speeds: never the same twice, and nothing is made from them."""


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
    stages: dict[str, JsonValue] = {}
    for item in planned:
        files: Any = item.config["files"]
        stages[item.name] = {
            "fingerprint": item.fingerprint,
            "folder": item.folder.name,
            "seed": item.seed,
            "files": item.config["files"],
            "contents": contents(files, hashes),
            "hub": hub_commits(item.stage, item.folder),
            "made_with": None if item.is_passed_over else _made_with(item.folder),
            "settings": item.stage.model_dump(mode="json"),
            # Of a round that an earlier recipe ran there may be a folder.
            "outputs": {} if item.is_passed_over else dict(_outputs(item.folder, hashes)),
        }
    lock: dict[str, JsonValue] = {
        "lock": _VERSION,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "stages": stages,
        **({"stop": asdict(recipe.stop)} if recipe.stop else {}),
    }
    write_json(folder / LOCK, lock)
    return folder / LOCK


def describes(path: Path, recipe: Recipe, planned: list[PlannedStage]) -> bool:
    """Whether a lock is of these stages as they were planned: another seed or override makes others."""
    lock = read_json(path) or {}
    found: Any = lock.get("stages")
    if lock.get("lock") != _VERSION or lock.get("seed") != recipe.seed or not isinstance(found, dict):
        return False
    made = {name: (entry.get("fingerprint"), entry.get("folder")) for name, entry in found.items()}
    return made == {item.name: (item.fingerprint, item.folder.name) for item in planned}


def _made_with(folder: Path) -> JsonValue:
    """Code, versions and machine of a finished stage."""
    provenance = read_json(folder / PROVENANCE) or {}
    return {key: provenance.get(key) for key in ("code", *environment())}


def _outputs(folder: Path, hashes: ContentHashes) -> Iterator[tuple[str, JsonValue]]:
    done = read_done(folder)
    for name in sorted(done.files if done else {}):
        if name not in _TIMED:
            yield name, hashes.hash_path(folder / name)


def code_hashes(hashes: ContentHashes) -> dict[str, JsonValue]:
    """SHA-256 of each of the toolkit's packages."""
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
    _forget_finished(recipe, root, hashes)
    planned = run(recipe, root)
    return _compare(lock, path.parent, {item.name: item.folder for item in planned}, hashes), found


def _forget_finished(recipe: Recipe, root: Path, hashes: ContentHashes) -> None:
    """Delete what an earlier reproduction left, unless it was interrupted and is of this very code and machine.

    Otherwise the files of then would be compared, and called the same as those of now.
    """
    from t2i.engine import plan

    folders = RunDirectory(root, recipe.name).stage_folders()
    here = {"code": code_hashes(hashes), **environment()}
    finished = [folder for folder in folders if read_done(folder) is not None]
    is_other = any(list(_differences(_made_with(folder), here)) for folder in finished)
    if is_other or (folders and all(item.status == "skip" for item in plan(recipe, root))):
        prune(root, folders)


def _read(path: Path) -> dict[str, Any]:
    lock = read_json(path)
    if lock is None:
        raise DataError(f"{path}: no such lock, or not JSON; expected the {LOCK} of a finished run.")
    expected = {"lock", "recipe", "seed", "stages"}
    if lacking := sorted(expected - lock.keys()):
        raise DataError(f"{path}: not a lock; it lacks {', '.join(lacking)}. Expected the {LOCK} of a finished run.")
    if lock["lock"] != _VERSION:
        raise DataError(
            f"{path}: a lock of version {lock['lock']}; this version reads {_VERSION}. Run the recipe again to write a "
            "new one."
        )
    if not isinstance(lock["stages"], dict):
        raise DataError(f"{path}: `stages` is a {type(lock['stages']).__name__}, expected one entry for each stage.")
    for label, entry in lock["stages"].items():
        keys = entry.keys() if isinstance(entry, dict) else set[str]()
        if lacking := sorted({"settings", "outputs", "folder", "made_with"} - keys):
            raise DataError(f"{path}: stage {label} lacks {', '.join(lacking)}.")
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
    """One line for what differs, with the stages it is about if not all."""
    here = {"code": code_hashes(hashes), **environment()}
    about: dict[str, list[str]] = {}
    for label, entry in lock["stages"].items():
        # A round that was not run was made with nothing.
        for line in _differences(entry["made_with"], here) if entry["made_with"] is not None else ():
            about.setdefault(line, []).append(label)
    for line, labels in about.items():
        yield line if len(labels) == len(lock["stages"]) else f"{line} ({', '.join(labels)})"


def _differences(made_with: Any, here: dict[str, JsonValue]) -> Iterator[str]:
    """Code, versions and machine that are not those of a stage. A stage that never needed torch says nothing of it."""
    there = made_with if isinstance(made_with, dict) else {}
    without_torch = {name: value for name, value in here.items() if name != "torch" or there.get("torch")}
    ours, theirs = _flat(without_torch), _flat({name: value for name, value in there.items() if value is not None})
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) == theirs.get(key):
            continue
        if key.startswith("code."):
            yield f"code of {key.removeprefix('code.')}: other files than the lock was made with"
        else:
            yield f"{key}: {theirs.get(key)} in the lock, {ours.get(key)} here"


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
