"""Several classifiers compared on the same images: accuracy, cost, and which differences are significant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import mean

import numpy as np

from tl_cli.errors import UsageError, some
from tl_cli.evaluation.intervals import Measure, with_interval
from tl_cli.evaluation.logits import LabelledLogits, SavedLogits
from tl_cli.evaluation.paired import LEVEL, Paired, compare, holm, mean_accuracy
from tl_cli.evaluation.task import SINGLE_LABEL, Task

# Beginning of the value of the condition "weights" where the weights are published ones.
PRETRAINED = "pretrained"
# Smallest ratio of speeds, sizes or times that is a reason to choose a model.
_NOTABLE_RATIO = 1.2


@dataclass(frozen=True, slots=True)
class Training:
    """One training of a model; what is unknown is None.

    Attributes:
        name: of its run or folder.
        kept: logits and labels of the images of the comparison.
        clean_train: accuracy on training images without augmentation, a fraction.
        train_seconds: total of its epochs.
        images_per_second: of fine-tuning, validation included.
        conditions: settings that influence the result, as text by name.
    """

    name: str
    kept: SavedLogits
    clean_train: float | None = None
    train_seconds: float | None = None
    images_per_second: float | None = None
    conditions: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Size and speed of a model; what is unknown is None.

    Attributes:
        parameters: all of them.
        multiply_adds: MACs for one image of the model's input size.
        input_size: side in pixels.
        size_bytes: of the weights' file.
        images_per_second: of inference in fp32 on this machine.
    """

    parameters: int
    multiply_adds: int | None
    input_size: int
    size_bytes: int
    images_per_second: float | None


@dataclass(frozen=True, slots=True)
class Contender:
    """A model, trained once or with several seeds.

    Attributes:
        task: decides from the logits whether an image is classified correctly.
    """

    name: str
    trainings: tuple[Training, ...]
    cost: Cost
    task: Task = SINGLE_LABEL

    @property
    def correct(self) -> np.ndarray:
        """Which images each training classifies correctly, (trainings, N) bool."""
        labelled = [each.kept.labelled for each in self.trainings]
        return np.stack([self.task.is_correct(each.logits, each.labels).numpy() for each in labelled])

    @property
    def gap(self) -> float | None:
        """Accuracy on training images minus accuracy here, the mean over trainings: a measure of overfitting."""
        gaps = [
            each.clean_train - float(correct.mean())
            for each, correct in zip(self.trainings, self.correct, strict=True)
            if each.clean_train is not None
        ]
        return mean(gaps) if gaps else None

    @property
    def train_seconds(self) -> float | None:
        """Mean over the trainings."""
        return _mean([each.train_seconds for each in self.trainings])

    @property
    def training_speed(self) -> float | None:
        """Images per second of fine-tuning, mean over the trainings."""
        return _mean([each.images_per_second for each in self.trainings])


