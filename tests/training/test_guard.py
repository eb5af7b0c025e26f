"""The guard in a train stage: what is read, what is kept, when it stops, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

import rewards
from t2i.randomness import image_seed
from t2i.sampling import Sampler, SamplingSettings
from t2i.stages.score import Scorer
from t2i.stages.score_rules import id_of
from t2i.stages.train import Train
from t2i.training.guard import Guard, read_readings
from t2i.training.overoptimisation import Reading, Rule

PROMPTS = ["a cat", "the moon", "a red cup", "the rocket"]
SAMPLING = {"steps": 2, "guidance_scale": 2.0}


class Darkness:
    """The reverse of brightness: what rises by the one falls by the other."""

    name, version, scale = "darkness", "1", "0 to 1"
    needs_prompt, differentiable, higher_is_better = False, False, True

    def score(self, images: Sequence[Any], prompts: Sequence[str] | None = None) -> np.ndarray:
        return 1 - rewards.load("brightness").score(images)

    def fingerprint(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version}


BRIGHT, DARK = "brightness", "test_guard:Darkness"


def guard(trained: str, held_out: str, **fields: Any) -> dict[str, Any]:
    roles = ((trained, "train", "taught"), (held_out, "held_out", "judge"))
    rows = [{"name": name, "role": role, "label": label} for name, role, label in roles]
    common = {"prompts": {"type": "list", "prompts": PROMPTS}, "every": 2, "sampling": SAMPLING, "seed": 5}
    return {**common, "rewards": rows, **fields}


def train(folder: Path, **fields: Any) -> dict[str, Any]:
    values = {
        "model": str(tiny.sd1()),
        "captions": {"caption": 1.0},
        "trained": {"type": "lora", "rank": 4},
        "optimizer": {"learning_rate": 3e-2},
        "loop": {"steps": 10, "batch_size": 2, "checkpoint_every": 3},
        **fields,
    }
    return tiny.run_stage(Train, folder, values, {"data_from": tiny.captioned_photographs()})


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that is guarded but never stopped, with all that can be read."""
    folder = tmp_path_factory.mktemp("run") / "train"
    encoder = "pkg:t2i.shapes/assets/clip"
    return folder, train(folder, guard=guard(BRIGHT, DARK, stop=False, images_per_prompt=2, encoder=encoder))


@pytest.fixture(scope="module")
def rising(watched: tuple[Path, dict[str, Any]]) -> str:
    """What is higher at the end of this run than at its start: brightness or darkness."""
    readings = read_readings(watched[0])
    change = np.mean(readings[-1].scores["taught"]) - np.mean(readings[0].scores["taught"])
    return BRIGHT if change > 0 else DARK


def test_readings_are_those_of_the_untrained_model_of_every_interval_and_of_the_end(
    watched: tuple[Path, dict[str, Any]],
) -> None:
    readings = read_readings(watched[0])
    assert [reading.step for reading in readings] == [0, 2, 4, 6, 8, 10]
    for reading in readings:
        assert [len(values) for values in reading.scores.values()] == [8, 8]
        assert (len(reading.diversity), len(reading.fidelity)) == (4, 8)
    assert readings[0].fidelity == pytest.approx([1.0] * 8, abs=1e-6)
    assert max(readings[-1].fidelity) < 1
    assert len(list((watched[0] / "guard").rglob("*.png"))) == 6 * 8


def test_a_reading_is_what_anyone_measures_on_the_saved_file(watched: tuple[Path, dict[str, Any]]) -> None:
    """The best checkpoint is the result, so its reading can be had from the adapter that is left."""
    folder, facts = watched
    sampler = Sampler.load(str(tiny.sd1()), SamplingSettings(**SAMPLING), adapter=folder / facts["adapter"])
    texts = [text for text in PROMPTS for _ in range(2)]
    seeds = [image_seed(5, number, sample) for number in range(4) for sample in range(2)]
    images = sampler.generate(texts, seeds)
    best = next(row for row in read_readings(folder) if row.step == facts["guard"]["best_step"])
    assert best.scores["taught"] == [float(value) for value in rewards.load("brightness").score(images)]


