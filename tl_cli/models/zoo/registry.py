"""The architectures: their names, how one is built with its weights, and which of its modules are the head."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from tl_cli.contract import ModelCard, Preprocessing, Stage, WeightsTag
from tl_cli.errors import UnknownModelError, UsageError, WeightsError, first_line, suggest
from tl_cli.io.download import Missing, Progress, silent
from tl_cli.models import bundle
from tl_cli.models.classifier import Classifier
from tl_cli.models.head import HeadChoice, HeadStart, choose_start, outputs_in, with_rows
from tl_cli.models.list.completion import PREFIX
from tl_cli.models.list.published import Architecture
from tl_cli.models.stages import find_stages as stages_of
from tl_cli.models.stages import join_stages
from tl_cli.models.zoo import checkpoints
from tl_cli.models.zoo import weights as weights_files
from tl_cli.models.zoo.bundled import BundledSource
from tl_cli.models.zoo.source import Source
from tl_cli.models.zoo.timm_models import TimmSource, from_timm_folder, is_timm_folder, renamed
from tl_cli.models.zoo.torchvision_models import TorchvisionSource
from tl_cli.models.zoo.weights import Pretrained
from tl_cli.randomness import mixed

_DEFAULT_CLASSES = 10
_SOURCES: dict[str, Source] = {"torchvision": TorchvisionSource(), "bundled": BundledSource(), "timm": TimmSource()}


def names(source: str | None = None) -> list[str]:
    """Return every name that ``create`` accepts, sorted: of one library, or of all, which imports timm (seconds)."""
    chosen = _SOURCES.values() if source is None else [_SOURCES[source]]
    return sorted(name for library in chosen for name in library.names())


def has(name: str) -> bool:
    """Whether ``create`` accepts the name."""
    return any(source.has(name) for source in _SOURCES.values())


def about(name: str) -> Architecture:
    """Return the facts about an architecture without building it."""
    return _source_of(name).about(name)


def fetch_weights(name: str, progress: Progress = silent) -> None:
    """Download an architecture's best published weights.

    Raises:
        UnknownModelError: no architecture has that name.
        WeightsError: there are none.
        DownloadError: they cannot be fetched, or are not the published file.
    """
    _source_of(name).fetch(name, progress)


def missing_weights(name: str, spec: str = "default") -> Missing | None:
    """Return the files that ``create`` would fetch for these weights; None where it would fetch nothing.

    Raises:
        WeightsError: there are no such weights, or they come with a package that is not installed.
    """
    if spec == "none":
        return None
    if weights_files.is_path(spec):
        weights_files.check_there(Path(weights_files.split_key(spec)[0]).expanduser())
        return None
    return _source_of(name).missing(name, spec)


def size_limits(name: str, weights: str = "default") -> tuple[int, int]:
    """Return (smallest input side, side of these published weights or else of the best), in pixels."""
    source = _source_of(name)
    return source.size_limits(name, _published(source, name, weights))


def options_for(name: str, input_size: int) -> dict[str, int]:
    """Return what an architecture must be built with for inputs of ``input_size`` pixels: ViT's image_size."""
    return _source_of(name).options_for(name, input_size)


def is_known_weights(name: str, spec: str) -> bool:
    """Whether ``--weights`` is something that ``create`` can find: published, a path, or ``none``."""
    return (
        spec in ("default", "none")
        or weights_files.is_path(spec)
        or _published(_source_of(name), name, spec) != "default"
    )


