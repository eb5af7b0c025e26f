"""From preference pairs to a reward model on disk: what it learns, what may not change it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

import rewards
from rewards.reward_config import WEIGHTS_FILE
from t2i.data.pairs import PairsFile, ShapesPairs, hold_out, save_pairs
from t2i.errors import ConfigError, DataError
from t2i.objectives import BradleyTerry
from t2i.records import GeneratedImage, PreferencePair, ScoredImage, read_jsonl, write_jsonl
from t2i.resources import resolve_path
from t2i.stages.score import Score
from t2i.stages.train import Train
from t2i.training.loop import fit
from t2i.training.reward_task import RewardTask
from t2i.training.settings import FullSettings, LoopSettings, LoraSettings, OptimizerSettings
from t2i.training.tasks import TaskSettings

CLIP = "pkg:t2i.shapes/assets/clip"
HEAD = {"type": "full", "components": ["head"]}
LORA = {"type": "lora", "rank": 4}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    """Pictures of one taste over others, in 60 pairs; about a third of them tie."""
    folder = tmp_path_factory.mktemp("pairs")
    return list(ShapesPairs(count=60, preference="garden", max_objects=1).read(folder, 3))


def write(folder: Path, pairs: list[PreferencePair]) -> dict[str, str]:
    """A file of pairs as a source in a recipe."""
    folder.mkdir(exist_ok=True)
    return {"type": "pairs", "path": str(save_pairs(folder, pairs))}


def train(folder: Path, pairs: list[PreferencePair], *, steps: int = 20, **fields: Any) -> dict[str, Any]:
    """Run a train stage; without a held-out share of its own, a quarter of the prompts."""
    objective = {"type": "bradley_terry", "held_out_share": 0.25, **fields.pop("objective", {})}
    loop = {"steps": steps, "batch_size": 16, **fields.pop("loop", {})}
    own = {"model": CLIP, "pairs": write(folder, pairs), "objective": objective, "trained": HEAD, "loop": loop}
    return tiny.run_stage(Train, folder, {"optimizer": {"learning_rate": 0.01, "weight_decay": 0}, **own, **fields})


def scorer(folder: Path, **options: object) -> rewards.Reward:
    return rewards.load({"name": "reward_model", "model": str(folder / "model"), **options})


def head(folder: Path) -> torch.Tensor:
    return load_file(folder / "model" / WEIGHTS_FILE)["layers.weight"]


def test_a_head_on_a_frozen_encoder_finds_the_preference_out(tmp_path: Path, pairs: list[PreferencePair]) -> None:
    facts = train(tmp_path, pairs, steps=60, objective={"reads_prompt": False})
    found = facts["held_out"]
    assert found["accuracy"] >= 0.8
    assert found["low"] <= found["accuracy"] <= found["high"]
    assert found["expected_calibration_error"] < 0.3
    assert found["controls"].keys() == {"brightness", "jpeg_size", "saturation", "sharpness"}
    assert facts["pairs"] + found["pairs"] == 60
    assert facts["trained_parameters"] == 128
    assert any(f"accuracy {found['accuracy']:.3f}" in line for line in facts["summary"])
    reliability = json.loads((tmp_path / "evaluation.json").read_text())["held_out"]["reliability"]
    assert sum(one["pairs"] for one in reliability) == found["pairs"]
    assert not any((tmp_path / name).exists() for name in ("checkpoints", "latents"))


def test_the_encoder_of_a_frozen_model_stays_what_it_was(tmp_path: Path, pairs: list[PreferencePair]) -> None:
    train(tmp_path, pairs, steps=2)
    before = load_file(resolve_path(CLIP) / "model.safetensors")
    after = load_file(tmp_path / "model/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name].float(), value.float()) for name, value in before.items())


def turned(pair: PreferencePair) -> PreferencePair:
    """The opposite preference."""
    images = {"chosen": pair.rejected, "rejected": pair.chosen}
    return dataclasses.replace(pair, **images, chosen_id=pair.rejected_id, rejected_id=pair.chosen_id)


def test_turning_every_pair_round_turns_the_scores_round(tmp_path: Path, pairs: list[PreferencePair]) -> None:
    facts, opposite = train(tmp_path / "a", pairs), train(tmp_path / "b", [turned(pair) for pair in pairs])
    assert head(tmp_path / "a").abs().max() > 0.01
    torch.testing.assert_close(head(tmp_path / "a"), -head(tmp_path / "b"), rtol=1e-3, atol=1e-4)
    assert opposite["held_out"]["accuracy"] == pytest.approx(facts["held_out"]["accuracy"])


def test_portions_and_workers_change_nothing(tmp_path: Path, pairs: list[PreferencePair]) -> None:
    for name, loop in (("whole", {}), ("portions", {"micro_batch_size": 4}), ("workers", {"workers": 1})):
        train(tmp_path / name, pairs, steps=5, loop=loop, trained=LORA)
    whole = head(tmp_path / "whole")
    assert torch.equal(head(tmp_path / "workers"), whole)
    torch.testing.assert_close(head(tmp_path / "portions"), whole, rtol=1e-4, atol=1e-6)


def task(folder: Path, pairs: list[PreferencePair], trained: LoraSettings | FullSettings) -> RewardTask:
    """As a train stage builds it."""
    common: dict[str, Any] = {"mix": None, "resolution": None, "posterior": "mode", "records": ()}
    common |= {"model": CLIP, "revision": None, "random_seed": None, "encode_batch_size": 16}
    settings = TaskSettings(**common, trained=trained, seed=5, folder=folder, pairs=pairs)
    return RewardTask(settings, BradleyTerry(held_out_share=0.25))


@pytest.mark.parametrize(
    "trained",
    [
        LoraSettings(rank=4, text_encoder=True),
        LoraSettings(rank=4, variant="dora"),
        FullSettings(components=("encoder", "head")),
    ],
    ids=["lora", "dora", "full"],
)
def test_the_scorer_on_disk_scores_as_the_model_that_was_trained(
    tmp_path: Path, pairs: list[PreferencePair], trained: LoraSettings | FullSettings
) -> None:
    built = task(tmp_path, pairs, trained)
    batches = _Repeated(built.examples.collate([built.examples.example(number, 0, 0) for number in range(8)]))
    optimizer = OptimizerSettings(learning_rate=1e-3)
    fit(built.trainable, batches, LoopSettings(steps=8, batch_size=8), optimizer, tmp_path, seed=5)
    with torch.no_grad():
        margins = built.trainable.module(batches.batch).metrics["margin"].numpy()
    built.save({})
    first = [(pair.chosen, pair.rejected, pair.prompt) for pair in built.pairs[:8]]
    chosen, rejected, prompts = (list(column) for column in zip(*first, strict=True))
    found = scorer(tmp_path).score(chosen, prompts) - scorer(tmp_path).score(rejected, prompts)
    assert np.abs(margins).max() > 0.1
    np.testing.assert_allclose(found, margins, atol=1e-4, rtol=1e-4)
    before = load_file(resolve_path(CLIP) / "model.safetensors")
    after = load_file(tmp_path / "model/model.safetensors")
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key].float(), after[key].float())}
    text = {"text_model"} if isinstance(trained, FullSettings) or trained.text_encoder else set()
    projections = {"text_projection", "visual_projection"} if isinstance(trained, FullSettings) else set()
    assert changed == {"vision_model"} | text | projections


def test_text_encoders_have_rank_alpha_and_rate_of_their_own(tmp_path: Path, pairs: list[PreferencePair]) -> None:
    own = {"text_encoder_rank": 2, "text_encoder_alpha": 8.0, "text_encoder_learning_rate": 1e-6}
    trained = LoraSettings.model_validate({"rank": 4, "text_encoder": True, **own})
    trainable = task(tmp_path, pairs, trained).trainable
    assert trainable.learning_rates == {"encoder.text_model.": 1e-6}
    shapes = {name.split(".")[1]: value.shape[0] for name, value in trainable.parameters().items() if "lora_A" in name}
    assert shapes == {"text_model": 2, "vision_model": 4}
    layers: list[Any] = [trainable.module.get_submodule(f"encoder.{part}") for part in shapes]
    found = [{layer.scaling["default"] for layer in part.modules() if hasattr(layer, "scaling")} for part in layers]
    assert dict(zip(shapes, found, strict=True)) == {"text_model": {4.0}, "vision_model": {1.0}}


class _Repeated:
    """The same batch at every step."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Any:
        return iter([self.batch] * (last_step - first_step))

    def describe(self, step: int) -> str:
        return "the batch"


