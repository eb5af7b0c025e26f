"""The filter stage by the embedded CLIP's embeddings: planted copies are found, and concepts are balanced."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from pydantic import ValidationError

from rewards.clip_encoder import ClipEncoder
from t2i.data.images import seen_size
from t2i.data.sources import load_records, save_records
from t2i.errors import ModelError
from t2i.records import CaptionedImage
from t2i.shapes import render, sample_scene
from t2i.stages.filter import Filter

CLIP = "pkg:t2i.shapes/assets/clip"
SCENES = (0, 1, 2, 3, 4, 5, 6, 7)
"""Of the first scenes of seed 5, those of which no two are nearer than 0.9 for the embedded CLIP."""


@pytest.fixture
def planted(tmp_path: Path) -> list[CaptionedImage]:
    """Scenes, then of each a larger, a smaller and a JPEG copy."""
    folder = tmp_path / "run/images"
    folder.mkdir(parents=True)
    scenes = {number: render(sample_scene(5, number, "train", max_objects=2)) for number in SCENES}
    for number, image in scenes.items():
        image.save(folder / f"{number}.png")
        image.resize((128, 128), Image.Resampling.LANCZOS).save(folder / f"{number}-large.png")
        image.resize((48, 48), Image.Resampling.LANCZOS).save(folder / f"{number}-small.png")
        image.save(folder / f"{number}-again.jpg", quality=75)
    copies = [f"{number}-{kind}" for kind in ("large.png", "small.png", "again.jpg") for number in SCENES]
    names = [f"{number}.png" for number in SCENES] + copies
    return [CaptionedImage(name, str(folder / name), *seen_size(folder / name)) for name in names]


def run(tmp_path: Path, rows: list[CaptionedImage], seed: int = 7, **rules: Any) -> tuple[list[str], dict[str, str]]:
    """(names kept, name -> reason)."""
    source, folder = tmp_path / "run/caption", tmp_path / "run/filter"
    source.mkdir(parents=True, exist_ok=True)
    save_records(source, rows)
    tiny.run_stage(Filter, folder, {"embeddings": {"encoder": CLIP, **rules}}, {"data_from": source}, seed=seed)
    kept = [Path(found.image).name for found in load_records(folder / "records.jsonl")]
    lines = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    return kept, {Path(line["image"]).name: line["reason"] for line in lines}


@pytest.mark.parametrize("batch_size", [5, 32])
def test_resized_and_reencoded_copies_are_found_and_other_scenes_are_kept(
    tmp_path: Path, planted: list[CaptionedImage], batch_size: int
) -> None:
    kept, dropped = run(tmp_path, planted, near=0.98, batch_size=batch_size)
    assert kept == [f"{number}.png" for number in SCENES]
    assert len(dropped) == 3 * len(SCENES)
    for name, reason in dropped.items():
        found = re.fullmatch(r"embeddings\.near: cosine (0\.9[89]\d\d|1\.0000) to (.+)", reason)
        assert found, reason
        assert Path(found[2]).name == f"{name.split('-')[0]}.png"


def test_concepts_keep_so_many_whatever_the_batch_size(tmp_path: Path, planted: list[CaptionedImage]) -> None:
    first = run(tmp_path, planted, clusters=4, kept_per_cluster=2, batch_size=32)
    kept, dropped = first
    assert 2 <= len(kept) <= 8
    assert len(kept) + len(dropped) == len(planted)
    assert all(re.fullmatch(r"embeddings\.clusters: cluster [0-3] has \d+ images", why) for why in dropped.values())
    assert run(tmp_path, planted, clusters=4, kept_per_cluster=2, batch_size=3) == first


def test_copies_go_before_concepts_are_counted(tmp_path: Path, planted: list[CaptionedImage]) -> None:
    kept, dropped = run(tmp_path, planted, near=0.98, clusters=1, kept_per_cluster=3)
    assert kept == ["0.png", "1.png", "2.png"]
    assert [why for why in dropped.values() if "clusters" in why] == ["embeddings.clusters: cluster 0 has 8 images"] * 5


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ({}, "give `near`, or `clusters`"),
        ({"near": 0}, "greater than 0"),
        ({"near": 1.01}, "less than or equal to 1"),
        ({"clusters": 3}, "`clusters` and `kept_per_cluster` together"),
        ({"near": 0.9, "kept_per_cluster": 3}, "`clusters` and `kept_per_cluster` together"),
        ({"clusters": 0, "kept_per_cluster": 1}, "greater than or equal to 1"),
        ({"clusters": 1, "kept_per_cluster": 0}, "greater than or equal to 1"),
        ({"near": 0.9, "treshold": 1}, "Extra inputs"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        tiny.from_recipe(Filter, {"data_from": "caption", "embeddings": {"encoder": CLIP, **rules}})


def test_encoder_that_is_no_clip_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    fields = {"data_from": "caption", "embeddings": {"encoder": str(tmp_path), "near": 0.9}}
    with pytest.raises(ModelError, match="bert"):
        tiny.from_recipe(Filter, fields).check()


def test_an_interrupted_run_goes_on_with_the_batch_it_was_in(
    tmp_path: Path, planted: list[CaptionedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(tmp_path / "whole", planted, near=0.98, clusters=2, kept_per_cluster=3, batch_size=5)
    encode, sizes = ClipEncoder.encode_images, []

    def interrupted(self: ClipEncoder, images: Any) -> Any:
        if len(sizes) == 3:
            raise KeyboardInterrupt
        sizes.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(ClipEncoder, "encode_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", planted, near=0.98, clusters=2, kept_per_cluster=3, batch_size=5)
    folder = tmp_path / "cut/run/filter/embeddings"
    assert len(list(folder.iterdir())) == 3
    sizes.insert(0, 0)  # past the interruption
    assert run(tmp_path / "cut", planted, near=0.98, clusters=2, kept_per_cluster=3, batch_size=5) == expected
    assert sizes[4:] == [5, 5, 5, 2]
    assert not folder.exists()