def create(
    name: str,
    num_classes: int | None,
    *,
    weights: str = "default",
    classes: tuple[str, ...] | None = None,
    input_size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    head: HeadChoice | None = None,
    stages: tuple[Stage, ...] | None = None,
    drop_path: float | None = None,
    seed: int = 0,
    found: Pretrained | None = None,
    progress: Progress = silent,
) -> Classifier:
    """Return a classifier with ``num_classes`` outputs, its backbone from ``weights``.

    Args:
        num_classes: None keeps the weights' own head; 10 where they have none.
        weights: ``default``, a published name, ``none``, a ``.safetensors`` or ``.pth`` file, or a saved-model folder.
        classes: names of the outputs, by which rows of the weights' head are matched; None: those of the weights.
        input_size: side of the input in pixels, for architectures whose parameters depend on it (ViT); None is the
            weights' own.
        mean: channel means to use instead of the weights' own.
        std: channel standard deviations to use instead of the weights' own.
        head: ``new`` discards the weights' head, ``keep`` keeps it by position; None matches it by class names.
        stages: what the head sees beside its own input (``find_stages``); None: that of the weights' head.
        drop_path: drop-path rate of the last block; None is the architecture's own.
        seed: of the new head; without weights, of all parameters.
        found: result of ``find_weights`` for these weights; None calls it.

    Raises:
        UnknownModelError: no architecture has that name.
        WeightsError: the weights cannot be read or do not fit.
        DownloadError: they must be fetched and cannot be.
        UsageError: their head is to be kept and has another number of classes.
    """
    source = _source_of(name)
    architecture = source.architecture(name)
    if found is None:
        found = find_weights(name, weights, seed=seed, progress=progress)
    if num_classes is None:
        num_classes, classes = _outputs_of(found, architecture), None
    preprocessing = (found.preprocessing if found is not None else None) or default_preprocessing(name)
    options = dict(found.build_options) if found is not None else {}
    options |= source.options_for(name, input_size or preprocessing.crop)
    if stages is None:
        stages = found.stages if found is not None else ()
    parts = find_head(architecture)
    with _seeded(seed):
        model = build(name, num_classes, options, drop_path)
        if stages:
            join_stages(model, parts, stages)
    _start_from_zero([model.get_submodule(part) for part in parts])
    created = Classifier(
        architecture, model, parts, preprocessing.with_statistics(mean, std), WeightsTag(name="none"), None, options,
        stages=stages,
    )  # fmt: skip
    if found is None:
        return created
    with _seeded(seed):
        state = _adapted(source, name, created, found)
    axes = _class_axes(architecture)
    outputs = outputs_in(state, model.state_dict(), axes)
    start = choose_start(head, count=num_classes, classes=classes, outputs=outputs, known=found.classes)
    weights_files.load(model, _with_head(state, model, parts, axes, start), name=found.tag.name)
    return replace(created, weights=found.tag, head_start=start, notes=found.notes)


def _adapted(source: Source, name: str, classifier: Classifier, found: Pretrained) -> dict[str, Tensor]:
    """Return weights with the names and, except for the head, the shapes of a classifier's model."""
    axes = _class_axes(classifier.name)
    # A library cannot adapt a head that sees stages.
    joined = {key: value for key, value in found.state.items() if found.stages and key in axes}
    plain = replace(found, state={key: value for key, value in found.state.items() if key not in joined})
    adapted = dict(source.adapt(name, classifier.model, plain, classifier.build_options))
    return adapted | joined if found.stages == classifier.stages else adapted


def _with_head(
    state: dict[str, Tensor], model: nn.Module, head: tuple[str, ...], axes: dict[str, int], start: HeadStart
) -> dict[str, Tensor]:
    """Return weights with the head that a model starts from: the model's new one, but for the rows that are kept."""
    fresh = model.state_dict()
    if start.is_new:
        return state | {key: value for key, value in fresh.items() if key.rpartition(".")[0] in head}
    return state | {key: with_rows(fresh[key], state[key], axis, start.rows) for key, axis in axes.items()}


def find_weights(name: str, weights: str, *, seed: int = 0, progress: Progress = silent) -> Pretrained | None:
    """Return weights in memory, fetched on first use; None for ``none``.

    Raises:
        UnknownModelError: no architecture has that name.
        WeightsError: they cannot be read, or are of another architecture.
        DownloadError: they must be fetched and cannot be.
    """
    source = _source_of(name)
    # timm's loaders build models, which would change the caller's random state.
    with _seeded(seed):
        pretrained = _find_weights(source, name, weights, progress)
    architecture = source.architecture(name)
    if pretrained is not None and pretrained.architecture not in (None, architecture):
        raise WeightsError(f"the weights in {weights} are for {pretrained.architecture}, not for {architecture}")
    return pretrained


