"""Opens the MLflow store and finds runs in it by id, name or MLflow URI."""

import atexit
import logging
import os
import re
import sqlite3
import ssl
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import requests
from filelock import FileLock, Timeout

from tl_cli.errors import (
    Interrupted,
    RunNotFoundError,
    StorageError,
    TlError,
    TrackingError,
    first_line,
    suggest,
    without_secrets,
)
from tl_cli.models.bundle import read_card
from tl_cli.tracking import recorded
from tl_cli.tracking.liveness import HEARTBEAT_TAG
from tl_cli.tracking.parsing import drop_out_of_bounds, parse_time
from tl_cli.tracking.places import check_place, local_path, own_folder
from tl_cli.tracking.reasons import first_cause, reason
from tl_cli.tracking.recorded import MODELS, RUNS, Point, Run, RunData, RunInfo, describe_run, is_parent, short_id

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_ENVIRONMENT = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    # MLflow's own retries keep a refused server silent for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    _TIMEOUT: "10",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402
from mlflow.entities import LifecycleStage, LoggedModel, LoggedModelStatus, ViewType  # noqa: E402
from mlflow.entities import Run as MlflowRun  # noqa: E402
from mlflow.entities.model_registry import ModelVersion  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.artifact import http_artifact_repo  # noqa: E402
from mlflow.utils.credentials import get_default_host_creds  # noqa: E402
from mlflow.utils.logging_utils import disable_logging  # noqa: E402
from mlflow.utils.uri import append_to_uri_path  # noqa: E402

STATE_ROOT = Path("mlruns")
DEFAULT_EXPERIMENT = "tl"
WEIGHTS_PARAM = "weights_sha256"  # of a logged model
BATCH = 1000  # MLflow's limit of points per request
# Error codes for a name that the store does not have.
_DOES_NOT_EXIST = ("RESOURCE_DOES_NOT_EXIST",)
NOT_FOUND = (*_DOES_NOT_EXIST, "INVALID_PARAMETER_VALUE", "NOT_FOUND")
# Log lines would break a live screen; MLflow's errors are reported where they are caught.
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# MLflow logs an error for system metrics that cannot be recorded; the recorder has warned by then.
for _name in ("mlflow.store.db", "mlflow.system_metrics", "mlflow.tracking.fluent"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"mlflow\.")
# One per request if MLFLOW_TRACKING_INSECURE_TLS is set.
warnings.filterwarnings("ignore", message="Unverified HTTPS request")
disable_logging()  # of messages that MLflow prints, such as "Successfully registered model"
# At exit MLflow would mark a run that could not be ended as FINISHED, and a finished run cannot be resumed.
atexit.unregister(getattr(mlflow.tracking.fluent, "_safe_end_run", None) or (lambda: None))

_TRANSFER_TIMEOUT_S = 600
T = TypeVar("T")


def _with_transfer_timeout(request: Callable[..., Any]) -> Callable[..., Any]:
    """Return MLflow's request function with a timeout for files, unless the user has set one for all requests.

    A server responds to an upload only after it has stored the file, which may take minutes.
    """

    def request_with_timeout(*arguments: object, **options: object) -> object:
        if os.environ.get(_TIMEOUT) == _ENVIRONMENT[_TIMEOUT]:
            options.setdefault("timeout", _TRANSFER_TIMEOUT_S)
        return request(*arguments, **options)

    return request_with_timeout


_repository: Any = http_artifact_repo
_repository.http_request = _with_transfer_timeout(_repository.http_request)


