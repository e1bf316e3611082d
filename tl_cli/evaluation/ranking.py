"""Several classifiers side by side: how good, at which cost, and what of it can be claimed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import mean

import numpy as np

from tl_cli.errors import UsageError, some
from tl_cli.evaluation.intervals import Measure
from tl_cli.evaluation.logits import KeptAnswers
from tl_cli.evaluation.paired import LEVEL, Paired, compare, holm, mean_accuracy

# How the value of the condition "weights" begins for published weights.
PRETRAINED = "pretrained"
# So many times as fast, or as small, before it is a reason to choose a model.
_WORTH_SAYING = 1.2


@dataclass(frozen=True, slots=True)
class Training:
    """One training of a model; what is unknown is None.

    Attributes:
        name: of its run or folder.
        kept: answers to the images of the comparison.
        clean_train: accuracy on clean training images, a fraction.
        train_seconds: in epochs.
        images_per_second: of fine-tuning, validation included.
        conditions: settings that decide what was learned, as text by name.
    """

    name: str
    kept: KeptAnswers
    clean_train: float | None = None
    train_seconds: float | None = None
    images_per_second: float | None = None
    conditions: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs to keep and to use; what is unknown is None.

    Attributes:
        parameters: all of them.
        multiply_adds: of one image at the model's input size; what papers call FLOPs.
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
    """A model, trained once or with several seeds."""

    name: str
    trainings: tuple[Training, ...]
    cost: Cost

    @property
    def right(self) -> np.ndarray:
        """Which images each training classifies correctly, (trainings, N) bool."""
        answers = [each.kept.answers for each in self.trainings]
        return np.stack([(each.logits.argmax(1) == each.labels).numpy() for each in answers])

    @property
    def gap(self) -> float | None:
        """Accuracy on clean training images less that here, the mean over trainings: how much was learned by heart."""
        gaps = [
            each.clean_train - float(right.mean())
            for each, right in zip(self.trainings, self.right, strict=True)
            if each.clean_train is not None
        ]
        return mean(gaps) if gaps else None

    @property
    def train_seconds(self) -> float | None:
        """Mean over the trainings."""
        return _mean([each.train_seconds for each in self.trainings])

    @property
    def training_speed(self) -> float | None:
        """Images per second in fine-tuning, the mean over the trainings."""
        return _mean([each.images_per_second for each in self.trainings])


@dataclass(frozen=True, slots=True)
class Pair:
    """Two contenders, by their places, and what can be said of them.

    Attributes:
        adjusted_p: the p-value adjusted for the number of pairs (Holm).
    """

    first: int
    second: int
    paired: Paired
    adjusted_p: float

    @property
    def is_claimed(self) -> bool:
        """Whether a difference can be claimed: the interval leaves zero out, and the test agrees."""
        return self.paired.excludes_zero and self.adjusted_p < LEVEL


@dataclass(frozen=True, slots=True)
class Comparison:
    """All contenders, the most accurate first, and all pairs of them.

    Attributes:
        images: that all were judged on.
        data: which they are, for people.
        accuracies: one a contender.
        pairs: the first of each is the one that stands further up.
    """

    contenders: tuple[Contender, ...]
    accuracies: tuple[Measure, ...]
    pairs: tuple[Pair, ...]
    images: int
    data: str = ""

    def pair(self, first: int, second: int) -> Pair:
        """Return what is said of two contenders, ``first`` above ``second``."""
        return next(each for each in self.pairs if (each.first, each.second) == (first, second))


def compare_all(contenders: Sequence[Contender], data: str = "") -> Comparison:
    """Return the comparison of two or more models that were judged on the same images.

    Args:
        data: which images these are, for people.

    Raises:
        UsageError: they were not.
    """
    lined_up = _lined_up(contenders)
    order = sorted(range(len(lined_up)), key=lambda place: -float(lined_up[place].right.mean()))
    ranked = tuple(lined_up[place] for place in order)
    rights = [each.right for each in ranked]
    places = list(combinations(range(len(ranked)), 2))
    # The upper one is the second of the two: what is told is by how much it is better.
    found = [compare(rights[lower], rights[upper]) for upper, lower in places]
    adjusted = holm([each.p_value for each in found])
    pairs = tuple(Pair(*place, paired, p) for place, paired, p in zip(places, found, adjusted, strict=True))
    return Comparison(ranked, tuple(map(mean_accuracy, rights)), pairs, rights[0].shape[1], data)


def differences(comparison: Comparison) -> dict[str, list[str]]:
    """Return the settings, apart from the architecture, that were not the same for all, with one value per contender.

    Values of several trainings of a contender are separated by commas; "?" stands for settings that are not recorded.
    """
    models = comparison.contenders
    named = dict.fromkeys(name for model in models for each in model.trainings for name in each.conditions or ())
    found = {name: [_values(model, name) for model in models] for name in named if name != "architecture"}
    if len({_values(model, "architecture") for model in models}) > 1:
        # Each architecture has published weights of its own.
        shown = [PRETRAINED if value.startswith(PRETRAINED) else value for value in found.get("weights", [])]
        found["weights"] = shown
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _values(model: Contender, name: str) -> str:
    known = {each.conditions.get(name, "?") if each.conditions else "?" for each in model.trainings}
    return ", ".join(sorted(known))


def caution(comparison: Comparison) -> str | None:
    """Return what may be concluded where the models were not trained alike; None where they were."""
    apart = differences(comparison)
    models = comparison.contenders
    if any(each.conditions is None for model in models for each in model.trainings):
        cause = "It is not recorded how all of these models were trained"
    elif apart:
        cause = f"These models were trained with different settings ({', '.join(apart)})"
    else:
        return None
    names = {_values(model, "architecture") for model in models}
    if len(names) == 1 and len(apart) == 1 and "?" not in names:
        return None
    about = (
        "which setting makes the difference" if len(names) == 1 and "?" not in names else "which architecture is better"
    )
    return f"{cause}: the comparison is of these trained models on these images, and does not tell {about}"


def verdicts(comparison: Comparison) -> list[str]:
    """Return one sentence a pair, in plain words, and what they are not about."""
    sentences = [_verdict(comparison, pair) for pair in comparison.pairs]
    limits = caution(comparison)
    if limits is not None:
        sentences.insert(0, limits)
    single = [model.name for model in comparison.contenders if len(model.trainings) == 1]
    if 0 < len(single) < len(comparison.contenders):
        sentences.append(
            f"Trained once: {some(single, 3)}; assumed to vary from training to training as the model it is compared "
            "with does"
        )
    elif single:
        sentences.append(
            "One training each: this is about the trained models, not about their architectures or settings; "
            "another seed could turn a small difference (tl compare --models ... --seeds 3)"
        )
    return sentences


def advice(comparison: Comparison) -> list[str]:
    """Return when each model is the better choice, from what can be claimed and what was measured."""
    models = comparison.contenders
    best = [0, *(pair.second for pair in comparison.pairs if pair.first == 0 and not pair.is_claimed)]
    lines = []
    if len(best) == 1:
        lines.append(f"{models[0].name}: where accuracy counts most; it is better than each of the others")
    else:
        others = " or ".join(models[place].name for place in best[1:])
        lines.append(f"{models[0].name}: where accuracy counts most, or {others}: no difference to it can be claimed")
    for place in range(len(models)):
        reasons = _reasons(comparison, place)
        if reasons:
            among = "" if place in best or len(best) == len(models) else f", for {_price(comparison, place)}"
            lines.append(f"{models[place].name}: {', '.join(reasons)}{among}")
        elif place not in best:
            lines.append(f"{models[place].name}: nothing measured here speaks for it")
    return lines


def as_data(comparison: Comparison) -> dict[str, object]:
    """Return the comparison as what JSON can hold."""
    return {
        "data": comparison.data,
        "images": comparison.images,
        "models": rows(comparison),
        "pairs": [
            {
                "better": comparison.contenders[pair.first].name,
                "worse": comparison.contenders[pair.second].name,
                "difference": pair.paired.difference.value,
                "difference_low": pair.paired.difference.low,
                "difference_high": pair.paired.difference.high,
                "only_better_right": pair.paired.mcnemar.only_second if pair.paired.mcnemar else None,
                "only_worse_right": pair.paired.mcnemar.only_first if pair.paired.mcnemar else None,
                "test": _test(pair.paired),
                "p": pair.paired.p_value,
                "adjusted_p": pair.adjusted_p,
                "claimed": pair.is_claimed,
                "verdict": _verdict(comparison, pair),
            }
            for pair in comparison.pairs
        ],
        "advice": advice(comparison),
        "differences": {
            name: dict(zip((model.name for model in comparison.contenders), values, strict=True))
            for name, values in differences(comparison).items()
        },
        "caution": caution(comparison),
    }


def rows(comparison: Comparison) -> list[dict[str, object]]:
    """Return one row a model, the most accurate first; what is unknown is None."""
    apart = differences(comparison)
    return [
        {
            "model": model.name,
            "trainings": len(model.trainings),
            "accuracy": accuracy.value,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
            "accuracies": [float(each.mean()) for each in model.right],
            "gap": model.gap,
            "parameters": model.cost.parameters,
            "multiply_adds": model.cost.multiply_adds,
            "input_size": model.cost.input_size,
            "size_bytes": model.cost.size_bytes,
            "training_images_per_second": model.training_speed,
            "inference_images_per_second": model.cost.images_per_second,
            "train_seconds": model.train_seconds,
            "runs": [each.name for each in model.trainings],
            "different_settings": [f"{name}={values[place]}" for name, values in apart.items()],
        }
        for place, (model, accuracy) in enumerate(zip(comparison.contenders, comparison.accuracies, strict=True))
    ]


def _lined_up(contenders: Sequence[Contender]) -> list[Contender]:
    """Return the contenders with the answers of all in the same order of images."""
    first = contenders[0].trainings[0].kept
    truth = _truth(first)
    result = []
    for model in contenders:
        trainings = []
        for each in model.trainings:
            if _truth(each.kept) != truth:
                raise UsageError(_difference(contenders[0].trainings[0], each))
            places = {name: place for place, name in enumerate(each.kept.ids)}
            trainings.append(_reordered(each, [places[name] for name in first.ids]))
        result.append(Contender(model.name, tuple(trainings), model.cost))
    return result


def _truth(kept: KeptAnswers) -> dict[str, str]:
    """Return the class of each image, by the image's id."""
    return {name: kept.classes[label] for name, label in zip(kept.ids, kept.answers.labels.tolist(), strict=True)}


