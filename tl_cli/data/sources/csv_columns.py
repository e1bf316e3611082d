"""The columns of a CSV: which one contains the image, the class and the part. Opens no image."""

import csv
import io
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TextIO

from tl_cli.contract import USUAL_COLUMNS, Columns, SplitName
from tl_cli.data.decode import SUFFIXES
from tl_cli.data.sources.split_names import Part, meaning, settled
from tl_cli.errors import DataError, some

EXPECTED = (
    "expected a header that names the columns path and label, and split where the parts are given, "
    "separated by commas, semicolons or tabs"
)
_HEAD_BYTES = 1 << 16
_DELIMITERS = (",", ";", "\t")
_NAMES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t])"?\s*', re.IGNORECASE)
_FLAG = re.compile(r"([01])(?:\.0*)?")
# Excel's "Unicode text" is UTF-16.
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class _UnclearError(DataError):
    """Several columns have names that fit."""


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV and the meaning of its columns.

    Attributes:
        path: of the file.
        raw: its bytes, as UTF-8.
        delimiter: between values.
        titles: of the columns, as they are written; their numbers where there is no header.
        has_header: whether the first record names the columns.
        skipped: records before the first row.
        image: index of the column that names the image.
        labels: index of the column with the label, or indices of one column per class, one of which is 1 in each row.
        split: index of the column with the part; None if there is none, and all rows are train.
        parts: the part that each value of this column means; None for a value that is not a part.
        notes: for the user: how the columns were read.
    """

    path: Path
    raw: bytes
    delimiter: str
    titles: tuple[str, ...]
    has_header: bool
    skipped: int
    image: int = -1
    labels: tuple[int, ...] = ()
    split: int | None = None
    parts: Mapping[str, Part | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The titles as they are compared with known names."""
        return [_folded(title) for title in self.titles]

    @property
    def shown(self) -> list[str]:
        """The titles for a message."""
        return [title.strip() for title in self.titles]

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line and the values of each row.

        Raises:
            DataError: a row has more or fewer values than there are columns, or its quotes are not closed.
        """
        for line, values in islice(_records(self.path, _text(self.raw), self.delimiter), self.skipped, None):
            if len(values) != len(self.titles):
                where = "in the header" if self.has_header else "on line 1"
                raise DataError(
                    f"{self.path}, line {line}: {len(values)} columns, but {len(self.titles)} {where}; "
                    f"quote a value that holds {self.delimiter!r}"
                )
            yield line, values

    def label(self, line: int, values: Sequence[str]) -> str:
        """Return the label of a row.

        Raises:
            DataError: not exactly one of several columns, one per class, is 1.
        """
        if len(self.labels) == 1:
            return values[self.labels[0]]
        marked = [self.titles[index].strip() for index in self.labels if values[index].strip().startswith("1")]
        if len(marked) == 1:
            return marked[0]
        what = f"{len(marked)} classes are 1 ({some(marked)})" if marked else "no class is 1"
        raise DataError(
            f"{self.path}, line {line}: {what}, but an image has one label here; remove such rows, or name "
            "a column of labels with --label-column"
        )

    def part(self, line: int, values: Sequence[str]) -> SplitName | None:
        """Return the part of a row; None if the CSV does not have parts.

        Raises:
            DataError: its value means no part, or it is unclear which.
        """
        if self.split is None:
            return None
        value = values[self.split].strip()
        part = self.parts[value]
        if part is None or part == "unclear":
            raise DataError(
                f"{self.path}, line {line}: {self.names[self.split]} is {value!r}; expected train, val or test"
            )
        return part


def read_table(path: Path, raw: bytes, given: Columns = USUAL_COLUMNS, hints: Columns = USUAL_COLUMNS) -> Table:
    """Return a CSV with its columns for image, label and split.

    Args:
        raw: its bytes, see ``checked_bytes``.
        given: names or numbers of columns, which must exist.
        hints: names of columns that are used if they exist.

    Raises:
        DataError: a column does not exist, or it is unclear which one is meant.
    """
    first = next((line for line in _text(raw) if line.strip()), "")
    separator = _SEPARATOR_LINE.fullmatch(first)
    delimiters = (separator[1],) if separator else _DELIMITERS
    tables = [table for delimiter in delimiters if (table := _cut(path, raw, delimiter, int(bool(separator))))]
    if not tables:
        raise DataError(f"{path}, line 1: {EXPECTED}; got {first.strip()[:80]!r}")
    table = max(tables, key=lambda table: (*_known(table, given, hints), len(table.titles)))
    return _explained(table, given, hints, first)


def is_listing(path: Path, given: Columns = USUAL_COLUMNS, hints: Columns = USUAL_COLUMNS) -> bool:
    """Return whether a file is a CSV of images and labels, judging by its beginning."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    whole = head if len(head) < _HEAD_BYTES else head[: head.rfind(b"\n") + 1]
    try:
        read_table(path, checked_bytes(path, whole), given, hints)
    except _UnclearError:
        return True
    except DataError:
        return False
    return True


