"""One config from flags, config file and recipe, with the origin of each value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tl_cli.data.batches import steps_in_epoch
from tl_cli.errors import UsageError
from tl_cli.training.config import FIELDS, IMAGE_CHANGES, Given, TrainConfig, values_of
from tl_cli.training.recipes import (
    NOTHING,
    RECIPES,
    Choice,
    Choices,
    Facts,
    data_choices,
    head_steps,
    machine_choices,
)

Source = Literal["flag", "config file", "recipe", "machine", "data", "time", "default", "derived"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from, and why."""

    source: Source
    why: str = ""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config, and the origin of each of its values by name."""

    config: TrainConfig
    origins: Mapping[str, Origin]


def resolve(given: Given, facts: Facts, for_time: Choices = NOTHING) -> Resolved:
    """Return the config: flags over the config file over the time over the recipe over the fields' defaults.

    Args:
        for_time: what ``--time`` chooses.

    Raises:
        UsageError: settings contradict each other, or a flag has no effect.
    """
    origins = dict.fromkeys(FIELDS, Origin("default"))
    recipe = RECIPES[given.settings.recipe](facts, given.settings)
    values: dict[str, Any] = {"model": given.model}
    chosen: tuple[tuple[Source, Choices], ...] = (
        ("recipe", recipe), ("machine", machine_choices(facts)), ("data", data_choices(facts)),
        ("time", for_time),
    )  # fmt: skip
    for source, choices in chosen:
        values |= {name: choice.value for name, choice in choices.by_name().items()}
        origins |= {name: Origin(source, choice.why) for name, choice in choices.by_name().items()}
    origins |= dict.fromkeys(given.file, Origin("config file")) | dict.fromkeys(given.flags, Origin("flag"))
    # Each value is checked already: the recipe's by their types, the given ones when they were read.
    draft = TrainConfig.model_construct(**(values | values_of(given.settings)))
    if "epochs" in given.flags:
        draft = draft.model_copy(update={"steps": None})
    for derive in (_derive_epochs, _derive_lr):
        derived = derive(draft, given, facts).by_name()
        draft = draft.model_copy(update={name: choice.value for name, choice in derived.items()})
        origins |= {name: Origin("derived", choice.why) for name, choice in derived.items()}
    _refuse_without_effect(draft, given.flags)
    return Resolved(TrainConfig.checked(values_of(draft)), origins)


def _derive_epochs(draft: TrainConfig, given: Given, facts: Facts) -> Choices:
    """Return the epochs for a number of steps, which is exact: the last epoch may be cut short.

    A recorded config file holds the steps only.
    """
    both = {"epochs", "steps"}
    if both <= given.flags or (both <= given.file and not both & given.flags):
        raise UsageError("--steps and --epochs both set the length of the training; give one of them")
    if draft.steps is None:
        return Choices()
    images, batch, freeze = facts.train_images, draft.batch_size * draft.accumulate, draft.freeze_epochs
    head = head_steps(freeze, steps_in_epoch(images, batch), solves=draft.head_fit == "logistic")
    if draft.steps < head:
        raise UsageError(
            f"--steps {draft.steps} is the total and cannot be fewer than those of --freeze-epochs {freeze}, {head}"
        )
    per_epoch = steps_in_epoch(images, batch, drop_single=draft.bn == "train")
    why = f"{draft.steps:,} steps, {per_epoch:,} per epoch"
    return Choices(epochs=Choice(freeze + -(-(draft.steps - head) // per_epoch), why))


def _derive_lr(draft: TrainConfig, given: Given, facts: Facts) -> Choices:
    """Return the one learning rate of a training without a frozen phase."""
    if draft.freeze_epochs == 0:
        if "unfreeze_lr" in given.flags:
            raise UsageError("--unfreeze-lr has no effect with --freeze-epochs 0: nothing is unfrozen; give --lr")
        if "lr" in given:
            return Choices(unfreeze_lr=Choice(draft.lr, "nothing is frozen, so --lr applies throughout"))
        return Choices(lr=Choice(draft.unfreeze_lr, "nothing is frozen, so the whole model trains at the unfreeze-lr"))
    if draft.epochs == draft.freeze_epochs and "unfreeze_lr" in given.flags:
        raise UsageError(f"--unfreeze-lr has no effect when all {draft.epochs} epochs are frozen; give more --epochs")
    return Choices()


def _refuse_without_effect(draft: TrainConfig, flags: frozenset[str]) -> None:
    """Refuse flags that would have no effect."""
    all_frozen = draft.epochs == draft.freeze_epochs
    needs: dict[str, tuple[bool, str]] = {
        "momentum": (draft.optimizer == "sgd", "without --optimizer sgd"),
        "warmup": (draft.schedule == "cosine", "without --schedule cosine"),
        "auto_ops": (draft.auto_augment == "randaugment", "without --auto-augment randaugment"),
        "auto_magnitude": (draft.auto_augment == "randaugment", "without --auto-augment randaugment"),
        "early_stop": (draft.keep_epoch == "best" and draft.epochs > 1, "with --keep-epoch last or a single epoch"),
        "lr": (draft.head_fit == "steps" or draft.freeze_epochs == 0, "on a head by logistic regression"),
        "head_fit": (draft.freeze_epochs > 0, "without frozen epochs"),
        "feature_views": (draft.feature_cache, "without a feature cache"),
        "feature_dtype": (draft.feature_cache, "without a feature cache"),
    }
    for name in ("freeze_until", "unfreeze_stages", "layer_decay", "drop_path", "bn"):
        needs[name] = (not all_frozen, "when all epochs are frozen")
    if all_frozen and draft.feature_cache:
        for name in IMAGE_CHANGES:
            needs[name] = (False, "on cached features; give --no-feature-cache, or more --epochs")
    for name, (has_effect, when) in needs.items():
        is_off = getattr(draft, name) == TrainConfig.model_fields[name].default
        if name in flags and not has_effect and not is_off:
            raise UsageError(f"--{name.replace('_', '-')} has no effect {when}")
