"""A CSV that lists pictures with their labels; every fault is named with file and line. Opens no picture."""

import csv
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tl_cli.contract import SPLIT_NAMES, SplitName
from tl_cli.data.decoding import SUFFIXES
from tl_cli.data.folder import PART_NAMES, some
from tl_cli.data.found import Found
from tl_cli.data.images import FileImages
from tl_cli.errors import DataError

_EXPECTED = (
    "expected a header that names the columns path and label, and split where the parts are given, "
    "separated by commas, semicolons or tabs"
)
_MOST_SHOWN = 120
_DELIMITERS = (",", ";", "\t")
_PARTS: dict[str, SplitName] = {name: part for part, names in PART_NAMES.items() for name in names}


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    id: str
    label: str
    part: SplitName


def scan(path: Path, *, confined: bool = False) -> Found:
    """Return the classes and images that a CSV lists. The order of its rows does not matter.

    Args:
        confined: refuse pictures outside the CSV's folder; for a CSV that came in an archive.

    Raises:
        DataError: it is no such CSV, or lists what cannot be used: pictures that are not there or listed twice, an
            unknown split, one class only, labels that are unknown to ``train``.
    """
    path = path.expanduser().resolve()
    rows = sorted(_read(path, confined), key=lambda row: (row.label, row.id))
    if not rows:
        raise DataError(f"{path} lists no pictures; {_EXPECTED}")
    _check_pictures(path, rows)
    by_part = {part: [row for row in rows if row.part == part] for part in SPLIT_NAMES}
    classes = tuple(sorted({row.label for row in by_part["train"]}))
    _check_labels(path, rows, classes)
    index = {label: number for number, label in enumerate(classes)}
    notes = [
        f"{path.name} lists no pictures of {some(absent)} in {part}"
        for part, listed in by_part.items()
        if listed and (absent := [name for name in classes if name not in {row.label for row in listed}])
    ]
    parts = {
        part: FileImages(
            np.array([row.id for row in listed], dtype=object),
            np.array([index[row.label] for row in listed], dtype=np.int64),
            path.parent,
        )
        for part, listed in by_part.items()
        if listed
    }
    return Found(classes, parts, tuple(notes))


def is_listing(path: Path) -> bool:
    """Return whether the first line of a file names the columns path and label."""
    with path.open("rb") as file:
        first = file.readline(1 << 16).decode("utf-8-sig", "replace")
    return _delimiter(first) is not None


def _read(path: Path, confined: bool) -> Iterator[_Row]:
    text = _text(path)
    first = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    delimiter = _delimiter(first)
    if delimiter is None:
        raise DataError(f"{path}, line 1: {_EXPECTED}; got {first.strip()[:80]!r}")
    records = _records(path, text, delimiter)
    _, header = next(records)
    header = [name.strip().lower() for name in header]
    twice = [name for name in ("path", "label", "split") if header.count(name) > 1]
    if twice:
        raise DataError(f"{path}, line 1: more than one column is called {twice[0]}; rename the others")
    for line, values in records:
        if len(values) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(values)} columns, but {len(header)} in the header; "
                f"quote a value that holds {delimiter!r}"
            )
        columns = dict(zip(header, map(str.strip, values), strict=True))
        if not columns["label"]:
            raise DataError(f"{path}, line {line}: the label is empty; name a class or remove the row")
        yield _Row(
            line,
            _id(path, line, columns["path"], confined),
            columns["label"],
            _part(path, line, columns["split"]) if "split" in columns else "train",
        )


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if b"\0" in raw:
        line = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        raise DataError(f"{path}, line {line}: holds a NUL byte; it is no text, or is UTF-16: save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: is not UTF-8; save it as UTF-8") from error


def _delimiter(first_line: str) -> str | None:
    for delimiter in _DELIMITERS:
        names = {name.strip().strip('"').strip().lower() for name in first_line.split(delimiter)}
        if {"path", "label"} <= names:
            return delimiter
    return None


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: {error}; are its quotes closed?") from error
        if any(value.strip() for value in values):
            yield line, values


def _id(path: Path, line: int, listed: str, confined: bool) -> str:
    """Return the picture's path relative to the CSV's folder, as pictures are told apart by."""
    if not listed:
        raise DataError(f"{path}, line {line}: the path is empty")
    if Path(listed).suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path}, line {line}: {_short(listed)} has no ending of a picture ({', '.join(sorted(SUFFIXES))})"
        )
    is_absolute = Path(listed).is_absolute()
    relative = os.path.relpath(listed, path.parent) if is_absolute else os.path.normpath(listed)
    if confined and (is_absolute or Path(relative).parts[0] == ".."):
        raise DataError(f"{path}, line {line}: {_short(listed)} lies outside the archive")
    return relative.replace(os.sep, "/")


def _part(path: Path, line: int, split: str) -> SplitName:
    if split.lower() not in _PARTS:
        raise DataError(f"{path}, line {line}: split is {split!r}; expected train, val or test")
    return _PARTS[split.lower()]


def _check_pictures(path: Path, rows: list[_Row]) -> None:
    first: dict[tuple[int, int], _Row] = {}
    missing: list[str] = []
    for row in sorted(rows, key=lambda row: row.line):
        found = _stat(path, row)
        if found and stat.S_ISDIR(found.st_mode):
            raise DataError(f"{path}, line {row.line}: {_short(row.id)} is a folder; list the pictures in it")
        if not found or not stat.S_ISREG(found.st_mode):
            missing.append(f"{_short(row.id)} (line {row.line})")
            continue
        # One picture may have many names: links, and folders that are links.
        same = first.setdefault((found.st_dev, found.st_ino), row)
        if same is not row:
            other = "" if same.id == row.id else f" as {_short(same.id)}"
            raise DataError(
                f"{path}, line {row.line}: {_short(row.id)} is listed on line {same.line} too{other}; keep one of them"
            )
    if missing:
        hint = "; write / where there is \\" if any("\\" in name for name in missing) else ""
        raise DataError(
            f"{path} lists {len(missing):,} pictures that are not there: {some(missing)}. "
            f"Paths are relative to {path.parent}{hint}"
        )


def _stat(path: Path, row: _Row) -> os.stat_result | None:
    try:
        return os.stat(path.parent / row.id)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}, line {row.line}: {_short(row.id)} cannot be read: {error.strerror}") from error


def _short(name: str) -> str:
    return name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}..."


def _check_labels(path: Path, rows: list[_Row], classes: tuple[str, ...]) -> None:
    if not classes:
        raise DataError(f"{path} lists no pictures with split train; without a column split all would be train")
    unknown = next((row for row in rows if row.label not in classes), None)
    if unknown:
        raise DataError(
            f"{path}, line {unknown.line}: the label {unknown.label!r} of this picture in {unknown.part} "
            "has no picture in train"
        )
    if len(classes) < 2:
        raise DataError(f"{path} has one class only ({classes[0]}); a classifier needs two or more")