def _reordered(training: Training, order: list[int]) -> Training:
    kept = training.kept
    answers = type(kept.answers)(kept.answers.logits[order], kept.answers.labels[order])
    ids = tuple(kept.ids[place] for place in order)
    return replace(training, kept=KeptAnswers(answers, ids, kept.classes))


def _difference(one: Training, other: Training) -> str:
    here, there = _truth(one.kept), _truth(other.kept)
    only = [name for name in here if name not in there] + [name for name in there if name not in here]
    what = f"{len(only):,} images are in one of them only ({some(only, 3)})" if only else "their classes differ"
    return (
        f"{one.name} and {other.name} were not judged on the same images: {what}. "
        "Give the images on which both are judged now with --data"
    )


def _verdict(comparison: Comparison, pair: Pair) -> str:
    better, worse = comparison.contenders[pair.first].name, comparison.contenders[pair.second].name
    paired = pair.paired
    points = f"{100 * paired.difference.value:+.2f} points"
    evidence = f"95% interval {100 * paired.difference.low:+.2f} to {100 * paired.difference.high:+.2f}"
    evidence += f"; {_test(paired)} p = {_p(paired.p_value)}"
    if len(comparison.pairs) > 1:
        evidence += f", {_p(pair.adjusted_p)} for {len(comparison.pairs)} pairs"
    on = f"on {paired.images:,} images"
    upper, lower = paired.seeds[1], paired.seeds[0]
    if max(paired.seeds) > 1:
        on += f" with {upper} seeds each" if upper == lower else f" with {upper} against {lower} seeds"
    if pair.is_claimed:
        return f"{better} is better than {worse}: {points} {on} ({evidence})"
    return f"No difference between {better} and {worse} can be claimed {on}: {points} ({evidence})"


def _test(paired: Paired) -> str:
    return "McNemar" if paired.mcnemar is not None else "Student"


def _p(value: float) -> str:
    if value < 1e-300:
        return "0"
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


def _reasons(comparison: Comparison, place: int) -> list[str]:
    """Return in what a model is ahead of all others by enough to say so."""
    models = comparison.contenders
    measures: list[tuple[str, list[float | None], bool]] = [
        ("fastest to use", [each.cost.images_per_second for each in models], True),
        ("smallest on disk", [float(each.cost.size_bytes) for each in models], False),
        ("quickest to train", [each.train_seconds for each in models], False),
    ]
    reasons = []
    for what, values, is_more in measures:
        mine = values[place]
        others = [value for other, value in enumerate(values) if other != place and value]
        if not mine or len(others) < len(models) - 1:
            continue
        ratio = mine / max(others) if is_more else min(others) / mine
        if ratio >= _WORTH_SAYING:
            reasons.append(f"{what} ({ratio:.1f}x)")
    return reasons


def _price(comparison: Comparison, place: int) -> str:
    lost = comparison.accuracies[0].value - comparison.accuracies[place].value
    return f"{100 * lost:.1f} points less than {comparison.contenders[0].name}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) and known else None
