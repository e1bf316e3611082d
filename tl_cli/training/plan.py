"""Everything that ``fit`` needs, from the settings: data, model, machine, phases, and the batches of each phase."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import nn

from tl_cli.choices import RecipeName
from tl_cli.compute.autotune import Axis, Candidate, Work, probe
from tl_cli.compute.device import (
    Autocasting,
    Machine,
    bf16_is_fast,
    choose_device,
    cores,
    idle_cores,
    prepare_machine,
    worker_count,
)
from tl_cli.compute.step_watch import StepWatch
from tl_cli.contract import Columns, DataSpec, ModelCard, Stage, WeightsTag
from tl_cli.data.augment.settings import Augmentation, augmentation
from tl_cli.data.balance import imbalance
from tl_cli.data.batches import Batch, Loader
from tl_cli.data.dataset import LabelledData, locate, missing, open_data
from tl_cli.data.images import Images
from tl_cli.data.pixel_range import Measured
from tl_cli.data.sizes import Sizes
from tl_cli.data.sources.catalogue import SETS
from tl_cli.errors import UsageError, first_line
from tl_cli.evaluation.logits import LabelledLogits, compute_logits, with_views
from tl_cli.evaluation.task import TASKS, Task
from tl_cli.io.download import Missing, Progress, check_reachable, silent
from tl_cli.models.classifier import Classifier
from tl_cli.models.dropout import set_dropout
from tl_cli.models.freezing import batch_norms
from tl_cli.models.graph import Network
from tl_cli.models.macs import Counting
from tl_cli.models.stages import join_stages
from tl_cli.models.zoo import registry
from tl_cli.models.zoo.weights import Pretrained, split_key
from tl_cli.shortage import during
from tl_cli.training import cached_features
from tl_cli.training.cached_features import LIMITS, CachedFeatures, CacheLimits, CachePlan, View
from tl_cli.training.config import CROP_MODES, Given, Settings, TrainConfig
from tl_cli.training.ema import Average
from tl_cli.training.events import Activity, Noticed, Observer, Worked
from tl_cli.training.head_fit import HeadFit, fit_head
from tl_cli.training.optim import make_optimizer, make_plateau
from tl_cli.training.phases import Phase
from tl_cli.training.recipes import NOTHING, TINY_PIXELS, Choices, Facts
from tl_cli.training.resolve import Origin, Resolved, resolve
from tl_cli.training.state import TrainState
from tl_cli.training.step import Objective
from tl_cli.training.strategy import Strategy, plan_strategy

_VECTORS_PER_BATCH = 4096
# Fraction of the expected time of the run; later runs of the same model and size remember the choice.
_PROBE_SHARE = 0.05
# EfficientNet-Lite0 at 64 px on two 2020s server cores; for a GPU the order of magnitude is enough.
_MACS_PER_S = {"cpu": 2e10, "gpu": 2e12}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run needs.

    Attributes:
        resolved: the config with the origin of each value.
        data: labelled images in train, val and test.
        classifier: the model on its device.
        machine: device, precision and memory layout.
        strategy: which layers train in which phase.
        probed: result of the probe, for people.
        cached: features on which a phase trains, by its first epoch; other phases train on images.
        cache_notes: why a phase with frozen layers trains on images.
        time_note: what ``--time`` expects, for people.
    """

    resolved: Resolved
    data: LabelledData
    classifier: Classifier
    machine: Machine
    strategy: Strategy
    probed: str | None = None
    cached: Mapping[int, CachePlan] = field(default_factory=dict)
    cache_notes: tuple[str, ...] = ()
    time_note: str | None = None

    @property
    def config(self) -> TrainConfig:
        """The resolved settings."""
        return self.resolved.config

    @property
    def task(self) -> Task:
        """What is learned of the labels."""
        return TASKS[self.data.spec.task]

    @property
    def name(self) -> str:
        """Default name of the run."""
        return f"{self.config.model}-{Path(self.data.spec.source).name}"

    @property
    def augmentation(self) -> Augmentation:
        """What happens to training images."""
        return augmentation(self.config.augment, self.config)

    @property
    def crop_note(self) -> str | None:
        """A note if a center crop leaves out much of the training images."""
        is_cropped = self.classifier.preprocessing.crop_mode == "center"
        return self.data.sizes.crop_note() if is_cropped and self.data.sizes is not None else None

    @property
    def images_per_step(self) -> int:
        """Images per optimizer step."""
        return self.config.batch_size * self.config.accumulate

    def loader(self, images: Images) -> Loader:
        """Return the batches in which images are evaluated."""
        size = self.machine.eval_batch(self.config.input_size)
        return Loader(
            images,
            self.classifier.preprocessing,
            size,
            self.machine.device,
            self.config.workers,
            memory_format=self.machine.memory_format,
        )

    def train_loader(self, phase: Phase) -> Loader:
        """Return the batches of the training part in a phase."""
        return Loader(
            self.data.parts["train"],
            self.classifier.preprocessing,
            self.images_per_step,
            self.machine.device,
            self.config.workers,
            # BatchNorm cannot normalize a batch of one image.
            drop_single=phase.bn == "train",
            balanced=self.config.sampler == "balanced",
            memory_format=self.machine.memory_format,
        )

    def uses_cache(self, phase: Phase) -> bool:
        """Whether a phase trains on cached features."""
        return phase.first in self.cached

    def solves(self, phase: Phase) -> bool:
        """Whether a phase is a logistic regression of the head, which counts as one step."""
        head = self.classifier.head_modules
        return (
            self.config.head_fit == "logistic"
            and phase.name == "head"
            and self.uses_cache(phase)
            and len(head) == 1
            and isinstance(head[0], nn.Linear)
            and self.cached[phase.first].cut.shape == (head[0].in_features,)
        )

    def steps_per_epoch(self, phase: Phase) -> int:
        """Return the optimizer steps per epoch of a phase."""
        return 1 if self.solves(phase) else self.train_loader(phase).steps

    def steps_of(self, phase: Phase) -> int:
        """Return the optimizer steps of a phase; ``--steps`` may cut its last epoch short."""
        whole = self.steps_per_epoch(phase) * phase.epochs
        if self.config.steps is None:
            return whole
        return min(whole, self.config.steps - self.steps_before(phase))

    def steps_before(self, phase: Phase) -> int:
        """Return the optimizer steps of the phases before; only the last phase can be cut short."""
        return sum(self.steps_per_epoch(p) * p.epochs for p in self.phases if p.last < phase.first)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases, in order."""
        return self.strategy.phases

    def network(self, phase: Phase) -> nn.Module:
        """Return the module that maps batches to logits: the whole model, or its tail after cached features."""
        trained = self.cached[phase.first].cut.tail if self.uses_cache(phase) else self.classifier.model
        return Autocasting(trained, self.machine)

    def balanced_weights(self) -> torch.Tensor:
        """Return the weights (num_classes,) float32 on the device with which all classes count the same."""
        labels = torch.from_numpy(self.data.parts["train"].labels)
        return self.task.balanced_weights(labels, len(self.data.classes)).to(self.machine.device)

    def objective(self, *, mixes: bool) -> Objective:
        """Return the training loss.

        Args:
            mixes: whether MixUp and CutMix apply: to images, not to features.
        """
        config, count = self.config, len(self.data.classes)
        weights = None
        if config.class_weights == "balanced":
            weights = self.balanced_weights()
        return Objective(
            task=self.task,
            num_classes=count,
            label_smoothing=config.label_smoothing,
            class_weights=weights,
            mixup=config.mixup if mixes else 0.0,
            cutmix=config.cutmix if mixes else 0.0,
            seed=config.seed,
        )

    def card(self) -> ModelCard:
        """Return the model card, without the epoch of the saved model."""
        return ModelCard(
            architecture=self.classifier.name,
            build_options=self.classifier.build_options,
            format=2 if self.classifier.stages or self.classifier.tta != "none" else 1,
            head=self.classifier.head,
            stages=self.classifier.stages,
            tta=self.classifier.tta,
            classes=self.data.classes,
            preprocessing=self.classifier.preprocessing,
            weights=self.classifier.weights,
            head_start=self.classifier.head_start.reason if self.classifier.head_start else None,
            data=self.data.spec,
            recipe=self.config.recipe,
            config=self.config.model_dump(mode="json"),
            epoch=0,
        )


@dataclass(frozen=True, slots=True)
class OpenPhase:
    """The network of a phase and its batches.

    Attributes:
        network: maps a batch's inputs to logits: the whole model, or the head on cached features.
        steps: optimizer steps per epoch.
        train: returns the batches of an epoch, from a step on.
        validation: returns the batches of the validation images, in the views of the model's test-time augmentation.
        objective: the training loss.
        fit_head: solves the regression of a head that does not train in steps; None for all other phases.
        cached: whether the inputs are cached features.
        reused: whether an earlier run has computed all of them.
        watch: watches the time of the steps; None on a GPU, where a person has set the threads, and in a resumed run.
    """

    network: nn.Module
    steps: int
    train: Callable[[int, int], Iterator[Batch]]
    validation: Callable[[], Iterator[Batch]]
    objective: Objective
    cached: bool
    reused: bool = False
    fit_head: Callable[[], HeadFit] | None = None
    watch: StepWatch | None = None


@dataclass(frozen=True, slots=True)
class ToFetch:
    """What a run needs that is not on this machine; None: nothing."""

    weights: Missing | None
    data: Missing | None


def to_fetch(given: Given) -> ToFetch:
    """Return what a run with these settings would fetch; nothing is fetched or decoded.

    Raises:
        UsageError: there are no such weights or data, or no model is given.
    """
    settings = given.settings
    return ToFetch(registry.missing_weights(given.model, settings.weights), missing(settings.data, settings.data_dir))


def prepare(given: Given, progress: Progress = silent, *, recorded: DataSpec | None = None) -> Plan:
    """Return the plan of a run: images found and split, settings resolved, model built.

    The arguments and errors are those of ``gather``.
    """
    return gather(given, progress, recorded=recorded).plan()


@during("while preparing data and model", "--limit", "--input-size", "--workers", "--threads", "--device")
def gather(
    given: Given, progress: Progress = silent, *, recorded: DataSpec | None = None, is_dry: bool = False
) -> "Material":
    """Return what a run starts from: images found and split, weights loaded.

    Args:
        progress: called with the state of downloads and decoding.
        recorded: the data of the run that is resumed.
        is_dry: use random weights in place of weights that would have to be fetched.

    Raises:
        UsageError: a setting, the data or the weights cannot be used.
        DownloadError: a file cannot be fetched.
    """
    # Before the images are decoded, which may take minutes.
    absent = to_fetch(given)
    if not is_dry:
        check_reachable([absent.weights, absent.data])
    settings, weights = given.settings, absent.weights if is_dry else None
    pretrained = (
        registry.find_weights(given.model, settings.weights, seed=settings.seed, progress=progress)
        if weights is None
        else None
    )
    device = choose_device(settings.device)  # refused before the images are decoded
    data = _open_data(given, progress, recorded)
    if settings.pixel_range is not None and data.measured is None:
        name = "--pixel-range" if "pixel_range" in given.flags else "pixel_range in the config file"
        raise UsageError(f"{name} has no effect: no training image has more than 8 bits per channel; leave it out")
    facts = replace(
        _facts(given, _Known.of(data), device),
        keeps_head=_keeps_head(settings, pretrained, data),
        head_sees_stages=pretrained is not None and bool(pretrained.stages),
    )
    return Material(_with_absolute_paths(given, data), data, pretrained, facts, weights)


@dataclass(frozen=True, slots=True)
class Material:
    """What a run starts from; from one material several plans can be made.

    Attributes:
        given: the settings, with absolute paths.
        data: images, found and split.
        pretrained: the weights; None: random ones.
        facts: what recipes depend on.
        to_fetch: weights in whose place a dry run has random ones.
    """

    given: Given
    data: LabelledData
    pretrained: Pretrained | None
    facts: Facts
    to_fetch: Missing | None

    def with_recipe(self, recipe: RecipeName) -> "Material":
        """Return the same for another recipe."""
        given = self.given.replaced(recipe=recipe)
        return replace(self, given=given, facts=replace(self.facts, stages=_uses_stages(given)))

    @during("while preparing data and model", "--limit", "--input-size", "--workers", "--threads", "--device")
    def plan(self, for_time: Choices = NOTHING, *, is_draft: bool = False) -> Plan:
        """Return the plan of a run: settings resolved, model built.

        Args:
            for_time: what ``--time`` chooses.
            is_draft: leave out what takes time, the probe and the caches.

        Raises:
            UsageError: a setting cannot be used.
        """
        resolved, data = resolve(self.given, self.facts, for_time), self.data
        config = resolved.config
        machine = _machine_of(config)
        weights = {} if self.to_fetch is None else {"weights": "none"}
        classifier = _build(config.model_copy(update=weights), data, self.pretrained)
        if self.to_fetch is not None:
            classifier = replace(classifier, weights=WeightsTag(name=f"{config.weights} weights, to be fetched"))
        machine.place(classifier.model)
        example = _example(classifier, machine)
        _check_input_size(classifier, example, config)
        _check_batches(classifier, data, config)
        plan = Plan(resolved, data, classifier, machine, plan_strategy(config, classifier, example))
        if is_draft:
            return plan
        if config.probe:
            plan = _with_probed_machine(plan, self.given)
        plan = with_caches(plan) if config.feature_cache else plan
        if config.head_fit == "logistic" and config.freeze_epochs and not plan.solves(plan.phases[0]):
            reason = f" ({plan.cache_notes[0]})" if plan.cache_notes else ""
            raise UsageError(
                f"--head-fit logistic needs a linear head on cached features{reason}; use --head-fit steps"
            )
        return plan


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run would do to a model, without its images and weights.

    Attributes:
        resolved: the config with the origin of each value.
        strategy: for a model on the meta device.
    """

    resolved: Resolved
    strategy: Strategy


