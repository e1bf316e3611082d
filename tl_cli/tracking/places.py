"""Where a store keeps the files of its runs: which folders are its own, and a project that was copied or moved.

MLflow records absolute paths: in a copy of a project they lead to the original, in a moved project to its old folder.
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

_ARTIFACTS = "mlruns"  # MLflow's name for the folder that contains those of the experiments
# Paths that MLflow records: table, column of the id, column of the path. Every sqlite table has a column rowid.
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
        uri: the recorded text, a path or a file: URI.
    """

    kind: tuple[str, str, str]
    id: str
    uri: str
    path: Path


@dataclass(frozen=True, slots=True)
class Move:
    """A recorded path, and the current path of its files."""

    record: Record
    new: Path

    @property
    def old(self) -> Path:
        """The recorded path."""
        return self.record.path

    @property
    def is_experiment(self) -> bool:
        """Whether it is the folder of an experiment, which contains the folders of its runs and models."""
        return self.record.kind == _EXPERIMENT


@dataclass(frozen=True, slots=True)
class Moves:
    """Recorded paths that lead out of a store's folder.

    Attributes:
        moves: paths whose files are in the store's folder.
        strays: ids and recorded paths of runs and models whose files are missing or belong to another store.
    """

    moves: tuple[Move, ...] = ()
    strays: tuple[tuple[str, Path], ...] = ()

    def count(self, table: str) -> int:
        """Return how many records of one table lead out of the store's folder."""
        return sum(move.record.kind[0] == table for move in self.moves)


def local_path(uri: str) -> Path | None:
    """Return the path of a path or a file: URI; None for other URIs."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path)) if parts.scheme else Path(uri)


def own_folder(path: Path, ids: Collection[str]) -> Path | None:
    """Return the folder that has the id of a run or model as its name, and contains the path; None if there is none."""
    return next((folder for folder in (path, *path.parents) if folder.name in ids), None)


def is_within(database: Path | None, folder: Path) -> bool:
    """Whether a folder, links followed, is in the database's folder and not in another project inside it."""
    return database is not None and _belongs_to(folder.resolve(), database)


def _belongs_to(path: Path, database: Path) -> bool:
    """Whether this database is the nearest one with its name in the folders above a path."""
    candidates = (folder / database.name for folder in path.parents)
    owner = next((file for file in candidates if os.path.isfile(file)), None)  # noqa: PTH113 (no error without permission)
    return owner is not None and owner.samefile(database)


def _original_database(path: Path, database: Path) -> Path | None:
    """Return the other database beside the ``mlruns`` that contains a path: this one is a copy of it; else None."""
    project = next((folder.parent for folder in (path, *path.parents) if folder.name == _ARTIFACTS), None)
    other = project / database.name if project is not None else None
    return other if other is not None and os.path.isfile(other) and not other.samefile(database) else None  # noqa: PTH113


def find_moves(database: Path, root: Path | None = None, experiment_id: str | None = None) -> Moves:
    """Return the recorded paths that lead elsewhere although their files are in the store's folder.

    A run or model is found by its id: its folder must end like the recorded one, from the id on.

    Args:
        root: where to look for them; None: the database's folder.
        experiment_id: only this experiment.

    Raises:
        TrackingError: the database cannot be read.
    """
    below = (root or database.parent).resolve()
    records = _read_records(database, experiment_id)
    displaced = [record for record in records if not _is_in_store(record.path, database, root)]
    moves: list[Move] = []
    strays: list[Record] = []
    for record in displaced:
        if record.kind in (_RUN, _MODEL):
            new = _find_counterpart(record.path, record.id, below)
            if new is None:
                strays.append(record)
            else:
                moves.append(Move(record, new))
    for record in displaced:
        if record.kind == _EXPERIMENT:
            new = _infer_from_moves(record.path, moves) or _default_folder(record.path, record.id, database, below)
            if new is not None and new != record.path:
                moves.append(Move(record, new))
    experiments = [move for move in moves if move.is_experiment]
    # Runs and models without files move with their experiment.
    moves += _moves_with([record for record in strays if not record.path.exists()], experiments)
    moved = {move.record for move in moves}
    moves += _moves_with([record for record in records if record.kind in _VERSIONS], moves)
    lost = [
        (record.id, record.path)
        for record in strays
        if record not in moved and (not record.path.exists() or _original_database(record.path, database) is not None)
    ]
    return Moves(tuple(moves), tuple(lost))


