"""Formats of other tools: what is read, what is written and read again, and every fault by its file and row."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from full_records import FULL
from PIL import Image

from t2i.data.formats.base import BrokenRow, FormatSource, Once, Row, inside
from t2i.data.formats.json_files import write_captions_json, write_kohya
from t2i.data.formats.metadata import write_metadata
from t2i.data.formats.sidecars import write_sidecars
from t2i.data.formats.tars import write_webdataset
from t2i.data.images import content_id, open_image
from t2i.data.sources import CaptionsJsonSource, HubSource, KohyaSource, MetadataSource, WebdatasetSource
from t2i.errors import DataError
from t2i.records import Caption, CaptionedImage

COLOURS = ("red", "green", "blue")


def png(colour: str = "red", size: tuple[int, int] = (9, 7)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG whose header claims 3.6 billion pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    end = b"IEND"
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, end)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def truncated() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(file, "JPEG")
    return file.getvalue()[:-600]


def write_images(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        (folder / f"{colour}.png").write_bytes(png(colour))
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def read(source: FormatSource, folder: Path) -> list[CaptionedImage]:
    folder.mkdir(parents=True, exist_ok=True)
    return source.materialize(folder, 0)


def texts(rows: list[CaptionedImage]) -> list[list[tuple[str, str]]]:
    return [[(caption.kind, caption.text) for caption in row.captions] for row in rows]


def rows_of(folder: Path) -> list[CaptionedImage]:
    """Records with all that a caption can have, of images in a folder."""
    paths = [folder / f"{colour}.png" for colour in COLOURS]
    return [dataclasses.replace(FULL, id=content_id(p), image=str(p), width=9, height=7) for p in paths]


TABLES: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "csv": lambda path, rows: path.with_suffix(".csv").write_text(  # pyright: ignore[reportAssignmentType]
        "file_name,text,site\n" + "".join(f'{row["file_name"]},"{row["text"]}",{row["site"]}\n' for row in rows)
    ),
    "jsonl": lambda path, rows: path.with_suffix(".jsonl").write_text(  # pyright: ignore[reportAssignmentType]
        "".join(json.dumps(row) + "\n" for row in rows)
    ),
    "parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet")),
}


@pytest.mark.parametrize("kind", TABLES)
def test_image_folder_tables_give_captions_by_column_and_carry_the_others(tmp_path: Path, kind: str) -> None:
    folder = write_images(tmp_path / "set")
    rows = [{"file_name": f"{c}.png", "text": f"a {c}, plain\u2028wall", "site": c[0]} for c in COLOURS]
    TABLES[kind](folder / "metadata", rows)
    found = read(MetadataSource(path=str(folder), captions={"text": "alt"}), tmp_path / "run")
    assert [row.id for row in found] == [content_id(folder / f"{c}.png") for c in COLOURS]
    assert texts(found) == [[("alt", f"a {c}, plain\u2028wall")] for c in COLOURS]
    assert [row.extra for row in found] == [{"site": c[0]} for c in COLOURS]
    assert [(row.width, row.height) for row in found] == [(9, 7)] * 3


def test_metadata_goes_out_and_in_whole(tmp_path: Path) -> None:
    rows = rows_of(write_images(tmp_path / "set"))
    write_metadata(tmp_path / "set", rows)
    found = read(MetadataSource(path=str(tmp_path / "set")), tmp_path / "run")
    assert found == rows
    with pytest.raises(DataError, match=r"red\.png: its own column 'captions' has a name"):
        write_metadata(tmp_path / "set", [dataclasses.replace(rows[0], extra={"captions": 1})])


def test_webdataset_goes_out_and_in_whole_as_the_same_bytes(tmp_path: Path) -> None:
    rows = rows_of(write_images(tmp_path / "set"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths = write_webdataset(tmp_path / name, iter(rows), per_shard=2)
    assert [path.name for path in paths] == ["00000.tar", "00001.tar"]
    assert [p.read_bytes() for p in sorted((tmp_path / "a").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "b").iterdir())
    ]
    found = read(WebdatasetSource(path=str(tmp_path / "a")), tmp_path / "run")
    assert [dataclasses.replace(row, image="") for row in found] == [dataclasses.replace(r, image="") for r in rows]
    assert [(tmp_path / "run" / row.image).read_bytes() for row in found] == [png(colour) for colour in COLOURS]


def test_a_line_without_a_column_is_broken_and_the_others_are_read(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set")
    lines = ({"file_name": "red.png", "text": "a"}, {"file_name": "green.png"}, {"file_name": "blue.png", "text": "c"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = MetadataSource(path=str(folder), captions={"text": "alt"}, broken="drop")
    assert texts(read(source, tmp_path / "run")) == [[("alt", "a")], [("alt", "c")]]
    [line] = (tmp_path / "run/broken.jsonl").read_text().splitlines()
    assert json.loads(line)["row"].endswith("metadata.jsonl:2")


def test_an_image_without_the_captions_that_are_asked_for_is_not_written_empty(tmp_path: Path) -> None:
    rows = rows_of(write_images(tmp_path / "set"))
    with pytest.raises(DataError, match=r"red\.png: no caption of kind dnese, it has "):
        write_captions_json(tmp_path / "set", rows, ["dnese"])
    with pytest.raises(DataError, match=r"red\.png: no caption of kind dnese or tgas, it has "):
        write_kohya(tmp_path / "kohya.json", tmp_path / "set", rows, "dnese", "tgas")
    assert not list(tmp_path.rglob("*.json"))


def test_captions_json_goes_out_and_in_with_texts_alone(tmp_path: Path) -> None:
    rows = rows_of(write_images(tmp_path / "set"))
    write_captions_json(tmp_path / "set", rows, ["alt", "dense"])
    found = read(CaptionsJsonSource(path=str(tmp_path / "set")), tmp_path / "run")
    expected = [[("caption", caption.text) for caption in row.captions] for row in rows]
    assert texts(found) == expected


def test_kohya_metadata_goes_out_and_in_and_refuses_what_it_would_change(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set")
    captions = (Caption("short", "a red wall"), Caption("short", "red"), Caption("tags", "red, wall"))
    rows = [dataclasses.replace(row, captions=captions) for row in rows_of(folder)]
    write_kohya(tmp_path / "meta.json", folder, rows, "short", "tags")
    source = KohyaSource(path=str(tmp_path / "meta.json"), images=str(folder), caption_kind="short")
    found = read(source, tmp_path / "run")
    assert texts(found) == [[(c.kind, c.text) for c in captions]] * 3
    with pytest.raises(DataError, match=r"red\.png: a caption of several lines would become several"):
        write_kohya(tmp_path / "meta.json", folder, rows_of(folder), "dense", "tags")


def test_kohya_keys_may_lack_the_ending_or_be_whole_paths(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set")
    values = {"red": {"caption": "a"}, str(folder / "green.png"): {"tags": "b, c", "train_resolution": [64, 64]}}
    (tmp_path / "meta.json").write_text(json.dumps(values))
    found = read(KohyaSource(path=str(tmp_path / "meta.json"), images=str(folder)), tmp_path / "run")
    assert texts(found) == [[("caption", "a")], [("tags", "b, c")]]
    assert found[1].extra == {"train_resolution": [64, 64]}


def test_kohya_keys_find_images_whose_ending_is_in_capitals(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set")
    (folder / "red.png").rename(folder / "IMG_0001.PNG")
    (tmp_path / "meta.json").write_text(json.dumps({"IMG_0001": {"caption": "a"}}))
    [row] = read(KohyaSource(path=str(tmp_path / "meta.json"), images=str(folder)), tmp_path / "run")
    assert row.image == str(folder / "IMG_0001.PNG")


def test_img2dataset_output_gives_its_url_and_no_exif(tmp_path: Path) -> None:
    values = {"caption": "a wall", "url": "https://x/y", "key": "000", "status": "success", "exif": '{"GPS": 1}'}
    files = {"000.png": png(), "000.txt": b"a wall", "000.json": json.dumps(values).encode()}
    write_tar(tmp_path / "set/00000.tar", files)
    [row] = read(WebdatasetSource(path=str(tmp_path / "set")), tmp_path / "run")
    assert texts([row]) == [[("alt", "a wall")]]
    assert row.origin is not None
    assert row.origin.url == "https://x/y"
    assert row.extra == {"caption": "a wall", "key": "000"}


def test_hub_layout_is_streamed_with_its_bytes_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    rows = [
        {"image": {"bytes": png(c), "path": None}, "prompts": [f"a {c}", c], "number": n} for n, c in enumerate(COLOURS)
    ]
    table = pa.Table.from_pylist(rows)
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "set/train.parquet")
    source = HubSource(path=str(tmp_path / "set"), captions={"prompts": "alt"}, first=1, licence="MIT")
    found = read(source, tmp_path / "run")
    assert [(tmp_path / "run" / row.image).read_bytes() for row in found] == [png("green"), png("blue")]
    assert texts(found) == [[("alt", f"a {c}"), ("alt", c)] for c in COLOURS[1:]]
    assert found[0].extra == {"number": 1}
    assert found[0].origin is not None
    assert found[0].origin.licence == "MIT"
    with pytest.raises(DataError, match="no column text; it has image, prompts, number"):
        read(HubSource(path=str(tmp_path / "set"), captions={"text": "alt"}), tmp_path / "run")


def write_paths(folder: Path, *paths: str) -> Path:
    """A data set whose rows name files instead of holding images."""
    folder.mkdir(exist_ok=True)
    rows = [{"image": {"bytes": None, "path": path}, "text": "a"} for path in paths]
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, folder / "train.parquet")
    return folder


def test_a_row_of_a_hub_layout_may_name_a_file_of_the_data_set_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "secret.png").write_bytes(png("red"))
    folder = write_paths(tmp_path / "set", "own.png", "../secret.png", str(tmp_path / "secret.png"), "absent.png")
    (folder / "own.png").write_bytes(png("green"))
    source = HubSource(path=str(folder), captions={"text": "alt"})
    own, up, absolute, absent = source.rows()
    assert isinstance(own, Row)
    assert own.image == png("green")
    for row in (up, absolute):
        assert isinstance(row, BrokenRow)
        assert "leads out of" in row.reason
    assert isinstance(absent, BrokenRow)
    assert "no file 'absent.png'" in absent.reason


def test_a_hub_layout_may_be_named_by_way_of_the_folder_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = write_paths(tmp_path / "set", "own.png")
    (folder / "own.png").write_bytes(png("green"))
    [row] = HubSource(path=f"{folder}/../set", captions={"text": "alt"}).rows()
    assert isinstance(row, Row)
    assert row.image == png("green")


def test_a_hub_data_set_is_read_at_the_commit_that_its_images_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a folder here, and hf:// a file system in memory: neither is reached from a test."""
    import datasets
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem
    from fsspec.registry import _registry

    commit = "a" * 40
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    own = f"hf://datasets/owner/name@{commit}/own.png"
    folder = write_paths(
        tmp_path / "set", own, "/etc/hostname", f"hf://datasets/other/name@{commit}/own.png", f"{own}x"
    )
    asked = []

    def load(name: str, *args: Any, revision: str, **kwargs: Any) -> Any:
        asked.append((name, revision))
        return load_dataset(str(folder), *args, **kwargs)

    load_dataset = datasets.load_dataset
    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info", lambda self, name, revision: SimpleNamespace(sha=commit, name=name)
    )
    monkeypatch.setitem(_registry, "hf", MemoryFileSystem)
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    with fsspec.open(own, "wb") as file:
        file.write(png("green"))  # pyright: ignore[reportAttributeAccessIssue]
    rows = list(HubSource(path="owner/name", captions={"text": "alt"}).rows())
    assert asked == [("owner/name", commit)]
    first, *broken = rows
    assert isinstance(first, Row)
    assert (first.image, first.origin and first.origin.dataset) == (png("green"), f"owner/name@{commit}")
    assert [isinstance(row, BrokenRow) for row in broken] == [True] * 3
    assert ["is no file of the data set" in str(row) for row in broken] == [True, True, False]


