"""Recipes: named, readable tables of settings with a reason for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Generic, TypeVar

from tl_cli.choices import (
    AugmentName,
    BatchNormMode,
    HeadFeatures,
    HeadFitName,
    KeepEpoch,
    Layout,
    OptimizerName,
    Precision,
    RecipeName,
    SamplerName,
    ScheduleName,
)
from tl_cli.data.balance import UNEVEN
from tl_cli.data.batches import steps_in_epoch
from tl_cli.data.pixel_range import Measured
from tl_cli.data.sizes import Sizes
from tl_cli.errors import UsageError
from tl_cli.training.config import Settings, Statistics

# Images whose short side is below this are enlarged (BiT-HyperRule, Kolesnikov et al. 2020, uses the same bound).
TINY_PIXELS = 96
# Digits of 8 x 8 pixels reach 99% at 64 px.
_FEW_PIXELS = 16
# The table in examples/README.md: EfficientNet-Lite0 on 8,950 of CIFAR-10's images, 5,000 validated. One epoch at 128
# px had 86.2%, three at 96 px 86.6%, for 1.7 times the work.
_AT_96 = "an epoch at 96 px is worth more than three at 64 px, which take as long (84.3% against 81.9% validated)"
# EfficientNet-Lite0 on 180 CIFAR-10 images at 64 px, one seed, 20 images validated: 40% correct after 45 steps of
# fine-tuning, 45% after 135, 255 and 505; ten epochs would be 30 steps.
_FEWEST_STEPS = 250
FEW_TRAIN_IMAGES = 5000
HEAD_EPOCHS = 5
# Images on the other side of TINY_PIXELS than the median one are mentioned from this fraction on.
_MANY = 0.1
# With fewer the best epoch is often a lucky one, before the learning rate has come down. EfficientNet-Lite0, six sets
# of 540 images and 60 validated: the last epoch had 1.2 points more on test images than the best one (-1.5 to 4.0).
_FEW_VAL_IMAGES = 200
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, slots=True)
class Facts:
    """What recipes depend on.

    Attributes:
        data: name or path of the data set.
        train_images: number of training images after the split.
        val_images: number of validation images.
        native_size: median of the short sides in pixels; None if unknown.
        smallest_input: smallest input side of the architecture, in pixels.
        own_input: input side of the published weights, in pixels.
        on_gpu: whether a GPU is used.
        bf16: whether the device computes fast in bfloat16.
        cores: CPU cores that this process may use.
        idle_cores: threads that torch can use without sharing a core; 0 if that does not matter.
        pretrained: whether training starts from trained weights.
        imbalance: size of the largest class divided by that of the smallest.
        mirrors: whether an image mirrored left to right keeps its class.
        measured: value range of training images with more than 8 bits per channel; None if there are none.
        stages: whether the head can see the outputs of the network's last stages; known for the recipe ``head``.
        keeps_head: whether rows of the weights' head are kept.
        head_sees_stages: whether the weights' head sees stages.
        sizes: sizes of the training images, for the reason of the input size; None if not measured.
    """

    data: str
    train_images: int
    val_images: int
    native_size: int | None
    smallest_input: int
    own_input: int
    on_gpu: bool
    bf16: bool
    cores: int
    idle_cores: int = 0
    pretrained: bool = True
    imbalance: float = 1.0
    mirrors: bool = True
    measured: Measured | None = None
    stages: bool = False
    keeps_head: bool = False
    head_sees_stages: bool = False
    sizes: Sizes | None = None

    @property
    def is_tiny(self) -> bool:
        """Whether the images are so small that they are enlarged."""
        return self.native_size is not None and self.native_size < TINY_PIXELS


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Choice(Generic[T_co]):
    """A value with its reason."""

    value: T_co
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Choices for fields of `TrainConfig`, under their names; None: not chosen here."""

    epochs: Choice[int] | None = None
    steps: Choice[int] | None = None
    freeze_epochs: Choice[int] | None = None
    freeze_until: Choice[str] | None = None
    head_features: Choice[HeadFeatures] | None = None
    head_fit: Choice[HeadFitName] | None = None
    optimizer: Choice[OptimizerName] | None = None
    lr: Choice[float] | None = None
    unfreeze_lr: Choice[float] | None = None
    weight_decay: Choice[float] | None = None
    decay_norms: Choice[bool] | None = None
    schedule: Choice[ScheduleName] | None = None
    keep_epoch: Choice[KeepEpoch] | None = None
    label_smoothing: Choice[float] | None = None
    bn: Choice[BatchNormMode] | None = None
    augment: Choice[AugmentName] | None = None
    sampler: Choice[SamplerName] | None = None
    input_size: Choice[int] | None = None
    feature_cache: Choice[bool] | None = None
    mean: Choice[Statistics] | None = None
    std: Choice[Statistics] | None = None
    precision: Choice[Precision] | None = None
    layout: Choice[Layout] | None = None
    workers: Choice[int] | None = None
    threads: Choice[int] | None = None
    pixel_range: Choice[tuple[float, float]] | None = None

    def by_name(self) -> dict[str, Choice[object]]:
        """Return the choices that are made."""
        choices = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: choice for name, choice in choices.items() if choice is not None}


