"""Preference objectives through the train stage and the loop: what is learned, recorded, resumed and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_pairs
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from t2i.errors import DataError, RunError
from t2i.stages.train import Train
from t2i.training.log import read_metrics

DPO = {"type": "diffusion_dpo", "beta": 2000}
LORA = {"type": "lora", "rank": 4}


def train(folder: Path, pairs: Path, objective: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Run a train stage on bright pictures that are preferred to dark ones."""
    loop = {"steps": 4, "batch_size": 4, "log_every": 1, **fields.pop("loop", {})}
    values = {
        "model": str(tiny.sd1()),
        "objective": objective,
        "trained": LORA,
        "optimizer": {"learning_rate": 2e-3},
        "loop": loop,
        **fields,
    }
    return tiny.run_stage(Train, folder, values, {"pairs_from": pairs})


def lora_of(folder: Path, facts: dict[str, Any]) -> dict[str, Tensor]:
    return load_file(folder / facts["adapter"])


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """L2 norm of the difference."""
    return float(
        sum(((value - two[key]).double().square().sum() for key, value in one.items()), torch.zeros(())).sqrt()
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs.write_pairs(tmp_path_factory.mktemp("run") / "pair")


@pytest.mark.parametrize(
    "objective",
    [DPO, {**DPO, "loss": "ipo", "beta": 10}, {"type": "diffusion_kto", "beta": 2000}],
    ids=lambda value: value.get("loss", value["type"]),
)
def test_pairs_come_to_be_ranked_as_labelled(tmp_path: Path, pairs: Path, objective: dict[str, Any]) -> None:
    trained = {"type": "full", "components": ["unet"]}
    train(tmp_path / "train", pairs, objective, trained=trained, loop={"steps": 14, "batch_size": 8})
    rows = read_metrics(tmp_path / "train/metrics.jsonl")
    assert rows[0]["accuracy"] == 0.5
    assert sum(row["accuracy"] for row in rows[-4:]) / 4 > 0.75
    assert sum(row["logit"] for row in rows[-4:]) > 0


def test_flipped_labels_teach_the_opposite(tmp_path: Path, pairs: Path) -> None:
    """The first step of Adam depends on the sign of the gradient alone: that of the flipped run is its mirror image."""
    flipped = tiny_pairs.write_pairs(tmp_path / "flipped", flipped=True)
    states = []
    for name, folder in (("straight", pairs), ("flipped", flipped)):
        facts = train(tmp_path / name, folder, DPO, loop={"steps": 1, "batch_size": 8}, caption_dropout=0)
        states.append({key: value for key, value in lora_of(tmp_path / name, facts).items() if ".lora_B." in key})
    one, two = (torch.cat([value.flatten() for value in state.values()]) for state in states)
    assert float(torch.nn.functional.cosine_similarity(one, two, dim=0)) < -0.99


def test_effective_logit_scale_is_recorded_and_conversion_changes_nothing_else(tmp_path: Path, pairs: Path) -> None:
    facts = train(tmp_path / "ours", pairs, {"type": "diffusion_dpo", "beta": 5000})
    assert (facts["beta"], facts["logit_per_mean_squared_error"], facts["latent_elements"]) == (5000, 2500, 4 * 16 * 16)
    assert (facts["pairs"], facts["ties_left_out"], facts["images"]) == (8, 0, 16)
    theirs = {"type": "diffusion_dpo", "beta_from": {"tool": "diffusers_sd15", "value": 2500}}
    converted = train(tmp_path / "theirs", pairs, theirs)
    assert converted["beta"] == 5000
    one, two = lora_of(tmp_path / "ours", facts), lora_of(tmp_path / "theirs", converted)
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize("objective", [DPO, {"type": "chosen_denoising"}], ids=["dpo", "chosen"])
def test_portions_of_one_learn_what_a_whole_batch_learns(
    tmp_path: Path, pairs: Path, objective: dict[str, Any]
) -> None:
    # Beside such an epsilon Adam does not blow the rounding of gradients near 0 up, and shows by how much a sum is off.
    optimizer = {"learning_rate": 2e-3, "epsilon": 1e-3}
    whole, parts, fresh = (
        lora_of(tmp_path / name, train(tmp_path / name, pairs, objective, optimizer=optimizer | rate, loop=loop))
        for name, rate, loop in (("a", {}, {}), ("b", {}, {"micro_batch_size": 1}), ("c", {"learning_rate": 1e-12}, {}))
    )
    assert distance(whole, fresh) > 0.01
    assert distance(whole, parts) <= 1e-4 * distance(whole, fresh)


def test_killed_run_goes_on_to_the_same_bits(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends, as far as the run is concerned, in the write of the second checkpoint."""
    from t2i.training import loop

    fields: dict[str, Any] = {"loop": {"checkpoint_every": 2}}
    whole = lora_of(tmp_path / "a", train(tmp_path / "a", pairs, DPO, **fields))
    original = loop.write_checkpoint

    def write_once(folder: Path, step: int, *args: Any, **kwargs: Any) -> Path:
        if step > 2:
            raise KeyboardInterrupt
        return original(folder, step, *args, **kwargs)

    monkeypatch.setattr(loop, "write_checkpoint", write_once)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", pairs, DPO, **fields)
    monkeypatch.undo()
    resumed = lora_of(tmp_path / "b", train(tmp_path / "b", pairs, DPO, **fields))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_full_training_moves_the_model_and_not_its_reference(tmp_path: Path, pairs: Path) -> None:
    trained = {"type": "full", "components": ["unet"]}
    facts = train(tmp_path / "train", pairs, DPO, trained=trained, optimizer={"learning_rate": 1e-3})
    rows = read_metrics(tmp_path / "train/metrics.jsonl")
    assert rows[0]["logit"] == 0
    assert rows[-1]["logit"] != 0
    before, after = (
        load_file(folder / "unet/diffusion_pytorch_model.safetensors")
        for folder in (tiny.sd1(), tmp_path / "train" / facts["model"])
    )
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("trained", [{"type": "full", "components": ["unet"]}, LORA], ids=["full", "lora"])
def test_the_reference_is_laid_out_as_the_policy(tmp_path: Path, pairs: Path, trained: dict[str, Any]) -> None:
    """Otherwise they round otherwise, and the first step is refused."""
    train(tmp_path / "train", pairs, DPO, trained=trained, speed={"channels_last": True}, loop={"steps": 1})
    assert read_metrics(tmp_path / "train/metrics.jsonl")[0]["logit"] == 0


def test_adapter_that_is_not_neutral_is_found_at_the_first_step() -> None:
    from t2i.objectives import DiffusionDPO
    from t2i.training.diffusion import _check_first_batch

    module = tiny_pairs.module_of("epsilon", DiffusionDPO(beta=2000), spoiled=0.05)
    with pytest.raises(RunError, match="fresh adapter changes the model's output"):
        _check_first_batch(module, dict(module.components.items()), tiny_pairs.batch_for(module))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": {"type": "folder", "path": "x"}}, "learns from pairs"),
        ({"pairs_from": None}, "learns from pairs"),
        ({"objective": {"type": "denoising"}, "captions": {"a": 1}}, "learns from images"),
        ({"captions": {"a": 1}}, "captions: only a denoising objective"),
        ({"masks": {}}, "masks: only a denoising objective"),
        ({"objective": {"type": "diffusion_kto", "beta": 1}, "loop": {"micro_batch_size": 2}}, "couples the whole"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    loop = {"steps": 1, "batch_size": 4, **fields.pop("loop", {})}
    values = {
        "type": "train",
        "model": "m",
        "pairs_from": "pair",
        "objective": DPO,
        "optimizer": {"learning_rate": 1e-3},
        "loop": loop,
        **fields,
    }
    with pytest.raises(ValidationError, match=message):
        tiny.from_recipe(Train, values)


def test_kto_of_accumulated_batches_compares_with_zero(tmp_path: Path, pairs: Path) -> None:
    objective = {"type": "diffusion_kto", "beta": 2000, "reference_point": "zero"}
    train(tmp_path / "train", pairs, objective, loop={"micro_batch_size": 2})
    assert {row["reference_point"] for row in read_metrics(tmp_path / "train/metrics.jsonl")} == {0.0}


def test_batch_larger_than_the_pairs_is_refused_before_the_model_is_loaded(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(DataError, match="fewer than a batch of 9"):
        train(tmp_path / "train", pairs, DPO, loop={"batch_size": 9}, model=str(tmp_path / "no model"))


def test_inspect_tells_the_logit_scale_where_the_recipe_alone_does() -> None:
    from t2i.stages.base import InspectContext

    def told(**beta: Any) -> object:
        values = {
            "type": "train",
            "model": str(tiny.sd1()),
            "pairs_from": "pair",
            "objective": {"type": "diffusion_dpo", **beta},
            "optimizer": {"learning_rate": 1e-3},
            "loop": {"steps": 1, "batch_size": 4},
        }
        facts = tiny.from_recipe(Train, values).inspect(InspectContext({}, 0))
        return facts.get("logit per mean squared error")

    assert told(beta=5000) == 2500
    assert told(beta_from={"tool": "diffusers_sd15", "value": 2500}) == 2500
    assert told(beta_from={"tool": "simpletuner", "value": 1}) is None