# `datasets` leaves a CSV file that is not read to its end to the garbage collector, which must not come to it later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_hub_layouts_without_types_name_their_images_and_zips_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = write_images(tmp_path / "csv")
    (folder / "train.csv").write_text("image,text\nred.png,a\nblue.png,b\n")
    (folder / "red.png").rename(tmp_path / "red.png")
    source = HubSource(path=str(folder), captions={"text": "alt"})
    broken, blue = source.rows()
    assert isinstance(broken, BrokenRow)
    assert "no file 'red.png'" in broken.reason
    assert isinstance(blue, Row)
    assert blue.image == png("blue")
    with pytest.raises(DataError, match="no column title; it has image, text"):
        list(HubSource(path=str(folder), captions={"title": "alt"}).rows())
    zipped = write_paths(
        tmp_path / "zip", f"zip://in/red.png::{tmp_path}/zip/a.zip", f"zip://in/red.png::{tmp_path}/b.zip"
    )
    for name in ("zip/a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("in/red.png", png("red"))
    inside, outside = HubSource(path=str(zipped), captions={"text": "alt"}).rows()
    assert isinstance(inside, Row)
    assert inside.image == png("red")
    assert isinstance(outside, BrokenRow)
    assert "is no file of the data set" in outside.reason
    gc.collect()


def test_a_broken_file_of_a_hub_layout_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = write_images(tmp_path / "set")
    (folder / "train-0.jsonl").write_text('{"image": "red.png", "text": "a"}\n')
    (folder / "train-1.jsonl").write_text('{"image": "blue.png", "te')
    with pytest.raises(DataError, match=r"row 1: cannot be read \("):
        list(HubSource(path=str(folder), captions={"text": "alt"}).rows())


def test_a_hub_data_set_that_cannot_be_had_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="owner/name: the hub does not say which commit"):
        next(iter(HubSource(path="owner/name", captions={"text": "alt"}).rows()))


