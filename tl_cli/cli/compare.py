"""``tl compare``: which of several models is better, at which cost, and whether that can be claimed."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl_cli import interrupts
from tl_cli.cli.params import (
    DataDir,
    Device,
    Plain,
    Quiet,
    TrackingUri,
    Workers,
    command_line,
    complete_contender,
    complete_data,
    refuse_silence,
    uri_flag,
)
from tl_cli.models.list.completion import is_architecture

if TYPE_CHECKING:
    from mlflow.entities import Run  # noqa: TID251 (a type)

    from tl_cli.api.model_lookup import Target
    from tl_cli.contract import SplitName
    from tl_cli.evaluation.logits import KeptAnswers
    from tl_cli.evaluation.ranking import Comparison, Contender, Cost, Training
    from tl_cli.io.download import Progress
    from tl_cli.tracking.comparisons import Parent
    from tl_cli.tracking.destination import Destination
    from tl_cli.tracking.store import Store
    from tl_cli.training.history import History
    from tl_cli.ui.terminal.console import Console

EXAMPLES = """Examples:

tl compare 3f2a91c0 best

tl compare resnet18-run efficientnet-run --data ~/new-photos --format markdown

tl compare --models resnet18 efficientnet_b0 --data cifar10 --freeze-epochs 5 --seeds 3

tl compare 9c01d2e4     (that comparison again)"""

# What the command gives to each training itself.
_NOT_FOR_TRAINING = {"--seed": "seed", "--resume": "resume", "--dry-run": "dry_run", "--run-name": "run_name",
                     "--register": "register", "--tag": "tag"}  # fmt: skip
_OUTPUT = "Output"
_TO_TRAIN = "these are architectures and no runs; to train and then compare them: {}"


def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Runs or folders of saved models, or one run of an earlier --models; "
            "with --models architectures, then options of tl train.",
            autocompletion=complete_contender,
        ),
    ],
    models: Annotated[bool, typer.Option("--models", help="Train each architecture first, on the same split.")] = False,
    seeds: Annotated[int, typer.Option(help="Trainings of each, with seeds 0, 1, ...", min=1, max=100)] = 1,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            autocompletion=complete_data,
            help="Images: of the trainings, or on which runs are judged now.",
        ),
    ] = None,
    split: Annotated[
        Literal["test", "val"] | None, typer.Option(help="Which images; default is test.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Measure images/s of inference now.")] = True,
    form: Annotated[
        Literal["table", "markdown", "csv", "json"], typer.Option("--format", rich_help_panel=_OUTPUT)
    ] = "table",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write tables and pictures there too.", show_default=False, rich_help_panel=_OUTPUT
        ),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option(
            help="MLflow experiment of the trainings. Default: MLFLOW_EXPERIMENT_NAME or _ID, else tl.",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    workers: Workers = None,
    tracking_uri: TrackingUri = None,
    plain: Plain = False,
    quiet: Quiet = False,
) -> None:
    """Compare models image by image: accuracy with intervals, paired tests, overfitting, size and speed."""
    given = list(takewhile(lambda name: not name.startswith("-"), names))
    options = names[len(given) :]
    _check(given, options, models=models, seeds=seeds, experiment=experiment)
    refuse_silence(quiet and form == "table" and output is None and not models, "--output DIR")
    from tl_cli.evaluation.ranking import compare_all
    from tl_cli.tracking.destination import find_destination
    from tl_cli.tracking.store import open_store
    from tl_cli.ui.terminal.console import make_console, try_to_show
    from tl_cli.ui.terminal.progress import FileProgress

    console = make_console(quiet=quiet, plain=plain)
    aside = make_console(quiet=quiet, stderr=True, plain=plain) if form != "table" else console
    with ExitStack() as lasting:
        parent, failed = None, list[str]()
        if models:
            shared = {"--data": data, "--data-dir": data_dir, "--device": device, "--workers": workers}
            store = open_store(tracking_uri)
            place = find_destination(store, experiment)
            shared |= {"--tracking-uri": tracking_uri, "--experiment": place.experiment}
            _fetch_all(given, [*options, *_flags(shared)], tracking_uri, aside)
            parent = lasting.enter_context(_parent(store, place, given))
            groups, failed = _train_all(store, parent, _Work(given, seeds, split), [*options, *_flags(shared)], aside)
            entries = [_Entry(name, _targets(store, runs)) for name, runs in groups.items()]
        else:
            entries = _entries(given, tracking_uri)
        how = _How(None if models else data, split, data_dir, device, workers)
        with FileProgress(aside) as progress:
            contenders, judged_on = _contenders(entries, how, progress, speed=speed)
        comparison = compare_all(contenders, judged_on)
        curves = _curves(comparison, entries)
        reader_is_gone = try_to_show(lambda: _show(console, comparison, curves, form))
        written = _write(output, comparison, curves) if output is not None else []
        if parent is not None:
            _record(parent, comparison, curves)
        if reader_is_gone:
            raise reader_is_gone
        for path in written:
            aside.print(str(path), markup=False, soft_wrap=True, style="dim")
        if parent is not None:
            again = f"tl compare {parent.run_id[:8]}{uri_flag(tracking_uri)}"
            aside.print(f"\nrecorded; to see it again: {again}", style="dim", markup=False, soft_wrap=True)
    if failed:
        from tl_cli.ui.terminal.console import print_error

        print_error(f"not trained, and not in the comparison: {', '.join(failed)}")
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A model to compare: what it is called, and its trainings."""

    name: str
    targets: "list[Target]"


