"""Rows on disk, found by key: what was encoded is found again, and what was encoded otherwise is not."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from painted import PaintedFamily
from torch import nn

from t2i.data.cache import RowCache, image_identity, key_array, module_digest, row_key, text_identity
from t2i.errors import DataError
from t2i.families import load_family


def keys(*numbers: int) -> np.ndarray:
    return key_array(b"".join(row_key(number) for number in numbers))


def rows(*numbers: int) -> dict[str, torch.Tensor]:
    return {"value": torch.tensor([[float(number)] * 3 for number in numbers])}


def test_rows_of_several_files_are_found_by_key(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, "test", {"of": "tests"})
    cache.add(keys(5, 3), rows(5, 3))
    cache.add(keys(8), rows(8))
    found = cache.locate(keys(8, 4, 3, 5))
    assert found[1] == -1
    assert [cache.read(int(place))["value"].tolist() for place in found[[0, 2, 3]]] == [[8.0] * 3, [3.0] * 3, [5.0] * 3]
    again = pickle.loads(pickle.dumps(cache))
    assert again.read(int(found[0]))["value"].tolist() == [8.0] * 3


def test_keys_that_share_their_first_half_are_told_apart(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, "test", {})
    table = np.array([[7, 1], [7, 2], [7, 3], [9, 1]], dtype=np.int64)
    cache.add(table[:2], rows(1, 2))
    cache.add(table[2:], rows(3, 4))
    wanted = np.array([[7, 3], [7, 2], [7, 4], [8, 1], [9, 2], [9, 1], [7, 2]], dtype=np.int64)
    found = cache.locate(wanted)
    assert (found >= 0).tolist() == [True, True, False, False, False, True, True]
    assert [cache.read(int(found[place]))["value"][0].item() for place in (0, 1, 5, 6)] == [3, 2, 4, 2]


def test_another_identity_is_another_folder(tmp_path: Path) -> None:
    one, other = RowCache(tmp_path, "test", {"scale": 1}), RowCache(tmp_path, "test", {"scale": 2})
    one.add(keys(1), rows(1))
    assert other.locate(keys(1)).tolist() == [-1]
    assert RowCache(tmp_path, "test", {"scale": 1}).locate(keys(1)).tolist() != [-1]


def test_writers_at_the_same_time_leave_whole_files(tmp_path: Path) -> None:
    def write(start: int) -> None:
        cache = RowCache(tmp_path, "test", {})
        for number in range(start, start + 20):
            cache.add(keys(number, number + 1000), rows(number, number + 1000))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, (0, 20, 40, 60)))
    cache = RowCache(tmp_path, "test", {})
    wanted = [*range(80), *range(1000, 1080)]
    found = cache.locate(keys(*wanted))
    assert [cache.read(int(place))["value"][0].item() for place in found] == wanted


def test_more_files_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i.data.cache.OPEN_FILES", 3)
    cache = RowCache(tmp_path, "test", {})
    for number in range(8):
        cache.add(keys(number), rows(number))
    found = cache.locate(keys(*range(8)))
    values = [cache.read(int(found[number % 8]))["value"][0].item() for number in range(24)]
    assert values == [number % 8 for number in range(24)]


def test_what_a_killed_writer_left_is_not_read(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, "test", {})
    (cache.folder / ".0123.safetensors.77.tmp").write_bytes(b"half")
    cache.add(keys(1), rows(1))
    assert cache.locate(keys(1)).tolist() == [0]


def test_broken_file_is_named(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, "test", {})
    (cache.folder / "aa.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match=r"aa\.safetensors: cannot be read .*delete it, and it is made again"):
        cache.locate(keys(1))


def test_digest_of_a_module_is_that_of_its_weights_types_and_config() -> None:
    def made(**changes: object) -> nn.Module:
        module = nn.Linear(2, 2)
        nn.init.constant_(module.weight, 0.5)
        nn.init.zeros_(module.bias)
        module.config = {"width": 2, "_name_or_path": "/here", "transformers_version": "5"} | changes  # pyright: ignore
        return module

    same = [made(), made(_name_or_path="/there", transformers_version="6")]
    assert module_digest(same[0]) == module_digest(same[1])
    changed = made()
    with torch.no_grad():
        changed.get_parameter("weight")[0, 0] += 1e-6
    others = [changed, made(width=3), made().to(torch.bfloat16)]
    assert len({module_digest(module) for module in (same[0], *others)}) == 4


def test_identity_of_images_changes_with_the_autoencoder_and_the_posterior() -> None:
    family = PaintedFamily()
    found = [
        image_identity(family, "sample"),  # pyright: ignore[reportArgumentType]
        image_identity(family, "mode"),  # pyright: ignore[reportArgumentType]
        image_identity(PaintedFamily(scale=0.5), "sample"),  # pyright: ignore[reportArgumentType]
    ]
    assert found[0] == image_identity(PaintedFamily(), "sample")  # pyright: ignore[reportArgumentType]
    assert found[0] != found[1] != found[2] != found[0]


def test_identity_of_texts_changes_with_tokenizer_limit_encoder_and_token_count() -> None:
    import tiny

    family = tiny.load_sd1()
    first = text_identity(family)
    assert text_identity(tiny.load_sd1()) == first
    family.pipeline.tokenizer.model_max_length -= 1
    shorter = text_identity(family)
    assert shorter["tokenizers"] != first["tokenizers"]
    assert shorter["shapes"] != first["shapes"]
    padded = tiny.load_sd1()
    padded.encode_prompts(["a word"])
    assert text_identity(padded) == first, "what was asked before does not count"
    padded.pipeline.tokenizer.pad_token = "<|startoftext|>"
    assert text_identity(padded)["tokenizers"] != first["tokenizers"], "CLIP reads the filling"
    changed = tiny.load_sd1()
    with torch.no_grad():
        next(changed.pipeline.text_encoder.parameters()).mul_(1.001)
    assert text_identity(changed)["encoders"] != first["encoders"]


def test_identity_of_texts_changes_with_what_the_empty_prompt_is() -> None:
    import tiny

    family = load_family(str(tiny.sdxl()))
    zeros = text_identity(family)
    family.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    encoded = text_identity(family)
    assert encoded != zeros
    assert encoded["encoders"] == zeros["encoders"]
