"""Latents on disk: encoded once, whole or not there, and the same as those made at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from t2i import lora
from t2i.data import encode
from t2i.data.captions import CaptionMix
from t2i.data.encode import LatentStore, encode_records, load_pixels, shard_path
from t2i.data.examples import ImageExamples, LatentExamples, normal
from t2i.data.sources import load_records
from t2i.errors import DataError
from t2i.families.sd1 import SD1
from t2i.records import CaptionedImage


@pytest.fixture(scope="module")
def family() -> SD1:
    loaded = tiny.load_sd1()
    lora.freeze(loaded)
    return loaded


@pytest.fixture(scope="module")
def records() -> list[CaptionedImage]:
    return load_records(tiny.captioned_photographs() / "records.jsonl")


@pytest.fixture(scope="module")
def store(family: SD1, records: list[CaptionedImage], tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return encode_records(family, records, 32, tmp_path_factory.mktemp("latents"), batch_size=4)


def test_latents_are_those_of_the_cropped_pictures(
    family: SD1, records: list[CaptionedImage], store: LatentStore
) -> None:
    pixels = torch.stack([load_pixels(record, 32) for record in records])
    with torch.no_grad():
        posterior = family.encode_images(pixels)
    assert len(store) == len(records)
    for number in range(len(records)):
        mean, std = store[number]
        assert mean.shape == (4, 16, 16)
        torch.testing.assert_close(mean, posterior.mean[number], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(std, posterior.std[number], atol=1e-5, rtol=1e-5)


def test_latents_belong_to_their_own_records_over_several_files(
    family: SD1, records: list[CaptionedImage], store: LatentStore, tmp_path: Path
) -> None:
    many = [records[number % len(records)] for number in range(encode.SHARD_SIZE + 3)]
    long = encode_records(family, many, 32, tmp_path, batch_size=64)
    assert len(list(tmp_path.iterdir())) == 2
    for number in (0, 1, 5, 255, 256, 258):
        torch.testing.assert_close(long[number][0], store[number % len(records)][0], atol=1e-5, rtol=1e-5)


def test_finished_file_is_kept_and_a_missing_one_made_again(
    family: SD1, records: list[CaptionedImage], store: LatentStore, tmp_path: Path
) -> None:
    marked = {"mean": torch.ones(len(records), 4, 16, 16), "std": torch.ones(len(records), 4, 16, 16)}
    save_file(marked, shard_path(tmp_path, 0))
    (tmp_path / ".latents-00000.safetensors.77.tmp").write_bytes(b"half")
    kept = encode_records(family, records, 32, tmp_path, batch_size=4)
    assert torch.equal(kept[0][0], torch.ones(4, 16, 16))
    shard_path(tmp_path, 0).unlink()
    made = encode_records(family, records, 32, tmp_path, batch_size=4)
    expected = load_file(shard_path(store.folder, 0))
    assert all(torch.equal(value, expected[name]) for name, value in load_file(shard_path(tmp_path, 0)).items())
    # What is read is what is on disk now, not what was there before.
    assert torch.equal(made[0][0], expected["mean"][0])


def test_images_that_are_too_small_are_listed_before_anything_is_encoded(
    family: SD1, records: list[CaptionedImage], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"3 of 6 images have less than .*64x64.*chelsea\.png \(64x43\), .*min_side"):
        encode_records(family, records, 64, tmp_path / "latents", batch_size=4)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_image_that_has_gone_is_named(family: SD1, records: list[CaptionedImage], tmp_path: Path) -> None:
    gone = dataclasses.replace(records[0], image=str(tmp_path / "gone.png"))
    with pytest.raises(DataError, match=r"gone\.png: no such image"):
        encode_records(family, [*records, gone], 32, tmp_path, batch_size=4)
    assert not shard_path(tmp_path, 0).exists()


MIX = CaptionMix({"caption": 1.0}, dropout=0.5)


def test_example_is_a_posterior_draw_with_its_own_noise_and_caption(
    records: list[CaptionedImage], store: LatentStore
) -> None:
    examples = LatentExamples(records, store, MIX, seed=3)
    latents, noise, uniform, caption = examples.example(2, 5, 1)
    mean, std = store[2]
    assert torch.equal(latents, mean + std * normal(3, "posterior", 5, 1, shape=mean.shape))
    assert torch.equal(noise, normal(3, "noise", 5, 1, shape=mean.shape))
    assert 0 <= uniform < 1
    assert caption == MIX.draw(records[2], 3, 5, 1)
    assert not torch.equal(noise, examples.example(2, 5, 2)[1])
    assert not torch.equal(noise, examples.example(2, 6, 1)[1])
    assert examples.describe(2) == records[2].image


def test_mode_of_the_posterior_is_its_mean(records: list[CaptionedImage], store: LatentStore) -> None:
    sample = LatentExamples(records, store, MIX, seed=3).example(2, 5, 1)
    mode = LatentExamples(records, store, MIX, seed=3, posterior="mode").example(2, 5, 1)
    assert torch.equal(mode[0], store[2][0])
    assert torch.equal(mode[1], sample[1])
    assert mode[2:] == sample[2:]


def test_collated_batch_keeps_the_order_of_its_examples(records: list[CaptionedImage], store: LatentStore) -> None:
    examples = LatentExamples(records, store, MIX, seed=3)
    rows = [examples.example(record, 0, position) for position, record in enumerate((4, 0, 2))]
    batch = examples.collate(rows)
    assert batch.latents.shape == batch.noise.shape == (3, 4, 16, 16)
    for position, (latents, noise, uniform, caption) in enumerate(rows):
        assert torch.equal(batch.latents[position], latents)
        assert torch.equal(batch.noise[position], noise)
        assert float(batch.uniform[position]) == pytest.approx(uniform, rel=1e-7)
        assert batch.prompts[position] == caption


def test_image_examples_carry_pixels_caption_and_labels(records: list[CaptionedImage]) -> None:
    import numpy as np

    def labels(record: CaptionedImage) -> dict[str, np.ndarray]:
        return {"width": np.array(record.width), "cells": np.full((2, 2), record.height)}

    examples = ImageExamples(records, 32, 3, (4, 2, 2), CaptionMix({"caption": 1.0}), labels)
    batch = examples.collate([examples.example(record, 0, record) for record in (1, 0)])
    assert torch.equal(batch.pixels[1], load_pixels(records[0], 32))
    assert batch.noise.shape == (2, 4, 2, 2)
    assert batch.prompts == (records[1].caption("caption"), records[0].caption("caption"))
    assert batch.labels["width"].tolist() == [records[1].width, records[0].width]
    assert batch.labels["cells"].shape == (2, 2, 2)