@dataclass(frozen=True, slots=True)
class _Work:
    """What is trained: each model with so many seeds, to be judged on a part of the data."""

    models: Sequence[str]
    seeds: int
    split: "SplitName | None"


@dataclass(frozen=True, slots=True)
class _How:
    """On which images models are judged; all None is on what they were tested on."""

    data: str | None
    split: "SplitName | None"
    data_dir: Path | None
    device: Literal["auto", "cpu", "cuda", "mps"] | None
    workers: int | None


def _fetch_all(names: Sequence[str], options: Sequence[str], tracking_uri: str | None, console: "Console") -> None:
    """Fetch the weights of each model before the first one trains.

    Raises:
        DownloadError: those of one, or the data, cannot be fetched; all that cannot be reached are named.
    """
    from tl_cli.api.warm_start import with_saved_weights
    from tl_cli.cli.settings import parse_train_options
    from tl_cli.io.download import check_reachable
    from tl_cli.models.zoo import registry
    from tl_cli.training.plan import to_fetch
    from tl_cli.ui.terminal.observer import TerminalObserver
    from tl_cli.ui.terminal.progress import FileProgress

    parsed = [parse_train_options([name, *options]).given() for name in names]
    wanted = [with_saved_weights(given, tracking_uri, TerminalObserver(console)) for given in parsed]
    absent = [to_fetch(each) for each in wanted]
    check_reachable([missing for each in absent for missing in (each.weights, each.data)])
    for each, missing in zip(wanted, absent, strict=True):
        if missing.weights is not None:
            with FileProgress(console) as progress:
                registry.find_weights(each.model, each.settings.weights, progress=progress)


def _check(names: Sequence[str], options: Sequence[str], *, models: bool, seeds: int, experiment: str | None) -> None:
    """Refuse what can be refused before anything is opened or trained."""
    from tl_cli.errors import UsageError

    if not names or (models and len(names) < 2):
        first = "; their names come first, then the options" if options else ""
        raise UsageError(f"give two or more to compare{first}")
    if len(set(names)) < len(names):
        raise UsageError("one of them is given twice")
    if not models:
        if options and all(map(is_architecture, names)):
            raise UsageError(_TO_TRAIN.format(command_line().replace(" compare", " compare --models", 1)))
        if options:
            raise UsageError(f"no such option: {options[0]}; those of tl train go with --models")
        for flag, is_given in (("--seeds", seeds > 1), ("--experiment", experiment is not None)):
            if is_given:
                raise UsageError(f"{flag} goes with --models: these were trained already")
        return
    from tl_cli.cli.settings import parse_train_options
    from tl_cli.models.zoo import registry

    for name in names:
        # What tl train refuses is refused now, and not after the first of them has trained.
        parsed = parse_train_options([name, *options])
        for flag, key in _NOT_FOR_TRAINING.items():
            if parsed.others.get(key) or parsed.flags.get(key):
                raise UsageError(f"tl compare sets {flag} itself" + ("; give --seeds" if flag == "--seed" else ""))
        registry.size_limits(parsed.given().model)