def test_each_aspect_has_a_head_of_its_own(tmp_path: Path, pairs: list[PreferencePair]) -> None:
    mine = [dataclasses.replace(pair, aspect="mine") for pair in pairs]
    theirs = [dataclasses.replace(turned(pair), aspect="theirs") for pair in pairs]
    objective = {"aspects": ["mine", "theirs"], "reads_prompt": False}
    facts = train(tmp_path, [*mine, *theirs], steps=80, objective=objective)
    assert facts["mine"]["accuracy"] >= 0.8
    assert facts["theirs"]["accuracy"] >= 0.8
    images = [pair.chosen for pair in pairs[:20]]
    first, second = (scorer(tmp_path, aspect=aspect).score(images) for aspect in ("mine", "theirs"))
    assert np.corrcoef(first, second)[0, 1] < -0.9


def test_a_score_stage_scores_with_every_aspect_of_a_train_stage(tmp_path: Path, pairs: list[PreferencePair]) -> None:
    two = [dataclasses.replace(pair, aspect=aspect) for pair in pairs for aspect in ("mine", "liked")]
    train(tmp_path / "taste", two, steps=2, objective={"aspects": ["mine", "liked"], "reads_prompt": False})
    rows = [GeneratedImage(str(number), "a cat", 1, pair.chosen) for number, pair in enumerate(pairs[:3])]
    (tmp_path / "images").mkdir()
    write_jsonl(tmp_path / "images/generations.jsonl", rows)
    inputs = {"generations_from": tmp_path / "images", "reward_models_from": tmp_path / "taste"}
    facts = tiny.run_stage(Score, tmp_path / "score", {"scorers": [{"name": "brightness"}]}, inputs)
    assert facts["means"].keys() == {"brightness", "taste mine", "taste liked"}
    scores = [row.scores["taste mine"] for row in read_jsonl(tmp_path / "score/scores.jsonl", ScoredImage)]
    expected = scorer(tmp_path / "taste", aspect="mine").score([row.image for row in rows])
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    (tmp_path / "taste/model/reward_model.json").unlink()
    with pytest.raises(ConfigError, match="stage taste trained no reward model"):
        tiny.run_stage(Score, tmp_path / "again", {}, inputs)
    with pytest.raises(ValueError, match="nothing to score with"):
        tiny.from_recipe(Score, {"generations_from": "images"})


