"""One recipe from photographs to exported files by the command line; then again, changed, and without the toolkit."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from typer.testing import CliRunner

from t2i import cli

REPOSITORY = Path(__file__).parent.parent
RECIPE = """\
name: whole
model: MODEL
seed: 5
stages:
  - type: caption
    data: {type: folder, path: PHOTOGRAPHS}
    captioner: {type: files}
  - {type: filter, data_from: caption, require: [caption]}
  - type: train
    data_from: filter
    captions: {caption: 1}
    trained: {type: lora, rank: 4, text_encoder: true}
    optimizer: {learning_rate: 1e-2}
    loop: {steps: 4, batch_size: 2}
  - type: generate
    name: base
    prompts: &prompts {type: list, prompts: [a cat, red coffee, the moon]}
    images_per_prompt: 2
    sampling: &sampling {steps: 2, guidance_scale: 3, negative_prompt: a cup}
    batch_size: 4
  - type: generate
    name: tuned
    weights_from: train
    prompts: *prompts
    images_per_prompt: 2
    sampling: *sampling
    batch_size: 4
  - {type: score, name: base_scores, generations_from: base, scorers: [{name: brightness}]}
  - {type: score, name: tuned_scores, generations_from: tuned, scorers: [{name: brightness}]}
  - {type: compare, a_from: base_scores, b_from: tuned_scores, resamples: 1000}
  - {type: export, weights_from: train}
  - {type: report, compare_from: [compare], scores_from: [base_scores, tuned_scores], train_from: [train]}
"""
STAGES = ["caption", "filter", "train", "base", "tuned", "base_scores", "tuned_scores", "compare", "export", "report"]


@dataclass(frozen=True)
class Finished:
    """A finished run. recipe: its file; runs: what T2I_RUNS was set to."""

    recipe: Path
    runs: Path

    def t2i(self, command: str, *overrides: str) -> str:
        """Standard output of a command that succeeds."""
        result = CliRunner().invoke(cli.app, [command, str(self.recipe), *overrides], env={"T2I_RUNS": str(self.runs)})
        assert result.exit_code == 0, result.output
        return result.stdout

    def plan(self, *overrides: str) -> dict[str, str]:
        """Stage -> what is planned and why."""
        lines = (line.split(maxsplit=2) for line in self.t2i("plan", *overrides).splitlines())
        return {name: f"{status}: {reason}" for status, name, reason in lines}

    def stage(self, name: str) -> Path:
        [folder] = (self.runs / "whole").glob(f"{name}-*")
        return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("whole")
    photographs = tiny.write_photographs(folder / "photographs", count=4)
    text = RECIPE.replace("MODEL", str(tiny.sd1())).replace("PHOTOGRAPHS", str(photographs))
    (folder / "whole.yaml").write_text(text)
    whole = Finished(folder / "whole.yaml", folder / "elsewhere")
    printed = whole.t2i("run")
    begun = [line for line in printed.splitlines() if line.endswith(": run (first run)")]
    assert begun == [f"[{number}/10] {name}: run (first run)" for number, name in enumerate(STAGES, 1)]
    return whole


def test_runs_are_kept_where_the_environment_says(finished: Finished) -> None:
    assert sorted(path.name.rpartition("-")[0] for path in (finished.runs / "whole").glob("*-*")) == sorted(STAGES)
    assert [path.name for path in finished.recipe.parent.iterdir() if path.is_dir()].count("runs") == 0


AGAIN = """
import sys
from t2i.cli import app
try:
    app(["run", sys.argv[1]])
finally:
    print("heavy:", sorted({"torch", "diffusers", "transformers", "scipy"} & set(sys.modules)))