def _flags(values: Mapping[str, object]) -> list[str]:
    return [part for flag, value in values.items() if value is not None for part in (flag, str(value))]


def _parent(store: "Store", place: "Destination", names: Sequence[str]) -> "Parent":
    from tl_cli.tracking.comparisons import Parent

    title = " against ".join(names) if len(names) < 4 else f"{len(names)} models"
    return Parent(store, place.experiment_id, title, command_line(), place.run)


def _train_all(
    store: "Store", parent: "Parent", wanted: _Work, options: Sequence[str], console: "Console"
) -> "tuple[dict[str, list[Run]], list[str]]":
    """Train each model with each seed, one process after another; return the complete ones, and what failed.

    Raises:
        UsageError: fewer than two models came through, or the data have no images to judge them on.
    """
    from tl_cli.errors import Interrupted, TrackingError, UsageError
    from tl_cli.tracking.comparisons import CONTENDER_TAG, tested_on, trainings_of
    from tl_cli.tracking.store import CHILD_TAG
    from tl_cli.ui.terminal.console import plain

    failed = []
    # Seed by seed, so that what else the machine does hits all models alike.
    work = [(model, seed) for seed in range(wanted.seeds) for model in wanted.models]
    for number, (model, seed) in enumerate(work, 1):
        title = f"{model}, seed {seed}" if wanted.seeds > 1 else model
        console.print(plain(f"training {number} of {len(work)}: {title}", "bold mark"))
        command = [sys.executable, "-m", "tl_cli", "train", model, *options, "--seed", str(seed), "--run-name", title]
        command += ["--tag", f"{CHILD_TAG}={parent.run_id}", "--tag", f"{CONTENDER_TAG}={model}"]
        command += ["--quiet"] * console.quiet + ["--plain"] * (not console.is_interactive)
        code = _run(command, aside=console.stderr)
        if code - 128 in interrupts.known():
            raise Interrupted(code - 128)
        if code != 0:
            failed.append(title)
        elif number == 1 + len(failed) and wanted.split is None:
            known = []
            with suppress(TrackingError):  # the store may be away, and the trainings go on
                known = [run for runs in trainings_of(store, parent.run_id).values() for run in runs]
            if known and tested_on(known[0]) is None:
                raise UsageError(
                    "these data have no test images; give --split val to compare on the validation images, which is "
                    "kinder to all: they chose the epochs"
                )
    found = trainings_of(store, parent.run_id)
    groups = {model: found[model] for model in wanted.models if model in found}
    if len(groups) < 2:
        raise UsageError(f"too few trainings came through to compare: {', '.join(failed)} failed")
    return groups, failed


def _run(command: list[str], *, aside: bool) -> int:
    """Run a training to its end, or until this process is stopped, and the training with it."""
    process = subprocess.Popen(command, stdout=sys.stderr if aside else None)  # noqa: S603 (this program itself)
    try:
        return process.wait()
    except BaseException:
        # In a terminal it has had the signal as well, and does not mind a second one so soon.
        process.terminate()
        process.wait()
        raise


def _targets(store: "Store", runs: "Sequence[Run]") -> "list[Target]":
    from tl_cli.api.model_lookup import target_of
    from tl_cli.ui.terminal.console import print_warning

    return [target_of(store, run, print_warning) for run in runs]


def _entries(names: Sequence[str], tracking_uri: str | None) -> "list[_Entry]":
    """Return the runs and folders that are meant, each with a name of its own.

    Raises:
        UsageError: two names mean the same model.
    """
    from tl_cli.api.model_lookup import find_model
    from tl_cli.errors import RunNotFoundError, UsageError
    from tl_cli.ui.terminal.console import print_warning

    if len(names) == 1:
        return _again(names[0], tracking_uri)
    try:
        targets = [find_model(name, tracking_uri, print_warning) for name in names]
    except RunNotFoundError as error:
        if not all(map(is_architecture, names)):
            raise
        meant = command_line().replace(" compare", " compare --models", 1)
        raise UsageError(_TO_TRAIN.format(meant)) from error
    folders = [target.folder.resolve() for target in targets]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise UsageError(f"{names[folders.index(folder)]} and {names[place]} are the same model")
    short = [str(target.run.info.run_name) if target.run else target.folder.resolve().name for target in targets]
    return [
        _Entry(target.name if short.count(name) > 1 else name, [target])
        for name, target in zip(short, targets, strict=True)
    ]


