"""``tl train``: settings in, a recorded model out."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_cli.choices import (
    AugmentName,
    AutoAugment,
    BatchNormMode,
    ClassWeights,
    FeatureDtype,
    HeadName,
    Layout,
    OnBadImage,
    OptimizerName,
    Precision,
    RecipeName,
    ResizeName,
    SamplerName,
    ScheduleName,
)
from tl_cli.cli.params import (
    DataDir,
    Device,
    LabelColumn,
    MaxPixels,
    PathColumn,
    Plain,
    Quiet,
    SplitColumn,
    TrackingUri,
    Workers,
    command_line,
    complete_data,
    complete_model,
    complete_stopped_run,
    complete_weights,
    refuse_silence,
    uri_flag,
)

if TYPE_CHECKING:
    from mlflow.entities import Run  # noqa: TID251 (a type)

    from tl_cli.contract import DataSpec
    from tl_cli.tracking.recorder import Recorder
    from tl_cli.tracking.store import Store
    from tl_cli.training.history import History
    from tl_cli.training.outcome import Outcome
    from tl_cli.training.plan import Plan
    from tl_cli.training.state import Saver, TrainState
    from tl_cli.ui.terminal.console import Console

EXAMPLES = """Examples:

tl train efficientnet_lite0 --data digits --freeze-epochs 5

tl train efficientnet_b0 --freeze-epochs 5 --epochs 10

tl train resnet18 --data ~/photos --limit 2000 --dry-run

