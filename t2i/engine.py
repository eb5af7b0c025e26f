"""From a recipe to files: what has to run and why (`plan`), and running it (`run`).

A stage's fingerprint is a hash of its type, its version, the fields that decide its output, its seed, the content of
the local files it names, and the fingerprints of what it reads. Names are labels and stay out of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue
from rich.console import Console

from t2i import processes
from t2i.changes import NAMED_IMAGES, describe_change
from t2i.config import PathMark, output_fields
from t2i.disk import disk_error
from t2i.document import Key
from t2i.errors import RunError
from t2i.moved import PLACES, follow, moves, places, was_cut_short
from t2i.outdated import clear_outdated, done_again, mark_readers, why_outdated
from t2i.provenance import environment, git_commit
from t2i.recipe import Recipe
from t2i.resources import ContentHashes, code_file, local_path
from t2i.rundir import CONFIG, RunDirectory, damage, now_utc, read_done, read_json
from t2i.runlock import LOCK, code_hashes, describes, write_lock
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
    is_passed_over: bool = False
    """Of a round that is not run because `rounds.stop_by` has decided without it; it has no folder."""
    is_moved: bool = False
    """Whether it is finished and names images where they no longer stand; see `t2i.moved`."""
    is_redone: bool = False
    """Whether it finished once and makes other files now, so that what reads it runs again; see `t2i.outdated`."""


def identity(
    stage: Stage, seed: int, upstream: Mapping[str, str | None], hashes: ContentHashes
) -> tuple[JsonObject, JsonObject]:
    """What decides a stage's output, and the local files in it: {dotted field: {path, sha256}}.

    upstream: stage name -> fingerprint, or None for a round that is not run: what was made of the first rounds alone is
    other work than what is made of all. A hub id stands for itself. Raises DataError for an unreadable file.
    """
    files: JsonObject = {}

    def visit(key: Key, mark: PathMark, text: str) -> JsonValue:
        path = local_path(text, mark)
        if path is None:
            return text
        digest = hashes.hash_path(path)
        is_code = path == code_file(text)
        files[".".join(map(str, key))] = {"path": _from_here(path) if is_code else text, "sha256": digest}
        if mark.named_images is not None:
            return {"sha256": digest, NAMED_IMAGES: hashes.hash_each(mark.named_images(path))}
        return {"class": text, "sha256": digest} if is_code else {"sha256": digest}

    labels = {"name", "seed", "type", *stage.references}
    fields = {name: value for name, value in output_fields(stage, visit).items() if name not in labels}
    inputs: JsonObject = {name: [upstream[ref] for ref in refs] for name, refs in stage.references.items()}
    body: JsonObject = {"type": stage.type, "version": stage.version, "seed": seed, "fields": fields, "inputs": inputs}
    shown = stage.references if stage.shows_names else stage.shows_names_of
    names: JsonObject = {name: list(refs) for name, refs in stage.references.items() if name in shown}
    if names:
        body["names"] = names
    return body, files


def _from_here(path: Path) -> str:
    """The path as a recipe in the working directory would write it."""
    here = Path.cwd()
    return f"./{path.relative_to(here).as_posix()}" if path.is_relative_to(here) else str(path)


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
    planner, planned = _Planner(recipe, directory, hashes), list[PlannedStage]()
    for stage in recipe.stages:
        planned.append(planner.planned(stage, planned, {item.name for item in planned if item.status != "skip"}))
    return planned


@dataclass(frozen=True)
class _Planner:
    """Plans one stage after the other."""

    recipe: Recipe
    directory: RunDirectory
    hashes: ContentHashes

    def planned(self, stage: Stage, before: Sequence[PlannedStage], waiting: Collection[str] = ()) -> PlannedStage:
        """One stage. before: all that stand before it; waiting: names of those among them that are not finished."""
        needless = _needless(self.recipe, stage.label, before, waiting)
        done = {item.name: item for item in before}
        # A round that is not run reads those before it as if they had been: its fingerprint is that of a run of all.
        upstream = {
            name: None if item.is_passed_over and not needless else item.fingerprint for name, item in done.items()
        }
        seed = self.recipe.seed_of(stage)
        body, files = identity(stage, seed, upstream, self.hashes)
        own = fingerprint(body)
        twin = next((item for item in before if item.fingerprint == own and not item.is_passed_over), None)
        folder = twin.folder if twin else self.directory.stage_folder(stage.label, own)
        config: JsonObject = {
            "stage": stage.label,
            "recipe": self.recipe.name,
            "fingerprint": own,
            "identity": body,
            "settings": stage.model_dump(mode="json"),
            "files": files,
            PLACES: places(own, files, (done[ref].config for refs in stage.references.values() for ref in refs)),
        }
        status, reason = _status(stage, self.directory, folder, config)
        redone = next((ref for refs in stage.references.values() for ref in refs if done[ref].is_redone), "")
        if redone and folder.is_dir():
            status, reason = "run", done_again(redone)
        is_redone = not needless and (bool(redone) or _is_unmet(stage, folder))
        is_kept = status == "skip" and not needless
        moved = moves(folder, config) if is_kept else {}
        is_moved = bool(moved) or (is_kept and was_cut_short(folder))
        reason = "; ".join([reason, *(f"{old} is at {new} now" for old, new in moved.items())])
        if twin:
            status, reason = "skip", f"the same work as {twin.name}"
        if needless:
            status, reason = "skip", needless
        inputs = {
            field: [(ref, done[ref].folder) for ref in refs if not done[ref].is_passed_over]
            for field, refs in stage.references.items()
        }
        found = stage.label, stage, seed, folder, status, reason, own, inputs, config
        return PlannedStage(*found, is_passed_over=bool(needless), is_moved=is_moved, is_redone=is_redone)


def _needless(recipe: Recipe, name: str, before: Iterable[PlannedStage], waiting: Collection[str] = ()) -> str:
    """Why a stage of a later round need not run; empty if it must. waiting: those before it that are not finished."""
    if recipe.stop is None or recipe.stop.round_of(name) < 2:
        return ""
    ran = {item.name: item.folder for item in before if not item.is_passed_over and item.name not in waiting}
    number = recipe.stop.round_of(name)
    if any(0 < recipe.stop.round_of(other) < number for other in waiting):
        return ""
    return recipe.stop.reason(name, recipe.stages, ran)


def _status(stage: Stage, directory: RunDirectory, folder: Path, config: JsonObject) -> tuple[Status, str]:
    outdated = why_outdated(folder)
    if outdated:
        return "run", outdated
    done = read_done(folder)
    if done is not None:
        wrong = damage(folder, done) or stage.unmet(done.facts)
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


def _is_unmet(stage: Stage, folder: Path) -> bool:
    """Whether the stage is finished with less than it asks for now."""
    done = read_done(folder)
    return done is not None and bool(stage.unmet(done.facts))


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
        has_work = any(item.status != "skip" for item in planned)
        has_moved = any(item.is_moved for item in planned)
        # Hashed as it is now, before it could be edited, and apart from the files of the user.
        origin: JsonObject = {
            "git": git_commit(recipe.path.parent) if recipe.path else None,
            "code": code_hashes(ContentHashes()) if has_work else {},
        }
        for item in planned:
            if item.is_moved:
                processes.first(partial(follow, item.folder, item.config))
            if item.status != "skip":
                item.stage.check()
        planner = _Planner(recipe, directory, hashes)
        for number, item in enumerate(planned, 1):
            item = planned[number - 1] = _as_it_stands(item, planner, planned[: number - 1])
            _say(screen, f"[{number}/{len(planned)}] {item.name}: {item.status} ({item.reason})")
            if item.status != "skip":
                seconds, facts = _run_stage(item, recipe, directory, hashes, origin)
                _say(screen, f"[{number}/{len(planned)}] {item.name}: done in {seconds:.1f} s -> {item.folder}")
                for line in facts.get("summary", ()):
                    _say(screen, f"  {line}")
        if processes.is_first():
            if has_work or has_moved or not describes(directory.folder / LOCK, recipe, planned):
                write_lock(recipe, planned, directory.folder)
            hashes.save()
    processes.leave()
    return planned


def _as_it_stands(item: PlannedStage, planner: _Planner, before: Sequence[PlannedStage]) -> PlannedStage:
    """The stage planned anew where rounds may be passed over: which are is known only when those before are done.

    Raises what `Stage.check` raises for a stage that was thought to be finished and is not.
    """
    if planner.recipe.stop is None:
        return item
    now = processes.first(lambda: planner.planned(item.stage, before))
    if item.status == "skip" and now.status != "skip":
        now.stage.check()
    return now


def _say(screen: Console, line: str) -> None:
    screen.print(line, markup=False, highlight=False, soft_wrap=True)


def _run_stage(
    item: PlannedStage, recipe: Recipe, directory: RunDirectory, hashes: ContentHashes, origin: JsonObject
) -> tuple[float, dict[str, Any]]:
    """Run one stage into its folder and mark it done; returns seconds and the stage's facts. origin: of the code."""
    started, clock = now_utc(), time.perf_counter()
    try:
        processes.first(lambda: _begin(item, directory))
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
            **origin,
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


def _begin(item: PlannedStage, directory: RunDirectory) -> None:
    """Ready the stage's folder. What was made from files that are replaced here stops being finished first."""
    if item.is_redone:
        mark_readers(directory, item.fingerprint, item.name)
    clear_outdated(item.folder)
    directory.begin(item.folder, item.config)


def _check_unchanged(item: PlannedStage, hashes: ContentHashes) -> None:
    """The fingerprint promises what went in; files edited while the stage ran would make it a lie."""
    before: Any = item.config["identity"]
    pairs = (
        (ref, before["inputs"][field][place])
        for field, refs in item.stage.references.items()
        for place, ref in enumerate(refs)
    )
    upstream = dict(pairs)
    body, _ = identity(item.stage, item.seed, upstream, hashes)
    if fingerprint(body) != item.fingerprint:
        raise RunError(f"stage {item.name}: a file it names was changed while it ran; run again without touching it.")