@dataclass(frozen=True, slots=True)
class Store:
    """An open store.

    Attributes:
        client: of the tracking store.
        uri: of the store, without credentials.
    """

    client: mlflow.MlflowClient
    uri: str

    @property
    def is_remote(self) -> bool:
        """Whether it is a server."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def database(self) -> Path | None:
        """The file of a local database; None for a server or another kind of database."""
        path = _database(str(self.client.tracking_uri))
        return path.absolute() if path is not None and path.is_file() else None

    def translated_errors(self) -> AbstractContextManager[None]:
        """Return a context manager that turns MLflow's errors into a TrackingError."""
        return _translated_errors(self.uri)

    def request(self, call: Callable[..., T], *arguments: str, missing: Collection[str] = NOT_FOUND) -> T | None:
        """Return what a function of MLflow's client returns; None if the store has nothing with that name.

        Args:
            missing: error codes for a name that the store does not have.

        Raises:
            TrackingError: the store cannot be used.
        """
        with self.translated_errors():
            try:
                return call(*arguments)
            except MlflowException as error:
                if error.error_code not in missing:
                    raise
        return None

    def experiment(self, name: str) -> str:
        """Return the id of an experiment; create it if there is none.

        Raises:
            TrackingError: it was deleted, its files are another project's, or the store cannot be used.
        """
        with self.translated_errors(), _store_lock(self.database):
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                return str(self.client.create_experiment(name))
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise TrackingError(
                f"the experiment {name!r} was deleted; restore it, or use --experiment with another name"
            )
        if self.database is not None:
            check_place(self.database, str(experiment.experiment_id))
        return str(experiment.experiment_id)

    def check_place(self, run: Run) -> None:
        """Check that a run's files do not belong to another project.

        Raises:
            TrackingError: the store was copied or moved.
        """
        if self.database is not None:
            check_place(self.database, run.info.experiment_id, run.info.run_id)

    def experiments(self) -> dict[str, str]:
        """Return the ids of the experiments that are not deleted, by their names."""
        with self.translated_errors():
            active = self.client.search_experiments(view_type=ViewType.ACTIVE_ONLY)
        return {str(experiment.name): str(experiment.experiment_id) for experiment in active}

    def runs(self, experiment: str | None = None, *, removed: bool = False, matching: str = "") -> list[Run]:
        """Return the runs of one experiment, or of all, latest start first.

        Args:
            removed: return removed runs, which MLflow can restore, instead of the others.
            matching: a filter in MLflow's search syntax.
        """
        ids = [experiment_id for name, experiment_id in self.experiments().items() if experiment in (None, name)]
        view = ViewType.DELETED_ONLY if removed else ViewType.ACTIVE_ONLY
        latest_first = ["attributes.start_time DESC"]
        runs: list[Run] = []
        token = None
        with self.translated_errors():
            while ids:
                page = self.client.search_runs(ids, matching, view, order_by=latest_first, page_token=token)
                runs += map(_as_run, page)
                token = page.token
                if not token:
                    break
        return runs

    def run(self, run_id: str) -> Run | None:
        """Return the run with this id, even if it is removed or its experiment is deleted; None if there is none."""
        run = self.request(self.client.get_run, run_id)
        return _as_run(run) if run is not None else None

    def require_run(self, run_id: str) -> Run:
        """Return the run with this id, as ``run`` does.

        Raises:
            RunNotFoundError: there is none.
        """
        if (run := self.run(run_id)) is None:
            raise RunNotFoundError(f"the store {self.uri} has no run {run_id}")
        return run

    def reload(self, runs: Iterable[Run]) -> list[Run]:
        """Return the current records of runs.

        Raises:
            RunNotFoundError: one has been removed.
        """
        reloaded = []
        for run in runs:
            current = self.run(run.info.run_id)
            if current is None or current.info.lifecycle_stage != run.info.lifecycle_stage:
                raise RunNotFoundError(f"the run {describe_run(run)} has been removed in the meantime")
            reloaded.append(current)
        return reloaded

    def find_removed(self, name: str) -> Run | None:
        """Return the removed run with that id, unique beginning of an id, or name, if there is one."""
        return recorded.find_removed(self.runs(removed=True), name)

    def find(self, name: str) -> Run:
        """Return the run with that id, unique beginning of an id, name, or MLflow URI.

        Raises:
            RunNotFoundError: none or several have that name; the message lists the candidates.
        """
        return self._find_by_model(name) if name.startswith(MODELS) else recorded.find_run(self.runs(), name, self.uri)

    def metric_history(self, run_id: str, key: str) -> list[Point]:
        """Return every recorded point of a metric."""
        points = self.client.get_metric_history(run_id, key)
        return [Point(point.key, point.value, point.timestamp, point.step) for point in points]

    def _find_by_model(self, uri: str) -> Run:
        model = self._logged_model(uri)
        run = self.run(str(model.source_run_id))
        if run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise RunNotFoundError(f"the run that recorded {uri} ({model.model_id}) has been removed from {self.uri}")
        return run

    def _logged_model(self, uri: str) -> LoggedModel:
        """Return the logged model of ``models:/ID``, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.

        Raises:
            RunNotFoundError: there is none.
        """
        path = uri.removeprefix(MODELS).strip("/")
        name, slash, version = path.rpartition("/")
        aliased, at, alias = path.rpartition("@")
        if slash:
            model_id: str | None = self._id_of_version(name, version)
        elif at:
            registered = self.request(self.client.get_model_version_by_alias, aliased, alias)
            model_id = _id_of_logged_model(registered) if registered is not None else None
        else:
            model_id = path
        model = self.request(self.client.get_logged_model, model_id) if model_id is not None else None
        if model is None:
            with self.translated_errors():
                known = [f"{MODELS}{model.name}/latest" for model in self.client.search_registered_models()]
            raise RunNotFoundError(f"{self.uri} has no model {uri}.{suggest(uri, known)}")
        return model

    def _id_of_version(self, name: str, version: str) -> str:
        with self.translated_errors():
            versions = registered_versions(self.client, name)
        matching = [v for v in versions if version.lower() in ("latest", str(v.version), str(v.current_stage).lower())]
        if not matching:
            raise RunNotFoundError(f"{self.uri} has no version {version} of the model {name}")
        return _id_of_logged_model(max(matching, key=lambda v: int(v.version)))

    def model_folder(self, run: Run, name: str = "", warn: Callable[[str], None] | None = None) -> Path:
        """Return the folder of a run's saved model, downloaded if the store is remote.

        Args:
            name: the name as typed; an MLflow URI may name one of several models.
            warn: called if the recorded model cannot be fetched and the copy in the run's state folder is used.

        Raises:
            RunNotFoundError: the run recorded no model.
            TrackingError: the recorded model cannot be fetched, and there is no copy on this machine.
        """
        if is_parent(run):
            raise RunNotFoundError(
                f"{describe_run(run)} is a comparison and has no model of its own; tl compare {short_id(run)} shows it"
            )
        models, problem = self._models(run, name), None
        for model in models:
            try:
                fetched = Path(self._download(artifact_uri=f"{MODELS}{model.model_id}"))
            except Exception as error:  # any artifact store, with its own client
                problem = problem or error
                continue
            for card in sorted(fetched.rglob("model.json")):
                return card.parent
        local = self.state_folder(run) / "best"
        has_copy = (local / "model.json").exists()
        if has_copy and name.startswith(MODELS):
            has_copy = read_card(local).weights_sha256 in {model.params.get(WEIGHTS_PARAM) for model in models}
        if problem is not None:
            message = f"the model of the run {describe_run(run)} cannot be fetched: {reason(problem)}"
            if not has_copy:
                raise TrackingError(message) from problem
            if warn is not None:
                warn(f"{message}; using the copy in {local}")
        if has_copy:
            return local
        raise RunNotFoundError(f"the run {describe_run(run)} has no model; it ended before an epoch")

    def _models(self, run: Run, name: str) -> list[LoggedModel]:
        """Return the requested logged models, latest first: a run that was resumed may have several.

        Raises:
            RunNotFoundError: an MLflow URI names none of them.
        """
        if name.startswith(MODELS):
            return [self._logged_model(name)]
        requested = (self.request(self.client.get_logged_model, model_id) for model_id in run.model_ids)
        models = [model for model in requested if model is not None]  # others were deleted
        _, path = recorded.run_and_model(name)
        if path and path not in {model.name for model in models}:
            known = [f"{RUNS}{run.info.run_id}/{model.name}" for model in models]
            raise RunNotFoundError(f"the run {describe_run(run)} has no model {path!r}.{suggest(name, known)}")
        ready = [model for model in models if model.status == LoggedModelStatus.READY and path in ("", model.name)]
        return sorted(ready, key=lambda model: int(model.creation_timestamp), reverse=True)

    def artifact(self, run: Run, path: str) -> Path | None:
        """Return an artifact of a run as a local file, or None if there is none."""
        with suppress(MlflowException, OSError, ImportError):
            return Path(self._download(run_id=run.info.run_id, artifact_path=path))
        return None

    def is_reachable(self) -> bool:
        """Whether the server responds; a store on this machine always does."""
        if self.is_remote:
            try:
                _check_server(str(mlflow.get_tracking_uri()))
            except TrackingError:
                return False
        return True

    def beat(self, run_id: str) -> None:
        """Record a run's heartbeat: that its process still runs.

        Raises:
            MlflowException: the store cannot be written.
        """
        self.client.set_tag(run_id, HEARTBEAT_TAG, f"{time.time():.0f}")

    def check_has_run(self, run_id: str) -> None:
        """Raise an error if the store does not have a run.

        This opens a new connection, since open ones still see a database file that was removed or replaced.
        """
        database = _database(self.uri)
        if database is None:
            self.client.get_run(run_id)
            return
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            if connection.execute("select 1 from runs where run_uuid = ?", (run_id,)).fetchone() is None:
                raise TrackingError("the database has been replaced by another")

    def add_run(self, run_id: str, experiment_id: str, name: str, started: int) -> None:
        """Create a run with a given id, which MLflow's own interface cannot.

        Args:
            started: milliseconds since 1970.

        Raises:
            TrackingError: this kind of store does not support it.
        """
        # Imported here: only this rare repair needs SQLAlchemy's models, which take time to import.
        from mlflow.store.tracking.dbmodels.models import SqlRun

        if not hasattr(self._backend, "ManagedSessionMaker"):
            raise TrackingError(
                f"{self.uri} has lost the run {run_id}, and a server cannot create a run with a given id"
            )
        location = self.client.get_experiment(experiment_id).artifact_location
        run = SqlRun(
            run_uuid=run_id,
            experiment_id=int(experiment_id),
            name=name,
            artifact_uri=append_to_uri_path(location, run_id, "artifacts"),
            status="RUNNING",
            lifecycle_stage=LifecycleStage.ACTIVE,
            start_time=started,
            source_type="UNKNOWN",
            **dict.fromkeys(("source_name", "entry_point_name", "source_version", "user_id"), ""),
        )
        with self.translated_errors(), self._backend.ManagedSessionMaker(read_only=False) as session:
            session.add(run)

    def delete_for_good(self, run: Run, model_ids: Iterable[str]) -> None:
        """Delete the records of a run and of its models, as ``mlflow gc`` does, and nothing else.

        Raises:
            TrackingError: this kind of store does not support it.
        """
        if not hasattr(self._backend, "_hard_delete_run") or not hasattr(self._backend, "_hard_delete_logged_model"):
            raise TrackingError(f"the tracking store {self.uri} cannot delete a run for good")
        # An interrupted earlier call may have deleted some of them.
        for model_id in model_ids:
            self.request(self._backend._hard_delete_logged_model, model_id, missing=_DOES_NOT_EXIST)
        self.request(self._backend._hard_delete_run, run.info.run_id, missing=_DOES_NOT_EXIST)

    @property
    def _backend(self) -> Any:
        """MLflow's store behind its client, for what the client cannot do."""
        return self.client._tracking_client.store

    def models_of(self, run: Run) -> list[str]:
        """Return the ids of the models that a run created, including deleted ones, but not those it only uses."""
        models = self._models_with_deleted(run.model_ids)
        return [str(model.model_id) for model in models if model.source_run_id == run.info.run_id]

    def artifact_folders(self, run: Run, model_ids: Iterable[str]) -> list[Path]:
        """Return the artifact folders of a run and its models that are on this machine."""
        models = self._models_with_deleted(model_ids)
        paths = map(local_path, (run.info.artifact_uri, *(str(model.artifact_location) for model in models)))
        return [path for path in paths if path is not None]

    def _models_with_deleted(self, model_ids: Iterable[str]) -> list[LoggedModel]:
        """Return logged models without those that were deleted for good."""
        models = []
        for model_id in model_ids:
            with suppress(MlflowException):
                models.append(self._backend.get_logged_model(model_id, allow_deleted=True))
        return models

    def _download(self, **source: str) -> str:
        """Return the path of an artifact, or of a copy that is deleted at exit if it is not on this machine."""
        folder = _new_temporary_folder() if self.is_remote else None
        return str(mlflow.artifacts.download_artifacts(**source, dst_path=folder))

    def state_folder(self, run: Run) -> Path:
        """Return the folder of the files on this machine that resuming a run needs."""
        return state_folder(run.info.experiment_id, run.info.run_id)

    def state_folders(self, run: Run) -> list[Path]:
        """Return a run's state folders on this machine: in the current folder, and beside its artifacts."""
        artifacts = local_path(run.info.artifact_uri)
        own = own_folder(artifacts, (run.info.run_id,)) if artifacts is not None else None
        folders = [self.state_folder(run), *([own / "state"] if own is not None else [])]
        return sorted({folder.resolve() for folder in folders if folder.is_dir()})