def foresee(
    given: Given,
    *,
    num_classes: int | None = None,
    build_options: Mapping[str, int] | None = None,
    progress: Progress = silent,
) -> Forecast:
    """Return what ``prepare`` would resolve for these settings; for a published set from the catalogue alone.

    Args:
        num_classes: of the head; None: as many as the data have.
        build_options: options with which a trained model was built.

    Raises:
        UsageError: a setting or the data cannot be used.
    """
    known = _foresee_data(given, num_classes, progress)
    resolved = resolve(given, _facts(given, known, choose_device(given.settings.device)))
    config = resolved.config
    options = dict(build_options or {}) | registry.options_for(config.model, config.input_size)
    with torch.device("meta"):
        model = registry.build(config.model, num_classes or known.num_classes, options, config.drop_path)
        example = torch.empty(1, 3, config.input_size, config.input_size)
    head, stages = registry.find_head(config.model), _stages(config)
    if stages:
        join_stages(model, head, stages)
    preprocessing = registry.default_preprocessing(config.model, config.weights)
    classifier = Classifier(
        config.model, model, head, preprocessing, WeightsTag(name=config.weights), build_options=options, stages=stages
    )
    _check_input_size(classifier, example, config)
    return Forecast(resolved, plan_strategy(config, classifier, example))


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of the data before training, measured or from the catalogue.

    Attributes:
        source: name or path.
        train_images: after the split.
        val_images: after the split.
        native_size: median of the short sides in pixels; None if unknown.
        imbalance: size of the largest class divided by that of the smallest.
    """

    source: str
    num_classes: int
    train_images: int
    val_images: int
    native_size: int | None
    sizes: Sizes | None = None
    imbalance: float = 1.0
    measured: Measured | None = None

    @classmethod
    def of(cls, data: LabelledData) -> Self:
        """Return the facts of decoded images."""
        labels, count = data.parts["train"].labels, len(data.classes)
        return cls(
            data.spec.source, count, len(labels), len(data.parts["val"]), data.native_size, data.sizes,
            imbalance(labels, count), data.measured,
        )  # fmt: skip


def _foresee_data(given: Given, num_classes: int | None, progress: Progress) -> _Known:
    settings = given.settings
    source = locate(settings.data) if settings.data in SETS or num_classes is None else settings.data
    if source in SETS:
        known, counts = SETS[source], SETS[source].images
        share = 1 - settings.val_fraction * ("val" not in counts)
        # A set with a single split gives a tenth of it as test images.
        images = round(min(settings.limit or counts["train"], counts["train"]) * (share - 0.1 * (len(counts) == 1)))
        val = counts.get("val") or round(images * settings.val_fraction / share)
        return _Known(source, known.classes, images, val, known.pixels)
    if num_classes is None or Path(source).exists():
        return _Known.of(_open_data(given, progress))
    # A trained model's own settings leave nothing to the data.
    return _Known(source, num_classes, 1, 1, None)


def _open_data(given: Given, progress: Progress, recorded: DataSpec | None = None) -> LabelledData:
    settings = given.settings
    spec = DataSpec(
        source=settings.data,
        data_dir=settings.data_dir,
        layout="classes",
        split_seed=settings.split_seed,
        val_fraction=settings.val_fraction,
        limit=settings.limit,
        on_bad_image=settings.on_bad_image,
        columns=Columns(path=settings.path_column, label=settings.label_column, split=settings.split_column),
        max_pixels=settings.max_pixels,
    )
    if recorded is not None:
        spec = spec.model_copy(update={"layout": recorded.layout, "splits": recorded.splits})
    return open_data(
        spec,
        resuming=recorded is not None,
        pixel_range=settings.pixel_range,
        workers=worker_count(settings.workers if "workers" in given else None),
        progress=progress,
    )


def _facts(given: Given, known: _Known, device: torch.device) -> Facts:
    settings = given.settings
    smallest, own = registry.size_limits(given.model, settings.weights)
    return Facts(
        data=known.source,
        train_images=known.train_images,
        val_images=known.val_images,
        native_size=known.native_size,
        sizes=known.sizes,
        smallest_input=smallest,
        own_input=own,
        on_gpu=device.type != "cpu",
        bf16=bf16_is_fast(device),
        imbalance=known.imbalance,
        cores=cores(),
        idle_cores=idle_cores() if device.type == "cpu" and not settings.threads else 0,
        pretrained=settings.weights != "none",
        mirrors=known.source not in SETS or SETS[known.source].mirrors,
        measured=known.measured,
        stages=_uses_stages(given),
    )


def _uses_stages(given: Given) -> bool:
    """Whether the recipe asks for stages, and there are any; finding them takes a moment."""
    return given.settings.recipe == "head" and bool(registry.find_stages(given.model))


def _keeps_head(settings: Settings, pretrained: Pretrained | None, data: LabelledData) -> bool:
    """Whether rows of the weights' head are kept, by position or by the names of their classes."""
    named = pretrained.classes if pretrained is not None else None
    by_name = settings.head is None and named is not None and not set(named).isdisjoint(data.classes)
    return settings.head == "keep" or by_name


