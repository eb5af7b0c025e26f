"""A data set written once in every format, each read again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from full_records import FULL
from PIL import Image

from t2i.captioners import FilesCaptioner
from t2i.data.sources import (
    CaptionsJsonSource,
    FolderSource,
    KohyaSource,
    MetadataSource,
    RecordsSource,
    WebdatasetSource,
    load_records,
    save_records,
)
from t2i.errors import DataError
from t2i.records import Caption, CaptionedImage
from t2i.stages.dataset import DatasetStage

FORMATS: list[dict[str, Any]] = [
    {"type": "parquet"},
    {"type": "sidecars", "captions": {"dense": 1}, "dialect": "whole_file"},
    {"type": "metadata"},
    {"type": "captions_json", "captions": ["alt", "dense"]},
    {"type": "kohya", "caption_kind": "alt"},
    {"type": "webdataset", "per_shard": 2},
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished folder with every format."""
    root = tmp_path_factory.mktemp("run")
    source = tiny.write_photographs(root / "photographs", count=3)
    (root / "caption").mkdir()
    rows = [
        dataclasses.replace(row, captions=FULL.captions, origin=FULL.origin, extra={"n": number})
        for number, row in enumerate(FolderSource(path=str(source)).read(root, 0))
    ]
    save_records(root / "caption", rows)
    fields = {"formats": FORMATS, "title": "Three photographs"}
    facts = tiny.run_stage(DatasetStage, root / "dataset", fields, {"data_from": root / "caption"})
    assert facts == {"images": 3, "captions": 6, "formats": [entry["type"] for entry in FORMATS]}
    return root / "dataset"


def bare(rows: list[CaptionedImage]) -> list[CaptionedImage]:
    return sorted((dataclasses.replace(row, image=Path(row.image).name) for row in rows), key=lambda row: row.id)


def test_native_formats_hold_whole_records(written: Path, tmp_path: Path) -> None:
    expected = bare(load_records(written / "records.jsonl"))
    assert [row.captions for row in expected] == [FULL.captions] * 3
    for source in (
        RecordsSource(path=str(written / "records.parquet")),
        WebdatasetSource(path=str(written / "webdataset")),
        MetadataSource(path=str(written)),
    ):
        assert bare(source.materialize(tmp_path, 0)) == expected


def test_formats_of_texts_hold_texts(written: Path, tmp_path: Path) -> None:
    texts = [caption.text for caption in FULL.captions]
    rows = CaptionsJsonSource(path=str(written / "images")).materialize(tmp_path, 0)
    assert [[caption.text for caption in row.captions] for row in rows] == [texts] * 3
    rows = KohyaSource(path=str(written / "kohya.json"), images=str(written / "images")).materialize(tmp_path, 0)
    assert [[caption.text for caption in row.captions] for row in rows] == [texts[:1]] * 3
    captioner = FilesCaptioner(kind="dense", dialect="whole_file")
    answers = tiny.captions(captioner, FolderSource(path=str(written / "images")).materialize(tmp_path, 0))
    assert answers == [(Caption("dense", texts[1], "file:.txt"),)] * 3


def test_card_counts_kinds_models_licences_and_says_what_formats_cannot_hold(written: Path) -> None:
    card = (written / "README.md").read_text()
    assert "3 images, 6 captions" in card
    assert "| dense | 3 | 5.0 | lab/vlm@000000000000 | apache-2.0 | 9f9f9f9f9f9f |" in card
    assert "| alt | 3 | 5.0 | web | - | - |" in card
    assert "| set | CC-BY-4.0 | 3 |" in card
    assert "Captions that a person reviewed: 3." in card
    assert "The text files hold texts alone" in card
    assert "unknown" not in card


def test_folder_can_be_moved_and_named_images_are_their_hashes(written: Path) -> None:
    names = sorted(path.stem for path in (written / "images").glob("*.png"))
    assert names == sorted(row.id for row in load_records(written / "records.jsonl"))
    rows = [json.loads(line) for line in (written / "metadata.jsonl").read_text().splitlines()]
    assert all(row["file_name"].startswith("images/") for row in rows)


def test_folder_may_be_named_from_the_working_directory(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fields = {"formats": FORMATS, "title": "Three photographs"}
    tiny.run_stage(DatasetStage, Path("runs/dataset"), fields, {"data_from": written.parent / "caption"})

    def files(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert files(tmp_path / "runs/dataset") == files(written)


@pytest.mark.parametrize("strip", [False, True])
def test_jpeg_under_a_rare_ending_is_written_under_the_usual_one(tmp_path: Path, strip: bool) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures/a.jfif")
    (tmp_path / "caption").mkdir()
    save_records(tmp_path / "caption", FolderSource(path=str(tmp_path / "pictures")).read(tmp_path, 0))
    fields = {"formats": [{"type": "parquet"}], "strip_metadata": strip}
    tiny.run_stage(DatasetStage, tmp_path / "dataset", fields, {"data_from": tmp_path / "caption"})
    [image] = (tmp_path / "dataset/images").iterdir()
    assert image.suffix == ".jpg"


def test_a_mask_goes_with_its_image(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs", count=2)
    first, second = sorted(source.glob("*.png"))
    mask = first.with_name(f"{first.stem}.mask.png")
    Image.new("L", (4, 4), 255).save(mask)
    (tmp_path / "caption").mkdir()
    save_records(tmp_path / "caption", FolderSource(path=str(source)).read(tmp_path, 0))
    fields = {"formats": [{"type": "parquet"}], "strip_metadata": False}
    tiny.run_stage(DatasetStage, tmp_path / "dataset", fields, {"data_from": tmp_path / "caption"})
    images = {path.name: path for path in (tmp_path / "dataset/images").iterdir()}
    assert len(images) == 3
    [copied] = [path for name, path in images.items() if name.endswith(".mask.png")]
    assert copied.read_bytes() == mask.read_bytes()
    assert images[copied.name.replace(".mask", "")].read_bytes() == first.read_bytes()
    assert second.exists()
    Image.new("RGB", (4, 4)).save(first.with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"\.mask\.png: 2 images are called"):
        tiny.run_stage(DatasetStage, tmp_path / "again", fields, {"data_from": tmp_path / "caption"})


def test_the_same_image_twice_is_refused(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs", count=1)
    [row] = FolderSource(path=str(source)).materialize(tmp_path, 0)
    (tmp_path / "caption").mkdir()
    save_records(tmp_path / "caption", [row, row])
    fields = {"formats": [{"type": "parquet"}]}
    with pytest.raises(DataError, match="is there twice"):
        tiny.run_stage(DatasetStage, tmp_path / "dataset", fields, {"data_from": tmp_path / "caption"})
