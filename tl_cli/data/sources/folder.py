"""A folder of images, one folder per class, in the usual layouts. Names decide, never positions."""

import os
import shlex
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tl_cli.contract import SPLIT_NAMES, SplitName
from tl_cli.data.decode import SUFFIXES
from tl_cli.data.images import FileImages
from tl_cli.data.packed_names import Names
from tl_cli.data.sources import class_names, split_names
from tl_cli.data.sources.found import Faults, Found
from tl_cli.errors import DataError, some

# What other programs leave among data.
_NO_DATA = ("__MACOSX", "__pycache__")
EXPECTED = (
    "expected one of\n"
    "  DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg   (validation is held out of train)\n"
    "  DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg    (and DIR/test/, where there is one)\n"
    "  DIR/CLASS/*.jpg                                  (split 80/10/10)"
)
# How far below a folder that has no known layout one that has is looked for.
_HINT_DEPTH = 4
_HINT_FOLDERS = 500
_EXPECTED_PARTS = "expected DIR/train/CLASS with DIR/test/CLASS or DIR/val/CLASS"
_AS_CSV = "list the pictures in a CSV with the columns path and label"


@dataclass(frozen=True, slots=True)
class _Listed:
    """What lies in the class folders of one part.

    Attributes:
        classes: pictures by class.
        nested: by class, how many of them lie in each of the folders inside its folder.
        parts: folders somewhere inside a class folder that look like parts.
        others: how many other files there are of each kind.
    """

    classes: dict[str, Names]
    nested: dict[str, Counter[str]] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def scan(root: Path, *, partial: bool = False, lenient: bool = False) -> Found:
    """Return the classes and images of a folder.

    Args:
        partial: for a model that is trained already: any of the parts and classes may be missing.
        lenient: go on where classes are empty, too few or unknown to ``train``, and name that among the faults.

    Raises:
        DataError: it is not there, has no known layout, too few classes, an empty class, or parts whose classes
            are unknown to ``train``.
    """
    root = root.expanduser()
    if not root.exists():
        raise DataError(f"no folder at {root}{_nearest(root)}")
    if not root.is_dir():
        raise DataError(f"{root} is a file, and neither a .csv nor an archive; {EXPECTED}")
    root = root.resolve()
    folders = _subfolders(root)
    faults = Faults(lenient)
    found = _part_folders(root, folders)
    if not found:
        return _classes_only(root, folders, faults, partial=partial)
    if "train" not in found and not partial:
        names = ", ".join(f"{_below(root, path)}/" for path in found.values())
        one = f"to use these images alone, give {_data(next(iter(found.values())))}; " if len(found) == 1 else ""
        raise DataError(f"{root} has {names} but no train/; {one}{EXPECTED}")
    if len(found) == 1 and not partial:
        loose = "; ".join(f"{path.name}/ has no class folders" for path in folders if _is_other_part(path.name))
        missing = loose or "there is neither test/ nor val/"
        train = found["train"]
        fault = f"{root} has {_below(root, train)}/, but {missing}; to split the training images, give {_data(train)}"
        if any(_has_pictures(path) for path in folders):
            fault += f"; if {train.name}/ is a class, move the pictures in its folders up, or {_AS_CSV}"
        raise DataError(fault)
    return _parts(root, found, faults, partial=partial)


def _part_folders(root: Path, folders: list[Path]) -> dict[SplitName, Path]:
    """Return by part the folder that holds its class folders; none where these folders are no parts.

    Raises:
        DataError: two folders are the same part, or whether one is for validation or for testing is unclear.
    """
    named: dict[str, split_names.Part] = split_names.parts_among([path.name for path in folders])
    if not named:
        named.update((path.name, meant) for path in folders if (meant := split_names.part_named(path.name)))
    # A part has class folders in it; a class may be called "train", and unlabelled pictures may lie in test/.
    holding = {name: inner for name, part in named.items() if (inner := _class_level(root / name, part))}
    parts = split_names.settled({name: named[name] for name in holding})
    found: dict[SplitName, Path] = {}
    unclear = [name for name, part in parts.items() if part == "unclear"]
    for name, path in holding.items():
        part = parts[name]
        if part == "unclear":
            continue
        if part in found:
            first = found[part].relative_to(root).parts[0]
            raise DataError(
                f"{root} has two folders of {part} images, {first}/ and {name}/; rename or move the one that is not"
            )
        found[part] = path
    if unclear and set(found) == {"train"}:
        raise DataError(
            f"{root} has {_folders(unclear)} beside {_below(root, found['train'])}/; rename it to "
            "val/ if it is for choosing the best epoch, or to test/ if it is for the final figure"
        )
    return {part: found[part] for part in SPLIT_NAMES if part in found}


def _class_level(folder: Path, part: split_names.Part) -> Path | None:
    """Return the folder in which a part's class folders lie: itself, or one inside that adds nothing to its name."""
    inner = _subfolders(folder)
    if len(inner) == 1 and split_names.is_wrapper(inner[0].name, part):
        return _class_level(inner[0], part)
    return folder if inner else None


