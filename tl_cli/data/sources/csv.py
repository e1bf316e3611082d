"""A CSV that lists pictures with their labels; every fault is named with file and line. Opens no picture."""

import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tl_cli.contract import SPLIT_NAMES, USUAL_COLUMNS, Columns, SplitName
from tl_cli.data.images import FileImages
from tl_cli.data.packed_names import Names
from tl_cli.data.sources import class_names
from tl_cli.data.sources.csv_columns import EXPECTED, Table, checked_bytes, is_listing, read_table
from tl_cli.data.sources.csv_paths import Lookup
from tl_cli.data.sources.found import Faults, Found
from tl_cli.data.sources.split_names import looks_divided, part_named
from tl_cli.errors import DataError, shortened, some
from tl_cli.io.file_uris import local_path

SUFFIXES = (".csv", ".tsv")
_NO_DEVICE = (1 << 64) - 1
_ASCII_SPACES = " \t\r\n"  # usual beside a delimiter, and not worth a note
_BETWEEN_LABELS = re.compile(r"[,;|]")


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


def scan(
    path: Path,
    *,
    columns: Columns = USUAL_COLUMNS,
    hints: Columns = USUAL_COLUMNS,
    confined: bool = False,
    partial: bool = False,
    lenient: bool = False,
) -> Found:
    """Return the classes and images that a CSV lists. The order of its rows does not matter.

    Args:
        columns: names or numbers of columns, which must be there.
        hints: names of columns that are used where they are there.
        confined: refuse pictures outside the CSV's folder; for a CSV that came in an archive.
        partial: for a model that is trained already: any of the parts, classes and pictures may be missing.
        lenient: go on where labels look like one another, and name that among the faults.

    Raises:
        DataError: it is no such CSV, or lists what cannot be used: pictures that are not there or listed twice, an
            unknown split, one class only, labels that are unknown to ``train``.
    """
    path = path.expanduser().resolve()
    table = read_table(path, checked_bytes(path), columns, hints)
    lookup = Lookup(path, confined=confined)
    rows = _columns(_read(table, lookup))
    if not len(rows.ids):
        raise DataError(f"{path} lists no pictures; {EXPECTED}")
    _check_pictures(path, rows, may_miss=partial)
    spelled, merges = class_names.merged(rows.counts())
    rows = rows.renamed({label: name.strip() for label, name in spelled.items()})
    faults = Faults(lenient)
    fault, note = class_names.lookalikes(rows.counts())
    if fault:
        faults.add(f"in {path} {fault}")
    fault, several = _several_labels(path, rows)
    if fault:
        faults.add(fault)
    by_name = rows.ids.order()
    rows = rows.take(by_name[np.argsort(rows.labels[by_name], kind="stable")])
    classes = rows.classes
    if not partial:
        classes = tuple(rows.of("train").present())
        _check_labels(path, rows, classes)  # every label is one of train's now
    by_part = {part: listed for part in SPLIT_NAMES if len((listed := rows.of(part)).ids)}
    notes = [*table.notes, *lookup.notes(), *merges, *(each for each in (note, several) if each)]
    notes += [
        f"{path.name} lists no pictures of {some(absent)} in {part}"
        for part, listed in by_part.items()
        if not partial and (absent := sorted(set(classes) - set(listed.present())))
    ]
    divided = looks_divided(classes)
    if divided:
        notes.append(f"the labels {some(divided)} look like parts; put the part of each row in a column called split")
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


def _read(table: Table, lookup: Lookup) -> Iterator[tuple[int, str, str, SplitName]]:
    """Yield line, id, label and part of each row."""
    path = table.path
    for line, values in table.rows():
        label = table.label(line, values).strip(_ASCII_SPACES)
        if not class_names.keys([label])[label]:
            raise DataError(f"{path}, line {line}: the label is empty; name a class or remove the row")
        part = table.split.part(path, line, values)
        is_said = table.split.index is not None
        yield line, lookup.name(line, local_path(values[table.picture].strip()), part if is_said else None), label, part


