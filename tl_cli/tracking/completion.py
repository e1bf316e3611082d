"""What people may call a run, for the shell's completion: without MLflow, which takes seconds to import."""

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
    """Return the names that begin so, each with a word of help; none where the store cannot be asked at once.

    Args:
        unfinished: only of runs that are not complete.
    """
    known = {} if unfinished else dict(_WORDS)
    with suppress(OSError, sqlite3.Error, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException):
        for run_id, name, status in _runs(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")):
            if unfinished and status == "FINISHED":
                continue
            # Others may name runs too, and shells evaluate what they complete.
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
    # Never made by looking for it, and never waited for.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.2)) as database:
        rows = database.execute(
            "select run_uuid, name, status from runs where lifecycle_stage = 'active' order by start_time desc limit ?",
            (_MOST,),
        )
        return [(str(run_id), str(name), str(status)) for run_id, name, status in rows]


def _tls() -> ssl.SSLContext:
    """Return how a server's certificate is checked, by MLflow's own variables."""
    trusted = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    context = ssl.create_default_context(cafile=trusted)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if mine := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(mine)
    return context


def _on_server(uri: str) -> list[tuple[str, str, str]]:
    def ask(path: str, body: dict[str, object]) -> dict[str, list[dict[str, dict[str, str]]]]:
        request = urllib.request.Request(
            f"{uri.rstrip('/')}/api/2.0/mlflow/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=_tls()) as response:
            answer: dict[str, list[dict[str, dict[str, str]]]] = json.load(response)
            return answer

    experiments = [each["experiment_id"] for each in ask("experiments/search", {"max_results": _MOST})["experiments"]]
    found = ask("runs/search", {"experiment_ids": experiments, "max_results": _MOST}).get("runs", [])
    return [(run["info"]["run_id"], run["info"]["run_name"], run["info"]["status"]) for run in found]
