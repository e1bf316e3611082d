"""The first page of an experiment in ``mlflow ui``: a note with the best run, and a view sorted by validation accuracy.

The view is stored as MLflow's interface (3.17) stores a view that a person saves: mlflow_view.json and its columns. The
format is undocumented; versions of MLflow that do not support it show their usual table.
"""

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from mlflow.exceptions import MlflowException

from tl_cli.errors import TrackingError
from tl_cli.evaluation.scores import EPOCH_KEY, RESULTS, Results
from tl_cli.tracking.recorded import Run, dataset_digest, is_parent, short_id, val_accuracy
from tl_cli.tracking.store import Store

VIEW = "tl-best"
# The second tag is hidden by its prefix; it marks the note as written by tl.
_NOTE_TAG, _OURS_TAG = "mlflow.note.content", "mlflow.tl.note"
_BEST_TAG = "best"  # for the list of experiments, which shortens notes
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
# Without it, MLflow shows a page for language models while an experiment has no runs.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_METRICS = [score.key for score in sorted(RESULTS.values(), key=lambda score: score.rank) if score.in_line]
_PARAMS = ("model", "data", "epochs", "freeze_epochs", "input_size", "recipe", "lr", "unfreeze_lr", "seed")
_MAX_ROWS = 20
_COLUMN_WIDTH = 150  # pixels: wide enough for the names of metrics
_MAX_CHARACTERS = 4900  # MLflow allows 5000


def refresh_overview(store: Store, experiment_id: str) -> None:
    """Update an experiment's note and view; a note that a person wrote is kept.

    Raises:
        MlflowException: the store cannot be written.
        TrackingError: the store cannot be read.
    """
    experiment = store.client.get_experiment(experiment_id)
    tags = dict(experiment.tags)
    new = dict(_KIND) if "mlflow.experimentKind" not in tags else {}
    if _VIEW_TAG not in tags:
        new[_VIEW_TAG] = _view()
    groups = _group_by_images(store.runs(experiment.name))
    note, old = _note(groups), tags.get(_NOTE_TAG, "")
    if note != old and (not old or _digest(old) == tags.get(_OURS_TAG)):
        new |= {_NOTE_TAG: note, _OURS_TAG: _digest(note)}
    if groups:
        new[_BEST_TAG] = f"{short_id(groups[0][0])}, {_accuracies(groups[0][0])[0]}"
    for key, value in new.items():
        store.client.set_experiment_tag(experiment_id, key, value)


def refresh_overviews(store: Store, experiment_ids: Iterable[str]) -> None:
    """Update several experiments; errors are ignored, since the note and the view can be computed again."""
    with suppress(MlflowException, OSError, TrackingError):
        for experiment_id in experiment_ids:
            refresh_overview(store, experiment_id)


def view_url(uri: str, experiment_id: str) -> str:
    """Return the URL of the view on a server."""
    return (
        f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
    )


def _group_by_images(runs: Sequence[Run]) -> list[list[Run]]:
    """Return groups of runs with the same validation images, each with the best run first; latest images first.

    Args:
        runs: latest first.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if not is_parent(run) and val_accuracy(run) is not None:
            groups.setdefault(dataset_digest(run, "validation") or "", []).append(run)
    # If accuracies are equal, the earlier run comes first.
    return [
        sorted(group, key=lambda run: (-(val_accuracy(run) or 0.0), run.info.start_time)) for group in groups.values()
    ]


def _note(groups: Sequence[Sequence[Run]]) -> str:
    """Return the best run on each data set, then tables of the runs, best first, as Markdown."""
    if not groups:
        return ""
    # MLflow shows only the first line of a long note.
    parts = ["  \n".join(_sentence(ranked) for ranked in groups), *("\n".join(_table(ranked)) for ranked in groups)]
    note = "\n\n".join(parts)
    return note if len(note) <= _MAX_CHARACTERS else note[:_MAX_CHARACTERS].rpartition("\n")[0]


def _sentence(ranked: Sequence[Run]) -> str:
    best = ranked[0]
    validated, tested = _accuracies(best)
    # Earlier versions recorded other digests of the same files, so their runs form a separate group.
    rank = f"the best of {len(ranked)}" if len(ranked) > 1 else "the only run"
    return (
        f"{in_cell(best.info.run_name)} ({short_id(best)}) is {rank} with this validation digest on {_data(best)}: "
        f"{validated} on validation images{tested and f', {tested} on test images'}"
    )


def _table(ranked: Sequence[Run]) -> list[str]:
    lines = ["| run | id | model | data | validation | test | epochs | minutes |", "|---|---|---|---|---|---|---|---|"]
    for run in ranked[:_MAX_ROWS]:
        seconds = Results.of(run.data.metrics).seconds
        cells = (
            run.info.run_name,
            short_id(run),
            run.data.params.get("model", ""),
            _data(run),
            *_accuracies(run),
            f"{run.data.metrics.get(EPOCH_KEY, 0):.0f}",
            "" if seconds is None else f"{seconds / 60:.1f}",
        )
        lines.append("| " + " | ".join(map(in_cell, cells)) + " |")
    if len(ranked) > _MAX_ROWS:
        lines += ["", f"and {len(ranked) - _MAX_ROWS} more"]
    return lines


def _data(run: Run) -> str:
    source = run.data.tags.get("tl.data") or run.data.params.get("data", "")
    return in_cell(source.rstrip("/").rpartition("/")[2])


def _accuracies(run: Run) -> list[str]:
    """Return the accuracy on validation and test images as text; "" if not recorded."""
    results = Results.of(run.data.metrics)
    values = {"val_accuracy": results.val_accuracy, "test_accuracy": results.test_accuracy}
    return ["" if value is None else RESULTS[name].text(value) for name, value in values.items()]


def in_cell(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return "".join(f"\\{letter}" if letter in "\\|*`[]<>#" else letter for letter in " ".join(text.split()))


def _view() -> str:
    columns = [
        "attributes.`Models`",
        *(f"metrics.`{key}`" for key in _METRICS),
        *(f"params.`{key}`" for key in _PARAMS),
        "attributes.`Dataset`",
    ]
    state = json.loads(Path(__file__).with_name("mlflow_view.json").read_text()) | {
        "orderByKey": f"metrics.`{_METRICS[0]}`",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: _COLUMN_WIDTH for column in columns if column.startswith("metrics")},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = round(time.time() * 1000)
    return json.dumps({"name": "Best first", "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
