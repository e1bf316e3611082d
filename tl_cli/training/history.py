"""The curves of a run in memory: fed by its events as it goes on, or by what a tracking store kept. No torch here."""

from dataclasses import dataclass, field

from tl_cli.training.events import EpochEnded, Event, LossSampled, better


@dataclass(frozen=True, slots=True)
class EpochPoint:
    """One epoch's numbers; accuracies are fractions, losses in nats, None where nothing was recorded."""

    epoch: int
    step: int
    train_loss: float | None = None
    train_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    lr_head: float | None = None
    lr_backbone: float | None = None
    seconds: float | None = None
    ema_val_accuracy: float | None = None
    ema_val_loss: float | None = None
    images_per_second: float | None = None

    @property
    def judged(self) -> tuple[float, float] | None:
        """Accuracy and loss on validation of the better of the weights and their average; None: not recorded."""
        return better((self.val_accuracy, self.val_loss), (self.ema_val_accuracy, self.ema_val_loss))

    @property
    def averaged(self) -> bool:
        """Whether the averaged weights are the more accurate ones."""
        return self.judged is not None and self.judged[0] == self.ema_val_accuracy != self.val_accuracy


@dataclass(slots=True)
class History:
    """The curves of one run.

    Attributes:
        name: of the run.
        losses: (step, loss) of sampled batches.
        epochs: in order.
        test_accuracy: of the best epoch's model, where it was measured.
        test_loss: the same.
        clock: (step, seconds since the run began, less the time in which it was stopped), where it was recorded.
        others: (step, value) of other recorded metrics, by their names, where they were asked for.
        not_finite: steps at which a metric was NaN or infinite, by its name; such points are in no curve.
    """

    name: str = ""
    losses: list[tuple[int, float]] = field(default_factory=list)
    epochs: list[EpochPoint] = field(default_factory=list)
    test_accuracy: float | None = None
    test_loss: float | None = None
    clock: list[tuple[int, float]] = field(default_factory=list)
    others: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    not_finite: dict[str, list[int]] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        """Take up the event where it is a point of a curve."""
        if isinstance(event, LossSampled):
            self.losses.append((event.step, event.loss))
        elif isinstance(event, EpochEnded):
            self.epochs.append(point_of(event))

    def cut_after(self, step: int) -> None:
        """Forget what came after a step: a resumed run goes through it again."""
        self.losses = [(place, loss) for place, loss in self.losses if place <= step]
        self.epochs = [point for point in self.epochs if point.step <= step]

    @property
    def best(self) -> EpochPoint | None:
        """The epoch of the highest validation accuracy, at equal ones of the lowest loss."""
        rated = [(judged, point) for point in self.epochs if (judged := point.judged) is not None]
        return max(rated, key=lambda pair: (pair[0][0], -pair[0][1]))[1] if rated else None

    @property
    def unfrozen_after(self) -> EpochPoint | None:
        """The last epoch with a frozen backbone, where the backbone trains later."""
        frozen = [point for point in self.epochs if point.lr_backbone == 0]
        thawed = [point for point in self.epochs if point.lr_backbone]
        return frozen[-1] if frozen and thawed else None


def point_of(event: EpochEnded) -> EpochPoint:
    """Return the numbers of an epoch that has just ended."""
    return EpochPoint(
        event.epoch,
        event.step,
        event.train_loss,
        event.train_accuracy,
        event.val_loss,
        event.val_accuracy,
        event.lr_head,
        event.lr_backbone,
        event.seconds,
        event.ema_val_accuracy,
        event.ema_val_loss,
        event.images_per_second,
    )