def new_state(plan: Plan) -> TrainState:
    """Return the state of a new run: one optimizer with all parameter groups."""
    config, model = plan.config, plan.classifier.model
    optimizer = make_optimizer(config, plan.strategy.parameter_groups(config))
    average = Average(model, config.ema) if config.ema else None
    return TrainState(
        model, optimizer, make_plateau(optimizer), plan.machine.scaler(), average, cached=tuple(plan.cached)
    )


def open_phase(plan: Plan, phase: Phase, notify: Observer) -> OpenPhase:
    """Freeze the layers that the phase freezes; return its network and batches. Features are computed here."""
    plan.strategy.freeze_for(phase)
    if plan.uses_cache(phase):
        return _open_cached(plan, phase, notify)
    loader = plan.train_loader(phase)
    return OpenPhase(
        network=plan.network(phase),
        steps=plan.steps_per_epoch(phase),
        train=lambda epoch, start: loader.train(plan.augmentation, plan.config.seed, epoch, start),
        validation=lambda: with_views(plan.loader(plan.data.parts["val"]).clean(), plan.config.tta),
        objective=plan.objective(mixes=True),
        cached=False,
        watch=_step_watch(plan),
    )


def observed_logits(
    plan: Plan, network: nn.Module, batches: Iterator[Batch], images: int, activity: Activity, notify: Observer
) -> LabelledLogits:
    """Return the logits of batches, and notify of each batch that is done.

    Args:
        batches: in the views of the model's test-time augmentation.
        images: number of images in all batches.
    """
    return compute_logits(
        network,
        batches,
        lambda done: notify(Worked(activity, done, images)),
        at_once=plan.machine.at_once,
        tta=plan.config.tta,
    )


