"""Lays a training out for a time: input size, frozen layers and length, from measured steps."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from tl_cli.choices import AugmentName
from tl_cli.data.batches import steps_in_epoch
from tl_cli.errors import UsageError
from tl_cli.models.layers import Layer
from tl_cli.models.macs import Counting
from tl_cli.training.config import Given
from tl_cli.training.forecast import Estimate, estimate
from tl_cli.training.plan import Material, Plan
from tl_cli.training.recipes import FEW_TRAIN_IMAGES, HEAD_EPOCHS, Choice, Choices, head_steps
from tl_cli.training.resolve import Origin

# Of the time, for what a forecast from a few steps cannot know.
_RESERVE = 0.05
# Below this part of an epoch, a head on all images has learned more.
_FEWEST_EPOCHS = 0.25
# More change little, on few images too (``_FEWEST_STEPS`` in recipes.py).
_MOST_EPOCHS = 20
_MOST_STEPS_OF_FEW = 500
# CIFAR-10 at 128 px from blocks.4, flips alone: 92.8% validated after 4 epochs, 92.7% after 7.
_EPOCHS_OF_FLIPS = 4
_SHIFTED: AugmentName = "flip-shift"


@dataclass(frozen=True, slots=True)
class Level:
    """A way to spend time on an epoch.

    Attributes:
        size: input side in pixels for images that are enlarged.
        share: input side for larger images, as a fraction of that of the weights.
        frozen: parameters of the layers that stay frozen, at most this fraction of the backbone's. The first layers
            have few and take most of the time.
        fewest_epochs: fewer do more on the level before.
    """

    size: int
    share: float
    frozen: float
    fewest_epochs: float


# From examples/README.md, "Time to an accuracy": EfficientNet-Lite0, all of CIFAR-10. 2% of its parameters are before
# blocks.3, 8% before blocks.4 (ResNet: before layer2 and layer3).
LEVELS = (Level(96, 4 / 7, 0.02, 0), Level(128, 5 / 7, 0.08, 2), Level(160, 1, 0.02, 5), Level(160, 1, 0, 10))


def is_laid_out(given: Given) -> bool:
    """Whether ``--time`` chooses the length of a training.

    Raises:
        UsageError: it is given together with a length, or with a recipe that has one.
    """
    settings = given.settings
    lengths = [name for name in ("epochs", "steps") if getattr(settings, name) is not None]
    if settings.time is None or (lengths and "time" not in given.flags):
        return False  # a recorded config has the length that was chosen
    if lengths:
        raise UsageError(f"--time and {lengths[0]} both set the length of the training; give one of them")
    if settings.recipe not in ("default", "fast"):
        raise UsageError(f"--time has no effect on --recipe {settings.recipe}, whose length is fixed; give one of them")
    return True


def lay_out(material: Material, began: float) -> Plan:
    """Return the plan of the training that makes the most of the time of ``--time``, from the command to its end.

    Args:
        began: ``time.monotonic()`` at the command.

    Raises:
        UsageError: a setting cannot be used.
    """
    layout = _Layout(material, began)
    trial = layout.tried(0, 1.0)
    level = best_level(layout.epochs(trial), layout.costs)
    if level:
        trial = layout.tried(level, layout.epochs(trial) / layout.costs[level])
    # The steps of a level may take longer than those of the first one promise.
    while level and layout.epochs(trial) < LEVELS[level].fewest_epochs:
        level -= 1
        trial = layout.tried(level, 1.0)
    epochs = layout.epochs(trial)
    return layout.head_alone() if epochs < _FEWEST_EPOCHS else layout.plan(level, epochs, trial)


def best_level(epochs: float, costs: Sequence[float]) -> int:
    """Return the highest level whose fewest epochs fit the time.

    Args:
        epochs: for which there is time on the first level.
        costs: of an epoch on each level, as a multiple of that on the first.
    """
    return max(
        (number for number, level in enumerate(LEVELS) if epochs / costs[number] >= level.fewest_epochs), default=0
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """The measured cost of a level.

    Attributes:
        epoch_s: seconds of an epoch of fine-tuning with its validation.
        other_s: seconds of everything else that follows.
    """

    epoch_s: float
    other_s: float

    @classmethod
    def of(cls, plan: Plan, expected: Estimate) -> "_Trial":
        """Return the cost of a plan from the forecast of its parts."""
        tuned = sum(expected.seconds[phase.title] for phase in plan.phases if phase.name != "head")
        return cls(tuned / _tuned_epochs(plan), expected.total - expected.seconds["start"] - tuned)


class _Layout:
    """The levels for one material, and what they cost."""

    def __init__(self, material: Material, began: float) -> None:
        self._material, self._facts = material, material.facts
        self._ends = began + (material.given.settings.time_s or 0.0) * (1 - _RESERVE)
        self._layers, self._shares = shares_of_work(material.plan(is_draft=True))
        self.costs = self._relative_costs()

    def _relative_costs(self) -> tuple[float, ...]:
        """Return the work of an epoch on each level as a multiple of that on the first."""
        # A backward pass costs as much as two forward passes, and frozen layers need none.
        work = [self._size(level) ** 2 * (3 - 2 * self._shares[self._frozen_layers(level)]) for level in LEVELS]
        return tuple(each / work[0] for each in work)

    def epochs(self, trial: _Trial) -> float:
        """Return the epochs of fine-tuning for which there is time from now on."""
        return (self._ends - time.monotonic() - trial.other_s) / trial.epoch_s

    def tried(self, level: int, epochs: float) -> _Trial:
        """Measure a level."""
        plan = self._material.plan(self._choices(level, max(epochs, _FEWEST_EPOCHS)))
        return _Trial.of(plan, estimate(plan, 0.0))

    def plan(self, level: int, epochs: float, trial: _Trial) -> Plan:
        """Return the plan for these epochs on a level."""
        most = max(_MOST_EPOCHS, _MOST_STEPS_OF_FEW / self._steps_per_epoch)
        plan = self._material.plan(self._choices(level, min(epochs, most)))
        note = (
            f"{_tuned_epochs(plan):.1f} epochs of fine-tuning, {trial.epoch_s:.0f} s each, and {trial.other_s:.0f} s "
            "for the rest"
        )
        return replace(plan, time_note=note)

    def head_alone(self) -> Plan:
        """Return the plan of a head on the frozen network."""
        plan = self._material.with_recipe("head").plan()
        origin = Origin("time", "too short for fine-tuning")
        resolved = replace(plan.resolved, origins={**plan.resolved.origins, "recipe": origin})
        return replace(plan, resolved=resolved, time_note="too short for fine-tuning; the head alone trains")

    @property
    def _steps_per_epoch(self) -> int:
        settings = self._material.given.settings
        return steps_in_epoch(self._facts.train_images, settings.batch_size * settings.accumulate)

    def _choices(self, number: int, epochs: float) -> Choices:
        level, facts, settings = LEVELS[number], self._facts, self._material.given.settings
        few, layers = facts.train_images < FEW_TRAIN_IMAGES, self._frozen_layers(level)
        head, solves = settings.freeze_epochs, settings.head_fit == "logistic"
        if head is None:
            head = 1 if solves else HEAD_EPOCHS if few and facts.pretrained else 0
        before = head_steps(head, self._steps_per_epoch, solves=solves)
        freeze = Choice(head, "the time does more in fine-tuning" if not head else "a trained head before unfreezing")
        until: Choice[str] | None = None
        augment: Choice[AugmentName] | None = None
        if layers:
            share = self._shares[layers]
            until = Choice(self._layers[layers].name, f"what is before takes {share:.0%} of the work of a forward pass")
        if facts.mirrors and facts.is_tiny and not few and epochs > _EPOCHS_OF_FLIPS:
            augment = Choice(_SHIFTED, f"more than {_EPOCHS_OF_FLIPS} epochs with flips alone overfit")
        return Choices(
            input_size=Choice(self._size(level), f"there is time for {epochs:.1f} epochs at this size"),
            freeze_until=until,
            freeze_epochs=freeze,
            steps=Choice(before + max(1, round(epochs * self._steps_per_epoch)), f"what fits {settings.time}"),
            augment=augment,
        )

    def _size(self, level: Level) -> int:
        facts, given = self._facts, self._material.given.settings.input_size
        size = level.size
        if not facts.is_tiny:
            size = facts.own_input if level.share == 1 else round(level.share * facts.own_input / 32) * 32
        return given or min(max(size, facts.smallest_input), facts.own_input)

    def _frozen_layers(self, level: Level) -> int:
        """Return the number of first layers that a level freezes: never all of the backbone."""
        if self._material.given.settings.freeze_until or not self._facts.pretrained:
            return 0
        backbone = [sum(p.numel() for p in layer.parameters) for layer in self._layers if not layer.is_head]
        shares = [total / sum(backbone) for total in accumulate(backbone)]
        return sum(share <= level.frozen for share in shares[:-1])


def _tuned_epochs(plan: Plan) -> float:
    return sum(plan.steps_of(phase) / plan.steps_per_epoch(phase) for phase in plan.phases if phase.name != "head")


def shares_of_work(plan: Plan) -> tuple[tuple[Layer, ...], list[float]]:
    """Return the layers of a model, and for each the fraction of a forward pass's MACs that come before it."""
    model, layers = plan.classifier.model.eval(), plan.strategy.layers
    before: dict[int, int] = {}
    side = plan.config.input_size
    image = torch.zeros(1, 3, side, side, device=plan.machine.device)
    with torch.no_grad(), Counting() as counting, ExitStack() as hooks:  # type: ignore[no-untyped-call]
        for index, layer in enumerate(layers):

            def count(*_: object, index: int = index) -> None:
                before.setdefault(index, counting.flops)  # a module may run more than once

            hooks.callback(layer.modules[0].register_forward_pre_hook(count).remove)
        model(image)
    return layers, [before.get(index, 0) / max(1, counting.flops) for index in range(len(layers))]
