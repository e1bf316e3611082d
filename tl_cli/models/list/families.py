"""The family of every architecture: title, year and one line of history, from families.csv. No torch, no timm."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).with_name("families.csv")


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture's family.

    Attributes:
        title: its usual name (``ResNet``).
        year: of the first arXiv paper; where there is none (AlexNet, BAT, PP-HGNet, EfficientNet-Lite, ...) of the
            conference, post or weights. None where the table has no row for the family.
        line: its contribution, in one sentence of at most 100 characters.
    """

    title: str
    year: int | None
    line: str


def family_of(name: str, module: str) -> Family:
    """Return the family of an architecture; one without a row is titled by its module, without a year.

    Args:
        name: as the library lists it, without ``timm/`` and without a tag: ``resnet50``, ``tf_efficientnetv2_s``.
        module: the last part of the Python module that defines it, torchvision's or timm's: ``resnet``, ``byobnet``.
    """
    for home, pattern, family in rules():
        if home == module and fnmatchcase(name, pattern):
            return family
    # A newer timm has architectures that the table lacks; listing them must not fail.
    return Family(title=module, year=None, line="Not in this table yet.")


@cache
def rules() -> tuple[tuple[str, str, Family], ...]:
    """Return (module, pattern of names, family) in the order of the table. The first match counts."""
    return tuple(_read())


def _read() -> Iterator[tuple[str, str, Family]]:
    with _TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            family = Family(row["title"], int(row["year"]), row["line"])
            for each in row["patterns"].split():
                module, _, pattern = each.partition("/")
                yield module, pattern, family