def _again(name: str, tracking_uri: str | None) -> "list[_Entry]":
    """Return what an earlier comparison has trained.

    Raises:
        UsageError: the run is none.
    """
    from tl_cli.errors import UsageError
    from tl_cli.tracking.comparisons import trainings_of
    from tl_cli.tracking.store import is_parent, open_store

    store = open_store(tracking_uri)
    run = store.find(name)
    groups = trainings_of(store, run.info.run_id)
    if not is_parent(run) or len(groups) < 2:
        raise UsageError(f"{name} is one run; give two or more to compare, or a run of tl compare --models")
    return [_Entry(model, _targets(store, runs)) for model, runs in groups.items()]


def _contenders(
    entries: Sequence[_Entry], how: _How, progress: "Progress", *, speed: bool
) -> "tuple[list[Contender], str]":
    """Return the models with what they answered and cost, and which images these are answers to."""
    from tl_cli.evaluation.ranking import Contender
    from tl_cli.evaluation.speed import inference_speeds
    from tl_cli.models import bundle
    from tl_cli.models.zoo import registry
    from tl_cli.training.conditions import are_digests_comparable
    from tl_cli.ui.terminal.console import print_warning

    kept = _kept_answers(entries, how)
    cards = [bundle.read_card(target.folder) for entry in entries for target in entry.targets]
    with_digests = are_digests_comparable(cards)
    if not with_digests:
        print_warning(
            "some of these models are of an earlier version, which recorded other digests of image files: their "
            "training and validation images are compared by number only, not by contents"
        )
    groups = [
        tuple(_training(target, kept, how, progress, with_digests=with_digests) for target in entry.targets)
        for entry in entries
    ]
    first = [entry.targets[0] for entry in entries]
    speeds: list[float | None] = [None] * len(first)
    if speed:
        classifiers = [registry.restore(target.folder)[0] for target in first]
        speeds = list(inference_speeds(classifiers, how.device or "auto", progress))
    contenders = [
        Contender(entry.name, trainings, _cost(target, images_per_second))
        for entry, trainings, target, images_per_second in zip(entries, groups, first, speeds, strict=True)
    ]
    source = how.data or bundle.read_card(first[0].folder).data.source
    return contenders, f"{source}, {how.split or 'test'}"


def _training(
    target: "Target", kept: "dict[str, KeptAnswers]", how: _How, progress: "Progress", *, with_digests: bool
) -> "Training":
    from tl_cli.evaluation.ranking import Training
    from tl_cli.models import bundle
    from tl_cli.tracking.comparisons import training_of
    from tl_cli.tracking.reader import read_history
    from tl_cli.training.conditions import conditions

    answers = kept.get(target.name) or _answers(target, how, progress)
    trained = conditions(bundle.read_card(target.folder), with_digests=with_digests)
    if target.store is None or target.run is None:
        return Training(target.name, answers, conditions=trained)
    training = replace(training_of(target.run, read_history(target.store, target.run), answers), conditions=trained)
    # Training images less others than the test images would be another gap.
    return training if how.data is None and how.split != "val" else replace(training, clean_train=None)


def _kept_answers(entries: Sequence[_Entry], how: _How) -> "dict[str, KeptAnswers]":
    """Return the answers to the test images by target, as they were recorded, if all are and to the same images.

    Digests of an earlier version are never those of today: its models are evaluated again beside newer ones.
    """
    from tl_cli.tracking.comparisons import kept_answers, tested_on

    targets = [target for entry in entries for target in entry.targets]
    if how.data is not None or how.split == "val":
        return {}
    if len({tested_on(target.run) if target.run else None for target in targets}) > 1:
        return {}
    found = {}
    for target in targets:
        answers = kept_answers(target.store, target.run) if target.store and target.run else None
        if answers is None:
            return {}
        found[target.name] = answers
    return found


