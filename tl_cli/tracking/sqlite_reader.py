"""Reads runs from a local sqlite store of MLflow without importing MLflow, which takes seconds. Writes nothing.

What this module cannot read (a server, another database, an unknown schema) is read through MLflow.
"""

import math
import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import pathname2url

from tl_cli.errors import TrackingError, first_line, without_secrets
from tl_cli.tracking import recorded
from tl_cli.tracking.parsing import drop_out_of_bounds, parse_time
from tl_cli.tracking.places import local_path
from tl_cli.tracking.recorded import MODELS, RUNS, Point, RecordedImages, Run, RunData, RunInfo, RunReader

# Heads of MLflow's migrations whose tables were compared with what MLflow's own client reads.
_SCHEMAS = frozenset({"dc11669786a5"})
_WAIT_S = 60.0
# As many ids per query as SQLAlchemy takes: the rows come in MLflow's order then.
_CHUNK = 500
_DEFAULT = "mlflow.db"
_METRICS = "select run_uuid, key, value, is_nan from latest_metrics where run_uuid in ({})"
_PARAMS = "select run_uuid, key, value from params where run_uuid in ({})"
_TAGS = "select run_uuid, key, value from tags where run_uuid in ({})"
# The complete models that a run logged, latest first; 2 is LoggedModelStatus.READY.
_MODELS = (
    "select artifact_location from logged_models join inputs on destination_id = model_id "
    "where source_type = 'RUN_OUTPUT' and source_id = ? and destination_type = 'MODEL_OUTPUT' "
    "and status = 2 and lifecycle_stage = 'active' order by creation_timestamp_ms desc"
)


@dataclass(frozen=True, slots=True)
class SqliteStore:
    """A local sqlite store; each method opens it and reads in one transaction.

    Attributes:
        database: its file.
        uri: for messages.
        tracking_uri: as the user gave it; None is MLflow's default.
    """

    database: Path
    uri: str
    tracking_uri: str | None
    is_remote: bool = False

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Raise what sqlite raises in this context as a TrackingError."""
        try:
            yield
        except sqlite3.Error as error:
            raise TrackingError(f"the tracking store {self.uri} cannot be used: {first_line(error)}") from error

    def experiments(self) -> dict[str, str]:
        """Return the ids of the experiments that are not deleted, by their names."""
        with self._opened() as connection:
            rows = connection.execute(
                "select name, experiment_id from experiments where lifecycle_stage = 'active' "
                "order by creation_time desc, experiment_id"
            )
            return {str(name): str(experiment_id) for name, experiment_id in rows}

    def runs(self, experiment: str | None = None, *, removed: bool = False) -> list[Run]:
        """Return the runs of one experiment, or of all, latest start first.

        Args:
            removed: those that are removed, which MLflow can restore, instead of the others.
        """
        with self._opened() as connection:
            infos = [
                RunInfo(
                    run_id,
                    name or "",
                    str(experiment_id),
                    status,
                    parse_time(start),
                    parse_time(end) or None,
                    stage,
                    uri,
                )
                for run_id, name, experiment_id, status, start, end, stage, uri in connection.execute(
                    "select run_uuid, runs.name, runs.experiment_id, status, start_time, end_time, "
                    "runs.lifecycle_stage, artifact_uri from runs join experiments using (experiment_id) "
                    "where experiments.lifecycle_stage = 'active' and runs.lifecycle_stage = ? "
                    "and (? is null or experiments.name = ?) order by start_time is null, start_time desc, run_uuid",
                    ("deleted" if removed else "active", experiment, experiment),
                )
            ]
            data = {info.run_id: RunData({}, {}, {}) for info in infos}
            for run_id, key, value, is_nan in _of_runs(connection, _METRICS, data):
                data[run_id].metrics[key] = math.nan if is_nan else value
            for run_id, key, value in _of_runs(connection, _PARAMS, data):
                data[run_id].params[key] = value
            for run_id, key, value in _of_runs(connection, _TAGS, data):
                data[run_id].tags[key] = value
            images = _images(connection, data)
        for recorded_data in data.values():
            drop_out_of_bounds(recorded_data.metrics, recorded_data.tags)
        return [Run(info, data[info.run_id], images.get(info.run_id, {})) for info in infos]

    def find(self, name: str) -> Run:
        """Return the run with that id, unique beginning of an id, name, or MLflow URI.

        Raises:
            RunNotFoundError: no run, or several, have that name.
        """
        if name.startswith(MODELS):
            return _open_with_mlflow(self.tracking_uri).find(name)
        return recorded.find_run(self.runs(), name, self.uri)

    def metric_history(self, run_id: str, key: str) -> list[Point]:
        """Return every recorded point of a metric."""
        with self._opened() as connection:
            rows = connection.execute(
                "select value, is_nan, timestamp, step from metrics where run_uuid = ? and key = ? "
                "order by timestamp, step, value",
                (run_id, key),
            )
            return [Point(key, math.nan if is_nan else value, time, step) for value, is_nan, time, step in rows]

    def model_folder(self, run: Run, name: str = "", warn: Callable[[str], None] | None = None) -> Path:
        """Return the folder of a run's saved model, as ``store.Store`` does, which handles the unusual cases."""
        if not (name.startswith(MODELS) or recorded.run_and_model(name)[1] or recorded.is_parent(run)):
            with self._opened() as connection:
                latest = connection.execute(_MODELS, (run.info.run_id,)).fetchone()
            folder = local_path(latest[0]) if latest is not None else None
            for card in sorted(folder.rglob("model.json")) if folder is not None else ():
                return card.parent
        store = _open_with_mlflow(self.tracking_uri)
        return store.model_folder(store.find(f"{RUNS}{run.info.run_id}"), name, warn)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self.translated_errors(), closing(_connect(self.database)) as connection:
            connection.execute("begin")  # one snapshot for all queries
            yield connection


