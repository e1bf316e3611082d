"""Checkpoints: everything that a run needs to resume, and the best model beside it.

A checkpoint is one file, written under another name and renamed; it begins with the SHA-256 of the rest. The previous
one is kept in case the newest is truncated or corrupt.
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
from tl_cli.io.atomic import replacing, write_text
from tl_cli.models import bundle
from tl_cli.shortage import pass_on
from tl_cli.training.config import TrainConfig, as_toml, settings_of
from tl_cli.training.ema import Average
from tl_cli.training.events import EpochEnded, Event, StepEnded

BEST_FOLDER = "best"
CONFIG_FILE = "config.toml"
CARD_FILE = "card.json"  # of the model that is trained, from before the first step
# Raised by any change to the file or to the random numbers of a run: image order, augmentation, mixing, dropout.
_FORMAT = 4
_PREFIX = re.compile(rb"tl checkpoint (\d{1,4})\n([0-9a-f]{64})\n")
_NAME = re.compile(r"step-(\d+)\.ckpt")
_KEPT = 2


def write_toml(path: Path, config: TrainConfig) -> None:
    """Write all settings but those that are None as TOML for ``--config``."""
    write_text(path, as_toml(settings_of(config.model_dump())))


@dataclass(slots=True)
class Counters:
    """The progress of a run, and its best epoch.

    Attributes:
        epoch: complete epochs.
        step: optimizer steps of the complete epochs.
        best_epoch: 0 before the first validation.
        best_val_accuracy: a fraction; of the weights or of their average, whichever is better.
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
        """Whether an epoch beats the best: a higher accuracy, or an equal one with a lower loss."""
        return (val_accuracy, -val_loss) > (self.best_val_accuracy, -self.best_val_loss)


@dataclass(slots=True)
class Partial:
    """The progress of an epoch: sums over its steps, on the device so that no step waits for them.

    Attributes:
        epoch: its number, from 1.
        loss: sum of the images' losses, (), in nats.
        correct: images classified correctly, ().
        steps: steps taken so far.
        images: images in these steps.
        seconds: duration so far, without interruptions.
    """

    epoch: int
    loss: Tensor
    correct: Tensor
    steps: int = 0
    images: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, epoch: int, device: torch.device) -> "Partial":
        """Return an epoch without any steps."""
        return cls(epoch, torch.zeros((), device=device), torch.zeros((), device=device))


