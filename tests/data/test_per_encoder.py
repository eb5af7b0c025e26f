"""The short caption to CLIP and the dense one to T5: which image's, how often, and the same whatever interrupts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import test_resume
import tiny
import tiny_flow
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from t2i.data.batches import KeyedBatches
from t2i.data.captions import CaptionMix
from t2i.data.encode import encode_texts, join_conditioning
from t2i.data.sources import load_records
from t2i.encoder_texts import EncoderPrompt, EncoderTexts
from t2i.errors import ConfigError, DataError
from t2i.families import load_family
from t2i.objectives import Denoising
from t2i.records import Caption, CaptionedImage
from t2i.stages.train import Train
from t2i.training.loop import fit
from t2i.training.settings import LoopSettings, LoraSettings, OptimizerSettings
from t2i.training.tasks import TaskSettings, build_task

RECORD = CaptionedImage("1", "a.png", 8, 8, tuple(Caption(kind, kind.upper()) for kind in ("alt", "short", "dense")))
SPLIT = (("clip", "short"), ("t5", "dense"))


def test_every_encoder_is_given_its_kind_and_dropout_drops_all() -> None:
    mix = CaptionMix({}, 0.25, "sks", per_encoder=SPLIT)
    counts = Counter(mix.draw(RECORD, 1, step, 0) for step in range(4000))
    split = EncoderTexts("", (("clip", "sks, SHORT"), ("t5", "sks, DENSE")))
    assert counts.keys() == {"", split}
    # Three standard errors: 3 * sqrt(0.25 * 0.75 / 4000) = 0.021.
    assert counts[""] / 4000 == pytest.approx(0.25, abs=0.021)
    assert mix.texts(RECORD) == [split]


def test_the_mix_is_drawn_as_before_for_encoders_that_are_not_named() -> None:
    plain = CaptionMix({"alt": 1, "dense": 3}, 0.1)
    routed = CaptionMix({"alt": 1, "dense": 3}, 0.1, per_encoder=(("clip", "short"),))
    places = [(step, position) for step in range(100) for position in range(4)]
    drawn = [(plain.draw_one(RECORD, 5, *place), routed.draw(RECORD, 5, *place)) for place in places]
    assert all(second == (EncoderTexts(first, (("clip", "SHORT"),)) if first else "") for first, second in drawn)
    assert {second for _, second in drawn if second} == set(routed.texts(RECORD))


def test_encoders_of_one_kind_are_given_the_same_of_several_captions() -> None:
    several = CaptionedImage("1", "a.png", 8, 8, tuple(Caption("short", f"SHORT {n}") for n in range(3)))
    mix = CaptionMix({}, per_encoder=(("clip_l", "short"), ("clip_g", "short")))
    drawn = {mix.draw(several, 1, step, 0) for step in range(100)}
    same = {EncoderTexts("", (("clip_l", f"SHORT {n}"), ("clip_g", f"SHORT {n}"))) for n in range(3)}
    assert drawn == same
    assert drawn < set(mix.texts(several))


def test_images_without_a_kind_are_listed() -> None:
    bare = CaptionedImage("b", "bare.png", 8, 8, (Caption("dense", "x"),))
    with pytest.raises(DataError, match=r"1 of 2 images have no caption of kind 'short', or an empty one: bare\.png\."):
        CaptionMix({"dense": 1}, per_encoder=(("clip", "short"),)).check([RECORD, bare])


@torch.no_grad()
def test_cached_conditioning_is_found_by_all_of_its_texts(tmp_path: Path) -> None:
    family = load_family(str(tiny_flow.sd3()))
    short, dense, other = "a cat", "the red moon and a rocket", "a cup"
    prompts: list[EncoderPrompt] = [
        EncoderTexts("", (("clip", short), ("t5", dense))),
        EncoderTexts("", (("clip", short), ("t5", other))),
        EncoderTexts("", (("clip", other), ("t5", dense))),
        EncoderTexts(dense, (("clip", short),)),  # the first, said in another way
        short,
        dense,
        "",
    ]
    found = encode_texts(family, prompts, tmp_path, batch_size=len(prompts))
    joined = join_conditioning([found.read(prompt) for prompt in prompts])
    expected = family.encode_prompts(prompts)
    torch.testing.assert_close(joined.prompt_embeds, expected.prompt_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joined.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
    far = [torch.dist(joined.prompt_embeds[0], row) > 1e-3 for row in joined.prompt_embeds]
    assert far == [False, True, True, False, True, True, True]
    before = sorted(tmp_path.rglob("*.safetensors"))
    encode_texts(family, prompts, tmp_path, batch_size=1)
    assert sorted(tmp_path.rglob("*.safetensors")) == before
    with pytest.raises(KeyError):
        found.read(EncoderTexts("", (("clip", dense), ("t5", short))))


FIELDS: dict[str, Any] = {
    "data": {"type": "shapes", "count": 6, "captions": ["dense", "short"]},
    "per_encoder": {"clip": "short", "t5": "dense"},
    "caption_dropout": 0.2,
    "resolution": 32,
    "optimizer": {"learning_rate": 1e-3},
    "loop": {"steps": 4, "batch_size": 4},
}


def test_training_gives_the_same_bits_by_any_number_of_workers_and_counts_each_encoder(tmp_path: Path) -> None:
    weights, exposures = [], []
    for name, workers in (("one", 0), ("two", 2)):
        loop = {**FIELDS["loop"], "workers": workers}
        fields = {**FIELDS, "model": str(tiny_flow.sd3()), "loop": loop, "cache": {"text": True}}
        facts = tiny.run_stage(Train, tmp_path / name, fields)
        weights.append(load_file(tmp_path / name / facts["adapter"]))
        exposures.append(facts["exposures"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    [counts] = exposures[0]
    assert exposures[0] == exposures[1]
    assert counts["clip: short"] == counts["t5: dense"] == 16 - counts.get("dropped", 0)
    assert counts.keys() <= {"clip: short", "t5: dense", "dropped"}


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    records = load_records(tiny.captioned_photographs() / "records.jsonl")
    mix = CaptionMix({}, 0.2, per_encoder=(("clip", "caption"), ("t5", "caption")))
    model, trained, loop = str(tiny_flow.sd3()), LoraSettings(rank=2), LoopSettings(steps=4, batch_size=2)
    loop = loop.model_copy(update={"micro_batch_size": 1, "checkpoint_every": 1})

    def train(folder: Path, killed_in: int | None = None) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        settings = TaskSettings(model, None, None, trained, mix, 32, "sample", records, 7, folder, 4)
        task = build_task(settings, Denoising())
        batches = KeyedBatches(task.examples, 7, 2, 1)
        source = batches if killed_in is None else test_resume.EndingBatches(batches, killed_in)
        fit(task.trainable, source, loop, OptimizerSettings(learning_rate=1e-2), folder, seed=7)
        return dict(task.trainable.parameters())

    whole = train(tmp_path / "whole")
    with pytest.raises(test_resume.Killed):
        train(tmp_path / "killed", killed_in=2)
    resumed = train(tmp_path / "killed")
    assert any(value.any() for name, value in whole.items() if ".lora_B." in name)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"per_encoder": {}}, "name the kinds to train on"),
        ({"per_encoder": {"clip": " "}}, "name encoders and kinds"),
        ({"caption_parts": "one_sentence"}, "per_encoder leaves nothing to draw"),
        ({"objective": {"type": "contrastive"}}, "only a denoising objective takes it"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        tiny.from_recipe(Train, {**FIELDS, "model": "x", **fields})


def test_encoders_that_the_model_has_not_are_refused_before_anything_is_loaded() -> None:
    for model, complaint in (
        (tiny.sdxl(), r"no text encoder 't5'; it has clip_l, clip, clip_g\."),
        (tiny_flow.sd3(False), r"no text encoder 't5'; it has clip_l, clip, clip_g\."),
        (tiny.sd1(), "has one text encoder"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            tiny.from_recipe(Train, {**FIELDS, "model": str(model)}).check()
