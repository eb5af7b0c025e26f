"""Rows go through files unchanged, and a file is the old one, the new one or absent, never a part."""

from __future__ import annotations

import dataclasses
import json
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from t2i.errors import DataError
from t2i.files import write_bytes, write_tensors, write_text
from t2i.records import (
    Caption,
    CaptionedImage,
    GeneratedImage,
    PreferencePair,
    Prompt,
    ScoredImage,
    read_jsonl,
    write_jsonl,
)

IMAGE = CaptionedImage(
    "ab12",
    "images/a b.png",
    640,
    480,
    (Caption("alt", 'a "cat", 猫\u2028\tand\x85 more', "web"), Caption("dense", "a cat", "judge")),
    {"score": 0.1, "tags": ["x"], "none": None},
)
ROWS = [
    IMAGE,
    GeneratedImage("0001", "a cat", 2**31 - 1, "images/0.png", 2, "animals"),
    ScoredImage("0001", "a cat", 3, "../g/images/0.png", 2, "animals", {"judge": 0.1 + 0.2, "clip": 1e-30}),
    PreferencePair("a cat", "a.png", "b.png", "0001", 0.75, "aesthetic", "judge", "ab", "cd", {"scores": [0.3, 0.1]}),
    Prompt("0001", "a cat\nand a dog", "animals"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_rows_come_back_as_they_were(tmp_path: Path, row: CaptionedImage) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row, row])
    assert list(read_jsonl(tmp_path / "rows.jsonl", type(row))) == [row, row]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / name, [IMAGE])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ({"a": ["x", "\udcff"]}, r"extra is the text '\\udcff', which is no Unicode"),
        ({"\ud800": 1}, r"extra is the text '\\ud800'"),
        ({"a": {"b": b"x"}}, "extra is a value of the type bytes"),
    ],
)
def test_row_that_json_cannot_hold_is_refused(tmp_path: Path, extra: dict[str, object], complaint: str) -> None:
    with pytest.raises(DataError, match=f"a CaptionedImage cannot be written: {complaint}"):
        write_jsonl(tmp_path / "rows.jsonl", [IMAGE, dataclasses.replace(IMAGE, extra=extra)])
    with pytest.raises(DataError, match=r"a Prompt cannot be written: text is the text 'a\\ud800'"):
        write_jsonl(tmp_path / "rows.jsonl", [Prompt("1", "a\ud800")])
    assert not list(tmp_path.iterdir())


def test_caption_is_the_first_of_its_kind() -> None:
    assert IMAGE.caption("dense") == "a cat"
    assert IMAGE.caption("short") is None


def test_key_pairs_by_prompt_sample_and_seed() -> None:
    generated = GeneratedImage("p", "a cat", 5, "x.png", sample=2)
    scored = ScoredImage("p", "a cat", 5, "y.png", sample=2, scores={"judge": 1.0})
    assert generated.key == scored.key == ("p", 2, 5)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"id": "2", "te', "not JSON"),
        ("[1, 2]", "found list, expected a JSON object"),
        ('"text"', "found str"),
        ('{"id": "2"}', r"not a Prompt .*'text'.*keys are id, text, category"),
        ('{"id": "2", "text": "b", "colour": "red"}', "colour"),
    ],
)
def test_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "1", "text": "a"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=rf"prompts\.jsonl:3: .*{complaint}"):
        list(read_jsonl(path, Prompt))


def test_bad_caption_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"id": "1", "image": "a.png", "width": 1, "height": 1, "captions": ["a cat"]}\n')
    with pytest.raises(DataError, match=r"records\.jsonl:1: "):
        list(read_jsonl(path, CaptionedImage))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"id": 7}, "id is 7, expected text"),
        ({"image": None}, "image is None, expected text"),
        ({"captions": [{"kind": 3, "text": "a cat"}]}, "kind of caption 1 is 3, expected text"),
        ({"captions": [{"kind": "alt", "text": ["a cat"]}]}, r"text of caption 1 is \['a cat'\], expected text"),
    ],
)
def test_record_with_something_else_instead_of_text_is_refused(
    tmp_path: Path, values: dict[str, object], complaint: str
) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"id": "1", "image": "a.png", "width": 1, "height": 1, **values}) + "\n")
    with pytest.raises(DataError, match=rf"records\.jsonl:1: {complaint}"):
        list(read_jsonl(path, CaptionedImage))


def test_text_that_is_not_utf8_is_named_by_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"id": "1", "text": "a"}\n{"id": "2", "text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl.*UTF-8"):
        list(read_jsonl(path, Prompt))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        list(read_jsonl(tmp_path / "none.jsonl", Prompt))


def test_rows_that_fail_half_way_leave_the_old_file(tmp_path: Path) -> None:
    def rows() -> Iterator[Prompt]:
        yield Prompt("1", "new")
        raise KeyError

    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [Prompt("1", "old")])
    with pytest.raises(KeyError):
        write_jsonl(path, rows())
    assert [row.text for row in read_jsonl(path, Prompt)] == ["old"]


def test_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_bytes(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_come_back_and_equal_ones_give_equal_bytes(tmp_path: Path) -> None:
    transposed = torch.arange(6.0).reshape(2, 3).T
    tensors = {"b": transposed, "a": torch.tensor(3, dtype=torch.int64), "half": torch.ones(5, dtype=torch.bfloat16)}
    metadata = {f"key{number}": "ä" for number in range(20)}
    write_tensors(tmp_path / "x.safetensors", tensors, metadata)
    write_tensors(tmp_path / "y.safetensors", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())
        assert set(file.keys()) == set(tensors)
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    size = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert size % 8 == 0
    header = json.loads((tmp_path / "x.safetensors").read_bytes()[8 : 8 + size])
    assert list(header) == sorted(header)


def test_tensors_without_metadata_come_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() is None
        assert torch.equal(file.get_tensor("a"), torch.ones(2))


def test_values_are_written_as_the_library_lays_them_out(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(5.0), "a": torch.ones(3, dtype=torch.bfloat16)}
    write_tensors(tmp_path / "x.safetensors", tensors)
    bodies = [
        data[8 + int.from_bytes(data[:8], "little") :]
        for data in ((tmp_path / "x.safetensors").read_bytes(), save(tensors))
    ]
    assert bodies[0] == bodies[1]


def test_writing_tensors_takes_no_further_copies_of_the_file(tmp_path: Path) -> None:
    tensor = torch.zeros(12_500_000)
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "x.safetensors", {"a": tensor})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.2 * tensor.nbytes
