"""Generating from prompts that are written out first: originals kept, answers kept, both arms alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_flow
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from pydantic import ValidationError

from t2i import commands
from t2i.captioners.chat import EndpointModel
from t2i.errors import ConfigError, DataError
from t2i.families import load_family
from t2i.records import ExpandedPrompt, GeneratedImage, ScoredImage, read_jsonl, write_jsonl
from t2i.stages.compare import Compare
from t2i.stages.generate import Generate
from t2i.stages.score import Score

sys.path.append(str(Path(__file__).parents[1] / "captioners"))
from stub_server import KEY, Fault, Stub, serve

PROMPTS = {"type": "list", "prompts": ["a red circle", "a blue star above a red circle"]}
SHAPES = {"type": "shapes"}


def run(folder: Path, inputs: dict[str, Path] | None = None, *, seed: int = 7, **fields: object) -> dict[str, Any]:
    defaults = {"model": str(tiny.sd1()), "prompts": PROMPTS, "sampling": {"steps": 1}}
    return tiny.run_stage(Generate, folder, {**defaults, **fields}, inputs, seed=seed)


def rows(folder: Path) -> list[GeneratedImage]:
    return list(read_jsonl(folder / "generations.jsonl", GeneratedImage))


def images(folder: Path) -> list[bytes]:
    return [(folder / row.image).read_bytes() for row in rows(folder)]


def endpoint(stub: Stub, **fields: object) -> dict[str, Any]:
    model = {"type": "endpoint", "url": stub.url, "model": "stub", "key_env": "STUB_KEY", "attempts": 1}
    return {"type": "model", "model": model, **fields}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)


def test_what_is_painted_is_the_written_out_prompt_and_the_original_stays(tmp_path: Path) -> None:
    run(tmp_path / "a", expand=SHAPES, images_per_prompt=2)
    found = rows(tmp_path / "a")
    assert [row.prompt for row in found[::2]] == PROMPTS["prompts"]
    assert all(row.expanded.endswith("background") and row.painted == row.expanded for row in found)
    texts = [row.expanded for row in found[::2]]
    run(tmp_path / "b", prompts={"type": "list", "prompts": texts}, images_per_prompt=2)
    assert images(tmp_path / "a") == images(tmp_path / "b")
    run(tmp_path / "plain", images_per_prompt=2)
    assert not set(images(tmp_path / "a")) & set(images(tmp_path / "plain"))
    kept = list(read_jsonl(tmp_path / "a/expansions.jsonl", ExpandedPrompt))
    assert [(row.prompt, row.expanded, row.source) for row in kept] == [
        (prompt, text, "shapes-rules") for prompt, text in zip(PROMPTS["prompts"], texts, strict=True)
    ]


@pytest.mark.parametrize(
    ("checkpoint", "encoders", "arguments"),
    [
        (tiny.sdxl, ["clip_g"], {"prompt": False, "prompt_2": True}),
        (tiny_flow.sd3, ["t5"], {"prompt": False, "prompt_2": False, "prompt_3": True}),
        (tiny_flow.sd3, ["clip"], {"prompt": True, "prompt_2": True, "prompt_3": False}),
        (tiny_flow.flux, ["t5"], {"prompt": False, "prompt_2": True}),
    ],
    ids=["sdxl", "sd3, t5", "sd3, both clips", "flux"],
)
def test_some_encoders_read_the_written_out_prompt_and_the_others_the_original(
    tmp_path: Path, checkpoint: Callable[[], Path], encoders: list[str], arguments: dict[str, bool]
) -> None:
    model = str(checkpoint())
    fields = {"model": model, "expand": SHAPES, "sampling": {"steps": 2, "guidance_scale": 3}}
    run(tmp_path / "some", **fields, expand_for=encoders)
    found = rows(tmp_path / "some")
    pipeline: Any = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    painted = pipeline(
        **{name: [row.expanded if out else row.prompt for row in found] for name, out in arguments.items()},
        generator=[torch.Generator("cpu").manual_seed(row.seed) for row in found],
        num_inference_steps=2,
        guidance_scale=3,
        **load_family(model).sampling_options,
    ).images
    assert [np.asarray(image).tolist() for image in painted] == [
        np.asarray(Image.open(tmp_path / "some" / row.image)).tolist() for row in found
    ]
    assert json.loads((tmp_path / "some/sampling.json").read_text())["expand_for"] == encoders
    run(tmp_path / "all", **fields)
    assert images(tmp_path / "some") != images(tmp_path / "all")


def test_encoders_that_the_model_lacks_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expand_for: found t5; .* are clip_l, clip_g\."):
        run(tmp_path / "a", model=str(tiny.sdxl()), expand=SHAPES, expand_for=["t5"])
    # What the checkpoint leaves out would read nothing.
    with pytest.raises(ConfigError, match=r"expand_for: found t5; .* are clip_l, clip_g\."):
        run(tmp_path / "c", model=str(tiny_flow.sd3(with_t5=False)), expand=SHAPES, expand_for=["t5"])
    with pytest.raises(ConfigError, match="are clip, so leave it out"):
        run(tmp_path / "b", expand=SHAPES, expand_for=["clip"])
    with pytest.raises(ValidationError, match="nothing writes the prompts out"):
        tiny.from_recipe(Generate, {"prompts": PROMPTS, "expand_for": ["clip"]})


def test_scores_go_by_the_original_prompt(tmp_path: Path) -> None:
    run(tmp_path / "images", expand=SHAPES)
    scorers = [{"name": "t2i.shapes.scorers:JudgeFaithfulness", "label": "judge"}]
    tiny.run_stage(Score, tmp_path / "scores", {"scorers": scorers}, {"generations_from": tmp_path / "images"})
    scored = list(read_jsonl(tmp_path / "scores/scores.jsonl", ScoredImage))
    assert [row.prompt for row in scored] == PROMPTS["prompts"]
    assert [row.expanded for row in scored] == [row.expanded for row in rows(tmp_path / "images")]


def test_other_arm_paints_the_same_words_without_asking_again(tmp_path: Path) -> None:
    with serve() as stub:
        run(tmp_path / "a", expand=endpoint(stub))
        assert stub.calls == 2
    run(tmp_path / "b", {"expansions_from": tmp_path / "a"}, seed=8)
    assert [row.expanded for row in rows(tmp_path / "b")] == ["A fused caption."] * 2
    other = {"type": "list", "prompts": ["a red circle", "a green star"]}
    with pytest.raises(DataError, match="holds other prompts than this stage has"):
        run(tmp_path / "c", {"expansions_from": tmp_path / "a"}, prompts=other)
    run(tmp_path / "plain")
    with pytest.raises(DataError, match="expected a generate stage with `expand`"):
        run(tmp_path / "d", {"expansions_from": tmp_path / "plain"})


@pytest.mark.parametrize("fault", ["cut", "refuses", "garbage"])
def test_refused_prompt_stops_the_stage_and_only_it_is_asked_again(tmp_path: Path, fault: str) -> None:
    once: Fault = lambda call: fault if call == 1 else ""  # noqa: E731
    with serve(once) as stub:
        fields = endpoint(stub)
        fields["model"]["parallel"] = 1
        with pytest.raises(DataError, match="1 of 2 prompts were not written out:\n  'a blue star"):
            run(tmp_path, expand=fields)
        assert not (tmp_path / "expansions.jsonl").exists()
        assert not (tmp_path / "generations.jsonl").exists()
        run(tmp_path, expand=fields)
        assert stub.calls == 3
    assert KEY not in "".join(path.read_text() for path in tmp_path.glob("*.json*"))


def test_refused_prompt_is_painted_as_it_is_where_that_is_asked_for(tmp_path: Path) -> None:
    prompts = {"type": "list", "prompts": ["a red circle", "a cat"]}
    facts = run(tmp_path, prompts=prompts, expand={**SHAPES, "when_refused": "keep"})
    assert facts["summary"][1:] == ["1 of 2 prompts were not written out: expansions.jsonl"]
    first, second = rows(tmp_path)
    assert first.expanded
    assert (second.expanded, second.painted) == ("", "a cat")
    [_, kept] = read_jsonl(tmp_path / "expansions.jsonl", ExpandedPrompt)
    assert kept.refused == "not a caption of the shapes world"


def test_killed_run_asks_only_for_what_has_no_answer(tmp_path: Path) -> None:
    run(tmp_path / "whole", expand=SHAPES)
    # As after a kill between the answers and the first image: another answer would show.
    (tmp_path / "cut/expanding").mkdir(parents=True)
    known = [ExpandedPrompt(f"{n:04d}", text, f"known {n}", "test") for n, text in enumerate(PROMPTS["prompts"])]
    write_jsonl(tmp_path / "cut/expansions.jsonl", known)
    run(tmp_path / "cut", expand=SHAPES)
    assert [row.painted for row in rows(tmp_path / "cut")] == ["known 0", "known 1"]
    names = [sorted(path.name for path in (tmp_path / run).iterdir()) for run in ("whole", "cut")]
    assert names[0] == names[1]


def arm(folder: Path, expanded: str) -> Path:
    folder.mkdir()
    texts = ["a red circle", "a blue star", "a green square"]
    scored = [
        ScoredImage(str(n), text, n, "a.png", expanded=expanded and f"{expanded} {text}", scores={"judge": 0.1 * n})
        for n, text in enumerate(texts)
    ]
    write_jsonl(folder / "scores.jsonl", scored)
    scorer = {"label": "judge", "name": "judge", "version": "1", "id": "1", "role": "held_out"}
    (folder / "scorers.json").write_text(json.dumps([scorer | {"higher_is_better": True}]))
    return folder


def test_arms_with_two_wordings_are_not_compared_but_one_without_any_is(tmp_path: Path) -> None:
    plain, one, other = (arm(tmp_path / name, text) for name, text in (("plain", ""), ("one", "x"), ("other", "y")))
    with pytest.raises(DataError, match="was written out as 'x a red circle' for one and as 'y a red circle'"):
        tiny.run_stage(Compare, tmp_path / "c1", {}, {"a_from": one, "b_from": other})
    (tmp_path / "c2").mkdir()
    tiny.run_stage(Compare, tmp_path / "c2", {}, {"a_from": plain, "b_from": one})
    assert (tmp_path / "c2/comparison.json").is_file()


def test_expand_and_expansions_from_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="not both"):
        tiny.from_recipe(Generate, {"prompts": PROMPTS, "expand": SHAPES, "expansions_from": "a"})


def test_command_line_names_a_rule_a_model_or_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    read = commands._upsampler
    assert read(None) is None
    assert read("shapes") == SHAPES
    assert read("owner/name") == {"type": "model", "model": {"type": "local", "model": "owner/name"}}
    server = {"type": "endpoint", "url": "http://localhost:1/v1", "model": "qwen", "key_env": None}
    assert read("http://localhost:1/v1=qwen") == {"type": "model", "model": server}
    tiny.from_recipe(EndpointModel, server)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert read("http://localhost:1/v1=qwen")["model"]["key_env"] == "OPENAI_API_KEY"
    with pytest.raises(ConfigError, match="expected URL=MODEL"):
        read("http://localhost:1/v1")
