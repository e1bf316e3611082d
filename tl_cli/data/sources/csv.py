"""A CSV that lists images with their labels; every fault is named with file and line. Opens no image."""

import os
import re
import shlex
import stat
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
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
    """The rows of a CSV, column by column.

    Attributes:
        lines: (N,) int64, the line on which each row begins.
        ids: of the images.
        classes: every label.
        labels: (N,) int64, indices into ``classes``.
        parts: (N,) int64, indices into ``SPLIT_NAMES``.
    """

    lines: np.ndarray
    ids: Names
    classes: tuple[str, ...]
    labels: np.ndarray
    parts: np.ndarray

    def take(self, rows: np.ndarray) -> "_Rows":
        """Return the rows at ``rows``, (M,) of integers or (N,) of bool."""
        return _Rows(self.lines[rows], self.ids.take(rows), self.classes, self.labels[rows], self.parts[rows])

    def renamed(self, names: Mapping[str, str]) -> "_Rows":
        """Return the rows with other names for their labels, sorted; several labels may become one."""
        classes = sorted(set(names.values()))
        numbers = {name: number for number, name in enumerate(classes)}
        renumbered = np.array([numbers[names[name]] for name in self.classes], dtype=np.int64)
        return _Rows(self.lines, self.ids, tuple(classes), renumbered[self.labels], self.parts)

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
        columns: names or numbers of columns, which must exist.
        hints: names of columns that are used if they exist.
        confined: refuse images outside the CSV's folder; for a CSV from an archive.
        partial: for a model that is already trained: any of the parts, classes and images may be missing.
        lenient: report labels that look alike as a fault of the result instead of raising it.

    Raises:
        DataError: it is no such CSV, or lists what cannot be used: images that are missing or listed twice, an
            unknown split, a single class, labels without images in ``train``.
    """
    path = path.expanduser().resolve()
    table = read_table(path, checked_bytes(path), columns, hints)
    lookup = Lookup(path, confined=confined)
    rows = _read(table, lookup)
    if not len(rows.ids):
        raise DataError(f"{path} lists no images; {EXPECTED}")
    _check_images(path, rows, may_miss=partial)
    faults = Faults(lenient)
    spelled, merged = class_names.unify(rows.counts(), path, faults)
    rows = rows.renamed({label: name.strip() for label, name in spelled.items()})
    notes = [*table.notes, *lookup.notes(), *merged, *_joined_labels(path, rows, faults)]
    by_name = rows.ids.order()
    rows = rows.take(by_name[np.argsort(rows.labels[by_name], kind="stable")])
    classes = rows.classes
    if not partial:
        classes = tuple(rows.of("train").present())
        _check_labels(path, rows, classes)  # every label is one of train's now
    by_part = {part: listed for part in SPLIT_NAMES if len((listed := rows.of(part)).ids)}
    notes += [] if partial else _absent(path, by_part, classes)
    if divided := looks_divided(classes):
        notes.append(f"the labels {some(divided)} look like parts; put the part of each row in a column called split")
    notes += [] if partial else _not_read(path, by_part, columns, hints, in_archive=confined)
    parts = {part: FileImages(listed.ids, listed.labels, path.parent) for part, listed in by_part.items()}
    return Found(classes, parts, tuple(notes), tuple(faults.named))


def _read(table: Table, lookup: Lookup) -> _Rows:
    path, lines, labels, parts = table.path, array("q"), array("q"), array("q")
    numbers: dict[str, int] = {}

    def names() -> Iterator[str]:
        for line, values in table.rows():
            label = table.label(line, values).strip(_ASCII_SPACES)
            if not class_names.keys([label])[label]:
                raise DataError(f"{path}, line {line}: the label is empty; name a class or remove the row")
            part = table.part(line, values)
            listed = local_path(values[table.image].strip())
            lines.append(line)
            labels.append(numbers.setdefault(label, len(numbers)))
            parts.append(SPLIT_NAMES.index(part or "train"))
            yield lookup.name(line, listed, part)

    ids = Names.of(names())
    return _Rows(np.array(lines), ids, tuple(numbers), np.array(labels), np.array(parts))


def _absent(path: Path, by_part: Mapping[SplitName, _Rows], classes: tuple[str, ...]) -> list[str]:
    return [
        f"{path.name} lists no images of {some(absent)} in {part}"
        for part, listed in by_part.items()
        if (absent := sorted(set(classes) - set(listed.present())))
    ]


def _joined_labels(path: Path, rows: _Rows, faults: Faults) -> list[str]:
    """Report a fault if labels are joined from several that others have too, or return a note if they only may be."""
    pieces = {name: [piece.strip() for piece in _BETWEEN_LABELS.split(name) if piece.strip()] for name in rows.classes}
    used = Counter(piece for split in pieces.values() for piece in set(split))
    joined = {name: split for name, split in pieces.items() if len(split) > 1}
    # "Springfield, MA" beside "Boston, MA" has a town first and a state last, and neither is a label by itself.
    positions = Counter(piece for _, piece in {pair for split in joined.values() for pair in enumerate(split)})
    alone = {name for name in pieces if name not in joined} | {piece for piece, count in positions.items() if count > 1}
    several = [
        rows.classes.index(name)
        for name, split in joined.items()
        if all(used[piece] > 1 for piece in split) and not alone.isdisjoint(split)
    ]
    if several:
        has_several = np.isin(rows.labels, several)
        row = int(has_several.argmax())
        name = rows.classes[rows.labels[row]]
        faults.add(
            f"{path}, line {rows.lines[row]}: the image has several labels ({name!r}: {some(pieces[name])}), as "
            f"{has_several.sum():,} of {len(rows.ids):,} have, and here an image has one label (multi-label is not "
            "supported); keep one label in each row, or remove these rows"
        )
        return []
    return [f"each of these is one class, not several labels: {some(list(map(repr, joined)))}"] if joined else []


def _check_images(path: Path, rows: _Rows, *, may_miss: bool) -> None:
    """Raise if an image is a folder, is listed twice or, unless it may, is missing."""
    files = array("Q")
    missing: list[str] = []
    for line, name in zip(rows.lines, rows.ids, strict=True):
        found = _stat(path, line, name)
        if found and stat.S_ISREG(found.st_mode):
            files.extend((found.st_dev, found.st_ino))
        else:
            missing.append(f"{shortened(name)} (line {line})")
            # Missing files are different from each other.
            files.extend((_NO_DEVICE, len(missing)))
    _check_twice(path, rows, np.array(files).reshape(-1, 2))
    if missing and not may_miss:
        raise DataError(
            f"{path} lists {len(missing):,} images that are not there: {some(missing)}. "
            f"Paths are relative to {path.parent}, and no image below it has such a name"
        )


def _stat(path: Path, line: int, name: str) -> os.stat_result | None:
    try:
        found = os.stat(os.path.join(path.parent, name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}, line {line}: {shortened(name)} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{path}, line {line}: {shortened(name)} is a folder; list the images in it")
    return found


def _check_twice(path: Path, rows: _Rows, files: np.ndarray) -> None:
    """Raise if two rows list one file, which may have several names: links, and folders that are links.

    Args:
        files: (N, 2) device and number of each row's file.
    """
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


def _check_labels(path: Path, rows: _Rows, classes: tuple[str, ...]) -> None:
    if not classes:
        raise DataError(f"{path} lists no images with split train; without a column split all would be train")
    unknown = sorted(set(rows.classes) - set(classes))
    if unknown:
        row = int(np.argmax(rows.labels == rows.classes.index(unknown[0])))
        raise DataError(
            f"{path}, line {rows.lines[row]}: the label {unknown[0]!r} of this image in "
            f"{SPLIT_NAMES[rows.parts[row]]} has no image in train"
        )
    if len(classes) < 2:
        raise DataError(f"{path} has one class only ({classes[0]}); a classifier needs two or more")


def listings_in(top: Path, columns: Columns = USUAL_COLUMNS, hints: Columns = USUAL_COLUMNS) -> list[Path]:
    """Return the CSVs in a folder that list images with labels; only the one for training if there are several."""
    # Kaggle's sample submissions have made-up labels.
    files = [file for file in _csv_files(top) if "submission" not in file.stem.lower()]
    listings = [file for file in files if is_listing(file, columns, hints)]
    return [file for file in listings if part_named(file.stem) == "train"] or listings


def _csv_files(top: Path) -> list[Path]:
    return sorted(file for file in top.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _not_read(
    path: Path, parts: Collection[SplitName], columns: Columns, hints: Columns, *, in_archive: bool
) -> list[str]:
    """Return notes about labelled CSVs beside this one that are named after parts that it does not have."""
    if part_named(path.stem) not in (None, "train"):
        return []
    others = [file for file in _csv_files(path.parent) if part_named(file.stem) not in (None, "train", *parts)]
    others = [file for file in others if is_listing(file, columns, hints)]
    if others and in_archive:
        return [
            f"{some([file.name for file in others])} in the archive: labels that are not read; to evaluate the model "
            f"on them, unpack the archive and, after the training: tl eval latest --data {shlex.quote(others[0].name)}"
        ]
    return [
        f"{file.name} beside it has labels too and is not read; to evaluate the model on it after the training: "
        f"tl eval latest --data {shlex.quote(str(file))}"
        for file in others
    ]
