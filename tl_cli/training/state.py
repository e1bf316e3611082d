"""What a run must remember to go on: counters, optimizer, best model; written after every epoch, read to resume."""

import io
import pickle
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from tl_cli.contract import ModelCard
from tl_cli.errors import UsageError, first_line
from tl_cli.fetch import replacing
from tl_cli.models import bundle
from tl_cli.training.ema import Average
from tl_cli.training.events import EpochEnded, Event

CHECKPOINT = "last.pt"
BEST_FOLDER = "best"
CONFIG_FILE = "config.toml"


@dataclass(slots=True)
class Counters:
    """How far a run is, and the best it has seen.

    Attributes:
        epoch: epochs that are complete.
        step: optimizer steps of those epochs.
        best_epoch: 0 before the first validation.
        best_val_accuracy: a fraction; of the weights or of their average, whichever were better.
        best_val_loss: in nats, of the best epoch.
        seconds: of training and validation so far.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_val_accuracy: float = -1.0
    best_val_loss: float = float("inf")
    seconds: float = 0.0

    def is_better(self, val_accuracy: float, val_loss: float) -> bool:
        """Whether an epoch beats the best: more correct, or as many at a lower loss."""
        return (val_accuracy, -val_loss) > (self.best_val_accuracy, -self.best_val_loss)


@dataclass(slots=True)
class TrainState:
    """Everything that training changes.

    Attributes:
        cached: first epochs of the phases that train on cached features; a run that goes on must do as it began.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    average: Average | None = None
    counters: Counters = field(default_factory=Counters)
    cached: tuple[int, ...] = ()

    def to_bytes(self) -> bytes:
        """Return a checkpoint of plain types and tensors."""
        buffer = io.BytesIO()
        torch.save(
            {
                "format": 1,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "plateau": self.plateau.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "counters": asdict(self.counters),
                "cached": list(self.cached),
            },
            buffer,
        )
        return buffer.getvalue()

    def restore(self, path: Path) -> None:
        """Take over a checkpoint.

        Raises:
            UsageError: it is missing, torn or of another model.
        """
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.plateau.load_state_dict(saved["plateau"])
            self.scaler.load_state_dict(saved["scaler"])
            if self.average is not None:
                self.average.load_state_dict(saved["average"])
            self.counters = Counters(**saved["counters"])
            began = tuple(saved["cached"])
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise UsageError(f"cannot resume from {path}: {first_line(error)}") from error
        if began != self.cached:
            raise UsageError(
                f"cannot resume from {path}: the phases that begin with epochs {_listed(began)} trained on cached "
                f"features, now those of epochs {_listed(self.cached)} would; memory or free disk have changed"
            )


def _listed(epochs: tuple[int, ...]) -> str:
    return ", ".join(map(str, epochs)) or "none"


class Saver:
    """An observer that writes the state after every epoch, and the model whenever it is the best so far.

    It is told first, so that what the others show and record is safe on the disk.
    """

    def __init__(self, folder: Path, state: TrainState, card: ModelCard) -> None:
        self.folder = folder
        self._state = state
        self._card = card

    def __call__(self, event: Event) -> None:
        """Save at the end of an epoch.

        Raises:
            StorageError: the disk is full or may not be written; what was saved before is intact.
        """
        if not isinstance(event, EpochEnded):
            return
        if event.is_best:
            facts = {"epoch": event.epoch, "val_accuracy": event.judged[0], "averaged": event.averaged}
            average = self._state.average
            with average.applied() if average is not None and event.averaged else nullcontext():
                bundle.save(self.folder / BEST_FOLDER, self._state.model, self._card.model_copy(update=facts))
        with replacing(self.folder / CHECKPOINT) as file:
            file.write(self._state.to_bytes())

    @property
    def best(self) -> Path | None:
        """The folder of the best model so far, or None before the first epoch's end."""
        folder = self.folder / BEST_FOLDER
        return folder if (folder / bundle.CARD_FILE).exists() else None