NOTHING = Choices()


def _fine_tuning(facts: Facts, given: Settings, *, epochs: int, epochs_small: int, fewest_steps: int) -> Choices:
    """Return the choices for a head on cached features, then the whole model.

    Args:
        epochs: of the whole model.
        epochs_small: the same for fewer than ``FEW_TRAIN_IMAGES`` training images.
        fewest_steps: minimum of optimizer steps, for sets so small that their epochs have fewer.
    """
    tune = epochs_small if facts.train_images < FEW_TRAIN_IMAGES else epochs
    steps_per_epoch = steps_in_epoch(facts.train_images, given.batch_size * given.accumulate)
    solves = given.head_fit == "logistic"
    freeze = 1 if solves else _default_freeze(given, steps_per_epoch)
    why_freeze = "a trained head before unfreezing keeps the features intact (LP-FT)"
    if given.freeze_epochs is not None:
        freeze = given.freeze_epochs
    elif not facts.pretrained:
        freeze, why_freeze = 0, "there are no trained features to keep"
    steps = None
    if given.epochs is None and tune * steps_per_epoch < fewest_steps:
        why = (
            f"{facts.train_images:,} images are {steps_per_epoch} per epoch; "
            f"a small set needs {fewest_steps} of fine-tuning"
        )
        steps = Choice(head_steps(freeze, steps_per_epoch, solves=solves) + fewest_steps, why)
    return Choices(
        steps=steps,
        freeze_epochs=Choice(freeze, why_freeze),
        # The table in examples/README.md: six sets of 540 images, 125 steps of fine-tuning.
        head_features=_kept_features(facts)
        or Choice("last", "after fine-tuning, the stages gained nothing on average"),
        head_fit=Choice("steps", "before fine-tuning, a head fitted to convergence gained nothing"),
        epochs=Choice(freeze + tune, f"the frozen ones and {tune} more for {facts.train_images:,} images"),
        optimizer=Choice("adamw", "weight decay separate from the gradient: the usual choice for fine-tuning"),
        lr=Choice(1e-3, "for a linear head on cached features"),
        # EfficientNet-Lite0, CIFAR-10 at 64 px, 5 epochs after the head, one seed, 5,000 validation images: 89.1% at
        # 6e-4, 88.4% at 1e-3. On 9,000 images for 3 epochs, 1,000 validated: 80.1% at 3e-4, 80.7% at 6e-4, 82.2% at
        # 1e-3, 81.2% at 1.5e-3; at 6e-4 BatchNorm in train mode had 78.0%.
        unfreeze_lr=Choice(6e-4, "one-cycle peak at batch 64; 1e-3 was 0.7 points worse on all of CIFAR-10"),
        weight_decay=Choice(0.01, "AdamW's usual value"),
        decay_norms=Choice(False, "norms and biases are few and do not cause overfitting"),
        schedule=Choice("one-cycle", "ends each phase at a rate near zero"),
        keep_epoch=_default_keep_epoch(facts, given),
        label_smoothing=Choice(0.1, "less overconfident predictions"),
        bn=_default_bn(facts),
        augment=_default_augment(facts, given),
        sampler=_default_sampler(facts, given),
        input_size=_default_input_size(facts),
        feature_cache=Choice(True, "the frozen phase uses plain and mirrored images, computed once"),
    )


def head_steps(epochs: int, steps_per_epoch: int, *, solves: bool) -> int:
    """Return the optimizer steps of a head phase; a regression counts as one per epoch.

    Args:
        solves: whether the head is fitted by regression.
    """
    return epochs * (1 if solves else steps_per_epoch)


