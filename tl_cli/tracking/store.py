"""Opens the MLflow store and finds runs in it by the names that people use."""

import atexit
import logging
import os
import re
import sqlite3
import ssl
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
from tl_cli.tracking.parsing import drop_out_of_bounds, moment
from tl_cli.tracking.places import check_place, local_path, own_folder
from tl_cli.tracking.reasons import reason, root
from tl_cli.tracking.recorded import MODELS, RUNS, find_removed, find_run, is_parent, named, run_and_model, short_id
from tl_cli.tracking.recorded import Run as RecordedRun

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
from mlflow.entities import (  # noqa: E402
    LifecycleStage,
    LoggedModel,
    LoggedModelStatus,
    Metric,
    Run,
    RunInfo,
    ViewType,
)
from mlflow.entities.model_registry import ModelVersion  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.artifact import http_artifact_repo  # noqa: E402
from mlflow.utils.credentials import get_default_host_creds  # noqa: E402
from mlflow.utils.logging_utils import disable_logging  # noqa: E402
from mlflow.utils.uri import append_to_uri_path  # noqa: E402

STATE_ROOT = Path("mlruns")
DEFAULT_EXPERIMENT = "tl"
WEIGHTS_PARAM = "weights_sha256"  # of a logged model
# What a store says of a name that it does not have.
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
# Log lines would break a live screen; MLflow's errors are reported where they are caught.
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# MLflow logs an error for system metrics that cannot be recorded; the recorder has warned by then.
for _name in ("mlflow.store.db", "mlflow.system_metrics", "mlflow.tracking.fluent"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"mlflow\.")
# One per request if MLFLOW_TRACKING_INSECURE_TLS is set.
warnings.filterwarnings("ignore", message="Unverified HTTPS request")
disable_logging()  # what it prints itself, such as "Successfully registered model"
# At exit MLflow would mark a run that could not be ended as FINISHED, and a finished run cannot be resumed.
atexit.unregister(getattr(mlflow.tracking.fluent, "_safe_end_run", None) or (lambda: None))

_TRANSFER_TIMEOUT_S = 600