def _machine_of(config: TrainConfig) -> Machine:
    return prepare_machine(
        config.device, precision=config.precision, layout=config.layout, fold=config.fold, threads=config.threads
    )


@during(
    "while computing features", "--no-feature-cache", "--limit", "--input-size", "--workers", "--threads", "--device"
)
def _open_cached(plan: Plan, phase: Phase, notify: Observer) -> OpenPhase:
    cached = plan.cached[phase.first]
    cache = cached_features.Cache(cached, plan.machine, say=lambda message: notify(Noticed(message)))
    train, val = (plan.loader(plan.data.parts[part]) for part in ("train", "val"))
    in_train = len(cached.views) * len(train.images)
    judged = cached_features.judged_views(plan.config)
    total = in_train + len(judged) * len(val.images)
    seed = plan.config.seed

    def batches_of(loader: Loader, views: tuple[View, ...], before: int) -> tuple[CachedFeatures, bool]:
        tensors, reused = cache.features(
            loader, views, plan.augmentation, seed,
            lambda done: notify(Worked("caching features", before + done, total)),
        )  # fmt: skip
        made = CachedFeatures(
            cached_features.on_device(tensors, plan.machine.device),
            torch.from_numpy(loader.images.labels),
            plan.images_per_step,
            # Maps need as much memory in the tail as images; vectors need little.
            loader.batch_size if cached.cut.is_map else _VECTORS_PER_BATCH,
            plan.machine.device,
            balanced=plan.config.sampler == "balanced",
            drop_single=phase.bn == "train",
            flips="mirrored" in views,
        )
        return made, reused

    trained, train_reused = batches_of(train, cached.views, 0)
    validated, val_reused = batches_of(val, judged, in_train)

    def regress() -> HeadFit:
        (head,) = plan.classifier.head_modules
        assert isinstance(head, nn.Linear)
        joined = [stage.channels for stage in plan.classifier.stages]
        weights = plan.objective(mixes=False).class_weights
        if trained.balanced:
            weights = plan.balanced_weights()
        widths = [head.in_features - sum(joined), *joined]
        return fit_head(
            head, trained, validated, widths, plan.task, weights, plan.config.label_smoothing,
            is_final=phase is plan.phases[-1],
            counted=lambda done, most: notify(Worked("fitting the head", done, most)),
        )  # fmt: skip

    return OpenPhase(
        network=plan.network(phase),
        steps=plan.steps_per_epoch(phase),
        train=lambda epoch, start: trained.train(seed, epoch, start),
        validation=partial(validated.clean, len(judged)),
        objective=plan.objective(mixes=False),
        cached=True,
        reused=train_reused and val_reused,
        fit_head=regress if plan.solves(phase) else None,
        watch=_step_watch(plan),
    )


