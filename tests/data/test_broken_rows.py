"""Rows that no record can be made of are named, and may be left out."""

from __future__ import annotations

import datetime
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from t2i.data.preview import preview_source
from t2i.data.sources import FolderSource, KohyaSource, MetadataSource, WebdatasetSource, load_records, save_records
from t2i.errors import DataError
from t2i.resources import hash_path
from t2i.stages.base import InspectContext
from t2i.stages.caption import CaptionStage


def write_images(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (9, 7), "red" if name == "a.png" else "blue").save(folder / name)
    return folder


def kept(source: MetadataSource | KohyaSource | WebdatasetSource, folder: Path) -> list[str]:
    """Names of the images that go into the records of a source, which drops the others."""
    folder.mkdir()
    dropping = source.model_copy(update={"broken": "drop"})
    return [Path(row.image).name for row in load_records(save_records(folder, dropping.read(folder, 0)))]


def dropped(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "broken.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"file_name": "a.png", "x": "\ud800"}, r"column 'x' holds the text '\ud800', which is no Unicode"),
        ({"file_name": "a.png", "\udcff": 1}, r"column '\udcff' holds the text '\udcff'"),
        ({"file_name": "\ud800.png"}, "the image is called the text"),
        ({"file_name": "a.png", "captions": [{"kind": "\ud800", "text": "x"}]}, "column 'captions' holds the text"),
        ({"file_name": "a.png", "t2i_record": {"origin": {"url": "\ud800"}}}, "column 'origin' holds the text"),
    ],
)
def test_text_that_is_no_unicode_breaks_its_row(tmp_path: Path, line: dict[str, Any], complaint: str) -> None:
    folder = write_images(tmp_path / "set")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (line, {"file_name": "b.png"})))
    source = MetadataSource(path=str(folder))
    with pytest.raises(DataError, match=r"metadata\.jsonl:1: ") as refused:
        source.materialize(tmp_path, 0)
    assert complaint in str(refused.value)
    assert kept(source, tmp_path / "run") == ["b.png"]
    [broken] = dropped(tmp_path / "run")
    assert complaint in broken["reason"]


@pytest.mark.parametrize(
    "value", [b"\x00", datetime.datetime(2020, 1, 1), datetime.date(2020, 1, 1), {"inner": [b"x"]}]
)
def test_parquet_value_that_json_cannot_hold_breaks_its_row(tmp_path: Path, value: object) -> None:
    folder = write_images(tmp_path / "set")
    rows = [{"file_name": "a.png", "x": value}, {"file_name": "b.png", "x": None}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    source = MetadataSource(path=str(folder))
    with pytest.raises(DataError, match=r"metadata\.parquet, row 1: column 'x' holds a value of the type (bytes|date)"):
        source.materialize(tmp_path, 0)
    assert kept(source, tmp_path / "run") == ["b.png"]


def test_text_that_is_no_unicode_breaks_the_row_of_every_format(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set")
    (tmp_path / "kohya.json").write_text(r'{"a": {"caption": "x", "y": "\ud800"}, "b": {"caption": "x"}}')
    assert kept(KohyaSource(path=str(tmp_path / "kohya.json"), images=str(folder)), tmp_path / "kohya") == ["b.png"]
    files = {"a.png": b"no image", "a.json": rb'{"url": "\ud800"}', "b.png": (folder / "b.png").read_bytes()}
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name, data in files.items():
            # A name that is no UTF-8 is where a row is said to be; only its bytes go into the run.
            member = tarfile.TarInfo(f"\udcff/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert len(kept(WebdatasetSource(path=str(tmp_path / "set.tar")), tmp_path / "tar")) == 1
    [broken] = dropped(tmp_path / "tar")
    assert broken["row"].endswith("set.tar, \udcff/a")


def test_image_whose_name_is_no_utf8_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set")
    other = Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt"))
    other.write_text("a note")
    assert len(FolderSource(path=str(folder)).materialize(tmp_path, 0)) == 2
    known = hash_path(folder)
    other.rename(os.fsdecode(os.fsencode(folder) + b"/\xfe.txt"))
    assert hash_path(folder) != known
    Image.new("RGB", (9, 7)).save(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    with pytest.raises(DataError, match=r"an image is called the text '.*udcff\.png', which is no Unicode; rename it"):
        FolderSource(path=str(folder)).materialize(tmp_path, 0)


def test_sizes_pass_over_unreadable_images_only_where_broken_rows_are_dropped(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set")
    (folder / "c.png").write_bytes(b"no image")
    lines = [{"file_name": "c.png"}, {"file_name": "a.png"}, {"file_name": "gone.png"}, {"file_name": "../b.png"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dropping = MetadataSource(path=str(folder), broken="drop")
    assert list(dropping.sizes()) == [(f"{folder}/metadata.jsonl:2", 9, 7)]
    preview = preview_source(dropping)
    assert preview is not None
    assert [Path(row.image).name for row in preview.records] == ["a.png"]
    for line, complaint in zip(
        preview.not_read, ("c.png: cannot be read", "gone.png: no such", "leads out"), strict=True
    ):
        assert complaint in line
    refusing = MetadataSource(path=str(folder))
    with pytest.raises(DataError, match=r"c\.png: cannot be read as an image"):
        list(refusing.sizes())
    with pytest.raises(DataError, match=r"c\.png: cannot be read as an image"):
        preview_source(refusing)


def test_inspect_names_the_rows_that_a_run_drops(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set")
    (folder / "a.png").write_bytes(b"no image")
    (folder / "captions.json").write_text('{"a.png": ["a"], "b.png": ["b"]}')
    data = {"type": "captions_json", "path": str(folder), "broken": "drop"}
    stage = CaptionStage.model_validate({"data": data})
    facts = stage.inspect(InspectContext({}, 0))
    assert facts["images"] == 1
    [line] = facts["not read"]  # pyright: ignore[reportGeneralTypeIssues]
    assert "a.png: cannot be read as an image" in str(line)
