"""A folder of pictures, one folder a class, in the layouts that people have. Names decide, never positions."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tl_cli.contract import SplitName
from tl_cli.data.found import Found
from tl_cli.data.images import FileImages
from tl_cli.data.names import Names
from tl_cli.data.pictures import SUFFIXES
from tl_cli.errors import DataError, some

# What other programs leave among data.
_NO_DATA = ("__MACOSX", "__pycache__")
EXPECTED = (
    "expected one of\n"
    "  DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg   (validation is held out of train)\n"
    "  DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg    (and DIR/test/, where there is one)\n"
    "  DIR/CLASS/*.jpg                                  (split 80/10/10)"
)
PART_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, slots=True)
class _Listed:
    """What lies in the class folders of one part: pictures by class, and how many other files of each kind."""

    classes: dict[str, Names]
    others: Counter[str] = field(default_factory=Counter)


def scan(root: Path, *, fewest: int = 2, lenient: bool = False) -> Found:
    """Return the classes and images of a folder.

    Args:
        fewest: classes that there must be.
        lenient: go on where classes are empty, too few or unknown to ``train``, and name that among the faults.

    Raises:
        DataError: it is not there, has no known layout, too few classes, an empty class, or parts whose classes
            are unknown to ``train``. The message says what was found and what was expected.
    """
    root = root.expanduser()
    if not root.exists():
        raise DataError(f"no folder at {root}{_nearest(root)}")
    if not root.is_dir():
        raise DataError(f"{root} is a file, and neither a .csv nor an archive; {EXPECTED}")
    root = root.resolve()
    folders = _subfolders(root)
    # A part has class folders in it; a class may be called "train", and unlabelled pictures may lie in test/.
    named = {part: match for part in PART_NAMES if (match := _named(folders, PART_NAMES[part]))}
    found = {part: path for part, path in named.items() if _subfolders(path)}
    if "train" not in found:
        if found:
            names = ", ".join(f"{path.name}/" for path in found.values())
            raise DataError(f"{root} has {names} but no train/; {EXPECTED}")
        return _classes_only(root, folders, fewest, lenient)
    if len(found) == 1:
        loose = "; ".join(f"{path.name}/ has no class folders" for part, path in named.items() if part not in found)
        missing = loose or "there is neither test/ nor val/"
        raise DataError(f"{root} has train/, but {missing}; to split the training images, give {found['train']}")
    return _parts(root, found, fewest, lenient, [path.name for path in folders if path not in found.values()])


def _parts(root: Path, found: dict[SplitName, Path], fewest: int, lenient: bool, others: list[str]) -> Found:
    listed = {part: _list_classes(root, path) for part, path in found.items()}
    faults = _Faults(lenient)
    classes = _checked(listed["train"].classes, found["train"], fewest, faults)
    notes = _odd_names(classes)
    if others:
        notes.append(f"{some([name + '/' for name in others])} beside train/ is no part of these data and left out")
    for part, files in ((part, listed[part].classes) for part in listed):
        unknown = sorted(set(files) - set(listed["train"].classes))
        if unknown:
            faults.add(f"{found[part]} has classes that train/ has not: {some(unknown)}")
        if not any(files.values()):
            raise DataError(f"{found[part]} has no pictures; {EXPECTED}")
        absent = [name for name in classes if not files.get(name)]
        if absent:
            notes.append(f"{found[part].name}/ has no pictures of {some(absent)}")
    notes += _passed_over(sum((part.others for part in listed.values()), Counter[str]()))
    parts = {part: _images(root, here.classes, classes) for part, here in listed.items()}
    return Found(classes, parts, tuple(notes), tuple(faults.named))


def _classes_only(root: Path, folders: list[Path], fewest: int, lenient: bool) -> Found:
    listed = _list_classes(root, root)
    files = listed.classes
    loose = sum(1 for entry in os.scandir(root) if is_picture(entry.name))
    if not any(files.values()):
        found = f"{loose} pictures without a class folder" if loose else some([path.name + "/" for path in folders])
        raise DataError(f"{root} holds {found or 'nothing'}; {EXPECTED}{_hint(folders)}")
    faults = _Faults(lenient)
    classes = _checked(files, root, fewest, faults, _hint(folders))
    notes = _odd_names(classes)
    if loose:
        notes.append(f"{loose:,} pictures beside the class folders have no class and are left out")
    notes += _passed_over(listed.others)
    return Found(classes, {"train": _images(root, files, classes)}, tuple(notes), tuple(faults.named))


@dataclass(frozen=True, slots=True)
class _Faults:
    """What no training would take: refused, or named where all is to be named."""

    lenient: bool
    named: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """Name a fault.

        Raises:
            DataError: it is refused.
        """
        if not self.lenient:
            raise DataError(fault)
        self.named.append(fault)


def _odd_names(classes: tuple[str, ...]) -> list[str]:
    """Name classes that look like one to a person, and on some disks are one."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(unicodedata.normalize("NFKC", name).casefold(), []).append(name)
    twins = [" and ".join(map(ascii, names)) for names in alike.values() if len(names) > 1]
    return [f"classes that differ in case or in the form of their letters only: {some(twins)}"] if twins else []