def _several_labels(path: Path, rows: _Rows) -> tuple[str, str]:
    """Return a fault where labels are made of several that others have too, and a note where they only may be."""
    pieces = {
        name: [each for piece in _BETWEEN_LABELS.split(name) if (each := piece.strip())] for name in rows.present()
    }
    used = Counter(piece for each in pieces.values() for piece in set(each))
    joined = {name: each for name, each in pieces.items() if len(each) > 1}
    # "Springfield, MA" beside "Boston, MA" has a town first and a state last, and neither is a label by itself.
    places = Counter(piece for _, piece in {(at, piece) for each in joined.values() for at, piece in enumerate(each)})
    apart = {name for name, each in pieces.items() if len(each) == 1} | {piece for piece in places if places[piece] > 1}
    made = [
        name for name, each in joined.items() if all(used[piece] > 1 for piece in each) and not apart.isdisjoint(each)
    ]
    if made:
        row = int(np.flatnonzero(np.isin(rows.labels, [rows.classes.index(name) for name in made]))[0])
        name = rows.classes[rows.labels[row]]
        count = int(np.isin(rows.labels, [rows.classes.index(name) for name in made]).sum())
        return (
            f"{path}, line {rows.lines[row]}: the picture has several labels ({name!r}: {some(pieces[name])}), as "
            f"{count:,} of {len(rows.ids):,} have, and here a picture has one label (multi-label is not supported); "
            "keep one label in each row, or remove these rows"
        ), ""
    if joined:
        names = some([repr(name) for name in joined])
        return "", f"each of these is one class, not several labels: {names}"
    return "", ""


def _check_pictures(path: Path, rows: _Rows, *, may_miss: bool) -> None:
    """Raise for the first row that lists a folder or a picture that was listed before, or for all that are missing."""
    files, missing, fault = _look(path, rows)
    _check_twice(path, rows, files)
    if fault:
        raise fault
    if missing and not may_miss:
        raise DataError(
            f"{path} lists {len(missing):,} pictures that are not there: {some(missing)}. "
            f"Paths are relative to {path.parent}, and no picture below it has such a name"
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
            missing.append(f"{shortened(name)} (line {line})")
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
    other = "" if rows.ids[first] == rows.ids[row] else f" as {shortened(rows.ids[first])}"
    raise DataError(
        f"{path}, line {rows.lines[row]}: {shortened(rows.ids[row])} is listed on line {rows.lines[first]} too{other}; "
        "keep one of them"
    )


def _stat(path: Path, line: int, name: str) -> os.stat_result | None:
    try:
        found = os.stat(os.path.join(path.parent, name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}, line {line}: {shortened(name)} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{path}, line {line}: {shortened(name)} is a folder; list the pictures in it")
    return found


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


def listings_in(top: Path, columns: Columns = USUAL_COLUMNS, hints: Columns = USUAL_COLUMNS) -> list[Path]:
    """Return the CSVs in a folder that list images with labels; only the one for training if there are several."""
    files = sorted(file for file in top.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    found = [file for file in files if is_listing(file, columns, hints)]
    # Kaggle's sample submissions have made-up labels.
    found = [file for file in found if "submission" not in file.stem.lower()]
    return [file for file in found if part_named(file.stem) == "train"] or found


def unread_beside(
    listing: Path, found: Found, columns: Columns = USUAL_COLUMNS, hints: Columns = USUAL_COLUMNS
) -> list[Path]:
    """Return labelled CSVs beside ``listing``, which was read, that are named after parts that it does not have."""
    if part_named(listing.stem) not in (None, "train"):
        return []
    files = sorted(file for file in listing.parent.iterdir() if file.suffix.lower() in SUFFIXES)
    return [
        file
        for file in files
        if (part := part_named(file.stem)) not in (None, "train")
        and part not in found.parts
        and file.is_file()
        and is_listing(file, columns, hints)
    ]