@dataclass(frozen=True, slots=True)
class Pair:
    """Two contenders, by their indices, and the test of their difference.

    Attributes:
        adjusted_p: the p-value adjusted for the number of pairs (Holm).
    """

    first: int
    second: int
    paired: Paired
    adjusted_p: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant: the interval excludes zero, and the adjusted p-value is below 5%."""
        return self.paired.excludes_zero and self.adjusted_p < LEVEL


@dataclass(frozen=True, slots=True)
class Comparison:
    """All contenders, the most accurate first, and all pairs of them.

    Attributes:
        images: number of images that all were evaluated on.
        data: description of these images.
        accuracies: one per contender.
        pairs: the first of each is the more accurate one.
    """

    contenders: tuple[Contender, ...]
    accuracies: tuple[Measure, ...]
    pairs: tuple[Pair, ...]
    images: int
    data: str = ""

    def pair(self, first: int, second: int) -> Pair:
        """Return the pair of two contenders, ``first`` being the more accurate one."""
        return next(each for each in self.pairs if (each.first, each.second) == (first, second))


def compare_all(contenders: Sequence[Contender], data: str = "") -> Comparison:
    """Return the comparison of two or more models that were evaluated on the same images.

    Args:
        data: description of the images.

    Raises:
        UsageError: the models were evaluated on different images.
    """
    ranked = tuple(sorted(_aligned(contenders), key=lambda model: -float(model.correct.mean())))
    correct = [each.correct for each in ranked]
    indices = list(combinations(range(len(ranked)), 2))
    # The more accurate model is the second argument, so that differences are positive.
    tests = [compare(correct[lower], correct[upper]) for upper, lower in indices]
    adjusted = holm([each.p_value for each in tests])
    pairs = tuple(Pair(*index, paired, p) for index, paired, p in zip(indices, tests, adjusted, strict=True))
    return Comparison(ranked, tuple(map(mean_accuracy, correct)), pairs, correct[0].shape[1], data)


def differences(comparison: Comparison) -> dict[str, list[str]]:
    """Return the settings other than the architecture that differ, with one value per contender.

    Values of several trainings of a contender are separated by commas; "?" stands for settings that were not recorded.
    """
    models = comparison.contenders
    named = dict.fromkeys(name for model in models for each in model.trainings for name in each.conditions or ())
    settings = {name: [_values(model, name) for model in models] for name in named if name != "architecture"}
    if len({_values(model, "architecture") for model in models}) > 1:
        # Each architecture has its own published weights.
        weights = settings.get("weights", [])
        settings["weights"] = [PRETRAINED if value.startswith(PRETRAINED) else value for value in weights]
    return {name: values for name, values in settings.items() if len(set(values)) > 1}


def _values(model: Contender, name: str) -> str:
    known = {each.conditions.get(name, "?") if each.conditions else "?" for each in model.trainings}
    return ", ".join(sorted(known))


def caution(comparison: Comparison) -> str | None:
    """Return what cannot be concluded where the models were trained differently; None where they were not."""
    differing = differences(comparison)
    models = comparison.contenders
    if any(each.conditions is None for model in models for each in model.trainings):
        cause = "It is not recorded how all of these models were trained"
    elif differing:
        cause = f"These models were trained with different settings ({', '.join(differing)})"
    else:
        return None
    names = {_values(model, "architecture") for model in models}
    is_same = len(names) == 1 and "?" not in names
    if is_same and len(differing) == 1:
        return None
    question = "which setting makes the difference" if is_same else "which architecture is better"
    return f"{cause}: the comparison is of these trained models on these images, and does not tell {question}"


def verdicts(comparison: Comparison) -> list[str]:
    """Return one sentence per pair, and the limits of what they say."""
    limits = caution(comparison)
    sentences = [*([limits] if limits else []), *(_verdict(comparison, pair) for pair in comparison.pairs)]
    single = [model.name for model in comparison.contenders if len(model.trainings) == 1]
    if 0 < len(single) < len(comparison.contenders):
        sentences.append(
            f"Trained once: {some(single, 3)}; assumed to vary between trainings as much as the model it is compared "
            "with"
        )
    elif single:
        sentences.append(
            "One training per model: this is about the trained models, not about their architectures or settings; "
            "another seed could reverse a small difference (tl compare --models ... --seeds 3)"
        )
    return sentences


def advice(comparison: Comparison) -> list[str]:
    """Return when to choose which model, from significant differences and measured costs."""
    models = comparison.contenders
    best = [0, *(pair.second for pair in comparison.pairs if pair.first == 0 and not pair.is_significant)]
    if len(best) == 1:
        lines = [f"{models[0].name}: highest accuracy, significantly better than each of the others"]
    else:
        others = " or ".join(models[index].name for index in best[1:])
        lines = [f"{models[0].name}: highest accuracy, but not significantly better than {others}"]
    for index, model in enumerate(models):
        reasons = _reasons(comparison, index)
        if reasons:
            loss = f"; {_accuracy_loss(comparison, index)}" if index not in best else ""
            lines.append(f"{model.name}: {', '.join(reasons)}{loss}")
        elif index not in best:
            lines.append(f"{model.name}: best in no measure")
    return lines


def as_data(comparison: Comparison) -> dict[str, object]:
    """Return the comparison as JSON types: what ``tl compare --json`` prints."""
    return {
        "data": comparison.data,
        "images": comparison.images,
        "models": rows(comparison),
        "pairs": [
            {
                "better": comparison.contenders[pair.first].name,
                "worse": comparison.contenders[pair.second].name,
                **with_interval("difference", pair.paired.difference),
                "only_better_right": pair.paired.mcnemar.only_second if pair.paired.mcnemar else None,
                "only_worse_right": pair.paired.mcnemar.only_first if pair.paired.mcnemar else None,
                "test": _test(pair.paired),
                "p": pair.paired.p_value,
                "adjusted_p": pair.adjusted_p,
                "claimed": pair.is_significant,
                "verdict": _verdict(comparison, pair),
            }
            for pair in comparison.pairs
        ],
        "advice": advice(comparison),
        "differences": {
            setting: {model.name: value for model, value in zip(comparison.contenders, values, strict=True)}
            for setting, values in differences(comparison).items()
        },
        "caution": caution(comparison),
    }


def rows(comparison: Comparison) -> list[dict[str, object]]:
    """Return one row per model, the most accurate first; what is unknown is None."""
    differing = differences(comparison)
    return [
        {
            "model": model.name,
            "trainings": len(model.trainings),
            **with_interval("accuracy", accuracy),
            "accuracies": [float(each.mean()) for each in model.correct],
            "gap": model.gap,
            "parameters": model.cost.parameters,
            "multiply_adds": model.cost.multiply_adds,
            "input_size": model.cost.input_size,
            "size_bytes": model.cost.size_bytes,
            "training_images_per_second": model.training_speed,
            "inference_images_per_second": model.cost.images_per_second,
            "train_seconds": model.train_seconds,
            "runs": [each.name for each in model.trainings],
            "different_settings": [f"{name}={values[index]}" for name, values in differing.items()],
        }
        for index, (model, accuracy) in enumerate(zip(comparison.contenders, comparison.accuracies, strict=True))
    ]


def _aligned(contenders: Sequence[Contender]) -> list[Contender]:
    """Return the contenders with the logits of all in the same order of images."""
    first = contenders[0].trainings[0]
    return [
        replace(model, trainings=tuple(_in_order_of(first, each, model.task) for each in model.trainings))
        for model in contenders
    ]


def _in_order_of(first: Training, training: Training, task: Task) -> Training:
    """Return a training with its logits in the order of the images of ``first``.

    Raises:
        UsageError: it was evaluated on other images, or their classes differ.
    """
    expected, classes = _classes_by_image(first.kept, task), _classes_by_image(training.kept, task)
    if classes != expected:
        unshared = sorted(classes.keys() ^ expected.keys())
        what = (
            f"{len(unshared):,} images are in only one of them ({some(unshared, 3)})" if unshared else "classes differ"
        )
        raise UsageError(
            f"{first.name} and {training.name} were not evaluated on the same images: {what}. "
            "Give images with --data to evaluate both on them"
        )
    saved, indices = training.kept, {image: index for index, image in enumerate(training.kept.ids)}
    order = [indices[image] for image in first.kept.ids]
    labelled = LabelledLogits(saved.labelled.logits[order], saved.labelled.labels[order])
    return replace(training, kept=replace(saved, labelled=labelled, ids=first.kept.ids))


def _classes_by_image(saved: SavedLogits, task: Task) -> dict[str, str]:
    """Return the true classes of each image as text, by the image's id."""
    return dict(zip(saved.ids, task.label_names(saved.labelled.labels, saved.classes), strict=True))