def _patient(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Return MLflow's request function with a timeout for files, unless the user has set one for all requests.

    A server answers an upload when its own store has the file, which may take minutes.
    """

    def request(*arguments: object, **options: object) -> object:
        if os.environ.get(_TIMEOUT) == _ENVIRONMENT[_TIMEOUT]:
            options.setdefault("timeout", _TRANSFER_TIMEOUT_S)
        return ask(*arguments, **options)

    return request


_repository: Any = http_artifact_repo
_repository.http_request = _patient(_repository.http_request)


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
        found = _database(str(self.client.tracking_uri))
        return found.absolute() if found is not None and found.is_file() else None

    def experiment(self, name: str) -> str:
        """Return the id of an experiment; create it if there is none.

        Raises:
            TrackingError: it was deleted, its files are another project's, or the store cannot be used.
        """
        with _reported(self.uri), _store_lock(self.database):
            found = self.client.get_experiment_by_name(name)
            if found is None:
                return str(self.client.create_experiment(name))
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"the experiment {name!r} was deleted; restore it, or use --experiment with another name"
            )
        if self.database is not None:
            check_place(self.database, str(found.experiment_id))
        return str(found.experiment_id)

    def check_place(self, run: Run) -> None:
        """Check that a run's files do not belong to another project.

        Raises:
            TrackingError: the store was copied or moved.
        """
        if self.database is not None:
            check_place(self.database, str(run.info.experiment_id), str(run.info.run_id))

    def experiments(self) -> dict[str, str]:
        """Return the ids of the experiments that are not deleted, by their names."""
        with _reported(self.uri):
            found = self.client.search_experiments(view_type=ViewType.ACTIVE_ONLY)
        return {str(each.name): str(each.experiment_id) for each in found}

    def reported(self) -> AbstractContextManager[None]:
        """Return a context manager that turns MLflow's errors into a TrackingError."""
        return _reported(self.uri)

    def runs(self, experiment: str | None = None, *, removed: bool = False, matching: str = "") -> list[Run]:
        """Return the runs of one experiment, or of all, latest start first.

        Args:
            removed: return removed runs, which MLflow can restore, instead of the others.
            matching: a filter in MLflow's search syntax.
        """
        view = ViewType.DELETED_ONLY if removed else ViewType.ACTIVE_ONLY
        with _reported(self.uri):
            experiments = self.client.search_experiments(view_type=ViewType.ACTIVE_ONLY)
            ids = [e.experiment_id for e in experiments if experiment in (None, e.name)]
            found: list[Run] = []
            token = None
            while ids:
                page = self.client.search_runs(
                    ids, matching, view, order_by=["attributes.start_time DESC"], page_token=token
                )
                found += map(parsed, page)
                token = page.token
                if not token:
                    break
        return found

    def again(self, runs: Iterable[RecordedRun]) -> list[Run]:
        """Return runs as they are now.

        Raises:
            RunNotFoundError: one has been removed.
        """
        found = []
        for run in runs:
            with _reported(self.uri):
                try:
                    now = parsed(self.client.get_run(run.info.run_id))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
                    now = None
            if now is None or now.info.lifecycle_stage != run.info.lifecycle_stage:
                raise RunNotFoundError(f"the run {named(run)} has been removed in the meantime")
            found.append(now)
        return found

    def find_removed(self, name: str) -> Run | None:
        """Return the removed run of that id, unique beginning of an id, or name, if there is one."""
        return find_removed(self.runs(removed=True), name)

    def find(self, name: str) -> Run:
        """Return the run of that id, unique beginning of an id, name, or MLflow URI.

        Raises:
            RunNotFoundError: none or several have that name; the message lists what there is.
        """
        return self._run_of_model(name) if name.startswith(MODELS) else find_run(self.runs(), name, self.uri)

    def metric_history(self, run_id: str, key: str) -> list[Metric]:
        """Return every recorded point of a metric."""
        return list(self.client.get_metric_history(run_id, key))

    def _run_of_model(self, uri: str) -> Run:
        model_id = self._model_id(uri)
        with self.reported():
            run_id = str(self.client.get_logged_model(model_id).source_run_id)
            with suppress(MlflowException):
                run = parsed(self.client.get_run(run_id))
                if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
                    return run
        raise RunNotFoundError(f"the run that recorded {uri} ({model_id}) has been removed from {self.uri}")

    def _model_id(self, uri: str) -> str:
        """Return the id of the logged model of ``models:/ID``, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.

        Raises:
            RunNotFoundError: there is none.
        """
        path = uri.removeprefix(MODELS).strip("/")
        try:
            with self.reported():
                return self._version(path) or str(self.client.get_logged_model(path).model_id)
        except TrackingError as error:
            if getattr(error.__cause__, "error_code", None) not in NOT_THERE:
                raise
            known = [f"{MODELS}{model.name}/latest" for model in self.client.search_registered_models()]
            raise RunNotFoundError(f"{self.uri} has no model {uri}.{suggest(uri, known)}") from error

    def _version(self, path: str) -> str | None:
        """Return the id of the logged model behind a version in the registry; None if the path has no version."""
        name, slash, version = path.rpartition("/")
        if slash:
            quoted = name.replace("'", "''")
            versions = self.client.search_model_versions(f"name='{quoted}'")
            found = [v for v in versions if version.lower() in ("latest", str(v.version), str(v.current_stage).lower())]
            if not found:
                raise RunNotFoundError(f"{self.uri} has no version {version} of the model {name}")
            return _logged_model_of(max(found, key=lambda v: int(v.version)))
        name, at, alias = path.rpartition("@")
        return _logged_model_of(self.client.get_model_version_by_alias(name, alias)) if at else None

    def model_folder(self, run: Run, name: str = "", warn: Callable[[str], None] | None = None) -> Path:
        """Return the folder of a run's saved model, downloaded if the store is remote.

        Args:
            name: what the user typed: an MLflow URI may name one of several models.
            warn: called if the recorded model cannot be fetched and the copy in this folder is used instead.

        Raises:
            RunNotFoundError: the run recorded no model.
            TrackingError: the recorded model cannot be fetched, and there is no copy here.
        """
        if is_parent(run):
            raise RunNotFoundError(
                f"{named(run)} is a comparison and has no model of its own; tl compare {short_id(run)} shows it"
            )
        models, problem = self._models(run, name), None
        for model in models:
            try:
                fetched = Path(self._download(artifact_uri=f"{MODELS}{model.model_id}"))
            except Exception as error:  # of any artifact store and its client
                problem = problem or error
                continue
            for card in sorted(fetched.rglob("model.json")):
                return card.parent
        local = self.state_folder(run) / "best"
        is_here = (local / "model.json").exists()
        if is_here and name.startswith(MODELS):
            is_here = read_card(local).weights_sha256 in {model.params.get(WEIGHTS_PARAM) for model in models}
        if problem is not None:
            message = f"the model of the run {named(run)} cannot be fetched: {reason(problem)}"
            if not is_here:
                raise TrackingError(message) from problem
            if warn is not None:
                warn(f"{message}; using the copy in {local}")
        if is_here:
            return local
        raise RunNotFoundError(f"the run {named(run)} has no model; it ended before an epoch")

    def _models(self, run: Run, name: str) -> list[LoggedModel]:
        """Return the logged models that are meant, the latest first: a run that was resumed may have several.

        Raises:
            RunNotFoundError: an MLflow URI names none of them.
        """
        with self.reported():
            if name.startswith(MODELS):
                return [self.client.get_logged_model(self._model_id(name))]
            found: list[LoggedModel] = []
            for output in run.outputs.model_outputs if run.outputs else []:
                with suppress(MlflowException):  # it was deleted
                    found.append(self.client.get_logged_model(output.model_id))
        _, path = run_and_model(name)
        if path and path not in {model.name for model in found}:
            known = [f"{RUNS}{run.info.run_id}/{model.name}" for model in found]
            raise RunNotFoundError(f"the run {named(run)} has no model {path!r}.{suggest(name, known)}")
        ready = [model for model in found if model.status == LoggedModelStatus.READY and path in ("", model.name)]
        return sorted(ready, key=lambda model: int(model.creation_timestamp), reverse=True)

    def artifact(self, run: Run, path: str) -> Path | None:
        """Return an artifact of a run as a local file, or None where there is none."""
        with suppress(MlflowException, OSError, ImportError):
            return Path(self._download(run_id=run.info.run_id, artifact_path=path))
        return None

    def answers(self) -> bool:
        """Whether the server says that it is there; a store on this machine always is."""
        if not self.is_remote:
            return True
        try:
            _check_server(str(mlflow.get_tracking_uri()))
        except TrackingError:
            return False
        return True

    def has(self, run_id: str) -> bool:
        """Whether the store has a run, be it removed, or in an experiment that was deleted."""
        with self.reported():
            try:
                self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code not in NOT_THERE:
                    raise
                return False
        return True

    def check_has(self, run_id: str) -> None:
        """Raise an error if the store does not have a run.

        This opens a new connection: open ones still see a database file that was removed or replaced.
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
        # Here, as SQLAlchemy's models are needed by this rare repair alone, and take time to import.
        from mlflow.store.tracking.dbmodels.models import SqlRun

        backend = self.client._tracking_client.store
        if not hasattr(backend, "ManagedSessionMaker"):
            raise TrackingError(
                f"{self.uri} has lost the run {run_id}, and a server cannot create a run with a given id"
            )
        location = self.client.get_experiment(experiment_id).artifact_location
        with self.reported(), backend.ManagedSessionMaker(read_only=False) as session:
            session.add(
                SqlRun(
                    run_uuid=run_id,
                    experiment_id=int(experiment_id),
                    name=name,
                    artifact_uri=append_to_uri_path(location, run_id, "artifacts"),
                    status="RUNNING",
                    lifecycle_stage=LifecycleStage.ACTIVE,
                    start_time=started,
                    source_type="UNKNOWN",
                    source_name="",
                    entry_point_name="",
                    source_version="",
                    user_id="",
                )
            )

    def delete_for_good(self, run: Run, model_ids: Iterable[str]) -> None:
        """Delete the records of a run and of its models, as ``mlflow gc`` does, and nothing else.

        Raises:
            TrackingError: this kind of store does not support it.
        """
        backend = self.client._tracking_client.store
        if not hasattr(backend, "_hard_delete_run") or not hasattr(backend, "_hard_delete_logged_model"):
            raise TrackingError(f"the tracking store {self.uri} cannot delete a run for good")
        deletions = [partial(backend._hard_delete_logged_model, model_id) for model_id in model_ids]
        for delete in (*deletions, partial(backend._hard_delete_run, run.info.run_id)):
            try:
                delete()
            except MlflowException as error:  # deleted by an interrupted earlier call
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise

    def models_of(self, run: Run) -> list[str]:
        """Return the ids of the models that a run created, including deleted ones, but not those it only uses."""
        backend = self.client._tracking_client.store
        found = []
        for output in run.outputs.model_outputs if run.outputs else []:
            with suppress(MlflowException):  # deleted for good
                model = backend.get_logged_model(output.model_id, allow_deleted=True)
                if model.source_run_id == run.info.run_id:
                    found.append(str(model.model_id))
        return found

    def artifact_places(self, run: Run, model_ids: Iterable[str]) -> list[Path]:
        """Return the artifact folders of a run and its models that are on this machine."""
        uris = [str(run.info.artifact_uri)]
        backend = self.client._tracking_client.store
        for model_id in model_ids:
            with suppress(MlflowException):
                uris.append(str(backend.get_logged_model(model_id, allow_deleted=True).artifact_location))
        return [place for uri in uris if (place := local_path(uri)) is not None]

    def _download(self, **what: str) -> str:
        """Return the path of an artifact: its own if on this machine, else of a copy that is deleted at exit."""
        aside = _scratch() if self.is_remote else None
        return str(mlflow.artifacts.download_artifacts(**what, dst_path=aside))

    def state_folder(self, run: Run) -> Path:
        """Return the folder where this machine keeps what resuming a run needs."""
        return state_folder(run.info.experiment_id, run.info.run_id)

    def state_folders(self, run: Run) -> list[Path]:
        """Return a run's state folders on this machine: in the current folder, and beside its artifacts."""
        place = local_path(str(run.info.artifact_uri))
        own = own_folder(place, (run.info.run_id,)) if place is not None else None
        beside = [own / "state"] if own is not None else []
        return sorted({folder.resolve() for folder in (self.state_folder(run), *beside) if folder.is_dir()})


def parsed(run: Run) -> Run:
    """Return a run whose times, and those tags and metrics that have a meaning here, are within bounds or absent."""
    drop_out_of_bounds(run.data.metrics, run.data.tags)
    times = {"start_time": moment(run.info.start_time), "end_time": moment(run.info.end_time) or None}
    return Run(RunInfo(**{**dict(run.info), **times}), run.data, run.inputs, run.outputs)


def _logged_model_of(version: ModelVersion) -> str:
    """Return the id of the logged model that a registered version holds.

    Raises:
        RunNotFoundError: it has files of an MLflow before version 3.
    """
    # A local registry leaves the field empty.
    model_id = version.model_id or re.fullmatch(rf"{MODELS}(m-\w+)", str(version.source))
    if not model_id:
        raise RunNotFoundError(f"{version.name} version {version.version} is not a logged model: {version.source}")
    return model_id if isinstance(model_id, str) else model_id[1]


def state_folder(experiment_id: str, run_id: str) -> Path:
    """Return ``mlruns/<experiment>/<run>/state`` in the current folder, with a remote store too."""
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
    with _reported(without_secrets(uri)), _store_lock(database, to_read=True):
        # The first use creates the database; without the lock, one of two processes that create it would crash.
        client = mlflow.MlflowClient()
        client.search_experiments(max_results=1)
    return Store(client, without_secrets(uri))


_SCRATCH: list[tempfile.TemporaryDirectory[str]] = []


def _scratch() -> str:
    """Return a new folder that is deleted at exit."""
    _SCRATCH.append(tempfile.TemporaryDirectory(prefix="tl-"))
    return _SCRATCH[-1].name


def _database(uri: str) -> Path | None:
    """Return the file of a local database."""
    scheme, _, path = uri.partition("?")[0].partition(":///")
    return Path(path) if scheme.split("+")[0] == "sqlite" and path and not path.startswith(":") else None


@contextmanager
def _store_lock(database: Path | None, *, to_read: bool = False) -> Iterator[None]:
    """Let one process at a time open a store; the lock lies beside the database, which may be in another folder.

    Args:
        to_read: do without the lock if it cannot be written and the store exists, as nothing is created then.

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
def _reported(uri: str) -> Iterator[None]:
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
    """Check that a server answers, with the certificates in MLflow's environment variables.

    Raises:
        TrackingError: it does not answer.
    """
    try:
        creds = get_default_host_creds(uri)
        health = requests.get(
            uri.rstrip("/") + "/health", timeout=5, verify=creds.verify, cert=creds.client_cert_path or None
        )
        # It answers; MLflow reports problems with permissions.
        if health.ok or health.status_code in (401, 403, 404):
            return
        problem, cause = f"HTTP {health.status_code}", None
    except (OSError, ValueError, MlflowException) as error:
        cause = root(error)
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
