"""What is inside a model: its tree, freeze plan, residual blocks, drift, features, and heatmaps of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tl_cli.api.inspection_results import (
    BlockMaps,
    CamResult,
    CamView,
    DriftResult,
    DriftView,
    FeaturesResult,
    FeaturesView,
    FreezePlanResult,
    FreezePlanView,
    Heatmap,
    InspectionRequest,
    InspectionResult,
    ResidualsResult,
    ResidualsView,
    TreeResult,
    TreeView,
    WorstView,
)
from tl_cli.api.model_lookup import Target, find_model
from tl_cli.api.observer import Observer
from tl_cli.contract import ModelCard
from tl_cli.data.decode import Picture
from tl_cli.errors import RunNotFoundError, UnknownModelError, UsageError, some
from tl_cli.evaluation.classification import worst_mistakes
from tl_cli.evaluation.logits import check_finite, compute_logits
from tl_cli.evaluation.task import TASKS
from tl_cli.inspection.attribution import grad_cam
from tl_cli.inspection.drift import measure_drift
from tl_cli.inspection.features import explore, features_of
from tl_cli.inspection.freeze_plan import freeze_by_name, freeze_plan
from tl_cli.inspection.loading import InspectedModel, LoadOptions, SampleImages, load_architecture, load_saved_model
from tl_cli.inspection.maps import layout_of
from tl_cli.inspection.residual_effects import measure_residuals, operands
from tl_cli.inspection.residuals import Residual, find_residuals
from tl_cli.inspection.summary import summarize
from tl_cli.models import bundle
from tl_cli.models.list.counting import count
from tl_cli.models.zoo import registry
from tl_cli.models.zoo.registry import Classifier
from tl_cli.tracking.evaluations import log_inspection
from tl_cli.training.config import FIELDS, Given, read_toml
from tl_cli.training.plan import foresee
from tl_cli.training.stage import describe_groups

_SCALES = (0.0, 0.5)
# Default numbers of images: for residuals and drift, for the neighbours of features, to classify, and on the map.
_IMAGES, _TRAINING, _QUERY, _ON_MAP = 256, 5000, 2000, 1000
# A CPU gets fewer images where more would take longer than a minute or two on two cores, at about 2e10 MACs per second.
_MACS, _FEWEST = 2e12, 32
_DRIFT_BATCH = 32
_ALL = 1 << 40
_DEFAULT_CLASSES = 10


def inspect(request: InspectionRequest, observer: Observer | None = None) -> InspectionResult:
    """Return one view of a model.

    Args:
        observer: gets warnings and progress.

    Raises:
        UnknownModelError: there is no such architecture, run or folder.
        UsageError: the view does not suit the model, or the images, the weights or the device cannot be used.
        DownloadError: weights or images cannot be downloaded.
        TrackingError: the store cannot be used.
    """
    inspection = _Inspection(request, observer or Observer())
    view = request.view
    if request.needs_run and (inspection.target is None or inspection.target.run is None):
        raise UsageError("--log: only a recorded run can keep results; --output writes files")
    match view:
        case TreeView():
            return _tree(inspection, view)
        case FreezePlanView():
            return _freeze_plan(inspection, view)
        case ResidualsView():
            return _residuals(inspection, view)
        case DriftView():
            return _drift(inspection, view)
        case FeaturesView():
            return _features(inspection)
        case CamView():
            return _cam(inspection, view)
        case WorstView():
            return _worst(inspection, view)


def log_files(result: InspectionResult, write: Callable[[Path], Sequence[Path]]) -> None:
    """Log the files of a result with the run that was inspected.

    Args:
        write: writes the files into a folder and returns their paths.

    Raises:
        UsageError: it is not a run.
        TrackingError: the store cannot be used.
    """
    target = result.target
    if target is None or target.store is None or target.run is None:
        raise UsageError("only a recorded run can keep results")
    files = write(target.store.state_folder(target.run) / "inspect" / result.name)
    log_inspection(target.store, target.run, result.name, files)


class _Inspection:
    """A request, the saved model where it is one, and the observer."""

    def __init__(self, request: InspectionRequest, observer: Observer) -> None:
        self.request, self.observer = request, observer
        self.target = None if registry.has(request.model) else self._find(request.model)

    def _find(self, name: str) -> Target:
        try:
            return find_model(name, self.request.tracking_uri, self.observer.warn)
        except RunNotFoundError as error:
            message = f"no model, run or saved-model folder is called {name!r}.{registry.nearest(name)}"
            raise UnknownModelError(message) from error

    def card(self) -> ModelCard | None:
        """Return the card of a saved model."""
        return bundle.read_card(self.target.folder) if self.target is not None else None

    def load(self) -> InspectedModel:
        """Return the model on its device, with its images."""
        request = self.request
        options = LoadOptions(
            request.data, request.split, request.data_dir, request.device, request.workers, self.observer.progress
        )
        if self.target is None:
            return load_architecture(
                request.model, options, weights=request.weights or "default", input_size=request.input_size
            )
        for flag, value in (("--weights", request.weights), ("--input-size", request.input_size)):
            if value is not None:
                raise UsageError(f"{flag} is for an architecture; {self.target.name} has its own")
        return load_saved_model(self.target.folder, options)

    def load_other(self, model: InspectedModel, against: str) -> Classifier:
        """Return the same architecture in another state on the same device: before training, or of another run.

        Raises:
            UsageError: it is another architecture.
        """
        card = self.card()
        if against == "pretrained":
            if card is None:
                raise UsageError("--against pretrained goes with a run; an architecture is what it is")
            other = registry.starting_point(card, self.observer.progress)
        else:
            other, _ = registry.restore(find_model(against, self.request.tracking_uri, self.observer.warn).folder)
        if other.name != model.classifier.name:
            raise UsageError(f"{against} is a {other.name} and cannot be compared with a {model.classifier.name}")
        model.machine.place(other.model)
        other.model.eval()
        return other

    def title(self, classifier: Classifier) -> str:
        """Return the architecture, the run or the weights, and the input size."""
        size = classifier.preprocessing.crop
        if self.target is not None:
            return f"{classifier.name}, {self.target.name}, {size} px"
        weights = f"weights {classifier.weights.name}" if classifier.weights.name != "none" else "random weights"
        return f"{classifier.name}, {weights}, {size} px"

    def counted(self, what: str, total: int, before: int = 0) -> Callable[[int], None]:
        """Return a callback that reports progress."""
        return lambda done: self.observer.progress(what, before + done, total)


def _tree(inspection: _Inspection, view: TreeView) -> TreeResult:
    request, card = inspection.request, inspection.card()
    notes: list[str] = []
    if card is None:
        name, classes, options = request.model, view.num_classes or _DEFAULT_CLASSES, {}
        preprocessing = registry.default_preprocessing(name, request.weights or "default")
    else:
        name, classes, options = card.architecture, view.num_classes or len(card.classes), dict(card.build_options)
        preprocessing = card.preprocessing
        shown = card.classes[:10]
        notes = [
            f"classes {', '.join(shown)}{', ...' if len(card.classes) > len(shown) else ''}",
            f"weights {card.weights.name}, recipe {card.recipe}, epoch {card.epoch}",
        ]
        if card.val_accuracy is not None:
            notes.append(f"validation accuracy {card.val_accuracy:.2%}")
    size = request.input_size or preprocessing.crop
    return TreeResult(
        title=f"{name}, {classes} classes, input {size} x {size}",
        target=inspection.target,
        model=name,
        num_classes=classes,
        head=tuple(registry.find_head(name)),
        preprocessing=preprocessing if size == preprocessing.crop else preprocessing.at(size, whole=False),
        root=summarize(name, classes, size, options | registry.options_for(name, size)),
        notes=tuple(notes),
    )


def _freeze_plan(inspection: _Inspection, view: FreezePlanView) -> FreezePlanResult:
    request, card = inspection.request, inspection.card()
    own = _settings_of(card) if card is not None else {}
    model = request.model if card is None else str(own.get("model", card.architecture))
    shared = {name: getattr(request, name) for name in ("data", "data_dir", "weights", "input_size", "workers")}
    shared["device"] = request.device if request.device != "auto" else None
    flags = {
        **({"model": model} if card is None else {}),
        **view.settings,
        **{name: value for name, value in shared.items() if value is not None},
    }
    forecast = foresee(
        Given.of(flags, {**own, **(read_toml(view.config) if view.config else {})}),
        num_classes=view.num_classes or (len(card.classes) if card is not None else None),
        build_options=card.build_options if card is not None else None,
        progress=inspection.observer.progress,
    )
    strategy = forecast.strategy
    return FreezePlanResult(
        title=f"{model}: what trains in each phase",
        target=inspection.target,
        model=model,
        config=forecast.resolved.config,
        strategy=strategy,
        parts=tuple(
            freeze_plan(strategy.classifier, [partial(strategy.freeze_for, phase) for phase in strategy.phases])
        ),
        groups=tuple(describe_groups(strategy, forecast.resolved.config)),
        by_name=freeze_by_name(strategy.classifier),
    )


def _settings_of(card: ModelCard) -> dict[str, object]:
    """Return the settings with which a model was trained, as in a config file."""
    values = {name: value for name, value in card.config.items() if name in FIELDS and value is not None}
    if "steps" in values:
        del values["epochs"]  # it is derived from the steps
    return values


def _residuals(inspection: _Inspection, view: ResidualsView) -> ResidualsResult:
    model = inspection.load()
    classifier = model.classifier
    other = inspection.load_other(model, view.against) if view.against is not None else None
    images = model.open_images()
    example = next(iter(images.batches(2).clean())).inputs
    found = find_residuals(classifier.model, example, classifier.head)
    result = ResidualsResult(title=inspection.title(classifier), target=inspection.target, model=classifier.name)
    if not found:
        return result
    untrained = classifier.head_is_new and not images.labels_fit
    scales = _SCALES if view.ablate and not untrained else ()
    chosen = _block(found, view.block) if view.block is not None or view.image is not None else None
    passes = 1 + len(scales) * len(found)
    loader = images.batches(inspection.request.images or _affordable(model, _IMAGES, least=_FEWEST, passes=passes))
    steps = -(-len(loader.images) // loader.batch_size)
    report = measure_residuals(
        classifier.model, found, loader.clean(), scales=scales,
        counted=inspection.counted("measuring residuals", steps * passes),
    )  # fmt: skip
    before = None
    if other is not None:
        counted = inspection.counted("measuring the state before", steps)
        before = measure_residuals(other.model, found, loader.clean(), counted=counted)
    note = "The head is new and untrained, so there are no predictions to measure without a branch."
    return replace(
        result,
        source=images.source,
        report=report,
        before=before,
        against=_state_name(other, view.against) if other is not None else "",
        notes=(note,) if view.ablate and untrained else (),
        block=_block_maps(model, images, chosen, view.image) if chosen and view.image is not None else None,
    )


def _affordable(model: InspectedModel, most: int, *, least: int, passes: int = 1) -> int:
    """Return how many images take a minute or two on a small CPU; on a GPU all.

    Args:
        passes: forward passes per image.
    """
    if model.machine.device.type != "cpu":
        return most
    counts = count(model.classifier.name, model.classifier.preprocessing.crop)
    macs = passes * (counts.multiply_adds if counts else 10**9)
    return min(most, max(least, int(_MACS / macs)))


def _block(found: Sequence[Residual], name: str | None) -> Residual:
    if name is None:
        return found[0]
    matching = [each for each in found if name in (each.name, each.block)]
    if not matching:
        raise UsageError(f"no residual block is called {name!r}; there are {some([each.name for each in found], 12)}")
    return matching[0]


def _state_name(other: Classifier, against: str | None) -> str:
    """Return the name of the state before: the weights that training began with, or what was requested."""
    if against not in (None, "pretrained"):
        return against
    return other.weights.name if other.weights.name != "none" else "random weights"


def _block_maps(model: InspectedModel, images: SampleImages, residual: Residual, image: str) -> BlockMaps:
    picture = model.prepared(_picture(model, images, image))
    (found,) = operands(model.classifier.model, [residual], model.inputs(picture[None]))
    layout = layout_of(tuple(found.sum.shape), 1)
    if layout is None:
        raise UsageError(f"{residual.name} has no maps to show over the image; choose another --block")
    x, branch, total = (layout.maps(each)[0].float().cpu() for each in (found.x, found.branch, found.sum))
    return BlockMaps(residual, picture, (x, branch, total))


def _picture(model: InspectedModel, images: SampleImages, image: str) -> Picture:
    """Return a picture file, or an image of the data by its index."""
    if not image.isdigit() or Path(image).exists():
        return model.read(Path(image).expanduser())
    opened = images.batches(_ALL).images
    if int(image) >= len(opened):
        raise UsageError(f"--image {image}: there are {len(opened):,} images, counted from 0")
    return opened.open(int(image))


def _drift(inspection: _Inspection, view: DriftView) -> DriftResult:
    if inspection.target is None:
        raise UsageError("--drift goes with a run; an architecture has not been trained")
    model = inspection.load()
    other = inspection.load_other(model, view.against)
    images = model.open_images()
    most = inspection.request.images or _affordable(model, _IMAGES, least=_FEWEST, passes=2)
    loader = images.batches(most, _DRIFT_BATCH)
    layers = measure_drift(
        other, model.classifier, next(iter(images.batches(1).clean())).inputs, loader.clean(),
        inspection.counted("comparing layers", -(-len(loader.images) // _DRIFT_BATCH)),
    )  # fmt: skip
    against = _state_name(other, view.against)
    return DriftResult(
        title=f"{inspection.title(model.classifier)}, against {against}",
        target=inspection.target,
        model=model.classifier.name,
        against=against,
        source=images.source,
        images=len(loader.images),
        layers=tuple(layers),
    )


def _features(inspection: _Inspection) -> FeaturesResult:
    model = inspection.load()
    images = model.open_images()
    if images.open_training is None:
        raise UsageError(
            "--features needs labelled training images besides those to classify: give --data for an architecture, "
            "and no --data for a run"
        )
    query = images.open(inspection.request.images or _affordable(model, _QUERY, least=200), None)
    training = images.open_training(_affordable(model, _TRAINING, least=500))
    total = len(training.images) + len(query.images)
    known = features_of(model.classifier, training.clean(), inspection.counted("features", total))
    asked = features_of(
        model.classifier, query.clean(), inspection.counted("features", total, before=len(training.images))
    )
    found = explore(known, asked, labels_fit=images.labels_fit, most_on_map=_ON_MAP)
    return FeaturesResult(
        title=inspection.title(model.classifier),
        target=inspection.target,
        model=model.classifier.name,
        source=images.source,
        ids=tuple(query.images.ids[index] for index in range(len(found.labels))),
        images=len(query.images),
        classes=images.classes,
        found=found,
    )


def _cam(inspection: _Inspection, view: CamView) -> CamResult:
    model = inspection.load()
    pictures = torch.stack([model.prepared(model.read(path.expanduser())) for path in view.images])
    with torch.inference_mode():
        logits: Tensor = model.classifier.model(model.inputs(pictures))
    check_finite(logits)
    probabilities = TASKS[model.classifier.task].probabilities(logits.float(), model.classifier.temperature).cpu()
    rows = [
        _Row(str(path), predicted, probability[predicted])
        for path, probability, predicted in zip(
            view.images, probabilities.tolist(), probabilities.argmax(1).tolist(), strict=True
        )
    ]
    return _heatmaps(inspection, model, pictures, rows, len(rows))


def _worst(inspection: _Inspection, view: WorstView) -> CamResult:
    if inspection.target is None:
        raise UsageError("--worst: only a run can be wrong; give one, not an architecture")
    model = inspection.load()
    loader = model.open_images().batches(inspection.request.images or _ALL)
    total = len(loader.images)
    labelled = compute_logits(
        model.classifier.model,
        loader.clean(),
        inspection.counted("evaluating", total),
        at_once=model.machine.at_once,
    )
    check_finite(labelled.logits)
    mistakes = worst_mistakes(labelled.scaled(model.classifier.temperature), view.count)
    if not mistakes:
        title = inspection.title(model.classifier)
        return CamResult(title=title, target=inspection.target, model=model.classifier.name, images=total)
    pictures = torch.stack([model.prepared(loader.images.open(each.index)) for each in mistakes])
    rows = [_Row(loader.images.ids[each.index], each.predicted, each.probability, each.true) for each in mistakes]
    return _heatmaps(inspection, model, pictures, rows, total)


@dataclass(frozen=True, slots=True)
class _Row:
    """A picture's path or id, its predicted class with the probability, and its true class."""

    image: str
    predicted: int
    probability: float
    true: int | None = None


def _heatmaps(
    inspection: _Inspection, model: InspectedModel, pictures: Tensor, rows: Sequence[_Row], images: int
) -> CamResult:
    found = grad_cam(model.classifier, model.inputs(pictures), [row.predicted for row in rows])
    return CamResult(
        title=inspection.title(model.classifier),
        target=inspection.target,
        model=model.classifier.name,
        images=images,
        heatmaps=tuple(
            Heatmap(
                row.image,
                model.class_name(row.predicted),
                row.probability,
                None if row.true is None else model.class_name(row.true),
                picture,
                heat,
            )
            for row, picture, heat in zip(rows, pictures, found.heat, strict=True)
        ),
        layer=found.layer,
        grid=found.grid,
    )
