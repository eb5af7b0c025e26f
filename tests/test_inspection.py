"""`t2i inspect` says what a run will see and take, before anything heavy is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_flow
import tiny_pairs
from PIL import Image
from typer.testing import CliRunner, Result

from t2i import cli
from t2i.families import load_family
from t2i.rundir import RunDirectory, read_done

RECIPE = """\
name: mine
model: MODEL
stages:
  - {type: caption, data: {type: folder, path: photographs}, captioner: {type: files}}
  - {type: filter, data_from: caption, require: [caption], max_aspect: 5}
  - type: train
    data_from: filter
    captions: {caption: 1}
    resolution: 32
    buckets: {step: 8, max_aspect: 2, upscale: true, unfit: drop}
    trained: {type: lora, rank: 2}
    optimizer: {learning_rate: 1e-3}
    loop: {steps: 30, batch_size: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe and a checkpoint, and photographs of which some do not fit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("T2I_RUNS", raising=False)
    tiny.write_photographs(tmp_path / "photographs", longer_side=64)
    for name, size in {"small": (20, 20), "strip": (120, 40), "thread": (240, 40)}.items():
        Image.new("RGB", size).save(tmp_path / f"photographs/{name}.png")
        (tmp_path / f"photographs/{name}.txt").write_text("a cat " * 20)
    Image.new("RGB", (64, 64)).save(tmp_path / "photographs/bare.png")
    shutil.copytree(tiny.sd1(), tmp_path / "model")
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("MODEL", "./model"))
    return tmp_path