tl train --resume 3f2a91c0"""

_DATA, _LEARN, _MACHINE, _RECORD = "Data", "Training", "Machine", "Record"
_FREEZE, _AUGMENT, _REGULARISE = "Freezing", "Augmentation", "Regularisation"
Three = tuple[float, float, float]


def train(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Architecture, such as resnet18; tl models lists them.", autocompletion=complete_model
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="A set that tl data lists (cifar10), a folder, a CSV, a zip or tar.",
            autocompletion=complete_data,
            rich_help_panel=_DATA,
        ),
    ] = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    data_dir: DataDir = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many images a part, stratified.", rich_help_panel=_DATA)
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Share of the training images held out.", rich_help_panel=_DATA)
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of the split.", rich_help_panel=_DATA)] = None,
    sampler: Annotated[
        SamplerName | None,
        typer.Option(
            case_sensitive=False,
            help="shuffle, or balanced: every class equally often.",
            metavar="NAME",
            rich_help_panel=_DATA,
        ),
    ] = None,
    class_weights: Annotated[
        ClassWeights | None,
        typer.Option(
            case_sensitive=False,
            help="none, or balanced: rare classes weigh more in the loss.",
            metavar="NAME",
            rich_help_panel=_DATA,
        ),
    ] = None,
    on_bad_image: Annotated[
        OnBadImage | None,
        typer.Option(
            case_sensitive=False,
            help="error, or skip: leave files out that cannot be decoded.",
            metavar="NAME",
            rich_help_panel=_DATA,
        ),
    ] = None,
    max_pixels: MaxPixels = None,
    input_size: Annotated[
        int | None, typer.Option(help="Side of the network's input in pixels.", rich_help_panel=_DATA)
    ] = None,
    pixel_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="Black and white in pictures of more than 8 bits; measured by default.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    resize: Annotated[
        ResizeName | None,
        typer.Option(
            case_sensitive=False,
            help="How pictures become square: crop (the centre), squash or pad (all of it).",
            metavar="NAME",
            rich_help_panel=_DATA,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE|RUN",
            help="A weights name, none, a file (FILE#KEY: a key of a checkpoint), a saved model or a run; "
            "the last two bring their MODEL.",
            autocompletion=complete_weights,
            rich_help_panel=_LEARN,
        ),
    ] = None,
    head: Annotated[
        HeadName | None,
        typer.Option(
            case_sensitive=False,
            help="new, or keep: the weights' head by position. Default: match its classes by name.",
            metavar="NAME",
            rich_help_panel=_LEARN,
        ),
    ] = None,
    mean: Annotated[
        Three | None,
        typer.Option(metavar="R G B", help="Channel means, instead of the weights' own.", rich_help_panel=_LEARN),
    ] = None,
    std: Annotated[
        Three | None,
        typer.Option(metavar="R G B", help="Channel deviations, instead of the weights' own.", rich_help_panel=_LEARN),
    ] = None,
    recipe: Annotated[
        RecipeName | None,
        typer.Option(
            case_sensitive=False,
            help="default, fast or blog.",
            metavar="NAME",
            rich_help_panel=_LEARN,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="In all, frozen ones included.", rich_help_panel=_LEARN)] = None,
    steps: Annotated[int | None, typer.Option(help="In all, instead of --epochs.", rich_help_panel=_LEARN)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", rich_help_panel=_LEARN)] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches whose gradients make one step.", rich_help_panel=_LEARN)
    ] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="Largest gradient norm; 0 is no clipping.", rich_help_panel=_LEARN)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate while the backbone is frozen.", rich_help_panel=_LEARN)
    ] = None,
    optimizer: Annotated[
        OptimizerName | None,
        typer.Option(
            case_sensitive=False,
            help="adam, adamw or sgd.",
            metavar="NAME",
            rich_help_panel=_LEARN,
        ),
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd.", rich_help_panel=_LEARN)] = None,
    schedule: Annotated[
        ScheduleName | None,
        typer.Option(
            case_sensitive=False, help="constant, cosine, one-cycle or plateau.", metavar="NAME", rich_help_panel=_LEARN
        ),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of a phase in which cosine rises.", rich_help_panel=_LEARN)
    ] = None,
    early_stop: Annotated[
        int | None,
        typer.Option(help="Stop after so many epochs without a better one; 0 never.", rich_help_panel=_LEARN),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of order, augmentation and the new head.", rich_help_panel=_LEARN)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Settings by name; flags go on top.", rich_help_panel=_LEARN),
    ] = None,
    freeze_epochs: Annotated[
        int | None, typer.Option(help="Epochs in which only the head trains.", rich_help_panel=_FREEZE)
    ] = None,
    unfreeze_lr: Annotated[
        float | None, typer.Option(help="Learning rate of everything afterwards.", rich_help_panel=_FREEZE)
    ] = None,
    freeze_until: Annotated[
        str | None,
        typer.Option(
            help="Layers before this one never train, such as layer3.", metavar="LAYER", rich_help_panel=_FREEZE
        ),
    ] = None,
    unfreeze_stages: Annotated[
        int | None, typer.Option(help="Unfreeze in so many stages, from the head down.", rich_help_panel=_FREEZE)
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(help="Each layer's rate is this times that of the one above.", rich_help_panel=_FREEZE),
    ] = None,
    bn: Annotated[
        BatchNormMode | None,
        typer.Option(
            case_sensitive=False,
            help="BatchNorm statistics once unfrozen: frozen or train.",
            metavar="MODE",
            rich_help_panel=_FREEZE,
        ),
    ] = None,
    feature_cache: Annotated[
        bool | None,
        typer.Option(
            "--feature-cache/--no-feature-cache",
            help="Train what follows frozen layers on features computed once.",
            rich_help_panel=_FREEZE,
        ),
    ] = None,
    feature_views: Annotated[
        str | None,
        typer.Option(
            help="Views of an image in the features: plain, flip, or a number of augmented ones.",
            metavar="NAME|N",
            autocompletion=lambda: ["plain", "flip"],
            rich_help_panel=_FREEZE,
        ),
    ] = None,
    feature_dtype: Annotated[
        FeatureDtype | None,
        typer.Option(
            case_sensitive=False,
            help="fp16 or fp32, in which features are kept.",
            metavar="NAME",
            rich_help_panel=_FREEZE,
        ),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", rich_help_panel=_REGULARISE)] = None,
    decay_norms: Annotated[
        bool | None,
        typer.Option("--decay-norms/--no-decay-norms", help="Decay norms and biases too.", rich_help_panel=_REGULARISE),
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Label smoothing.", rich_help_panel=_REGULARISE)] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Probability on the head's input.", rich_help_panel=_REGULARISE)
    ] = None,
    drop_path: Annotated[
        float | None, typer.Option(help="Largest rate of stochastic depth.", rich_help_panel=_REGULARISE)
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of averaged weights, such as 0.999.", rich_help_panel=_REGULARISE)
    ] = None,
    augment: Annotated[
        AugmentName | None,
        typer.Option(
            case_sensitive=False,
            help="none, shift, flip, flip-shift, flip-crop or blog.",
            metavar="NAME",
            rich_help_panel=_AUGMENT,
        ),
    ] = None,
    auto_augment: Annotated[
        AutoAugment | None,
        typer.Option(
            case_sensitive=False,
            help="none, randaugment or trivialaugment.",
            metavar="NAME",
            rich_help_panel=_AUGMENT,
        ),
    ] = None,
    auto_ops: Annotated[int | None, typer.Option(help="Operations of randaugment.", rich_help_panel=_AUGMENT)] = None,
    auto_magnitude: Annotated[
        int | None, typer.Option(help="Strength of randaugment, 0 to 30.", rich_help_panel=_AUGMENT)
    ] = None,
    random_erasing: Annotated[
        float | None, typer.Option(help="Probability that a box is erased.", rich_help_panel=_AUGMENT)
    ] = None,
    mixup: Annotated[
        float | None, typer.Option(help="Alpha of MixUp; 0.2 to 0.8 are usual.", rich_help_panel=_AUGMENT)
    ] = None,
    cutmix: Annotated[float | None, typer.Option(help="Alpha of CutMix; 1 is usual.", rich_help_panel=_AUGMENT)] = None,
    device: Device = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            case_sensitive=False,
            help="fp32, bf16 or fp16.",
            metavar="NAME",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option(
            case_sensitive=False, help="channels-last or contiguous.", metavar="NAME", rich_help_panel=_MACHINE
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch on the CPU; 0 is torch's own choice.", rich_help_panel=_MACHINE)
    ] = None,
    fold: Annotated[
        bool | None,
        typer.Option(
            "--fold/--no-fold",
            help="Compute BatchNorm that stands still inside the convolution before it.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    probe: Annotated[
        bool | None,
        typer.Option(
            "--probe/--no-probe",
            help="Time a few steps to choose precision, layout, threads and folding.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    workers: Workers = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            help="Steps, or time such as 5m, between checkpoints within an epoch; 0 for its end alone.",
            metavar="N|TIME",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    log_every: Annotated[
        int | None, typer.Option(help="Steps between points of the loss curve; 0 chooses.", rich_help_panel=_MACHINE)
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option(
            help="MLflow experiment. Default: MLFLOW_EXPERIMENT_NAME or _ID, else tl.", rich_help_panel=_RECORD
        ),
    ] = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run.", rich_help_panel=_RECORD)] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Tag of the run; may be repeated.", rich_help_panel=_RECORD)
    ] = None,
    tracking_uri: TrackingUri = None,
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Register the model under this name.", rich_help_panel=_RECORD)
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a run from its last checkpoint.",
            autocompletion=complete_stopped_run,
            rich_help_panel=_RECORD,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings, their reasons and an estimate; train nothing.")
    ] = False,
    plain: Plain = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a pretrained classifier: its new head first, then all of it."""
    settings = dict(locals())
    began = time.monotonic()
    flags = given_settings(settings)
    tags = _tags(tag or [])
    from tl_cli.ui.terminal.console import make_console

    refuse_silence(quiet and dry_run)
    console = make_console(quiet=quiet, plain=plain)
    if resume is not None:
        _refuse_beside_resume({"--dry-run": dry_run, "--run-name": run_name, "--register": register, "--config": config,
                               "--experiment": experiment})  # fmt: skip
        _resume(resume, flags, tags, tracking_uri, console)
        return
    from tl_cli.training.config import read_toml

    file = read_toml(config) if config else {}
    if "model" not in {**file, **flags} and (start := {**file, **flags}.get("weights")):
        flags |= _warm_start(str(start), tracking_uri)
    if "model" not in {**file, **flags}:
        raise typer.BadParameter("give a MODEL, such as efficientnet_lite0", param_hint="MODEL")
    _check_names(run_name, register)
    check_settings({**file, **flags})
    if dry_run:
        _run_dry(flags, file, tracking_uri, console, began)
        return
    from tl_cli.tracking.destination import find_destination
    from tl_cli.tracking.store import open_store

    # Before the images are decoded: that may take minutes, and a server that is down is known at once.
    store = open_store(tracking_uri)
    place = find_destination(store, experiment)
    plan = _prepare(flags, file, tracking_uri, console)
    _show_plan(plan, console)
    prepared = place.run.info if place.run is not None else None
    name = run_name or str(prepared.run_name if prepared else plan.name)
    prepared_id = str(prepared.run_id) if prepared else None
    target = _Target(store, place.experiment_id, name, tags, register, tracking_uri, prepared_id=prepared_id)
    _carry_out(plan, target, console)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a run is recorded: a new one, one that another program has prepared, or an old one that goes on."""

    store: "Store"
    experiment_id: str
    name: str
    tags: dict[str, str]
    register: str | None
    tracking_uri: str | None
    resumed_id: str | None = None
    prepared_id: str | None = None


_NOT_SETTINGS = frozenset(
    ("config", "experiment", "run_name", "tag", "tracking_uri", "register", "resume", "dry_run", "plain", "quiet")
)


def given_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that the command line names, as the config wants them."""
    given = {key: value for key, value in settings.items() if key not in _NOT_SETTINGS and value is not None}
    return {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}


