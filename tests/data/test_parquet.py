"""The native format holds whole records."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from full_records import BARE, FULL

from t2i.data.formats.parquet import read_parquet, write_parquet
from t2i.data.sources import RecordsSource, load_records, save_records
from t2i.errors import DataError
from t2i.records import Caption, read_jsonl, write_jsonl


def test_records_come_back_whole_from_either_file(tmp_path: Path) -> None:
    rows = [FULL, BARE, dataclasses.replace(FULL, id="3", extra={})]
    write_parquet(tmp_path / "a.parquet", rows)
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert list(read_parquet(tmp_path / "a.parquet")) == rows
    assert list(read_jsonl(tmp_path / "a.jsonl", type(FULL))) == rows


def test_more_rows_than_a_group_come_back_in_order_and_as_the_same_bytes(tmp_path: Path) -> None:
    rows = [dataclasses.replace(FULL, id=str(number)) for number in range(2001)]
    for name in ("a", "b"):
        write_parquet(tmp_path / f"{name}.parquet", iter(rows))
    assert list(read_parquet(tmp_path / "a.parquet")) == rows
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_plain_reader_finds_the_captions_with_their_provenance(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [FULL])
    [row] = pq.read_table(tmp_path / "a.parquet").to_pylist()
    alt, dense = row["captions"]
    assert (alt["kind"], alt["origin"], alt["words"]) == ("alt", None, 5)
    assert dense["origin"]["model"] == "lab/vlm"
    assert dense["origin"]["finish_reason"] == "stop"
    assert dense["caption_id"] == FULL.captions[1].id


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    def broken():
        yield FULL
        raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        write_parquet(tmp_path / "a.parquet", broken())
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused_with_their_name(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"text\.parquet: cannot be read as Parquet"):
        list(read_parquet(tmp_path / "text.parquet"))
    pq.write_table(pa.table({"image": ["a"], "text": ["b"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet: no column height, id, width"):
        list(read_parquet(tmp_path / "other.parquet"))
    columns = {"id": ["1", "2"], "image": ["a", "b"], "width": [1, 1], "height": [1, 1], "extra": ["{}", "{"]}
    pq.write_table(pa.table(columns), tmp_path / "broken.parquet")
    with pytest.raises(DataError, match=r"broken\.parquet, row 2: not a record"):
        list(read_parquet(tmp_path / "broken.parquet"))


def test_records_source_reads_parquet_with_absolute_image_paths(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / FULL.image).write_bytes(b"")
    write_parquet(tmp_path / "records.parquet", [FULL])
    [row] = RecordsSource(path=str(tmp_path / "records.parquet")).materialize(tmp_path, 0)
    assert row == dataclasses.replace(FULL, image=str(tmp_path / FULL.image))
    save_records(tmp_path, [row])
    assert load_records(tmp_path / "records.jsonl") == [row]


def test_caption_id_is_of_its_content_alone() -> None:
    alt, dense = FULL.captions
    assert alt.id == Caption("alt", alt.text, "web", scores={"x": 1}).id
    assert len({alt.id, dense.id, Caption("short", alt.text, "web").id, Caption("alt", "b", "web").id}) == 4
    assert dense.origin is not None
    other = dataclasses.replace(dense, origin=dataclasses.replace(dense.origin, revision="1"))
    assert other.id != dense.id
