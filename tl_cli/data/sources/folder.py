"""A folder of images, one folder per class, in the usual layouts. Folders are recognized by name, not by position."""

import os
import shlex
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from tl_cli.contract import SPLIT_NAMES, SplitName
from tl_cli.data.decode import SUFFIXES
from tl_cli.data.images import FileImages
from tl_cli.data.packed_names import Names
from tl_cli.data.sources import class_names, split_names
from tl_cli.data.sources.found import Faults, Found
from tl_cli.errors import DataError, some

# Folders that other programs leave among images.
_NO_DATA = ("__MACOSX", "__pycache__")
# Hidden folders of programs, which nobody takes for a class.
_OF_PROGRAMS = (".git", ".ipynb_checkpoints", ".cache", ".thumbnails", ".Trash")
EXPECTED = (
    "expected one of\n"
    "  DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg   (validation is held out of train)\n"
    "  DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg    (and DIR/test/, if available)\n"
    "  DIR/CLASS/*.jpg                                  (split 80/10/10)"
)
# How deep below a folder without a known layout one with a known layout is searched for, and in how many folders.
_HINT_DEPTH = 4
_HINT_FOLDERS = 500
_EXPECTED_PARTS = "expected DIR/train/CLASS with DIR/test/CLASS or DIR/val/CLASS"
_AS_CSV = "list the images in a CSV with the columns path and label"


@dataclass(frozen=True, slots=True)
class _Listed:
    """The class folders of one part.

    Attributes:
        classes: images by class.
        nested: by class, how many of them lie in each of the folders inside its folder.
        parts: folders somewhere inside a class folder that look like parts.
        others: by class folder, how many files of each other kind it has.
        unread: by class folder, the folders in it that are not read, with the reason.
    """

    classes: dict[str, Names] = field(default_factory=dict)
    nested: dict[str, Counter[str]] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    others: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unread: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def scan(root: Path, *, partial: bool = False, lenient: bool = False) -> Found:
    """Return the classes and images of a folder.

    Args:
        partial: for a model that is already trained: any of the parts and classes may be missing.
        lenient: report classes that are empty, too few or missing in ``train`` as faults of the result instead of
            raising them.

    Raises:
        DataError: it does not exist, has no known layout, too few classes, an empty class, or parts with classes
            that ``train`` does not have.
    """
    root = root.expanduser()
    if not root.exists():
        raise DataError(f"no folder at {root}{_nearest(root)}")
    if not root.is_dir():
        raise DataError(f"{root} is a file, and neither a .csv nor an archive; {EXPECTED}")
    root = root.resolve()
    folders = _subfolders(root)
    parts = _part_folders(root, folders)
    if parts and not partial:
        _check_parts(root, folders, parts)
    return _read(root, parts or {"train": root}, Faults(lenient), partial=partial)


def _part_folders(root: Path, folders: list[Path]) -> dict[SplitName, Path]:
    """Return by part the folder that holds its class folders; empty if these folders are not parts.

    Raises:
        DataError: two folders are the same part, or it is unclear whether one is for validation or for testing.
    """
    named: dict[str, split_names.Part] = split_names.parts_among([path.name for path in folders])
    if not named:
        named.update((path.name, meant) for path in folders if (meant := split_names.part_named(path.name)))
    # A part has class folders in it; a class may be called "train", and unlabelled images may lie in test/.
    holding = {name: inner for name, part in named.items() if (inner := _class_level(root / name, part))}
    settled = split_names.settled({name: named[name] for name in holding})
    parts: dict[SplitName, Path] = {}
    for name, part in settled.items():
        if part in parts:
            raise DataError(
                f"{root} has two folders of {part} images, {_top(root, parts[part])}/ and {name}/; "
                "rename or move the one that is not"
            )
        if part != "unclear":
            parts[part] = holding[name]
    unclear = [name for name, part in settled.items() if part == "unclear"]
    if unclear and set(parts) == {"train"}:
        raise DataError(
            f"{root} has {_folders(unclear)} beside {_below(root, parts['train'])}/; rename it to "
            "val/ if it is for choosing the best epoch, or to test/ if it is for the final figure"
        )
    return {part: parts[part] for part in SPLIT_NAMES if part in parts}


def _class_level(folder: Path, part: split_names.Part) -> Path | None:
    """Return the folder with the class folders of a part: itself, or one inside that adds nothing to its name."""
    inner = _subfolders(folder)
    if len(inner) == 1 and split_names.is_wrapper(inner[0].name, part):
        return _class_level(inner[0], part)
    return folder if inner else None


