"""The records read from a journal, also from a damaged file."""

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Metric

from tl_cli.errors import StorageError
from tl_cli.tracking.journal import Ending, Item, Journal, Recorded, read, remove_items

POINTS = [Metric("step/loss", value, 1000 + step, step) for step, value in enumerate((0.25, 1e308, math.inf, 3.0), 1)]
WORK = [Item("tag", "key", "value"), Item("file", "/a/b", "curves")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add(POINTS)
        journal.add_items(WORK)
        journal.end(Ending("KILLED", 5))
    return path


def contents_of(recorded: Recorded) -> tuple[list[tuple[int, float]], list[Item], Ending | None]:
    return [(point.step, point.value) for point in recorded.points], recorded.items, recorded.ending


def test_written_records_are_read_back(path: Path) -> None:
    assert contents_of(read(path, "r")) == ([(point.step, point.value) for point in POINTS], WORK, Ending("KILLED", 5))
    remove_items(path)
    assert contents_of(read(path, "r")) == ([(point.step, point.value) for point in POINTS], [], Ending("KILLED", 5))


def test_lines_of_an_earlier_version_are_read(path: Path) -> None:
    path.write_bytes(b"".join(line.rpartition(b" ")[0] + b"\n" for line in path.read_bytes().splitlines()))
    assert contents_of(read(path, "r")) == ([(point.step, point.value) for point in POINTS], WORK, Ending("KILLED", 5))


def test_a_flipped_bit_loses_at_most_a_line_and_changes_none(path: Path) -> None:
    whole = path.read_bytes()
    points, work, ending = contents_of(read(path, "r"))
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        now_points, now_work, now_ending = contents_of(read(path, "r"))
        assert set(now_points) <= set(points)
        assert [each for each in work if each in now_work] == now_work
        assert now_ending in (ending, None)
        # A flipped line break joins two lines.
        assert len(now_points) + len(now_work) + bool(now_ending) >= len(points) + len(work) + bool(ending) - 2


@pytest.mark.parametrize(
    "line",
    ["[]", "{}", "null", "3", '["a", "b"]', "[1, 2, 3, 4, 5, 6, 7]", '[["x"], 1, 1, 1, null, null, null]', '["FINISHEd", 3]',
     '["a", "0.5", 1, 1, null, null, null]', '["a", 0.5, 1, 1e30, null, null, null]', '["do", "a", "b"]', "[" * 5000, "\x00"],
)  # fmt: skip
def test_invalid_lines_are_skipped(line: str, path: Path) -> None:
    before = contents_of(read(path, "r"))
    with path.open("a") as file:
        file.write(line + "\n")
    assert contents_of(read(path, "r")) == before


def test_a_line_truncated_by_a_full_disk_does_not_affect_later_lines(tmp_path: Path, monkeypatch) -> None:
    path, write = tmp_path / "journal.jsonl", os.write
    with Journal(path) as journal:
        for point in POINTS:
            journal.add([point])
            if point.step == 2:

                def full(file: int, data: bytes) -> int:
                    if len(data) > 20:
                        return write(file, data[:20])
                    raise OSError(errno.ENOSPC, "No space left on device")

                monkeypatch.setattr(os, "write", full)
                with pytest.raises(StorageError, match="No space left"):
                    journal.add([Metric("lost", 1.0, 1, 1)])
                monkeypatch.setattr(os, "write", write)
    assert [point.step for point in read(path, "r").points] == [1, 2, 3, 4]


def test_any_number_is_read_back_unchanged(tmp_path: Path) -> None:
    numbers = [*np.random.default_rng(0).normal(size=50).tolist(), math.nan, -math.inf, 5e-324, 0, 3]
    with Journal(tmp_path / "j") as journal:
        journal.add(Metric("a", number, 1, step) for step, number in enumerate(numbers, 1))
    found = [point.value for point in read(tmp_path / "j", "r").points]
    assert json.dumps(found) == json.dumps([float(number) for number in numbers])