def _step_watch(plan: Plan) -> StepWatch | None:
    # The threads of a resumed run are recorded, as if its config file had them.
    is_fixed = plan.resolved.origins["threads"].source in ("flag", "config file")
    threads = torch.get_num_threads()
    return None if is_fixed or plan.machine.device.type != "cpu" else StepWatch(threads, plan.config.threads or threads)


def _with_probed_machine(plan: Plan, given: Given) -> Plan:
    """Return the plan with the probe's choices for those settings that are not given."""
    config, phase, device = plan.config, plan.phases[-1], plan.machine.device
    axes: tuple[Axis, ...] = ("layout", "precision", "threads", "fold")
    fixed = {axis for axis in axes if axis in given and getattr(config, axis) is not None}
    if fixed >= {"layout", "precision", "threads"}:
        return plan  # also for a resumed run, whose config has them all
    plan.strategy.freeze_for(phase)
    start = first_candidate(config, device, fixed)
    work = Work(config.model, device, config.input_size, config.batch_size, phase.name != "head")
    choice = probe(plan.classifier.model, work, start, fixed, budget_s=_PROBE_SHARE * _expected_seconds(plan))
    if choice is None:
        return plan
    values: dict[str, object] = {axis: getattr(choice.best, axis) for axis in axes if axis not in given}
    origins = {**plan.resolved.origins, **{axis: Origin("machine", choice.why(axis)) for axis in values}}
    resolved = Resolved(config.model_copy(update=values), origins)
    machine = _machine_of(resolved.config)
    machine.place(plan.classifier.model)
    return replace(plan, resolved=resolved, machine=machine, probed=choice.why())