def _checked(files: Mapping[str, Names], where: Path, fewest: int, faults: _Faults, hint: str = "") -> tuple[str, ...]:
    """Return the classes that have pictures, sorted."""
    classes = tuple(sorted(files))
    for name in classes:
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
            raise DataError(f"{where} has a class folder whose name is not valid UTF-8: {name!r}; rename it")
    empty = [name for name in classes if not files[name]]
    if empty:
        faults.add(f"{where} has class folders without pictures: {some(empty)}; fill or remove them{hint}")
    classes = tuple(name for name in classes if files[name])
    if not classes:
        raise DataError(f"{where} has no class folders with pictures. {EXPECTED}{hint}")
    if len(classes) < max(1, fewest):
        faults.add(f"{where} has one class only ({classes[0]}); a classifier needs two or more. {EXPECTED}{hint}")
    return classes


def _images(root: Path, files: Mapping[str, Names], classes: tuple[str, ...]) -> FileImages:
    labels = np.repeat(np.arange(len(classes)), [len(files.get(name, ())) for name in classes])
    return FileImages(Names.joined([files[name] for name in classes if name in files]), labels.astype(np.int64), root)


def _list_classes(root: Path, part: Path) -> _Listed:
    listed = _Listed({})
    for folder in _subfolders(part):
        found = sorted(_walk(folder, os.path.relpath(folder, root), listed.others))
        listed.classes[folder.name] = Names.of(name.replace(os.sep, "/") for name in found)
    return listed


def _walk(folder: Path, name: str, others: Counter[str]) -> Iterator[str]:
    """Yield every picture below ``folder`` and count the other files; what links back to itself is walked once.

    Args:
        name: of the folder, with which the pictures' begin.
    """
    # A class that is a link to a folder above it would hold all the others.
    above = {_number(parent) for parent in folder.absolute().parents}
    visited: set[tuple[int, int]] = set()
    waiting = [(str(folder), name)]
    while waiting:
        here, prefix = waiting.pop()
        number = _number(here)
        if number in above:
            others[f"{prefix} (a link to a folder above it)"] += 1
            continue
        if number in visited:
            continue
        visited.add(number)
        for entry in _entries(here, others):
            if entry.name.startswith(".") or entry.name in _NO_DATA:
                continue
            if _is_folder(entry):
                waiting.append((entry.path, f"{prefix}{os.sep}{entry.name}"))
            elif is_picture(entry.name):
                yield f"{prefix}{os.sep}{entry.name}"
            else:
                others[os.path.splitext(entry.name)[1].lower() or entry.name] += 1


def _number(folder: str | Path) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link to itself, or into a folder that may not be entered, is none.
    with suppress(OSError):
        return entry.is_dir()
    return False


def _entries(folder: str, others: Counter[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        # Left out, as other programs do, but not in silence.
        others[f"{folder} ({error.strerror})"] += 1
        return []


def _passed_over(kinds: Counter[str]) -> list[str]:
    """Name the kinds of files that lie among the pictures and are none that can be read."""
    if not kinds:
        return []
    return [f"{kinds.total():,} files are no pictures that can be read: {some(list(kinds))}"]


def is_picture(name: str) -> bool:
    """Return whether a file of this name is taken for a picture: its ending is known, and it is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _subfolders(root: Path) -> list[Path]:
    try:
        entries = [entry for entry in os.scandir(root) if _is_folder(entry)]
    except OSError as error:
        raise DataError(f"cannot look into {root}: {error.strerror}") from error
    return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and e.name not in _NO_DATA)


def _named(folders: list[Path], names: tuple[str, ...]) -> Path | None:
    return next((path for path in folders if path.name.lower() in names), None)


def _hint(folders: list[Path]) -> str:
    """Say where the data seem to be, when the folder given is one too high."""
    for path in folders:
        inner = _subfolders(path)
        if _named(inner, PART_NAMES["train"]) and len(inner) > 1:
            return f"\nDid you mean {path}?"
    return ""


def _nearest(path: Path) -> str:
    parent = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if parent is None:
        return ""
    inside = [entry.name for entry in _subfolders(parent)]
    return f"; {parent} holds {some(inside) or 'no folders'}"