def _check_parts(root: Path, folders: list[Path], parts: Mapping[SplitName, Path]) -> None:
    """Raise if there are no training images, or nothing but training images."""
    if "train" not in parts:
        names = ", ".join(f"{_below(root, path)}/" for path in parts.values())
        one = f"to use these images alone, give {_data(next(iter(parts.values())))}; " if len(parts) == 1 else ""
        raise DataError(f"{root} has {names} but no train/; {one}{EXPECTED}")
    if len(parts) == 1:
        others = [path.name for path in folders if split_names.part_named(path.name) in ("val", "test")]
        missing = "; ".join(f"{name}/ has no class folders" for name in others) or "there is neither test/ nor val/"
        train = parts["train"]
        fault = f"{root} has {_below(root, train)}/, but {missing}; to split the training images, give {_data(train)}"
        if any(map(_count_images, folders)):
            fault += f"; if {train.name}/ is a class, move the images in its folders up, or {_AS_CSV}"
        raise DataError(fault)


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _top(root: Path, path: Path) -> str:
    return _below(root, path).partition("/")[0]


def _data(path: Path) -> str:
    return f"--data {shlex.quote(str(path))}"


def _folders(names: Collection[str]) -> str:
    return some([f"{name}/" for name in names])


def _read(root: Path, parts: dict[SplitName, Path], faults: Faults, *, partial: bool) -> Found:
    """Return the images in the class folders of each part.

    Args:
        parts: the folders of class folders; ``root`` itself as ``train`` if it is not divided.
    """
    listed = {part: _list_classes(root, path) for part, path in parts.items()}
    if partial:
        listed = {part: here for part, here in listed.items() if any(here.classes.values())} or listed
        parts = {part: parts[part] for part in listed}
    main: SplitName = "train" if "train" in parts else next(iter(parts))
    if parts[main] == root:
        _check_some(root, listed[main])
    _check_layout(parts[main], listed[main], faults)
    notes = _part_notes(root, parts, parts[main]) if parts[main] != root else []
    notes += _nested_notes({_prefix(root, parts[part]): here for part, here in listed.items()})
    notes += _merge_spellings(root, list(listed.values()), faults)
    known = dict(listed[main].classes)
    if partial:
        for here in listed.values():
            known.update((name, files) for name, files in here.classes.items() if not known.get(name))
    classes = _checked(known, parts[main], faults, listed[main], partial=partial)
    for part, files in ((part, here.classes) for part, here in listed.items()):
        if unknown := sorted(set(files) - set(known)):
            faults.add(f"{parts[part]} has classes that train/ has not: {some(unknown)}")
        if not any(files.values()):
            raise DataError(f"{parts[part]} has no images; {EXPECTED}")
        absent = [name for name in classes if not files.get(name)]
        if absent and not partial:
            notes.append(f"{_below(root, parts[part])}/ has no images of {some(absent)}")
    notes += _left_out(root, parts, listed.values())
    images = {part: _images(root, here.classes, classes) for part, here in listed.items()}
    # If lenient, all images of a part may be of classes that train does not have.
    images = {part: of_part for part, of_part in images.items() if len(of_part)}
    return Found(classes, images, tuple(notes), tuple(faults.named))


def _prefix(root: Path, path: Path) -> str:
    return "" if path == root else f"{_below(root, path)}/"


def _check_some(root: Path, listed: _Listed) -> None:
    if not any(listed.classes.values()):
        loose = _count_images(root)
        found = f"{loose} images without a class folder" if loose else _folders(listed.classes)
        raise DataError(f"{root} holds {found or 'nothing'}{_hint(root)}; {EXPECTED}")


def _part_notes(root: Path, parts: Mapping[SplitName, Path], main: Path) -> list[str]:
    """Return which folders are read as parts, unless they have the usual names, and which are not."""
    notes = []
    if any(not split_names.is_plain(_below(root, path)) for path in parts.values()):
        notes.append("read as parts: " + ", ".join(f"{part} from {_below(root, p)}/" for part, p in parts.items()))
    tops = {_top(root, path) for path in parts.values()}
    others = [path.name for path in _subfolders(root) if path.name not in tops]
    if others:
        notes.append(f"{_folders(others)} beside {_top(root, main)}/ is no part of these data and left out")
    return notes


def _nested_notes(listed: Mapping[str, _Listed]) -> list[str]:
    """Return a note about images in folders inside a class folder, which count for that class.

    Args:
        listed: by the beginning of the names of the class folders.
    """
    named = [
        f"{prefix}{name}/ {inner.total():,} of {len(here.classes[name]):,} ({_folders(sorted(inner))})"
        for prefix, here in listed.items()
        for name, inner in here.nested.items()
    ]
    return [f"images in folders inside class folders count for the class: {some(named)}"] if named else []