def check_settings(given: Mapping[str, object]) -> None:
    """Refuse what can be refused before anything is opened or fetched."""
    from tl_cli.models.zoo import registry
    from tl_cli.training.config import check

    check(given)
    registry.size_limits(str(given["model"]))


def _check_names(run_name: str | None, register: str | None) -> None:
    if run_name is not None and not (run_name.strip() and run_name.isprintable()):
        raise typer.BadParameter(f"{run_name!r} is not a line of printable text", param_hint="--run-name")
    if register is not None and (not register.strip() or set(register) & set("/:")):
        raise typer.BadParameter(f"{register!r}: a registered name has no / and no :", param_hint="--register")


def _tags(pairs: list[str]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--tag")
        tags[key] = value
    return tags


def _prepare(
    flags: dict[str, object],
    file: Mapping[str, object],
    tracking_uri: str | None,
    console: "Console",
    then: "DataSpec | None" = None,
) -> "Plan":
    from tl_cli.training import plan as setup
    from tl_cli.ui.terminal.progress import FileProgress

    flags = with_weights_of_run(flags, file, tracking_uri)
    with FileProgress(console) as progress:
        return setup.prepare(flags, file, progress, then=then)


def _warm_start(weights: str, tracking_uri: str | None) -> dict[str, object]:
    """Return the model and the weights of a run or saved model, where no MODEL is given.

    Raises:
        UsageError: the weights do not say of which architecture they are.
    """
    from tl_cli.api.model_lookup import find_model, saved_model
    from tl_cli.errors import RunNotFoundError, UsageError
    from tl_cli.models.bundle import read_card
    from tl_cli.models.zoo.weights import is_path
    from tl_cli.ui.terminal.console import print_warning

    needed = f"--weights {weights} does not say of which architecture it is; give a MODEL, such as efficientnet_lite0"
    if weights in ("none", "default") or (is_path(weights) and saved_model(weights) is None):
        raise UsageError(needed)
    try:
        folder = find_model(weights, tracking_uri, print_warning).folder
    except RunNotFoundError as error:
        raise UsageError(f"{needed} ({error})") from error
    return {"model": read_card(folder).architecture, "weights": str(folder)}


def _run_dry(
    flags: dict[str, object], file: Mapping[str, object], tracking_uri: str | None, console: "Console", began: float
) -> None:
    """Show what a run would be; without its images, only its settings."""
    from tl_cli.training import plan as setup
    from tl_cli.ui.terminal import tables
    from tl_cli.ui.terminal.console import plain
    from tl_cli.ui.terminal.progress import FileProgress

    flags = with_weights_of_run(flags, file, tracking_uri)
    absent = setup.to_fetch({**file, **flags})
    for each in (absent.weights, absent.data):
        if each is not None:
            console.print(plain(f"note: a run will fetch {each}", "yellow", limit=2000))
    if absent.data is not None:
        console.print(tables.settings_table(setup.foresee(flags, file).resolved))
        console.print("dry run: nothing was fetched, trained or recorded; no estimate without the images", style="dim")
        return
    with FileProgress(console) as progress:
        plan = setup.prepare(flags, file, progress, is_dry=True)
    start_s = time.monotonic() - began
    _show_plan(plan, console)
    _show_dry_run(plan, console, start_s)


def with_weights_of_run(
    flags: dict[str, object], file: Mapping[str, object], tracking_uri: str | None
) -> dict[str, object]:
    """Return the flags with the folder of a saved model in place of a run that ``--weights`` names."""
    from tl_cli.models.zoo import registry

    given = {**file, **flags}
    weights = given.get("weights")
    if isinstance(weights, str) and not registry.is_known_weights(str(given["model"]), weights):
        return {**flags, "weights": _weights_of_run(weights, tracking_uri)}
    return flags


def _weights_of_run(name: str, tracking_uri: str | None) -> str:
    """Return the saved model of a run for a warm start; a name that is no run is left to the zoo to refuse."""
    from tl_cli.api.model_lookup import find_model
    from tl_cli.errors import RunNotFoundError
    from tl_cli.ui.terminal.console import print_warning

    try:
        return str(find_model(name, tracking_uri, print_warning).folder)
    except RunNotFoundError:
        if ":/" in name:
            raise
        return name


def _refuse_beside_resume(given: Mapping[str, object]) -> None:
    for flag, value in given.items():
        if value:
            raise typer.BadParameter("a run that goes on has it already; leave it out", param_hint=flag)


def _resume(
    name: str, flags: dict[str, object], tags: dict[str, str], tracking_uri: str | None, console: "Console"
) -> None:
    from tl_cli.errors import UsageError
    from tl_cli.tracking.destination import check_resumable
    from tl_cli.tracking.ownership import owned
    from tl_cli.tracking.recorded import is_parent, named, short_id
    from tl_cli.tracking.store import open_store

    store = open_store(tracking_uri)
    found = store.find(name)
    if is_parent(found):
        raise UsageError(
            f"{named(found)} is a comparison, which cannot be resumed; tl compare {short_id(found)} shows it"
        )
    check_resumable(found)
    # Until it ends: two processes would write the same checkpoint.
    with owned(store, found) as run:
        store.check_place(run)
        _go_on(store, run, flags, tags, tracking_uri, console)


def _go_on(
    store: "Store",
    run: "Run",
    flags: dict[str, object],
    tags: dict[str, str],
    tracking_uri: str | None,
    console: "Console",
) -> None:
    from tl_cli.data.dataset import changed_parts, check_still_there
    from tl_cli.errors import TlError, UsageError
    from tl_cli.io.atomic import write_text
    from tl_cli.models import bundle
    from tl_cli.tracking.recorded import named, short_id
    from tl_cli.tracking.sync import sync
    from tl_cli.training.config import as_toml, settings_of
    from tl_cli.training.state import CARD_FILE, CONFIG_FILE
    from tl_cli.ui.terminal.console import print_warning

    try:
        sync(store, run)
        (run,) = store.again([run])
    except TlError as error:
        print_warning(f"{error}; it will be tried again")
    if run.info.status == "FINISHED":
        raise UsageError(
            f"the run {named(run)} is complete, and --resume continues only runs that were stopped; to train its model "
            f"further, start a new run from its weights:\n{_further(store, run, flags, tracking_uri)}"
        )
    extra = sorted(set(flags) - {"data", "data_dir", "workers", "device", "checkpoint_every"})
    if extra:
        listed = ", ".join("--" + key.replace("_", "-") for key in extra)
        raise UsageError(f"--resume takes its settings from the run; leave out {listed.replace('--model', 'MODEL')}")
    folder = store.state_folder(run)
    if not (folder / CARD_FILE).exists():
        raise UsageError(
            f"nothing of the run {run.info.run_name} is in {folder}: it ended before its training began, "
            "or was made in another folder"
        )
    # The card is sealed; the TOML beside it is for people.
    card = bundle.read_card(folder, CARD_FILE)
    settings = settings_of(card.config)
    if not (folder / CONFIG_FILE).exists():
        write_text(folder / CONFIG_FILE, as_toml(settings))
    elif (folder / CONFIG_FILE).read_bytes() != as_toml(settings).encode():
        print_warning(f"{folder / CONFIG_FILE} has changed; the run goes on with the settings that it began with")
    if "data" not in flags:
        check_still_there(str(settings["data"]))
    plan = _prepare(flags, settings, tracking_uri, console, card.data)
    changed = set(changed_parts(card.data, plan.data))
    if changed - {"test"}:
        raise UsageError(
            f"the {' and '.join(sorted(changed))} images have changed since the run began; start a new run"
        )
    if changed and "test" not in plan.data.parts:
        print_warning(f"the test images are not there: no test accuracy is recorded until tl eval {short_id(run)}")
    elif changed:
        print_warning("the test images have changed since the run began; it will be tested on those that are there now")
    _show_plan(plan, console)
    target = _Target(
        store, run.info.experiment_id, str(run.info.run_name), tags, None, tracking_uri, resumed_id=run.info.run_id
    )
    _carry_out(plan, target, console)


def _further(store: "Store", run: "Run", flags: Mapping[str, object], tracking_uri: str | None) -> str:
    """Return the command of a new run that goes on where a finished one ended, with its settings and these flags."""
    from tl_cli.errors import without_secrets
    from tl_cli.tracking.recorded import short_id
    from tl_cli.training.state import CONFIG_FILE

    kept = store.state_folder(run) / CONFIG_FILE
    done, given = run.data.params, dict(flags)
    settings: dict[str, object] = {"weights": short_id(run)}
    if kept.exists():
        settings["config"] = kept
    elif "data" in done:
        settings |= {"data": done["data"], "input_size": done.get("input_size", 224)}
    for length in ("epochs", "steps"):
        # As with --resume, what is asked for is the total.
        asked, had = given.pop(length, None), done.get(length, "")
        if isinstance(asked, int):
            settings[length] = asked - int(had) if had.isdecimal() and int(had) < asked else asked
    # The head is trained, and everything is unfrozen.
    lr = given.pop("unfreeze_lr", done.get("unfreeze_lr"))
    settings |= {"freeze_epochs": 0, **({"lr": lr} if lr else {})}
    if done.get("unfreeze_stages", "1") != "1":
        settings["unfreeze_stages"] = 1
    if done.get("head") == "new":
        settings["head"] = "keep"
    settings |= {key: value for key, value in given.items() if key not in ("model", "weights")}
    if tracking_uri:
        settings["tracking_uri"] = without_secrets(tracking_uri)
    return shlex.join(["tl", "train", *_as_flags(settings)])


def _as_flags(settings: Mapping[str, object]) -> Iterator[str]:
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield f"--{flag}"
            yield from map(str, value if isinstance(value, tuple) else (value,))


def _carry_out(plan: "Plan", target: _Target, console: "Console") -> None:
    """Train, record and show: opens the observers, and keeps the best model however the run ends."""
    from tl_cli.errors import Interrupted
    from tl_cli.tracking.recorder import Recorder
    from tl_cli.training.events import notify_all
    from tl_cli.training.fit import fit
    from tl_cli.training.outcome import conclude
    from tl_cli.training.state import BEST_FOLDER, Every, Saver
    from tl_cli.ui.figures.curve_figures import drawn, save_curves
    from tl_cli.ui.terminal.console import print_note
    from tl_cli.ui.terminal.progress import Title, open_screen

    state, history = _starting_point(plan, target)
    warnings: list[str] = []
    recorder = Recorder(
        target.store,
        experiment_id=target.experiment_id,
        run_name=target.name,
        run_id=target.resumed_id or target.prepared_id,
        tags=target.tags,
        warn=warnings.append,
    )
    try:
        with recorder:
            every = Every.parse(plan.config.checkpoint_every)
            saver = Saver(recorder.folder, state, plan.card(), every, recorder.settle)
            is_new = target.resumed_id is None
            if is_new:
                saver.begin()
            if is_new or not recorder.is_described:
                recorder.log_start(plan, command_line(), _draw_contact_sheet(plan, recorder.folder, warnings.append))
            title = Title(recorder.run_name, plan.machine.describe(), plan.config.epochs)
            try:
                with open_screen(console, title, history) as screen:
                    counters = fit(plan, state, notify_all(recorder, saver, history, screen))
                    outcome = conclude(plan, counters, recorder.folder / BEST_FOLDER, screen)
                if outcome.test is not None:
                    history.test_accuracy, history.test_loss = outcome.test.accuracy.value, outcome.test.loss.value
                curves = drawn(lambda: save_curves(history, recorder.folder), warnings.append)
                warnings += outcome.warnings
                if "test" in outcome.failed:
                    again = f"tl eval {recorder.run_id[:8]}{uri_flag(target.tracking_uri)}"
                    warnings.append(f"no test accuracy is recorded; to add it: {again}")
                recorder.log_end(plan, outcome, command_line(), curves, recorder.folder / BEST_FOLDER, target.register)
            except BaseException as error:  # however it ends: a signal, a full disk, no memory
                _keep(plan, recorder, saver, target, error)
                raise
        _print_all(warnings)
        _show_end(plan, target, recorder, history, outcome, console)
    except Interrupted:
        if recorder.is_complete and recorder.is_recorded:
            name = recorder.run_id[:8]
            see = f"tl eval {name}{uri_flag(target.tracking_uri)}"
            print_note(f"run {name} is complete and recorded, with its model; see: {see}")
        raise
    finally:
        _print_all(warnings)


def _print_all(warnings: list[str]) -> None:
    from tl_cli.ui.terminal.console import print_warning

    while warnings:
        print_warning(warnings.pop(0))


def _starting_point(plan: "Plan", target: _Target) -> "tuple[TrainState, History]":
    from tl_cli.tracking.reader import read_history
    from tl_cli.tracking.store import state_folder
    from tl_cli.training.history import History
    from tl_cli.training.plan import new_state
    from tl_cli.ui.terminal.console import print_warning

    state = new_state(plan)
    if target.resumed_id is None:
        return state, History(target.name)
    for problem in state.restore(state_folder(target.experiment_id, target.resumed_id)):
        print_warning(f"{problem}; going on from step {state.step}")
    history = read_history(target.store, target.store.find(target.resumed_id))
    if history.epochs and not state.step:
        print_warning("no checkpoint is left of what was trained; beginning with the first step again")
    history.cut_after(state.step)
    return state, history


def _draw_contact_sheet(plan: "Plan", folder: Path, warn: Callable[[str], None]) -> list[Path]:
    """Show one augmented batch with its labels: most mistakes with data are seen at a glance."""
    from tl_cli.ui.figures.curve_figures import drawn, save_contact_sheet

    indices, images = next(plan.train_loader(plan.phases[-1]).augmented(plan.augmentation, plan.config.seed, 1))
    labels = plan.task.label_names(plan.data.parts["train"].labels[indices], plan.data.classes)
    path = folder / "training_batch.png"

    def save() -> list[Path]:
        save_contact_sheet(images[:64], labels[:64], path)
        return [path]

    return drawn(save, warn)


def _keep(plan: "Plan", recorder: "Recorder", saver: "Saver", target: _Target, error: BaseException) -> None:
    """Keep what a run has come to that did not reach its end, and say so: where it stands, and its best model.

    Args:
        error: that ended it. But for a signal the state is what made it fail, and the checkpoint before that counts.
    """
    from tl_cli.errors import DivergedError, Interrupted, StorageError
    from tl_cli.training.state import BEST_FOLDER
    from tl_cli.ui.terminal.console import print_note, print_warning

    resume = f"resume with: tl train --resume {recorder.run_id[:8]}{uri_flag(target.tracking_uri)}"
    # To stop a training is no failure of it.
    tell = print_note if isinstance(error, Interrupted) else print_warning
    if isinstance(error, DivergedError):
        resume = "resuming would diverge at the same step; start a new run with other settings"
    try:
        if isinstance(error, Interrupted) and saver.save():
            resume = f"step {saver.step} is saved; {resume}"
    except StorageError as full:
        tell, resume = print_warning, f"{full}, so step {saver.step} is not saved; an earlier one is\n{resume}"
    # What the folder says of itself: the run may have ended while this very epoch was being saved.
    best, folder = saver.best, saver.folder / BEST_FOLDER
    if best is None:
        tell(f"no epoch was complete, so there is no model to keep\n{resume}")
        return
    # Said first: whoever presses Ctrl-C again leaves at once.
    worth = f"epoch {best.epoch}, {best.val_accuracy or 0.0:.2%} on validation"
    tell(f"kept the best model so far ({worth}): {folder}\n{resume}")
    recorder.log_unfinished(plan, best, folder)


def _show_end(
    plan: "Plan", target: _Target, recorder: "Recorder", history: "History", outcome: "Outcome", console: "Console"
) -> None:
    from tl_cli.tracking.overview import link_to
    from tl_cli.ui.terminal.train_report import print_next, print_outcome

    print_outcome(console, plan, history, outcome)
    flag = uri_flag(target.tracking_uri)
    browse = "mlflow ui"
    if target.store.uri.startswith("http"):
        browse = link_to(target.store.uri, target.experiment_id)
    elif target.store.database != Path.cwd() / "mlflow.db":
        # mlflow ui reads no variable.
        browse = f"mlflow ui --backend-store-uri {shlex.quote(target.store.uri)}"
    name = recorder.run_id[:8]
    if not recorder.is_recorded:
        print_next(
            console, f"run {name} is not recorded; its model is in {recorder.folder}", [f"tl runs sync {name}{flag}"]
        )
        return
    commands = [f"tl plot --terminal {name}{flag}", browse]
    # Those that work now: images may be away.
    if "train" not in outcome.failed:
        commands.insert(1, f"tl inspect {name}{flag}")
    if outcome.test is not None or "test" not in plan.data.spec.splits:
        commands.insert(0, f"tl eval {name}{flag}")
    print_next(console, f"run {name} is recorded", commands)


def _show_plan(plan: "Plan", console: "Console") -> None:
    from tl_cli.training.conditions import random_backbone
    from tl_cli.ui.terminal.console import print_warning
    from tl_cli.ui.terminal.train_report import print_plan

    print_plan(console, plan)
    for message in random_backbone(plan.config):
        print_warning(message)


def _show_dry_run(plan: "Plan", console: "Console", start_s: float) -> None:
    from tl_cli.training.forecast import estimate
    from tl_cli.ui.terminal.train_report import print_dry_run

    print_dry_run(console, plan, estimate(plan, start_s))
