"""The plain facts that travel with a model: classes, preprocessing, weights, data. No torch, no files here."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Bounds far beyond what is of use: what lies outside was not written by tl, and would exhaust memory or overflow.
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
# The numbers that become black and white.
PixelRange = tuple[Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(allow_inf_nan=False)]]


def _rising(found: PixelRange) -> PixelRange:
    if found[0] >= found[1]:
        raise ValueError("the second number must be larger than the first")
    return found


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice[:3]))} comes more than once")
    return names


DigestScheme = Literal["lengths", "contents"]
SplitName = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "val", "test")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Fact(BaseModel):
    """An immutable record that survives a trip through JSON; unknown fields of a newer version are ignored."""

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
        pixel_range: of pictures of more than 8 bits per channel: the numbers that become 0 and 255. What lies between
            is spread evenly and rounded, half up; what lies beyond is clipped. None: there were none in the training.
    """

    resize: Side
    crop: Side
    interpolation: Interpolation = "bilinear"
    mean: tuple[Mean, Mean, Mean] = IMAGENET_MEAN
    std: tuple[Std, Std, Std] = IMAGENET_STD
    crop_mode: CropMode = "center"
    pixel_range: Annotated[PixelRange, AfterValidator(_rising)] | None = None

    def at(self, size: int, *, whole: bool, crop_mode: CropMode | None = None) -> Self:
        """Return the same preprocessing for inputs of ``size`` x ``size`` pixels.

        Args:
            size: side of the input in pixels.
            whole: keep the whole image instead of the weights' own margin around the centre crop. Right for
                tiny images, which have no margin to give away.
            crop_mode: instead of the weights' own. ``squash`` and ``border`` then keep all of the image, and
                ``center`` has the weights' own margin.
        """
        whole = whole or crop_mode in ("squash", "border")
        resize = size if whole else max(1, round(size * self.resize / self.crop))
        return self.model_copy(update={"resize": resize, "crop": size, "crop_mode": crop_mode or self.crop_mode})

    def with_statistics(self, mean: tuple[float, float, float] | None, std: tuple[float, float, float] | None) -> Self:
        """Return a copy with other channel statistics where they are given."""
        return self.model_copy(update={"mean": mean or self.mean, "std": std or self.std})


class WeightsTag(Fact):
    """Which weights a model started from: a readable name, and the SHA-256 of the file (None: no file)."""

    name: str
    sha256: str | None = None


class Split(Fact):
    """One part of a data set: how many images, and a digest over their ids, labels and contents.

    Attributes:
        scheme: what the digest covers of an image that is a file: its bytes, or in records of earlier versions only its
            length. Digests of different schemes cannot be compared. Images without files go in by their pixels always.
    """

    count: Count
    digest: str
    scheme: DigestScheme = "lengths"


class Columns(Fact):
    """Which columns of a CSV are meant, by their names or numbers; None finds them by the names that are usual.

    Attributes:
        path: names the picture.
        label: names the class.
        split: names the part.
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
        layout: which parts the source brings itself.
        split_seed: seed of the validation split, and of a test split where the source has none.
        val_fraction: share of the training images held out, where the source has no validation part.
        test_fraction: share held out as test where the source is classes only.
        limit: at most so many images a part, stratified; None is all.
        on_bad_image: what happens to files that cannot be decoded: they are named, or left out before the split.
        columns: of a CSV, as they were named.
        max_pixels: how many may be decoded of a picture; None is the usual limit.
        task: what the labels are, and so what a model learns of them.
        splits: the parts that came out.
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
    """The temperature of a model: wherever it is used, its probabilities are ``softmax(logits / temperature)``.

    Fitted once, when the weights are saved, and never changed afterwards, so that every program gets the same numbers.

    Attributes:
        temperature: 1 where none has been shown to help.
        images: validation images that it was fitted on; 0 if that was not tried.
        loss: mean cross-entropy on them at temperature 1, in nats.
        held_out_loss: the same by cross-validation: each image with a temperature fitted on others.
        note: why the temperature is 1; else empty.
    """

    temperature: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] = 1.0
    images: Count = 0
    loss: Loss | None = None
    held_out_loss: Loss | None = None
    note: str = "none was fitted when the model was saved"


class ModelCard(Fact):
    """Everything that ``model.json`` says of the weights beside it.

    Attributes:
        architecture: name in the zoo.
        build_options: arguments of the architecture that depend on the weights (ViT's image_size).
        head: qualified names of the modules that produce the classes.
        head_start: what of the head came with the weights; None without weights, and in folders of an earlier version.
        recipe: name of the recipe that trained it.
        config: the resolved training settings.
        epoch: the epoch that the weights are from, counted from 1.
        val_accuracy: fraction of the validation images that they classify correctly.
        averaged: whether they are the moving average over the steps rather than the last step's.
        calibration: the temperature of the probabilities; 1 for models saved by an earlier version.
        weights_sha256: of the file of weights; None in folders of an earlier version.
    """

    format: Literal[1] = 1
    architecture: Named
    build_options: dict[str, Side] = {}
    head: Annotated[tuple[Named, ...], Field(min_length=1)]
    classes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)]
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
        # The only setting that is used again without the checks of the command line: by ``zoo.starting_point``.
        seed = config.get("seed", 0)
        if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
            raise ValueError(f"seed must be a number from 0 to 2^63 - 1, not {seed!r:.50}")
        return config


def problems_in(error: ValidationError) -> str:
    """Return which fields of a record are wrong, with their values and why, for people."""
    said = [_problem(each["loc"], each["input"], each["msg"].removeprefix("Value error, ")) for each in error.errors()]
    return "; ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def _problem(place: tuple[str | int, ...], value: object, reason: str) -> str:
    name = ".".join(map(str, place))
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