def first_candidate(config: TrainConfig, device: torch.device, fixed: Collection[Axis]) -> Candidate:
    """Return what the probe starts from: the config's choices; on a GPU, torch's own number of threads."""
    return Candidate(
        layout=config.layout,
        precision=config.precision,
        threads=("threads" in fixed and config.threads) or (1 if device.type == "cpu" else torch.get_num_threads()),
        fold=device.type == "cpu" if config.fold is None else config.fold,
    )


def _expected_seconds(plan: Plan) -> float:
    """Return roughly how long a run takes, from its MACs: precise enough to limit the time of the probe."""
    with torch.no_grad(), Counting() as counting:  # type: ignore[no-untyped-call]
        plan.classifier.model.eval()(_example(plan.classifier, plan.machine))
    images = len(plan.data.parts["train"])
    # A backward pass costs as much as two forward passes; frozen layers process plain and mirrored images once.
    passes = [3 * phase.epochs if phase.name != "head" else 2 for phase in plan.phases]
    speed = _MACS_PER_S["cpu" if plan.machine.device.type == "cpu" else "gpu"]
    return float(sum(passes) * images * counting.flops / 2 / speed)


def with_caches(plan: Plan, limits: CacheLimits = LIMITS) -> Plan:
    """Return the plan with the cached features of each phase that can train on them."""
    frozen = [phase for phase in plan.phases if len(plan.strategy.trained_layers(phase)) < len(plan.strategy.layers)]
    if not frozen:
        return plan
    network = Network(plan.classifier, _example(plan.classifier, plan.machine))
    cached: dict[int, CachePlan] = {}
    notes: list[str] = []
    images = len(plan.data.parts["train"]), len(plan.data.parts["val"])
    for phase in frozen:
        plan.strategy.freeze_for(phase)
        planned = cached_features.plan_cache(network.cut(), phase, plan.config, plan.augmentation, images, limits)
        if isinstance(planned, CachePlan):
            cached[phase.first] = planned
        else:
            notes.append(f"{phase.title} trains on images: {planned}")
    return replace(plan, cached=cached, cache_notes=tuple(notes))


