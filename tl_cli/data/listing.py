"""A CSV that lists pictures with their labels; every fault is named with file and line. Opens no picture."""

import csv
import io
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from tl_cli.contract import SPLIT_NAMES, SplitName
from tl_cli.data import spelling
from tl_cli.data.found import Faults, Found
from tl_cli.data.images import FileImages
from tl_cli.data.names import Names
from tl_cli.data.partition import Part, looks_divided, meaning, settled
from tl_cli.data.pictures import SUFFIXES
from tl_cli.errors import DataError, some

_EXPECTED = (
    "expected a header that names the columns path and label, and split where the parts are given, "
    "separated by commas, semicolons or tabs"
)
_MOST_SHOWN = 120
_NO_DEVICE = (1 << 64) - 1
_ASCII_SPACES = " \t\r\n"  # usual beside a delimiter, and not worth a note
_DELIMITERS = (",", ";", "\t")
# Other names that the column split goes by; they may also mean something else.
_SPLIT_NAMES = ("set", "subset", "part", "partition", "fold")


@dataclass(frozen=True, slots=True)
class _SplitColumn:
    """The column that says which part each row is of.

    Attributes:
        name: of the column; None where there is none, and all rows are train.
        parts: what each of its values means; None where a value is no part.
        notes: what is worth saying about this and similar columns.
    """

    name: str | None
    parts: Mapping[str, Part | None]
    notes: list[str]

    def part(self, path: Path, line: int, value: str) -> SplitName:
        """Return the part that a value means.

        Raises:
            DataError: it means none, or it is unclear which.
        """
        part = self.parts[value]
        if part is None or part == "unclear":
            raise DataError(f"{path}, line {line}: {self.name} is {value!r}; expected train, val or test")
        return part


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a CSV lists, column by column.

    Attributes:
        lines: (N,) int64, on which each row begins.
        ids: of the pictures.
        classes: every label there is, sorted.
        labels: (N,) int64, indices into ``classes``.
        parts: (N,) int64, indices into ``SPLIT_NAMES``.
    """

    lines: np.ndarray
    ids: Names
    classes: tuple[str, ...]
    labels: np.ndarray
    parts: np.ndarray

    def take(self, rows: np.ndarray) -> "_Rows":
        """Return the rows at ``rows``, of integers or of bool."""
        return _Rows(self.lines[rows], self.ids.take(rows), self.classes, self.labels[rows], self.parts[rows])

    def renamed(self, names: Mapping[str, str]) -> "_Rows":
        """Return the rows with other names for their labels, several of which may become one."""
        classes = sorted(set(names.values()))
        numbers = {name: number for number, name in enumerate(classes)}
        places = np.array([numbers[names[name]] for name in self.classes], dtype=np.int64)
        return _Rows(self.lines, self.ids, tuple(classes), places[self.labels], self.parts)

    def counts(self) -> dict[str, int]:
        """Return how many rows each label has."""
        return dict(zip(self.classes, np.bincount(self.labels, minlength=len(self.classes)).tolist(), strict=True))

    def of(self, part: SplitName) -> "_Rows":
        """Return the rows of a part."""
        return self.take(self.parts == SPLIT_NAMES.index(part))

    def present(self) -> list[str]:
        """Return the labels that some row has, sorted."""
        return [self.classes[label] for label in np.unique(self.labels)]


def scan(path: Path, *, confined: bool = False, lenient: bool = False) -> Found:
    """Return the classes and images that a CSV lists. The order of its rows does not matter.

    Args:
        confined: refuse pictures outside the CSV's folder; for a CSV that came in an archive.
        lenient: go on where labels look like one another, and name that among the faults.

    Raises:
        DataError: it is no such CSV, or lists what cannot be used: pictures that are not there or listed twice, an
            unknown split, one class only, labels that are unknown to ``train``.
    """
    path = path.expanduser().resolve()
    raw = _checked_bytes(path)
    split = _split_column(path, raw)
    rows = _columns(_read(path, raw, split, confined))
    if not len(rows.ids):
        raise DataError(f"{path} lists no pictures; {_EXPECTED}")
    _check_pictures(path, rows)
    spelled, said = spelling.merged(rows.counts())
    rows = rows.renamed({label: name.strip() for label, name in spelled.items()})
    faults = Faults(lenient)
    fault, note = spelling.lookalikes(rows.counts())
    if fault:
        faults.add(f"in {path} {fault}")
    by_name = rows.ids.order()
    rows = rows.take(by_name[np.argsort(rows.labels[by_name], kind="stable")])
    classes = tuple(rows.of("train").present())
    _check_labels(path, rows, classes)
    # Every label is one of train's now.
    by_part = {part: listed for part in SPLIT_NAMES if len((listed := rows.of(part)).ids)}
    notes = [*split.notes, *said, *([note] if note else [])]
    notes += [
        f"{path.name} lists no pictures of {some(absent)} in {part}"
        for part, listed in by_part.items()
        if (absent := sorted(set(classes) - set(listed.present())))
    ]
    divided = looks_divided(classes)
    if divided:
        notes.append(f"the labels {some(divided)} look like parts; a column called split says which part a row is of")
    parts = {part: FileImages(listed.ids, listed.labels, path.parent) for part, listed in by_part.items()}
    return Found(classes, parts, tuple(notes), tuple(faults.named))


def _columns(read: Iterable[tuple[int, str, str, SplitName]]) -> _Rows:
    lines, labels, parts = array("q"), array("q"), array("b")
    numbers: dict[str, int] = {}

    def names() -> Iterator[str]:
        for line, name, label, part in read:
            lines.append(line)
            labels.append(numbers.setdefault(label, len(numbers)))
            parts.append(SPLIT_NAMES.index(part))
            yield name

    ids = Names.of(names())
    classes = sorted(numbers)
    ranks = np.empty(len(classes), dtype=np.int64)
    ranks[[numbers[name] for name in classes]] = np.arange(len(classes))
    return _Rows(
        np.array(lines, dtype=np.int64),
        ids,
        tuple(classes),
        ranks[np.array(labels, dtype=np.int64)],
        np.array(parts, dtype=np.int64),
    )


def is_listing(path: Path) -> bool:
    """Return whether the first line of a file names the columns path and label."""
    with path.open("rb") as file:
        first = file.readline(1 << 16).decode("utf-8-sig", "replace")
    return _delimiter(first) is not None


def _table(path: Path, raw: bytes) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the names of the columns, and each row's line and values."""
    first = next((line for line in _text(raw) if line.strip()), "")
    delimiter = _delimiter(first)
    if delimiter is None:
        raise DataError(f"{path}, line 1: {_EXPECTED}; got {first.strip()[:80]!r}")
    records = _records(path, _text(raw), delimiter)
    _, names = next(records)
    header = [name.strip().lower() for name in names]

    def rows() -> Iterator[tuple[int, list[str]]]:
        for line, values in records:
            if len(values) != len(header):
                raise DataError(
                    f"{path}, line {line}: {len(values)} columns, but {len(header)} in the header; "
                    f"quote a value that holds {delimiter!r}"
                )
            yield line, values

    return header, rows()


