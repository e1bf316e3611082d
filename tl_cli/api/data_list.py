"""Lists the published data sets that ``--data`` takes by name. No torch."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from tl_cli.data.sources.catalogue import LEFT_OUT, SETS, BuiltIn, canonical
from tl_cli.errors import UsageError, suggest

_FIELDS = ("name", "title", "classes", "images", "download_mb", "mirrors")


@dataclass(frozen=True, slots=True)
class DataList:
    """The listed data sets."""

    sets: tuple[BuiltIn, ...]

    def to_list(self) -> list[dict[str, object]]:
        """Return plain JSON types, one object per data set."""
        return [{name: getattr(row, name) for name in _FIELDS} for row in self.sets]


def list_data(pattern: str | None = None) -> DataList:
    """Return the data sets with ``pattern`` in their name or title; None is all.

    Raises:
        UsageError: there is none; the message states why a torchvision set is missing, or how to check a folder.
    """
    name = canonical(pattern or "")
    if name in LEFT_OUT:
        raise UsageError(f"{pattern} is not available: {LEFT_OUT[name]}")
    if name in SETS:
        return DataList((SETS[name],))
    matching = [row for row in SETS.values() if name in row.name or (pattern or "").lower() in row.title.lower()]
    if matching or pattern is None:
        return DataList(tuple(matching))
    if Path(pattern).expanduser().exists():
        raise UsageError(f"{pattern} is no published set; to examine it: tl data check {shlex.quote(pattern)}")
    raise UsageError(f"no set has {pattern!r} in its name.{suggest(name, SETS)}")
