"""Records that stay on disk."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from t2i.data.rows import JoinedRecords, RecordTable, image_sizes
from t2i.data.sources import load_records, save_records
from t2i.errors import DataError
from t2i.records import Caption, CaptionedImage

ROWS = 200_000
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path() -> Path:
    return tiny.captioned_photographs() / "records.jsonl"


def test_table_gives_the_same_records_as_a_list(path: Path) -> None:
    table, expected = RecordTable(path), load_records(path)
    assert len(table) == len(expected)
    assert list(table) == expected == [table[number] for number in range(len(expected))]
    assert (table[-1], table[1:5:2]) == (expected[-1], expected[1:5:2])
    assert image_sizes(table).tolist() == image_sizes(expected).tolist() == [[r.width, r.height] for r in expected]
    with pytest.raises(IndexError):
        table[len(expected)]


def test_table_can_be_given_to_another_process(path: Path) -> None:
    table = RecordTable(path)
    assert table[0] == pickle.loads(pickle.dumps(table))[0]


def test_empty_lines_and_a_missing_last_line_end_do_not_matter(path: Path, tmp_path: Path) -> None:
    lines = path.read_text().splitlines()
    (tmp_path / "records.jsonl").write_text("\n" + "\n \n\n".join(lines))
    assert [row.id for row in RecordTable(tmp_path / "records.jsonl")] == [row.id for row in load_records(path)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", r"records\.jsonl:2: not JSON"),
        ('{"id": "1"}', r"records\.jsonl:2: not a CaptionedImage"),
        ('{"id": "1", "image": "a.png", "width": 0, "height": 4}', r":2: width 0 and height 4; expected pixels"),
        ('{"id": "1", "image": "a.png", "width": "8", "height": 4}', r":2: width '8'"),
    ],
)
def test_bad_row_is_named_by_its_line(path: Path, tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "records.jsonl").write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(DataError, match=complaint):
        RecordTable(tmp_path / "records.jsonl")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        RecordTable(tmp_path / "none.jsonl")


def test_joined_tables_are_one_after_the_other(path: Path) -> None:
    table = RecordTable(path)
    joined = JoinedRecords([table, table[:2], table])
    expected = [*table, *table[:2], *table]
    assert len(joined) == len(expected)
    assert list(joined) == expected
    assert image_sizes(joined).tolist() == [[row.width, row.height] for row in expected]


def test_saved_records_are_written_one_at_a_time(tmp_path: Path) -> None:
    taken: list[int] = []

    def rows():
        for number in range(5):
            taken.append(number)
            yield CaptionedImage(str(number), f"{number}.png", 8, 8)

    save_records(tmp_path, rows())
    assert [row.id for row in RecordTable(tmp_path / "records.jsonl")] == list("01234")

    def broken():
        yield CaptionedImage("9", "9.png", 8, 8)
        raise DataError("the second is broken")

    with pytest.raises(DataError, match="the second is broken"):
        save_records(tmp_path, broken())
    assert len(RecordTable(tmp_path / "records.jsonl")) == 5
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from t2i.data.order import Order, Stream
from t2i.data.rows import RecordTable

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

Order([Stream(range(9))], 1, 8).record_at(3), RecordTable(Path(sys.argv[1]))[0]
before = peak()
table = RecordTable(Path(sys.argv[2]))
records = np.arange(len(table), dtype=np.int32)
order = Order([Stream(records[::2], 0), Stream(records[1::2], 1)], 1, 8)
rows = [table[order.record_at(number)].id for number in range(0, 2 * len(table), 997)]
print(len(table), len(set(rows)), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_200000_rows_take_less_than_100_bytes_each(tmp_path: Path) -> None:
    start = (
        '{"captions": [{"kind": "dense", "source": "", "text": "a dog on a beach with a red ball"}], "height": 480, '
    )
    for name, count in (("one", 1), ("many", ROWS)):
        lines = (f'{start}"id": "{n:032x}", "image": "images/{n:08d}.jpg", "width": 640}}\n' for n in range(count))
        (tmp_path / name).write_text("".join(lines))
    files = [str(tmp_path / name) for name in ("one", "many")]
    code = [sys.executable, "-c", MEASURE, *files]
    found = subprocess.run(code, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split()
    rows, different, grown = map(int, found)
    assert rows == ROWS
    assert different == pytest.approx(2 * ROWS / 997, abs=30)
    # The peak, over all that a process holds: line starts, sizes, records, two permutations, and their making.
    assert grown / ROWS < 100


def test_captions_are_read_from_disk_each_time(tmp_path: Path) -> None:
    save_records(tmp_path, [CaptionedImage("1", "a.png", 8, 8, (Caption("alt", "x"),))])
    table = RecordTable(tmp_path / "records.jsonl")
    assert table[0] == table[0]
    assert table[0] is not table[0]