def _left_out(root: Path, parts: Mapping[SplitName, Path], listed: Collection[_Listed]) -> list[str]:
    """Return notes about images without a class, files that are not images, and folders that are not read."""
    # Images may also lie above the class folders: in train/ where these are in train/images/.
    levels = {level for path in parts.values() for level in (path, *path.parents) if level.is_relative_to(root)}
    loose = {level: count for level in sorted(levels) if (count := _count_images(level))}
    where = some([f"{count:,} in {_below(root.parent, level)}/" for level, count in loose.items()])
    notes = [f"images beside the class folders have no class and are left out: {where}"] if loose else []
    hidden = [path for level in parts.values() for path in _hidden_folders(level) if _count_images(path)]
    if hidden:
        named = _folders([_below(root, path) for path in hidden])
        notes.append(f"hidden folders are no classes and left out: {named}; rename them if they are")
    others = sum((counted for here in listed for counted in here.others.values()), Counter[str]())
    if others:
        notes.append(f"ignored {others.total():,} non-image file{'s' * (others.total() != 1)}: {some(list(others))}")
    if unread := [folder for here in listed for folders in here.unread.values() for folder in folders]:
        notes.append(f"folders that were not read: {some(unread)}")
    return notes


def _check_layout(where: Path, listed: _Listed, faults: Faults) -> None:
    """Report a fault if something speaks for other classes than the folders that hold images."""
    holding = {name: images for name, images in listed.classes.items() if images}
    if divided := split_names.looks_divided(list(holding)):
        faults.add(
            f"{where} looks divided into parts ({_folders(divided)}), and a model would learn to tell these from each "
            f"other; {_EXPECTED_PARTS}; if they are classes, rename them or {_AS_CSV}{_hint(where)}"
        )
        return
    if listed.parts:
        faults.add(
            f"the class folders in {where} hold folders that look like parts ({_folders(sorted(set(listed.parts)))}), "
            f"whose images would be mixed; {_EXPECTED_PARTS}{_hint(where)}"
        )
        return
    inner = [sorted(listed.nested.get(name, ())) for name in holding]
    is_deeper = all(listed.nested.get(name, Counter()).total() == len(images) for name, images in holding.items())
    # One folder with the same name inside each class, CLASS/images, does not separate classes.
    is_wrapped = len(holding) > 1 and all(len(names) == 1 and names == inner[0] for names in inner)
    if holding and is_deeper and not is_wrapped:
        faults.add(
            f"{where} has no images in its folders ({_folders(holding)}) but in the folders inside these "
            f"({_folders(sorted({name for names in inner for name in names}))}), so which are the classes is unclear; "
            f"if the outer ones are, move the images up or {_AS_CSV}{_hint(where)}"
        )


def _merge_spellings(where: Path, listed: list[_Listed], faults: Faults) -> list[str]:
    """Merge class folders whose names are spellings of one name, and return notes.

    Args:
        listed: all parts; their classes are changed.
    """
    counts = Counter[str]()
    for part in listed:
        counts.update({name: len(images) for name, images in part.classes.items()})
    # Without folders that have no images.
    classes, notes = class_names.unify(+counts, where, faults)
    for part in listed:
        spellings = defaultdict[str, list[Names]](list)
        for name in sorted(part.classes):
            spellings[classes.get(name, name)].append(part.classes.pop(name))
        part.classes.update((name, Names.joined(several)) for name, several in spellings.items())
    return notes


def _checked(
    files: Mapping[str, Names], where: Path, faults: Faults, listed: _Listed, *, partial: bool
) -> tuple[str, ...]:
    """Return the classes that have images, sorted.

    Args:
        listed: what else is in the class folders.
    """
    for name in sorted(files):
        if name.encode("utf-8", "replace").decode() != name:
            raise DataError(f"{where} has a class folder whose name is not valid UTF-8: {name!r}; rename it")
    empty = [f"{name}{_instead(listed, name)}" for name in sorted(files) if not files[name]]
    if empty and not partial:
        faults.add(f"{where} has class folders without images: {some(empty)}; fill or remove them{_hint(where)}")
    classes = tuple(name for name in sorted(files) if files[name])
    if not classes:
        raise DataError(f"{where} has no class folders with images{_hint(where)}; {EXPECTED}")
    if len(classes) < 2 and not partial:
        faults.add(
            f"{where} has one class only ({classes[0]}); a classifier needs two or more{_hint(where)}; {EXPECTED}"
        )
    return classes


