"""The curves of a run in memory, filled by its events or from a tracking store. No torch here."""

from dataclasses import dataclass, field

from tl_cli.choices import KeepEpoch
from tl_cli.evaluation.scores import EpochEnded
from tl_cli.training.events import Event, LossSampled


@dataclass(slots=True)
class History:
    """The curves of one run; an observer that collects them during the run."""

    name: str = ""
    """Name of the run."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss) of sampled batches."""
    epochs: list[EpochEnded] = field(default_factory=list)
    """In order."""
    test_accuracy: float | None = None
    """Fraction; of the best epoch's model. None where it was not tested."""
    test_loss: float | None = None
    clock: list[tuple[int, float]] = field(default_factory=list)
    """(step, seconds since the run began, without pauses); empty where no times were recorded."""
    others: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """(step, value) of other requested metrics, by name."""
    not_finite: dict[str, list[int]] = field(default_factory=dict)
    """Steps at which a metric was NaN or infinite, by name; no curve contains such points."""
    keep: KeepEpoch = "best"
    """Which epoch's model is kept."""

    def __call__(self, event: Event) -> None:
        """Add the event if it is a point of a curve."""
        if isinstance(event, LossSampled):
            self.losses.append((event.step, event.loss))
        elif isinstance(event, EpochEnded):
            self.epochs.append(event)

    def cut_after(self, step: int) -> None:
        """Drop the points after a step: a resumed run repeats them."""
        self.losses = [(at, loss) for at, loss in self.losses if at <= step]
        self.epochs = [epoch for epoch in self.epochs if epoch.step <= step]

    @property
    def best(self) -> EpochEnded | None:
        """The epoch whose model is kept: with the highest validation accuracy (then the lowest loss), or the last."""
        rated = [(validation, epoch) for epoch in self.epochs if (validation := epoch.validation) is not None]
        rated = rated[-1:] if self.keep == "last" else rated
        return max(rated, key=lambda pair: (pair[0][0], -pair[0][1]))[1] if rated else None

    @property
    def unfrozen_after(self) -> EpochEnded | None:
        """The last epoch with a frozen backbone, in a run that trains the backbone later."""
        frozen = [epoch for epoch in self.epochs if epoch.lr_backbone == 0]
        thawed = [epoch for epoch in self.epochs if epoch.lr_backbone]
        return frozen[-1] if frozen and thawed else None
