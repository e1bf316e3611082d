"""Every setting of a training run, declared once, as a field of `Settings`. No torch, MLflow or typer here.

The options of ``tl train``, the keys of ``--config``, MLflow's parameters, the JSON schema and the README's table come
from these fields.
"""

import codecs
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tl_cli.choices import (
    AugmentName,
    AutoAugment,
    BatchNormMode,
    ClassWeights,
    DeviceName,
    FeatureDtype,
    HeadFeatures,
    HeadFitName,
    HeadName,
    KeepEpoch,
    Layout,
    OnBadImage,
    OptimizerName,
    Precision,
    RecipeName,
    ResizeName,
    SamplerName,
    ScheduleName,
    TtaName,
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
_RECIPE, _MACHINE, _USUAL_NAMES = "set by the recipe", "set for the machine", "found by its usual names"


@dataclass(frozen=True, slots=True)
class Setting:
    """How a setting is presented: as an option of ``tl train``, in the shell and in the README.

    Attributes:
        panel: group of options in the help text.
        metavar: placeholder of the value; None: from the type.
        default: description of the default, where that is not the field's own.
        completion: what the shell offers: the names of a kind, or these values; None: those of the type.
        is_path: whether the value is a file or folder.
        env: environment variable that sets it.
        shows_range: whether the help shows the bounds and the parser checks them.
        changes_images: name, in messages, of a change of images that cached features skip.
    """

    panel: Panel
    metavar: str | None = None
    default: str | None = None
    completion: Completion | tuple[str, ...] | None = None
    is_path: bool = False
    env: str | None = None
    shows_range: bool = False
    changes_images: str = ""


def _field(default: object, setting: Setting, **bounds: Any) -> Any:
    """Return a field of `Settings`; the docstring below it is its help text."""
    presented: dict[str, Any] = {"setting": setting}
    return Field(default, json_schema_extra=presented, **bounds)


class Settings(BaseModel):
    """Settings as a person gives them. None, where the type allows it, leaves the choice to the recipe or the data."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str | None = _field(None, Setting("Model", "MODEL", completion="model"))
    """Architecture, such as resnet18; tl models lists them."""
    data: str = _field("cifar10", Setting("Data", "NAME|PATH", completion="data"), min_length=1)
    """Data set: a name that tl data lists, a folder, a CSV file, a zip or tar archive."""
    path_column: str | None = _field(None, Setting("Data", "NAME|N", default=_USUAL_NAMES), min_length=1)
    """CSV column of the image path."""
    label_column: str | None = _field(None, Setting("Data", "NAME|N", default=_USUAL_NAMES), min_length=1)
    """CSV column of the class."""
    split_column: str | None = _field(None, Setting("Data", "NAME|N", default=_USUAL_NAMES), min_length=1)
    """CSV column with train, val or test."""
    data_dir: str | None = _field(
        None, Setting("Data", "DIR", default="the user's cache folder", is_path=True, env="TL_DATA_DIR")
    )
    """Folder for downloaded data sets."""
    limit: int | None = _field(None, Setting("Data", default="all"), ge=2)
    """Maximum images per split (stratified)."""
    val_fraction: float = _field(0.1, Setting("Data"), gt=0, lt=0.9)
    """Fraction of the training images held out for validation, if the data have no validation split."""
    split_seed: int = _field(0, Setting("Data"), ge=0)
    """Random seed of the split."""
    sampler: SamplerName = _field("shuffle", Setting("Data", "NAME", default=_RECIPE))
    """shuffle, or balanced: draw every class equally often."""
    class_weights: ClassWeights = _field("none", Setting("Data", "NAME"))
    """none, or balanced: give rare classes a larger weight in the loss."""
    on_bad_image: OnBadImage = _field("error", Setting("Data", "NAME"))
    """Images that cannot be decoded: error, or skip (left out before the split)."""
    max_pixels: int | None = _field(
        None,
        Setting("Data", "PIXELS", default="the model's own limit, else 89478485", shows_range=True),
        ge=1,
        le=1 << 40,
    )
    """Maximum pixels of an image, width times height."""
    input_size: int | None = _field(None, Setting("Data", default=_RECIPE), ge=8, le=2048)
    """Side of the network's input in pixels."""
    pixel_range: tuple[Finite, Finite] | None = _field(
        None, Setting("Data", "LOW HIGH", default="measured on the training images")
    )
    """Values of black and white in images with more than 8 bits per channel."""
    resize: ResizeName | None = _field(None, Setting("Data", "NAME", default="as the weights were trained"))
    """How images become square: crop (the center), squash or pad (both keep the whole image)."""
    weights: str = _field(
        "default",
        Setting(
            "Training",
            "NAME|FILE|RUN",
            default="the usual pretrained weights of the architecture",
            completion="weights",
        ),
    )
    """Name of pretrained weights, none (random), a file (FILE#KEY: a key of a checkpoint), a saved model or a run; a
    saved model or run also sets MODEL."""
    head: HeadName | None = _field(
        None, Setting("Training", "NAME", default="keep the rows of classes with the same name")
    )
    """new, or keep: the head of the weights, classes by position."""
    head_features: HeadFeatures = _field("last", Setting("Training", "NAME", default=_RECIPE))
    """What the head sees: last (the network's own features), or stages (also the means of its last stages' outputs)."""
    mean: Statistics | None = _field(None, Setting("Training", "R G B", default="those of the weights"))
    """Channel means for normalization (values in 0 to 1)."""
    std: Statistics | None = _field(None, Setting("Training", "R G B", default="those of the weights"))
    """Channel standard deviations for normalization."""
    recipe: RecipeName = _field("default", Setting("Training", "NAME"))
    """Settings to start from: default, fast, head (no fine-tuning) or blog."""
    epochs: int | None = _field(None, Setting("Training", default=_RECIPE), ge=1)
    """Total epochs, including the frozen ones."""
    steps: int | None = _field(None, Setting("Training"), ge=1)
    """Total optimizer steps, instead of --epochs."""
    time: str | None = _field(None, Setting("Training", "TIME"), pattern=r"^[1-9]\d{0,5}[smh]$")
    """Time for the whole command, such as 5m: chooses input size, frozen layers and length from measured steps."""
    batch_size: int = _field(64, Setting("Training"), ge=1)
    """Images per batch."""
    accumulate: int = _field(1, Setting("Training"), ge=1)
    """Batches per optimizer step (gradient accumulation)."""
    clip_norm: float = _field(0.0, Setting("Training"), ge=0, allow_inf_nan=False)
    """Maximum gradient norm; 0: no clipping."""
    lr: float | None = _field(None, Setting("Training", default=_RECIPE), gt=0, allow_inf_nan=False)
    """Peak learning rate while the backbone is frozen."""
    optimizer: OptimizerName | None = _field(None, Setting("Training", default=_RECIPE))
    """Optimizer (a class of torch.optim)."""
    momentum: float = _field(0.9, Setting("Training"), ge=0, lt=1)
    """Momentum of sgd."""
    schedule: ScheduleName | None = _field(None, Setting("Training", "NAME", default=_RECIPE))
    """Learning-rate schedule: constant, cosine, one-cycle or plateau."""
    warmup: float = _field(0.1, Setting("Training"), ge=0, lt=1)
    """Warm-up fraction of each phase (cosine)."""
    early_stop: int = _field(0, Setting("Training", "N"), ge=0)
    """Stop after N epochs without a better validation accuracy; 0: never."""
    keep_epoch: KeepEpoch = _field("best", Setting("Training", "NAME", default=_RECIPE))
    """Which epoch's model is kept: best (by validation accuracy), or last."""
    tta: TtaName = _field("none", Setting("Training", "NAME"))
    """Test-time augmentation of the model: none, or flip (it averages each image and its mirror image)."""
    seed: int = _field(0, Setting("Training"), ge=0, lt=1 << 63)
    """Random seed."""
    freeze_epochs: int | None = _field(None, Setting("Freezing", default=_RECIPE), ge=0)
    """Epochs in which only the head trains."""
    head_fit: HeadFitName = _field("steps", Setting("Freezing", "NAME", default=_RECIPE))
    """How the head trains while the backbone is frozen: in steps, or as a logistic regression on cached features (one
    epoch)."""
    unfreeze_lr: float | None = _field(None, Setting("Freezing", default=_RECIPE), gt=0, allow_inf_nan=False)
    """Peak learning rate after unfreezing, the head's too."""
    freeze_until: str | None = _field(None, Setting("Freezing", "LAYER", default="none"), min_length=1)
    """Keep the layers before this one frozen, such as layer3."""
    unfreeze_stages: int = _field(1, Setting("Freezing", "N"), ge=1, le=100)
    """Unfreeze in N equal stages, from the head down."""
    layer_decay: float = _field(1.0, Setting("Freezing"), gt=0, le=1)
    """Learning-rate factor from each backbone layer to the one below it."""
    bn: BatchNormMode | None = _field(None, Setting("Freezing", "MODE", default=_RECIPE))
    """BatchNorm statistics after unfreezing: frozen or train."""
    feature_cache: bool = _field(True, Setting("Freezing", default=_RECIPE))
    """Compute the output of frozen layers once and train the rest on it."""
    feature_views: str = _field(
        "flip", Setting("Freezing", "NAME|N", completion=("plain", "flip")), pattern="^(plain|flip|[1-9][0-9]?)$"
    )
    """Cached views of each training image: plain, flip (also mirrored), or the number of augmented views."""
    feature_dtype: FeatureDtype = _field("fp16", Setting("Freezing", "NAME"))
    """Precision of cached features: fp16 or fp32."""
    weight_decay: float | None = _field(None, Setting("Regularization", default=_RECIPE), ge=0, allow_inf_nan=False)
    """Weight decay."""
    decay_norms: bool = _field(True, Setting("Regularization", default=_RECIPE))
    """Apply weight decay also to norms, biases, tokens and position embeddings."""
    label_smoothing: float = _field(0.0, Setting("Regularization", default=_RECIPE), ge=0, lt=1)
    """Label smoothing."""
    dropout: float | None = _field(None, Setting("Regularization", default="the architecture's own"), ge=0, lt=1)
    """Dropout before the classifier."""
    drop_path: float | None = _field(None, Setting("Regularization", default="the architecture's own"), ge=0, lt=1)
    """Drop-path rate of the last block (stochastic depth)."""
    ema: float = _field(0.0, Setting("Regularization"), ge=0, lt=1)
    """Decay of averaged weights, such as 0.999; 0: none."""
    augment: AugmentName | None = _field(None, Setting("Augmentation", "NAME", default=_RECIPE))
    """Augmentation: none, shift, flip, flip-shift, flip-crop or blog."""
    auto_augment: AutoAugment = _field("none", Setting("Augmentation", "NAME", changes_images="automatic augmentation"))
    """Automatic augmentation: none, randaugment or trivialaugment."""
    auto_ops: int = _field(2, Setting("Augmentation"), ge=1, le=10)
    """Operations per image of randaugment."""
    auto_magnitude: int = _field(9, Setting("Augmentation"), ge=0, le=30)
    """Strength of randaugment, 0 to 30."""
    random_erasing: float = _field(0.0, Setting("Augmentation", changes_images="random erasing"), ge=0, le=1)
    """Probability that a box of an image is erased."""
    mixup: float = _field(0.0, Setting("Augmentation", changes_images="MixUp"), ge=0, allow_inf_nan=False)
    """MixUp alpha, usually 0.2 to 0.8; 0: off."""
    cutmix: float = _field(0.0, Setting("Augmentation", changes_images="CutMix"), ge=0, allow_inf_nan=False)
    """CutMix alpha, usually 1; 0: off. With MixUp too, each step uses one of them."""
    device: DeviceName = _field("auto", Setting("Machine"))
    """Compute device."""
    precision: Precision = _field("fp32", Setting("Machine", "NAME", default=_MACHINE))
    """fp32, bf16 or fp16."""
    layout: Layout = _field("channels-last", Setting("Machine", "NAME", default=_MACHINE))
    """Memory layout: channels-last, contiguous, or images-last (on a CPU, for small feature maps;
    elsewhere channels-last)."""
    threads: int = _field(0, Setting("Machine", default=_MACHINE), ge=0)
    """CPU threads of torch; 0: torch's own choice."""
    fold: bool | None = _field(None, Setting("Machine", default=_MACHINE))
    """Fold frozen BatchNorm into the preceding convolution."""
    probe: bool = _field(True, Setting("Machine"))
    """Time a few steps to choose precision, layout, threads and folding."""
    workers: int = _field(2, Setting("Machine", default="one per core, at most 8", shows_range=True), ge=0, le=64)
    """Image-loading threads."""
    checkpoint_every: str = _field("5m", Setting("Machine", "N|TIME"), pattern=r"^\d{1,9}[sm]?$")
    """Steps, or time such as 5m or 30s, between checkpoints within an epoch; 0: only at its end."""
    log_every: int = _field(0, Setting("Machine"), ge=0)
    """Steps between points of the loss curve; 0: about 50 points per epoch."""

    @classmethod
    def checked(cls, values: Mapping[str, object]) -> Self:
        """Return the settings of these values.

        Raises:
            UsageError: a value is missing, out of range or of the wrong type, or two contradict each other.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UsageError("; ".join(_describe(problem) for problem in error.errors())) from error

    @property
    def time_s(self) -> float | None:
        """``time`` in seconds."""
        return None if self.time is None else float(self.time[:-1]) * _UNITS_S[self.time[-1]]

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
        if self.head_fit == "logistic" and (self.freeze_epochs or 1) > 1:
            raise ValueError(
                "--head-fit logistic is one frozen epoch; leave out --freeze-epochs, or give --head-fit steps"
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


_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


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

    @property
    def image_changes(self) -> list[str]:
        """What messages call the changes of images in use that training on cached features leaves out."""
        in_use = (name for name in IMAGE_CHANGES if getattr(self, name) != Settings.model_fields[name].default)
        return [IMAGE_CHANGES[name] for name in in_use]


FIELDS = tuple(Settings.model_fields)


def _setting(name: str) -> Setting:
    setting: Setting = cast(Any, Settings.model_fields[name].json_schema_extra)["setting"]
    return setting


# By the names of the settings.
IMAGE_CHANGES = {name: called for name in FIELDS if (called := _setting(name).changes_images)}


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
        return cls(Settings.checked({**file, **flags}), frozenset(flags), frozenset(file))

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

    def replaced(self, **values: object) -> Self:
        """Return these settings with other values, as if they had been given so; new names count as flags."""
        settings = self.settings.model_copy(update=values)
        return replace(self, settings=settings, flags=self.flags | (set(values) - self.file))


def values_of(settings: Settings) -> dict[str, Any]:
    """Return those settings by name that were given."""
    return {name: getattr(settings, name) for name in FIELDS if name in settings.model_fields_set}


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A setting for people."""

    name: str
    help: str
    """One sentence, without the default."""
    choices: tuple[str, ...]
    default: str
    setting: Setting
    annotation: Any
    """Its type, without None and without bounds."""
    bounds: Mapping[str, int]


def setting_row(name: str) -> SettingRow:
    """Return a setting, as help and documents present it."""
    field = Settings.model_fields[name]
    setting = _setting(name)
    kind = _plain_type(field.annotation)
    bounds = {key: getattr(each, key) for each in field.metadata for key in ("ge", "le") if hasattr(each, key)}
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    default = setting.default or _in_words(field.default)
    return SettingRow(name, " ".join((field.description or "").split()), choices, default, setting, kind, bounds)


def _in_words(default: object) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _plain_type(annotation: Any) -> Any:
    """Return a type without ``None`` and without bounds."""
    origin, inner = get_origin(annotation), [each for each in get_args(annotation) if each is not NoneType]
    if origin is tuple:
        return tuple[tuple(map(_plain_type, inner))]  # type: ignore[misc]
    return _plain_type(inner[0]) if origin in (Annotated, Union, UnionType) else annotation


def settings_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file's settings."""
    schema = Settings.model_json_schema()
    for name, content in schema["properties"].items():
        del content["title"], content["setting"]
        content["description"] = describe(setting_row(name))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://tl-train.invalid/settings/1",
        **schema,
    }


def describe(row: SettingRow) -> str:
    """Return the help text of a setting, with its default."""
    return f"{row.help} Default: {row.default}." if row.default else row.help


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


def recorded_config(config: Mapping[str, object]) -> dict[str, object]:
    """Return a recorded config with the settings that later versions added, at the defaults that keep its behaviour."""
    added = {name: field.default for name, field in TrainConfig.model_fields.items() if not field.is_required()}
    return added | dict(config)


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
