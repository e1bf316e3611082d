"""What a run must remember to go on: counters, optimizer, how far its epoch is; the best model beside it.

A checkpoint is one file under a name of its own, written aside and renamed; it begins with the SHA-256 of the rest.
The one before it stays, for the day on which the last one is torn or rotten.
"""

import hashlib
import io
import math
import pickle
import re
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tl_cli.contract import Calibration, ModelCard
from tl_cli.errors import UsageError, WeightsError, first_line
from tl_cli.io.download import replacing
from tl_cli.models import bundle
from tl_cli.shortage import pass_on
from tl_cli.training.ema import Average
from tl_cli.training.events import EpochEnded, Event, StepEnded

BEST_FOLDER = "best"
CONFIG_FILE = "config.toml"
CARD_FILE = "card.json"  # of the model that is trained, from before the first step
# To be raised with whatever changes the random numbers of a run too: orders, augmentation, mixing, dropout.
_FORMAT = 4
_PREFIX = re.compile(rb"tl checkpoint (\d{1,4})\n([0-9a-f]{64})\n")
_KEPT = 2


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
class Partial:
    """How far an epoch is: sums over its steps, kept on the device so that no step waits for them.

    Attributes:
        epoch: the one that goes on.
        steps: of it that are taken.
        images: in them.
        loss: sum of their losses over images, (), in nats.
        correct: images classified correctly, ().
        seconds: that the epoch took before it was interrupted.
    """

    epoch: int
    loss: Tensor
    correct: Tensor
    steps: int = 0
    images: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, epoch: int, device: torch.device) -> "Partial":
        """Return an epoch of which nothing is done."""
        return cls(epoch, torch.zeros((), device=device), torch.zeros((), device=device))