def _split_column(path: Path, raw: bytes) -> _SplitColumn:
    """Return the column called split, or the one of a similar name whose values are all names of parts."""
    header, rows = _table(path, raw)
    named = {name: header.index(name) for name in ("split", *_SPLIT_NAMES) if name in header}
    if not named:
        return _SplitColumn(None, {}, [])
    values: dict[str, set[str]] = {name: set() for name in named}
    for _, row in rows:
        for name, index in named.items():
            values[name].add(row[index].strip())
    meanings = {name: {value: meaning(value) for value in sorted(each)} for name, each in values.items()}
    fitting = ["split"] if "split" in named else [name for name in named if all(meanings[name].values())]
    if len(fitting) > 1:
        raise DataError(f"{path}, line 1: {some(fitting)} all name parts; call the right one split")
    ignored = [name for name in named if name not in fitting]
    notes = [f"{path.name}: not read as split: {some(ignored)}"] if ignored else []
    if not fitting:
        return _SplitColumn(None, {}, notes)
    (name,) = fitting
    known = {value: part for value, part in meanings[name].items() if part}
    parts = settled(known)
    if name != "split" or parts != known:
        read = some([f"{part} from {value}" for value, part in parts.items()])
        notes.insert(0, f"{path.name}: read as parts by the column {name}: {read}")
    return _SplitColumn(name, {**meanings[name], **parts}, notes)


def _read(path: Path, raw: bytes, split: _SplitColumn, confined: bool) -> Iterator[tuple[int, str, str, SplitName]]:
    """Yield line, id, label and part of each row."""
    header, rows = _table(path, raw)
    twice = [name for name in ("path", "label", split.name) if name and header.count(name) > 1]
    if twice:
        raise DataError(f"{path}, line 1: more than one column is called {twice[0]}; rename the others")
    for line, values in rows:
        columns = dict(zip(header, map(str.strip, values), strict=True))
        label = values[header.index("label")].strip(_ASCII_SPACES)
        if not spelling.keys([label])[label]:
            raise DataError(f"{path}, line {line}: the label is empty; name a class or remove the row")
        yield (
            line,
            _id(path, line, columns["path"], confined),
            label,
            split.part(path, line, columns[split.name]) if split.name else "train",
        )


