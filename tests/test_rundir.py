"""Run folders: nothing half-done looks finished, one run at a time, and disks that give out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from engine_stages import load
from rich.console import Console

from t2i.disk import disk_error
from t2i.engine import plan, run
from t2i.errors import DataError, RunError
from t2i.rundir import RunDirectory, damage, prune, read_done, read_json, unused_folders, write_json

TESTS = Path(__file__).parent
RECIPE = """
name: demo
seed: 3
stages:
  - {type: read, images: IMAGES}
  - {type: train, data_from: read, steps: 100}
"""


def silent() -> Console:
    return Console(quiet=True)


def statuses(folder: Path, *overrides: str, text: str = RECIPE) -> list[str]:
    return [f"{item.status}: {item.reason}" for item in plan(load(folder, text, *overrides), folder / "runs")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_stage_says_what_it_is_and_how_it_was_made(tmp_path: Path) -> None:
    planned = run(load(tmp_path, RECIPE), tmp_path / "runs", silent())
    folder = planned[1].folder
    assert folder == tmp_path / "runs" / "demo" / f"train-{planned[1].fingerprint}"
    config = json.loads((folder / "config.json").read_text())
    assert (config["stage"], config["settings"]["steps"], config["identity"]["seed"]) == ("train", 100, 3)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["packages"]["torch"].startswith("2.")
    assert provenance["inputs"] == {"read": planned[0].folder.name}
    assert (provenance["seed"], provenance["is_resumed"], provenance["processes"]) == (3, False, 1)
    source = json.loads((planned[0].folder / "provenance.json").read_text())["files"]["images"]
    assert source["path"] == str(tmp_path / "images")
    assert len(source["sha256"]) == 64
    done = read_done(folder)
    assert done is not None
    assert done.facts == {"steps": 100}
    assert set(done.files) == {"config.json", "provenance.json", "half.txt", "weights.txt"}
    assert damage(folder, done) == ""


def test_running_again_writes_nothing(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE)
    run(recipe, tmp_path / "runs", silent())
    folder = tmp_path / "runs" / "demo"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*-*/*")}
    assert {item.status for item in run(recipe, tmp_path / "runs", silent())} == {"skip"}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*-*/*")} == before


def test_an_interrupted_stage_is_resumed_and_finished_ones_are_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(load(tmp_path, RECIPE, "train.fail=interrupt"), tmp_path / "runs", silent())
    first, second = statuses(tmp_path)
    assert first.startswith("skip: finished")
    assert second == "resume: interrupted run found"
    [folder] = (tmp_path / "runs" / "demo").glob("train-*")
    (folder / ".weights.txt.123.tmp").write_text("half of a file that a killed run left")
    (folder / ".1f2e.draft.safetensors").write_text("an export that a killed run had not checked")
    planned = run(load(tmp_path, RECIPE), tmp_path / "runs", silent())
    assert planned[1].folder == folder
    assert not list(folder.glob(".*"))
    assert json.loads((folder / "provenance.json").read_text())["is_resumed"] is True


def test_an_interrupted_stage_that_was_renamed_says_what_it_is_called_now(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(load(tmp_path, RECIPE, "train.fail=interrupt"), tmp_path / "runs", silent())
    [folder] = (tmp_path / "runs" / "demo").glob("train-*")
    before = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", before | {"begun": "2026-01-01T00:00:00+00:00"})
    text = RECIPE.replace("{type: read,", "{type: read, name: photos,").replace("data_from: read", "data_from: photos")
    run(load(tmp_path, text.replace("{type: train,", "{type: train, name: last,")), tmp_path / "runs", silent())
    config = json.loads((folder / "config.json").read_text())
    assert (config["stage"], config["settings"]["data_from"]) == ("last", "photos")
    assert set(json.loads((folder / "provenance.json").read_text())["inputs"]) == {"photos"}
    assert (config["begun"], config["fingerprint"]) == ("2026-01-01T00:00:00+00:00", before["fingerprint"])


def test_a_stage_that_fails_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no images"):
        run(load(tmp_path, RECIPE), tmp_path / "runs", silent())
    assert statuses(tmp_path)[0] == "resume: interrupted run found"


@pytest.mark.parametrize(
    "text",
    [
        '{"finished": "20',
        '{"files": {}}',
        '{"finished": 20, "facts": {}, "files": {}}',
        '{"finished": "20", "facts": {}, "files": {"a": "b"}}',
    ],
)
def test_an_unreadable_done_marker_is_none(tmp_path: Path, text: str) -> None:
    planned = run(load(tmp_path, RECIPE), tmp_path / "runs", silent())
    (planned[0].folder / "done.json").write_text(text)
    assert read_done(planned[0].folder) is None
    assert statuses(tmp_path)[0] == "resume: interrupted run found"


def test_a_file_changed_while_its_stage_runs_is_noticed(tmp_path: Path) -> None:
    from engine_stages import STAGE_TYPES, Read

    from t2i.recipe import load_recipe

    class Meddler(Read):
        def run(self, context):
            facts = super().run(context)
            (Path(self.images) / "late.txt").write_text("late")
            return facts

    load(tmp_path, RECIPE)
    recipe = load_recipe(tmp_path / "demo.yaml", [], {**STAGE_TYPES, "read": Meddler})
    with pytest.raises(RunError, match="stage read: a file it names was changed while it ran"):
        run(recipe, tmp_path / "runs", silent())
    assert not list((tmp_path / "runs").rglob("done.json"))


HOLDER = """
import sys, time
from pathlib import Path
from t2i.rundir import RunDirectory
with RunDirectory(Path(sys.argv[1]), "demo"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_in_use_is_refused_and_free_again_after_sigkill(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"runs/demo: already in use by process {holder.pid} since 20"):
            run(load(tmp_path, RECIPE), root, silent())
        with pytest.raises(RunError, match="already in use"):
            prune(root, [root / "demo" / "train-0123456789abcdef"])
        holder.send_signal(signal.SIGKILL)
    run(load(tmp_path, RECIPE), root, silent())


def test_the_lock_is_free_after_a_run_and_after_an_error(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, "demo"):
        pass
    with pytest.raises(ZeroDivisionError), RunDirectory(tmp_path, "demo"):
        raise ZeroDivisionError
    with RunDirectory(tmp_path, "demo"):
        assert (tmp_path / "demo" / ".holder.json").exists()
    assert not (tmp_path / "demo" / ".holder.json").exists()


def test_a_run_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"runs/demo: the run folder cannot be written \(Not a directory\)"):
        run(load(tmp_path, RECIPE), tmp_path / "runs", silent())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_run_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o555)
    with pytest.raises(RunError, match=r"cannot be written \(Permission denied\)"):
        run(load(tmp_path, RECIPE), tmp_path / "runs", silent())