def _moves_with(records: Iterable[Record], others: Sequence[Move]) -> list[Move]:
    """Return moves of the records whose paths are inside a path that has moved."""
    moves = []
    for record in records:
        outer = next((move for move in others if record.path.is_relative_to(move.old)), None)
        if outer is not None:
            moves.append(Move(record, outer.new / record.path.relative_to(outer.old)))
    return moves


def relocate(database: Path, moves: Moves) -> None:
    """Record the new paths; no file is touched.

    Raises:
        TrackingError: the database cannot be written.
    """
    with _open_database(database) as connection:
        for move in moves.moves:
            table, key, column = move.record.kind
            # A path or a URI, as it was recorded: MLflow accepts both.
            new = move.new.as_uri() if urlsplit(move.record.uri).scheme else str(move.new)
            connection.execute(f"update {table} set {column} = ? where {key} = ?", (new, move.record.id))  # noqa: S608


def check_place(database: Path, experiment_id: str, run_id: str | None = None) -> None:
    """Refuse to write to the files of an experiment, or of a run in it, if they belong to another project.

    Raises:
        TrackingError: the store was copied or moved, and its record leads to the original folder.
    """
    elsewhere = find_moves(database, experiment_id=experiment_id)
    for move in elsewhere.moves:
        if (move.record.kind, move.record.id) in {(_EXPERIMENT, experiment_id), (_RUN, run_id)}:
            raise TrackingError(
                f"the store {database} was copied or moved: it would write to {move.old}, outside its folder. "
                f"To record {move.new} instead: tl runs relocate{_uri_option(database)}"
            )
    path = dict(elsewhere.strays).get(run_id or "")
    owner = _original_database(path, database) if path is not None else None
    if run_id is not None and owner is not None:
        raise TrackingError(
            f"the files of run {run_id[:8]} are in {path}, which belongs to {owner}; copy them to "
            f"{database.parent} with their folders, then: tl runs relocate{_uri_option(database)}"
        )


def _uri_option(database: Path) -> str:
    is_here = database.parent.resolve() == Path.cwd() and database.name == _DATABASE
    return "" if is_here else f" --tracking-uri {shlex.quote(f'sqlite:///{database}')}"


def _is_in_store(path: Path, database: Path, root: Path | None) -> bool:
    """Whether a path is in the store's folder, with or without links followed; with a root it must exist, too."""
    is_own = _belongs_to(path, database) or _belongs_to(path.resolve(), database)
    return is_own and (root is None or path.exists())


def _find_counterpart(path: Path, anchor: str, below: Path) -> Path | None:
    """Return the folder in ``below`` that ends like a path, from the part before the id or earlier on."""
    parts = path.parts
    if anchor not in parts:
        return None
    end = parts.index(anchor)
    folders = [below.joinpath(*parts[start:]) for start in range(1, end + 1)]
    candidates = [folder for folder in folders if folder != path]  # a copy may contain its original
    new = next((folder for folder in candidates if folder.is_dir()), None)
    depth = len(parts) - end - 1
    if new is None and depth and not path.exists():
        # The folder of the run exists, but it has no artifacts.
        new = next((folder for folder in candidates if folder.parents[depth - 1].is_dir()), None)
    return new


def _infer_from_moves(path: Path, moves: Iterable[Move]) -> Path | None:
    """Return the new folder of an experiment by the move of a run or model in it."""
    for move in moves:
        if move.old.is_relative_to(path):
            tail = move.old.relative_to(path).parts
            if move.new.parts[-len(tail) :] == tail:
                return move.new.parents[len(tail) - 1]
    return None


def _default_folder(path: Path, experiment_id: str, database: Path, below: Path) -> Path | None:
    """Return MLflow's default folder of an experiment, if the recorded folder is the default one of another project."""
    if path.parts[-2:] != (_ARTIFACTS, experiment_id):
        return None
    default = below / _ARTIFACTS / experiment_id
    # A database that several projects share may keep its files in one of them.
    is_elsewhere = _original_database(path, database) is not None or not path.parent.exists()
    return default if is_elsewhere or default.is_dir() or Path.cwd() == database.parent.resolve() else None


def _read_records(database: Path, experiment_id: str | None) -> list[Record]:
    records = []
    with _open_database(database) as connection:
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
def _open_database(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database in one transaction; never create one."""
    address = f"{database.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=_WAIT_S)) as connection, connection:
            yield connection
    except sqlite3.Error as error:
        raise TrackingError(f"the tracking store {database} cannot be used: {first_line(error)}") from error
