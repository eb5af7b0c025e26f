"""What a lock says of the inputs of a stage beyond one hash each: the files of a folder, the commits of hub models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from t2i.config import Key, PathMark, output_fields
from t2i.resources import ContentHashes, local_path

if TYPE_CHECKING:
    from t2i.stages.base import Stage

LISTED = 10_000
"""Files of a folder that a lock lists, at most: about 1 MB. Of a larger folder the lock holds one hash of the whole."""
_SHOWN = 5
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def contents(files: Mapping[str, Any], hashes: ContentHashes) -> dict[str, JsonValue]:
    """For every folder among a stage's files: relative name -> SHA-256. A folder that changed since is left out."""
    found: dict[str, JsonValue] = {}
    for key, file in files.items():
        path = local_path(file["path"], PathMark(may_be_hub_id=False))
        if path is not None and path.is_dir() and hashes.hash_path(path) == file["sha256"]:
            listed = hashes.hash_files(path)
            if len(listed) <= LISTED:
                found[key] = dict(listed)
    return found


def what_changed(path: Path, listed: Mapping[str, str] | None, hashes: ContentHashes) -> str:
    """Which files of a folder are other than listed, in brackets; empty for a file.

    listed: relative name -> SHA-256; None where the lock has no list.
    """
    if not path.is_dir():
        return ""
    if listed is None:
        return " (a file was added, removed or changed; the lock lists no single files of it)"
    here = hashes.hash_files(path)
    changes = [f"{name} was removed" for name in sorted(listed.keys() - here.keys())]
    changes += [f"{name} was added" for name in sorted(here.keys() - listed.keys())]
    changes += [f"{name} has changed" for name in sorted(here.keys() & listed.keys()) if here[name] != listed[name]]
    more = [f"and {len(changes) - _SHOWN} more"] if len(changes) > _SHOWN else []
    return f" ({', '.join([*changes[:_SHOWN], *more])})"


def hub_commits(stage: Stage, folder: Path | None = None) -> dict[str, JsonValue]:
    """For every field that names a hub model: its id, revision, and the commit that this is in the hub's local cache.

    The commit is null where the cache has none. A data set is streamed past the cache: its commit is the one that the
    stage's own records say, in its folder. Reads no network.
    """
    found: dict[str, JsonValue] = {}
    settings = stage.model_dump(mode="json")

    def visit(key: Key, mark: PathMark, text: str) -> JsonValue:
        if local_path(text, mark) is None and _HUB_ID.fullmatch(text):
            around: Any = settings
            for part in key[:-1]:
                around = around[part]
            revision = around.get("revision")
            if around.get("type") == "hub":
                entry = {"data": text, "revision": revision, "commit": _commit_in_records(text, folder)}
            else:
                entry = {"model": text, "revision": revision, "commit": commit_of(text, revision)}
            found[".".join(map(str, key))] = entry
        return text

    output_fields(stage, visit)
    return found


def _commit_in_records(name: str, folder: Path | None) -> str | None:
    """Commit of a data set that the first record of a caption stage comes from."""
    from t2i.data.sources import RECORDS_FILE
    from t2i.records import CaptionedImage, read_jsonl

    if folder is None or not (folder / RECORDS_FILE).is_file():
        return None
    first = next(read_jsonl(folder / RECORDS_FILE, CaptionedImage), None)
    dataset, _, commit = first.origin.dataset.rpartition("@") if first and first.origin else ("", "", "")
    return commit if dataset == name else None


def commit_of(model: str, revision: str | None) -> str | None:
    """Commit that a revision of a hub model is in the hub's local cache; None if it is not there."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision if (folder / "snapshots" / revision).is_dir() else None
    reference = folder / "refs" / (revision or "main")
    if ".." in reference.parts or not reference.is_file():
        return None
    commit = reference.read_text(encoding="utf-8").strip()
    return commit if (folder / "snapshots" / commit).is_dir() else None


def commit_mismatches(label: str, locked: Mapping[str, Any]) -> Iterator[str]:
    """Hub models of a stage that are another commit here than in its lock, one line each."""
    for key, entry in locked.items():
        revision, there = entry["revision"], entry["commit"]
        if "data" in entry:
            yield from _data_mismatch(f"{label}.{key}", entry["data"], revision, there)
            continue
        model, here = entry["model"], commit_of(entry["model"], revision)
        is_pinned = here is None and revision == there
        if here == there or is_pinned:
            continue
        found = f"commit {here} here" if here else f"not in the hub's cache here; get it with --revision {there}"
        yield f"{label}.{key}: {model} at {revision or 'main'} is commit {there} in the lock, {found}"


def _data_mismatch(where: str, name: str, revision: str | None, there: str | None) -> Iterator[str]:
    """A data set of the hub that is another commit now, or that cannot be asked for its commit; asks the hub."""
    from t2i.data.formats.hub import commit_of_data
    from t2i.errors import DataError

    if there is not None and revision == there:
        return
    try:
        here = commit_of_data(name, revision)
    except DataError as error:
        yield f"{where}: {error}"
        return
    if here != there:
        yield f"{where}: data set {name} at {revision or 'main'} is commit {there} in the lock, commit {here} here"
