"""The merge stage and `t2i merge`: adapters of stages and files in, one adapter out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from pydantic import ValidationError
from safetensors.torch import load_file
from typer.testing import CliRunner

from t2i import cli
from t2i.errors import ConfigError
from t2i.export.factors import largest_error
from t2i.export.layouts import ModelLayers
from t2i.export.reading import read_adapter
from t2i.stages.merge import Merge


def stage_with_adapter(folder: Path, *, scale: float = 0.2) -> Path:
    tiny.write_adapter(folder / "adapter/pytorch_lora_weights.safetensors", scale=scale)
    return folder


def read(path: Path) -> Any:
    family = tiny.load_sd1()
    return read_adapter(path, ModelLayers.of(family.facts, family.pipeline)).adapter


@pytest.mark.parametrize("kind", ["linear", "cat", "svd", "factors"])
def test_a_stage_merged_with_itself_is_itself(tmp_path: Path, kind: str) -> None:
    one = stage_with_adapter(tmp_path / "one")
    file = one / "adapter/pytorch_lora_weights.safetensors"
    fields: dict[str, Any] = {"model": str(tiny.sd1()), "kind": kind, "adapters": [str(file)]}
    if kind == "svd":
        fields["rank"] = 4
    facts = tiny.run_stage(Merge, tmp_path / "merged", fields, {"weights_from": one})
    assert facts["merged"] == 2
    assert facts["relative_error"] < 1e-6
    merged = tmp_path / "merged/adapter/pytorch_lora_weights.safetensors"
    assert largest_error(read(file), read(merged)) <= 1e-6


def test_weights_by_module_are_searched_for_in_names(tmp_path: Path) -> None:
    one, two = stage_with_adapter(tmp_path / "one"), stage_with_adapter(tmp_path / "two", scale=0.4)
    path = "adapter/pytorch_lora_weights.safetensors"
    rules = [{"match": "^text_encoder", "weights": [0, 1]}]
    fields = {"model": str(tiny.sd1()), "weights": [1, 0], "modules": rules, "adapters": [str(two / path)]}
    tiny.run_stage(Merge, tmp_path / "merged", fields, {"weights_from": one})
    expected = {name: factors for name, factors in read(one / path).items() if name.startswith("unet")}
    expected |= {name: factors for name, factors in read(two / path).items() if name.startswith("text_encoder")}
    assert largest_error(expected, read(tmp_path / "merged" / path)) <= 1e-6


def test_weights_of_modules_that_no_adapter_has_are_refused(tmp_path: Path) -> None:
    one = stage_with_adapter(tmp_path / "one")
    fields = {"model": str(tiny.sd1()), "modules": [{"match": "lora_te", "weights": [0]}]}
    with pytest.raises(ConfigError, match=r"modules: 'lora_te' matches no module of the adapters; nearest: \w+\."):
        tiny.run_stage(Merge, tmp_path / "merged", fields, {"weights_from": one})


def test_weights_for_more_adapters_than_there_are_is_refused(tmp_path: Path) -> None:
    """As when a wildcard names three rounds and two were run."""
    one = stage_with_adapter(tmp_path / "one")
    fields: dict[str, Any] = {"model": str(tiny.sd1()), "weights_from": ["train/*"], "weights": [0.2, 0.3]}
    context = tiny.context(tmp_path / "merged", {"weights_from": one})
    with pytest.raises(ConfigError, match="weights: 2 of them for 1 adapters"):
        tiny.from_recipe(Merge, fields).run(context)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "nothing to merge"),
        ({"adapters": ["a"], "kind": "svd"}, "give a `rank`"),
        ({"adapters": ["a"], "rank": 3}, "keeps the whole"),
        ({"adapters": ["a", "b"], "weights": [1]}, "1 of them for 2"),
        ({"adapters": ["a"], "kind": "extract", "rank": 2}, "exactly one stage"),
        ({"adapters": ["a"], "modules": [{"match": "(", "weights": [1]}]}, "not a regular expression"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        tiny.from_recipe(Merge, fields)


def test_the_command_merges_resizes_and_extracts(tmp_path: Path) -> None:
    one = stage_with_adapter(tmp_path / "one")
    run = CliRunner()
    model, out, small, back = str(tiny.sd1()), *(tmp_path / f"{name}.safetensors" for name in ("out", "small", "back"))
    base = ["merge", str(one), str(one), "--model", model, "--output", str(out)]
    done = run.invoke(cli.app, base)
    assert (done.exit_code, done.stdout.partition("; ")[0].split(": ")[1]) == (
        0,
        "rank 4 to 4, 0 % of the change cut off",
    ), done.output
    cut = run.invoke(
        cli.app, ["merge", str(out), "--model", model, "--output", str(small), "--kind", "svd", "--rank", "2"]
    )
    assert cut.exit_code == 0, cut.output
    assert {value.shape[0] for key, value in load_file(small).items() if ".lora_A." in key} == {2}
    whole = run.invoke(
        cli.app, ["export", str(one), "--model", model, "--to", "merged", "--output", str(tmp_path / "whole")]
    )
    assert whole.exit_code == 0, whole.output
    again = [
        *("merge", str(tmp_path / "whole"), "--model", model, "--kind", "extract"),
        "--rank",
        "4",
        "--output",
        str(back),
    ]
    extracted = run.invoke(cli.app, again)
    assert extracted.exit_code == 0, extracted.output
    sent, found = read(one / "adapter/pytorch_lora_weights.safetensors"), read(back)
    assert sent.keys() == found.keys()
    # The merged weights were rounded to float32, and the change is the difference of two of them.
    assert all(
        (found[name].delta() - factors.delta()).norm() < 1e-4 * factors.delta().norm() for name, factors in sent.items()
    )
    base[-1] = str(tmp_path / "wrong.safetensors")
    for wrong in (["--kind", "nonsense"], ["--weights", "1"], ["--weights", "a,b"], ["--rank", "3"], ["--kind", "svd"]):
        refused = run.invoke(cli.app, [*base, *wrong])
        assert (refused.exit_code, "exists" in refused.output) == (2, False), refused.output