def _is_other_part(name: str) -> bool:
    return split_names.part_named(name) not in (None, "train")


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _data(path: Path) -> str:
    return f"--data {shlex.quote(str(path))}"


def _parts(root: Path, found: dict[SplitName, Path], faults: Faults, *, partial: bool) -> Found:
    listed = {part: _list_classes(root, path) for part, path in found.items()}
    if partial:
        listed = {part: here for part, here in listed.items() if any(here.classes.values())} or listed
        found = {part: found[part] for part in listed}
    main: SplitName = "train" if "train" in found else next(iter(found))
    notes = []
    tops = {part: path.relative_to(root).parts[0] for part, path in found.items()}
    if any(_below(root, path) != tops[part] or not split_names.is_plain(tops[part]) for part, path in found.items()):
        notes.append("read as parts: " + ", ".join(f"{p} from {_below(root, path)}/" for p, path in found.items()))
    _check_layout(found[main], listed[main], faults)
    notes += _nesting({f"{_below(root, found[part])}/": here for part, here in listed.items()})
    notes += _merge_spellings(root, listed.values(), faults)
    known = dict(listed[main].classes)
    if partial:
        for here in listed.values():
            known.update((name, files) for name, files in here.classes.items() if not known.get(name))
    classes = _checked(known, found[main], faults, partial=partial)
    others = [path.name for path in _subfolders(root) if path.name not in tops.values()]
    if others:
        beside = f"beside {tops[main]}/ is no part of these data and left out"
        notes.append(f"{_folders(others)} {beside}")
    for part, files in ((part, listed[part].classes) for part in listed):
        unknown = sorted(set(files) - set(known))
        if unknown:
            faults.add(f"{found[part]} has classes that train/ has not: {some(unknown)}")
        if not any(files.values()):
            raise DataError(f"{found[part]} has no pictures; {EXPECTED}")
        absent = [name for name in classes if not files.get(name)]
        if absent and not partial:
            notes.append(f"{_below(root, found[part])}/ has no pictures of {some(absent)}")
    # Pictures may also lie above the class folders: in train/ where these are in train/images/.
    levels = {level for path in found.values() for level in (path, *path.parents) if level.is_relative_to(root)}
    loose = {level: count for level in sorted(levels) if (count := _loose(level))}
    if loose:
        where = some([f"{count:,} in {_below(root.parent, level)}/" for level, count in loose.items()])
        notes.append(f"pictures beside the class folders have no class and are left out: {where}")
    notes += _passed_over(sum((part.others for part in listed.values()), Counter[str]()))
    parts = {part: _images(root, here.classes, classes) for part, here in listed.items()}
    return Found(classes, parts, tuple(notes), tuple(faults.named))


def _classes_only(root: Path, folders: list[Path], faults: Faults, *, partial: bool) -> Found:
    listed = _list_classes(root, root)
    files = listed.classes
    loose = _loose(root)
    if not any(files.values()):
        found = f"{loose} pictures without a class folder" if loose else some([path.name + "/" for path in folders])
        raise DataError(f"{root} holds {found or 'nothing'}{_hint(root)}; {EXPECTED}")
    _check_layout(root, listed, faults)
    notes = [*_nesting({"": listed}), *_merge_spellings(root, [listed], faults)]
    classes = _checked(files, root, faults, partial=partial)
    if loose:
        notes.append(f"{loose:,} pictures beside the class folders have no class and are left out")
    notes += _passed_over(listed.others)
    return Found(classes, {"train": _images(root, files, classes)}, tuple(notes), tuple(faults.named))


def _loose(folder: Path) -> int:
    """Return how many pictures lie directly in a folder."""
    with os.scandir(folder) as entries:
        return sum(is_picture(entry.name) for entry in entries)


def _check_layout(where: Path, listed: _Listed, faults: Faults) -> None:
    """Name what speaks for other classes than the folders that hold pictures somewhere below them."""
    holding = {name: pictures for name, pictures in listed.classes.items() if pictures}
    divided = split_names.looks_divided(list(holding))
    if divided:
        faults.add(
            f"{where} looks divided into parts ({_folders(divided)}), and a model would learn to tell these from each "
            f"other; {_EXPECTED_PARTS}; if they are classes, rename them or {_AS_CSV}{_hint(where)}"
        )
        return
    if listed.parts:
        inside = _folders(sorted(set(listed.parts)))
        faults.add(
            f"the class folders in {where} hold folders that look like parts ({inside}), whose pictures would "
            f"be mixed; {_EXPECTED_PARTS}{_hint(where)}"
        )
        return
    inner = [sorted(listed.nested.get(name, ())) for name in holding]
    is_deeper = all(listed.nested.get(name, Counter()).total() == len(each) for name, each in holding.items())
    # One folder of one name inside each class, CLASS/images, cannot be what tells classes apart.
    is_wrapped = len(holding) > 1 and all(len(names) == 1 and names == inner[0] for names in inner)
    if holding and is_deeper and not is_wrapped:
        below = sorted({name for names in inner for name in names})
        faults.add(
            f"{where} has no pictures in its folders ({_folders(list(holding))}) but in the folders inside these "
            f"({_folders(below)}), so which are the classes is unclear; if the outer ones are, move the pictures up or "
            f"{_AS_CSV}{_hint(where)}"
        )


