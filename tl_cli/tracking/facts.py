"""What is known of recorded runs without opening them: what ``tl runs`` reads from a store and draws. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["running", "finished", "failed", "killed", "dead", "silent", "scheduled"]
Kind = Literal["training", "comparison", "other"]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run.

    Attributes:
        status: ``dead``: recorded as running by a process of this machine that is gone; ``silent``: by another machine,
            which has not been heard of for minutes.
        kind: a training of tl, a comparison that holds some together, or something that tl did not record.
        parent_id: of the comparison that it belongs to.
        started: seconds since 1970.
        seconds: from its beginning to its end, or until it was last heard of.
        last_seen: seconds since 1970.
        epochs: complete ones, and how many were asked for.
        phase_ends: last epoch of each phase, in order; empty where it is not recorded.
        val_accuracy: a fraction, of its best epoch.
        val_digest: of the validation images: accuracies on others cannot be compared with this one. Of the
            same files, runs of earlier versions have another digest.
        is_best: of all runs listed with it, the highest validation accuracy with the same ``val_digest``.
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


@dataclass(frozen=True, slots=True)
class Differences:
    """What tells some runs apart.

    Attributes:
        runs: in the order in which they were asked for.
        settings: values by setting, one a run, None where it was not recorded.
        made_with: the same of versions, machines and digests of the images.
        results: the same of figures.
        alike: how many settings are equal in all.
    """

    runs: Sequence[RunFacts]
    settings: Mapping[str, Sequence[str | None]]
    made_with: Mapping[str, Sequence[str | None]]
    results: Mapping[str, Sequence[float | None]]
    alike: int