def open_to_read(tracking_uri: str | None) -> RunReader:
    """Return the store at ``tracking_uri``, or MLflow's default, for reading: without MLflow if possible.

    Raises:
        TrackingError: it cannot be reached or used; the message proposes a fix.
    """
    path = _database(tracking_uri)
    if path is None or not _has_known_schema(path):
        return _open_with_mlflow(tracking_uri)
    given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    return SqliteStore(path, without_secrets(given) if given else f"sqlite:///{path}", tracking_uri)


def default_uri() -> str:
    """Return the store's URI by MLflow's own settings; ``./mlflow.db`` by default."""
    path = _database(None)
    from_environment = os.environ.get("MLFLOW_TRACKING_URI")
    if from_environment or path is not None:
        return from_environment or f"sqlite:///{path}"
    from tl_cli.tracking.store import default_uri as mlflows_uri  # imports MLflow, which this module avoids

    return mlflows_uri()


def _open_with_mlflow(tracking_uri: str | None) -> RunReader:
    from tl_cli.tracking.store import open_store  # imports MLflow, which this module avoids

    return open_store(tracking_uri)


def _database(tracking_uri: str | None) -> Path | None:
    """Return the sqlite file that MLflow would open, if that is certain without importing MLflow."""
    if os.environ.get("MLFLOW_ENABLE_WORKSPACES"):
        return None
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    # MLflow prefers runs of its old file store to ./mlflow.db.
    if not uri and any(Path("mlruns").glob("[0-9]*/meta.yaml")):
        return None
    scheme, separator, name = (uri or f"sqlite:///{_DEFAULT}").partition(":///")
    path = Path(name).absolute()
    # Libraries differ in how they unquote an address.
    is_simple = pathname2url(str(path)) == str(path) and not name.startswith(":")
    return path if scheme == "sqlite" and separator and name and is_simple else None


def _has_known_schema(path: Path) -> bool:
    """Whether this module can read the tables."""
    try:
        with closing(_connect(path)) as connection:
            versions = {version for (version,) in connection.execute("select version_num from alembic_version")}
    except sqlite3.Error:
        return False
    return len(versions) == 1 and versions <= _SCHEMAS


def _connect(path: Path) -> sqlite3.Connection:
    # Never creates the file.
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_WAIT_S, isolation_level=None)


def _of_runs(connection: sqlite3.Connection, query: str, run_ids: Iterable[str]) -> Iterator[Any]:
    ids = list(run_ids)
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        yield from connection.execute(query.format(", ".join("?" * len(chunk))), chunk)


def _images(connection: sqlite3.Connection, run_ids: Iterable[str]) -> dict[str, dict[str, RecordedImages]]:
    """Return the images of runs, by run and context."""
    uses: dict[tuple[str, str], tuple[str, str | None, dict[str, str]]] = {}
    query = (
        "select inputs.destination_id, dataset_uuid, digest, dataset_profile, input_tags.name, input_tags.value "
        "from inputs join datasets on inputs.source_id = dataset_uuid left join input_tags using (input_uuid) "
        "where inputs.destination_type = 'RUN' and inputs.destination_id in ({})"
    )
    for run_id, dataset_id, digest, profile, key, value in _of_runs(connection, query, run_ids):
        _, _, tags = uses.setdefault((run_id, dataset_id), (digest, profile, {}))
        tags[key] = value
    by_run: dict[str, list[tuple[str, str | None, dict[str, str]]]] = defaultdict(list)
    for (run_id, _), use in uses.items():
        by_run[run_id].append(use)
    return {run_id: recorded.images_by_context(of_run) for run_id, of_run in by_run.items()}
