"""The data sets that ``--data`` accepts by name, read from ``catalogue.toml``. Fetches nothing and imports no torch."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tl_cli.contract import SplitName


@dataclass(frozen=True, slots=True)
class File:
    """A file as its publisher offers it.

    Attributes:
        md5: its hex digest, as torchvision publishes it.
        into: where it is unpacked, below the data folder; torchvision looks for it there.
        inner: a pattern of archives inside it; only these are unpacked, in its place.
    """

    url: str
    md5: str
    into: str = ""
    inner: str = ""

    @property
    def name(self) -> str:
        """The last part of the address."""
        return Path(urlsplit(self.url).path).name


@dataclass(frozen=True, slots=True)
class Reader:
    """How torchvision reads a set.

    Attributes:
        dataset: the name of its class in ``torchvision.datasets``.
        part_argument: the argument that selects a part: ``train`` (True or False) or ``split`` (a name); None where
            the set has one part.
        split_names: the names of the parts where they are not our own.
        reads_paths: the class takes a ``loader``, which returns paths instead of decoded images.
        options: further arguments.
    """

    dataset: str
    part_argument: Literal["train", "split"] | None = None
    split_names: Mapping[SplitName, str] = field(default_factory=dict)
    reads_paths: bool = False
    options: Mapping[str, str | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A set that ``--data`` accepts by name.

    Attributes:
        name: the name for ``--data``.
        title: the usual name.
        classes: number of classes.
        images: number of images in each part; a set with one part is split 80/10/10.
        download_mb: megabytes to fetch, rounded.
        mirrors: whether an image mirrored left to right is still one of its class; false for digits, letters, signs.
        reader: None for scikit-learn's digits.
        files: what is fetched.
        folder: where the unpacked files are, below the data folder; None where torchvision reads the files as fetched.
        names: the classes' names, where torchvision has none or others.
        transposed: its images are stored with rows and columns exchanged.
        pixels: side of its images, where all have one size.
    """

    name: str
    title: str
    classes: int
    images: Mapping[SplitName, int]
    download_mb: int
    mirrors: bool
    reader: Reader | None = None
    files: tuple[File, ...] = ()
    folder: str | None = None
    names: tuple[str, ...] | None = None
    transposed: bool = False
    pixels: int | None = None

    @property
    def stored_as(self) -> str:
        """The folder that the set is stored in, or the first of its files."""
        return self.folder or self.files[0].name


def canonical(name: str) -> str:
    """Return a name as the catalogue writes it: ``CIFAR-10`` and ``cifar_10`` are ``cifar10``."""
    return re.sub(r"[-_ ]", "", name).lower()


def _row(name: str, facts: Mapping[str, Any]) -> BuiltIn:
    rest = {key: value for key, value in facts.items() if key not in ("reader", "files", "names")}
    return BuiltIn(
        name,
        reader=Reader(**facts["reader"]) if "reader" in facts else None,
        files=tuple(File(**file) for file in facts.get("files", ())),
        names=tuple(facts["names"]) if "names" in facts else None,
        **rest,
    )


_FACTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SETS: Mapping[str, BuiltIn] = {name: _row(name, facts) for name, facts in _FACTS["sets"].items()}
# Why --data does not offer the others of torchvision's sets.
LEFT_OUT: Mapping[str, str] = {name: group["reason"] for group in _FACTS["left_out"] for name in group["names"]}