def _as_run(run: MlflowRun) -> Run:
    """Return a run as tl uses it, with times within bounds, and without tags and metrics that are out of bounds."""
    info, data = run.info, RunData(run.data.metrics, run.data.params, run.data.tags)
    drop_out_of_bounds(data.metrics, data.tags)
    uses = [
        (each.dataset.digest, each.dataset.profile, {tag.key: tag.value for tag in each.tags})
        for each in (run.inputs.dataset_inputs if run.inputs else [])
    ]
    outputs = run.outputs.model_outputs if run.outputs else []
    facts = {each.name: getattr(info, each.name) for each in fields(RunInfo)} | {
        "run_name": info.run_name or "",
        "start_time": parse_time(info.start_time),
        "end_time": parse_time(info.end_time) or None,
    }
    return Run(RunInfo(**facts), data, recorded.images_by_context(uses), tuple(output.model_id for output in outputs))


def registered_versions(client: mlflow.MlflowClient, name: str) -> list[ModelVersion]:
    """Return the versions of a model in the registry."""
    quoted = name.replace("'", "''")
    return list(client.search_model_versions(f"name='{quoted}'"))


def _id_of_logged_model(version: ModelVersion) -> str:
    """Return the id of the logged model behind a registered version.

    Raises:
        RunNotFoundError: the version was registered by an MLflow before version 3, without a logged model.
    """
    # In a local registry the field is empty.
    model_id = version.model_id or str(version.source).removeprefix(MODELS)
    if re.fullmatch(r"m-\w+", model_id):
        return model_id
    raise RunNotFoundError(f"{version.name} version {version.version} is not a logged model: {version.source}")