def _instead(listed: _Listed, name: str) -> str:
    """Return what a class folder without images has, as a remark behind its name."""
    others = [f"{count:,} {kind}" for kind, count in listed.others.get(name, {}).items()]
    remarks = [f"it holds {some(others, 3)}"] if others else []
    remarks += [f"not read: {some(unread, 3)}"] if (unread := listed.unread.get(name)) else []
    return f" ({'; '.join(remarks)})" if remarks else ""


def _images(root: Path, files: Mapping[str, Names], classes: tuple[str, ...]) -> FileImages:
    labels = np.repeat(np.arange(len(classes)), [len(files.get(name, ())) for name in classes])
    names = Names.joined([files.get(name, Names.of(())) for name in classes])
    return FileImages(names, labels.astype(np.int64), root)


def _list_classes(root: Path, part: Path) -> _Listed:
    listed = _Listed()
    for folder in _subfolders(part):
        paths = sorted(_walk(folder, listed.others[folder.name], listed.unread[folder.name]))
        prefix = _prefix(root, folder)
        inside = (path.partition("/") for path in paths)
        if nested := Counter(first for first, separator, _ in inside if separator):
            listed.nested[folder.name] = nested
            listed.parts.extend(_parts_inside({path.rpartition("/")[0] for path in paths}))
        listed.classes[folder.name] = Names.of(f"{prefix}{path}" for path in paths)
    return listed


def _walk(folder: Path, others: Counter[str], unread: list[str]) -> Iterator[str]:
    """Yield the path below ``folder`` of every image in it, count the other files, and list folders that are not read.

    A folder that is reached through several links is walked once.
    """
    # A class that is a link to a folder above it would hold all the others.
    above = {_number(parent) for parent in folder.absolute().parents}
    visited: set[tuple[int, int]] = set()

    def report(error: OSError) -> None:
        unread.append(f"{error.filename} ({error.strerror})")

    for here, folders, files in os.walk(folder, onerror=report, followlinks=True):
        number = _number(here)
        if number in above:
            unread.append(f"{here} (a link to a folder above it)")
        if number in above or number in visited:
            folders.clear()
            continue
        visited.add(number)
        folders[:] = sorted(filter(_is_data, folders))
        prefix = _prefix(folder, Path(here))
        for name in filter(_is_data, files):
            if is_image_file(name):
                yield f"{prefix}{name}"
            else:
                others[os.path.splitext(name)[1].lower() or name] += 1


def _number(folder: str | Path) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name not in _NO_DATA


def _parts_inside(paths: set[str]) -> list[str]:
    """Return the names, among those of these paths' folders, that look like parts beside the others of their folder."""
    siblings = defaultdict[PurePosixPath, set[str]](set)
    for path in paths - {""}:
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents[:-1]):
            siblings[folder.parent].add(folder.name)
    return [
        name
        for names in map(sorted, siblings.values())
        for name in (names if all(map(split_names.part_named, names)) else split_names.looks_divided(names))
    ]


def is_image_file(name: str) -> bool:
    """Return whether a file is an image by its name: its ending is known, and it is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _subfolders(root: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot look into {root}: {error.strerror}") from error

    _, names, _ = next(os.walk(root, onerror=refuse))
    return sorted(root / name for name in names if _is_data(name))


def _hidden_folders(root: Path) -> list[Path]:
    _, names, _ = next(os.walk(root), ("", [], []))
    return sorted(root / name for name in names if name.startswith(".") and name not in _OF_PROGRAMS)


def _count_images(folder: Path) -> int:
    """Return how many images lie directly in a folder; 0 if it cannot be read."""
    return sum(is_image_file(name) for _, _, files in islice(os.walk(folder), 1) for name in files)


def _hint(root: Path) -> str:
    """Return where the data seem to be if ``root`` is too high."""
    waiting = deque([(path, 1) for path in _subfolders(root)])
    for _ in range(_HINT_FOLDERS):
        if not waiting:
            return ""
        path, depth = waiting.popleft()
        with suppress(DataError):
            inner = _subfolders(path)
            parts = _part_folders(path, inner)
            with_images = [folder.name for folder in inner if _count_images(folder)]
            is_divided = bool(split_names.looks_divided(with_images))
            if ("train" in parts and len(parts) > 1) or (len(with_images) > 1 and not parts and not is_divided):
                return f". Did you mean {_data(path)}?"
            if depth < _HINT_DEPTH:
                waiting.extend((folder, depth + 1) for folder in inner)
    return ""


def _nearest(path: Path) -> str:
    parent = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if parent is None:
        return ""
    return f"; {parent} holds {some([folder.name for folder in _subfolders(parent)]) or 'no folders'}"
