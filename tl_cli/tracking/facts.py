"""Facts about recorded runs for lists, as read from a store. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["running", "finished", "failed", "killed", "dead", "silent", "scheduled"]
Kind = Literal["training", "comparison", "other"]


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
        epochs: complete epochs, and requested epochs.
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
    epochs: tuple[int | None, int | None]
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
        data = asdict(self)
        done, total = data.pop("epochs")
        return {**data, "epochs": done, "epochs_wanted": total}


@dataclass(frozen=True, slots=True)
class Differences:
    """The differences between some runs.

    Attributes:
        runs: in the requested order.
        settings: values by setting, one per run, None where it was not recorded.
        made_with: versions, machines and digests of the images, by name.
        results: metrics by name.
        alike: number of settings that are equal in all runs.
    """

    runs: Sequence[RunFacts]
    settings: Mapping[str, Sequence[str | None]]
    made_with: Mapping[str, Sequence[str | None]]
    results: Mapping[str, Sequence[float | None]]
    alike: int