def state_folder(experiment_id: str, run_id: str) -> Path:
    """Return ``mlruns/<experiment>/<run>/state`` in the current folder, also for a remote store."""
    return STATE_ROOT / experiment_id / run_id / "state"


def ending(kind: type[BaseException] | None) -> str:
    """Return the status of a run whose block ended with this error: FINISHED (None), FAILED or KILLED."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, Interrupted | KeyboardInterrupt) else "FAILED"


def default_uri() -> str:
    """Return the store's URI by MLflow's own settings; ``./mlflow.db`` by default."""
    return str(mlflow.get_tracking_uri())


def open_store(tracking_uri: str | None) -> Store:
    """Return the store at ``tracking_uri``, or by MLflow's own settings; ``./mlflow.db`` by default.

    Raises:
        TrackingError: it cannot be reached or used.
        StorageError: the folder cannot be written.
    """
    if tracking_uri:
        mlflow.set_tracking_uri(tracking_uri)
    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    database = _database(uri)
    if database is not None and database.is_dir():
        # MLflow would retry for minutes.
        raise TrackingError(f"the tracking store {without_secrets(uri)} cannot be used: it is a folder")
    with _translated_errors(without_secrets(uri)), _store_lock(database, to_read=True):
        # The first use creates the database; without the lock, one of two processes that create it would crash.
        client = mlflow.MlflowClient()
        client.search_experiments(max_results=1)
    return Store(client, without_secrets(uri))


_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []


def _new_temporary_folder() -> str:
    """Return a new folder that is deleted at exit."""
    _TEMPORARY.append(tempfile.TemporaryDirectory(prefix="tl-"))
    return _TEMPORARY[-1].name


def _database(uri: str) -> Path | None:
    """Return the file of a local database."""
    scheme, _, path = uri.partition("?")[0].partition(":///")
    return Path(path) if scheme.split("+")[0] == "sqlite" and path and not path.startswith(":") else None


@contextmanager
def _store_lock(database: Path | None, *, to_read: bool = False) -> Iterator[None]:
    """Lock a store, so that one process at a time opens it; the lock is beside the database, maybe in another folder.

    Args:
        to_read: continue without the lock if it cannot be written and the store exists, since nothing is created then.

    Raises:
        TrackingError: another process holds the lock for too long.
        StorageError: the folder may not be written.
    """
    path = STATE_ROOT / ".store.lock"
    try:
        STATE_ROOT.mkdir(exist_ok=True)
        if database is not None and database.absolute().parent != Path.cwd():
            beside = database.parent / STATE_ROOT
            path = beside / path.name if beside.is_dir() else database.with_name(f".{database.name}.lock")
            # The lock may belong to another user.
            if not os.access(path if path.exists() else path.parent, os.W_OK):
                path = STATE_ROOT / ".store.lock"
        lock = FileLock(path, timeout=120)
        lock.acquire()
    except Timeout as error:
        raise TrackingError(f"another process has held {path} for two minutes") from error
    except OSError as error:
        if to_read and (database is None or database.is_file()):
            yield
            return
        raise StorageError(
            f"cannot write {STATE_ROOT.absolute()}: {error.strerror}; run tl in a folder that you can write"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _translated_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        message = reason(error)
        if "file store" in message.lower() or "filesystem" in message.lower():
            raise TrackingError(
                "./mlruns holds runs of MLflow's old file store, which it no longer opens by default; move that folder "
                "away, or use --tracking-uri sqlite:///mlflow.db to record beside it"
            ) from error
        raise TrackingError(f"the tracking store {uri} cannot be used: {message}") from error
    except TlError:
        raise
    except Exception as error:  # from folders, networks, databases, drivers, or invalid answers
        raise TrackingError(f"the tracking store {uri} cannot be used: {reason(error)}") from error


def _check_server(uri: str) -> None:
    """Check that a server responds, with the certificates in MLflow's environment variables.

    Raises:
        TrackingError: it does not respond; the message proposes a fix.
    """
    try:
        creds = get_default_host_creds(uri)
        health = requests.get(
            uri.rstrip("/") + "/health", timeout=5, verify=creds.verify, cert=creds.client_cert_path or None
        )
        # The server responds; MLflow reports problems with permissions.
        if health.ok or health.status_code in (401, 403, 404):
            return
        problem, cause = f"HTTP {health.status_code}", None
    except (OSError, ValueError, MlflowException) as error:
        cause = first_cause(error)
        problem = first_line(cause)
    advice = "start it, or omit --tracking-uri and MLFLOW_TRACKING_URI to record in ./mlflow.db"
    if isinstance(cause, ssl.SSLCertVerificationError):
        advice = (
            "set MLFLOW_TRACKING_SERVER_CERT_PATH to a PEM file with the certificate that signed the server's, or "
            "MLFLOW_TRACKING_INSECURE_TLS=true to accept any"
        )
    elif isinstance(cause, ssl.SSLError) and "CERTIFICATE_REQUIRED" in problem:
        advice = "set MLFLOW_TRACKING_CLIENT_CERT_PATH to a PEM file with your certificate and its key"
    raise TrackingError(f"the tracking server {without_secrets(uri)} does not answer ({problem}); {advice}")
