"""Finds the file of an image that a CSV names: with or without folder and ending, with either slash."""

import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from tl_cli.contract import SplitName
from tl_cli.data.decode import SUFFIXES
from tl_cli.data.sources.csv_columns import has_image_ending
from tl_cli.data.sources.folder import is_image_file
from tl_cli.data.sources.split_names import part_named
from tl_cli.errors import DataError, shortened, some

# How deep below the CSV's folder images are searched for.
_DEEPEST = 4
# Names of folders beside the CSV's in which images are searched for, as they are in one that differs in its last word
# only: ISIC has ISIC2018_Task3_Training_Input beside ISIC2018_Task3_Training_GroundTruth.
_BESIDE = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "input")


class Lookup:
    """Finds the images that a CSV lists.

    Args:
        path: of the CSV; names are relative to its folder.
        confined: refuse images outside that folder.
    """

    def __init__(self, path: Path, *, confined: bool = False) -> None:
        self._path = path
        self._confined = confined
        self._folders: Counter[str] = Counter()
        self._turned = 0

    def name(self, line: int, listed: str, part: SplitName | None = None) -> str:
        """Return an image's path relative to the CSV's folder, which identifies it.

        Args:
            listed: as the CSV has it.
            part: the part in the CSV; decides between images of one name in the folders of several parts.

        Raises:
            DataError: the name is empty, lies outside a confined folder, fits several files, or has no image ending and
                fits no image. A name with an ending need not exist.
        """
        where = f"{self._path}, line {line}: "
        if not listed:
            raise DataError(f"{where}the path is empty")
        name = self._relative(where, listed)
        # A backslash may be part of a name, but hardly ever is.
        if "\\" in name and not self._exists(name):
            name = self._relative(where, listed.replace("\\", "/"))
            self._turned += 1
        if has_image_ending(name) and self._exists(name):
            return name
        fitting = self._fitting(name)
        if len(fitting) > 1 and (part := part or part_named(self._path.stem)):
            of_part = [path for path in fitting if part in map(part_named, path.split("/")[:-1])]
            fitting = of_part if len(of_part) == 1 else fitting
        if len(fitting) > 1:
            files = " or ".join(fitting[:3])
            raise DataError(f"{where}{shortened(listed)} may be {files}; write it with its folder and ending")
        if fitting:
            self._folders[fitting[0].rpartition("/")[0]] += fitting[0] != name
            return fitting[0]
        # A folder that is named like an image is reported later.
        if not has_image_ending(name):
            raise DataError(
                f"{where}{shortened(listed)} has no ending of an image ({', '.join(sorted(SUFFIXES))}), and no "
                f"image below {self._path.parent} has that name"
            )
        return name

    def notes(self) -> list[str]:
        """Return notes about names that differ from those of the files."""
        notes = []
        if count := self._folders.total():
            folders = some([f"{folder or '.'}/" for folder in sorted(self._folders)])
            notes.append(f"{self._path.name}: {count:,} images are found by the ends of their names in {folders}")
        if self._turned:
            notes.append(f"{self._path.name}: \\ is read as / in {self._turned:,} names")
        return notes

    def _relative(self, where: str, listed: str) -> str:
        # pathlib takes seconds for a million rows.
        is_absolute = os.path.isabs(listed)  # noqa: PTH117
        relative = os.path.relpath(listed, self._path.parent) if is_absolute else os.path.normpath(listed)
        if self._confined and (is_absolute or relative.partition(os.sep)[0] == ".."):
            raise DataError(f"{where}{shortened(listed)} lies outside the archive")
        return relative.replace(os.sep, "/")

    def _exists(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self._path.parent, name))

    def _fitting(self, name: str) -> list[str]:
        """Return the images below the folder whose paths end with a name, with or without their own ending."""
        has_ending = has_image_ending(name)
        paths = self._by_stem.get(_stem(name) if has_ending else name.rpartition("/")[2], ())
        ends = ((path if has_ending else os.path.splitext(path)[0], path) for path in paths)
        return [path for end, path in ends if end == name or end.endswith(f"/{name}")]

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """The relative paths of the images below the folder, or else beside it, by their names without ending."""
        folder = self._path.parent.absolute()
        paths = list(_images_below(folder))
        if not paths and not self._confined:
            paths = [f"../{other.name}/{path}" for other in _beside(folder) for path in _images_below(other)]
        by_stem: dict[str, list[str]] = {}
        for path in paths:
            by_stem.setdefault(_stem(path), []).append(path)
        return by_stem


def _stem(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[0]


def _beside(folder: Path) -> list[Path]:
    """Return the folders beside one that hold images by their names."""
    kin = folder.name.rpartition("_")[0]
    others = sorted(other for other in folder.parent.iterdir() if other.is_dir() and other != folder)
    return [
        other for other in others if other.name.lower() in _BESIDE or (kin and other.name.rpartition("_")[0] == kin)
    ]


def _images_below(folder: Path) -> Iterator[str]:
    """Yield the relative paths of the images below a folder."""
    for here, inner, files in os.walk(folder):
        prefix = "" if here == str(folder) else f"{os.path.relpath(here, folder).replace(os.sep, '/')}/"
        inner[:] = sorted(name for name in inner if not name.startswith(".") and prefix.count("/") < _DEEPEST)
        yield from (f"{prefix}{file}" for file in files if is_image_file(file))