def _stages(config: TrainConfig) -> tuple[Stage, ...]:
    """Return the stages that the head sees.

    Raises:
        UsageError: the architecture has none.
    """
    if config.head_features == "last":
        return ()
    stages = registry.find_stages(config.model)
    if not stages:
        raise UsageError(f"--head-features stages: the stages of {config.model} cannot be joined; use last")
    return stages


def _build(config: TrainConfig, data: LabelledData, pretrained: Pretrained | None) -> Classifier:
    classifier = registry.create(
        config.model,
        len(data.classes),
        weights=config.weights,
        classes=data.classes,
        input_size=config.input_size,
        mean=config.mean,
        std=config.std,
        head=config.head,
        stages=_stages(config),
        drop_path=config.drop_path,
        seed=config.seed,
        found=pretrained,
    )
    if config.dropout is not None:
        set_dropout(classifier, config.dropout)
    size = data.native_size
    is_tiny = size is not None and size < TINY_PIXELS
    crop_mode = None if config.resize is None else CROP_MODES[config.resize]
    sized = classifier.preprocessing.at(config.input_size, whole=is_tiny, crop_mode=crop_mode)
    # The range is a property of the images, not of the weights.
    preprocessing = sized.model_copy(update={"pixel_range": config.pixel_range})
    return replace(classifier, preprocessing=preprocessing, tta=config.tta)


def _check_input_size(classifier: Classifier, example: torch.Tensor, config: TrainConfig) -> None:
    """Run one image through the model, to refuse a wrong size before anything is written."""
    classifier.model.eval()
    try:
        with torch.inference_mode():
            classifier.model(example)
    except (RuntimeError, AssertionError, ValueError) as error:
        smallest, own = registry.size_limits(config.model, config.weights)
        raise UsageError(
            f"{config.model} cannot take --input-size {config.input_size}; its smallest is {smallest} and its own "
            f"{own} ({first_line(error)})"
        ) from error


def _example(classifier: Classifier, machine: Machine) -> torch.Tensor:
    size = classifier.preprocessing.crop
    return torch.zeros(1, 3, size, size, device=machine.device)


def _check_batches(classifier: Classifier, data: LabelledData, config: TrainConfig) -> None:
    smallest = min(config.batch_size, len(data.parts["train"]))
    if config.bn == "train" and smallest == 1 and batch_norms(classifier.model.modules()):
        raise UsageError("BatchNorm cannot train on batches of one image; use a larger --batch-size or --bn frozen")


def _with_absolute_paths(given: Given, data: LabelledData) -> Given:
    """Return the settings with absolute paths: the recorded config may be used from another folder."""
    paths = {"data": data.spec.source} if "data" in given else {}
    file, key = split_key(given.settings.weights) if "weights" in given else ("", "")
    if file and Path(file).expanduser().exists():
        paths["weights"] = f"{Path(file).expanduser().resolve()}{key and '#'}{key}"
    return given.replaced(**paths)