@dataclass(slots=True)
class TrainState:
    """Everything that training changes.

    Attributes:
        partial: the current epoch; None between epochs.
        cached: first epochs of the phases that train on cached features, which a resumed run must use too.
        whole: whether the state is consistent: no step or end of an epoch is half done.
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
        """Return a checkpoint: format and SHA-256, then plain types and tensors."""
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
        """Load a checkpoint.

        Raises:
            UsageError: it is damaged, has another format, or belongs to another model or other cached features.
        """
        self._load(read_checkpoint(data))

    def _load(self, saved: dict[str, Any]) -> None:
        cached = tuple(saved["cached"])
        if cached != self.cached:
            raise UsageError(
                f"the phases that begin at epochs {_listed(cached)} trained on cached features, now those at epochs "
                f"{_listed(self.cached)} would; memory or free disk space has changed"
            )
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.plateau.load_state_dict(saved["plateau"])
            self.scaler.load_state_dict(saved["scaler"])
            if self.average is not None:
                self.average.load_state_dict(saved["average"])
            self.counters = Counters(**saved["counters"])
            self.partial = None
            if partial := saved["partial"]:
                device = next(self.model.parameters()).device
                sums = {name: partial[name].to(device) for name in ("loss", "correct")}
                self.partial = Partial(**partial | sums)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"it belongs to another model: {first_line(error)}") from error

    def restore(self, folder: Path) -> list[str]:
        """Load the newest intact checkpoint of a folder; if it contains none, the state stays that of a new run.

        Returns:
            Warnings about damaged newer checkpoints and a missing best model.

        Raises:
            UsageError: there are checkpoints, but none is usable.
        """
        problems: list[str] = []
        for path in checkpoints(folder):
            try:
                saved = read_checkpoint(path.read_bytes())
            except (OSError, UsageError) as error:
                pass_on(error)
                problems.append(f"{path.name} is not usable: {first_line(error)}")
                continue
            try:
                self._load(saved)
            except UsageError as error:
                raise UsageError(f"cannot resume from {path}: {error}") from error
            return problems + self._reset_lost_best(folder / BEST_FOLDER)
        if problems:
            raise UsageError(f"cannot resume from {folder}: {'; '.join(problems)}")
        return []

    def _reset_lost_best(self, folder: Path) -> list[str]:
        """Reset the best epoch where its model is lost: the best of the remaining epochs is kept. Return warnings."""
        if not self.counters.best_epoch:
            return []
        lost = f"the best model, of epoch {self.counters.best_epoch}, is not in {folder}"
        problems = [f"{lost}; the best of the remaining epochs will be kept instead"]
        try:
            saved_epoch = bundle.verified_card(folder).epoch
        except WeightsError as error:
            problems = [f"{first_line(error)}; the best of the remaining epochs will be kept instead"]
        else:
            if saved_epoch == self.counters.best_epoch:
                return []
            if saved_epoch > self.counters.best_epoch:
                # That epoch will be trained again; the best model before it no longer exists.
                problems = []
        self.counters = Counters(self.counters.epoch, self.counters.step, seconds=self.counters.seconds)
        return problems


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint files of a run, the newest first."""
    steps = {path: int(name[1]) for path in folder.glob("step-*.ckpt") if (name := _NAME.fullmatch(path.name))}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished run, which is never resumed."""
    for path in checkpoints(folder):
        with suppress(OSError):
            path.unlink()


def read_checkpoint(data: bytes) -> dict[str, Any]:
    """Return the contents of a checkpoint.

    Raises:
        UsageError: the file was changed after it was written, or has another format.
    """
    header = _PREFIX.match(data)
    if header is None:
        raise UsageError("it is truncated, or not a checkpoint")
    payload = data[header.end() :]
    if header[2] != hashlib.sha256(payload).hexdigest().encode():
        raise UsageError("it is damaged: its SHA-256 differs from the one in its header")
    if int(header[1]) != _FORMAT:
        raise UsageError(
            f"it has format {int(header[1])}, but this tl reads format {_FORMAT} and draws other random numbers; "
            "resume with the version that began the run, or start a new run"
        )
    try:
        saved: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UsageError(f"it cannot be read: {first_line(error)}") from error
    return saved


def _is_sound(state: TrainState) -> bool:
    """Whether losses and weights are finite; a run cannot resume from others."""
    loss = state.partial.loss if state.partial else torch.zeros(())
    values = [value for value in state.model.state_dict().values() if value.is_floating_point()]
    return math.isfinite(float(loss)) and all(bool(torch.isfinite(value).all()) for value in values)


def _listed(epochs: tuple[int, ...]) -> str:
    return ", ".join(map(str, epochs)) or "none"


@dataclass(frozen=True, slots=True)
class Every:
    """The interval of checkpoints within epochs, in steps or seconds; if both are 0, only at the ends of epochs."""

    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Every":
        """Return the interval for ``200`` (steps), ``5m``, ``30s`` or ``0``.

        Raises:
            UsageError: the text has another form.
        """
        parts = re.fullmatch(r"(\d+)([sm]?)", text.strip())
        if parts is None:
            raise UsageError(f"--checkpoint-every {text!r} is neither steps, such as 200, nor time, such as 5m or 30s")
        number = int(parts[1])
        return cls(seconds=number * {"m": 60, "s": 1}[parts[2]]) if parts[2] else cls(steps=number)


class Saver:
    """Writes checkpoints, and the model after each epoch that is the best so far, as the run's events arrive.

    Args:
        every: interval within epochs.
        first: called before each checkpoint, to record the steps that a resumed run will not repeat.
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
        self._saved: tuple[int, bool] | None = None  # position of the last checkpoint

    def __call__(self, event: Event) -> None:
        """Save at the end of an epoch, and after a step when the interval is over.

        Raises:
            StorageError: the disk is full or not writable; earlier checkpoints stay intact.
        """
        if isinstance(event, StepEnded):
            if self._is_time(event.step):
                self.save()
        elif isinstance(event, EpochEnded):
            if event.is_best:
                self._save_best(event)
            self._save()

    def begin(self) -> None:
        """Write the model card, before the first step.

        Raises:
            StorageError: the disk is full or not writable.
        """
        bundle.write_card(self.folder, self._card, CARD_FILE)

    def save(self) -> bool:
        """Write a checkpoint unless this step is saved already or half done; return whether the step is saved.

        Raises:
            StorageError: the disk is full or not writable; earlier checkpoints stay intact.
        """
        return self._saved == self._position or (self._state.whole and self._save())

    def _save(self) -> bool:
        """Write a checkpoint unless losses or weights are not finite; return whether the step is saved."""
        if not _is_sound(self._state):
            return False
        self._saved_at = time.monotonic()
        if self._saved == self._position:
            return True
        self._first()
        with replacing(self.folder / f"step-{self.step:08d}.ckpt") as file:
            file.write(self._state.to_bytes())
        self._saved = self._position
        for old in checkpoints(self.folder)[_KEPT:]:
            with suppress(OSError):
                old.unlink()
        return True

    @property
    def _position(self) -> tuple[int, bool]:
        """The step, and whether an epoch has ended there."""
        return self._state.step, self._state.partial is None

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self._state.step

    @property
    def best(self) -> ModelCard | None:
        """The card of the best model so far, if it is complete in ``folder / BEST_FOLDER``."""
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
