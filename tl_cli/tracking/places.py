"""Where a store keeps the files of its runs: which folders are its own, and a project that was copied or moved.

MLflow records absolute paths: those in a copy of a project lead to the original, those in a moved one to where it was.
"""

import os
import shlex
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tl_cli.errors import TrackingError, first_line

_ARTIFACTS = "mlruns"  # MLflow's own name for the folder in which experiments have theirs
# What MLflow records: table, column of the id, column of the place. Each row of sqlite has a rowid.
_EXPERIMENT = ("experiments", "experiment_id", "artifact_location")
_RUN = ("runs", "run_uuid", "artifact_uri")
_MODEL = ("logged_models", "model_id", "artifact_location")
_VERSIONS = (("model_versions", "rowid", "storage_location"), ("model_versions", "rowid", "source"))
_DATABASE = "mlflow.db"  # the default
_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Move:
    """A recorded place, and the one where its files are now.

    Attributes:
        kind: table and columns of the record.
        id: of the experiment, run, model or row.
        uri: the recorded place as it is written there, a path or a file: URI.
    """

    kind: tuple[str, str, str]
    id: str
    uri: str
    old: Path
    new: Path

    @property
    def is_main(self) -> bool:
        """Whether it is an experiment's, in which those of its runs and models are."""
        return self.kind == _EXPERIMENT


@dataclass(frozen=True, slots=True)
class Moves:
    """What leads out of a store's folder.

    Attributes:
        moves: places whose files are in the store's folder.
        strays: runs and models whose files are not, and where they should be: missing, or another store's.
    """

    moves: tuple[Move, ...] = ()
    strays: tuple[tuple[str, Path], ...] = ()

    def count(self, table: str) -> int:
        """Return how many records of one table lead elsewhere."""
        return sum(move.kind[0] == table for move in self.moves)


def local_path(uri: str) -> Path | None:
    """Return the path that a path or a file: URI names; None for places elsewhere."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path)) if parts.scheme else Path(uri)


def own_folder(place: Path, ids: Collection[str]) -> Path | None:
    """Return the folder around a place that is named by the id of a run or model, and so holds nothing else."""
    return next((folder for folder in (place, *place.parents) if folder.name in ids), None)


def is_within(database: Path | None, folder: Path) -> bool:
    """Whether a folder, links followed, lies in that of the database, and in no other project's below it."""
    return database is not None and _belongs(folder.resolve(), database)


def _belongs(place: Path, database: Path) -> bool:
    owner = _owner(place, database)
    return owner is not None and owner.samefile(database)


def _owner(place: Path, database: Path) -> Path | None:
    """Return the nearest database of that name above a place: the store to which the place belongs."""
    above = (folder / database.name for folder in place.parents)
    return next((path for path in above if os.path.isfile(path)), None)  # noqa: PTH113 (no error where one may not look)


def _original(place: Path, database: Path) -> Path | None:
    """Return the database beside the ``mlruns`` that a place is in, where that is another one: a copy has its paths."""
    project = next((folder.parent for folder in (place, *place.parents) if folder.name == _ARTIFACTS), None)
    found = project / database.name if project is not None else None
    return found if found is not None and os.path.isfile(found) and not found.samefile(database) else None  # noqa: PTH113


def find_moves(database: Path, root: Path | None = None, experiment_id: str | None = None) -> Moves:
    """Return the recorded places that lead elsewhere although their files are in the store's folder.

    A run or model is found again by its id: the folder must end as the recorded one does, from the id on.

    Args:
        root: where to look for them; None: the database's folder.
        experiment_id: look at this experiment alone.

    Raises:
        TrackingError: the database cannot be read.
    """
    below = (root or database.parent).resolve()
    moves: list[Move] = []
    waiting: list[tuple[tuple[str, str, str], str, str, Path]] = []
    rows = _rows(database, experiment_id)
    for kind, row_id, uri, place in rows:
        if kind in (_RUN, _MODEL) and not _is_settled(place, database, root):
            new = _counterpart(place, row_id, below)
            if new is None:
                waiting.append((kind, row_id, uri, place))
            else:
                moves.append(Move(kind, row_id, uri, place, new))
    for kind, row_id, uri, place in rows:
        if kind == _EXPERIMENT and not _is_settled(place, database, root):
            new = _along(place, moves) or _usual(place, row_id, database, below)
            if new is not None and new != place:
                moves.append(Move(kind, row_id, uri, place, new))
    strays = []
    experiments = [move for move in moves if move.kind == _EXPERIMENT]
    for kind, row_id, uri, place in waiting:
        around = next((each for each in experiments if place.is_relative_to(each.old)), None)
        if around is not None and not place.exists():  # it has no files at all
            moves.append(Move(kind, row_id, uri, place, around.new / place.relative_to(around.old)))
        elif not place.exists() or _original(place, database) is not None:
            strays.append((row_id, place))
    for kind, row_id, uri, place in rows:
        around = next((each for each in moves if place.is_relative_to(each.old)), None)
        if kind in _VERSIONS and around is not None:
            moves.append(Move(kind, row_id, uri, place, around.new / place.relative_to(around.old)))
    return Moves(tuple(moves), tuple(strays))


