"""Where a store keeps the files of its runs: which folders are its own, and a project that was copied or moved.

MLflow records absolute paths: those in a copy of a project lead to the original, those in a moved one to where it was.
"""

import os
import shlex
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tl_cli.errors import TrackingError, first_line

_ARTIFACTS = "mlruns"  # MLflow's own name for the folder in which experiments have theirs
# What MLflow records: table, column of the id, column of the path. Each row of sqlite has a rowid.
_EXPERIMENT = ("experiments", "experiment_id", "artifact_location")
_RUN = ("runs", "run_uuid", "artifact_uri")
_MODEL = ("logged_models", "model_id", "artifact_location")
_VERSIONS = (("model_versions", "rowid", "storage_location"), ("model_versions", "rowid", "source"))
_DATABASE = "mlflow.db"  # the default
_WAIT_S = 60.0


class Record(NamedTuple):
    """A recorded path.

    Attributes:
        kind: table and columns of the record.
        id: of the experiment, run, model or row.
        uri: the path as it is recorded: a path or a file: URI.
    """

    kind: tuple[str, str, str]
    id: str
    uri: str
    path: Path


@dataclass(frozen=True, slots=True)
class Move:
    """A recorded path, and the one where its files are now."""

    record: Record
    new: Path

    @property
    def old(self) -> Path:
        """The recorded path."""
        return self.record.path

    @property
    def is_main(self) -> bool:
        """Whether it is an experiment's folder, which contains those of its runs and models."""
        return self.record.kind == _EXPERIMENT


@dataclass(frozen=True, slots=True)
class Moves:
    """Recorded paths that lead out of a store's folder.

    Attributes:
        moves: paths whose files are in the store's folder.
        strays: runs and models whose files are not, with the recorded paths: missing, or another store's.
    """

    moves: tuple[Move, ...] = ()
    strays: tuple[tuple[str, Path], ...] = ()

    def count(self, table: str) -> int:
        """Return how many records of one table lead elsewhere."""
        return sum(move.record.kind[0] == table for move in self.moves)


def local_path(uri: str) -> Path | None:
    """Return the path that a path or a file: URI names; None for places elsewhere."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path)) if parts.scheme else Path(uri)


def own_folder(path: Path, ids: Collection[str]) -> Path | None:
    """Return the folder around a path that is named by the id of a run or model, and so contains nothing else."""
    return next((folder for folder in (path, *path.parents) if folder.name in ids), None)


def is_within(database: Path | None, folder: Path) -> bool:
    """Whether a folder, links followed, is in that of the database, and in no other project's below it."""
    return database is not None and _belongs(folder.resolve(), database)


def _belongs(path: Path, database: Path) -> bool:
    """Whether the nearest database of that name above a path is this one."""
    above = (folder / database.name for folder in path.parents)
    owner = next((each for each in above if os.path.isfile(each)), None)  # noqa: PTH113 (no error without permission)
    return owner is not None and owner.samefile(database)


def _original(path: Path, database: Path) -> Path | None:
    """Return the database beside the ``mlruns`` that a path is in, if that is another one: a copy has its paths."""
    project = next((folder.parent for folder in (path, *path.parents) if folder.name == _ARTIFACTS), None)
    other = project / database.name if project is not None else None
    return other if other is not None and os.path.isfile(other) and not other.samefile(database) else None  # noqa: PTH113


def find_moves(database: Path, root: Path | None = None, experiment_id: str | None = None) -> Moves:
    """Return the recorded paths that lead elsewhere although their files are in the store's folder.

    A run or model is found again by its id: the folder must end as the recorded one does, from the id on.

    Args:
        root: where to look for them; None: the database's folder.
        experiment_id: look at this experiment alone.

    Raises:
        TrackingError: the database cannot be read.
    """
    below = (root or database.parent).resolve()
    records = _records(database, experiment_id)
    displaced = [each for each in records if not _is_settled(each.path, database, root)]
    moves: list[Move] = []
    strays: list[Record] = []
    for record in displaced:
        if record.kind in (_RUN, _MODEL):
            new = _counterpart(record.path, record.id, below)
            if new is None:
                strays.append(record)
            else:
                moves.append(Move(record, new))
    for record in displaced:
        if record.kind == _EXPERIMENT:
            new = _along(record.path, moves) or _usual(record.path, record.id, database, below)
            if new is not None and new != record.path:
                moves.append(Move(record, new))
    experiments = [move for move in moves if move.is_main]
    # Those without any files move with their experiment.
    moves += _moves_with([record for record in strays if not record.path.exists()], experiments)
    moved = {move.record for move in moves}
    moves += _moves_with([record for record in records if record.kind in _VERSIONS], moves)
    lost = [
        (record.id, record.path)
        for record in strays
        if record not in moved and (not record.path.exists() or _original(record.path, database) is not None)
    ]
    return Moves(tuple(moves), tuple(lost))


