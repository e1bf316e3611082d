"""What lists show of a recorded run. No torch and no MLflow here.

A column of `tl runs` is a field of `RunFacts`, its value in `read_facts`, and its cells in ui/terminal/run_tables.py.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from tl_cli.evaluation.scores import EPOCH_KEY, Results
from tl_cli.tracking.liveness import HOST_TAG
from tl_cli.tracking.parsing import parse_count
from tl_cli.tracking.recorded import CHILD_TAG, Run, dataset_digest, is_parent, last_seen, process_state
from tl_cli.training.config import phase_ends

Status = Literal["running", "finished", "failed", "killed", "dead", "silent", "scheduled"]
Kind = Literal["training", "comparison", "other"]

_STATUS: Mapping[str, Status] = {
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "killed",
    "SCHEDULED": "scheduled",
}
_MAX_EPOCHS = 100_000  # of a run whose phases are computed


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a list shows of one run.

    Attributes:
        status: ``dead``: recorded as running by a process of this machine that has ended; ``silent``: recorded as
            running on another machine, without a heartbeat for minutes.
        kind: a training run of tl, a comparison that groups several, or a run of another program.
        parent_id: of the comparison that contains it.
        started: seconds since 1970.
        seconds: from its start to its end, or to its last heartbeat.
        last_seen: seconds since 1970.
        epochs: number of complete epochs.
        epochs_wanted: number of requested epochs.
        phase_ends: last epoch of each phase, in order; empty where it is not recorded.
        val_accuracy: a fraction, of the best epoch.
        val_digest: of the validation images; accuracies can be compared where it is equal. Earlier versions recorded
            another digest for equal files.
        is_best: whether it has the highest validation accuracy of all listed runs with this ``val_digest``.
        curve: validation accuracy by epoch.
    """

    run_id: str
    name: str
    experiment: str
    status: Status
    kind: Kind
    parent_id: str | None
    started: float
    seconds: float
    last_seen: float
    host: str | None
    model: str | None
    data: str | None
    epochs: int | None
    epochs_wanted: int | None
    val_accuracy: float | None
    best_epoch: int | None
    test_accuracy: float | None
    val_digest: str | None
    is_best: bool = False
    phase_ends: tuple[int, ...] = ()
    curve: tuple[float, ...] = ()

    @property
    def short_id(self) -> str:
        """The first characters of the id: what people type."""
        return self.run_id[:8]

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Differences:
    """The differences between some runs.

    Attributes:
        runs: in the requested order.
        settings: values by setting, one per run, None where it was not recorded.
        made_with: versions, machines and digests of the images, by name.
        results: metrics by name.
        num_equal: number of settings that are equal in all runs.
    """

    runs: Sequence[RunFacts]
    settings: Mapping[str, Sequence[str | None]]
    made_with: Mapping[str, Sequence[str | None]]
    results: Mapping[str, Sequence[float | None]]
    num_equal: int


def read_facts(run: Run, experiment: str) -> RunFacts:
    """Return the facts of a run in the experiment of that name, without its curve."""
    tags, params, results = run.data.tags, run.data.params, Results.of(run.data.metrics)
    status = status_of(run)
    end = time.time() if status == "running" else last_seen(run)
    return RunFacts(
        run_id=run.info.run_id,
        name=run.info.run_name,
        experiment=experiment,
        status=status,
        kind=_kind(run),
        parent_id=tags.get(CHILD_TAG),
        started=run.info.start_time / 1000,
        seconds=max(0.0, end - run.info.start_time / 1000),
        last_seen=last_seen(run) if status != "running" else end,
        host=tags.get(HOST_TAG),
        model=params.get("model"),
        data=tags.get("tl.data") or params.get("data"),
        epochs=parse_count(run.data.metrics.get(EPOCH_KEY)),
        epochs_wanted=parse_count(params.get("epochs")),
        val_accuracy=results.val_accuracy,
        best_epoch=parse_count(results.best_epoch),
        test_accuracy=results.test_accuracy,
        val_digest=dataset_digest(run, "validation"),
        phase_ends=_phase_ends(params),
    )


def status_of(run: Run) -> Status:
    """Return the status of a run; if it is recorded as running, its process is checked."""
    if run.info.status in _STATUS:
        return _STATUS[run.info.status]
    state = process_state(run)
    return state if state in ("dead", "silent") else "running"


def _phase_ends(params: Mapping[str, str]) -> tuple[int, ...]:
    numbers = [parse_count(params.get(name)) for name in ("freeze_epochs", "epochs", "unfreeze_stages")]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers) or not 0 < known[2] <= known[1] <= _MAX_EPOCHS:
        return ()
    return phase_ends(*known)


def _kind(run: Run) -> Kind:
    if is_parent(run):
        return "comparison"
    return "training" if "tl.version" in run.data.tags else "other"