def test_sidecars_are_written_in_the_dialect_or_not_at_all(tmp_path: Path) -> None:
    rows = rows_of(write_images(tmp_path / "set"))
    assert write_sidecars(rows, {"alt": 1}, "one_line", ".txt", 0) == 3
    assert (tmp_path / "set/red.txt").read_text() == FULL.captions[0].text + "\n"
    with pytest.raises(DataError, match=r"red\.txt: 2 lines, which tools read differently"):
        write_sidecars(rows, {"dense": 1}, "one_line", ".txt", 0)
    with pytest.raises(DataError, match="first_line cannot hold 1 captions with 2 lines"):
        write_sidecars(rows, {"dense": 1}, "first_line", ".txt", 0)
    twice = [dataclasses.replace(row, captions=(*row.captions, Caption("alt", "another"))) for row in rows]
    with pytest.raises(DataError, match=r"red\.txt: 2 lines"):
        write_sidecars(twice, {"alt": 1}, "one_line", ".txt", 0)
    write_sidecars(twice, {"alt": 1}, "line_each", ".txt", 0)
    assert (tmp_path / "set/red.txt").read_text() == FULL.captions[0].text + "\nanother\n"
    write_sidecars(rows, {"dense": 1}, "whole_file", ".txt", 0)
    answers = [dict(_files("whole_file").load()([row]))[0] for row in rows]
    assert answers == [(Caption("dense", FULL.captions[1].text, "file:.txt"),)] * 3