def checked_bytes(path: Path, raw: bytes | None = None) -> bytes:
    """Return the bytes of a text as UTF-8.

    Args:
        raw: what the file holds; None reads it.

    Raises:
        DataError: it cannot be read, or is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    try:
        raw = path.read_bytes() if raw is None else raw
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if raw.startswith(_UTF_16):
        try:
            raw = raw.decode("utf-16").encode()
        except UnicodeError as error:
            raise DataError(f"{path} begins as UTF-16 and is not; save it as UTF-8") from error
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


def _cut(path: Path, raw: bytes, delimiter: str, skipped: int) -> Table | None:
    """Return the table for a delimiter; None if there is no first record."""
    try:
        records = list(islice(_records(path, _text(raw), delimiter), skipped, skipped + 1))
    except DataError:
        return None
    if not records:
        return None
    titles = tuple(records[0][1])
    if any(map(has_image_ending, titles)):
        numbers = tuple(str(number + 1) for number in range(len(titles)))
        return Table(path, raw, delimiter, numbers, has_header=False, skipped=skipped)
    return Table(path, raw, delimiter, titles, has_header=True, skipped=skipped + 1)


def has_image_ending(listed: str) -> bool:
    """Return whether a value has the ending of an image file."""
    return os.path.splitext(listed.strip())[1].lower() in SUFFIXES


def _folded(title: str) -> str:
    return re.sub(r"[\s-]+", "_", title.strip().lower())


def _known(table: Table, given: Columns, hints: Columns) -> list[bool]:
    """Return whether a table has a column for images, and one for labels, as far as its header shows."""
    return [
        any(set(table.names) & set(line) for line in _lines(kind, given, hints))
        or (kind == "path" and not table.has_header)
        for kind in ("path", "label")
    ]


def _lines(kind: Literal["path", "label", "split"], given: Columns, hints: Columns) -> Iterator[Sequence[str]]:
    """Yield the names that a kind of column may have, those that take precedence first."""
    named = [name for columns in (given, hints) if (name := getattr(columns, kind))]
    return chain(([_folded(name)] for name in named), _NAMES[kind])


def _explained(table: Table, given: Columns, hints: Columns, first: str) -> Table:
    """Return a table with the meaning of its columns."""
    image = _column(table, "path", given, hints)
    if image is None and not table.has_header:
        _, values = next(table.rows())
        image = next(index for index, value in enumerate(values) if has_image_ending(value))
    if image is None:
        raise DataError(f"{table.path}, line 1: {EXPECTED}; got {first.strip()[:80]!r}{_advice(table)}")
    label = _column(table, "label", given, hints)
    others = [index for index in range(len(table.titles)) if index not in (image, label)]
    split, parts, split_notes = _split_column(table, others, given, hints)
    others = [index for index in others if index != split]
    labels = (label,) if label is not None else _label_columns(table, others)
    if not labels:
        example = shlex.quote(table.shown[others[0]] if others else "NAME")
        raise DataError(
            f"{table.path}, line 1: {EXPECTED}; which of its columns is the label is unclear "
            f"({some(table.shown, 12)}); name it: --label-column {example}"
        )
    notes = (*_notes(table, image, labels), *split_notes)
    return replace(table, image=image, labels=labels, split=split, parts=parts, notes=notes)


def _column(table: Table, kind: Literal["path", "label", "split"], given: Columns, hints: Columns) -> int | None:
    """Return the index of the column that the user named, or that has a known name; None if there is none.

    Raises:
        DataError: the named column does not exist, or there are several.
    """
    names, named = table.names, getattr(given, kind)
    if named is not None and _folded(named) not in names:
        if named.isdecimal() and 0 < int(named) <= len(names):
            return int(named) - 1
        header = "" if table.has_header else " (it has no header: columns go by their numbers)"
        raise DataError(
            f"{table.path} has no column {named!r} for --{kind}-column; its columns are {some(table.shown, 12)}{header}"
        )
    fitting = next((there for line in _lines(kind, given, hints) if (there := [n for n in line if n in names])), [])
    if len(fitting) > 1:
        raise _UnclearError(
            f"{table.path}, line 1: {some(fitting)} may each be the {kind}; say which with --{kind}-column {fitting[0]}"
        )
    if fitting and names.count(fitting[0]) > 1:
        raise DataError(f"{table.path}, line 1: more than one column is called {fitting[0]}; rename the others")
    return names.index(fitting[0]) if fitting else None


def _split_column(
    table: Table, others: Sequence[int], given: Columns, hints: Columns
) -> tuple[int | None, Mapping[str, Part | None], list[str]]:
    """Return the index of the column called split, what its values mean, and notes.

    Without such a column, one of a similar name counts if all its values are names of parts; without a header, any.
    """
    path, names = table.path, table.names
    main = _column(table, "split", given, hints)
    similar = [i for i in others if i != main and (not table.has_header or names[i] in _NAMES["perhaps_split"])]
    values: dict[int, set[str]] = {index: set() for index in (main, *similar) if index is not None}
    for _, row in table.rows() if values else ():
        for index, seen in values.items():
            seen.add(row[index].strip())
    meanings = {index: {value: meaning(value) for value in sorted(seen)} for index, seen in values.items()}
    fitting = [main] if main is not None else [index for index in similar if all(meanings[index].values())]
    if len(fitting) > 1:
        called = some([names[index] for index in fitting])
        raise DataError(f"{path}, line 1: {called} all name parts; say which with --split-column {names[fitting[0]]}")
    ignored = [names[index] for index in similar if index not in fitting and table.has_header]
    notes = [f"{path.name}: not read as split: {some(ignored)}"] if ignored else []
    if not fitting:
        return None, {}, notes
    (chosen,) = fitting
    known = {value: part for value, part in meanings[chosen].items() if part}
    parts = settled(known)
    if names[chosen] != "split" or parts != known:
        read = some([f"{part} from {value}" for value, part in parts.items()])
        notes.insert(0, f"{path.name}: read as parts by the column {names[chosen]}: {read}")
    return chosen, {**meanings[chosen], **parts}, notes


def _label_columns(table: Table, others: Sequence[int]) -> tuple[int, ...]:
    """Return the only other column of a table without a header, or the columns with no values but 0 and 1."""
    if not table.has_header:
        return tuple(others) if len(others) == 1 else ()
    flags = list(others)
    for _, values in table.rows():
        flags = [index for index in flags if _FLAG.fullmatch(values[index].strip())]
    return tuple(flags) if len(flags) > 1 else ()


def _notes(table: Table, image: int, labels: tuple[int, ...]) -> list[str]:
    """Return how the columns are read, unless they have the names that the documentation gives."""
    name, shown = table.path.name, table.shown
    if len(labels) > 1:
        classes = some([shown[index] for index in labels], 12)
        return [f"{name}: the image is {shown[image]}, and each of these columns is a class: {classes}"]
    if not table.has_header:
        read = f"column {shown[image]} is the image, {shown[labels[0]]} the label"
        return [f"{name} has no header: {read}; if line 1 is one, name its columns path and label"]
    if [table.names[index] for index in (image, *labels)] == ["path", "label"]:
        return []
    return [f"{name}: the image is {shown[image]}, the label {shown[labels[0]]}"]


def _advice(table: Table) -> str:
    """Return the options with which a table of other names can be read."""
    if len(table.titles) < 2:
        return ""
    values = next((values for _, values in table.rows()), [])
    image = next((index for index, value in enumerate(values) if has_image_ending(value)), 0)
    label = table.shown[0 if image else 1]
    named = f"--path-column {shlex.quote(table.shown[image])} --label-column {shlex.quote(label)}"
    return f"; other columns can be named: {named}"
