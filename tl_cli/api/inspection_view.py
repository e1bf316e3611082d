"""What is inside a model: its tree, freeze plan, residual blocks, drift, features, and heatmaps of images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tl_cli.api import inspection_results as results
from tl_cli.api.inspection_results import CamResult, Heatmap, InspectionRequest, InspectionResult
from tl_cli.api.model_lookup import Target, find_model, find_to_read
from tl_cli.api.observer import Observer
from tl_cli.api.recorded_model import RecordedModel
from tl_cli.contract import ModelCard
from tl_cli.data.decode import Picture
from tl_cli.data.images import Images
from tl_cli.errors import RunNotFoundError, UnknownModelError, UsageError, some
from tl_cli.evaluation.classification import Mistake, worst_mistakes
from tl_cli.evaluation.logits import check_finite, compute_logits, with_views
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
from tl_cli.models.classifier import Classifier
from tl_cli.models.list.counting import count
from tl_cli.models.zoo import registry
from tl_cli.tracking.evaluations import log_inspection
from tl_cli.training.config import FIELDS, Given, read_toml, recorded_config, settings_of
from tl_cli.training.plan import foresee
from tl_cli.training.strategy import describe_groups

_SCALES = (0.0, 0.5)
# Default numbers of images: for residuals and drift, for the neighbours of features, to classify, and on the map.
_IMAGES, _TRAINING, _QUERY, _ON_MAP = 256, 5000, 2000, 1000
# On a CPU, as many images as take a minute or two on two cores, at about 2e10 MACs per second.
_MACS, _FEWEST = 2e12, 32
_DRIFT_BATCH = 32
_ALL = 1 << 40


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
    if request.needs_run and not isinstance(inspection.target, RecordedModel):
        raise UsageError("--log: only a recorded run can keep results; --output writes files")
    match request.view:
        case results.TreeView() as view:
            return _tree(inspection, view)
        case results.FreezePlanView() as view:
            return _freeze_plan(inspection, view)
        case results.ResidualsView() as view:
            return _residuals(inspection, view)
        case results.DriftView() as view:
            return _drift(inspection, view)
        case results.FeaturesView():
            return _features(inspection)
        case results.CamView() as view:
            return _cam(inspection, view)
        case results.WorstView() as view:
            return _worst(inspection, view)


def log_files(result: InspectionResult, write: Callable[[Path], Sequence[Path]]) -> None:
    """Log the files of a result with the run that was inspected.

    Args:
        write: writes the files into a folder and returns their paths.

    Raises:
        UsageError: the model is not that of a run.
        TrackingError: the store cannot be used.
    """
    target = result.target
    if not isinstance(target, RecordedModel):
        raise UsageError("only a recorded run can keep results")
    files = write(target.store.state_folder(target.run) / "inspect" / result.name)
    log_inspection(target.store, target.run, result.name, files)


class _Inspection:
    """A request, the saved model if it names one, and the observer."""

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
        request, progress = self.request, self.observer.progress
        options = LoadOptions(request.data, request.split, request.data_dir, request.device, request.workers, progress)
        if self.target is None:
            weights = request.weights or "default"
            return load_architecture(request.model, options, weights=weights, input_size=request.input_size)
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
                raise UsageError("--against pretrained goes with a run; an architecture has not been trained here")
            other = registry.starting_point(card, self.observer.progress)
        else:
            other, _ = registry.restore(find_to_read(against, self.request.tracking_uri, self.observer.warn).folder)
        if other.name != model.classifier.name:
            raise UsageError(f"{against} is a {other.name} and cannot be compared with a {model.classifier.name}")
        model.machine.place(other.model)
        other.model.eval()
        return other

    def about(self, classifier: Classifier, more: str = "") -> tuple[str, str, Target | None]:
        """Return the first fields of each result: title, name of the architecture, saved model."""
        weights = classifier.weights.name
        state = f"weights {weights}" if weights != "none" else "random weights"
        if self.target is not None:
            state = self.target.name
        title = f"{classifier.name}, {state}, {classifier.preprocessing.crop} px{more}"
        return title, classifier.name, self.target

    def counted(self, what: str, total: int, before: int = 0) -> Callable[[int], None]:
        """Return a callback that reports progress."""
        return lambda done: self.observer.progress(what, before + done, total)


def _tree(inspection: _Inspection, view: results.TreeView) -> results.TreeResult:
    request, card = inspection.request, inspection.card()
    if card is None:
        name, classes, options = request.model, 10, {}
        preprocessing = registry.default_preprocessing(name, request.weights or "default")
    else:
        name, classes, options = card.architecture, len(card.classes), dict(card.build_options)
        preprocessing = card.preprocessing
    classes, size = view.num_classes or classes, request.input_size or preprocessing.crop
    return results.TreeResult(
        f"{name}, {classes} classes, input {size} x {size}",
        name,
        inspection.target,
        num_classes=classes,
        head=tuple(registry.find_head(name)),
        preprocessing=preprocessing if size == preprocessing.crop else preprocessing.at(size, whole=False),
        root=summarize(name, classes, size, options | registry.options_for(name, size)),
        notes=() if card is None else tuple(_notes(card)),
    )


def _notes(card: ModelCard) -> Iterator[str]:
    shown = card.classes[:10]
    yield f"classes {', '.join(shown)}{', ...' if len(card.classes) > len(shown) else ''}"
    yield f"weights {card.weights.name}, recipe {card.recipe}, epoch {card.epoch}"
    if card.val_accuracy is not None:
        yield f"validation accuracy {card.val_accuracy:.2%}"


def _freeze_plan(inspection: _Inspection, view: results.FreezePlanView) -> results.FreezePlanResult:
    request, card = inspection.request, inspection.card()
    own, model, classes, options = {}, request.model, view.num_classes, None
    given = {name: getattr(request, name) for name in ("data", "data_dir", "weights", "input_size", "workers")}
    given["device"] = request.device if request.device != "auto" else None
    if card is None:
        given["model"] = model
    else:
        own = _settings_of(card)
        classes, options = classes or len(card.classes), card.build_options
        model = str(own.get("model", card.architecture))
    flags = {**view.settings, **{name: value for name, value in given.items() if value is not None}}
    file = {**own, **(read_toml(view.config) if view.config else {})}
    progress = inspection.observer.progress
    forecast = foresee(Given.of(flags, file), num_classes=classes, build_options=options, progress=progress)
    strategy, config = forecast.strategy, forecast.resolved.config
    phases = [partial(strategy.freeze_for, phase) for phase in strategy.phases]
    return results.FreezePlanResult(
        f"{model}: what trains in each phase",
        model,
        inspection.target,
        config=config,
        strategy=strategy,
        parts=tuple(freeze_plan(strategy.classifier, phases)),
        groups=tuple(describe_groups(strategy, config)),
        by_name=freeze_by_name(strategy.classifier),
    )


def _settings_of(card: ModelCard) -> dict[str, object]:
    """Return the settings with which a model was trained; none where they are not recorded."""
    if not card.config:
        return {}
    return {name: value for name, value in settings_of(recorded_config(card.config)).items() if name in FIELDS}


def _residuals(inspection: _Inspection, view: results.ResidualsView) -> results.ResidualsResult:
    model = inspection.load()
    network = model.classifier
    other = inspection.load_other(model, view.against) if view.against is not None else None
    images = model.open_images()
    residuals = find_residuals(network.model, next(iter(images.batches(2).clean())).inputs, network.head)
    result = results.ResidualsResult(*inspection.about(network))
    if not residuals:
        return result
    untrained = network.head_is_new and not images.labels_fit
    scales = _SCALES if view.ablate and not untrained else ()
    block = None
    if view.block is not None or view.image is not None:
        block = _choose_block(residuals, view.block)
    passes = 1 + len(scales) * len(residuals)
    loader = images.batches(inspection.request.images or _max_images(model, _IMAGES, least=_FEWEST, passes=passes))
    steps = -(-len(loader.images) // loader.batch_size)
    task = TASKS[network.task]
    counted = inspection.counted("measuring residuals", steps * passes)
    report = measure_residuals(network.model, residuals, loader.clean(), scales=scales, task=task, counted=counted)
    note = "The head is new and untrained, so there are no predictions to measure without a branch."
    result = replace(
        result,
        source=images.source,
        report=report,
        notes=(note,) if view.ablate and untrained else (),
        block=_block_maps(model, images, block, view.image) if block and view.image is not None else None,
    )
    if other is None:
        return result
    counted = inspection.counted("measuring the state before", steps)
    before = measure_residuals(other.model, residuals, loader.clean(), task=TASKS[other.task], counted=counted)
    return replace(result, before=before, against=_state_name(other, view.against))


def _max_images(model: InspectedModel, most: int, *, least: int, passes: int = 1) -> int:
    """Return how many images take a minute or two on a small CPU; on a GPU, ``most``.

    Args:
        passes: forward passes per image.
    """
    if model.machine.device.type != "cpu":
        return most
    counts = count(model.classifier.name, model.classifier.preprocessing.crop)
    macs = passes * (counts.multiply_adds if counts else 10**9)
    return min(most, max(least, int(_MACS / macs)))


def _choose_block(residuals: Sequence[Residual], name: str | None) -> Residual:
    if name is None:
        return residuals[0]
    matching = [each for each in residuals if name in (each.name, each.block)]
    if not matching:
        raise UsageError(
            f"no residual block is called {name!r}; there are {some([each.name for each in residuals], 12)}"
        )
    return matching[0]


def _state_name(other: Classifier, against: str | None) -> str:
    """Return the name of the state before: the weights that training began with, or what was requested."""
    if against not in (None, "pretrained"):
        return against
    return other.weights.name if other.weights.name != "none" else "random weights"


def _block_maps(model: InspectedModel, images: SampleImages, residual: Residual, image: str) -> results.BlockMaps:
    picture = model.prepared(_picture(model, images, image))
    (tensors,) = operands(model.classifier.model, [residual], model.inputs(picture[None]))
    layout = layout_of(tuple(tensors.sum.shape), 1)
    if layout is None:
        raise UsageError(f"{residual.name} has no maps to show over the image; choose another --block")
    x, branch, total = (layout.maps(each)[0].float().cpu() for each in (tensors.x, tensors.branch, tensors.sum))
    return results.BlockMaps(residual, picture, (x, branch, total))


def _picture(model: InspectedModel, images: SampleImages, image: str) -> Picture:
    """Return a picture file, or an image of the data by its index."""
    if not image.isdigit() or Path(image).exists():
        return model.read(Path(image).expanduser())
    opened = images.batches(_ALL).images
    if int(image) >= len(opened):
        raise UsageError(f"--image {image}: there are {len(opened):,} images, counted from 0")
    return opened.open(int(image))


def _drift(inspection: _Inspection, view: results.DriftView) -> results.DriftResult:
    if inspection.target is None:
        raise UsageError("--drift goes with a run; an architecture has not been trained")
    model = inspection.load()
    other = inspection.load_other(model, view.against)
    images = model.open_images()
    most = inspection.request.images or _max_images(model, _IMAGES, least=_FEWEST, passes=2)
    loader = images.batches(most, _DRIFT_BATCH)
    counted = inspection.counted("comparing layers", -(-len(loader.images) // _DRIFT_BATCH))
    example = next(iter(images.batches(1).clean())).inputs
    against = _state_name(other, view.against)
    return results.DriftResult(
        *inspection.about(model.classifier, f", against {against}"),
        against=against,
        source=images.source,
        images=len(loader.images),
        layers=tuple(measure_drift(other, model.classifier, example, loader.clean(), counted)),
    )


def _features(inspection: _Inspection) -> results.FeaturesResult:
    model = inspection.load()
    images = model.open_images()
    if images.open_training is None:
        raise UsageError(
            "--features needs labelled training images besides those to classify: give --data for an architecture, "
            "and no --data for a run"
        )
    query = images.open(inspection.request.images or _max_images(model, _QUERY, least=200), None)
    training = images.open_training(_max_images(model, _TRAINING, least=500))
    known, total = len(training.images), len(training.images) + len(query.images)
    counted, counted_after = (inspection.counted("features", total, before) for before in (0, known))
    neighbourhood = explore(
        features_of(model.classifier, training.clean(), counted),
        features_of(model.classifier, query.clean(), counted_after),
        labels_fit=images.labels_fit,
        most_on_map=_ON_MAP,
        task=TASKS[model.classifier.task],
    )
    return results.FeaturesResult(
        *inspection.about(model.classifier),
        source=images.source,
        ids=tuple(query.images.ids.tolist()[: len(neighbourhood.labels)]),
        images=len(query.images),
        classes=images.classes,
        neighbourhood=neighbourhood,
    )


def _cam(inspection: _Inspection, view: results.CamView) -> CamResult:
    model = inspection.load()
    pictures = torch.stack([model.prepared(model.read(path.expanduser())) for path in view.images])
    inputs = model.inputs(pictures)
    with torch.inference_mode():
        logits = model.classifier.logits(inputs)
    check_finite(logits)
    task, temperature = TASKS[model.classifier.task], model.classifier.temperature
    probabilities = task.probabilities(logits.float(), temperature)
    labels, confidence = task.decide(logits).tolist(), task.confidence(probabilities).tolist()
    cams = grad_cam(model.classifier, inputs, labels)
    rows = zip(view.images, labels, confidence, pictures, cams.heat, strict=True)
    heatmaps = tuple(
        Heatmap(str(path), model.class_name(label), probability, None, picture, heat)
        for path, label, probability, picture, heat in rows
    )
    about = inspection.about(model.classifier)
    return CamResult(*about, images=len(heatmaps), heatmaps=heatmaps, layer=cams.layer, grid=cams.grid)


def _worst(inspection: _Inspection, view: results.WorstView) -> CamResult:
    if inspection.target is None:
        raise UsageError("--worst: only a run can be wrong; give one, not an architecture")
    model = inspection.load()
    images, mistakes = _find_worst_mistakes(inspection, model, view.count)
    about = inspection.about(model.classifier)
    if not mistakes:
        return CamResult(*about, images=len(images))
    pictures = torch.stack([model.prepared(images.open(each.index)) for each in mistakes])
    cams = grad_cam(model.classifier, model.inputs(pictures), [each.predicted for each in mistakes])
    name = model.class_name
    heatmaps = tuple(
        Heatmap(images.ids[each.index], name(each.predicted), each.probability, name(each.true), picture, heat)
        for each, picture, heat in zip(mistakes, pictures, cams.heat, strict=True)
    )
    return CamResult(*about, images=len(images), heatmaps=heatmaps, layer=cams.layer, grid=cams.grid)


def _find_worst_mistakes(
    inspection: _Inspection, model: InspectedModel, count: int
) -> tuple[Images, Sequence[Mistake]]:
    """Return the images that were classified, and the most confident mistakes among them."""
    loader = model.open_images().batches(inspection.request.images or _ALL)
    counted = inspection.counted("evaluating", len(loader.images))
    network, tta = model.classifier.model, model.classifier.tta
    batches = with_views(loader.clean(), tta)
    labelled = compute_logits(network, batches, counted, at_once=model.machine.at_once, tta=tta)
    check_finite(labelled.logits)
    task, temperature = TASKS[model.classifier.task], model.classifier.temperature
    return loader.images, worst_mistakes(labelled.scaled(temperature), count, task)