def _files(dialect: str) -> Any:
    from t2i.captioners import FilesCaptioner

    return tiny.from_recipe(FilesCaptioner, {"type": "files", "kind": "dense", "dialect": dialect})


def test_sidecars_of_a_mix_are_drawn_by_weight_and_by_image(tmp_path: Path) -> None:
    from t2i.data.formats.sidecars import drawn_kind

    rows = [dataclasses.replace(FULL, id=f"{number:032x}") for number in range(0, 2**128, 2**128 // 2000)]
    kinds = [drawn_kind(row, {"alt": 1, "dense": 3}, 5) for row in rows]
    # Three standard errors: 3 * sqrt(3 / 16 / 2000) = 0.029.
    assert kinds.count("dense") / len(kinds) == pytest.approx(0.75, abs=0.03)
    assert kinds == [drawn_kind(row, {"alt": 1, "dense": 3}, 5) for row in rows]


METADATA_FAULTS = [
    (
        '{"file_name": "red.png", "text": "a"}\n{"file_name": "red.png", "text": "b"}\n',
        r"jsonl:2: .*red\.png' is there",
    ),
    ('{"file_name": "../red.png", "text": "a"}\n', r"jsonl:1: '\.\./red\.png' leads out of"),
    ('{"file_name": "/etc/passwd", "text": "a"}\n', r"jsonl:1: '/etc/passwd' leads out of"),
    ('{"file_name": "none.png", "text": "a"}\n', r"jsonl:1: .*none\.png: no such image"),
    ('{"file_name": "red.png", "text": 3}\n', r"jsonl:1, column text: the caption is int"),
    ('{"file_name": "red.png", "text": "a\\u0007b"}\n', r"jsonl:1, column text: .*control character U\+0007"),
    ('{"file_name": "red.png", "text": "%s"}\n' % ("a" * 10_000_000), r"jsonl:1, column text: .*10000000 characters"),
    ('{"file_name": "red.png", "text": "a"}\n{"file_name"', r"jsonl:2: not JSON"),
    ('{"file_name": "red.png", "title": "a"}\n', r"no column text; it has file_name, title"),
    ("", "no row"),
    ('{"file_name": "bomb.png", "text": "a"}\n', r"jsonl:1: .*bomb\.png: .*(pixels|bomb)"),
    ('{"file_name": "cut.jpg", "text": "a"}\n', r"jsonl:1: .*cut\.jpg: cannot be read as an image .*truncated"),
]


@pytest.mark.parametrize(("lines", "complaint"), METADATA_FAULTS, ids=[fault[1][:30] for fault in METADATA_FAULTS])
def test_faults_of_metadata_are_named_by_file_and_row(tmp_path: Path, lines: str, complaint: str) -> None:
    folder = write_images(tmp_path / "set")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "cut.jpg").write_bytes(truncated())
    (folder / "metadata.jsonl").write_text(lines)
    with pytest.raises(DataError, match=f"(?s){complaint}"):
        read(MetadataSource(path=str(folder), captions={"text": "alt"}), tmp_path / "run")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"file_name,text,text\nred.png,a,b\n", r"metadata\.csv:1: the header names text more than once"),
        (b"file_name,title\nred.png,a\n", r"metadata\.csv: no column text; it has file_name, title"),
        (b"file_name,text\nred.png,a\nblue.png\n", r"metadata\.csv:3: another number of values than the 2"),
        (b"file_name,text\nred.png,a,b\n", r"metadata\.csv:2: another number of values"),
        (b"file_name,text\nred.png,caf\xe9\n", r"metadata\.csv: not UTF-8 text \(byte 26 is 0xe9\)"),
        (b'file_name,text\nred.png,"' + b"a" * 10_000_000 + b'"\n', r"metadata\.csv:2: not CSV \(field larger"),
        (b'file_name,text\nred.png,"a\n', r"metadata\.csv:2: not CSV"),
    ],
)
def test_faults_of_csv_are_named_by_file_and_row(tmp_path: Path, data: bytes, complaint: str) -> None:
    folder = write_images(tmp_path / "set")
    (folder / "metadata.csv").write_bytes(data)
    with pytest.raises(DataError, match=complaint):
        read(MetadataSource(path=str(folder), captions={"text": "alt"}), tmp_path / "run")