def _answers(target: "Target", how: _How, progress: "Progress") -> "KeptAnswers":
    """Return what a model answers now."""
    from tl_cli.errors import UsageError
    from tl_cli.evaluation.logits import KeptAnswers
    from tl_cli.evaluation.measure import Judge
    from tl_cli.models.zoo import registry
    from tl_cli.ui.terminal.console import print_warning

    classifier, card = registry.restore(target.folder)
    if how.data is None and how.split is None and "test" not in card.data.splits:
        raise UsageError(
            f"{target.name} was trained on data without test images; give other images with --data, or --split val, "
            "which is kinder to both: validation chose their epochs"
        )
    examiner = Judge(
        classifier,
        card,
        source=how.data,
        data_dir=str(how.data_dir) if how.data_dir else None,
        device=how.device or "auto",
        workers=how.workers,
        progress=progress,
    )
    measured = examiner.measure(how.split)
    if measured.is_changed:
        print_warning(f"the {measured.part} images are not those that {target.name} was trained with")
    if measured.trained_on:
        print_warning(f"{target.name} was trained on {measured.trained_on:,} of these {measured.split.count:,} images")
    return KeptAnswers(measured.answers, tuple(measured.images.ids), card.classes)


def _cost(target: "Target", images_per_second: float | None) -> "Cost":
    from tl_cli.evaluation.ranking import Cost
    from tl_cli.models.bundle import WEIGHTS_FILE, read_card
    from tl_cli.models.list import counting

    card = read_card(target.folder)
    side = card.preprocessing.crop
    counts = counting.count(card.architecture, side, len(card.classes))
    size = (target.folder / WEIGHTS_FILE).stat().st_size
    # Where the architecture cannot be counted: four bytes a number.
    parameters = counts.parameters if counts else size // 4
    return Cost(parameters, counts.multiply_adds if counts else None, side, size, images_per_second)


def _curves(comparison: "Comparison", entries: Sequence[_Entry]) -> "list[list[History]]":
    """Return the curves of each contender's trainings, in the order of the comparison."""
    from tl_cli.tracking.reader import read_history

    by_name = {entry.name: entry.targets for entry in entries}
    return [
        [
            read_history(target.store, target.run)
            for target in by_name[model.name]
            if target.store is not None and target.run is not None
        ]
        for model in comparison.contenders
    ]


def _show(console: "Console", comparison: "Comparison", curves: "list[list[History]]", form: str) -> None:
    from tl_cli.ui.terminal import comparison_tables as shown

    if form == "table":
        shown.print_comparison(console, comparison, curves)
    elif form == "markdown":
        typer.echo(shown.markdown(comparison), nl=False)
    elif form == "csv":
        typer.echo(shown.as_csv(comparison), nl=False)
    else:
        typer.echo(_json(comparison))


def _json(comparison: "Comparison") -> str:
    from tl_cli.evaluation.ranking import as_data
    from tl_cli.ui.terminal.console import json_text

    return json_text(as_data(comparison))


def _write(folder: Path, comparison: "Comparison", curves: "list[list[History]]") -> list[Path]:
    from tl_cli.io.download import write_text
    from tl_cli.ui.figures.curve_figures import drawn
    from tl_cli.ui.terminal import comparison_tables as shown

    texts = {"md": shown.markdown(comparison), "csv": shown.as_csv(comparison), "json": _json(comparison) + "\n"}
    paths = [folder / f"comparison.{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths + drawn(lambda: shown.save_pictures(comparison, curves, folder))


def _record(parent: "Parent", comparison: "Comparison", curves: "list[list[History]]") -> None:
    import tempfile

    from tl_cli.tracking.evaluations import in_letters
    from tl_cli.ui.terminal.comparison_tables import markdown

    numbers = {
        f"accuracy/{in_letters(model.name)}": accuracy.value
        for model, accuracy in zip(comparison.contenders, comparison.accuracies, strict=True)
    }
    with tempfile.TemporaryDirectory() as folder:
        parent.log(markdown(comparison), numbers, _write(Path(folder), comparison, curves))
