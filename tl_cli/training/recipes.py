"""Named, readable tables of settings, and the resolving of flags, config file and recipe into one config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tl_cli.data.balance import UNEVEN
from tl_cli.data.batches import steps_in_epoch
from tl_cli.data.pixel_range import Measured
from tl_cli.data.sizes import Sizes
from tl_cli.errors import UsageError
from tl_cli.training.config import FIELDS, TrainConfig, validated

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
_SMALL = 5000
# From this share on, images of another kind than the median one are mentioned.
_MANY = 0.1
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a recipe may depend on.

    Attributes:
        train_images: after the split.
        native_size: median of the short sides in pixels, None where it is not known.
        sizes: of the training images, to state the reason; None where they were not measured.
        smallest_input: smallest side the architecture takes.
        own_input: side that the published weights were trained or tested at.
        on_gpu: whether a GPU will be used.
        bf16: whether it computes in bfloat16.
        cores: that this process may use.
        idle_cores: threads that torch may have without sharing a core; 0 where it does not matter.
        pretrained: whether the run starts from trained weights.
        imbalance: images of the largest class for each of the smallest.
        mirrors: whether an image mirrored left to right is still one of its class.
        measured: range of the training images of more than 8 bits per channel; None where none has.
    """

    data: str
    train_images: int
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
    sizes: Sizes | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from, and why it is what it is."""

    source: Literal["flag", "config file", "recipe", "machine", "data", "default", "follows"]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """A recipe's value with its reason."""

    value: object
    why: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config, and the origin of each of its values."""

    config: TrainConfig
    origins: dict[str, Origin]


def resolve(flags: Mapping[str, object], file: Mapping[str, object], facts: Facts) -> Resolved:
    """Return the config: flags over the config file over the recipe over the fields' defaults.

    Raises:
        UsageError: a value is bad, or flags contradict each other.
    """
    given = {**file, **flags}
    recipe = _RECIPES.get(str(given.get("recipe", "default")))
    if recipe is None:
        raise UsageError(f"no recipe is called {given['recipe']!r}; there are {', '.join(_RECIPES)}")
    chosen, machine, data = recipe(facts, given), _machine(facts), _data(facts)
    values = {name: setting.value for name, setting in (chosen | machine | data).items()} | given
    origins = {name: Origin("default") for name in FIELDS}
    origins |= {name: Origin("recipe", setting.why) for name, setting in chosen.items()}
    origins |= {name: Origin("machine", setting.why) for name, setting in machine.items()}
    origins |= {name: Origin("data", setting.why) for name, setting in data.items()}
    origins |= {name: Origin("config file") for name in file} | {name: Origin("flag") for name in flags}
    _follow_steps(values, origins, facts, flags)
    _follow(values, origins, flags)
    _refuse_useless(values, flags)
    return Resolved(validated(values), origins)


def _follow(values: dict[str, object], origins: dict[str, Origin], flags: Mapping[str, object]) -> None:
    """Settle values that follow from others, and refuse flags that would do nothing."""
    epochs, freeze = values.get("epochs"), values.get("freeze_epochs")
    if freeze == 0:
        if "unfreeze_lr" in flags:
            raise UsageError("--unfreeze-lr has no use with --freeze-epochs 0: nothing is unfrozen; give --lr")
        if "lr" in flags or origins["lr"].source == "config file":
            values["unfreeze_lr"] = values["lr"]
            origins["unfreeze_lr"] = Origin("follows", "nothing is frozen, so --lr holds throughout")
        else:
            values["lr"] = values["unfreeze_lr"]
            origins["lr"] = Origin("follows", "nothing is frozen, so all of it trains at the fine-tuning rate")
    elif epochs == freeze and "unfreeze_lr" in flags:
        raise UsageError(f"--unfreeze-lr has no use when all {epochs} epochs are frozen; give more --epochs")


def _follow_steps(
    values: dict[str, object], origins: dict[str, Origin], facts: Facts, flags: Mapping[str, object]
) -> None:
    """Let the epochs follow from the steps, which are exact: the last epoch may be cut short.

    A config file that a run has kept names the steps alone.
    """
    both_in_file = origins["epochs"].source == origins["steps"].source == "config file"
    if ("epochs" in flags and "steps" in flags) or both_in_file:
        raise UsageError("--steps and --epochs both say how long to train; give one of them")
    steps = values.get("steps")
    if "epochs" in flags:
        values["steps"] = None
    if not isinstance(steps, int) or "epochs" in flags:
        return
    freeze, batch = _int(values, "freeze_epochs", 0), _batch(values)
    head = freeze * steps_in_epoch(facts.train_images, batch)
    if steps < head:
        raise UsageError(
            f"--steps {steps} is the total and cannot be fewer than those of --freeze-epochs {freeze}, {head}"
        )
    an_epoch = steps_in_epoch(facts.train_images, batch, drop_single=values.get("bn") == "train")
    values["epochs"] = freeze + -(-(steps - head) // an_epoch)
    origins["epochs"] = Origin("follows", f"{steps:,} steps, {an_epoch:,} an epoch")


def _refuse_useless(values: Mapping[str, object], flags: Mapping[str, object]) -> None:
    """Refuse flags that would do nothing: who gives one expects something of it."""
    all_frozen = values.get("epochs") == values.get("freeze_epochs")
    needs: dict[str, tuple[bool, str]] = {
        "momentum": (values.get("optimizer") == "sgd", "without --optimizer sgd"),
        "warmup": (values.get("schedule") == "cosine", "without --schedule cosine"),
        "auto_ops": (values.get("auto_augment") == "randaugment", "without --auto-augment randaugment"),
        "auto_magnitude": (values.get("auto_augment") == "randaugment", "without --auto-augment randaugment"),
    }
    for name in ("feature_views", "feature_dtype"):
        needs[name] = (bool(values.get("feature_cache", True)), "without a feature cache")
    for name in ("freeze_until", "unfreeze_stages", "layer_decay", "drop_path", "bn"):
        needs[name] = (not all_frozen, "when all epochs are frozen")
    if all_frozen and values.get("feature_cache"):
        for name in ("mixup", "cutmix", "random_erasing", "auto_augment"):
            needs[name] = (False, "on cached features; give --no-feature-cache, or more --epochs")
    for name, (is_used, when) in needs.items():
        is_off = values.get(name) == TrainConfig.model_fields[name].default
        if name in flags and not is_used and not is_off:
            raise UsageError(f"--{name.replace('_', '-')} has no use {when}")


def _batch(values: Mapping[str, object]) -> int:
    # What is out of range is refused by its own name, later.
    return max(1, _int(values, "batch_size", 64) * _int(values, "accumulate", 1))


@dataclass(frozen=True, slots=True)
class _Length:
    """How long everything trains after the head.

    Attributes:
        epochs: of fine-tuning.
        epochs_small: of a set of fewer than ``_SMALL`` images.
        fewest_steps: of a set so small that its epochs would be fewer.
    """

    epochs: int
    epochs_small: int
    fewest_steps: int


def _default(facts: Facts, given: Mapping[str, object]) -> dict[str, Setting]:
    return _fine_tuning(facts, given, _Length(4, 10, _FEWEST_STEPS))


def _fast(facts: Facts, given: Mapping[str, object]) -> dict[str, Setting]:
    return _fine_tuning(facts, given, _Length(1, 4, _FEWEST_STEPS // 2))


def _fine_tuning(facts: Facts, given: Mapping[str, object], length: _Length) -> dict[str, Setting]:
    tune = length.epochs_small if facts.train_images < _SMALL else length.epochs
    an_epoch = steps_in_epoch(facts.train_images, _batch(given))
    freeze = _int(given, "freeze_epochs", _default_freeze(given, an_epoch))
    why_freeze = "a trained head before unfreezing keeps the features intact (LP-FT)"
    if not facts.pretrained and "freeze_epochs" not in given:
        freeze, why_freeze = 0, "there are no trained features to keep"
    steps: dict[str, Setting] = {}
    if "epochs" not in given and tune * an_epoch < length.fewest_steps:
        fewest = length.fewest_steps
        why = f"{facts.train_images:,} images are {an_epoch} a pass; a small set needs {fewest} of fine-tuning"
        steps = {"steps": Setting(freeze * an_epoch + fewest, why)}
    return steps | {
        "freeze_epochs": Setting(freeze, why_freeze),
        "epochs": Setting(freeze + tune, f"the frozen ones and {tune} more for {facts.train_images:,} images"),
        "optimizer": Setting("adamw", "weight decay apart from the gradient: the usual choice for fine-tuning"),
        "lr": Setting(1e-3, "of a linear head on cached features"),
        # EfficientNet-Lite0, CIFAR-10 at 64 px, 5 epochs after the head, one seed, 5,000 validation images: 89.1% at
        # 6e-4, 88.4% at 1e-3. On 9,000 images for 3 epochs, 1,000 validated: 80.1% at 3e-4, 80.7% at 6e-4, 82.2% at
        # 1e-3, 81.2% at 1.5e-3; at 6e-4 BatchNorm in train mode had 78.0%.
        "unfreeze_lr": Setting(6e-4, "one-cycle peak at batch 64; 1e-3 was 0.7 points worse on all of CIFAR-10"),
        "weight_decay": Setting(0.01, "AdamW's usual value"),
        "decay_norms": Setting(False, "norms and biases are few and are not what overfits"),
        "schedule": Setting("one-cycle", "ends each phase at a rate near zero"),
        "label_smoothing": Setting(0.1, "less overconfident answers"),
        "bn": _default_bn(facts),
        "augment": _default_augment(facts, given),
        "sampler": _default_sampler(facts, given),
        "input_size": _default_input_size(facts),
        "feature_cache": Setting(True, "the frozen phase sees plain and mirrored images, computed once"),
    }


def _default_freeze(given: Mapping[str, object], steps_an_epoch: int) -> int:
    """Return 5 epochs, or half of fewer; --steps leaves half of them to the rest."""
    steps = given.get("steps")
    epochs = steps // steps_an_epoch if isinstance(steps, int) else _int(given, "epochs", 10)
    return min(5, epochs // 2)


def _default_bn(facts: Facts) -> Setting:
    if facts.pretrained:
        return Setting("frozen", "pretrained statistics beat those of small batches (80.7% against 78.0% validated)")
    return Setting("train", "there are no pretrained statistics")


def _default_augment(facts: Facts, given: Mapping[str, object]) -> Setting:
    if not facts.mirrors:
        return Setting("shift", "a mirrored digit, letter or sign is another one")
    if facts.native_size is not None and facts.native_size < TINY_PIXELS:
        if facts.train_images < _SMALL:
            return Setting("flip-shift", "few images, seen often; a crop would leave little of a tiny image")
        return Setting("flip", "in a few epochs a shift costs more than it gives (83.1% against 82.6% validated)")
    if given.get("resize") in ("squash", "pad"):
        return Setting("flip", f"random crops would cut off the ends, which --resize {given['resize']} keeps")
    return Setting("flip-crop", "random resized crops suit photographs")


def _default_sampler(facts: Facts, given: Mapping[str, object]) -> Setting:
    if facts.imbalance < UNEVEN or given.get("class_weights", "none") != "none":
        few = f"the largest class has less than {UNEVEN:.0f} times the images of the smallest"
        return Setting("shuffle", few if facts.imbalance < UNEVEN else "--class-weights")
    # EfficientNet-Lite0's head on cached features at 64 px, class sizes falling evenly, 5,000 validation images of even
    # classes, three seeds: 10:1 in 1,839 images 55.9% shuffled, 61.1% balanced, 62.1% with class weights; 100:1 in
    # 2,234 images 42.6%, 49.7%, 48.7%.
    why = (
        f"the largest class has {facts.imbalance:.0f} times the images of the smallest; mean accuracy of classes rises"
    )
    return Setting("balanced", why)


def _default_input_size(facts: Facts) -> Setting:
    if facts.native_size is None or facts.native_size >= TINY_PIXELS:
        return Setting(facts.own_input, "the size of the published weights" + _where_sizes_differ(facts))
    wanted, where = 128, "a GPU affords it"
    if not facts.on_gpu:
        wanted, where = (64, "enough for so few pixels") if facts.native_size <= _FEW_PIXELS else (96, _AT_96)
    size = min(max(wanted, facts.smallest_input), facts.own_input)
    if size != wanted:
        where = f"what this architecture takes, nearest to {wanted}"
    return Setting(size, f"{facts.native_size} px images are enlarged; {where}{_where_sizes_differ(facts)}")


def _where_sizes_differ(facts: Facts) -> str:
    """Return the range of sizes, and what the choice for the median means for the others where they are many."""
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


def _blog(facts: Facts, given: Mapping[str, object]) -> dict[str, Setting]:
    size = facts.own_input
    if facts.native_size is not None:
        size = min(max(facts.native_size, facts.smallest_input), facts.own_input)
    settings = {
        "freeze_epochs": Setting(5, "as in the blog"),
        "epochs": Setting(max(40, _int(given, "freeze_epochs", 5)), "5 frozen and 35 more, as in the blog"),
        "optimizer": Setting("adam", "as in the blog"),
        "lr": Setting(1e-3, "as in the blog"),
        "unfreeze_lr": Setting(1e-4, "all parameters at one rate, as in the blog"),
        "weight_decay": Setting(1e-4, "as in the blog; Adam's, inside the gradient"),
        "decay_norms": Setting(True, "on all parameters, as in the blog"),
        "schedule": Setting("plateau", "factor 0.5, patience 2 on the validation loss, across the unfreezing"),
        "label_smoothing": Setting(0.0, "as in the blog"),
        "bn": Setting("train", "as in the blog, once unfrozen"),
        "augment": Setting("blog", "crop with padding 4 of 32, flip, colour jitter, rotation by 15 degrees"),
        "input_size": Setting(size, "the images' own size, as in the blog" + _where_sizes_differ(facts)),
        "feature_cache": Setting(False, "the blog augments in its frozen phase, so its features are never the same"),
    }
    if facts.data == "cifar10":
        settings["mean"] = Setting(_CIFAR_MEAN, "CIFAR-10's own, as in the blog")
        settings["std"] = Setting(_CIFAR_STD, "CIFAR-10's own, as in the blog")
    return settings


def _machine(facts: Facts) -> dict[str, Setting]:
    """Settings that belong to the machine rather than to a recipe."""
    half = facts.on_gpu and facts.bf16
    settings = {
        "precision": Setting("bf16" if half else "fp32", "the GPU computes in it" if half else "safe everywhere"),
        "layout": Setting("channels-last", "a training step is 1.2 to 3 times as fast on a CPU; GPUs want it too"),
        "workers": Setting(min(8, facts.cores), f"{facts.cores} cores; at most 8 threads decode"),
    }
    if facts.idle_cores:
        why = f"{facts.idle_cores} of {facts.cores} cores are idle now; threads that share one wait for each other"
        settings["threads"] = Setting(facts.idle_cores, why)
    return settings


def _data(facts: Facts) -> dict[str, Setting]:
    """Settings that are measured on the training images."""
    if facts.measured is None:
        return {}
    return {"pixel_range": Setting(facts.measured.pixel_range, facts.measured.describe())}


def _int(given: Mapping[str, object], name: str, otherwise: int) -> int:
    value = given.get(name, otherwise)
    return value if isinstance(value, int) else otherwise


_RECIPES: dict[str, Callable[[Facts, Mapping[str, object]], dict[str, Setting]]] = {
    "default": _default,
    "fast": _fast,
    "blog": _blog,
}