def test_diversity_is_that_of_the_rewards_package(watched: tuple[Path, dict[str, Any]]) -> None:
    from rewards.clip_encoder import ClipEncoder
    from rewards.clip_source import TransformersClip
    from rewards.diversity import pairwise_diversity
    from t2i.resources import resolve_path

    folder = watched[0] / "guard" / "step-00000004"
    images = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    encoder = ClipEncoder(TransformersClip(str(resolve_path("pkg:t2i.shapes/assets/clip"))), "cpu", 8)
    expected = pairwise_diversity(encoder.encode_images(images).numpy(), [number // 2 for number in range(8)])
    [reading] = [row for row in read_readings(watched[0]) if row.step == 4]
    assert np.mean(reading.diversity) == pytest.approx(expected.value, rel=1e-5)


def test_a_run_that_follows_its_reward_is_stopped_and_the_right_weights_kept(
    watched: tuple[Path, dict[str, Any]], rising: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    falling = DARK if rising == BRIGHT else BRIGHT
    facts = train(tmp_path / "train", guard=guard(rising, falling, patience=1, images_per_prompt=2))
    assert facts["guard"]["stopped"]
    assert facts["steps"] < 10
    assert [row.step for row in read_readings(tmp_path / "train")][-1] == facts["steps"]
    said = capfd.readouterr().err
    assert f"step {facts['steps']}: the trained reward rose, but judge is -" in said
    assert "stopped, the reward is over-optimised" in said
    assert facts["summary"][0].startswith(f"guard: stopped at step {facts['steps']}; judge is best at step ")
    # Up to there it is the same run, and what it kept are that run's weights.
    unguarded = {row.step: row.scores for row in read_readings(watched[0])}
    for row in read_readings(tmp_path / "train"):
        assert sorted(row.scores.values()) == sorted(unguarded[row.step].values())


def test_the_rewards_that_are_trained_on_and_the_one_that_chose_the_result_are_told(
    watched: tuple[Path, dict[str, Any]],
) -> None:
    bright, dark = (id_of(Scorer(name=name)) for name in (BRIGHT, DARK))
    assert (watched[1]["chosen_by"], watched[1]["picked_by"]) == ([bright], [dark])


def test_a_sound_run_is_not_stopped_and_its_best_step_is_the_result(
    watched: tuple[Path, dict[str, Any]], rising: str, tmp_path: Path
) -> None:
    facts = train(tmp_path / "train", guard=guard(rising, rising, result="last"))
    assert not facts["guard"]["stopped"]
    assert facts["steps"] == 10
    assert "picked_by" not in facts
    means = {row.step: float(np.mean(row.scores["judge"])) for row in read_readings(tmp_path / "train")}
    assert facts["guard"]["best_step"] == max((step for step in means if step), key=lambda step: means[step])
    result, [file] = load_file(tmp_path / "train" / facts["adapter"]), (tmp_path / "train/best").iterdir()
    same = all(torch.equal(value, load_file(file)[name]) for name, value in result.items())
    assert same == (facts["guard"]["best_step"] == facts["steps"])


def readings_of(values: dict[int, float]) -> Any:
    """Step -> held-out score; the trained one is the step."""
    return lambda step: Reading(step, {"reward": [float(step)] * 3, "judge": [values[step]] * 3})


def test_a_guard_that_is_asked_again_says_the_same_and_leaves_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    rule = Rule(("reward",), ("judge",), 1)
    said: list[str] = []
    asked: list[int] = []

    def measure(step: int) -> Reading:
        asked.append(step)
        return readings_of({0: 1.0, 2: 3.0, 4: 2.0, 6: 1.0})(step)

    one = Guard(tmp_path, 20, 2, rule, measure, True, said.append)
    one.begin()
    answers = []
    for step in (2, 3, 4, 4, 6, 6):
        weights = tmp_path / f"{step}.safetensors"
        weights.write_bytes(bytes([step]))
        answers.append(one(step, weights))
    assert answers == ["continue"] * 4 + ["stop"] * 2
    assert asked == [0, 2, 4, 6]
    assert (tmp_path / "checkpoints/guarded.safetensors").read_bytes() == bytes([2])
    assert said[0] == "step 4: the trained reward rose, but judge is -1 [-1, -1] against step 2."
    # A run that goes on from an older checkpoint measures again what came after it.
    assert one(4, tmp_path / "4.safetensors") == "continue"
    assert [json.loads(line)["step"] for line in (tmp_path / "guard.jsonl").read_text().splitlines()] == [0, 2, 4]
    assert one(6, tmp_path / "6.safetensors") == "stop"
    only_warns = Guard(tmp_path, 20, 2, rule, measure, False, said.append)
    assert only_warns(6, tmp_path / "6.safetensors") == "continue"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guard": guard(BRIGHT, BRIGHT, rewards=[{"name": BRIGHT}])}, "none has `role: train`"),
        ({"guard": guard(BRIGHT, BRIGHT, rewards=[{"name": BRIGHT, "role": "train"}])}, "none has `role: held_out`"),
        ({"guard": guard(BRIGHT, BRIGHT, min_fidelity=0.5)}, "needs an `encoder`"),
        ({"guard": guard(BRIGHT, BRIGHT, max_diversity_loss=0.2)}, "max_diversity_loss: needs an `encoder`"),
        ({"guard": guard(BRIGHT, DARK), "held_out": {"every": 2}}, "does not go with `held_out`"),
        ({"guard": guard(BRIGHT, DARK), "init": "random", "trained": {"type": "full", "components": ["unet"]}}, "init"),
        ({"guard": guard(BRIGHT, DARK), "objective": {"type": "autoencoder"}}, "only a denoising objective takes it"),
    ],
)
def test_guards_that_cannot_work_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        train(tmp_path / "train", **fields)