def starting_point(card: ModelCard, progress: Progress = silent) -> Classifier:
    """Return the model that a saved model was trained from: the backbone before training, with the same classes.

    Raises:
        WeightsError: the weights are no longer available, or have changed.
        DownloadError: they must be fetched and cannot be.
    """
    config = card.config
    drop_path, seed, head = config.get("drop_path"), config.get("seed", 0), config.get("head")
    weights = str(config.get("weights", "default"))
    classes: tuple[str, ...] | None = card.classes
    if "head" not in config and not card.weights.name.startswith("saved:"):
        # Versions without the setting kept any head with this number of classes, that of published weights too.
        classes = None
    elif "head" not in config and bundle.read_card(Path(weights).expanduser()).classes != classes:
        # Those versions kept the whole head of a saved model with these classes in this order, otherwise no row.
        head = "new"
    was = create(
        str(config.get("model", card.architecture)),
        len(card.classes),
        weights=weights,
        classes=classes,
        input_size=card.preprocessing.crop,
        head="new" if head == "new" else "keep" if head == "keep" else None,
        stages=card.stages,
        drop_path=drop_path if isinstance(drop_path, float) else None,
        seed=seed if isinstance(seed, int) else 0,
        progress=progress,
    )
    if was.weights.sha256 != card.weights.sha256:
        raise WeightsError(f"the weights {was.weights.name} have changed since the model was trained from them")
    was.model.eval()
    return was


def default_preprocessing(name: str, weights: str = "default") -> Preprocessing:
    """Return the preprocessing of published weights; for all others that of the best published ones, as a guess."""
    source = _source_of(name)
    return source.preprocessing(name, _published(source, name, weights))


def _published(source: Source, name: str, spec: str) -> str:
    """Return ``spec`` where it names published weights, otherwise ``default``."""
    if weights_files.is_path(spec):
        return "default"
    known = {tag.upper() for tag in source.published(name)}
    return spec if spec.rpartition(".")[2].upper() in known else "default"


def build(
    name: str, num_classes: int, options: dict[str, int] | None = None, drop_path: float | None = None
) -> nn.Module:
    """Return the architecture with random weights, on the current default device (``meta`` included)."""
    source = _source_of(name)
    try:
        return source.build(name, num_classes, options or {}, drop_path)
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        arguments = f" with {options}" if options else ""
        raise UsageError(f"{name} cannot be built{arguments}: {error}") from error


@cache
def find_stages(name: str) -> tuple[Stage, ...]:
    """Return the stages of an architecture that its head can see beside its own input; empty where that is impossible.

    Raises:
        UnknownModelError: no architecture has that name.
    """
    own = size_limits(name)[1]
    with torch.device("meta"):
        model, example = build(name, _DEFAULT_CLASSES, options_for(name, own)), torch.empty(1, 3, own, own)
    return stages_of(model, find_head(name), example)


def find_head(name: str) -> tuple[str, ...]:
    """Return the names of the modules that produce the classes."""
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in _class_axes(name)))


@cache
def _class_axes(name: str) -> dict[str, int]:
    """Return the names of the head's parameters, each with the axis of the classes.

    They are the parameters that change shape with the number of classes, seen by building the architecture twice on
    the meta device: no list of layer names, no substring of a parameter's name.
    """
    with torch.device("meta"):
        few, many = build(name, 7), build(name, 11)
    shapes = {key: parameter.shape for key, parameter in many.named_parameters()}
    changed = {key: value.shape for key, value in few.named_parameters() if value.shape != shapes[key]}
    return {
        key: next(axis for axis, sizes in enumerate(zip(shape, shapes[key], strict=True)) if len(set(sizes)) == 2)
        for key, shape in changed.items()
    }


def _source_of(name: str) -> Source:
    for source in _SOURCES.values():
        if source.has(name):
            return source
    raise UnknownModelError(f"no model is called {name!r}.{nearest(name)}")


