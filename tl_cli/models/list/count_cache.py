"""Keeps counted parameters and multiply-adds of architectures between commands. No torch."""

import json
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from tl_cli.errors import StorageError
from tl_cli.io.atomic import write_text
from tl_cli.io.download import cache_root

_SAVE_EVERY = 20
# By architecture, input size and library version: parameters and multiply-adds.
_FORMAT = TypeAdapter(dict[str, tuple[int, int]])


@dataclass(frozen=True, slots=True)
class Counts:
    """Size and cost of an architecture.

    Attributes:
        parameters: including the head, by default for ImageNet's 1,000 classes.
        multiply_adds: per image; papers call them FLOPs.
    """

    parameters: int
    multiply_adds: int


class CountCache:
    """Counts by architecture, input size and library version; written when the block is left.

    Args:
        path: of the file; None is the user's cache folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_root() / "measured" / "counts.json"
        self._known: dict[str, tuple[int, int]] = {}
        self._unsaved = 0

    def __enter__(self) -> Self:
        with suppress(OSError, ValueError):  # pydantic's errors are ValueErrors
            self._known = _FORMAT.validate_json(self._path.read_bytes())
        return self

    def __exit__(self, *exception: object) -> None:
        self._save()

    def count(self, name: str, library: str, input_size: int) -> Counts | None:
        """Return the counts, counted now if they are not in the cache; None: it cannot run on the meta device."""
        key = f"{name}@{input_size} {library} {version(library)}"
        if value := self._known.get(key):
            return Counts(*value)
        from tl_cli.models.list.counting import count  # imports torch, which cached counts do without

        counts = count(name, input_size)
        if counts is not None:
            self._known[key] = (counts.parameters, counts.multiply_adds)
            self._unsaved += 1
            if self._unsaved >= _SAVE_EVERY:
                self._save()
        return counts

    def _save(self) -> None:
        if self._unsaved:
            # A cache that cannot be written only costs time.
            with suppress(StorageError):
                write_text(self._path, json.dumps(self._known))
            self._unsaved = 0
