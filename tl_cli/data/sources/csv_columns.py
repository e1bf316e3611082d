"""What the columns of a CSV say: which one names the picture, which the class, which the part. Opens no picture."""

import csv
import io
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

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
# Names by which columns go; of those on one line a CSV has one, and an earlier line is preferred to a later one.
_PICTURE_NAMES = (
    ("path",),
    ("file_name", "filename", "file_path", "filepath", "image_path", "img_path", "image_file"),
    ("image", "img", "image_name", "img_name", "imagename", "picture", "photo", "file"),
    ("image_id", "img_id", "imageid", "id_code", "id"),
)
_LABEL_NAMES = (
    ("label",),
    ("class", "target", "diagnosis", "category", "labels", "class_name", "classname", "label_name", "species", "breed"),
)
# Other names that the column split goes by; they may also mean something else.
_SPLIT_NAMES = ("set", "subset", "part", "partition", "fold", "dataset", "phase", "usage")
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t])"?\s*', re.IGNORECASE)
_FLAG = re.compile(r"([01])(?:\.0*)?")
# Excel's "Unicode text" is UTF-16.
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class _UnclearError(DataError):
    """Several columns may be the one that is looked for."""


@dataclass(frozen=True, slots=True)
class SplitColumn:
    """The column with the part of each row.

    Attributes:
        index: of the column; None where there is none, and all rows are train.
        title: its name.
        parts: what each of its values means; None where a value is no part.
        notes: what is worth saying about this and similar columns.
    """

    index: int | None
    title: str
    parts: Mapping[str, Part | None]
    notes: list[str]

    def part(self, path: Path, line: int, values: Sequence[str]) -> SplitName:
        """Return the part of a row.

        Raises:
            DataError: its value means none, or it is unclear which.
        """
        if self.index is None:
            return "train"
        value = values[self.index].strip()
        part = self.parts[value]
        if part is None or part == "unclear":
            raise DataError(f"{path}, line {line}: {self.title} is {value!r}; expected train, val or test")
        return part


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV, and what its columns say.

    Attributes:
        path: of the file.
        raw: its bytes, as UTF-8.
        delimiter: between values.
        titles: of the columns, as they are written; their numbers where there is no header.
        has_header: whether the first record names the columns.
        skipped: records before the first row.
        picture: index of the column that names the picture.
        labels: index of the column with the label, or indices of one column per class, one of which is 1 in each row.
        split: which part each row is of.
        notes: how the columns were read, where that is worth saying.
    """

    path: Path
    raw: bytes
    delimiter: str
    titles: tuple[str, ...]
    has_header: bool
    skipped: int
    picture: int = -1
    labels: tuple[int, ...] = ()
    split: SplitColumn = SplitColumn(None, "", {}, [])
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The titles as they are compared."""
        return [_folded(title) for title in self.titles]

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line and the values of each row.

        Raises:
            DataError: a row has not as many values as there are columns, or its quotes are not closed.
        """
        for number, (line, values) in enumerate(_records(self.path, _text(self.raw), self.delimiter)):
            if number < self.skipped:
                continue
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
            DataError: of columns that stand for classes not exactly one is 1.
        """
        if len(self.labels) == 1:
            return values[self.labels[0]]
        marked = [self.titles[index].strip() for index in self.labels if values[index].strip().startswith("1")]
        if len(marked) == 1:
            return marked[0]
        what = f"{len(marked)} classes are 1 ({some(marked)})" if marked else "no class is 1"
        raise DataError(
            f"{self.path}, line {line}: {what}, but a picture has one label here; remove such rows, or name "
            "a column of labels with --label-column"
        )