def nearest(name: str) -> str:
    """Return " Did you mean ...?" for an unknown name; names with the same letters and digits come first."""
    now = renamed(name) or renamed(PREFIX + name)
    if now is not None:
        return f" timm calls it {now} now."
    known = {_letters(known): known for known in reversed(names())}
    typed = _letters(name.partition(".")[0])
    exact = [known[letters] for letters in (typed, _letters(PREFIX) + typed) if letters in known]
    starting = [name for letters, name in known.items() if typed and letters.startswith(typed)]
    if exact or 0 < len(starting) <= 5:
        return f" Did you mean {' or '.join(exact or sorted(starting))}?"
    prefixed = name.lower().startswith(PREFIX)
    near = suggest(name, [each for each in known.values() if each.startswith(PREFIX) == prefixed])
    if not prefixed and "Did you mean" not in near:
        near = suggest(PREFIX + name, names("timm"))
    return near if "Did you mean" in near else " tl models lists them."


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _find_weights(source: Source, name: str, spec: str, progress: Progress) -> Pretrained | None:
    if spec == "none":
        return None
    if weights_files.is_path(spec):
        if is_timm_folder(path := Path(spec).expanduser()):
            return from_timm_folder(path)
        with torch.device("meta"):
            expected = build(name, 2).state_dict()
        pretrained = weights_files.from_path(spec, expected)
        state, notes = checkpoints.with_plain_head(pretrained.state, expected, find_head(source.architecture(name)))
        return replace(pretrained, state=state, notes=pretrained.notes + notes)
    return source.pretrained(name, spec, progress)


def _outputs_of(pretrained: Pretrained | None, architecture: str) -> int:
    """Return how many classes weights have; 10 where they have no head."""
    if pretrained is None:
        return _DEFAULT_CLASSES
    if pretrained.outputs is not None:
        return pretrained.outputs or _DEFAULT_CLASSES
    keys = [f"{part}.weight" for part in find_head(architecture)]
    sizes = {len(pretrained.state[key]) for key in keys if key in pretrained.state}
    return sizes.pop() if len(sizes) == 1 else _DEFAULT_CLASSES


def _start_from_zero(head: list[nn.Module]) -> None:
    """Set a new linear head to zero: all classes are equally likely, and the first loss log(num_classes) (as in BiT).

    Some libraries scale the head's random weights by the number of classes: EfficientNet's first loss is then 14 for
    10 classes. A convolution before a ReLU (SqueezeNet) would never leave zero and keeps its own start.
    """
    for module in head:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator on the CPU; the random state is restored when the block ends."""
    with torch.random.fork_rng(devices=[]):
        # torch's generator on the CPU takes the low 32 bits. Smaller seeds stay as they are: saved models are compared
        # with the weights that they started from (`starting_point`).
        torch.manual_seed(seed if seed < 1 << 32 else mixed(seed))
        yield


def restore(folder: Path) -> tuple[Classifier, ModelCard]:
    """Return the classifier of a saved-model folder, in eval mode on the CPU, and its card.

    Raises:
        WeightsError: the folder is no saved model, is damaged, or its parts do not fit each other.
    """
    card = bundle.verified_card(folder)
    model = build(card.architecture, len(card.classes), card.build_options)
    names = dict(model.named_modules())
    strange = [part for part in card.head if part not in names]
    if strange or not card.head:
        raise WeightsError(
            f"{folder} names a head that {card.architecture} does not have: {', '.join(strange) or 'none'}"
        )
    if card.stages:
        join_stages(model, card.head, card.stages)
    bundle.load_weights(folder, model)
    model.eval()
    _check_side(folder, card, model)
    classifier = Classifier(
        card.architecture,
        model,
        card.head,
        card.preprocessing,
        card.weights,
        choose_start(None, count=len(card.classes), classes=None, outputs=len(card.classes), known=None),
        card.build_options,
        card.calibration.temperature,
        task=card.data.task,
        stages=card.stages,
        tta=card.tta,
    )
    return classifier, card


def _check_side(folder: Path, card: ModelCard, model: nn.Module) -> None:
    """Raise for a card whose input size was changed to one that the model cannot take."""
    side, options = card.preprocessing.crop, options_for(card.architecture, card.preprocessing.crop)
    problem = ""
    if any(card.build_options.get(key, value) != value for key, value in options.items()):
        problem = f"build_options are for {', '.join(map(str, card.build_options.values()))} pixels"
    elif side < size_limits(card.architecture)[0]:
        try:
            with torch.inference_mode():
                model(torch.zeros(1, 3, side, side))
        except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError) as error:
            problem = f"{card.architecture} cannot take it ({first_line(error)})"
    if problem:
        raise WeightsError(
            f"{folder / bundle.CARD_FILE} is not what tl writes: preprocessing.crop is {side}, and {problem}"
        )