LIMITED = """
import resource, sys
from pathlib import Path
from engine_stages import load
from t2i.engine import run
from t2i.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
folder = Path(sys.argv[1])
text = "name: demo\\nstages: [{type: read, images: IMAGES}, {type: fill, size: 4000000}]"
try:
    run(load(folder, text), folder / "runs")
except RunError as error:
    print(error, file=sys.stderr)
"""


def test_a_file_that_does_not_fit_ends_the_run_and_keeps_what_is_finished(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert ended.stderr.startswith("disk full while writing ")
    assert ended.stderr.endswith("free space and run again: finished stages are kept.\n")
    text = "name: demo\nstages: [{type: read, images: IMAGES}, {type: fill, size: 4000000}]"
    first, second = statuses(tmp_path, text=text)
    assert first.startswith("skip")
    assert second == "resume: interrupted run found"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_found_under_other_errors() -> None:
    def write() -> None:
        try:
            with open("/dev/full", "wb", buffering=0) as file:
                file.write(b"x")
        except OSError as error:
            raise ValueError("could not save") from error

    with pytest.raises(ValueError, match="could not save") as caught:
        write()
    found = disk_error(caught.value, Path("runs/demo/train-0"))
    assert str(found) == (
        "disk full while writing runs/demo/train-0; free space and run again: finished stages are kept."
    )


def test_words_of_other_libraries_are_understood_and_other_errors_are_left_alone() -> None:
    folder = Path("runs/x")
    assert disk_error(RuntimeError("I/O error: No space left on device (os error 28)"), folder) is not None
    assert disk_error(RuntimeError("shapes do not match"), folder) is None
    read_only = disk_error(OSError(30, "Read-only file system", "runs/x/a.bin"), folder)
    assert str(read_only).startswith("runs/x/a.bin: Read-only file system; make it accessible")
    unreadable = DataError("a.png: cannot be read")
    unreadable.__cause__ = PermissionError(13, "Permission denied", "a.png")
    assert disk_error(unreadable, folder) is None, "the data error already says it"


def test_prune_finds_what_no_recipe_refers_to_and_touches_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run(load(tmp_path, RECIPE), root, silent())
    run(load(tmp_path, RECIPE, "train.steps=5"), root, silent())
    other = root / "demo" / "my-notes"
    other.mkdir()
    keep = {item.folder for item in plan(load(tmp_path, RECIPE), root)}
    [unused] = unused_folders(root, keep)
    assert json.loads((unused / "config.json").read_text())["settings"]["steps"] == 5
    before = {name: data for folder in keep for name, data in contents(folder).items()}
    prune(root, [unused])
    assert not unused.exists()
    assert other.exists()
    assert {name: data for folder in keep for name, data in contents(folder).items()} == before
    assert unused_folders(tmp_path / "nowhere", set()) == []


def test_names_that_are_no_utf8_come_back_as_they_were(tmp_path: Path) -> None:
    write_json(tmp_path / "lock.json", {"a\udcff.txt": "é"})
    assert read_json(tmp_path / "lock.json") == {"a\udcff.txt": "é"}
    assert "é" in (tmp_path / "lock.json").read_text(encoding="utf-8")


def test_a_link_to_a_stage_folder_is_not_pruned_and_stays_finished(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    first, second = (item.folder for item in run(load(tmp_path, RECIPE), root, silent()))
    elsewhere = first.rename(tmp_path / "elsewhere")
    first.symlink_to(elsewhere)
    with pytest.raises(RunError, match=rf"{first.name}: a link to {elsewhere}; nothing is deleted"):
        prune(root, [second, first])
    assert {item.status for item in plan(load(tmp_path, RECIPE), root)} == {"skip"}
