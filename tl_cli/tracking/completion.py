"""Names and ids of runs for shell completion, without MLflow, which takes seconds to import."""

import http.client
import json
import os
import re
import sqlite3
import ssl
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

_MAX_ROWS = 200
_SAFE_NAME = re.compile(r"\w[\w .,@+=/-]*")
_TIMEOUT_S = 1.5
_KEYWORDS = (("latest", "the latest run"), ("best", "the highest validation accuracy on the same data"))


def complete_run(
    incomplete: str, tracking_uri: str | None = None, *, unfinished: bool = False
) -> list[tuple[str, str]]:
    """Return the names that begin with the text, each with a short help; none if the store does not respond.

    Args:
        unfinished: only runs that are not complete.
    """
    completions = {} if unfinished else dict(_KEYWORDS)
    with suppress(OSError, sqlite3.Error, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException):
        for run_id, name, status in _list_runs(
            tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        ):
            if unfinished and status == "FINISHED":
                continue
            # Other programs may name runs, and shells evaluate completed text.
            is_safe = _SAFE_NAME.fullmatch(name) is not None
            if is_safe:
                completions.setdefault(name, run_id[:8])
            if run_id[:8].isalnum():
                completions.setdefault(run_id[:8], name if is_safe else "a run")
    return [(name, about) for name, about in completions.items() if name.startswith(incomplete)]


def _list_runs(uri: str) -> list[tuple[str, str, str]]:
    """Return id, name and status of the runs that are not deleted, latest first."""
    if uri.startswith("sqlite:///"):
        return _runs_in_database(Path(uri.removeprefix("sqlite:///")))
    return _runs_on_server(uri) if urlsplit(uri).scheme in ("http", "https") else []


def _runs_in_database(path: Path) -> list[tuple[str, str, str]]:
    query = "select run_uuid, name, status from runs where lifecycle_stage = 'active' order by start_time desc limit ?"
    # Read only, so that no file is created; a short timeout, so that a locked database does not block the shell.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.2)) as database:
        return [(str(run_id), str(name), str(status)) for run_id, name, status in database.execute(query, (_MAX_ROWS,))]


def _tls_context() -> ssl.SSLContext:
    """Return the TLS settings of MLflow's environment variables."""
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if client_certificate := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(client_certificate)
    return context


def _runs_on_server(uri: str) -> list[tuple[str, str, str]]:
    def request(path: str, body: dict[str, object]) -> dict[str, list[dict[str, dict[str, str]]]]:
        post = urllib.request.Request(
            f"{uri.rstrip('/')}/api/2.0/mlflow/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(post, timeout=_TIMEOUT_S, context=_tls_context()) as response:
            page: dict[str, list[dict[str, dict[str, str]]]] = json.load(response)
            return page

    experiments = [
        experiment["experiment_id"]
        for experiment in request("experiments/search", {"max_results": _MAX_ROWS})["experiments"]
    ]
    runs = request("runs/search", {"experiment_ids": experiments, "max_results": _MAX_ROWS}).get("runs", [])
    return [(run["info"]["run_id"], run["info"]["run_name"], run["info"]["status"]) for run in runs]
