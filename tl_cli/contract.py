"""The plain facts that travel with a model: classes, preprocessing, weights, data. No torch, no files here."""

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from tl_cli.choices import TtaName

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Bounds far beyond useful values: others were not written by tl, and would exhaust memory or overflow.
Side = Annotated[int, Field(ge=2, le=1 << 14)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Std = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Loss = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Named = Annotated[str, Field(min_length=1)]
Location = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
CropMode = Literal["center", "squash", "border"]
# The pixel values that become black and white.
PixelRange = tuple[Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(allow_inf_nan=False)]]


def _check_rising(limits: PixelRange) -> PixelRange:
    if limits[0] >= limits[1]:
        raise ValueError("the second number must be larger than the first")
    return limits


def _check_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"{', '.join(map(repr, repeated[:3]))} occurs more than once")
    return names


DigestScheme = Literal["lengths", "contents"]
SplitName = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "val", "test")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Fact(BaseModel):
    """An immutable record that can be written to JSON and read back; unknown fields of newer versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Preprocessing(Fact):
    """How a decoded RGB image becomes the input of one set of weights.

    It is resized by ``resize``, the centre ``crop`` x ``crop`` is cut out, the values are divided by 255, ``mean`` is
    subtracted and the result divided by ``std``, channel by channel.

    Attributes:
        resize: pixels; of the short side (``center``), of both (``squash``), of the long side (``border``).
        crop: side of the network's input in pixels.
        crop_mode: ``center`` keeps the shape and loses the ends of the long side; ``squash`` loses the shape;
            ``border`` keeps both and pads the short side with the mean colour.
        pixel_range: for images with more than 8 bits per channel, the values that become 0 and 255. Values in between
            are scaled linearly and rounded half up, others are clipped. None: there were no such images in training.
    """

    resize: Side
    crop: Side
    interpolation: Interpolation = "bilinear"
    mean: tuple[Mean, Mean, Mean] = IMAGENET_MEAN
    std: tuple[Std, Std, Std] = IMAGENET_STD
    crop_mode: CropMode = "center"
    pixel_range: Annotated[PixelRange, AfterValidator(_check_rising)] | None = None

    def at(self, size: int, *, whole: bool, crop_mode: CropMode | None = None) -> Self:
        """Return the same preprocessing for inputs of ``size`` x ``size`` pixels.

        Args:
            size: side of the input in pixels.
            whole: keep the whole image instead of the weights' own margin around the centre crop; right for tiny
                images, which have no margin to lose.
            crop_mode: replaces the weights' own. ``squash`` and ``border`` keep the whole image, and ``center``
                uses the weights' own margin.
        """
        whole = whole or crop_mode in ("squash", "border")
        resize = size if whole else max(1, round(size * self.resize / self.crop))
        return self.model_copy(update={"resize": resize, "crop": size, "crop_mode": crop_mode or self.crop_mode})

    def with_statistics(self, mean: tuple[float, float, float] | None, std: tuple[float, float, float] | None) -> Self:
        """Return a copy with the channel statistics that are given."""
        return self.model_copy(update={"mean": mean or self.mean, "std": std or self.std})


class WeightsTag(Fact):
    """Which weights a model started from: a readable name, and the SHA-256 of the file (None: no file)."""

    name: str
    sha256: str | None = None


class Split(Fact):
    """One part of a data set: how many images, and a digest over their ids, labels and contents.

    Attributes:
        scheme: what the digest covers of each image file: its bytes or, in records of earlier versions, only its
            length. Digests of different schemes cannot be compared. Images without files are covered by their pixels.
    """

    count: Count
    digest: str
    scheme: DigestScheme = "lengths"


class Columns(Fact):
    """Which columns of a CSV to use, by name or number; None: found by their usual names.

    Attributes:
        path: column with the image files.
        label: column with the classes.
        split: column with the splits.
    """

    path: str | None = None
    label: str | None = None
    split: str | None = None


USUAL_COLUMNS = Columns()

TaskName = Literal["single-label"]
# How probabilities follow from the logits of a model, for people.
PROBABILITIES: dict[TaskName, str] = {"single-label": "softmax(logits / temperature)"}


class DataSpec(Fact):
    """What is needed to find the same images and the same split again.

    Attributes:
        source: name of a built-in set, or the absolute path of a folder, a CSV or an archive.
        data_dir: where downloaded sets are kept; None is the user's cache folder.
        layout: which splits the source itself has.
        split_seed: seed of the validation split, and of the test split if the source has none.
        val_fraction: fraction of the training images held out, if the source has no validation split.
        test_fraction: fraction held out for testing, if the source has no splits.
        limit: maximum images per split (stratified); None: all.
        on_bad_image: for files that cannot be decoded: raise an error, or leave them out before the split.
        columns: of a CSV, as given by the user.
        max_pixels: maximum pixels of an image to decode; None: the default limit.
        task: what the labels are, and so what a model learns.
        splits: the resulting splits.
    """

    source: Location
    data_dir: Location | None = None
    layout: Literal["train/test", "train/val", "train/val/test", "classes"]
    split_seed: Annotated[int, Field(ge=0)] = 0
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.1
    limit: Annotated[int, Field(ge=1)] | None = None
    on_bad_image: Literal["error", "skip"] = "error"
    columns: Columns = USUAL_COLUMNS
    max_pixels: Annotated[int, Field(ge=1, le=1 << 40)] | None = None
    task: TaskName = "single-label"
    splits: dict[SplitName, Split] = {}


class Calibration(Fact):
    """The temperature of a model: everywhere, its probabilities are ``softmax(logits / temperature)``.

    Fitted once, when the weights are saved, and never changed, so that all programs get the same numbers.

    Attributes:
        temperature: 1 if no other value is shown to help.
        images: validation images it was fitted on; 0: not fitted.
        loss: mean cross-entropy of these images at temperature 1, in nats.
        held_out_loss: mean cross-entropy by cross-validation: each image with a temperature fitted on other images.
        note: why the temperature is 1; otherwise "".
    """

    temperature: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] = 1.0
    images: Count = 0
    loss: Loss | None = None
    held_out_loss: Loss | None = None
    note: str = "none was fitted when the model was saved"


class Stage(Fact):
    """A part of a network whose mean output the head sees.

    Attributes:
        module: qualified name of its last module.
        channels: of the output.
        axes: of a batch of outputs, over which the mean is taken.
    """

    module: Named
    channels: Annotated[int, Field(ge=1, lt=1 << 20)]
    axes: tuple[Annotated[int, Field(ge=1, le=3)], ...]


class ModelCard(Fact):
    """The contents of ``model.json``, which describes the weights beside it.

    Attributes:
        architecture: name in the zoo.
        build_options: arguments of the architecture that depend on the weights (ViT's image_size).
        head: qualified names of the modules that produce the classes.
        stages: what the head sees beside its own input.
        tta: ``flip`` if the model averages the logits of each image and its mirror image.
        head_start: how the head's weights started; None without weights, and in folders of an earlier version.
        recipe: name of the recipe that trained it.
        config: the resolved training settings.
        epoch: the epoch that the weights are from, counted from 1.
        val_accuracy: a fraction.
        averaged: whether the weights are the moving average (EMA) instead of the last step's.
        calibration: the temperature of the probabilities; 1 for models saved by an earlier version.
        weights_sha256: of the file of weights; None in folders of an earlier version.
    """

    # 2 if the network alone does not give the model's logits: stages or test-time augmentation.
    format: Literal[1, 2] = 1
    architecture: Named
    build_options: dict[str, Side] = {}
    head: Annotated[tuple[Named, ...], Field(min_length=1)]
    stages: tuple[Stage, ...] = ()
    tta: TtaName = "none"
    classes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check_distinct)]
    preprocessing: Preprocessing
    weights: WeightsTag
    head_start: str | None = None
    data: DataSpec
    recipe: str
    config: dict[str, object] = {}
    epoch: Count
    val_accuracy: Fraction | None = None
    averaged: bool = False
    calibration: Calibration = Calibration()
    weights_sha256: str | None = None
    tl_version: str = Field(default_factory=lambda: tl_version())

    @field_validator("config")
    @classmethod
    def _check_seed(cls, config: dict[str, object]) -> dict[str, object]:
        # The only setting that is used again (by ``zoo.starting_point``) without the checks of the command line.
        seed = config.get("seed", 0)
        if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
            raise ValueError(f"seed must be a number from 0 to 2^63 - 1, not {seed!r:.50}")
        return config


def problems_in(error: ValidationError) -> str:
    """Return which fields of a record are wrong, with their values and the reasons, as one line."""
    problems = [
        _describe(each["loc"], each["input"], each["msg"].removeprefix("Value error, ")) for each in error.errors()
    ]
    return "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")


def _describe(location: tuple[str | int, ...], value: object, reason: str) -> str:
    name = ".".join(map(str, location))
    if not name:
        return reason
    if reason == "Field required":
        return f"{name} is missing"
    if isinstance(value, Mapping):
        return f"{name}: {reason}"
    return f"{name} is {value!r:.60}: {reason[0].lower()}{reason[1:]}"


def tl_version() -> str:
    """Return the installed version of this package."""
    return version("tl-train")