def test_several_or_no_tables_are_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set")
    with pytest.raises(DataError, match="it has none of them"):
        read(MetadataSource(path=str(folder)), tmp_path / "run")
    for name in ("metadata.csv", "metadata.jsonl"):
        (folder / name).write_text("")
    with pytest.raises(DataError, match=r"it has metadata\.csv, metadata\.jsonl"):
        read(MetadataSource(path=str(folder)), tmp_path / "run")


def test_a_colon_leads_out_behind_the_letter_of_a_drive_alone(tmp_path: Path) -> None:
    assert inside(tmp_path, "a 12:30.png", "here") == tmp_path / "a 12:30.png"
    for name in ("c:/red.png", "C:\\red.png", "./c:red.png"):
        with pytest.raises(DataError, match="leads out of"):
            inside(tmp_path, name, "here")
    with pytest.raises(DataError, match=r"here: '\.' is .* itself"):
        inside(tmp_path, ".", "here")


TAR_FAULTS = [
    ({"../a.png": b"x"}, r"00\.tar, \.\./a\.png: the name leads out"),
    ({"/a.png": b"x"}, r"00\.tar, /a\.png: the name leads out"),
    ({"a.txt": b"x"}, r"00\.tar, a: the files txt; expected one image"),
    ({"photo v1.2_final.png": png(), "photo v1.3_final.png": png()}, r"photo v1: the files 2_final\.png, .*cuts it"),
    ({"a.png": png(), "a.txt": b"caf\xe9"}, r"00\.tar, a\.txt: not UTF-8"),
    ({"a.png": b"no image"}, r"00\.tar, a: cannot be read as an image"),
    ({"a.png": bomb()}, r"00\.tar, a: .*(pixels|bomb)"),
    ({"a.jpg": truncated()}, r"00\.tar, a: .*truncated"),
    ({"a.png": png(), "a.json": b"{"}, r"00\.tar, a\.json: not JSON"),
    ({"a.png": png(), "a.txt": b"x" * 10_000_000}, r"a\.txt: 10000000 bytes, at most"),
    ({"a.png": png(), "b.png": png("blue"), "a.txt": b"x"}, r"00\.tar, a: 'a' is there twice"),
    ({"a.png": png(), "a.json": b'{"status": "failed_to_resize", "error_message": "x"}'}, "says 'failed_to_resize': x"),
]


