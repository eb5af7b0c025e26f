"""Latents and conditioning on disk: encoded once, whole or not there, and the same as those made at once."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from painted import PaintedFamily, paint
from PIL import Image
from safetensors.torch import load_file

from t2i import lora, processes
from t2i.data import encode
from t2i.data.buckets import plan_buckets, square_plan
from t2i.data.captions import CaptionMix
from t2i.data.encode import Framing, LatentStore, encode_latents, encode_texts, join_conditioning, load_pixels
from t2i.data.examples import Dataset, ImageExamples, LatentExamples, normal
from t2i.data.settings import BucketSettings, MaskSettings, ViewSettings
from t2i.data.sources import load_records
from t2i.data.views import Views
from t2i.errors import DataError, RunError
from t2i.families.sd1 import SD1
from t2i.records import CaptionedImage

MIX = CaptionMix({"caption": 1.0}, dropout=0.5)


def framed(records: list[CaptionedImage], size: int = 32, **fields: Any) -> Framing:
    views = Views(ViewSettings.model_validate(fields.pop("views", {})), 1)
    return Framing(records, fields.pop("plan", square_plan(len(records), size)), views, **fields)


def encoded(family: Any, framing: Framing, folder: Path, *, batch_size: int = 4) -> LatentStore:
    return encode_latents(family, framing, folder, batch_size=batch_size)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


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
    return encoded(family, framed(records), tmp_path_factory.mktemp("latents"))


@pytest.fixture
def pictures(tmp_path: Path) -> list[CaptionedImage]:
    return paint(tmp_path / "pictures", [(32, 32), (40, 32), (32, 48), (64, 64)])


def test_latents_are_those_of_the_cropped_pictures_bit_for_bit(
    family: SD1, records: list[CaptionedImage], store: LatentStore
) -> None:
    assert len(store) == len(records) == 6
    for part in (range(4), range(4, 6)):
        pixels = torch.stack([load_pixels(records[number], 32) for number in part])
        with torch.no_grad():
            posterior = family.encode_images(pixels)
        for place, number in enumerate(part):
            found = store.read(number)
            assert found.mask is None
            assert torch.equal(found.mean, posterior.mean[place])
            assert found.std is not None
            assert torch.equal(found.std, posterior.std[place])


def test_interrupted_run_goes_on_at_the_same_file_borders(
    pictures: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SHARD_SIZE", 2)
    family = PaintedFamily()
    encoded(family, framed(pictures), tmp_path / "a", batch_size=2)
    whole = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in files(tmp_path / "a")}
    assert len(whole) == 2
    files(tmp_path / "a")[0].unlink()
    family.encoded.clear()
    encoded(family, framed(pictures), tmp_path / "a", batch_size=2)
    assert family.encoded == [2]
    assert {path.relative_to(tmp_path / "a"): path.read_bytes() for path in files(tmp_path / "a")} == whole


@pytest.mark.parametrize(
    "change",
    [
        {"size": 24},
        {"posterior": "mode"},
        {"views": {"crop": "random", "crops": 4}},  # some may happen to be the centre
        {"masks": MaskSettings(missing="whole")},
        {"masks": MaskSettings(missing="whole", outside=0.5)},
    ],
    ids=str,
)
def test_changed_settings_miss_the_cache(
    pictures: list[CaptionedImage], tmp_path: Path, change: dict[str, Any]
) -> None:
    family = PaintedFamily()
    encoded(family, framed(pictures[1:3]), tmp_path)
    encoded(family, framed(pictures[1:3], masks=MaskSettings(missing="whole", outside=0.25)), tmp_path)
    family.encoded.clear()
    encoded(family, framed(pictures[1:3]), tmp_path)
    assert family.encoded == []
    encoded(family, framed(pictures[1:3], **change), tmp_path)
    assert sum(family.encoded) >= 2


def test_latents_that_are_not_finite_are_never_kept(pictures: list[CaptionedImage], tmp_path: Path) -> None:
    family = PaintedFamily(scale=float("nan"))
    with pytest.raises(RunError, match=re.escape(f"latents of {pictures[0].image}, ")):
        encoded(family, framed(pictures[:2]), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_another_encoder_misses_and_another_runs_images_hit(pictures: list[CaptionedImage], tmp_path: Path) -> None:
    first, changed = PaintedFamily(), PaintedFamily(scale=0.5)
    encoded(first, framed(pictures[:3]), tmp_path)
    encoded(changed, framed(pictures[:3]), tmp_path)
    assert changed.encoded == [3]
    moved = [dataclasses.replace(row, image=row.image) for row in reversed(pictures)]
    second = PaintedFamily()
    found = encoded(second, framed(moved), tmp_path)
    assert second.encoded == [1]
    # By the bytes of the image, not by its place in the data.
    assert [round(float(found.read(place).mean[0, 0, 0] + 1) * 127.5 / 16) for place in range(4)] == [3, 2, 1, 0]


def test_flips_and_crops_are_encoded_from_pixels(tmp_path: Path) -> None:
    [row] = paint(tmp_path / "pictures", [(64, 32)])
    pixels = np.random.default_rng(1).integers(0, 255, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(row.image)
    row = dataclasses.replace(row, id=encode.content_id(Path(row.image)))
    framing = framed([row], views={"crop": "random", "crops": 2, "flip": True})
    family = PaintedFamily()
    found = encoded(family, framing, tmp_path / "cache")
    assert sum(family.encoded) == 4
    for number in range(4):
        view = framing.view(0, number)
        cut = pixels[view.top : view.top + 32, view.left : view.left + 32]
        cut = cut[:, ::-1] if view.flipped else cut
        expected = torch.from_numpy(cut.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
        expected = expected.reshape(3, 4, 8, 4, 8).mean((2, 4))
        torch.testing.assert_close(found.read(0, number).mean, expected)
    with pytest.raises(KeyError):
        found.read(0, 4)


def test_masks_lie_beside_the_latents_and_a_changed_mask_misses(tmp_path: Path) -> None:
    rows = paint(tmp_path / "pictures", [(32, 32), (32, 32)])
    mask = Path(rows[0].image).with_suffix(".mask.png")
    Image.fromarray(np.repeat([[255] * 16 + [0] * 16], 32, 0).astype(np.uint8)).save(mask)
    framing = framed(rows, masks=MaskSettings(missing="whole"))
    family = PaintedFamily()
    first = encoded(family, framing, tmp_path / "cache")
    halves = first.read(0).mask
    assert halves is not None
    assert halves.tolist() == [[[1, 1, 0, 0]] * 4]
    assert torch.equal(first.read(1).mask, torch.ones(1, 4, 4))
    Image.fromarray(np.full((32, 32), 255, dtype=np.uint8)).save(mask)
    family.encoded.clear()
    again = encoded(family, framing, tmp_path / "cache")
    assert family.encoded == [1]
    assert torch.equal(again.read(0).mask, torch.ones(1, 4, 4))


def test_mask_beside_two_images_of_its_name_is_refused(tmp_path: Path) -> None:
    rows = paint(tmp_path / "pictures", [(32, 32), (32, 32)])
    mask = Path(rows[0].image).with_suffix(".mask.png")
    Image.new("L", (32, 32), 255).save(mask)
    Image.new("RGB", (32, 32)).save(Path(rows[1].image).with_suffix(".JPG"))
    settings = MaskSettings(missing="whole")
    assert len(encoded(PaintedFamily(), framed(rows, masks=settings), tmp_path / "cache")) == 2
    Image.new("RGB", (32, 32)).save(Path(rows[0].image).with_suffix(".JPG"))
    with pytest.raises(DataError, match=r"0000\.mask\.png: 2 images are called 0000; rename all but one"):
        encoded(PaintedFamily(), framed(rows, masks=settings), tmp_path / "cache")
    named = [dataclasses.replace(row, extra={"mask": "0000.mask.png"}) for row in rows]
    assert len(encoded(PaintedFamily(), framed(named, masks=MaskSettings(column="mask")), tmp_path / "cache")) == 2


def test_processes_share_the_work_and_miss_what_another_did_not_do(
    pictures: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SHARD_SIZE", 1)
    for rank, lacking in ((1, 2), (0, 1)):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(processes, "count", lambda: 2)
        monkeypatch.setattr(processes, "wait", lambda: None)
        monkeypatch.setattr(processes, "first", lambda work: work())
        with pytest.raises(RunError, match=rf"{lacking} of 4 rows are missing: another process has not written"):
            encoded(PaintedFamily(), framed(pictures), tmp_path / "shared")
        assert len(files(tmp_path / "shared")) == 4 - lacking
    monkeypatch.undo()
    last = PaintedFamily()
    found = encoded(last, framed(pictures), tmp_path / "shared")
    assert last.encoded == [1]
    expected = encoded(PaintedFamily(), framed(pictures), tmp_path / "alone")
    assert all(torch.equal(found.read(number).mean, expected.read(number).mean) for number in range(4))


def test_image_whose_bytes_are_not_those_of_its_record_is_refused(
    pictures: list[CaptionedImage], tmp_path: Path
) -> None:
    Image.new("RGB", (40, 32), "red").save(pictures[1].image)
    with pytest.raises(DataError, match=r"0001\.png: id .* its record says .*changed since"):
        encoded(PaintedFamily(), framed(pictures), tmp_path / "cache")
    assert not files(tmp_path / "cache")


def test_image_that_has_gone_is_named(pictures: list[CaptionedImage], tmp_path: Path) -> None:
    gone = dataclasses.replace(pictures[0], image=str(tmp_path / "gone.png"))
    with pytest.raises(DataError, match=r"gone\.png: no such image"):
        encoded(PaintedFamily(), framed([*pictures[1:], gone]), tmp_path / "cache")
    assert not files(tmp_path / "cache")


def test_equal_images_are_encoded_once(pictures: list[CaptionedImage], tmp_path: Path) -> None:
    family = PaintedFamily()
    found = encoded(family, framed([pictures[0], pictures[1], pictures[0]]), tmp_path)
    assert family.encoded == [2]
    assert torch.equal(found.read(0).mean, found.read(2).mean)


def test_dropped_images_are_not_encoded(pictures: list[CaptionedImage], tmp_path: Path) -> None:
    sizes = np.array([(row.width, row.height) for row in pictures])
    settings = BucketSettings(step=8, max_aspect=1.3, unfit="drop")
    plan = plan_buckets(sizes, 32, settings, lambda record: pictures[record].image)
    family = PaintedFamily()
    found = encoded(family, framed(pictures, plan=plan), tmp_path)
    assert sum(family.encoded) == 3
    with pytest.raises(KeyError):
        found.read(2)
    assert found.read(3).mean.shape == (3, 4, 4)


def test_captions_are_encoded_once_with_the_empty_prompt(tmp_path: Path) -> None:
    family: Any = PaintedFamily()
    texts = ["picture 3", "picture 14", "picture 3"]
    found = encode_texts(family, texts, tmp_path, batch_size=2)
    assert sorted(text for text in family.texts[1:]) == ["", "picture 14", "picture 3"]
    assert found.read("picture 14").prompt_embeds.tolist() == [[10.0, 14.0]] * 2
    assert found.read("").pooled.tolist() == [0.0, -1.0]  # pyright: ignore[reportOptionalMemberAccess]
    assert found.read("").sizes is None
    with pytest.raises(KeyError):
        found.read("another")
    family.texts.clear()
    encode_texts(family, [*texts, "picture 15"], tmp_path, batch_size=2)
    assert family.texts == ["", "picture 15"]  # the first is asked for its shape
    other: Any = PaintedFamily(tokens=3)
    encode_texts(other, texts, tmp_path, batch_size=2)
    assert len(other.texts) == 4


def test_cached_conditioning_is_that_of_the_family(family: SD1, tmp_path: Path) -> None:
    prompts = ["a cat", "", "the red moon"]
    found = encode_texts(family, [prompts[0], prompts[2]], tmp_path, batch_size=3)
    joined = join_conditioning([found.read(prompt) for prompt in prompts])
    with torch.no_grad():
        expected = family.encode_prompts(prompts)
    torch.testing.assert_close(joined.prompt_embeds, expected.prompt_embeds, atol=1e-6, rtol=1e-6)
    assert (joined.pooled, joined.mask, joined.sizes) == (None, None, None)


def latent_examples(records: list[CaptionedImage], store: LatentStore, **fields: Any) -> LatentExamples:
    datasets = fields.pop("datasets", (Dataset(0, len(records), MIX),))
    return LatentExamples(framed(records), store, datasets, 3, **fields)


def test_example_is_a_posterior_draw_with_its_own_noise_and_caption(
    records: list[CaptionedImage], store: LatentStore
) -> None:
    examples = latent_examples(records, store)
    found = examples.example(2, 5, 1)
    mean, std = store.read(2).mean, store.read(2).std
    assert std is not None
    assert torch.equal(found.latents, mean + std * normal(3, "posterior", 5, 1, shape=mean.shape))
    assert torch.equal(found.noise, normal(3, "noise", 5, 1, shape=mean.shape))
    assert 0 <= found.uniform < 1
    assert found.prompt == MIX.draw(records[2], 3, 5, 1)
    assert not torch.equal(found.noise, examples.example(2, 5, 2).noise)
    assert not torch.equal(found.noise, examples.example(2, 6, 1).noise)
    assert examples.describe(2) == records[2].image


def test_mode_of_the_posterior_is_its_mean_and_takes_half_the_disk(
    family: SD1, records: list[CaptionedImage], store: LatentStore, tmp_path: Path
) -> None:
    modes = encoded(family, framed(records, posterior="mode"), tmp_path)
    assert modes.read(2).std is None
    assert all("std" not in load_file(path) for path in files(tmp_path))
    sample = latent_examples(records, store).example(2, 5, 1)
    mode = latent_examples(records, modes).example(2, 5, 1)
    assert torch.equal(mode.latents, store.read(2).mean)
    assert torch.equal(mode.noise, sample.noise)
    assert (mode.uniform, mode.prompt) == (sample.uniform, sample.prompt)


def test_collated_batch_keeps_the_order_of_its_examples(records: list[CaptionedImage], store: LatentStore) -> None:
    examples = latent_examples(records, store)
    rows = [examples.example(record, 0, position) for position, record in enumerate((4, 0, 2))]
    batch = examples.collate(rows)
    assert batch.latents.shape == batch.noise.shape == (3, 4, 16, 16)
    for position, row in enumerate(rows):
        assert torch.equal(batch.latents[position], row.latents)
        assert torch.equal(batch.noise[position], row.noise)
        assert float(batch.uniform[position]) == pytest.approx(row.uniform, rel=1e-7)
        assert batch.prompts[position] == row.prompt
    assert (batch.sizes, batch.conditioning, batch.weights, batch.mask) == (None, None, None, None)
    assert batch.keys == tuple(row.key for row in rows)


def test_key_is_a_function_of_step_and_position_alone(records: list[CaptionedImage], store: LatentStore) -> None:
    examples = latent_examples(records, store)
    assert examples.example(0, 4, 1).key == examples.example(3, 4, 1).key
    places = [(step, position) for step in range(3) for position in range(3)]
    assert len({examples.example(0, *place).key for place in places}) == 9


def test_batch_carries_sizes_and_weights_where_there_are_some(
    records: list[CaptionedImage], store: LatentStore
) -> None:
    datasets = (Dataset(0, 4, MIX), Dataset(4, 6, CaptionMix({"caption": 1.0}, 0.0), loss_weight=0.25))
    examples = latent_examples(records, store, datasets=datasets, takes_sizes=True)
    batch = examples.collate([examples.example(record, 0, position) for position, record in enumerate((3, 4, 5, 0))])
    assert batch.weights is not None
    assert batch.weights.tolist() == [1, 0.25, 0.25, 1]
    assert batch.sizes is not None
    expected = [examples.framing.view(record, 0).conditions for record in (3, 4, 5, 0)]
    assert batch.sizes.tolist() == [list(row) for row in expected]
    assert batch.sizes.dtype == torch.float32
    assert batch.prompts[1] == records[4].caption("caption")


def test_streams_follow_repeats_or_weights(records: list[CaptionedImage], store: LatentStore) -> None:
    def rates(*datasets: Dataset) -> list[Fraction]:
        return [stream.rate for stream in latent_examples(records, store, datasets=datasets).streams()]

    assert rates(Dataset(0, 4, MIX, repeats=5), Dataset(4, 6, MIX)) == [20, 2]
    # Shares of 3/4 and 1/4 of the six examples of a pass.
    weighted = (Dataset(0, 4, MIX, weight=Fraction(3)), Dataset(4, 6, MIX, weight=Fraction(1)))
    assert rates(*weighted) == [Fraction(9, 2), Fraction(3, 2)]


def test_image_examples_carry_pixels_caption_and_labels(records: list[CaptionedImage]) -> None:
    def labels(record: CaptionedImage) -> dict[str, np.ndarray]:
        return {"width": np.array(record.width), "cells": np.full((2, 2), record.height)}

    examples = ImageExamples(records, 32, 3, (4, 2, 2), CaptionMix({"caption": 1.0}), labels)
    batch = examples.collate([examples.example(record, 0, record) for record in (1, 0)])
    assert torch.equal(batch.pixels[1], load_pixels(records[0], 32))
    assert batch.noise.shape == (2, 4, 2, 2)
    assert batch.prompts == (records[1].caption("caption"), records[0].caption("caption"))
    assert batch.labels["width"].tolist() == [records[1].width, records[0].width]
    assert batch.labels["cells"].shape == (2, 2, 2)