def relocate(database: Path, moves: Moves) -> None:
    """Record the new places; no file is touched.

    Raises:
        TrackingError: the database cannot be written.
    """
    with _opened(database) as connection:
        for move in moves.moves:
            table, key, column = move.kind
            # As it was written: MLflow takes both.
            new = move.new.as_uri() if urlsplit(move.uri).scheme else str(move.new)
            connection.execute(f"update {table} set {column} = ? where {key} = ?", (new, move.id))  # noqa: S608


def check_place(database: Path, experiment_id: str, run_id: str | None = None) -> None:
    """Refuse to write to the files of an experiment, or of a run in it, where those are another project's.

    Raises:
        TrackingError: the store was copied or moved, and its record leads to where it came from.
    """
    found = find_moves(database, experiment_id=experiment_id)
    wanted = {(_EXPERIMENT, experiment_id), (_RUN, run_id)}
    for move in found.moves:
        if (move.kind, move.id) in wanted:
            raise TrackingError(
                f"the store {database} was copied or moved: it would write to {move.old}, outside its folder. "
                f"To record {move.new} instead: tl runs relocate{_flag(database)}"
            )
    for stray_id, place in found.strays:
        if stray_id == run_id and (owner := _original(place, database)) is not None:
            raise TrackingError(
                f"the files of run {run_id[:8]} are in {place}, which belongs to {owner}; copy them to "
                f"{database.parent} with their folders, then: tl runs relocate{_flag(database)}"
            )


def _flag(database: Path) -> str:
    is_here = database.parent.resolve() == Path.cwd() and database.name == _DATABASE
    return "" if is_here else f" --tracking-uri {shlex.quote(f'sqlite:///{database}')}"


def _is_settled(place: Path, database: Path, root: Path | None) -> bool:
    """Whether a place is as it should be: in the store's folder, as it is written or with links followed."""
    is_own = _belongs(place, database) or _belongs(place.resolve(), database)
    return is_own and (root is None or place.exists())


def _counterpart(place: Path, anchor: str, below: Path) -> Path | None:
    """Return the folder below another that ends as a place does, from the part before its id or earlier on."""
    parts = place.parts
    if anchor not in parts:
        return None
    end = parts.index(anchor)
    every = [below.joinpath(*parts[start:]) for start in range(1, end + 1)]
    candidates = [path for path in every if path != place]  # a copy may lie around its original
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None and not place.exists():
        # What belongs to it is there, though it has no artifacts.
        depth = len(parts) - end - 1
        found = next((path for path in candidates if path.parents[depth - 1].is_dir()), None) if depth else None
    return found


def _along(place: Path, moves: Iterable[Move]) -> Path | None:
    """Return where an experiment's folder is, as a run or model in it has moved."""
    for move in moves:
        if move.old.is_relative_to(place):
            tail = move.old.relative_to(place).parts
            if move.new.parts[-len(tail) :] == tail:
                return move.new.parents[len(tail) - 1]
    return None


def _usual(place: Path, experiment_id: str, database: Path, below: Path) -> Path | None:
    """Return where MLflow would keep an experiment, where the recorded folder is the usual one of another project."""
    if place.parts[-2:] != (_ARTIFACTS, experiment_id):
        return None
    usual = below / _ARTIFACTS / experiment_id
    # A database that several projects share may keep its files in one of them.
    is_elsewhere = _original(place, database) is not None or not place.parent.exists()
    return usual if is_elsewhere or usual.is_dir() or Path.cwd() == database.parent.resolve() else None


def _rows(database: Path, experiment_id: str | None) -> list[tuple[tuple[str, str, str], str, str, Path]]:
    found = []
    with _opened(database) as connection:
        for table, key, column in (_EXPERIMENT, _RUN, _MODEL, *_VERSIONS):
            query = f"select {key}, {column} from {table}"  # noqa: S608 (names of this module)
            values: tuple[int, ...] = ()
            if experiment_id is not None and table != "model_versions":
                query, values = f"{query} where experiment_id = ?", (int(experiment_id),)
            for row_id, uri in connection.execute(query, values):
                place = local_path(str(uri)) if uri else None
                if place is not None:
                    found.append(((table, key, column), str(row_id), str(uri), place.absolute()))
    return found


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database in one transaction, and never make one."""
    try:
        with (
            closing(
                sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=_WAIT_S)
            ) as connection,
            connection,
        ):
            yield connection
    except sqlite3.Error as error:
        raise TrackingError(f"the tracking store {database} cannot be used: {first_line(error)}") from error