def _verdict(comparison: Comparison, pair: Pair) -> str:
    better, worse = comparison.contenders[pair.first].name, comparison.contenders[pair.second].name
    paired = pair.paired
    points = f"{100 * paired.difference.value:+.2f} points"
    evidence = f"95% interval {100 * paired.difference.low:+.2f} to {100 * paired.difference.high:+.2f}"
    evidence += f"; {_test(paired)} p = {_p(paired.p_value)}"
    if len(comparison.pairs) > 1:
        evidence += f", {_p(pair.adjusted_p)} for {len(comparison.pairs)} pairs"
    on = f"on {paired.images:,} images"
    lower, upper = paired.seeds
    if max(paired.seeds) > 1:
        on += f" with {upper} seeds each" if upper == lower else f" with {upper} against {lower} seeds"
    if pair.is_significant:
        return f"{better} is better than {worse}: {points} {on} ({evidence})"
    return f"No significant difference between {better} and {worse} {on}: {points} ({evidence})"


def _test(paired: Paired) -> str:
    return "McNemar" if paired.mcnemar is not None else "Student"


def _p(value: float) -> str:
    if value < 1e-300:
        return "0"
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


def _reasons(comparison: Comparison, index: int) -> list[str]:
    """Return the costs in which a model is notably better than all others."""
    models = comparison.contenders
    measures: list[tuple[str, list[float | None], bool]] = [
        ("fastest inference", [each.cost.images_per_second for each in models], True),
        ("smallest on disk", [float(each.cost.size_bytes) for each in models], False),
        ("fastest to train", [each.train_seconds for each in models], False),
    ]
    reasons = []
    for what, values, is_more in measures:
        known = [value for value in values if value]
        if len(known) < len(models):
            continue
        own = known.pop(index)
        ratio = own / max(known) if is_more else min(known) / own
        if ratio >= _NOTABLE_RATIO:
            reasons.append(f"{what} ({ratio:.1f}x)")
    return reasons


def _accuracy_loss(comparison: Comparison, index: int) -> str:
    lost = comparison.accuracies[0].value - comparison.accuracies[index].value
    return f"accuracy {100 * lost:.1f} points below {comparison.contenders[0].name}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) and known else None