def _checked_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if b"\0" in raw:
        line = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        raise DataError(f"{path}, line {line}: holds a NUL byte; it is no text, or is UTF-16: save it as UTF-8")
    try:
        raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: is not UTF-8; save it as UTF-8") from error
    return raw


def _text(raw: bytes) -> TextIO:
    """Return the text piece by piece: as a whole it takes four times the memory of its bytes."""
    return io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig", newline="")


def _delimiter(first_line: str) -> str | None:
    for delimiter in _DELIMITERS:
        names = {name.strip().strip('"').strip().lower() for name in first_line.split(delimiter)}
        if {"path", "label"} <= names:
            return delimiter
    return None


def _records(path: Path, text: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank with the line on which it begins."""
    reader = csv.reader(text, delimiter=delimiter, strict=True)
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
    if os.path.splitext(os.path.normpath(listed))[1].lower() not in SUFFIXES:
        raise DataError(
            f"{path}, line {line}: {_short(listed)} has no ending of a picture ({', '.join(sorted(SUFFIXES))})"
        )
    # pathlib takes seconds for a million rows.
    is_absolute = os.path.isabs(listed)  # noqa: PTH117
    relative = os.path.relpath(listed, path.parent) if is_absolute else os.path.normpath(listed)
    if confined and (is_absolute or relative.partition(os.sep)[0] == ".."):
        raise DataError(f"{path}, line {line}: {_short(listed)} lies outside the archive")
    return relative.replace(os.sep, "/")


def _check_pictures(path: Path, rows: _Rows) -> None:
    """Raise for the first row that lists a folder or a picture that was listed before, or for all that are missing."""
    files, missing, fault = _look(path, rows)
    _check_twice(path, rows, files)
    if fault:
        raise fault
    if missing:
        hint = "; write / where there is \\" if any("\\" in name for name in missing) else ""
        raise DataError(
            f"{path} lists {len(missing):,} pictures that are not there: {some(missing)}. "
            f"Paths are relative to {path.parent}{hint}"
        )


def _look(path: Path, rows: _Rows) -> tuple[np.ndarray, list[str], DataError | None]:
    """Return (M, 2) uint64 device and number of each file, down to a row that cannot be, what is missing, the fault."""
    files = array("Q")
    missing: list[str] = []
    for line, name in zip(rows.lines, rows.ids, strict=True):
        try:
            found = _stat(path, line, name)
        except DataError as fault:
            return _pairs(files), missing, fault
        if found and stat.S_ISREG(found.st_mode):
            files.extend((found.st_dev, found.st_ino))
        else:
            missing.append(f"{_short(name)} (line {line})")
            # As no file has: what is not there is not there twice.
            files.extend((_NO_DEVICE, len(missing)))
    return _pairs(files), missing, None


def _pairs(files: "array[int]") -> np.ndarray:
    return np.array(files, dtype=np.uint64).reshape(-1, 2)


def _check_twice(path: Path, rows: _Rows, files: np.ndarray) -> None:
    # One picture may have many names: links, and folders that are links.
    order = np.lexsort((files[:, 1], files[:, 0]))
    again = np.flatnonzero((files[order[1:]] == files[order[:-1]]).all(1))
    if not len(again):
        return
    # The first row that repeats another comes right after the one it repeats: sorting is stable.
    first, row = min(zip(order[again], order[again + 1], strict=True), key=lambda pair: pair[1])
    other = "" if rows.ids[first] == rows.ids[row] else f" as {_short(rows.ids[first])}"
    raise DataError(
        f"{path}, line {rows.lines[row]}: {_short(rows.ids[row])} is listed on line {rows.lines[first]} too{other}; "
        "keep one of them"
    )


def _stat(path: Path, line: int, name: str) -> os.stat_result | None:
    try:
        found = os.stat(os.path.join(path.parent, name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}, line {line}: {_short(name)} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{path}, line {line}: {_short(name)} is a folder; list the pictures in it")
    return found


def _short(name: str) -> str:
    return name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}..."


def _check_labels(path: Path, rows: _Rows, classes: tuple[str, ...]) -> None:
    if not classes:
        raise DataError(f"{path} lists no pictures with split train; without a column split all would be train")
    unknown = sorted(set(rows.classes) - set(classes))
    if unknown:
        row = int(np.argmax(rows.labels == rows.classes.index(unknown[0])))
        raise DataError(
            f"{path}, line {rows.lines[row]}: the label {unknown[0]!r} of this picture in "
            f"{SPLIT_NAMES[rows.parts[row]]} has no picture in train"
        )
    if len(classes) < 2:
        raise DataError(f"{path} has one class only ({classes[0]}); a classifier needs two or more")