def t2i(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def facts(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines() if ": " in line]
    return dict(line.split(": ", 1) for line in lines)


def test_inspect_names_every_image_that_is_dropped_or_enlarged_and_counts_the_rest(folder: Path) -> None:
    result = t2i("inspect", "mine.yaml")
    found = facts(result)
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert found["caption.images"] == "10"
    assert found["caption.without a caption"] == "1"
    assert "photographs/bare.png: no caption file bare.txt" in lines
    assert found["filter.dropped"] == "2"
    assert "photographs/thread.png (max_aspect: 240x40)" in lines
    assert "photographs/bare.png (require caption)" in lines
    assert found["train.images"] == "7"
    assert found["train.passes"] == str(round(30 / 7, 2))
    assert lines[lines.index("train.dropped: 1") + 1] == "photographs/strip.png"
    assert lines[lines.index("train.upscaled: 1") + 1] == "photographs/small.png"
    assert sum(int(value) for name, value in found.items() if name.startswith("train.images per bucket.")) == 7
    assert found["train.captions longer than the text encoder reads.text_encoder"] == "2 of 8"
    assert not (folder / "runs").exists()


def test_what_inspect_says_is_what_the_run_finds(folder: Path) -> None:
    said = facts(t2i("inspect", "mine.yaml"))
    assert t2i("run", "mine.yaml", "train.loop.steps=2").exit_code == 0
    [train] = [path for path in RunDirectory(folder / "runs", "mine").stage_folders() if "train" in path.name]
    done = read_done(train)
    assert done is not None
    found = done.facts
    assert said["train.trained parameters"] == str(found["trained_parameters"])
    assert {f"train.images per bucket.{name}": str(count) for name, count in found["images per bucket"].items()} == {  # type: ignore[union-attr]
        name: value for name, value in said.items() if name.startswith("train.images per bucket.")
    }
    estimated, measured = found["estimated"], found["measured"]
    assert isinstance(estimated, dict)
    assert isinstance(measured, dict)
    assert measured["cache_bytes"] == pytest.approx(estimated["cache_bytes"], rel=0.25)  # headers and keys come on top
    assert measured["checkpoint_bytes"] <= estimated["checkpoint_bytes"]
    assert measured["seconds_per_step"] > estimated["seconds_per_step"]  # type: ignore[operator]
    components = load_family("./model").pipeline.components
    trained_with = [components["unet"], components["text_encoder"]]
    assert estimated["frozen_parameters"] == sum(v.numel() for part in trained_with for v in part.parameters())
    # Finished stages are read from their records from then on.
    assert facts(t2i("inspect", "mine.yaml"))["train.images"] == "7"


def test_long_lists_go_to_a_file_as_a_whole(folder: Path) -> None:
    for number in range(12):
        Image.new("RGB", (20, 20)).save(folder / f"photographs/tiny{number:02}.png")
        (folder / f"photographs/tiny{number:02}.txt").write_text("a cat")
    result = t2i("inspect", "mine.yaml")
    path = Path("runs/mine/inspect/train.upscaled.txt")
    assert f"... and 3 more: {path}" in result.stdout
    assert len(path.read_text().splitlines()) == 13
    assert t2i("recipes", "prune", "mine.yaml").stdout.startswith("0 folders")


def test_inspect_loads_no_weights(folder: Path) -> None:
    said = facts(t2i("inspect", "mine.yaml"))
    for path in (folder / "model").rglob("*.safetensors"):
        # Whole by its header, and holes for tensors.
        size, header = path.stat().st_size, 8 + int.from_bytes(path.read_bytes()[:8], "little")
        with path.open("r+b") as file:
            file.truncate(header)
            file.truncate(size)
    again = facts(t2i("inspect", "mine.yaml"))
    assert again.pop("train.estimated time").startswith("at least ")
    assert said.pop("train.estimated time").startswith("at least ")
    assert again == said


@pytest.mark.parametrize("override", ["train.loop.batch_size=5", "train.resolution=36", "train.trained.targets=[to_w]"])
def test_inspect_refuses_what_the_run_would_refuse(folder: Path, override: str) -> None:
    inspected, ran = t2i("inspect", "mine.yaml", override), t2i("run", "mine.yaml", override)
    assert inspected.exit_code == ran.exit_code == 2
    assert inspected.stderr.splitlines()[-1] == ran.stderr.splitlines()[-1]


def test_sets_of_images_may_each_name_their_captions(folder: Path) -> None:
    own = ("train.captions={}", "train.datasets=[{captions: {caption: 1}}]")
    assert facts(t2i("inspect", "mine.yaml", *own))["train.images"] == "7"
    assert t2i("run", "mine.yaml", "train.loop.steps=1", *own).exit_code == 0


def test_inspect_names_a_model_that_cannot_be_had(folder: Path) -> None:
    result = t2i("inspect", "mine.yaml", "model=nobody/nothing")
    assert result.exit_code == 2
    assert "model 'nobody/nothing': neither a local folder nor to be had from the hub" in result.stderr


@pytest.mark.parametrize("model", [tiny.sdxl, tiny_flow.pixart, tiny_flow.sd3, tiny_flow.flux])
def test_a_probed_step_stands_beside_the_estimate(folder: Path, model: Callable[[], Path]) -> None:
    found = facts(t2i("inspect", "mine.yaml", "--probe", f"model={model()}"))
    assert found["train.estimated time"].startswith("at least ")
    assert found["train.one measured step"].endswith(" s, memory not measured without a GPU")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("kind", ["true", "selective"])
def test_gradient_checkpointing_shows_in_the_estimate_and_is_probed(folder: Path, kind: str) -> None:
    def activations(found: dict[str, str]) -> float:
        value, unit = found["train.estimated memory of a step"].rpartition("activations ")[2].split()
        return float(value) * {"KiB": 1, "MiB": 1024}[unit]

    size = ("train.loop.batch_size=1", "train.buckets=null", "filter.min_side=32")
    whole = facts(t2i("inspect", "mine.yaml", *size))
    spared = facts(t2i("inspect", "mine.yaml", "--probe", *size, f"train.speed.gradient_checkpointing={kind}"))
    assert activations(spared) < 0.9 * activations(whole)
    assert "train.one measured step" in spared


PAIRS = """\
name: pairs
model: MODEL
stages:
  - type: train
    pairs: {type: pairs, path: PAIRS}
    objective: {type: diffusion_dpo, beta: 2000}
    trained: {type: lora, rank: 2}
    optimizer: {learning_rate: 1e-3}
    loop: {steps: 2, batch_size: 2}
"""


@pytest.fixture
def pairs(folder: Path) -> Path:
    """A file of 8 pairs, of which one is a tie and the last has both images of the first; and a recipe."""
    path = tiny_pairs.write_pairs(folder / "made") / "pairs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["preference"] = 0.5
    rows[7] |= {name: rows[0][name] for name in ("prompt", "chosen", "rejected", "chosen_id", "rejected_id")}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs.yaml").write_text(PAIRS.replace("MODEL", "./model").replace("PAIRS", "made/pairs.jsonl"))
    return path


@pytest.mark.parametrize("trained", ["{type: lora, rank: 2}", "{type: full, components: [unet]}"])
def test_inspect_says_of_pairs_what_their_run_then_finds(folder: Path, pairs: Path, trained: str) -> None:
    override = f"train.trained={trained}"
    said = facts(t2i("inspect", "pairs.yaml", "--probe", override))
    assert (said["train.pairs"], said["train.ties left out"], said["train.passes"]) == ("7", "1", str(round(4 / 7, 2)))
    assert said["train.captions longer than the text encoder reads.text_encoder"] == "0 of 7"
    assert "train.one measured step" in said
    assert t2i("run", "pairs.yaml", override).exit_code == 0
    [train] = RunDirectory(folder / "runs", "pairs").stage_folders()
    done = read_done(train)
    assert done is not None
    estimated, measured = done.facts["estimated"], done.facts["measured"]
    assert isinstance(estimated, dict)
    assert isinstance(measured, dict)
    # Twelve images, for the seventh pair has those of the first; headers and keys come on top.
    assert estimated["cache_bytes"] == 12 * 2 * 4 * (4 * 16 * 16)
    assert measured["cache_bytes"] == pytest.approx(estimated["cache_bytes"], rel=0.25)
    assert measured["seconds_per_step"] > estimated["seconds_per_step"]  # type: ignore[operator]
    unet, text_encoder = (
        sum(value.numel() for value in load_family("./model").pipeline.components[name].parameters())
        for name in ("unet", "text_encoder")
    )
    # Of a whole denoiser the untrained copy is what is frozen.
    assert estimated["frozen_parameters"] == unet + text_encoder
    assert said["train.trained parameters"] == str(done.facts["trained_parameters"])


def test_inspect_knows_the_pairs_of_a_stage_once_it_has_run(folder: Path, pairs: Path) -> None:
    text = (folder / "pairs.yaml").read_text()
    made = f"  - {{type: pair, name: pairing, table: {{path: {pairs}}}}}\n"
    source = "pairs: {type: pairs, path: made/pairs.jsonl}"
    assert source in text
    (folder / "pairs.yaml").write_text(
        text.replace("stages:\n", "stages:\n" + made).replace(source, "pairs_from: pairing")
    )
    found = facts(t2i("inspect", "pairs.yaml"))
    assert found["train.pairs"] == "known once the stages before have run"
    assert "train.estimated memory of a step" in found
    assert t2i("run", "pairs.yaml").exit_code == 0
    assert facts(t2i("inspect", "pairs.yaml"))["train.pairs"] == "7"


def test_inspect_refuses_pairs_that_the_run_would_refuse(folder: Path, pairs: Path) -> None:
    override = "train.loop.batch_size=9"
    inspected, ran = t2i("inspect", "pairs.yaml", override), t2i("run", "pairs.yaml", override)
    assert inspected.exit_code == ran.exit_code == 2
    assert inspected.stderr.splitlines()[-1] == ran.stderr.splitlines()[-1]


def test_captions_that_a_model_is_to_write_are_not_judged(folder: Path) -> None:
    text = (folder / "mine.yaml").read_text().replace("require: [caption]", "require: [short]")
    files = "data: {type: folder, path: photographs}, captioner: {type: files}"
    shapes = "data: {type: shapes, count: 4}, captioner: {type: shapes, kind: short}"
    (folder / "mine.yaml").write_text(text.replace(files, shapes).replace("{caption: 1}", "{short: 1}"))
    found = facts(t2i("inspect", "mine.yaml"))
    assert (found["train.images"], found["train.images per bucket.32x32"]) == ("4", "4")
    assert not any("longer than the text encoder" in name for name in found)


def test_the_report_shows_the_estimate_beside_the_measurement(tmp_path: Path) -> None:
    from t2i.report.collect import _estimates

    numbers = {"memory_bytes": 3 * 2**30, "cache_bytes": 2048, "checkpoint_bytes": 10, "seconds_per_step": 0.5}
    measured = numbers | {"memory_bytes": None, "seconds_per_step": 0.75}
    (tmp_path / "done.json").write_text(json.dumps({"facts": {"estimated": numbers, "measured": measured}}))
    rows = {row.quantity: (row.estimated, row.measured) for row in _estimates("train", tmp_path)}
    assert rows["memory of a step"] == ("3.00 GiB", "n/a")
    assert rows["a step, at least"] == ("0.5 s", "0.75 s")
    (tmp_path / "done.json").write_text(json.dumps({"facts": {}}))
    assert _estimates("train", tmp_path) == []
