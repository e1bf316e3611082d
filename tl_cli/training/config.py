"""Every setting of a training run, resolved. The same names stand in flags, config files and MLflow. No torch here."""

import codecs
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tl_cli.choices import (
    AugmentName,
    AutoAugment,
    BatchNormMode,
    ClassWeights,
    DeviceName,
    FeatureDtype,
    HeadName,
    Layout,
    OnBadImage,
    OptimizerName,
    Precision,
    RecipeName,
    ResizeName,
    SamplerName,
    ScheduleName,
)
from tl_cli.contract import CropMode
from tl_cli.errors import UsageError, suggest
from tl_cli.habits import setting
from tl_cli.io.atomic import write_text
from tl_cli.io.file_uris import local_path

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Statistics = tuple[Finite, Finite, Finite]

CROP_MODES: dict[ResizeName, CropMode] = {"crop": "center", "squash": "squash", "pad": "border"}


def phase_ends(freeze_epochs: int, epochs: int, stages: int) -> tuple[int, ...]:
    """Return the last epoch of each phase: the head alone, then the stages of unfreezing.

    Phases without epochs have the end of the one before.

    Args:
        freeze_epochs: epochs of the head phase.
        epochs: of the whole run.
        stages: of unfreezing.
    """
    # The last stages, in which the most layers train, get the epochs that are left over.
    return tuple(freeze_epochs + stage * (epochs - freeze_epochs) // stages for stage in range(stages + 1))


class TrainConfig(BaseModel):
    """The settings of one run.

    Attributes:
        model: name in the zoo.
        weights: ``default``, a published name, ``none``, a file, or a saved-model folder.
        head: ``new`` starts with a new head, ``keep`` with that of the weights, class by class in their order. None
            keeps the rows of classes that the weights name, and starts the others anew.
        data: a built-in set (``tl data`` lists them), a folder, a CSV, or a zip or tar of a folder.
        path_column: of a CSV, that names the picture; None finds it by the usual names.
        label_column: the same of the class.
        split_column: the same of the part.
        data_dir: where downloaded sets are kept; None is the user's cache folder.
        epochs: in all, frozen ones included; follows from ``steps`` where they are given.
        steps: optimizer steps in all, the frozen ones included; None: the epochs decide.
        freeze_epochs: how many of them train the head alone.
        lr: learning rate of the head while the backbone is frozen; of everything when nothing is frozen.
        unfreeze_lr: learning rate of everything after that.
        freeze_until: name of the layer below which the backbone stays frozen after the head phase too.
        unfreeze_stages: in how many equal stages, from the head down, the backbone is unfrozen.
        layer_decay: each layer's learning rate is this times that of the layer above it.
        decay_norms: weight decay on norms, biases, tokens and embeddings too.
        accumulate: batches of ``batch_size`` whose gradients make one optimizer step.
        warmup: share of a phase in which the cosine schedule rises.
        clip_norm: largest gradient norm; 0 is no clipping.
        bn: what BatchNorm statistics do once the backbone trains.
        early_stop: epochs without a better validation accuracy after which the run ends; 0 is never.
        auto_augment: a published set of random operations on each image.
        auto_ops: RandAugment's operations on each image.
        auto_magnitude: RandAugment's strength, of 30.
        random_erasing: probability that a box in an image is erased.
        mixup: alpha of MixUp on image batches; 0 is off.
        cutmix: alpha of CutMix on image batches; 0 is off. With both, each step takes one of them.
        dropout: probability on the head's input; None is the architecture's own.
        drop_path: largest rate of stochastic depth; None is the architecture's own.
        ema: decay of the moving average of the weights; 0 is none.
        class_weights: ``balanced`` weighs the loss of an image by the rarity of its class.
        sampler: ``balanced`` shows every class equally often.
        input_size: side of the network's input in pixels.
        resize: how a picture becomes a square: its centre is cropped, it is squashed, or its shorter side is padded;
            None is the weights' own way.
        pixel_range: numbers that become black and white in pictures of more than 8 bits per channel; None measures them
            on the training images.
        mean: channel statistics to use instead of the weights' own, for values in 0..1.
        std: the same.
        feature_cache: train a phase whose first layers are frozen on what they give, computed once.
        feature_views: of each training image: ``plain``, ``flip`` (the mirror image too, where images are flipped), or
            the number of augmented views.
        feature_dtype: in which features are kept.
        limit: at most so many images a part, stratified; None is all.
        val_fraction: share of the training images held out where the data bring no validation part.
        on_bad_image: ``error`` names the files that cannot be decoded; ``skip`` leaves them out before the split.
        max_pixels: how many may be decoded of a picture; None is the usual limit.
        workers: threads that decode images from files.
        threads: threads of a tensor operation on the CPU; 0 leaves torch's own number.
        fold: compute BatchNorm whose statistics stand still inside the convolution before it; None is what pays on the
            kind of device.
        probe: time a few steps to choose layout, precision, threads and folding, where a run is long enough.
        checkpoint_every: steps, minutes (``5m``) or seconds (``30s``) between checkpoints within an epoch; ``0``: none.
        log_every: steps between two points of the iteration loss; 0 chooses about 50 an epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str = "default"
    head: HeadName | None = None
    data: Annotated[str, Field(min_length=1)] = "cifar10"
    path_column: Annotated[str, Field(min_length=1)] | None = None
    label_column: Annotated[str, Field(min_length=1)] | None = None
    split_column: Annotated[str, Field(min_length=1)] | None = None
    data_dir: str | None = None
    limit: Annotated[int, Field(ge=2)] | None = None
    on_bad_image: OnBadImage = "error"
    max_pixels: Annotated[int, Field(ge=1, le=1 << 40)] | None = None
    val_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    split_seed: Annotated[int, Field(ge=0)] = 0
    recipe: RecipeName = "default"
    epochs: Annotated[int, Field(ge=1)]
    freeze_epochs: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1)] | None = None
    freeze_until: Annotated[str, Field(min_length=1)] | None = None
    unfreeze_stages: Annotated[int, Field(ge=1, le=100)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 64
    accumulate: Annotated[int, Field(ge=1)] = 1
    optimizer: OptimizerName
    lr: Positive
    unfreeze_lr: Positive
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    decay_norms: bool = True
    momentum: Share = 0.9
    schedule: ScheduleName
    warmup: Share = 0.1
    label_smoothing: Share = 0.0
    clip_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    dropout: Share | None = None
    drop_path: Share | None = None
    ema: Share = 0.0
    class_weights: ClassWeights = "none"
    sampler: SamplerName = "shuffle"
    bn: BatchNormMode
    early_stop: Annotated[int, Field(ge=0)] = 0
    augment: AugmentName
    auto_augment: AutoAugment = "none"
    auto_ops: Annotated[int, Field(ge=1, le=10)] = 2
    auto_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    mixup: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    cutmix: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    input_size: Annotated[int, Field(ge=8, le=2048)]
    resize: ResizeName | None = None
    pixel_range: tuple[Finite, Finite] | None = None
    mean: Statistics | None = None
    std: Statistics | None = None
    feature_cache: bool = True
    feature_views: Annotated[str, Field(pattern=r"^(plain|flip|[1-9][0-9]?)$")] = "flip"
    feature_dtype: FeatureDtype = "fp16"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    device: DeviceName = "auto"
    precision: Precision = "fp32"
    layout: Layout = "channels-last"
    threads: Annotated[int, Field(ge=0)] = 0
    fold: bool | None = None
    probe: bool = True
    workers: Annotated[int, Field(ge=0, le=64)] = 2
    checkpoint_every: Annotated[str, Field(pattern=r"^\d{1,9}[sm]?$")] = "5m"
    log_every: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.epochs < self.freeze_epochs:
            raise ValueError(
                f"--epochs {self.epochs} is the total and cannot be fewer than --freeze-epochs {self.freeze_epochs}"
            )
        tuned = self.epochs - self.freeze_epochs
        if 0 < tuned < self.unfreeze_stages:
            raise ValueError(
                f"--unfreeze-stages {self.unfreeze_stages} needs as many epochs after the frozen ones, not {tuned}"
            )
        if self.class_weights == "balanced" and self.sampler == "balanced":
            raise ValueError("--class-weights balanced and --sampler balanced would correct for rare classes twice")
        if self.freeze_until is not None and self.weights == "none":
            raise ValueError("--freeze-until with --weights none would leave those layers random for ever")
        if self.head == "keep" and self.weights == "none":
            raise ValueError("--head keep needs weights with a head, and --weights none has none")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("--std must be positive in every channel")
        if self.pixel_range is not None and self.pixel_range[0] >= self.pixel_range[1]:
            raise ValueError("--pixel-range takes the number for black and a larger one for white")
        return self


# Valid values for what a recipe has yet to choose.
_STAND_INS: dict[str, object] = {
    "model": "",
    "epochs": 1 << 30,
    "freeze_epochs": 0,
    "optimizer": "adamw",
    "lr": 1.0,
    "unfreeze_lr": 1.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "bn": "frozen",
    "augment": "none",
    "input_size": 224,
}
FIELDS = tuple(TrainConfig.model_fields)


def validated(values: Mapping[str, object]) -> TrainConfig:
    """Return the config of these values.

    Raises:
        UsageError: a value is out of range or of the wrong type, or two contradict each other.
    """
    try:
        return TrainConfig.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError("; ".join(_say(problem) for problem in error.errors())) from error


def check(given: Mapping[str, object]) -> TrainConfig:
    """Check settings that are not complete yet, so that a bad one is said before anything is fetched.

    Returns:
        The given settings, with stand-ins for what a recipe has yet to choose.

    Raises:
        UsageError: a value is out of range or of the wrong type.
    """
    return validated({**_STAND_INS, **given})


def read_toml(path: Path) -> dict[str, object]:
    """Return the settings of a config file, under their fields' names (``-`` and ``_`` alike).

    Raises:
        UsageError: no such file, no TOML, or a key that is no setting.
    """
    try:
        data = path.read_bytes()
        # What Windows programs save as Unicode.
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        content = tomllib.loads(data.decode(encoding).replace("\r\n", "\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the config {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    settings = {
        key.replace("-", "_"): local_path(value) if isinstance(value, str) else value for key, value in content.items()
    }
    for key in settings:
        if key not in FIELDS:
            known = setting(key)
            hint = f" It is called {known} here." if known else suggest(key, FIELDS)
            hint = hint if known != "" else " Leave it out: that is the default here."
            raise UsageError(f"{path} has an unknown setting {key!r}.{hint}")
    return settings


def write_toml(path: Path, config: TrainConfig) -> None:
    """Write every setting as TOML that ``--config`` takes; what is None is left out."""
    write_text(path, as_toml(settings_of(config.model_dump())))


def as_toml(settings: Mapping[str, object]) -> str:
    """Return settings as TOML, one a line."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())


def settings_of(config: Mapping[str, object]) -> dict[str, object]:
    """Return the settings from which a resolved config comes out again: what is None was not given."""
    follows = "epochs" if config.get("steps") is not None else None
    return {key: value for key, value in config.items() if value is not None and key != follows}


def _toml(value: object) -> str:
    # JSON's strings, numbers, booleans and flat lists are TOML's too.
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _say(problem: Mapping[str, object]) -> str:
    location = problem["loc"]
    name = str(location[0]).replace("_", "-") if isinstance(location, tuple) and location else ""
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"--{name} {problem['input']}: {message}" if name else message
