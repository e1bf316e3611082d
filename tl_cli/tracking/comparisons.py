"""Comparisons in MLflow: the facts of each training, and the parent run of the trainings."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from tl_cli.evaluation.logits import SavedLogits, load_logits
from tl_cli.evaluation.ranking import Training
from tl_cli.evaluation.scores import Results
from tl_cli.tracking.evaluations import EVALUATIONS, TEST_LOGITS, set_note
from tl_cli.tracking.liveness import BEAT_EVERY_S, process_tags
from tl_cli.tracking.recorded import PARENT_TAG, Run, children_of, dataset_digest, short_id
from tl_cli.tracking.store import Store, ending
from tl_cli.training.history import History

CONTENDER_TAG = "tl.contender"


def saved_logits(store: Store, run: Run) -> SavedLogits | None:
    """Return the recorded test logits of a run; None where there are none.

    Raises:
        DataError: the file is not a file of logits.
    """
    path = store.artifact(run, f"{EVALUATIONS}/{TEST_LOGITS}") or store.state_folder(run) / TEST_LOGITS
    return load_logits(path) if path.exists() else None


def tested_on(run: Run) -> str | None:
    """Return the digest of the images that a run was tested on."""
    return dataset_digest(run, "testing")


def training_of(run: Run, history: History, logits: SavedLogits) -> Training:
    """Return what is recorded of a training, with its logits."""
    results = Results.of(run.data.metrics)
    speeds = [epoch.images_per_second for epoch in history.epochs if epoch.images_per_second and epoch.lr_backbone]
    return Training(
        name=f"{run.info.run_name} ({short_id(run)})",
        kept=logits,
        clean_train=results.clean_train_accuracy,
        train_seconds=results.seconds,
        images_per_second=median(speeds) if speeds else None,
    )


def trainings_of(store: Store, parent_id: str) -> dict[str, list[Run]]:
    """Return the complete trainings of a comparison by contender, in the order of their seeds."""
    trainings: dict[str, list[Run]] = {}
    for run in children_of(store.runs(), parent_id):
        if CONTENDER_TAG in run.data.tags and run.info.status == "FINISHED":
            trainings.setdefault(run.data.tags[CONTENDER_TAG], []).append(run)
    return trainings


class Parent:
    """The parent run of the trainings of a comparison; a context manager that ends the run.

    Args:
        prepared: the run to use; None creates one.
        beat_s: seconds between heartbeats.

    Attributes:
        run_id: id of the parent run.
    """

    def __init__(
        self,
        store: Store,
        experiment_id: str,
        name: str,
        command: str,
        prepared: Run | None = None,
        *,
        beat_s: float = BEAT_EVERY_S,
    ) -> None:
        self._store = store
        self._experiment_id = experiment_id
        self._name = name
        self._prepared = prepared
        self._beat_s = beat_s
        self._tags = {PARENT_TAG: "models", "tl.command": command, **process_tags()}
        self._ended = threading.Event()
        self.run_id = ""

    def __enter__(self) -> Self:
        with self._store.translated_errors():
            if self._prepared is None:
                created = self._store.client.create_run(self._experiment_id, run_name=self._name, tags=self._tags)
                self.run_id, self._started = created.info.run_id, created.info.start_time
            else:
                self.run_id, self._started = self._prepared.info.run_id, self._prepared.info.start_time
                self._store.client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in self._tags.items()])
        threading.Thread(target=self._beat, name="tl-heartbeat", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # A store that fails must not hide the error that ended the block.
        with self._store.translated_errors() if kind is None else suppress(Exception):
            # The clock may have been set back.
            now = max(round(1000 * time.time()), self._started)
            self._store.client.set_terminated(self.run_id, ending(kind), end_time=now)

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            with suppress(MlflowException, OSError):
                self._store.beat(self.run_id)

    def log(self, note: str, numbers: Mapping[str, float], files: Sequence[Path]) -> None:
        """Record the results of the comparison.

        Args:
            note: Markdown.
            numbers: metrics by name.
            files: to copy into the folder ``comparison`` of the run.

        Raises:
            TrackingError: the store cannot be used.
        """
        with self._store.translated_errors():
            set_note(self._store, self.run_id, note)
            for name, value in numbers.items():
                self._store.client.log_metric(self.run_id, name, value)
            for path in files:
                self._store.client.log_artifact(self.run_id, str(path), "comparison")
