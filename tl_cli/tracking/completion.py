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

_MOST = 200
_PLAIN = re.compile(r"\w[\w .,@+=/-]*")
_TIMEOUT_S = 1.5
_WORDS = (("latest", "the latest run"), ("best", "the highest validation accuracy on the same data"))


def complete_run(
    incomplete: str, tracking_uri: str | None = None, *, unfinished: bool = False
) -> list[tuple[str, str]]:
    """Return the names that begin with some letters, each with a word of help; none if the store does not respond.

    Args:
        unfinished: only runs that are not complete.
    """
    known = {} if unfinished else dict(_WORDS)
    with suppress(OSError, sqlite3.Error, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException):
        for run_id, name, status in _runs(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")):
            if unfinished and status == "FINISHED":
                continue
            # Other programs may name runs, and shells evaluate what they complete.
            is_plain = _PLAIN.fullmatch(name) is not None
            if is_plain:
                known.setdefault(name, run_id[:8])
            if run_id[:8].isalnum():
                known.setdefault(run_id[:8], name if is_plain else "a run")
    return [(name, about) for name, about in known.items() if name.startswith(incomplete)]


def _runs(uri: str) -> list[tuple[str, str, str]]:
    """Return id, name and status of the runs that are not deleted, latest first."""
    if uri.startswith("sqlite:///"):
        return _in_database(Path(uri.removeprefix("sqlite:///")))
    return _on_server(uri) if urlsplit(uri).scheme in ("http", "https") else []


def _in_database(path: Path) -> list[tuple[str, str, str]]:
    query = "select run_uuid, name, status from runs where lifecycle_stage = 'active' order by start_time desc limit ?"
    # Read only, so that no file is created, and a locked database is not waited for.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.2)) as database:
        return [(str(run_id), str(name), str(status)) for run_id, name, status in database.execute(query, (_MOST,))]


def _tls() -> ssl.SSLContext:
    """Return the TLS settings of MLflow's environment variables."""
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if own_certificate := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(own_certificate)
    return context


def _on_server(uri: str) -> list[tuple[str, str, str]]:
    def request(path: str, body: dict[str, object]) -> dict[str, list[dict[str, dict[str, str]]]]:
        post = urllib.request.Request(
            f"{uri.rstrip('/')}/api/2.0/mlflow/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(post, timeout=_TIMEOUT_S, context=_tls()) as response:
            page: dict[str, list[dict[str, dict[str, str]]]] = json.load(response)
            return page

    experiments = [
        each["experiment_id"] for each in request("experiments/search", {"max_results": _MOST})["experiments"]
    ]
    runs = request("runs/search", {"experiment_ids": experiments, "max_results": _MOST}).get("runs", [])
    return [(run["info"]["run_id"], run["info"]["run_name"], run["info"]["status"]) for run in runs]
