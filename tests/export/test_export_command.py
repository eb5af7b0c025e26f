"""`t2i export` and `t2i merge` never replace what is there, and refuse what they would pass over."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_adapters import CHECKPOINTS, saved
from typer.testing import CliRunner, Result

from t2i import cli
from t2i.errors import ConfigError
from t2i.export.adapter import export_lora
from t2i.export.model import export_model
from t2i.stages.export import Export


def t2i(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_adapter(tmp_path_factory.mktemp("source") / "a.safetensors")


@pytest.mark.parametrize(("layout", "name"), [("peft", "mine"), ("merged", "mine"), ("kohya", "mine.safetensors")])
def test_what_has_the_name_of_the_output_is_kept(tmp_path: Path, source: Path, layout: str, name: str) -> None:
    output = tmp_path / name
    kept = output if output.suffix else output / "notes.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("a year of work")
    # The model does not exist: the name is looked at before anything is loaded.
    refused = t2i("export", source, "--model", "./nowhere", "--to", layout, "--output", output)
    assert refused.exit_code == 2
    assert refused.stderr == f"ConfigError: --output: {output} exists; move it away, or write elsewhere.\n"
    assert kept.read_text() == "a year of work"


def test_the_source_is_not_its_own_output(source: Path) -> None:
    before = source.read_bytes()
    for arguments in (("export", source, "--to", "kohya"), ("merge", source, "--kind", "svd", "--rank", 2)):
        refused = t2i(*arguments, "--model", tiny.sd1(), "--output", source)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.output
        assert f"{source} exists" in refused.stderr
    assert source.read_bytes() == before


@pytest.mark.parametrize("output", [".", "..", "dangling", "file/whole", "file/a/whole"])
def test_a_name_under_which_nothing_new_can_stand_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    refused = t2i("export", source, "--model", "./nowhere", "--to", "merged", "--output", output)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.output
    assert refused.stderr.startswith("ConfigError: --output: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


def test_a_refused_command_makes_no_folder(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "new/a.safetensors"
    assert t2i("export", source, "--model", "./nowhere", "--to", "kohya", "--output", output).exit_code == 2
    assert t2i("merge", source, "--model", "./nowhere", "--output", output).exit_code == 2
    assert not output.parent.exists()
    done = t2i("export", source, "--model", tiny.sd1(), "--to", "kohya", "--output", output)
    assert done.exit_code == 0, done.output
    assert output.is_file()


def test_the_functions_replace_no_folder_either(tmp_path: Path, source: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    for layout in ("peft", "merged"):
        with pytest.raises(ConfigError, match="mine: a folder of that name exists"):
            export_lora(source, tmp_path / "mine", tiny.load_sd1(), layout=layout, precision="fp32", metadata={})
    with pytest.raises(ConfigError, match="mine: a folder of that name exists"):
        export_model(tiny.sd1(), tmp_path / "mine", precision="fp32")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_an_export_stage_replaces_what_it_left_unfinished(tmp_path: Path, source: Path) -> None:
    train, model = tmp_path / "train", str(tiny.sd1())
    (train / "adapter").mkdir(parents=True)
    (train / "adapter/pytorch_lora_weights.safetensors").write_bytes(source.read_bytes())
    fields = {"model": model, "layouts": ["peft", "kohya", "merged"]}
    first = tiny.run_stage(Export, tmp_path / "export", fields, {"weights_from": train})
    (tmp_path / "export/test.peft/half").touch()
    (tmp_path / "export/test.merged/half").touch()
    assert tiny.run_stage(Export, tmp_path / "export", fields, {"weights_from": train}) == first
    assert not list((tmp_path / "export").rglob("half"))


def test_an_export_stage_of_a_whole_model_replaces_what_it_left_unfinished(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/model").symlink_to(tiny.sd1())
    for _ in range(2):
        facts = tiny.run_stage(Export, tmp_path / "export", {}, {"weights_from": tmp_path / "train"})
        assert facts["model"] == "model"
        assert not (tmp_path / "export/model/half").exists()
        (tmp_path / "export/model/half").touch()


def test_extract_takes_one_whole_model(tmp_path: Path, source: Path) -> None:
    arguments = ("merge", tiny.sd1(), "nowhere", "--model", tiny.sd1(), "--kind", "extract", "--rank", 2)
    refused = t2i(*arguments, "--output", tmp_path / "a.safetensors")
    assert refused.exit_code == 2, refused.output
    assert refused.stderr == "ConfigError: merge --kind extract: 2 models are given; expected one, a whole model.\n"


def test_files_to_merge_are_looked_for_before_the_model_is_loaded(tmp_path: Path, source: Path) -> None:
    refused = t2i("merge", source, "no.safetensors", "--model", "./nowhere", "--output", tmp_path / "a.safetensors")
    assert (refused.exit_code, refused.stderr) == (2, "DataError: no.safetensors: no such LoRA file.\n")


@pytest.mark.parametrize(
    ("layout", "rank", "complaint"),
    [
        ("diffusers", 0, "--dora-rank: 0 is given; expected at least 1."),
        ("comfyui", -3, "--dora-rank: -3 is given; expected at least 1."),
        ("merged", 2, "--dora-rank: layout merged takes the whole change of a DoRA; leave it out."),
    ],
)
def test_a_rank_of_a_dora_that_cannot_be_followed_is_refused(
    tmp_path: Path, source: Path, layout: str, rank: int, complaint: str
) -> None:
    output = tmp_path / ("whole" if layout == "merged" else "a.safetensors")
    arguments = ("export", source, "--model", "./nowhere", "--to", layout, "--dora-rank", rank)
    refused = t2i(*arguments, "--output", output)
    assert (refused.exit_code, refused.stderr) == (2, f"ConfigError: {complaint}\n")


def test_a_dora_is_converted_for_layouts_that_could_hold_it(tmp_path: Path) -> None:
    source, output = saved(tmp_path / "dora.safetensors", "sd1", "dora"), tmp_path / "lora.safetensors"
    arguments = ("export", source, "--model", CHECKPOINTS["sd1"](), "--to", "diffusers", "--dora-rank", 2)
    done = t2i(*arguments, "--output", output)
    assert (done.exit_code, "a LoRA in place of the DoRA" in done.stdout) == (0, True), done.output
    tensors = load_file(output)
    assert {value.shape[0] for key, value in tensors.items() if ".lora_A." in key} == {2}
    assert not [key for key in tensors if "magnitude" in key]


def test_a_stage_converts_a_dora_where_its_description_says_so(tmp_path: Path) -> None:
    (tmp_path / "train/adapter").mkdir(parents=True)
    saved(tmp_path / "train/adapter/pytorch_lora_weights.safetensors", "sd1", "dora")
    fields = {"model": str(CHECKPOINTS["sd1"]()), "layouts": ["diffusers", "kohya"], "dora_rank": 2}
    tiny.run_stage(Export, tmp_path / "export", fields, {"weights_from": tmp_path / "train"})
    for layout, holds_dora in (("diffusers", True), ("kohya", False)):
        keys = load_file(tmp_path / f"export/test.{layout}.safetensors")
        assert any("dora" in key or "magnitude" in key for key in keys) == holds_dora


def test_a_stage_refuses_a_rank_of_a_dora_that_nothing_would_be_converted_to() -> None:
    with pytest.raises(ValidationError, match=r"dora_rank: layouts diffusers, merged take a DoRA as it is"):
        tiny.from_recipe(Export, {"weights_from": "train", "layouts": ["diffusers", "merged"], "dora_rank": 4})
    tiny.from_recipe(Export, {"weights_from": "train", "layouts": ["diffusers", "comfyui"], "dora_rank": 4})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"layouts": ["kohya", "comfyui"]}, "layouts"),
        ({"layouts": ["kohya"], "dora_rank": 4}, "layouts, dora_rank"),
        ({"compare_from": "compare"}, "compare_from"),
    ],
)
def test_a_whole_model_refuses_fields_for_adapters(tmp_path: Path, fields: dict[str, object], named: str) -> None:
    (tmp_path / "train/model").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"stage export: {named}: train trained a whole model, .* leave"):
        tiny.run_stage(Export, tmp_path / "export", fields, {"weights_from": tmp_path / "train"})
    assert not list((tmp_path / "export").iterdir())


def test_a_recipe_says_where_an_export_of_a_whole_model_asks_for_what_adapters_have(tmp_path: Path) -> None:
    lines = [
        "name: whole",
        f"model: {tiny.sd1()}",
        "stages:",
        "  - type: train",
        "    data: {type: shapes, count: 4}",
        "    captions: {alt: 1}",
        "    trained: {type: full, components: [unet]}",
        "    optimizer: {learning_rate: 1e-3}",
        "    loop: {steps: 1, batch_size: 2}",
        "  - type: export",
        "    weights_from: train",
        "    layouts: [kohya]",
    ]
    recipe = tmp_path / "whole.yaml"
    recipe.write_text("\n".join(lines))
    refused = t2i("plan", recipe)
    assert refused.exit_code == 2
    assert f"{recipe}:12" in refused.stderr
    assert "layouts: train trained a whole model" in " ".join(refused.stderr.split())
    recipe.write_text("\n".join(lines).replace("{type: full, components: [unet]}", "{type: lora, rank: 2}"))
    assert t2i("plan", recipe).exit_code == 0