def read_table(path: Path, raw: bytes, given: Columns = USUAL_COLUMNS, hints: Columns = USUAL_COLUMNS) -> Table:
    """Return a CSV with the columns that say what it lists.

    Args:
        raw: its bytes, see ``checked_bytes``.
        given: names or numbers of columns, which must be there.
        hints: names of columns that are used where they are there.

    Raises:
        DataError: a column is not there, or it is unclear which one is meant.
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
    """Return the table that a delimiter makes; None where its first record is none."""
    try:
        records = [values for _, values in zip(range(skipped + 1), _records(path, _text(raw), delimiter), strict=False)]
    except DataError:
        return None
    if len(records) <= skipped:
        return None
    titles = tuple(records[-1][1])
    if any(map(is_picture_name, titles)):
        numbers = tuple(str(number + 1) for number in range(len(titles)))
        return Table(path, raw, delimiter, numbers, has_header=False, skipped=skipped)
    return Table(path, raw, delimiter, titles, has_header=True, skipped=skipped + 1)


def is_picture_name(listed: str) -> bool:
    """Return whether a value ends as the name of a picture does."""
    return os.path.splitext(listed.strip())[1].lower() in SUFFIXES


def _folded(title: str) -> str:
    return re.sub(r"[\s-]+", "_", title.strip().lower())


def _known(table: Table, given: Columns, hints: Columns) -> tuple[bool, bool]:
    """Return whether a table has a column for pictures, and one for labels, as far as its header says."""
    names = set(table.names)

    def has(given: str | None, hint: str | None, known: Sequence[Sequence[str]]) -> bool:
        return not names.isdisjoint(
            [_folded(name) for name in (given, hint) if name] + [name for line in known for name in line]
        )

    return (
        not table.has_header or has(given.path, hints.path, _PICTURE_NAMES),
        has(given.label, hints.label, _LABEL_NAMES),
    )


def _explained(table: Table, given: Columns, hints: Columns, first: str) -> Table:
    """Return a table with what its columns say."""
    picture = _column(table, "path", given.path, hints.path, _PICTURE_NAMES)
    if picture is None and not table.has_header:
        _, values = next(table.rows())
        picture = next(index for index, value in enumerate(values) if is_picture_name(value))
    if picture is None:
        raise DataError(f"{table.path}, line 1: {EXPECTED}; got {first.strip()[:80]!r}{_advice(table)}")
    label = _column(table, "label", given.label, hints.label, _LABEL_NAMES)
    others = [index for index in range(len(table.titles)) if index not in (picture, label)]
    split = _split_column(table, others, given, hints)
    labels = (label,) if label is not None else _label_columns(table, [each for each in others if each != split.index])
    if not labels:
        example = next((table.titles[index].strip() for index in others if index != split.index), "NAME")
        raise DataError(
            f"{table.path}, line 1: {EXPECTED}; which of its columns is the label is unclear "
            f"({some([title.strip() for title in table.titles], 12)}); name it: --label-column {shlex.quote(example)}"
        )
    return Table(
        table.path, table.raw, table.delimiter, table.titles, table.has_header, table.skipped, picture, labels, split,
        (*_notes(table, picture, labels), *split.notes),
    )  # fmt: skip


def _column(table: Table, what: str, given: str | None, hint: str | None, known: Sequence[Sequence[str]]) -> int | None:
    """Return the index of a column that is named, or goes by a known name.

    Raises:
        DataError: it is not there, or there are several.
    """
    names = table.names
    if given is not None and _folded(given) not in names:
        if given.isdecimal() and 0 < int(given) <= len(names):
            return int(given) - 1
        titles = some([title.strip() for title in table.titles], 12)
        header = "" if table.has_header else " (it has no header: columns go by their numbers)"
        raise DataError(f"{table.path} has no column {given!r} for --{what}-column; its columns are {titles}{header}")
    named = [name for name in (given, hint) if name and _folded(name) in names]
    lines = [[_folded(named[0])]] if named else known
    found = next((there for line in lines if (there := [name for name in line if name in names])), [])
    if len(found) > 1:
        raise _UnclearError(
            f"{table.path}, line 1: {some(found)} may each be the {what}; say which with --{what}-column {found[0]}"
        )
    if found and names.count(found[0]) > 1:
        raise DataError(f"{table.path}, line 1: more than one column is called {found[0]}; rename the others")
    return names.index(found[0]) if found else None


def _split_column(table: Table, others: Sequence[int], given: Columns, hints: Columns) -> SplitColumn:
    """Return the column called split, or the one of a similar name whose values are all names of parts.

    Without a header any column may be it.
    """
    path, names = table.path, table.names
    main = _column(table, "split", given.split, hints.split, (("split",),))
    similar = [index for index in others if not table.has_header or names[index] in _SPLIT_NAMES]
    named = similar if main is None else [main, *(index for index in similar if index != main)]
    if not named:
        return SplitColumn(None, "", {}, [])
    values: dict[int, set[str]] = {index: set() for index in named}
    for _, row in table.rows():
        for index in named:
            values[index].add(row[index].strip())
    meanings = {index: {value: meaning(value) for value in sorted(each)} for index, each in values.items()}
    fitting = [main] if main is not None else [index for index in named if all(meanings[index].values())]
    if len(fitting) > 1:
        called = some([names[index] for index in fitting])
        raise DataError(f"{path}, line 1: {called} all name parts; say which with --split-column {names[fitting[0]]}")
    ignored = [names[index] for index in named if index not in fitting and table.has_header]
    notes = [f"{path.name}: not read as split: {some(ignored)}"] if ignored else []
    if not fitting:
        return SplitColumn(None, "", {}, notes)
    (chosen,) = fitting
    known = {value: part for value, part in meanings[chosen].items() if part}
    parts = settled(known)
    if names[chosen] != "split" or parts != known:
        read = some([f"{part} from {value}" for value, part in parts.items()])
        notes.insert(0, f"{path.name}: read as parts by the column {names[chosen]}: {read}")
    return SplitColumn(chosen, names[chosen], {**meanings[chosen], **parts}, notes)


def _label_columns(table: Table, others: Sequence[int]) -> tuple[int, ...]:
    """Return the only other column of a table without a header, or the columns that hold nothing but 0 and 1."""
    if not table.has_header and len(others) == 1:
        return tuple(others)
    flags = list(others) if table.has_header else []
    for _, values in table.rows():
        flags = [index for index in flags if _FLAG.fullmatch(values[index].strip())]
        if len(flags) < 2:
            return ()
    return tuple(flags)


def _notes(table: Table, picture: int, labels: tuple[int, ...]) -> list[str]:
    titles = [title.strip() for title in table.titles]
    if len(labels) > 1:
        classes = some([titles[index] for index in labels], 12)
        return [f"{table.path.name}: the picture is {titles[picture]}, and each of these columns is a class: {classes}"]
    if not table.has_header:
        read = f"column {titles[picture]} is the picture, {titles[labels[0]]} the label"
        return [f"{table.path.name} has no header: {read}; if line 1 is one, name its columns path and label"]
    if [table.names[index] for index in (picture, *labels)] == ["path", "label"]:
        return []
    return [f"{table.path.name}: the picture is {titles[picture]}, the label {titles[labels[0]]}"]


def _advice(table: Table) -> str:
    """Say with which flags a table of other names can be read."""
    titles = [title.strip() for title in table.titles]
    if len(titles) < 2:
        return ""
    values = next((values for _, values in table.rows()), [])
    picture = next((index for index, value in enumerate(values) if is_picture_name(value)), 0)
    label = next(index for index in range(len(titles)) if index != picture)
    named = f"--path-column {shlex.quote(titles[picture])} --label-column {shlex.quote(titles[label])}"
    return f"; other columns can be named: {named}"
