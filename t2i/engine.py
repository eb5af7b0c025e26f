"""From a recipe to files: what has to run and why (`plan`), and running it (`run`).

A stage's fingerprint is a hash of its type, its version, the fields that decide its output, its seed, the content of
the local files it names, and the fingerprints of what it reads. Names are labels and stay out of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue
from rich.console import Console

from t2i import processes
from t2i.changes import describe_change
from t2i.config import PathMark, output_fields
from t2i.document import Key
from t2i.errors import RunError, T2IError
from t2i.provenance import environment, git_commit
from t2i.recipe import Recipe
from t2i.resources import ContentHashes, local_path
from t2i.rundir import CONFIG, RunDirectory, damage, now_utc, read_done, read_json
from t2i.runlock import LOCK, write_lock
from t2i.stages.base import Stage, StageContext

HASHES = ".hashes.json"
"""Name of the cache of content hashes in the root of all runs."""
Status = Literal["run", "resume", "skip"]
JsonObject = dict[str, JsonValue]


@dataclass(frozen=True)
class PlannedStage:
    """One stage with what is to be done about it. reason: one line for people."""

    name: str
    stage: Stage
    seed: int
    folder: Path
    status: Status
    reason: str
    fingerprint: str
    inputs: dict[str, list[tuple[str, Path]]]
    """Field -> [(stage name, folder), ...]."""
    config: JsonObject
    """What `config.json` holds: the identity behind the fingerprint, and the same for people."""


def identity(
    stage: Stage, seed: int, upstream: Mapping[str, str], hashes: ContentHashes
) -> tuple[JsonObject, JsonObject]:
    """What decides a stage's output, and the local files in it: {dotted field: {path, sha256}}.

    upstream: stage name -> fingerprint. A hub id stands for itself. Raises DataError for an unreadable file.
    """
    files: JsonObject = {}

    def visit(key: Key, mark: PathMark, text: str) -> JsonValue:
        path = local_path(text, mark)
        if path is None:
            return text
        digest = hashes.hash_path(path)
        files[".".join(map(str, key))] = {"path": text, "sha256": digest}
        return {"sha256": digest}

    labels = {"name", "seed", "type", *stage.references}
    fields = {name: value for name, value in output_fields(stage, visit).items() if name not in labels}
    inputs: JsonObject = {name: [upstream[ref] for ref in refs] for name, refs in stage.references.items()}
    body: JsonObject = {"type": stage.type, "version": stage.version, "seed": seed, "fields": fields, "inputs": inputs}
    if stage.shows_names:
        body["names"] = {name: list(refs) for name, refs in stage.references.items()}
    return body, files


def fingerprint(body: Mapping[str, JsonValue]) -> str:
    """16 hex digits of the SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def plan(recipe: Recipe, root: Path) -> list[PlannedStage]:
    """Say for every stage whether it runs, resumes or is skipped, and why. Reads files for hashes, changes none."""
    hashes = ContentHashes(root / HASHES)
    planned = _plan(recipe, RunDirectory(root, recipe.name), hashes)
    hashes.save()
    return planned


def _plan(recipe: Recipe, directory: RunDirectory, hashes: ContentHashes) -> list[PlannedStage]:
    done: dict[str, PlannedStage] = {}
    for stage in recipe.stages:
        upstream = {name: item.fingerprint for name, item in done.items()}
        body, files = identity(stage, recipe.seed_of(stage), upstream, hashes)
        own = fingerprint(body)
        twin = next((item for item in done.values() if item.fingerprint == own), None)
        folder = twin.folder if twin else directory.stage_folder(stage.label, own)
        config: JsonObject = {
            "stage": stage.label,
            "recipe": recipe.name,
            "fingerprint": own,
            "identity": body,
            "settings": stage.model_dump(mode="json"),
            "files": files,
        }
        status, reason = _status(directory, folder, config)
        if twin:
            status, reason = "skip", f"the same work as {twin.name}"
        inputs = {field: [(ref, done[ref].folder) for ref in refs] for field, refs in stage.references.items()}
        seed = recipe.seed_of(stage)
        done[stage.label] = PlannedStage(stage.label, stage, seed, folder, status, reason, own, inputs, config)
    return list(done.values())


def _status(directory: RunDirectory, folder: Path, config: JsonObject) -> tuple[Status, str]:
    done = read_done(folder)
    if done is not None:
        wrong = damage(folder, done)
        if wrong:
            return "resume", f"was finished, but {wrong}"
        return "skip", f"finished {done.finished}, {len(done.files)} files"
    if folder.is_dir():
        return "resume", "interrupted run found"
    earlier = [read_json(sibling / CONFIG) or {} for sibling in directory.stage_folders()]
    same_name = [found for found in earlier if _kind(found) == _kind(config) and "begun" in found]
    if not same_name:
        return "run", "first run"
    return "run", describe_change(max(same_name, key=lambda found: str(found["begun"])), config)


