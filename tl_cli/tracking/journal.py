"""What a run records, on this machine's disk: its points before they are sent, and what a server did not take.

Rows of JSON, one a line: seven values are a point of a curve, three a piece of work that is left (kind, name, value),
and two say how the run ended.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from mlflow.entities import Metric

from tl_cli.errors import StorageError
from tl_cli.fetch import replacing

JOURNAL = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, and when, in milliseconds since 1970."""

    status: str
    at: int


@dataclass(frozen=True, slots=True)
class Left:
    """A piece of work that the store did not take: a tag, a parameter, a file, or the model.

    Attributes:
        name: of the tag or parameter; path of the file or folder.
        value: of the tag or parameter; folder among the artifacts; what else the model's record needs, as JSON.
    """

    kind: Literal["tag", "param", "file", "model"]
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a journal holds."""

    points: list[Metric]
    left: list[Left]
    ending: Ending | None


class Journal:
    """The file as it is being written: one line a point, each written whole.

    It outlives a killed process; what a power cut may take is what came after the last ``sync``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            # A line that was cut short ends here, and spoils no other.
            if path.stat().st_size:
                os.write(self._file, b"\n")
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            os.close(self._file)

    def add(self, points: Iterable[Metric]) -> None:
        """Append points.

        Raises:
            StorageError: the disk is full.
        """
        self._write(
            [[p.key, p.value, p.timestamp, p.step, p.model_id, p.dataset_name, p.dataset_digest] for p in points]
        )

    def leave(self, work: Iterable[Left]) -> None:
        """Append work for ``tl runs sync``.

        Raises:
            StorageError: the disk is full.
        """
        self._write([[each.kind, each.name, each.value] for each in work])

    def end(self, ending: Ending) -> None:
        """Append how the run ended.

        Raises:
            StorageError: the disk is full.
        """
        self._write([[ending.status, ending.at]])
        self.sync()

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        with suppress(OSError):  # not every file system can
            os.fsync(self._file)

    def _write(self, rows: Sequence[Sequence[object]]) -> None:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error


def read(path: Path, run_id: str) -> Recorded:
    """Return what a journal holds; lines that were cut short are left out.

    Of a step that was taken twice, by a run that went on from an earlier checkpoint, the first point stands.
    """
    points: dict[tuple[object, ...], Metric] = {}
    left: list[Left] = []
    ending = None
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        lines = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, list):
            continue
        if len(row) == 7:
            key, value, timestamp, step, model_id, name, digest = row
            point = Metric(key, value, timestamp, step, model_id, name, digest, run_id)
            # A figure without a step is replaced by a later one, and both were sent.
            points.setdefault((key, step) if step else (key, step, timestamp), point)
            ending = None
        elif len(row) == 3:
            left.append(Left(*row))
        elif len(row) == 2:
            ending = Ending(str(row[0]), int(row[1]))
    return Recorded(list(points.values()), left, ending)


def forget_left(path: Path) -> None:
    """Take out the work that is done now.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    kept = [line for line in path.read_bytes().splitlines() if not _is_left(line)]
    with replacing(path) as file:
        file.write(b"".join(line + b"\n" for line in kept))


def _is_left(line: bytes) -> bool:
    with suppress(ValueError):
        row = json.loads(line)
        return isinstance(row, list) and len(row) == 3
    return True
