"""A folder of pictures, one folder a class, in the layouts that people have. Names decide, never positions."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tl_cli.contract import SplitName
from tl_cli.data.decoding import SUFFIXES
from tl_cli.data.found import Found
from tl_cli.data.images import FileImages
from tl_cli.errors import DataError

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


def scan(root: Path) -> Found:
    """Return the classes and images of a folder.

    Raises:
        DataError: it is not there, has no known layout, one class only, an empty class, or parts whose classes
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
        return _classes_only(root, folders)
    if len(found) == 1:
        loose = "; ".join(f"{path.name}/ has no class folders" for part, path in named.items() if part not in found)
        missing = loose or "there is neither test/ nor val/"
        raise DataError(f"{root} has train/, but {missing}; to split the training images, give {found['train']}")
    return _parts(root, found)


def _parts(root: Path, found: dict[SplitName, Path]) -> Found:
    listed = {part: _list_classes(path) for part, path in found.items()}
    classes = _checked(listed["train"], found["train"])
    notes: list[str] = []
    for part, files in listed.items():
        unknown = sorted(set(files) - set(classes))
        if unknown:
            raise DataError(f"{found[part]} has classes that train/ has not: {some(unknown)}")
        if not any(files.values()):
            raise DataError(f"{found[part]} has no pictures; {EXPECTED}")
        absent = [name for name in classes if not files.get(name)]
        if absent:
            notes.append(f"{found[part].name}/ has no pictures of {some(absent)}")
    notes += _passed_over(found.values())
    parts = {part: _images(root, files, classes) for part, files in listed.items()}
    return Found(classes, parts, tuple(notes))


def _classes_only(root: Path, folders: list[Path]) -> Found:
    files = _list_classes(root)
    if not any(files.values()):
        loose = sum(1 for entry in os.scandir(root) if is_picture(entry.name))
        found = f"{loose} pictures without a class folder" if loose else some([path.name + "/" for path in folders])
        raise DataError(f"{root} holds {found or 'nothing'}; {EXPECTED}{_hint(folders)}")
    classes = _checked(files, root, _hint(folders))
    return Found(classes, {"train": _images(root, files, classes)}, tuple(_passed_over([root])))


def _checked(files: dict[str, list[str]], where: Path, hint: str = "") -> tuple[str, ...]:
    classes = tuple(sorted(files))
    for name in classes:
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
            raise DataError(f"{where} has a class folder whose name is not valid UTF-8: {name!r}; rename it")
    empty = [name for name in classes if not files[name]]
    if empty:
        raise DataError(f"{where} has class folders without pictures: {some(empty)}; fill or remove them{hint}")
    if len(classes) < 2:
        found = f"one class only ({classes[0]})" if classes else "no class folders"
        raise DataError(f"{where} has {found}; a classifier needs two or more. {EXPECTED}{hint}")
    return classes


def _images(root: Path, files: dict[str, list[str]], classes: tuple[str, ...]) -> FileImages:
    ids = [path for name in classes for path in files.get(name, ())]
    labels = np.repeat(np.arange(len(classes)), [len(files.get(name, ())) for name in classes])
    relative = [os.path.relpath(path, root).replace(os.sep, "/") for path in ids]
    return FileImages(np.array(relative, dtype=object), labels.astype(np.int64), root)


def _list_classes(root: Path) -> dict[str, list[str]]:
    return {path.name: sorted(_pictures(path)) for path in _subfolders(root)}


def _pictures(folder: Path) -> list[str]:
    """Every picture below ``folder``; a folder that links back to itself is walked once."""
    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        stat = os.stat(here)
        if (stat.st_dev, stat.st_ino) in visited:
            folders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(here, name) for name in names if is_picture(name)]
    return found


def _passed_over(parts: Iterable[Path]) -> list[str]:
    """Name the kinds of files that lie among the pictures and are none that can be read."""
    kinds = Counter(
        os.path.splitext(name)[1].lower() or name
        for part in parts
        for folder in _subfolders(part)
        for here, _, names in os.walk(folder)
        if f"{os.sep}." not in os.path.relpath(here, part)
        for name in names
        if not name.startswith(".") and not is_picture(name)
    )
    if not kinds:
        return []
    return [f"{sum(kinds.values()):,} files are no pictures that can be read: {some(list(kinds))}"]


def is_picture(name: str) -> bool:
    """Return whether a file of this name is taken for a picture: its ending is known, and it is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _subfolders(root: Path) -> list[Path]:
    try:
        entries = [entry for entry in os.scandir(root) if entry.is_dir()]
    except OSError as error:
        raise DataError(f"cannot look into {root}: {error.strerror}") from error
    return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and e.name != "__MACOSX")


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


def some(names: list[str], show: int = 5) -> str:
    """Return the first few names as a list to read, and how many more there are."""
    more = f" and {len(names) - show} more" if len(names) > show else ""
    return ", ".join(names[:show]) + more
