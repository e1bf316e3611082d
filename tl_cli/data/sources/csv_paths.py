"""Finds the file of an image that a CSV names: with or without folder and ending, with either slash."""

import os
from collections import Counter
from pathlib import Path

from tl_cli.contract import SplitName
from tl_cli.data.decode import SUFFIXES
from tl_cli.data.sources.csv_columns import is_picture_name
from tl_cli.data.sources.split_names import part_named
from tl_cli.errors import DataError, shortened, some

# Folders below that of the CSV in which pictures are looked for.
_DEEPEST = 4
# Names of folders beside that of the CSV in which pictures are looked for. Another one that differs in its last word
# alone counts too: ISIC has ISIC2018_Task3_Training_Input beside ISIC2018_Task3_Training_GroundTruth.
_BESIDE = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "input")


class Lookup:
    """Finds the pictures that a CSV lists.

    Args:
        path: of the CSV; names are relative to its folder.
        confined: refuse pictures outside that folder.
    """

    def __init__(self, path: Path, *, confined: bool = False) -> None:
        self._path = path
        self._confined = confined
        self._below: dict[str, list[str]] | None = None
        self._folders: Counter[str] = Counter()
        self._turned = 0

    def name(self, line: int, listed: str, part: SplitName | None = None) -> str:
        """Return an image's path relative to the CSV's folder, which identifies it.

        Args:
            listed: as the CSV has it.
            part: the part in the CSV; decides between images of one name in the folders of several parts.

        Raises:
            DataError: it has no name, lies outside a confined folder, may be one of several files, or has no ending of
                a picture and is none. One that has an ending need not be there.
        """
        if not listed:
            raise DataError(f"{self._path}, line {line}: the path is empty")
        name = self._relative(line, listed)
        # A backslash may be part of a name, but hardly ever is.
        if "\\" in name and not self._is_there(name):
            name = self._relative(line, listed.replace("\\", "/"))
            self._turned += 1
        if is_picture_name(name) and self._is_there(name):
            return name
        found = self._candidates(name)
        if len(found) > 1:
            part = part or part_named(self._path.stem)
            of_part = [each for each in found if any(part_named(folder) == part for folder in each.split("/")[:-1])]
            found = of_part if part and len(of_part) == 1 else found
        if len(found) > 1:
            raise DataError(
                f"{self._path}, line {line}: {shortened(listed)} may be {' or '.join(found[:3])}; "
                "write it with its folder and ending"
            )
        if found:
            self._folders[found[0].rpartition("/")[0]] += found[0] != name
            return found[0]
        # A folder that is named like an image is reported later.
        if not is_picture_name(name):
            raise DataError(
                f"{self._path}, line {line}: {shortened(listed)} has no ending of a picture "
                f"({', '.join(sorted(SUFFIXES))}), and no picture below {self._path.parent} has that name"
            )
        return name

    def notes(self) -> list[str]:
        """Return notes about names that differ from those of the files."""
        notes = []
        if count := self._folders.total():
            folders = some([f"{folder or '.'}/" for folder in sorted(self._folders)])
            notes.append(f"{self._path.name}: {count:,} pictures are found by the ends of their names in {folders}")
        if self._turned:
            notes.append(f"{self._path.name}: \\ is read as / in {self._turned:,} names")
        return notes

    def _relative(self, line: int, listed: str) -> str:
        # pathlib takes seconds for a million rows.
        is_absolute = os.path.isabs(listed)  # noqa: PTH117
        relative = os.path.relpath(listed, self._path.parent) if is_absolute else os.path.normpath(listed)
        if self._confined and (is_absolute or relative.partition(os.sep)[0] == ".."):
            raise DataError(f"{self._path}, line {line}: {shortened(listed)} lies outside the archive")
        return relative.replace(os.sep, "/")

    def _is_there(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self._path.parent, name))

    def _candidates(self, name: str) -> list[str]:
        """Return the pictures below the folder whose paths end so, with or without their ending."""
        if self._below is None:
            self._below = _pictures_below(self._path.parent)
            if not self._below and not self._confined:
                self._below = _pictures_beside(self._path.parent)
        has_ending = is_picture_name(name)
        stem = name.rpartition("/")[2]
        stem = os.path.splitext(stem)[0] if has_ending else stem
        paths = ((each if has_ending else os.path.splitext(each)[0], each) for each in self._below.get(stem, ()))
        return [path for end, path in paths if end == name or end.endswith(f"/{name}")]


def _pictures_beside(folder: Path) -> dict[str, list[str]]:
    """Return the relative paths of the pictures in the folders beside one that hold pictures by their names."""
    folder = folder.absolute()
    kin = folder.name.rpartition("_")[0]
    found: dict[str, list[str]] = {}
    for other in sorted(each for each in folder.parent.iterdir() if each.is_dir() and each != folder):
        if other.name.lower() in _BESIDE or (kin and other.name.rpartition("_")[0] == kin):
            for stem, paths in _pictures_below(other).items():
                found.setdefault(stem, []).extend(f"../{other.name}/{path}" for path in paths)
    return found


def _pictures_below(folder: Path) -> dict[str, list[str]]:
    """Return the relative paths of the pictures below a folder, by their names without ending."""
    found: dict[str, list[str]] = {}
    for here, inner, files in os.walk(folder):
        prefix = os.path.relpath(here, folder).replace(os.sep, "/")
        prefix = "" if prefix == "." else f"{prefix}/"
        inner[:] = sorted(each for each in inner if not each.startswith(".")) if prefix.count("/") < _DEEPEST else []
        for file in files:
            if is_picture_name(file) and not file.startswith("."):
                found.setdefault(os.path.splitext(file)[0], []).append(f"{prefix}{file}")
    return found
