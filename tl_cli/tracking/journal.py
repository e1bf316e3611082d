"""The records of a run on this machine's disk: points before they are sent, and items that a server did not accept.

One JSON array per line, followed by its CRC-32: seven values are a point of a curve, three are an item to send (kind,
name, value), and two are the end of the run.
"""

import json
import os
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from filelock import FileLock, Timeout
from mlflow.entities import Metric
from pydantic import Field, TypeAdapter

from tl_cli.errors import StorageError, TrackingError
from tl_cli.io.atomic import replacing

JOURNAL = "journal.jsonl"
# Everything that a run records except points, sent or not: a run that the store lost is recorded again from this file.
RECORD = "record.jsonl"
NAME_TAG, STARTED_TAG = "mlflow.runName", "mlflow.tl.started"  # the second in milliseconds since 1970
STORE_TAG, EXPERIMENT_TAG = "mlflow.tl.store", "mlflow.tl.experiment"
ItemKind = Literal["tag", "param", "file", "model", "data"]
_LOCK_TIMEOUT_S = 30.0
_CHECKSUM = 9  # bytes: a space and eight hexadecimal digits
_INTEGERS = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Row = (
    tuple[str, float, _INTEGERS, _INTEGERS, str | None, str | None, str | None]
    | tuple[ItemKind, str, str]
    | tuple[Literal["FINISHED", "FAILED", "KILLED"], _INTEGERS]
)
_ROW: TypeAdapter[Row] = TypeAdapter(Row)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, and when, in milliseconds since 1970."""

    status: str
    at: int


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a run's record: a tag, a parameter, a file, the model, or the data sets.

    Attributes:
        name: of the tag or parameter; path of the file, the model's folder, or the run's card with its data sets.
        value: of the tag or parameter; artifact folder of a file; `Naming` of a model, as JSON.
    """

    kind: ItemKind
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """The contents of a journal: points, items to send, and how the run ended."""

    points: list[Metric]
    items: list[Item]
    ending: Ending | None


@contextmanager
def hold_lock(path: Path, timeout_s: float = _LOCK_TIMEOUT_S) -> Iterator[None]:
    """Lock a journal, and thereby its run: one process at a time trains, sends or deletes it.

    A thread that holds the lock may acquire it again.

    Args:
        timeout_s: how long to wait for another process, in seconds.

    Raises:
        TrackingError: another process holds it.
        StorageError: the folder cannot be written.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock").resolve(), is_singleton=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise TrackingError(f"another process writes or sends {path}") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


class Journal:
    """Writes the file line by line.

    A killed process loses nothing; a power cut may lose the last lines of a run that has not ended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_cut = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            # Ends a line that an interrupted write left incomplete.
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

    def add_items(self, items: Iterable[Item]) -> None:
        """Append items for ``tl runs sync``.

        Raises:
            StorageError: the disk is full.
        """
        self._write([[item.kind, item.name, item.value] for item in items])

    def end(self, ending: Ending) -> None:
        """Append how the run ended.

        Raises:
            StorageError: the disk is full.
        """
        self._write([[ending.status, ending.at]])
        with suppress(OSError):  # not every file system supports it
            os.fsync(self._file)

    def _write(self, rows: Sequence[Sequence[object]]) -> None:
        data = b"".join(map(_format_row, rows))
        if data and self._is_cut:
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            # Part of the line may have been written, so the next one needs a line break.
            self._is_cut = True
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._is_cut = False


def _format_row(row: Sequence[object]) -> bytes:
    text = json.dumps(row).encode()
    return text + f" {zlib.crc32(text):08x}\n".encode()


def _parse_row(line: bytes) -> Row | None:
    """Return the row of a line; None if it is incomplete or damaged."""
    text, checksum = line[:-_CHECKSUM], line[-_CHECKSUM:]
    if line.endswith(b"]"):
        text, checksum = line, b""  # written by an earlier version, without checksum
    if checksum and checksum != f" {zlib.crc32(text):08x}".encode():
        return None
    try:
        row = json.loads(text)
        return _ROW.validate_python(tuple(row), strict=True) if isinstance(row, list) else None
    except (ValueError, RecursionError):  # pydantic's are ValueErrors
        return None


def read(path: Path, run_id: str) -> Recorded:
    """Return the contents of a journal without incomplete or damaged lines; a missing file is empty.

    A resumed run repeats steps after its checkpoint; the first point of each step is kept.
    """
    points: dict[tuple[object, ...], Metric] = {}
    items: list[Item] = []
    ending = None
    lines: list[bytes] = []
    with suppress(OSError):
        lines = path.read_bytes().split(b"\n")
    for line in lines:
        row = _parse_row(line)
        if row is None:
            continue
        if len(row) == 7:
            key, value, timestamp, step, model_id, name, digest = row
            point = Metric(key, value, timestamp, step, model_id, name, digest, run_id)
            # Numbers without a step are results: later ones replace earlier ones, and both were sent.
            points.setdefault((key, step) if step else (key, step, timestamp), point)
            ending = None
        elif len(row) == 3:
            items.append(Item(*row))
        else:
            ending = Ending(*row)
    return Recorded(list(points.values()), items, ending)


def remove_items(path: Path, unsent: Container[Item] = ()) -> None:
    """Remove the items that have been sent.

    Args:
        unsent: items that stay.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    rows = [(line, _parse_row(line)) for line in path.read_bytes().splitlines()]
    with replacing(path) as file:
        file.write(b"".join(line + b"\n" for line, row in rows if row and (len(row) != 3 or Item(*row) in unsent)))
