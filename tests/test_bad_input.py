"""Whatever a person gets wrong: one clear message, the right exit code, and nothing unfinished that looks finished."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner, Result

from t2i import cli
from t2i.rundir import RunDirectory, damage, read_done

RECIPE = """\
name: bad
model: MODEL
seed: 1
stages:
  - type: caption
    data: {type: folder, path: photographs}
    captioner: {type: files}
    max_refused: 0
  - {type: filter, data_from: caption, require: [caption]}
  - type: train
    data_from: filter
    captions: {caption: 1}
    resolution: 32
    trained: {type: lora, rank: 2}
    optimizer: {learning_rate: 1e-3}
    loop: {steps: 2, batch_size: 2, checkpoint_every: 1}
  - type: generate
    weights_from: train
    prompts: {type: list, prompts: [a cat]}
    sampling: {steps: 1, guidance_scale: 1}
  - type: score
    generations_from: generate
    scorers: [{name: brightness}]
"""
STAGES = ("caption", "filter", "train", "generate", "score")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe that works, and three photographs with captions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("T2I_RUNS", raising=False)
    tiny.write_photographs(tmp_path / "photographs", count=3, longer_side=48)
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("MODEL", str(tiny.sd1())))
    return tmp_path


def t2i(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def done_stages(folder: Path) -> list[str]:
    """Stages marked done, in order; each is whole."""
    found = {}
    for path in RunDirectory(folder / "runs", "bad").stage_folders():
        done = read_done(path)
        if done is not None:
            assert damage(path, done) == ""
            found[path.name.rpartition("-")[0]] = path
    return [name for name in STAGES if name in found]


def message(result: Result) -> str:
    """What a person reads at the end, without progress bars."""
    assert "Traceback" not in result.output
    kinds = ("ConfigError:", "DataError:", "ModelError:", "MissingDependencyError:", "RunError:")
    lines = result.stderr.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(kinds)]
    assert len(starts) == 1, f"not one message:\n{result.output}"
    return "\n".join(lines[starts[0] :])


# What is wrong in the recipe or the command, told before anything runs. Case -> overrides, parts of the message.
WRONG_RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown key": ("train.loop.stepz=1", ("train.loop.stepz: unknown key 'stepz'; did you mean 'steps'?",)),
    "unknown stage type": ("score.type=scor", ("unknown stage type 'scor'; did you mean 'score'?",)),
    "wrong type": ("train.loop.steps=many", ("train.loop.steps: ", "integer", "(got 'many')")),
    "out of range": ("train.caption_dropout=1.5", ("train.caption_dropout: ", "less than or equal to 1 (got 1.5)")),
    "later stage": ("filter.data_from=train", ("stage 'train' comes later; move it before 'filter'",)),
    "no such stage": ("filter.data_from=captoin", ("no stage 'captoin'; did you mean 'caption'?",)),
    "wrong kind of stage": ("score.generations_from=train", ("stage 'train' produces weights, expected generations",)),
    "missing folder": ("caption.data.path=nowhere", ("caption.data.path: no file or folder 'nowhere'",)),
    "missing model folder": ("model=./nowhere", ("model: no file or folder './nowhere'",)),
    "missing LoRA file": (
        "generate.weights_from=null generate.adapter=a.safetensors",
        ("generate.adapter: no file or folder 'a.safetensors'",),
    ),
    "two weights": ("generate.adapter=bad.yaml", ("generate: ", "weights_from", "adapter")),
    "rank 0": ("train.trained.rank=0", ("train.trained.rank: ", "greater than or equal to 1 (got 0)")),
    "no prompts": ("generate.prompts.prompts=[]", ("generate.prompts.prompts: ", "at least 1 item")),
    "unknown scorer": ("score.scorers.0.name=brightnes", ("unknown scorer 'brightnes'; did you mean 'brightness'?",)),
    "bad expression": ("filter.drop_matching='('", ("filter.drop_matching: not a regular expression",)),
    "width not a multiple of 8": (
        "generate.sampling.width=30",
        ("generate.sampling.width: ", "multiple of 8 (got 30)"),
    ),
    "no model": ("model=null", ("train: no model; set `model` here or at the top of the recipe",)),
    "half precision": (
        "train.loop.precision=fp16",
        ("train.loop.precision: unknown value 'fp16'; did you mean 'bf16'?",),
    ),
    "rank 0 of some modules": (
        'train.trained.modules=[{"match":"to_q","rank":0}]',
        ("train.trained.modules.0.rank: ", "greater than or equal to 1 (got 0)"),
    ),
    "uneven batch": ("train.loop.micro_batch_size=3", ("batch_size 2", "micro_batch_size 3")),
}


@pytest.mark.parametrize("case", WRONG_RECIPES)
def test_a_wrong_recipe_is_refused_before_anything_runs(folder: Path, case: str) -> None:
    overrides, fragments = WRONG_RECIPES[case]
    result = t2i("run", "bad.yaml", *overrides.split())
    assert result.exit_code == 2, result.output
    # What concerns several keys is placed at the stage that holds them.
    assert message(result).startswith(
        (f"ConfigError: command line: {overrides.split()[-1]}  ", "ConfigError: bad.yaml:1")
    )
    for fragment in fragments:
        assert fragment in message(result)
    assert not (folder / "runs").exists()


def test_a_mistake_in_the_file_is_reported_with_its_line_and_all_at_once(folder: Path) -> None:
    text = (folder / "bad.yaml").read_text()
    (folder / "bad.yaml").write_text(text.replace("steps: 2,", "steps: two,").replace("[a cat]", "[a cat], promts: 1"))
    result = t2i("plan", "bad.yaml")
    assert result.exit_code == 2
    heading, first, second = message(result).splitlines()
    assert heading == "ConfigError:"
    assert first.startswith("bad.yaml:16  train.loop.steps: ")
    assert second == "bad.yaml:19  generate.prompts.promts: unknown key 'promts'; did you mean 'prompts'?"


@dataclass(frozen=True)
class Trouble:
    """Something wrong with the files or the model, found when a stage runs."""

    arrange: Callable[[Path], object]
    """Makes it so; returns an override, several, or None."""
    fragments: tuple[str, ...]
    finished: tuple[str, ...] = ()
    """Stages that are done and stay so."""


def empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir()
    return "caption.data.path=empty"


def unreadable_images(folder: Path) -> None:
    (folder / "photographs/coffee.png").write_bytes(b"no image at all")
    whole = (folder / "photographs/chelsea.png").read_bytes()
    (folder / "photographs/chelsea.png").write_bytes(whole[: len(whole) // 2])


def missing_image(folder: Path) -> str:
    (folder / "records.jsonl").write_text('{"id": "a", "image": "gone.png", "width": 9, "height": 9}')
    # Captions come with the records, or from a model: files beside the images are not watched.
    recipe = folder / "bad.yaml"
    recipe.write_text(recipe.read_text().replace("{type: files}", "{type: shapes, kind: dense}"))
    return "caption.data={type: records, path: records.jsonl}"


def broken_model(component: str) -> Callable[[Path], str]:
    def arrange(folder: Path) -> str:
        shutil.copytree(tiny.sd1(), folder / "model")
        [weights] = (folder / "model" / component).glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1000])
        return "model=./model"

    return arrange


def other_pipeline(folder: Path) -> str:
    shutil.copytree(tiny.sd1(), folder / "model")
    index = folder / "model/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "KandinskyPipeline"}))
    return "model=./model"


def pickled_file(folder: Path) -> str:
    import torch

    torch.save({"state_dict": {"weight": torch.zeros(2)}}, folder / "model.ckpt")
    return "model=./model.ckpt"


def pickled_component(folder: Path) -> str:
    import torch

    shutil.copytree(tiny.sd1(), folder / "model")
    (folder / "model/unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2)}, folder / "model/unet/diffusion_pytorch_model.bin")
    return "model=./model"


def no_captions(folder: Path) -> None:
    for path in (folder / "photographs").glob("*.txt"):
        path.unlink()


def one_tall_image(folder: Path) -> str:
    from PIL import Image

    Image.new("RGB", (40, 80)).save(folder / "photographs/tall.png")
    (folder / "photographs/tall.txt").write_text("a cat")
    return "train.buckets={step: 8, max_aspect: 3, upscale: true}"


def empty_prompts(folder: Path) -> str:
    (folder / "prompts.txt").write_text("\n \n")
    return "generate.prompts={type: file, path: prompts.txt}"


CAPTIONED = ("caption", "filter")
TROUBLES: dict[str, Trouble] = {
    "empty folder": Trouble(empty_folder, ("empty: no image found; known endings: ",)),
    "unreadable images": Trouble(
        unreadable_images,
        ("photographs/coffee.png: cannot be read as an image", "photographs/chelsea.png: cannot be read as an image"),
    ),
    "records without their images": Trouble(
        missing_image, ("records.jsonl: 1 of 1 images are missing, the first is ", "gone.png")
    ),
    "image without caption": Trouble(
        lambda folder: (folder / "photographs/coffee.txt").unlink(),
        ("1 of 3 images got no caption", "photographs/coffee.png: no caption file coffee.txt"),
    ),
    "caption without image": Trouble(
        lambda folder: (folder / "photographs/coffee.png").unlink(),
        ("1 caption files have no image of ", "photographs/coffee.txt; rename or remove"),
    ),
    "empty caption": Trouble(
        lambda folder: (folder / "photographs/coffee.txt").write_text("\n") and None,
        ("photographs/coffee.png: coffee.txt is empty",),
    ),
    "caption of several lines": Trouble(
        lambda folder: (folder / "photographs/coffee.txt").write_text("a\nb\n") and None,
        ("photographs/coffee.png: ", "coffee.txt: 2 lines"),
    ),
    "caption that is no text": Trouble(
        lambda folder: (folder / "photographs/coffee.txt").write_bytes(b"\xff\xfe\x00") and None,
        ("photographs/coffee.png: ", "photographs/coffee.txt: UTF-16 text; save it as UTF-8"),
    ),
    "no captions at all": Trouble(
        no_captions,
        (
            "3 of 3 images got no caption",
            "astronaut.png: no caption file astronaut.txt",
            "chelsea.png: no caption file chelsea.txt",
            "coffee.png: no caption file coffee.txt",
        ),
    ),
    "batch larger than a bucket": Trouble(
        one_tall_image,
        ("a batch of 2 is larger than the number of images in 2 buckets: 24x40 (1), ", "Lower loop.batch_size"),
        CAPTIONED,
    ),
    "all images dropped": Trouble(
        lambda folder: "filter.min_side=1000",
        ("all 3 images were dropped", "'min_side': 3", "dropped.jsonl"),
        ("caption",),
    ),
    "image smaller than the resolution": Trouble(
        lambda folder: "train.resolution=48",
        ("photographs/", "images have less than the 48x48 pixels to train on", "min_side"),
        CAPTIONED,
    ),
    "resolution not a multiple": Trouble(
        lambda folder: "train.resolution=30", ("resolution: 30 is not a multiple of 4",)
    ),
    "bucket step not a multiple": Trouble(
        lambda folder: "train.buckets={step: 2}", ("buckets.step: 2 is not a multiple of 4, which this model needs",)
    ),
    "pattern that matches no module": Trouble(
        lambda folder: "train.trained.modules=[{match: to_w}]",
        ("trained.modules: 'to_w' matches no layer of unet; nearest: ", "to_"),
    ),
    "noise setting of another model": Trouble(
        lambda folder: ("train.objective={zero_terminal_snr: true}", "generate.sampling.zero_terminal_snr=true"),
        ("zero_terminal_snr: the model predicts epsilon", "needs a v_prediction checkpoint"),
    ),
    "pickled checkpoint": Trouble(
        pickled_file,
        ("model.ckpt: a pickled checkpoint, which may run code", "python -m t2i.families.unpickle model.ckpt"),
    ),
    "pickled component": Trouble(
        pickled_component,
        ("model.bin: a pickled checkpoint", "python -m t2i.families.unpickle diffusion_pytorch_model.bin"),
    ),
    "unknown LoRA target": Trouble(
        lambda folder: "train.trained.targets=[to_q, to_w]",
        ("LoRA targets ['to_w'] do not name layers of unet; nearest: to_v; known: ", "to_k"),
    ),
    "unknown caption kind": Trouble(
        lambda folder: "train.captions={dense: 1}", ("3 of 3 images have no caption of kind 'dense'",), CAPTIONED
    ),
    "folder that is no model": Trouble(
        lambda folder: "model=./photographs",
        ("photographs: no model_index.json; expected a folder in diffusers layout",),
    ),
    "model that is not to be had": Trouble(
        lambda folder: "model=nobody/nothing",
        ("model 'nobody/nothing': neither a local folder nor to be had from the hub",),
    ),
    "pipeline of another kind": Trouble(
        other_pipeline, ("pipeline class 'KandinskyPipeline' is not supported; supported: ",)
    ),
    "truncated denoiser": Trouble(broken_model("unet"), ("model.safetensors: truncated",)),
    "truncated text encoder": Trouble(broken_model("text_encoder"), ("model.safetensors: truncated",)),
    "truncated autoencoder": Trouble(broken_model("vae"), ("model.safetensors: truncated",)),
    "empty prompts file": Trouble(empty_prompts, ("prompts.txt: no prompt",)),
}


@pytest.mark.parametrize("case", TROUBLES)
def test_trouble_with_files_is_one_message_and_keeps_what_is_finished(folder: Path, case: str) -> None:
    trouble = TROUBLES[case]
    override = trouble.arrange(folder)
    arguments = [override] if isinstance(override, str) else override if isinstance(override, tuple) else []
    result = t2i("run", "bad.yaml", *arguments)
    assert result.exit_code == 2, result.output
    for fragment in trouble.fragments:
        assert fragment in message(result)
    assert done_stages(folder) == list(trouble.finished)
    planned = [line.split()[:2] for line in t2i("plan", "bad.yaml", *arguments).stdout.splitlines()]
    assert [name for status, name in planned if status == "skip"] == list(trouble.finished)


def test_after_the_trouble_is_mended_the_run_goes_on(folder: Path) -> None:
    assert t2i("run", "bad.yaml", "train.resolution=48").exit_code == 2
    mended = t2i("run", "bad.yaml")
    assert mended.exit_code == 0, mended.output
    assert "[2/5] filter: skip (finished 20" in mended.stdout
    assert "[3/5] train: run (resolution: 48 -> 32)" in mended.stdout
    assert done_stages(folder) == list(STAGES)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file can grow beyond `size` bytes, for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "finished"),
    [(800, ()), (12_000, CAPTIONED), (30_000, CAPTIONED)],
    ids=["config", "latents", "optimizer"],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(
    folder: Path, size: int, finished: tuple[str, ...]
) -> None:
    with largest_file(size):
        result = t2i("run", "bad.yaml")
    assert result.exit_code == 1, result.output
    assert message(result).startswith("RunError: disk full while writing ")
    assert message(result).endswith("free space and run again: finished stages are kept.")
    assert done_stages(folder) == list(finished)
    assert t2i("run", "bad.yaml").exit_code == 0
    assert done_stages(folder) == list(STAGES)
    assert not list((folder / "runs").rglob("*.tmp"))


def test_a_run_folder_that_is_a_file_is_refused(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs/bad").write_text("a file")
    result = t2i("run", "bad.yaml")
    assert result.exit_code == 1
    assert message(result).startswith("RunError: runs/bad: the run folder cannot be written")
    assert (folder / "runs/bad").read_text() == "a file"


def test_a_run_folder_in_use_is_refused(folder: Path) -> None:
    with RunDirectory(folder / "runs", "bad"):
        result = t2i("run", "bad.yaml")
        assert result.exit_code == 1
        assert message(result).startswith(f"RunError: runs/bad: already in use by process {os.getpid()} since 20")
        assert t2i("plan", "bad.yaml").exit_code == 0, "looking is always allowed"
    assert done_stages(folder) == []


@contextlib.contextmanager
def not_root() -> Iterator[None]:
    """Root may write anywhere; be nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everyone may look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        monkeypatch.chdir(name)
        yield Path(name)


def test_a_read_only_run_folder_is_refused(open_folder: Path) -> None:
    tiny.write_photographs(open_folder / "photographs", count=1)
    text = RECIPE.replace("MODEL", "org/model")
    (open_folder / "bad.yaml").write_text(text)
    (open_folder / "runs").mkdir(mode=0o555)
    with not_root():
        result = t2i("run", "bad.yaml")
    assert result.exit_code == 1, result.output
    assert message(result).startswith("RunError: runs/bad: the run folder cannot be written (Permission denied)")
    assert not list((open_folder / "runs").iterdir())


def test_a_broken_cache_of_hashes_costs_time_only(folder: Path) -> None:
    (folder / "runs").mkdir()
    for text in ("[]", "{", '{"a": [1]}'):
        (folder / "runs/.hashes.json").write_text(text)
        assert t2i("plan", "bad.yaml").exit_code == 0