@pytest.mark.parametrize(("files", "complaint"), TAR_FAULTS, ids=[fault[1][:30] for fault in TAR_FAULTS])
def test_faults_of_tars_are_named_by_file_and_member(tmp_path: Path, files: dict[str, bytes], complaint: str) -> None:
    write_tar(tmp_path / "set/00.tar", files)
    with pytest.raises(DataError, match=f"(?s){complaint}"):
        read(WebdatasetSource(path=str(tmp_path / "set")), tmp_path / "run")


def test_files_to_ignore_are_not_read_and_still_belong_to_their_sample(tmp_path: Path) -> None:
    files = {"a.npy": b"x" * 5_000_000, "a.png": png(), "a.txt": b"a wall"}
    files |= {"b.json": b"{", "b.png": png("blue"), "b.txt": b"blue"}
    path = write_tar(tmp_path / "00.tar", files)
    source = WebdatasetSource(path=str(path), ignore=("npy", "json"))
    assert texts(read(source, tmp_path / "run")) == [[("alt", "a wall")], [("alt", "blue")]]
    write_tar(path, {"a.png": png(), "b.npy": b"x"})
    with pytest.raises(DataError, match=r"00\.tar, b: the files to ignore alone; expected one image"):
        read(source, tmp_path / "run")


def tar_of_three(path: Path) -> tuple[bytes, list[int]]:
    """(the bytes of an archive with three images, where its members and then its end begin)."""
    write_tar(path, {f"{colour}.png": png(colour) for colour in COLOURS})
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive.getmembers()]
        return path.read_bytes(), [*starts, archive.offset]


def test_a_tar_that_is_damaged_behind_its_beginning_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "00.tar"
    whole, (_, second, third, _) = tar_of_three(path)
    damaged = whole[:second] + b"?" + whole[second + 1 :]
    for data, byte in ((damaged, second), (whole[: third + 100], third)):
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"00\.tar: damaged or cut short at byte {byte}; fetch it again"):
            list(WebdatasetSource(path=str(path)).rows())