def _moves_with(records: Iterable[Record], others: Sequence[Move]) -> list[Move]:
    """Return moves of the records whose paths are within a path that has moved."""
    moves = []
    for record in records:
        around = next((move for move in others if record.path.is_relative_to(move.old)), None)
        if around is not None:
            moves.append(Move(record, around.new / record.path.relative_to(around.old)))
    return moves


def relocate(database: Path, moves: Moves) -> None:
    """Record the new paths; no file is touched.

    Raises:
        TrackingError: the database cannot be written.
    """
    with _opened(database) as connection:
        for move in moves.moves:
            table, key, column = move.record.kind
            # As it was written: MLflow takes both.
            new = move.new.as_uri() if urlsplit(move.record.uri).scheme else str(move.new)
            connection.execute(f"update {table} set {column} = ? where {key} = ?", (new, move.record.id))  # noqa: S608


def check_place(database: Path, experiment_id: str, run_id: str | None = None) -> None:
    """Refuse to write to the files of an experiment, or of a run in it, where those are another project's.

    Raises:
        TrackingError: the store was copied or moved, and its record leads to where it came from.
    """
    elsewhere = find_moves(database, experiment_id=experiment_id)
    for move in elsewhere.moves:
        if (move.record.kind, move.record.id) in {(_EXPERIMENT, experiment_id), (_RUN, run_id)}:
            raise TrackingError(
                f"the store {database} was copied or moved: it would write to {move.old}, outside its folder. "
                f"To record {move.new} instead: tl runs relocate{_flag(database)}"
            )
    path = dict(elsewhere.strays).get(run_id or "")
    owner = _original(path, database) if path is not None else None
    if run_id is not None and owner is not None:
        raise TrackingError(
            f"the files of run {run_id[:8]} are in {path}, which belongs to {owner}; copy them to "
            f"{database.parent} with their folders, then: tl runs relocate{_flag(database)}"
        )


def _flag(database: Path) -> str:
    is_here = database.parent.resolve() == Path.cwd() and database.name == _DATABASE
    return "" if is_here else f" --tracking-uri {shlex.quote(f'sqlite:///{database}')}"


def _is_settled(path: Path, database: Path, root: Path | None) -> bool:
    """Whether a path is as it should be: in the store's folder, as it is written or with links followed."""
    is_own = _belongs(path, database) or _belongs(path.resolve(), database)
    return is_own and (root is None or path.exists())


def _counterpart(path: Path, anchor: str, below: Path) -> Path | None:
    """Return the folder below another that ends as a path does, from the part before its id or earlier on."""
    parts = path.parts
    if anchor not in parts:
        return None
    end = parts.index(anchor)
    every = [below.joinpath(*parts[start:]) for start in range(1, end + 1)]
    candidates = [each for each in every if each != path]  # a copy may lie around its original
    new = next((each for each in candidates if each.is_dir()), None)
    depth = len(parts) - end - 1
    if new is None and depth and not path.exists():
        # The folder of the run is there, though it has no artifacts.
        new = next((each for each in candidates if each.parents[depth - 1].is_dir()), None)
    return new


def _along(path: Path, moves: Iterable[Move]) -> Path | None:
    """Return where an experiment's folder is, as a run or model in it has moved."""
    for move in moves:
        if move.old.is_relative_to(path):
            tail = move.old.relative_to(path).parts
            if move.new.parts[-len(tail) :] == tail:
                return move.new.parents[len(tail) - 1]
    return None


def _usual(path: Path, experiment_id: str, database: Path, below: Path) -> Path | None:
    """Return where MLflow would keep an experiment, if the recorded folder is the usual one of another project."""
    if path.parts[-2:] != (_ARTIFACTS, experiment_id):
        return None
    usual = below / _ARTIFACTS / experiment_id
    # A database that several projects share may keep its files in one of them.
    is_elsewhere = _original(path, database) is not None or not path.parent.exists()
    return usual if is_elsewhere or usual.is_dir() or Path.cwd() == database.parent.resolve() else None


def _records(database: Path, experiment_id: str | None) -> list[Record]:
    records = []
    with _opened(database) as connection:
        for kind in (_EXPERIMENT, _RUN, _MODEL, *_VERSIONS):
            table, key, column = kind
            query = f"select {key}, {column} from {table} where {column} is not null"  # noqa: S608 (this module's names)
            values: tuple[int, ...] = ()
            if experiment_id is not None and table != "model_versions":
                query, values = f"{query} and experiment_id = ?", (int(experiment_id),)
            for record_id, uri in connection.execute(query, values):
                path = local_path(uri)
                if uri and path is not None:
                    records.append(Record(kind, str(record_id), uri, path.absolute()))
    return records


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database in one transaction; never create one."""
    address = f"{database.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=_WAIT_S)) as connection, connection:
            yield connection
    except sqlite3.Error as error:
        raise TrackingError(f"the tracking store {database} cannot be used: {first_line(error)}") from error
