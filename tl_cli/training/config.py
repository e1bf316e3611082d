"""Every setting of a training run, declared once, as a field of `Settings`. No torch, MLflow or typer here.

The options of ``tl train``, the keys of ``--config``, MLflow's parameters, the JSON schema and the README's table come
from these fields.
"""

import codecs
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

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
from tl_cli.io.file_uris import local_path

Panel = Literal["Model", "Data", "Training", "Freezing", "Regularization", "Augmentation", "Machine"]
Completion = Literal["model", "data", "weights"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Statistics = tuple[Finite, Finite, Finite]

CROP_MODES: dict[ResizeName, CropMode] = {"crop": "center", "squash": "squash", "pad": "border"}
Checked = TypeVar("Checked", bound="Settings")
_RECIPE, _MACHINE = "set by the recipe", "set for the machine"


@dataclass(frozen=True, slots=True)
class Setting:
    """How a setting is presented: as an option of ``tl train``, in the shell and in the README.

    Attributes:
        help: one sentence, without the default.
        panel: group of options in the help text.
        metavar: placeholder of the value; None: from the type.
        default: description of the default, where that is not the field's own.
        completion: what the shell offers: the names of a kind, or these values; None: those of the type.
        is_path: whether the value is a file or folder.
        env: environment variable that sets it.
        shows_range: whether the help shows the bounds and the parser checks them.
    """

    help: str
    panel: Panel
    metavar: str | None = None
    default: str | None = None
    completion: Completion | tuple[str, ...] | None = None
    is_path: bool = False
    env: str | None = None
    shows_range: bool = False


class Settings(BaseModel):
    """Settings as a person gives them. None, where the type allows it, leaves the choice to the recipe or the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[
        str | None,
        Setting("Architecture, such as resnet18; tl models lists them.", "Model", "MODEL", completion="model"),
    ] = None
    data: Annotated[
        str,
        Field(min_length=1),
        Setting("Data set: a name that tl data lists, a folder, a CSV file, a zip or tar archive.",
                "Data", "NAME|PATH", completion="data"),
    ] = "cifar10"  # fmt: skip
    path_column: Annotated[
        str | None,
        Field(min_length=1),
        Setting("CSV column of the image path.", "Data", "NAME|N", default="found by its usual names"),
    ] = None
    label_column: Annotated[
        str | None,
        Field(min_length=1),
        Setting("CSV column of the class.", "Data", "NAME|N", default="found by its usual names"),
    ] = None
    split_column: Annotated[
        str | None,
        Field(min_length=1),
        Setting("CSV column with train, val or test.", "Data", "NAME|N", default="found by its usual names"),
    ] = None
    data_dir: Annotated[
        str | None,
        Setting("Folder for downloaded data sets.", "Data", "DIR", default="the user's cache folder", is_path=True,
                env="TL_DATA_DIR"),
    ] = None  # fmt: skip
    limit: Annotated[
        int | None, Field(ge=2), Setting("Maximum images per split (stratified).", "Data", default="all")
    ] = None
    val_fraction: Annotated[
        float,
        Field(gt=0, lt=0.9),
        Setting(
            "Fraction of the training images held out for validation, if the data have no validation split.", "Data"
        ),
    ] = 0.1
    split_seed: Annotated[int, Field(ge=0), Setting("Random seed of the split.", "Data")] = 0
    sampler: Annotated[
        SamplerName,
        Setting("shuffle, or balanced: draw every class equally often.", "Data", "NAME", default=_RECIPE),
    ] = "shuffle"
    class_weights: Annotated[
        ClassWeights, Setting("none, or balanced: give rare classes a larger weight in the loss.", "Data", "NAME")
    ] = "none"
    on_bad_image: Annotated[
        OnBadImage,
        Setting("Images that cannot be decoded: error, or skip (left out before the split).", "Data", "NAME"),
    ] = "error"
    max_pixels: Annotated[
        int | None,
        Field(ge=1, le=1 << 40),
        Setting("Maximum pixels of an image, width times height.", "Data", "PIXELS",
                default="the model's own limit, else 89478485", shows_range=True),
    ] = None  # fmt: skip
    input_size: Annotated[
        int | None, Field(ge=8, le=2048), Setting("Side of the network's input in pixels.", "Data", default=_RECIPE)
    ] = None
    pixel_range: Annotated[
        tuple[Finite, Finite] | None,
        Setting("Values of black and white in images with more than 8 bits per channel.", "Data", "LOW HIGH",
                default="measured on the training images"),
    ] = None  # fmt: skip
    resize: Annotated[
        ResizeName | None,
        Setting("How images become square: crop (the center), squash or pad (both keep the whole image).", "Data",
                "NAME", default="as the weights were trained"),
    ] = None  # fmt: skip
    weights: Annotated[
        str,
        Setting("Name of pretrained weights, none (random), a file (FILE#KEY: a key of a checkpoint), a saved model or "
                "a run; a saved model or run also sets MODEL.", "Training", "NAME|FILE|RUN",
                default="the usual pretrained weights of the architecture", completion="weights"),
    ] = "default"  # fmt: skip
    head: Annotated[
        HeadName | None,
        Setting("new, or keep: the head of the weights, classes by position.", "Training", "NAME",
                default="keep the rows of classes with the same name"),
    ] = None  # fmt: skip
    mean: Annotated[
        Statistics | None,
        Setting(
            "Channel means for normalization (values in 0 to 1).", "Training", "R G B", default="those of the weights"
        ),
    ] = None
    std: Annotated[
        Statistics | None,
        Setting("Channel standard deviations for normalization.", "Training", "R G B", default="those of the weights"),
    ] = None
    recipe: Annotated[RecipeName, Setting("Settings to start from: default, fast or blog.", "Training", "NAME")] = (
        "default"
    )
    epochs: Annotated[
        int | None,
        Field(ge=1),
        Setting("Total epochs, including the frozen ones.", "Training", default=_RECIPE),
    ] = None
    steps: Annotated[int | None, Field(ge=1), Setting("Total optimizer steps, instead of --epochs.", "Training")] = None
    batch_size: Annotated[int, Field(ge=1), Setting("Images per batch.", "Training")] = 64
    accumulate: Annotated[
        int, Field(ge=1), Setting("Batches per optimizer step (gradient accumulation).", "Training")
    ] = 1
    clip_norm: Annotated[
        float, Field(ge=0, allow_inf_nan=False), Setting("Maximum gradient norm; 0: no clipping.", "Training")
    ] = 0.0
    lr: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        Setting("Peak learning rate while the backbone is frozen.", "Training", default=_RECIPE),
    ] = None
    optimizer: Annotated[OptimizerName | None, Setting("adam, adamw or sgd.", "Training", "NAME", default=_RECIPE)] = (
        None
    )
    momentum: Annotated[float, Field(ge=0, lt=1), Setting("Momentum of sgd.", "Training")] = 0.9
    schedule: Annotated[
        ScheduleName | None,
        Setting("Learning-rate schedule: constant, cosine, one-cycle or plateau.", "Training", "NAME", default=_RECIPE),
    ] = None
    warmup: Annotated[float, Field(ge=0, lt=1), Setting("Warm-up fraction of each phase (cosine).", "Training")] = 0.1
    early_stop: Annotated[
        int,
        Field(ge=0),
        Setting("Stop after N epochs without a better validation accuracy; 0: never.", "Training", "N"),
    ] = 0
    seed: Annotated[int, Field(ge=0, lt=1 << 63), Setting("Random seed.", "Training")] = 0
    freeze_epochs: Annotated[
        int | None, Field(ge=0), Setting("Epochs in which only the head trains.", "Freezing", default=_RECIPE)
    ] = None
    unfreeze_lr: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        Setting("Peak learning rate after unfreezing.", "Freezing", default=_RECIPE),
    ] = None
    freeze_until: Annotated[
        str | None,
        Field(min_length=1),
        Setting("Keep the layers before this one frozen, such as layer3.", "Freezing", "LAYER", default="none"),
    ] = None
    unfreeze_stages: Annotated[
        int, Field(ge=1, le=100), Setting("Unfreeze in N equal stages, from the head down.", "Freezing", "N")
    ] = 1
    layer_decay: Annotated[
        float, Field(gt=0, le=1), Setting("Learning-rate factor per layer, from the head down.", "Freezing")
    ] = 1.0
    bn: Annotated[
        BatchNormMode | None,
        Setting("BatchNorm statistics after unfreezing: frozen or train.", "Freezing", "MODE", default=_RECIPE),
    ] = None
    feature_cache: Annotated[
        bool,
        Setting("Compute the output of frozen layers once and train the rest on it.", "Freezing", default=_RECIPE),
    ] = True
    feature_views: Annotated[
        str,
        Field(pattern=r"^(plain|flip|[1-9][0-9]?)$"),
        Setting("Cached views of each training image: plain, flip (also mirrored), or the number of augmented views.",
                "Freezing", "NAME|N", completion=("plain", "flip")),
    ] = "flip"  # fmt: skip
    feature_dtype: Annotated[
        FeatureDtype, Setting("Precision of cached features: fp16 or fp32.", "Freezing", "NAME")
    ] = "fp16"
    weight_decay: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False),
        Setting("Weight decay.", "Regularization", default=_RECIPE),
    ] = None
    decay_norms: Annotated[
        bool,
        Setting("Apply weight decay also to norms, biases, tokens and position embeddings.", "Regularization",
                default=_RECIPE),
    ] = True  # fmt: skip
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1), Setting("Label smoothing.", "Regularization", default=_RECIPE)
    ] = 0.0
    dropout: Annotated[
        float | None,
        Field(ge=0, lt=1),
        Setting("Dropout before the classifier.", "Regularization", default="the architecture's own"),
    ] = None
    drop_path: Annotated[
        float | None,
        Field(ge=0, lt=1),
        Setting("Drop-path rate of the last block (stochastic depth).", "Regularization",
                default="the architecture's own"),
    ] = None  # fmt: skip
    ema: Annotated[
        float, Field(ge=0, lt=1), Setting("Decay of averaged weights, such as 0.999; 0: none.", "Regularization")
    ] = 0.0
    augment: Annotated[
        AugmentName | None,
        Setting("Augmentation: none, shift, flip, flip-shift, flip-crop or blog.", "Augmentation", "NAME",
                default=_RECIPE),
    ] = None  # fmt: skip
    auto_augment: Annotated[
        AutoAugment,
        Setting("Automatic augmentation: none, randaugment or trivialaugment.", "Augmentation", "NAME"),
    ] = "none"
    auto_ops: Annotated[int, Field(ge=1, le=10), Setting("Operations per image of randaugment.", "Augmentation")] = 2
    auto_magnitude: Annotated[int, Field(ge=0, le=30), Setting("Strength of randaugment, 0 to 30.", "Augmentation")] = 9
    random_erasing: Annotated[
        float, Field(ge=0, le=1), Setting("Probability that a box of an image is erased.", "Augmentation")
    ] = 0.0
    mixup: Annotated[
        float, Field(ge=0, allow_inf_nan=False), Setting("MixUp alpha, usually 0.2 to 0.8; 0: off.", "Augmentation")
    ] = 0.0
    cutmix: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Setting("CutMix alpha, usually 1; 0: off. With MixUp too, each step uses one of them.", "Augmentation"),
    ] = 0.0
    device: Annotated[DeviceName, Setting("Compute device.", "Machine")] = "auto"
    precision: Annotated[Precision, Setting("fp32, bf16 or fp16.", "Machine", "NAME", default=_MACHINE)] = "fp32"
    layout: Annotated[
        Layout, Setting("Memory layout: channels-last or contiguous.", "Machine", "NAME", default=_MACHINE)
    ] = "channels-last"
    threads: Annotated[
        int, Field(ge=0), Setting("CPU threads of torch; 0: torch's own choice.", "Machine", default=_MACHINE)
    ] = 0
    fold: Annotated[
        bool | None, Setting("Fold frozen BatchNorm into the preceding convolution.", "Machine", default=_MACHINE)
    ] = None
    probe: Annotated[bool, Setting("Time a few steps to choose precision, layout, threads and folding.", "Machine")] = (
        True
    )
    workers: Annotated[
        int,
        Field(ge=0, le=64),
        Setting("Image-loading threads.", "Machine", default="one per core, at most 8", shows_range=True),
    ] = 2
    checkpoint_every: Annotated[
        str,
        Field(pattern=r"^\d{1,9}[sm]?$"),
        Setting("Steps, or time such as 5m or 30s, between checkpoints within an epoch; 0: only at its end.",
                "Machine", "N|TIME"),
    ] = "5m"  # fmt: skip
    log_every: Annotated[
        int, Field(ge=0), Setting("Steps between points of the loss curve; 0: about 50 points per epoch.", "Machine")
    ] = 0

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.epochs is not None:
            tuned = self.epochs - (self.freeze_epochs or 0)
            if tuned < 0:
                raise ValueError(
                    f"--epochs {self.epochs} is the total and cannot be fewer than --freeze-epochs {self.freeze_epochs}"
                )
            if 0 < tuned < self.unfreeze_stages:
                raise ValueError(
                    f"--unfreeze-stages {self.unfreeze_stages} needs at least as many epochs after the frozen ones; "
                    f"there are {tuned}"
                )
        if self.class_weights == "balanced" and self.sampler == "balanced":
            raise ValueError("--class-weights balanced and --sampler balanced would correct for rare classes twice")
        if self.freeze_until is not None and self.weights == "none":
            raise ValueError("--freeze-until with --weights none would keep those layers random throughout")
        if self.head == "keep" and self.weights == "none":
            raise ValueError("--head keep needs weights with a head; --weights none has none")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("--std must be positive in every channel")
        if self.pixel_range is not None and self.pixel_range[0] >= self.pixel_range[1]:
            raise ValueError("--pixel-range takes the value of black and a larger one for white")
        return self


class TrainConfig(Settings):
    """The settings of one run, complete. The fields below have no default: a person or the recipe sets them."""

    model: str
    epochs: int
    freeze_epochs: int
    optimizer: OptimizerName
    lr: float
    unfreeze_lr: float
    weight_decay: float
    schedule: ScheduleName
    bn: BatchNormMode
    augment: AugmentName
    input_size: int


FIELDS = tuple(Settings.model_fields)


@dataclass(frozen=True, slots=True)
class Given:
    """The settings that a person gave, and where: on the command line (or in Python), in the config file.

    Attributes:
        settings: both; the command line has precedence.
        flags: names of the settings from the command line.
        file: names of the settings from the config file, including those that a flag overrides.
    """

    settings: Settings
    flags: frozenset[str] = frozenset()
    file: frozenset[str] = frozenset()

    @classmethod
    def of(cls, flags: Mapping[str, object], file: Mapping[str, object] | None = None) -> Self:
        """Check settings by name.

        Raises:
            UsageError: a value is out of range or of the wrong type, or two contradict each other.
        """
        file = file or {}
        return cls(settings_from({**file, **flags}), frozenset(flags), frozenset(file))

    def __contains__(self, name: str) -> bool:
        return name in self.settings.model_fields_set

    @property
    def model(self) -> str:
        """The architecture.

        Raises:
            UsageError: none is given.
        """
        if not self.settings.model:
            raise UsageError("give a MODEL, such as efficientnet_lite0")
        return self.settings.model

    def values(self) -> dict[str, Any]:
        """Return the given settings by name."""
        return values_of(self.settings)

    def replaced(self, **values: object) -> "Given":
        """Return these settings with other values, as if they had been given so; new names count as flags."""
        settings = self.settings.model_copy(update=values)
        return Given(settings, self.flags | (set(values) - self.file), self.file)


def values_of(settings: Settings) -> dict[str, Any]:
    """Return those settings by name that were given."""
    return {name: getattr(settings, name) for name in FIELDS if name in settings.model_fields_set}


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A setting for people: name, type in words or choices, default, help."""

    name: str
    choices: tuple[str, ...]
    default: str
    setting: Setting
    annotation: Any
    bounds: Mapping[str, int]


def setting_rows() -> tuple[SettingRow, ...]:
    """Return all settings in the order in which help lists them."""
    return tuple(setting_row(name) for name in FIELDS)


def setting_row(name: str) -> SettingRow:
    """Return a setting, as help and documents present it."""
    field = Settings.model_fields[name]
    (setting,) = (each for each in field.metadata if isinstance(each, Setting))
    kind = _plain_type(field.annotation)
    bounds = {key: getattr(each, key) for each in field.metadata for key in ("ge", "le") if hasattr(each, key)}
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    default = setting.default or _in_words(field.default)
    return SettingRow(name, choices, default, setting, kind, bounds)


def _in_words(default: object) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _plain_type(annotation: Any) -> Any:
    """Return a type without ``None`` and without bounds."""
    if get_origin(annotation) is tuple:
        return tuple[tuple(_plain_type(each) for each in get_args(annotation))]  # type: ignore[misc]
    if get_origin(annotation) in (Annotated, Literal) or not get_args(annotation):
        return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    (inner,) = (each for each in get_args(annotation) if each is not type(None))
    return _plain_type(inner)


def settings_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file's settings."""
    schema = Settings.model_json_schema()
    for row in setting_rows():
        schema["properties"][row.name].pop("title", None)
        schema["properties"][row.name] |= {"description": described(row)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://tl-train.invalid/settings/1",
        **schema,
    }


def described(row: SettingRow) -> str:
    """Return the help text of a setting, with its default."""
    return f"{row.setting.help} Default: {row.default}." if row.default else row.setting.help


def phase_ends(freeze_epochs: int, epochs: int, stages: int) -> tuple[int, ...]:
    """Return the last epoch of each phase: the head alone, then the stages of unfreezing.

    A phase without epochs ends with the one before it.

    Args:
        freeze_epochs: epochs of the head phase.
        epochs: total epochs of the run.
        stages: number of unfreezing stages.
    """
    # The last stages train the most layers, so they get the remaining epochs.
    return tuple(freeze_epochs + stage * (epochs - freeze_epochs) // stages for stage in range(stages + 1))


def settings_from(values: Mapping[str, object]) -> Settings:
    """Return settings, of which some may be missing.

    Raises:
        UsageError: a value is out of range or of the wrong type, or two contradict each other.
    """
    return _validate(Settings, values)


def validated(values: Mapping[str, object]) -> TrainConfig:
    """Return the config of these values.

    Raises:
        UsageError: a value is missing, out of range or of the wrong type, or two contradict each other.
    """
    return _validate(TrainConfig, values)


def _validate(kind: type[Checked], values: Mapping[str, object]) -> Checked:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError("; ".join(_describe(problem) for problem in error.errors())) from error


def read_toml(path: Path) -> dict[str, object]:
    """Return the settings of a config file, under their fields' names (``-`` and ``_`` alike).

    Raises:
        UsageError: the file is missing, not valid TOML, or has a key that is not a setting.
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
            hint = hint if known != "" else " Leave it out: it is the default here."
            raise UsageError(f"{path} has an unknown setting {key!r}.{hint}")
    return settings


def as_toml(settings: Mapping[str, object]) -> str:
    """Return settings as TOML, one per line."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())


def settings_of(config: Mapping[str, object]) -> dict[str, object]:
    """Return the settings from which the same config is resolved again: without None, and without derived epochs."""
    derived = "epochs" if config.get("steps") is not None else None
    return {key: value for key, value in config.items() if value is not None and key != derived}


def _toml(value: object) -> str:
    # Strings, numbers, booleans and flat lists are written in TOML as in JSON.
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _describe(problem: Mapping[str, object]) -> str:
    location = problem["loc"]
    name = str(location[0]).replace("_", "-") if isinstance(location, tuple) and location else ""
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"--{name} {problem['input']}: {message}" if name else message
