"""The data fields of a train stage: what is refused, and that they reach the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from painted import paint
from pydantic import ValidationError
from safetensors.torch import load_file

from t2i.data.captions import CaptionMix
from t2i.data.examples import Dataset
from t2i.data.held_out import hold_out
from t2i.data.preview import Preview
from t2i.data.rows import RecordTable
from t2i.data.settings import BucketSettings
from t2i.data.sources import RECORDS_FILE, save_records
from t2i.errors import ConfigError, DataError
from t2i.objectives import Denoising
from t2i.randomness import derive_key
from t2i.stages.base import InspectContext
from t2i.stages.train import Train
from t2i.training.settings import LoraSettings
from t2i.training.tasks import DiffusionTask, TaskSettings

LORA = {"type": "lora", "rank": 2}
BASE = {"model": "m", "data_from": "caption", "captions": {"caption": 1}, "optimizer": {"learning_rate": 1e-3}}
LOOP = {"steps": 3, "batch_size": 2, "log_every": 1}
BUCKETS = {"step": 8, "unfit": "drop"}


def pictures(folder: Path, name: str, sizes: list[tuple[int, int]], text: str) -> Path:
    """Finished folder of a stage that has captioned pictures."""
    (folder / name).mkdir(parents=True)
    save_records(folder / name, paint(folder / f"{name}-files", sizes, text))
    return folder / name


def train(folder: Path, stages: list[Path], **fields: object) -> dict[str, Any]:
    """Run a train stage on the pictures of several stages."""
    given = {**BASE, "model": str(tiny.sd1()), "trained": LORA, "loop": LOOP, **fields}
    stage = tiny.from_recipe(Train, {**given, "data_from": [path.name for path in stages]})
    context = tiny.context(folder)
    context.inputs["data_from"] = [(path.name, path) for path in stages]
    return stage.run(context)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"buckets": {}}, "buckets: say in `resolution`"),
        ({"buckets": {}, "resolution": 500}, "resolution: 500 is not a multiple of buckets.step, 64"),
        ({"views": {"crops": 3}}, "views.crops: an image has one centre"),
        ({"views": {"flip": True, "never_flip": [" "]}}, "an empty word"),
        ({"cache": {"text": True}, "trained": {**LORA, "text_encoder": True}}, "cache.text: a text encoder is trained"),
        (
            {"cache": {"text": True}, "trained": {"type": "full", "components": ["text_encoder_2"]}},
            "cache.text: a text encoder is trained",
        ),
        ({"datasets": [{}, {}]}, "datasets: 2 entries for 1 sets of images"),
        ({"data_from": ["a", "b"], "datasets": [{"weight": 1}, {}]}, "every one a `weight`, or none"),
        ({"datasets": [{"captions": {"caption": 0}}]}, "every weight of captions must be above 0"),
        ({"datasets": [{"repeats": 2, "weight": 3.0}]}, "repeats: 2 would be ignored beside weight: 3"),
        ({"datasets": [{"repeats": 0}]}, "greater than or equal to 1"),
        ({"data_from": None, "data": []}, "at least 1 item"),
        ({"objective": {"type": "autoencoder"}, "masks": {}}, "masks: only a denoising objective takes it"),
        ({"objective": {"type": "autoencoder"}, "views": {"flip": True}}, "views: only a denoising objective"),
        ({"masks": {"outside": 1.0}}, "less than 1"),
    ],
)
def test_data_that_makes_no_sense_is_refused(fields: dict[str, object], complaint: str) -> None:
    given = {name: value for name, value in {**BASE, "loop": LOOP, **fields}.items() if value is not None}
    with pytest.raises(ValidationError, match=complaint):
        tiny.from_recipe(Train, given)


def test_cache_folder_changes_no_result_and_stays_out_of_the_fingerprint() -> None:
    from t2i.config import output_fields

    one, other = (tiny.from_recipe(Train, {**BASE, "loop": LOOP, "cache": {"folder": f}}) for f in ("a", "b"))
    assert output_fields(one, lambda *_: None) == output_fields(other, lambda *_: None)


def test_everything_together_trains(tmp_path: Path) -> None:
    own = pictures(tmp_path, "own", [(48, 48), (60, 42), (48, 48), (60, 42), (200, 20)], "dog {}")
    prior = pictures(tmp_path, "prior", [(48, 48), (60, 42), (42, 60), (42, 60)], "animal {}")
    facts = train(
        tmp_path / "train",
        [own, prior],
        resolution=32,
        buckets=BUCKETS,
        views={"flip": True, "crop": "random", "crops": 2},
        masks={"missing": "whole"},
        cache={"text": True, "folder": str(tmp_path / "cache")},
        trigger_words="sks",
        datasets=[{"repeats": 2}, {"loss_weight": 0.5, "trigger_words": ""}],
        loop={**LOOP, "steps": 6, "workers": 1},
    )
    assert facts["images per bucket"] == {"24x40": 2, "32x32": 3, "40x24": 3}
    assert [Path(name).name for name in facts["dropped"]] == ["0004.png"]
    assert json.loads((tmp_path / "train/unfit.jsonl").read_text())["reason"] == "dropped"
    assert facts["images"] == 9
    texts = {len(load_file(path)["keys"]) for path in (tmp_path / "cache").glob("texts-*/*.safetensors")}
    assert texts == {10}  # nine captions and the empty prompt
    assert not (tmp_path / "train/latents").exists()


def test_second_run_encodes_nothing_that_the_first_left_in_a_shared_folder(tmp_path: Path) -> None:
    stage = pictures(tmp_path, "own", [(32, 32)] * 4, "dog {}")
    for name in ("a", "b"):
        train(tmp_path / name, [stage], cache={"folder": str(tmp_path / "cache")})
        written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
        if name == "a":
            first = written
    assert written == first
    adapters = [load_file(next((tmp_path / name).rglob("*.safetensors"))) for name in ("a", "b")]
    assert all(value.equal(adapters[1][key]) for key, value in adapters[0].items())


def test_bucket_step_must_fit_the_model(tmp_path: Path) -> None:
    stage = pictures(tmp_path, "own", [(48, 48)] * 2, "dog {}")
    with pytest.raises(ConfigError, match=r"buckets\.step: 2 is not a multiple of 4"):
        train(tmp_path / "train", [stage], resolution=32, buckets={"step": 2, "max_aspect": 1})


def test_bucket_that_is_too_small_is_refused_before_the_model_is_looked_for(tmp_path: Path) -> None:
    stage = pictures(tmp_path, "own", [(48, 48), (48, 48), (60, 42)], "dog {}")
    with pytest.raises(DataError, match=r"a batch of 2 is larger than the number of images in 1 buckets: 40x24 \(1\)"):
        train(tmp_path / "train", [stage], model="no/such-model", resolution=32, buckets=BUCKETS)


def test_several_sources_of_one_kind_do_not_overwrite_each_other(tmp_path: Path) -> None:
    shapes = [{"type": "shapes", "count": 2, "captions": ["alt"], "split": split} for split in ("train", "heldout")]
    stage = tiny.from_recipe(
        Train,
        {
            "model": str(tiny.sd1()),
            "data": shapes,
            "captions": {"alt": 1},
            "optimizer": {"learning_rate": 1e-3},
            "loop": LOOP,
            "trained": LORA,
        },
    )
    facts = stage.run(tiny.context(tmp_path / "train"))
    assert facts["images"] == 4
    images = sorted((tmp_path / "train").rglob("*.png"))
    assert len({path.read_bytes() for path in images}) == len(images) == 4


def test_inspect_names_the_rows_of_a_source_that_a_run_drops(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "own", count=3)
    rows = {name: ["a wall"] for name in ("astronaut.png", "chelsea.png", "gone.png")}
    (source / "captions.json").write_text(json.dumps(rows))
    data = {"type": "captions_json", "path": str(source), "broken": "drop"}
    given = {**BASE, "model": str(tiny.sd1()), "data": data, "captions": {"caption": 1}, "loop": LOOP, "resolution": 32}
    del given["data_from"]
    facts = tiny.from_recipe(Train, given).inspect(InspectContext({}, 7))
    assert facts["images"] == 2
    [line] = facts["not read"]  # type: ignore[misc]
    assert "gone.png: no such image" in str(line)


def test_inspect_counts_buckets_and_names_misfits_from_records(tmp_path: Path) -> None:
    stage = pictures(tmp_path, "own", [(48, 48), (60, 42), (48, 48), (60, 42), (200, 20)], "dog {}")
    context = InspectContext({"data_from": [Preview(RecordTable(stage / RECORDS_FILE))]}, 7)
    own = {"model": str(tiny.sd1()), "data_from": "own", "loop": LOOP}
    given = {**BASE, **own, "resolution": 32, "buckets": BUCKETS}
    facts = tiny.from_recipe(Train, given).inspect(context)
    assert facts["images per bucket"] == {"32x32": 2, "40x24": 2}
    assert [Path(str(name)).name for name in facts["dropped"]] == ["0004.png"]  # type: ignore[union-attr]
    given["buckets"] = {**BUCKETS, "unfit": "refuse"}
    with pytest.raises(DataError, match=r"0004\.png: 200x20: an aspect above 2"):
        tiny.from_recipe(Train, given).inspect(context)


def test_inspect_counts_images_that_are_held_out_apart(tmp_path: Path) -> None:
    stage = pictures(tmp_path, "own", [(32 + number, 32) for number in range(12)], "dog {}")
    held_out = {"share": 0.3, "examples": 4}
    given = {**BASE, "model": str(tiny.sd1()), "data_from": "own", "loop": LOOP, "held_out": held_out}
    rows = RecordTable(stage / RECORDS_FILE)
    [held] = hold_out([rows], 0.3, 7)[1]
    facts = tiny.from_recipe(Train, given).inspect(InspectContext({"data_from": [Preview(rows)]}, 7))
    assert (facts["images"], facts["held out"]) == (12 - len(held), len(held))
    assert facts["passes"] == round(3 * 2 / (12 - len(held)), 2)
    # Of a folder only headers are read, and the bytes of an image decide.
    unread = [replace(row, id="") for row in rows]
    facts = tiny.from_recipe(Train, given).inspect(InspectContext({"data_from": [Preview(unread)]}, 7))
    assert (facts["images"], facts["held out"]) == (8, "about 4")


def test_images_that_do_not_fit_are_named_whether_they_are_held_out_or_not(tmp_path: Path) -> None:
    stage = pictures(tmp_path, "own", [(40, 32)] * 6 + [(12, 12)] * 6, "a wall")
    fields = {"resolution": 32, "buckets": BUCKETS, "held_out": {"share": 0.5, "every": 3, "examples": 2}}
    train(tmp_path / "train", [stage], **fields)
    named = [
        {json.loads(line)["image"] for line in (tmp_path / "train" / name).read_text().splitlines()}
        for name in ("unfit.jsonl", "unfit_held_out.jsonl")
    ]
    assert not named[0] & named[1]
    assert len(named[0] | named[1]) == 6


def holding_out(folder: Path, sizes: list[tuple[int, int]]) -> DiffusionTask:
    """A task that holds out one image, of each of these sizes, of as many data sets."""
    mix = CaptionMix({"caption": 1.0}, dropout=0.0)
    datasets = tuple(Dataset(number, number + 1, mix) for number in range(len(sizes)))
    settings = TaskSettings(
        model=str(tiny.sd1()),
        revision=None,
        random_seed=None,
        trained=LoraSettings(rank=2),
        mix=mix,
        resolution=32,
        posterior="mode",
        records=paint(folder / "kept", [(48, 48)] * 2),
        seed=7,
        folder=folder,
        encode_batch_size=4,
        buckets=BucketSettings(step=8, unfit="drop"),
        held_out=(paint(folder / "held", sizes), datasets),
    )
    return DiffusionTask(settings, Denoising())


def test_images_held_out_of_one_data_set_may_all_fit_no_bucket(tmp_path: Path) -> None:
    held_out = holding_out(tmp_path, [(200, 20), (48, 48)]).held_out
    assert held_out is not None
    assert (held_out.framing.plan.of_record >= 0).tolist() == [False, True]


def test_images_held_out_of_which_none_fits_a_bucket_are_refused_by_their_setting(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"held_out\.share: none of the 2 images held out fits a bucket"):
        holding_out(tmp_path, [(200, 20), (20, 200)])


def test_inspect_refuses_a_bucket_that_is_too_small_without_what_is_held_out(tmp_path: Path) -> None:
    stage = pictures(tmp_path, "own", [(48, 48)] * 6 + [(60, 42)] * 2, "dog {}")
    rows = RecordTable(stage / RECORDS_FILE)
    # Of the two wide images one is held out: the share lies between their draws.
    share = sum(derive_key(7, f"held out {row.id}") for row in rows[6:]) / 2.0**129
    fields = {"resolution": 32, "buckets": BUCKETS, "held_out": {"share": share, "examples": 2}}
    with pytest.raises(DataError, match=r"a batch of 2 is larger .* 40x24 \(1\)") as ran:
        train(tmp_path / "train", [stage], **fields)
    given = {**BASE, "model": str(tiny.sd1()), "data_from": "own", "trained": LORA, "loop": LOOP, **fields}
    with pytest.raises(DataError) as inspected:
        tiny.from_recipe(Train, given).inspect(InspectContext({"data_from": [Preview(rows)]}, 7))
    assert str(inspected.value) == str(ran.value)
