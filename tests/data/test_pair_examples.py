"""Both images of a pair share everything that is random, and wrong pairs are refused before anything is encoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from painted import PaintedFamily, colour, shown_number
from PIL import Image

from t2i.data.batches import KeyedBatches
from t2i.data.captions import CaptionMix
from t2i.data.diffusion import DiffusionData
from t2i.data.pair_examples import PROMPT, LatentPairs, PairData
from t2i.data.pairs import iterate_pairs, save_pairs
from t2i.data.settings import BucketSettings, CacheSettings, ViewSettings
from t2i.errors import DataError
from t2i.objectives.pairs import PairBatch
from t2i.records import PreferencePair

COUNT = 12
VIEWS = ViewSettings(flip=True, crop="random", crops=3)


def write_pairs(folder: Path, *, sizes: tuple[tuple[int, int], ...] = ((56, 40),)) -> Path:
    """Pair n prefers picture n to picture 100 + n; the left half of each is darker, so that a flip shows."""
    folder.mkdir()
    rows = []
    for number in range(COUNT):
        for picture in (number, 100 + number):
            size = sizes[number % len(sizes)]
            image = Image.new("RGB", size, colour(picture))
            # Blue tells the place: it rises from left to right and from top to bottom.
            blue = Image.new("L", size)
            blue.putdata([3 * (x + y) for y in range(size[1]) for x in range(size[0])])
            red, green, _ = image.split()
            Image.merge("RGB", (red, green, blue)).save(folder / f"{picture}.png")
        rows.append(PreferencePair(f"prompt {number}", f"{number}.png", f"{100 + number}.png"))
    return save_pairs(folder, rows)


def data_of(path: Path, batch_size: int = 4, **fields: Any) -> PairData:
    mix = CaptionMix({PROMPT: 1.0}, fields.pop("dropout", 0.3))
    fields = {"views": VIEWS, "encode_batch_size": 5, **fields}
    return PairData.of(iterate_pairs(path), mix, DiffusionData((), (), 3, **fields), batch_size)


def encoded(path: Path, folder: Path, **fields: Any) -> tuple[LatentPairs, PaintedFamily]:
    family: Any = PaintedFamily(takes_sizes=True)
    data = data_of(path, **fields)
    folder.mkdir()
    return data.encode(family, data.plan(32), folder), family


def drawn(examples: LatentPairs, steps: int, portion: int = 4) -> list[PairBatch]:
    return list(KeyedBatches(examples, 7, 4, portion).micro_batches(0, steps, 0, 1))


def test_both_images_of_a_pair_share_crop_flip_noise_and_prompt(tmp_path: Path) -> None:
    examples, _ = encoded(write_pairs(tmp_path / "pairs"), tmp_path / "cache")
    places, prompts = set(), set()
    for batch in drawn(examples, 12):
        for chosen, rejected, prompt in zip(batch.chosen, batch.rejected, batch.prompts, strict=True):
            number = shown_number(chosen)
            assert shown_number(rejected) == 100 + number
            # The posterior's noise is shared as well, so the channel that tells the place is equal to the last bit.
            assert torch.equal(chosen[2], rejected[2])
            assert prompt in ("", f"prompt {number}")
            places.add(tuple(chosen[2].flatten().round(decimals=2).tolist()))
            prompts.add(prompt)
        assert batch.sizes is not None
        assert batch.noise.shape == batch.chosen.shape
    assert len(places) > 10, "crops and flips must vary"
    assert "" in prompts


def test_each_image_is_encoded_once_whatever_the_number_of_its_pairs(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs")
    rows = list(iterate_pairs(path))
    save_pairs(path.parent, [*rows, *rows])
    _, family = encoded(path, tmp_path / "cache", views=ViewSettings())
    assert sum(family.encoded) == 2 * COUNT


def test_pairs_do_not_depend_on_portions(tmp_path: Path) -> None:
    examples, _ = encoded(write_pairs(tmp_path / "pairs"), tmp_path / "cache")
    whole, parts = drawn(examples, 3), drawn(examples, 3, portion=2)
    for name in ("chosen", "rejected", "noise", "uniform", "sizes"):
        joined = torch.cat([getattr(batch, name) for batch in parts])
        assert torch.equal(joined, torch.cat([getattr(batch, name) for batch in whole])), name


def test_the_share_of_votes_stays_with_its_pair(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs")
    rows = [replace(row, preference=0.6 + 0.02 * number) for number, row in enumerate(iterate_pairs(path))]
    save_pairs(path.parent, rows)
    examples, _ = encoded(path, tmp_path / "cache")
    for batch in drawn(examples, 6):
        assert batch.preference is not None
        shown = torch.tensor([0.6 + 0.02 * shown_number(chosen) for chosen in batch.chosen])
        torch.testing.assert_close(batch.preference, shown)


def test_a_batch_of_buckets_is_of_one_size(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs", sizes=((64, 40), (40, 64)))
    examples, _ = encoded(path, tmp_path / "cache", buckets=BucketSettings(step=8))
    shapes = {tuple(batch.chosen.shape) for batch in drawn(examples, 8)}
    assert len(shapes) == 2
    assert all(shape[0] == 4 for shape in shapes)


def test_prompts_are_cached_once(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs")
    examples, family = encoded(path, tmp_path / "cache", cache=CacheSettings(text=True))
    assert sorted(filter(None, family.texts)) == sorted(f"prompt {number}" for number in range(COUNT))
    [batch] = drawn(examples, 1)
    assert len(batch.conditioning.prompt_embeds) == 4


def changed(path: Path, **values: Any) -> Path:
    """The same pairs, all of them with some values replaced."""
    import dataclasses

    save_pairs(path.parent, [dataclasses.replace(row, **values) for row in iterate_pairs(path)])
    return path


def test_ties_are_left_out_and_counted(tmp_path: Path) -> None:
    import dataclasses

    path = write_pairs(tmp_path / "pairs")
    rows = list(iterate_pairs(path))
    save_pairs(path.parent, [dataclasses.replace(rows[0], preference=0.5), *rows[1:]])
    assert data_of(path).facts() == {"pairs": COUNT - 1, "ties_left_out": 1, "images": 2 * COUNT - 2}


def test_wrong_pairs_are_refused(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs")
    with pytest.raises(DataError, match=r"12 pairs .* are fewer than a batch of 13"):
        data_of(path, batch_size=13)
    with pytest.raises(DataError, match="all 12 pairs are ties"):
        data_of(changed(path, preference=0.5))
    changed(path, preference=1.0)
    Image.new("RGB", (56, 44)).save(path.parent / "3.png")
    with pytest.raises(DataError, match=r"3\.png has the id .* make the pairs again"):
        data_of(path)
    text = path.read_text()
    path.write_text(text.replace(next(iterate_pairs_ids(text)), ""))
    with pytest.raises(DataError, match=r"3\.png is 56x44 and .*103\.png 56x40: the images of a pair must be of one"):
        data_of(path)
    (path.parent / "103.png").unlink()
    with pytest.raises(DataError, match=r"pair 4: there is no image .*103\.png"):
        data_of(path)


def iterate_pairs_ids(text: str) -> Any:
    """Id of the chosen image of pair 3, as the file states it."""
    import json

    yield json.loads(text.splitlines()[3])["chosen_id"]


def test_same_image_twice_is_refused(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs")
    path.write_text('{"prompt": "p", "chosen": "1.png", "rejected": "1.png"}\n')
    with pytest.raises(DataError, match="are the same image"):
        data_of(path, batch_size=1)


def test_bucket_with_fewer_pairs_than_a_batch_is_refused(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs", sizes=((64, 40), (40, 64)))
    with pytest.raises(DataError, match="2 of 2 buckets hold fewer pairs than a batch of 7"):
        data_of(path, batch_size=7, buckets=BucketSettings(step=8)).plan(32)