def _folders(names: list[str]) -> str:
    return some([f"{name}/" for name in names])


def _parts_inside(paths: set[str]) -> list[str]:
    """Return the names, among those of these paths' folders, that look like parts beside the others of their folder."""
    siblings: dict[str, set[str]] = {}
    for path in paths:
        names = path.split(os.sep)
        for depth, name in enumerate(names):
            siblings.setdefault(os.sep.join(names[:depth]), set()).add(name)
    siblings[""].discard("")
    groups = [sorted(names) for names in siblings.values() if names]
    return [
        name
        for names in groups
        for name in (names if all(map(split_names.part_named, names)) else split_names.looks_divided(names))
    ]


def _nesting(listed: Mapping[str, _Listed]) -> list[str]:
    """Return a note about images in folders inside a class folder, which count for that class.

    Args:
        listed: by what the names of the class folders begin with.
    """
    named = [
        f"{prefix}{name}/ {inner.total():,} of {len(here.classes[name]):,} ({_folders(sorted(inner))})"
        for prefix, here in listed.items()
        for name, inner in here.nested.items()
    ]
    return [f"pictures in folders inside class folders count for the class: {some(named)}"] if named else []


def _merge_spellings(where: Path, listed: Iterable[_Listed], faults: Faults) -> list[str]:
    """Put class folders together whose names are one name, and return notes.

    Args:
        listed: all parts; their classes are changed.
    """
    parts = list(listed)
    counts = sum((Counter({name: len(each) for name, each in part.classes.items()}) for part in parts), Counter[str]())
    classes, notes = class_names.merged(counts)
    for part in parts:
        folders: dict[str, list[Names]] = {}
        for name in sorted(part.classes):
            folders.setdefault(classes.get(name, name), []).append(part.classes[name])
        part.classes.clear()
        part.classes.update((name, Names.joined(several)) for name, several in folders.items())
    together: Counter[str] = Counter()
    for name, count in counts.items():
        together[classes[name]] += count
    fault, note = class_names.lookalikes(together)
    if fault:
        faults.add(f"in {where} {fault}")
    return [*notes, note] if note else notes


def _checked(files: Mapping[str, Names], where: Path, faults: Faults, *, partial: bool) -> tuple[str, ...]:
    """Return the classes that have pictures, sorted."""
    classes = tuple(sorted(files))
    for name in classes:
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
            raise DataError(f"{where} has a class folder whose name is not valid UTF-8: {name!r}; rename it")
    empty = [name for name in classes if not files[name]]
    if empty and not partial:
        faults.add(f"{where} has class folders without pictures: {some(empty)}; fill or remove them{_hint(where)}")
    classes = tuple(name for name in classes if files[name])
    if not classes:
        raise DataError(f"{where} has no class folders with pictures{_hint(where)}; {EXPECTED}")
    if len(classes) < 2 and not partial:
        faults.add(
            f"{where} has one class only ({classes[0]}); a classifier needs two or more{_hint(where)}; {EXPECTED}"
        )
    return classes


def _images(root: Path, files: Mapping[str, Names], classes: tuple[str, ...]) -> FileImages:
    labels = np.repeat(np.arange(len(classes)), [len(files.get(name, ())) for name in classes])
    return FileImages(Names.joined([files[name] for name in classes if name in files]), labels.astype(np.int64), root)


def _list_classes(root: Path, part: Path) -> _Listed:
    listed = _Listed({})
    for folder in _subfolders(part):
        prefix = os.path.relpath(folder, root)
        found = sorted(_walk(folder, prefix, listed.others))
        inside = (name[len(prefix) + 1 :].partition(os.sep) for name in found)
        if nested := Counter(first for first, separator, _ in inside if separator):
            listed.nested[folder.name] = nested
            listed.parts.extend(_parts_inside({name[len(prefix) + 1 :].rpartition(os.sep)[0] for name in found}))
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


def _hint(root: Path) -> str:
    """Say where the data seem to be, when the folder given is too high."""
    waiting = deque([(path, 1) for path in _subfolders(root)])
    for _ in range(_HINT_FOLDERS):
        if not waiting:
            return ""
        path, depth = waiting.popleft()
        with suppress(DataError):
            inner = _subfolders(path)
            found = _part_folders(path, inner)
            with_pictures = [each.name for each in inner if _has_pictures(each)]
            is_divided = bool(split_names.looks_divided(with_pictures))
            if ("train" in found and len(found) > 1) or (len(with_pictures) > 1 and not found and not is_divided):
                return f". Did you mean {_data(path)}?"
            if depth < _HINT_DEPTH:
                waiting.extend((each, depth + 1) for each in inner)
    return ""


def _has_pictures(folder: Path) -> bool:
    with suppress(OSError), os.scandir(folder) as entries:
        return any(is_picture(entry.name) for entry in entries)
    return False


def _nearest(path: Path) -> str:
    parent = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if parent is None:
        return ""
    inside = [entry.name for entry in _subfolders(parent)]
    return f"; {parent} holds {some(inside) or 'no folders'}"