def _kind(config: JsonObject) -> tuple[JsonValue, JsonValue]:
    """Name and type: a stage of another type that once had the name is no earlier version of this one."""
    body = config.get("identity")
    return config.get("stage"), body.get("type") if isinstance(body, dict) else None


def run(recipe: Recipe, root: Path, console: Console | None = None) -> list[PlannedStage]:
    """Run what is not finished, in order; return what was planned. Finished stages are kept whatever happens later.

    Every stage that is to run is checked before the first one runs. With several processes, all must call this; see
    `t2i.processes`. Raises RunError if another run holds the folder or
    the disk gives out, and what a stage raises.
    """
    processes.check_launch()
    screen = console or Console(quiet=not processes.is_first())
    directory = RunDirectory(root, recipe.name)
    with ExitStack() as held:
        hashes = ContentHashes(root / HASHES)
        planned = processes.first(lambda: _plan(recipe, held.enter_context(directory), hashes))
        commit = git_commit(recipe.path.parent) if recipe.path else None
        for item in planned:
            if item.status != "skip":
                item.stage.check()
        for number, item in enumerate(planned, 1):
            _say(screen, f"[{number}/{len(planned)}] {item.name}: {item.status} ({item.reason})")
            if item.status != "skip":
                seconds, facts = _run_stage(item, recipe, directory, hashes, commit)
                _say(screen, f"[{number}/{len(planned)}] {item.name}: done in {seconds:.1f} s -> {item.folder}")
                for line in facts.get("summary", ()):
                    _say(screen, f"  {line}")
        if processes.is_first():
            if any(item.status != "skip" for item in planned) or not (directory.folder / LOCK).is_file():
                write_lock(recipe, planned, directory.folder)
            hashes.save()
    processes.leave()
    return planned


def _say(screen: Console, line: str) -> None:
    screen.print(line, markup=False, highlight=False, soft_wrap=True)


def _run_stage(
    item: PlannedStage, recipe: Recipe, directory: RunDirectory, hashes: ContentHashes, commit: JsonObject | None
) -> tuple[float, dict[str, Any]]:
    """Run one stage into its folder and mark it done; returns seconds and the stage's facts."""
    started, clock = now_utc(), time.perf_counter()
    try:
        processes.first(lambda: directory.begin(item.folder, item.config))
        processes.check_shared(item.folder)
        context = StageContext(item.folder, item.inputs, item.seed, recipe.name)
        in_all = item.stage.in_all_processes
        facts = item.stage.run(context) if in_all else processes.first(lambda: item.stage.run(context))
        processes.first(lambda: _check_unchanged(item, hashes))
        seconds = time.perf_counter() - clock
        provenance: JsonObject = {
            "started": started,
            "finished": now_utc(),
            "wall_seconds": round(seconds, 3),
            "is_resumed": item.status == "resume",
            "seed": item.seed,
            "inputs": {name: folder.name for pairs in item.inputs.values() for name, folder in pairs},
            "files": item.config["files"],
            "git": commit,
            **environment(),
        }
        processes.first(
            lambda: directory.finish(item.folder, fingerprint=item.fingerprint, facts=facts, provenance=provenance)
        )
    except Exception as error:
        on_disk = disk_error(error, item.folder)
        if on_disk is None:
            raise
        raise on_disk from error
    return seconds, facts


def _check_unchanged(item: PlannedStage, hashes: ContentHashes) -> None:
    """The fingerprint promises what went in; files edited while the stage ran would make it a lie."""
    upstream = {name: folder.name[-16:] for pairs in item.inputs.values() for name, folder in pairs}
    body, _ = identity(item.stage, item.seed, upstream, hashes)
    if fingerprint(body) != item.fingerprint:
        raise RunError(f"stage {item.name}: a file it names was changed while it ran; run again without touching it.")


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def disk_error(error: BaseException, folder: Path) -> RunError | None:
    """The RunError to raise instead, if a full or read-only disk is at the root of an error; else None."""
    # A T2IError already says what to do about a file that cannot be read; only a full disk is news to it.
    not_writable = () if isinstance(error, T2IError) else _NOT_WRITABLE
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else _number_in_text(str(cause))
        where = cause.filename if isinstance(cause, OSError) and cause.filename else folder
        if number in _DISK_FULL:
            return RunError(f"disk full while writing {where}; free space and run again: finished stages are kept.")
        if number is not None and number in not_writable:
            return RunError(
                f"{where}: {os.strerror(number)}; make it accessible and run again: finished stages are kept."
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _number_in_text(message: str) -> int | None:
    """Libraries written in C++ and Rust put the system's words into errors of their own types."""
    return next((n for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) if os.strerror(n) in message), None)