@pytest.mark.parametrize("zeros", [0, 300, 512])
def test_a_tar_without_all_zeros_at_its_end_is_read(tmp_path: Path, zeros: int) -> None:
    path = tmp_path / "00.tar"
    whole, starts = tar_of_three(path)
    path.write_bytes(whole[: starts[-1] + zeros])
    rows = list(WebdatasetSource(path=str(path)).rows())
    assert [type(row) for row in rows] == [Row] * 3


def test_jpeg_with_a_second_picture_is_stored_as_the_jpeg_that_its_first_is(tmp_path: Path) -> None:
    file = io.BytesIO()
    second = Image.new("RGB", (9, 7), "blue")
    Image.new("RGB", (9, 7), "red").save(file, "MPO", save_all=True, append_images=[second])
    write_tar(tmp_path / "set/00.tar", {"a.jpg": file.getvalue()})
    [row] = read(WebdatasetSource(path=str(tmp_path / "set")), tmp_path / "run")
    assert row.image.endswith(".jpg")
    assert (tmp_path / "run" / row.image).read_bytes() == file.getvalue()
    red, _, blue = open_image(tmp_path / "run" / row.image).split()
    assert (min(red.get_flattened_data()), max(blue.get_flattened_data())) == (254, 0)


def test_links_and_compressed_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"link\.tar, a\.png: a link or device"):
        read(WebdatasetSource(path=str(tmp_path / "link.tar")), tmp_path / "run")
    with tarfile.open(tmp_path / "small.tar", "w:gz") as archive:
        archive.add(write_images(tmp_path / "set") / "red.png", "a.png")
    with pytest.raises(DataError, match=r"small\.tar: cannot be read as an uncompressed tar"):
        read(WebdatasetSource(path=str(tmp_path / "small.tar")), tmp_path / "run")


def test_broken_rows_may_be_dropped_and_are_listed(tmp_path: Path) -> None:
    files = {"a.png": png(), "b.png": b"no image", "c.png": png("blue")}
    write_tar(tmp_path / "set/00.tar", files)
    found = read(WebdatasetSource(path=str(tmp_path / "set"), broken="drop"), tmp_path / "run")
    assert len(found) == 2
    [line] = (tmp_path / "run/broken.jsonl").read_text().splitlines()
    assert json.loads(line)["row"].endswith("00.tar, b")
    write_tar(tmp_path / "set/00.tar", {"b.png": b"no image"})
    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        read(WebdatasetSource(path=str(tmp_path / "set"), broken="drop"), tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"red.png": "a"}', r"captions\.json, red\.png: str instead of a list"),
        ('{"red.png": ["a", 3]}', r"captions\.json, red\.png: the caption is int"),
        ('{"red.png": ["a"], "red.png": ["b"]}', r"captions\.json: 'red\.png' is there twice"),
        ("[]", r"captions\.json: list instead of an object"),
        ('{"red.png":\n [', r"captions\.json:2: not JSON"),
    ],
)
def test_faults_of_captions_json_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    folder = write_images(tmp_path / "set")
    (folder / "captions.json").write_text(text)
    with pytest.raises(DataError, match=complaint):
        read(CaptionsJsonSource(path=str(folder)), tmp_path / "run")


def test_sizes_and_counts_need_no_decoding(tmp_path: Path) -> None:
    write_tar(tmp_path / "set/00.tar", {"a.png": png(size=(9, 7)), "b.png": png(size=(5, 6))})
    source = WebdatasetSource(path=str(tmp_path / "set"))
    assert source.count() == 2
    assert [size[1:] for size in source.sizes()] == [(9, 7), (5, 6)]
    assert not any(isinstance(row, BrokenRow) for row in source.rows())


def test_names_are_told_apart_while_the_table_of_them_grows() -> None:
    once = Once()
    for number in range(5000):
        once.check(f"name {number}", "here")
    for number in (0, 511, 2500, 4999):
        with pytest.raises(DataError, match=f"there: 'name {number}' is there twice"):
            once.check(f"name {number}", "there")