"""


def test_running_again_skips_every_stage_at_once(finished: Finished) -> None:
    environment = os.environ | {"T2I_RUNS": str(finished.runs)}
    command = [sys.executable, "-c", AGAIN, str(finished.recipe)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert [line.split(": ")[1].split()[0] for line in ended.stdout.splitlines()[:-1]] == ["skip"] * 10
    assert ended.stdout.splitlines()[-1] == "heavy: []"
    # Processor time: what a person waits on an idle machine, whatever else this one is doing.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_plan_names_the_changed_field_and_all_that_follows(finished: Finished) -> None:
    planned = finished.plan("train.loop.steps=6")
    assert planned["train"] == "run: loop.steps: 4 -> 6"
    assert planned["tuned"] == planned["export"] == "run: input train changed"
    assert planned["tuned_scores"] == "run: input tuned changed"
    assert planned["compare"] == "run: input tuned_scores changed"
    assert planned["report"] == "run: input compare changed; input tuned_scores changed; input train changed"
    skipped = [name for name, what in planned.items() if what.startswith("skip: finished")]
    assert skipped == ["caption", "filter", "base", "base_scores"]


def test_plan_names_a_changed_file(finished: Finished, tmp_path: Path) -> None:
    other = tiny.write_photographs(tmp_path / "photographs", count=3)
    assert finished.plan(f"caption.data.path={other}")["caption"].startswith("run: data.path: ")
    same = tiny.write_photographs(tmp_path / "same", count=4)
    assert {what.split(":")[0] for what in finished.plan(f"caption.data.path={same}").values()} == {"skip"}


def test_a_changed_field_runs_its_stage_and_what_follows(finished: Finished) -> None:
    folders = {name: finished.stage(name) for name in STAGES}
    before = {path: path.stat().st_mtime_ns for folder in folders.values() for path in folder.rglob("*")}
    change = "compare.level=0.9"
    assert finished.plan(change)["compare"] == "run: level: 0.95 -> 0.9"
    printed = finished.t2i("run", change)
    assert [line.split()[1] for line in printed.splitlines() if ": run (" in line] == ["compare:", "report:"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # Both are kept; going back costs nothing.
    assert {what.split(":")[0] for what in finished.plan().values()} == {"skip"}
    for name in ("compare", "report"):
        [new] = set((finished.runs / "whole").glob(f"{name}-*")) - {folders[name]}
        if name == "report":
            page = (new / "report.html").read_text()
            assert page.count("<tr><td>compare</td>") == 1, "the other comparison is none of this report's"
        shutil.rmtree(new)


def test_fields_that_only_change_speed_change_nothing(finished: Finished) -> None:
    changes = ("train.loop.workers=3", "train.loop.checkpoint_every=1", "train.loop.log_every=1")
    more = ("train.loop.micro_batch_size=1", "train.loop.keep_checkpoints=9")
    assert {what.split(":")[0] for what in finished.plan(*changes, *more).values()} == {"skip"}


def test_plain_diffusers_paints_the_same_pixels(finished: Finished) -> None:
    from diffusers import StableDiffusionPipeline

    generated = finished.stage("tuned")
    rows = [json.loads(line) for line in (generated / "generations.jsonl").read_text().splitlines()]
    record = json.loads((generated / "sampling.json").read_text())
    pipeline: Any = StableDiffusionPipeline.from_pretrained(record["model"])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(finished.stage("export")), weight_name="whole.diffusers.safetensors")
    assert len(rows) == 6
    for start in range(0, len(rows), record["batch_size"]):
        batch = rows[start : start + record["batch_size"]]
        images = pipeline(
            prompt=[row["prompt"] for row in batch],
            negative_prompt=[record["sampling"]["negative_prompt"]] * len(batch),
            generator=[torch.Generator("cpu").manual_seed(row["seed"]) for row in batch],
            num_inference_steps=record["sampling"]["steps"],
            guidance_scale=record["sampling"]["guidance_scale"],
        ).images
        for row, image in zip(batch, images, strict=True):
            with Image.open(generated / row["image"]) as file:
                assert np.array_equal(np.asarray(file), np.asarray(image)), row
