"""What a run records, on this machine's disk: its points before they are sent, and what a server did not take.

Rows of JSON, one a line, each followed by its CRC-32: seven values are a point of a curve, three a piece of work that
is left (kind, name, value), and two say how the run ended.
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
# Everything that a run records beside its points, done or not: from it a run that its store has lost is recorded again.
RECORD = "record.jsonl"
NAME_TAG, STARTED_TAG = "mlflow.runName", "mlflow.tl.started"  # the second in milliseconds since 1970
STORE_TAG, EXPERIMENT_TAG = "mlflow.tl.store", "mlflow.tl.experiment"
Work = Literal["tag", "param", "file", "model", "data"]
_PATIENCE_S = 30.0
_CHECKSUM = 9  # bytes: a space and eight hexadecimal digits
_INTEGERS = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Row = (
    tuple[str, float, _INTEGERS, _INTEGERS, str | None, str | None, str | None]
    | tuple[Work, str, str]
    | tuple[Literal["FINISHED", "FAILED", "KILLED"], _INTEGERS]
)
_ROW: TypeAdapter[Row] = TypeAdapter(Row)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, and when, in milliseconds since 1970."""

    status: str
    at: int


@dataclass(frozen=True, slots=True)
class Left:
    """A piece of work that the store did not take: a tag, a parameter, a file, or the model.

    Attributes:
        name: of the tag or parameter; path of the file or folder; of the run's card, which says what its data are.
        value: of the tag or parameter; folder among the artifacts; what else the model's record needs, as JSON.
    """

    kind: Work
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a journal holds."""

    points: list[Metric]
    left: list[Left]
    ending: Ending | None


@contextmanager
def alone_with(path: Path, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Keep other processes from a journal, and thereby from its run: one at a time trains, sends or deletes it.

    A thread that holds the lock may take it again.

    Args:
        patience_s: how long to wait for another process, in seconds.

    Raises:
        TrackingError: another process holds it.
        StorageError: the folder may not be written.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock").resolve(), is_singleton=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience_s)
    except Timeout as error:
        raise TrackingError(f"another process writes or sends {path}") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


class Journal:
    """The file as it is being written: one line a point, each written whole.

    It outlives a killed process; what a power cut may take is what came after the last ``sync``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_cut = False
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
        data = b"".join(map(_line, rows))
        if data and self._is_cut:
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            # A part may be there; what comes next begins a line of its own.
            self._is_cut = True
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._is_cut = False


def _line(row: Sequence[object]) -> bytes:
    text = json.dumps(row).encode()
    return text + f" {zlib.crc32(text):08x}\n".encode()


def _row(line: bytes) -> Row | None:
    """Return what a line holds; None where it was cut short or is damaged."""
    text, checksum = line[:-_CHECKSUM], line[-_CHECKSUM:]
    if line.endswith(b"]"):
        text, checksum = line, b""  # of an earlier version, which wrote none
    if checksum and checksum != f" {zlib.crc32(text):08x}".encode():
        return None
    try:
        row = json.loads(text)
        return _ROW.validate_python(tuple(row), strict=True) if isinstance(row, list) else None
    except (ValueError, RecursionError):  # pydantic's are ValueErrors
        return None


def read(path: Path, run_id: str) -> Recorded:
    """Return what a journal holds; lines that were cut short or are damaged are left out.

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
        row = _row(line)
        if row is None:
            continue
        if len(row) == 7:
            key, value, timestamp, step, model_id, name, digest = row
            point = Metric(key, value, timestamp, step, model_id, name, digest, run_id)
            # A figure without a step is replaced by a later one, and both were sent.
            points.setdefault((key, step) if step else (key, step, timestamp), point)
            ending = None
        elif len(row) == 3:
            left.append(Left(*row))
        else:
            ending = Ending(*row)
    return Recorded(list(points.values()), left, ending)


def forget_left(path: Path, kept: Container[Left] = ()) -> None:
    """Take out the work that is done now.

    Args:
        kept: work that is still to be done.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    rows = [(line, _row(line)) for line in path.read_bytes().splitlines()]
    with replacing(path) as file:
        file.write(b"".join(line + b"\n" for line, row in rows if row and (len(row) != 3 or Left(*row) in kept)))