def _default_freeze(given: Settings, steps_per_epoch: int) -> int:
    """Return 5 epochs, or half of the total if that is less."""
    epochs = given.steps // steps_per_epoch if given.steps else given.epochs or 10
    return min(HEAD_EPOCHS, epochs // 2)


def _default_keep_epoch(facts: Facts, given: Settings) -> Choice[KeepEpoch]:
    if given.early_stop:
        return Choice("best", "--early-stop")
    if given.schedule not in (None, "one-cycle", "cosine"):
        return Choice("best", f"the schedule {given.schedule} does not end at a rate near zero")
    if facts.val_images < _FEW_VAL_IMAGES:
        return Choice("last", f"{facts.val_images} validation images cannot tell good epochs from lucky ones")
    return Choice("best", f"{facts.val_images:,} validation images are enough to compare epochs")


def _kept_features(facts: Facts) -> Choice[HeadFeatures] | None:
    """Return what the weights' head sees, if rows of it are kept."""
    if not facts.keeps_head:
        return None
    return Choice("stages" if facts.head_sees_stages else "last", "as the head of the weights, which is kept")


def _head_only(facts: Facts, given: Settings) -> Choices:
    """Return the choices for a head on a frozen backbone: a regression on all stages, where the network allows it.

    Raises:
        UsageError: the head is not to be trained, or by a number of steps.
    """
    if given.freeze_epochs == 0:
        raise UsageError("--recipe head trains only the head; leave out --freeze-epochs 0")
    if given.steps is not None:
        raise UsageError("--recipe head takes --epochs, not --steps")
    in_steps = {
        "--freeze-epochs": (given.freeze_epochs or 1) > 1,
        "--epochs": (given.epochs or 1) > 1,
        "--lr": given.lr is not None,
        "no feature cache": not given.feature_cache,
        "rows of the weights' head are kept": facts.keeps_head,
        "the stages of this architecture cannot be joined": not facts.stages,
    }
    why = next((reason for reason, applies in in_steps.items() if applies), None)
    solves = given.head_fit == "logistic" or (why is None and "head_fit" not in given.model_fields_set)
    epochs = given.epochs or given.freeze_epochs or (1 if solves else HEAD_EPOCHS)
    features: Choice[HeadFeatures] = Choice("last", "the stages of this architecture cannot be joined")
    if facts.stages:
        features = Choice("stages", "a frozen network's earlier stages have features that its last one lacks")
    return replace(
        _fine_tuning(facts, given, epochs=1, epochs_small=1, fewest_steps=0),
        steps=None,
        epochs=Choice(epochs, "only the head trains"),
        freeze_epochs=Choice(epochs, "only the head trains"),
        head_features=_kept_features(facts) or features,
        head_fit=Choice("logistic", "converges in seconds on cached features") if why is None else Choice("steps", why),
    )


def _default_bn(facts: Facts) -> Choice[BatchNormMode]:
    if facts.pretrained:
        return Choice("frozen", "pretrained statistics beat those of small batches (80.7% against 78.0% validated)")
    return Choice("train", "there are no pretrained statistics")


def _default_augment(facts: Facts, given: Settings) -> Choice[AugmentName]:
    if not facts.mirrors:
        return Choice("shift", "a mirrored digit, letter or sign has another meaning")
    if facts.is_tiny:
        if facts.train_images < FEW_TRAIN_IMAGES:
            return Choice("flip-shift", "few images, seen often; a crop would leave little of a tiny image")
        return Choice("flip", "shifts do not help in a few epochs (83.1% without, 82.6% with them, validated)")
    if given.resize in ("squash", "pad"):
        return Choice("flip", f"random crops would cut off the ends, which --resize {given.resize} keeps")
    return Choice("flip-crop", "random resized crops suit photographs")


def _default_sampler(facts: Facts, given: Settings) -> Choice[SamplerName]:
    if facts.imbalance < UNEVEN or given.class_weights != "none":
        few = f"the largest class has less than {UNEVEN:.0f} times the images of the smallest"
        return Choice("shuffle", few if facts.imbalance < UNEVEN else "--class-weights")
    # EfficientNet-Lite0's head on cached features at 64 px, class sizes falling evenly, 5,000 validation images of even
    # classes, three seeds: 10:1 in 1,839 images 55.9% shuffled, 61.1% balanced, 62.1% with class weights; 100:1 in
    # 2,234 images 42.6%, 49.7%, 48.7%.
    why = (
        f"the largest class has {facts.imbalance:.0f} times the images of the smallest; mean accuracy of classes rises"
    )
    return Choice("balanced", why)


def _default_input_size(facts: Facts) -> Choice[int]:
    if facts.native_size is None or facts.native_size >= TINY_PIXELS:
        return Choice(facts.own_input, "the size of the published weights" + _describe_sizes(facts))
    size, why = 128, "affordable on a GPU"
    if not facts.on_gpu:
        size, why = (64, "enough for so few pixels") if facts.native_size <= _FEW_PIXELS else (96, _AT_96)
    possible = min(max(size, facts.smallest_input), facts.own_input)
    if possible != size:
        why = f"the size nearest to {size} that this architecture takes"
    return Choice(possible, f"{facts.native_size} px images are enlarged; {why}{_describe_sizes(facts)}")


def _describe_sizes(facts: Facts) -> str:
    """Return the range of sizes, and the effect on images that are much larger or smaller than the median."""
    sizes = facts.sizes
    if sizes is None or facts.native_size is None or sizes.smallest == sizes.largest:
        return ""
    sample = f" in a sample of {len(sizes.heights)}" if sizes.is_sample else ""
    words = f"; short sides are {sizes.smallest:,} to {sizes.largest:,} px, median {sizes.median:,}{sample}"
    tiny = sizes.share_below(TINY_PIXELS)
    if facts.native_size < TINY_PIXELS and 1 - tiny >= _MANY:
        words += f"; {1 - tiny:.0%} are larger and lose detail, which --input-size {facts.own_input} keeps"
    elif facts.native_size >= TINY_PIXELS and tiny >= _MANY:
        words += f"; {tiny:.0%} are under {TINY_PIXELS} px, for which --input-size 96 is enough"
    return words


def _blog(facts: Facts, given: Settings) -> Choices:
    size = facts.own_input
    if facts.native_size is not None:
        size = min(max(facts.native_size, facts.smallest_input), facts.own_input)
    is_cifar = facts.data == "cifar10"
    return Choices(
        freeze_epochs=Choice(5, "as in the blog"),
        epochs=Choice(max(40, given.freeze_epochs or 5), "5 frozen and 35 more, as in the blog"),
        optimizer=Choice("adam", "as in the blog"),
        lr=Choice(1e-3, "as in the blog"),
        unfreeze_lr=Choice(1e-4, "all parameters at one rate, as in the blog"),
        weight_decay=Choice(1e-4, "as in the blog; Adam's, inside the gradient"),
        decay_norms=Choice(True, "on all parameters, as in the blog"),
        schedule=Choice("plateau", "factor 0.5, patience 2 on the validation loss"),
        label_smoothing=Choice(0.0, "as in the blog"),
        bn=Choice("train", "as in the blog, after unfreezing"),
        augment=Choice("blog", "crop with padding 4 of 32, flip, color jitter, rotation by 15 degrees"),
        head_features=Choice("last", "as in the blog"),
        head_fit=Choice("steps", "as in the blog"),
        input_size=Choice(size, "the images' own size, as in the blog" + _describe_sizes(facts)),
        feature_cache=Choice(False, "the blog augments in its frozen phase, so its features always differ"),
        mean=Choice(_CIFAR_MEAN, "CIFAR-10's own, as in the blog") if is_cifar else None,
        std=Choice(_CIFAR_STD, "CIFAR-10's own, as in the blog") if is_cifar else None,
    )


def machine_choices(facts: Facts) -> Choices:
    """Return the settings that depend on the machine rather than on a recipe."""
    half = facts.on_gpu and facts.bf16
    threads = None
    if facts.idle_cores:
        threads = Choice(facts.idle_cores, f"{facts.idle_cores} of {facts.cores} cores idle")
    return Choices(
        precision=Choice("bf16", "fast on this GPU") if half else Choice("fp32", "safe everywhere"),
        layout=Choice("channels-last", "a training step is 1.2 to 3 times as fast on a CPU, and faster on GPUs too"),
        workers=Choice(min(8, facts.cores), f"{facts.cores} cores; at most 8 threads decode"),
        threads=threads,
    )


def data_choices(facts: Facts) -> Choices:
    """Return the settings that are measured on the training images."""
    if facts.measured is None:
        return Choices()
    return Choices(pixel_range=Choice(facts.measured.pixel_range, facts.measured.describe()))


RECIPES: Mapping[RecipeName, Callable[[Facts, Settings], Choices]] = {
    "default": partial(_fine_tuning, epochs=4, epochs_small=10, fewest_steps=_FEWEST_STEPS),
    "fast": partial(_fine_tuning, epochs=1, epochs_small=4, fewest_steps=_FEWEST_STEPS // 2),
    "head": _head_only,
    "blog": _blog,
}