@dataclass(slots=True)
class TrainState:
    """Everything that training changes.

    Attributes:
        partial: the epoch that is under way; None between epochs.
        cached: first epochs of the phases that train on cached features; a run that goes on must do as it began.
        whole: no step is half taken.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    average: Average | None = None
    counters: Counters = field(default_factory=Counters)
    partial: Partial | None = None
    cached: tuple[int, ...] = ()
    whole: bool = True

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self.counters.step + (self.partial.steps if self.partial else 0)

    def to_bytes(self) -> bytes:
        """Return a checkpoint of plain types and tensors, after the SHA-256 of them."""
        buffer = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "plateau": self.plateau.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "counters": asdict(self.counters),
                "partial": asdict(self.partial) if self.partial else None,
                "cached": list(self.cached),
            },
            buffer,
        )
        payload = buffer.getvalue()
        return f"tl checkpoint {_FORMAT}\n{hashlib.sha256(payload).hexdigest()}\n".encode() + payload

    def from_bytes(self, data: bytes) -> None:
        """Take over a checkpoint.

        Raises:
            UsageError: it is damaged, or written by another version, for another model or with other cached features.
        """
        self._take(_verified(data))

    def _take(self, saved: dict[str, Any]) -> None:
        began = tuple(saved["cached"])
        if began != self.cached:
            raise UsageError(
                f"the phases that begin with epochs {_listed(began)} trained on cached features, now those of epochs "
                f"{_listed(self.cached)} would; memory or free disk have changed"
            )
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.plateau.load_state_dict(saved["plateau"])
            self.scaler.load_state_dict(saved["scaler"])
            if self.average is not None:
                self.average.load_state_dict(saved["average"])
            self.counters = Counters(**saved["counters"])
            device = next(self.model.parameters()).device
            partial = saved["partial"]
            self.partial = Partial(**_on(device, partial)) if partial else None
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"it is of another model: {first_line(error)}") from error

    def restore(self, folder: Path) -> list[str]:
        """Take over the newest checkpoint of a folder that is whole; without any the run begins anew.

        Returns:
            What is wrong with newer ones and with the best model, for people.

        Raises:
            UsageError: there are checkpoints, and none can be used.
        """
        problems: list[str] = []
        found = checkpoints(folder)
        for path in found:
            try:
                saved = _verified(path.read_bytes())
            except (OSError, UsageError) as error:
                pass_on(error)
                problems.append(f"{path.name} cannot be used: {first_line(error)}")
                continue
            try:
                self._take(saved)
            except UsageError as error:
                raise UsageError(f"cannot resume from {path}: {error}") from error
            return problems + self._without_best(folder / BEST_FOLDER)
        if found:
            raise UsageError(f"cannot resume from {folder}: {'; '.join(problems)}")
        return problems

    def _without_best(self, folder: Path) -> list[str]:
        """Forget the best epoch where its model is lost, and say so: what will be kept is the best of those to come."""
        if not self.counters.best_epoch:
            return []
        lost = f"the best model, of epoch {self.counters.best_epoch}, is not in {folder}"
        problems = [f"{lost}; the best model of the epochs that are left will be kept instead"]
        try:
            there = bundle.verified_card(folder).epoch
        except WeightsError as error:
            problems = [f"{first_line(error)}; the best model of the epochs that are left will be kept instead"]
        else:
            if there == self.counters.best_epoch:
                return []
            if there > self.counters.best_epoch:
                # Its epoch comes again, and nothing before it can be had any more.
                problems = []
        none = Counters()
        self.counters.best_epoch = none.best_epoch
        self.counters.best_val_accuracy = none.best_val_accuracy
        self.counters.best_val_loss = none.best_val_loss
        return problems


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


_NAME = re.compile(r"step-(\d+)\.ckpt")


def remove_checkpoints(folder: Path) -> None:
    """Free the disk of what only a resume would need, once a run is recorded as finished: it is never resumed."""
    for path in checkpoints(folder):
        with suppress(OSError):
            path.unlink()


def _check_digest(data: bytes) -> bytes:
    """Return what follows the digest of a checkpoint.

    Raises:
        UsageError: it is not what was written, or was written by a version with another format.
    """
    header = _PREFIX.match(data)
    if header is None:
        raise UsageError("it is truncated, or not a checkpoint")
    payload = data[header.end() :]
    if header[2] != hashlib.sha256(payload).hexdigest().encode():
        raise UsageError("it is damaged: its SHA-256 is not the one that it was written with")
    if int(header[1]) != _FORMAT:
        raise UsageError(
            f"it has format {int(header[1])}, but this tl reads format {_FORMAT} and draws other random numbers; "
            "resume with the version that began the run, or start a new run"
        )
    return payload


def _verified(data: bytes) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(io.BytesIO(_check_digest(data)), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UsageError(f"it cannot be read: {first_line(error)}") from error
    return saved


def _on(device: torch.device, values: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in values.items()}


def _is_sound(state: TrainState) -> bool:
    """Whether losses and weights are finite: from others nothing can go on."""
    loss = state.partial.loss if state.partial else torch.zeros(())
    values = [value for value in state.model.state_dict().values() if value.is_floating_point()]
    return math.isfinite(float(loss)) and all(bool(torch.isfinite(value).all()) for value in values)


def _listed(epochs: tuple[int, ...]) -> str:
    return ", ".join(map(str, epochs)) or "none"


@dataclass(frozen=True, slots=True)
class Every:
    """How often a checkpoint is written within epochs: after so many steps or seconds; 0 and 0: at their ends alone."""

    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Every":
        """Return what ``200`` (steps), ``5m``, ``30s`` or ``0`` ask for.

        Raises:
            UsageError: it is none of these.
        """
        found = re.fullmatch(r"(\d+)([sm]?)", text.strip())
        if found is None:
            raise UsageError(f"--checkpoint-every {text!r} is neither steps, such as 200, nor time, such as 5m or 30s")
        number = int(found[1])
        return cls(seconds=number * (60 if found[2] == "m" else 1)) if found[2] else cls(steps=number)


class Saver:
    """An observer that writes checkpoints, and the model whenever it is the best so far.

    Args:
        every: besides the ends of epochs.
        first: called before each checkpoint, to write down what it covers and nobody measures again.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainState,
        card: ModelCard,
        every: Every | None = None,
        first: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self._state = state
        self._card = card
        self._every = every or Every()
        self._first = first
        self._saved_at = time.monotonic()
        self._saved: tuple[int, bool] | None = None  # the place that the last checkpoint is of

    def __call__(self, event: Event) -> None:
        """Save at the end of an epoch, and after a step where it is time to.

        Raises:
            StorageError: the disk is full or may not be written; what was saved before is intact.
        """
        if isinstance(event, StepEnded):
            if self._is_time(event.step):
                self.save()
        elif isinstance(event, EpochEnded):
            if event.is_best:
                self._save_best(event)
            self._save()

    def begin(self) -> None:
        """Write down what is trained, before anything is.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        bundle.write_card(self.folder, self._card, CARD_FILE)

    def save(self) -> bool:
        """Write a checkpoint, unless this very step is saved, or half taken; return whether it is safe.

        Raises:
            StorageError: the disk is full or may not be written; what was saved before is intact.
        """
        return self._saved == self._place or (self._state.whole and self._save())

    def _save(self) -> bool:
        """Write a checkpoint unless the state is past all hope; return whether it is safe."""
        if not _is_sound(self._state):
            return False
        self._saved_at = time.monotonic()
        if self._saved == self._place:
            return True
        self._first()
        with replacing(self.folder / f"step-{self.step:08d}.ckpt") as file:
            file.write(self._state.to_bytes())
        self._saved = self._place
        for old in checkpoints(self.folder)[_KEPT:]:
            with suppress(OSError):
                old.unlink()
        return True

    @property
    def _place(self) -> tuple[int, bool]:
        """How far the run is: its step, and whether an epoch has ended there."""
        return self._state.step, self._state.partial is None

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self._state.step

    @property
    def best(self) -> ModelCard | None:
        """What the best model so far says of itself, once it is whole on the disk: in ``folder / BEST_FOLDER``."""
        with suppress(WeightsError):
            return bundle.verified_card(self.folder / BEST_FOLDER)
        return None

    def _is_time(self, step: int) -> bool:
        if self._every.steps:
            return step % self._every.steps == 0
        return bool(self._every.seconds) and time.monotonic() - self._saved_at >= self._every.seconds

    def _save_best(self, event: EpochEnded) -> None:
        facts = {
            "epoch": event.epoch,
            "val_accuracy": event.validation[0] if event.validation else None,
            "averaged": event.averaged,
            "calibration": event.calibration or Calibration(),
        }
        average = self._state.average
        with average.applied() if average is not None and event.averaged else nullcontext():
            bundle.save(self.folder / BEST_FOLDER, self._state.model, self._card.model_copy(update=facts))