def mixed(pairs: list[PreferencePair]) -> list[PreferencePair]:
    return [dataclasses.replace(pair, aspect="fidelity") if number % 2 else pair for number, pair in enumerate(pairs)]


Change = Callable[[list[PreferencePair]], list[PreferencePair]]


@pytest.mark.parametrize(
    ("change", "fields", "complaint"),
    [
        (mixed, {}, r"pairs of the aspects fidelity, and also \(none\); name all in objective\.aspects"),
        (mixed, {"objective": {"aspects": ["fidelity"]}}, r"pairs of the aspects \(none\), expected fidelity"),
        (list, {"objective": {"aspects": ["fidelity"]}}, r"pairs of the aspects \(none\)"),
        (lambda pairs: pairs[:1], {}, "too few to hold out"),
        (list, {"objective": {"held_out_share": 0.001}}, "too few to hold out"),
    ],
)
def test_pairs_that_cannot_be_used_are_told_before_training(
    tmp_path: Path, pairs: list[PreferencePair], change: Change, fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        train(tmp_path, change(pairs), **fields)


def test_held_out_pairs_must_be_others_and_some_must_not_tie(tmp_path: Path, pairs: list[PreferencePair]) -> None:
    own = write(tmp_path / "held", pairs[:5])
    with pytest.raises(DataError, match="5 of 5 held-out pairs share their prompt or an image"):
        train(tmp_path / "a", pairs, held_out_pairs=own)
    ties = [pair for pair in pairs if pair.is_tie]
    others = [pair for pair in pairs if pair.group not in {tie.group for tie in ties}]
    with pytest.raises(DataError, match="held-out pairs: 0 prompts with a preference"):
        train(tmp_path / "b", others, held_out_pairs=write(tmp_path / "ties", ties))


def test_held_out_pairs_that_no_head_is_for_are_refused(tmp_path: Path, pairs: list[PreferencePair]) -> None:
    def of(aspect: str, some: list[PreferencePair]) -> list[PreferencePair]:
        return [dataclasses.replace(pair, aspect=aspect) for pair in some]

    own, held_out = hold_out(pairs, 0.3, seed=1)
    others = write(tmp_path / "others", [*held_out, *of("fidelity", held_out)])
    with pytest.raises(DataError, match=r"held-out pairs of the aspects fidelity, expected \(none\); leave them out"):
        train(tmp_path / "a", own, held_out_pairs=others)
    others = write(tmp_path / "others", [*of("mine", held_out), *of("theirs", held_out)])
    with pytest.raises(DataError, match="held-out pairs of the aspects theirs, expected mine; leave them out"):
        train(tmp_path / "b", of("mine", own), held_out_pairs=others, objective={"aspects": ["mine"]})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"trained": {"type": "full", "components": ["unet"]}}, r"expected \[head\]"),
        ({"trained": {"type": "full", "components": ["encoder"]}}, r"expected \[head\]"),
        ({"trained": HEAD, "init": "random"}, "stands on a trained encoder"),
        ({"trained": {**LORA, "text_encoder": True}, "objective": {"reads_prompt": False}}, "reads no prompt"),
        ({"trained": {**LORA, "targets": ["to_q"]}}, "do not name layers of vision_model"),
    ],
)
def test_what_a_reward_model_cannot_train_is_refused(
    tmp_path: Path, pairs: list[PreferencePair], fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        train(tmp_path, pairs, **fields)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, pairs: list[PreferencePair]) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    broken = PreferencePair("a cat", str(tmp_path / "broken.png"), pairs[0].rejected)
    for trained in (HEAD, LORA):
        with pytest.raises(DataError, match=r"broken\.png: cannot be read"):
            train(tmp_path / trained["type"], [*pairs, *[broken] * 1], trained=trained)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"pairs": None}, "learns from pairs"),
        ({"data": {"type": "shapes", "count": 4}}, "learns from pairs"),
        ({"pairs_from": "pair"}, "learns from pairs"),
        ({"objective": {"type": "denoising"}, "captions": {"alt": 1}}, "denoising learns from images"),
        (
            {"pairs": None, "data": {"type": "shapes", "count": 4}, "objective": {"type": "autoencoder"}},
            "held_out_pairs: only bradley_terry takes it",
        ),
        ({"buckets": {}, "resolution": 64}, "buckets: .*bradley_terry"),
        (
            {
                "optimizer": {"type": "prodigy", "learning_rate": 1.0},
                "objective": {"type": "bradley_terry", "head_learning_rate": 1e-3},
            },
            r"head_learning_rate: prodigy has one learning rate",
        ),
    ],
)
def test_a_recipe_gives_pairs_to_objectives_that_learn_from_pairs(fields: dict[str, Any], complaint: str) -> None:
    source = PairsFile(path="pairs.jsonl").model_dump()
    common = {"type": "train", "model": CLIP, "pairs": source, "held_out_pairs": source, "trained": HEAD}
    common |= {"optimizer": {"learning_rate": 1.0}, "loop": {"steps": 1, "batch_size": 1}}
    with pytest.raises(ValueError, match=complaint):
        tiny.from_recipe(Train, {**common, "objective": {"type": "bradley_terry"}, **fields})
