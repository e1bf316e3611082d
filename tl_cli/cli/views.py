"""What ``tl inspect`` can show of a model: each view as data, as it looks in a terminal, and as pictures in files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from tl_cli.api.model_lookup import Target
from tl_cli.io.download import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console  # noqa: TID251 (a type)
    from torch import Tensor

    from tl_cli.contract import ModelCard
    from tl_cli.data.preprocess import Picture
    from tl_cli.evaluation.measure import Part
    from tl_cli.inspection.dissection import Anatomy
    from tl_cli.inspection.residuals import Residual
    from tl_cli.inspection.subject import Shown, Subject
    from tl_cli.inspection.summary import Node
    from tl_cli.models.zoo.registry import Classifier

_SCALES = (0.0, 0.5)
# Images of a run that are looked at, where nobody says how many.
_LOOKED_AT, _KNOWN, _ASKED, _ON_MAP = 256, 5000, 2000, 1000
# On a CPU fewer where it would take longer than a minute or two of two cores: they do some 2e10 multiply-adds a second.
_WORK, _FEWEST = 2e12, 32
_CKA_BATCH = 32
_ALL = 1 << 40


def _nothing(folder: Path) -> list[Path]:
    return []


@dataclass(frozen=True, slots=True)
class View:
    """What was seen.

    Attributes:
        name: of the files it is written to.
        data: plain, for JSON.
        show: prints it.
        save: writes its pictures into a folder and returns their paths.
    """

    name: str
    data: Mapping[str, object]
    show: "Callable[[Console], None]"
    save: Callable[[Path], list[Path]] = _nothing


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which model is looked at, and with which images.

    Attributes:
        model: name of an architecture, or a saved model.
        images: at most so many; None chooses.
        input_size: side of an architecture's input in pixels; None is its weights' own.
    """

    model: str | Target
    weights: str | None = None
    data: str | None = None
    split: "Part | None" = None
    data_dir: str | None = None
    images: int | None = None
    input_size: int | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: int | None = None
    tracking_uri: str | None = None
    progress: Progress = field(default=silent)

    @property
    def target(self) -> Target | None:
        """The saved model, where it is one."""
        return self.model if isinstance(self.model, Target) else None

    def card(self) -> "ModelCard | None":
        """Return what a saved model says of itself."""
        from tl_cli.models import bundle

        return bundle.read_card(self.model.folder) if isinstance(self.model, Target) else None

    def subject(self) -> "Subject":
        """Return the model on its device with its images.

        Raises:
            UsageError: the images, or for an architecture the weights, cannot be used.
        """
        from tl_cli.errors import UsageError
        from tl_cli.inspection import subject

        if isinstance(self.model, Target):
            for flag, value in (("--weights", self.weights), ("--input-size", self.input_size)):
                if value is not None:
                    raise UsageError(f"{flag} is for an architecture; {self.model.name} has its own")
            return subject.subject_of_model(
                self.model.folder,
                source=self.data,
                part=self.split,
                data_dir=self.data_dir,
                device=self.device,
                workers=self.workers,
                progress=self.progress,
            )
        return subject.subject_of_architecture(
            self.model,
            weights=self.weights or "default",
            source=self.data,
            part=self.split,
            data_dir=self.data_dir,
            input_size=self.input_size,
            device=self.device,
            workers=self.workers,
            progress=self.progress,
        )

    def title(self, classifier: "Classifier") -> str:
        """Return what is looked at, for people."""
        size = classifier.preprocessing.crop
        if isinstance(self.model, Target):
            return f"{classifier.name}, {self.model.name}, {size} px"
        weights = f"weights {classifier.weights.name}" if classifier.weights.name != "none" else "random weights"
        return f"{classifier.name}, {weights}, {size} px"


def tree(wanted: Wanted, num_classes: int | None, depth: int) -> View:
    """Return the modules of a model, with what each makes and costs."""
    from tl_cli.inspection.summary import head_reason, summarize
    from tl_cli.models.zoo import registry
    from tl_cli.ui.terminal.anatomy import describe_preprocessing, print_tree

    card = wanted.card()
    lines: list[str] = []
    if card is None:
        assert isinstance(wanted.model, str)
        name, classes, options = wanted.model, num_classes or 10, {}
        preprocessing = registry.default_preprocessing(name, wanted.weights or "default")
    else:
        name, classes, options = card.architecture, num_classes or len(card.classes), dict(card.build_options)
        preprocessing = card.preprocessing
        shown = card.classes[:10]
        lines = [
            f"classes {', '.join(shown)}{', ...' if len(card.classes) > len(shown) else ''}",
            f"weights {card.weights.name}, recipe {card.recipe}, epoch {card.epoch}",
        ]
        if card.val_accuracy is not None:
            lines.append(f"validation accuracy {card.val_accuracy:.2%}")
    size = wanted.input_size or preprocessing.crop
    root = summarize(name, classes, size, options | registry.options_for(name, size))
    title = f"{name}, {classes} classes, input {size} x {size}"
    how = preprocessing if size == preprocessing.crop else preprocessing.at(size, whole=False)
    data = {
        "model": name,
        "classes": classes,
        "input_size": size,
        "head": list(registry.find_head(name)),
        "why_head": head_reason(root),
        "preprocessing": {**how.model_dump(), "in_words": describe_preprocessing(how)},
        "tree": _node(root),
    }
    return View("tree", data, lambda console: print_tree(console, title, lines, root, depth, how))


def _node(node: "Node") -> dict[str, object]:
    plain = {name: getattr(node, name) for name in node.__slots__ if name != "children"}
    return {**plain, "children": [_node(child) for child in node.children]}


def freeze_plan(wanted: Wanted, options: Sequence[str], num_classes: int | None) -> View:
    """Return what would train in which phase, at which rates, and what freezing by name would have done.

    Args:
        options: of ``tl train``, as they were given.
    """
    from tl_cli.cli.settings import parse_train_options
    from tl_cli.inspection.freeze_plan import freeze_by_name
    from tl_cli.inspection.freeze_plan import freeze_plan as parts_of
    from tl_cli.training.plan import foresee
    from tl_cli.training.stage import describe_groups
    from tl_cli.ui.terminal.anatomy import print_freeze_plan

    card = wanted.card()
    own = _settings_of(card) if card is not None else {}
    model = str(own.get("model", card.architecture)) if card is not None else str(wanted.model)
    shared = {"--data": wanted.data, "--data-dir": wanted.data_dir, "--weights": wanted.weights,
              "--input-size": wanted.input_size, "--workers": wanted.workers}  # fmt: skip
    flags = [part for flag, value in shared.items() if value is not None for part in (flag, str(value))]
    if wanted.device != "auto":
        flags += ["--device", wanted.device]
    arguments = [*(() if card is not None else (model,)), *options, *flags]
    parsed = parse_train_options(arguments)
    found = foresee(
        parsed.given(own),
        num_classes=num_classes or (len(card.classes) if card is not None else None),
        build_options=card.build_options if card is not None else None,
        progress=wanted.progress,
    )
    strategy = found.strategy
    parts = parts_of(strategy.classifier, [partial(strategy.freeze_for, phase) for phase in strategy.phases])
    groups = describe_groups(strategy, found.resolved.config)
    by_name = freeze_by_name(strategy.classifier)
    data = {
        "model": model,
        "head": list(strategy.classifier.head),
        "phases": [asdict(phase) for phase in strategy.phases],
        "parts": [asdict(part) for part in parts],
        "parameter_groups": [asdict(group) for group in groups],
        "frozen_layers": strategy.frozen_layers,
        "freezing_by_name": asdict(by_name),
    }
    title = f"{model}: what would train when"
    show = partial(
        print_freeze_plan,
        title=title,
        config=found.resolved.config,
        strategy=strategy,
        parts=parts,
        groups=groups,
        by_name=by_name,
    )
    return View("freeze_plan", data, show)


def _settings_of(card: "ModelCard") -> dict[str, object]:
    """Return the settings with which a model was trained, as a config file would hold them."""
    from tl_cli.training.config import FIELDS

    values = {name: value for name, value in card.config.items() if name in FIELDS and value is not None}
    if "steps" in values:
        del values["epochs"]  # they follow
    return values


def residuals(wanted: Wanted, *, ablate: bool, against: str | None, image: str | None, block: str | None) -> View:
    """Return the residual blocks of a model, measured on real images.

    Args:
        ablate: also leave out each branch, and halve it.
        against: another state of the model, to be put beside it.
        image: a picture file or the number of an image, of which one block's parts are shown.
        block: which block; None is the first.
    """
    from tl_cli.inspection.dissection import dissect, explain
    from tl_cli.inspection.residuals import find_residuals
    from tl_cli.ui.terminal import anatomy as shown

    subject = wanted.subject()
    classifier = subject.classifier
    title = wanted.title(classifier)
    other = _other(wanted, subject, against) if against is not None else None
    images = subject.show()
    example = next(iter(images.batches(2).clean())).inputs
    found = find_residuals(classifier.model, example, classifier.head)
    if not found:
        data: dict[str, object] = {"model": classifier.name, "residuals": []}
        return View("residuals", data, lambda console: shown.print_found(console, title, found))
    notes = []
    if ablate and classifier.head_is_new and not images.is_judged:
        ablate = False
        notes = ["The head is new and has learned nothing: no answers could show what is missing without a branch."]
    chosen = _block(found, block) if block is not None or image is not None else None
    passes = 1 + len(_SCALES) * len(found) * ablate
    most = wanted.images or _affordable(subject, _LOOKED_AT, least=_FEWEST, passes=passes)
    loader = images.batches(most)
    scales = _SCALES if ablate else ()
    steps = -(-len(loader.images) // loader.batch_size) * (1 + len(scales) * len(found))
    seen = dissect(
        classifier.model, found, loader.clean(), scales=scales,
        counted=lambda done: wanted.progress("looking at residuals", done, steps),
    )  # fmt: skip
    before = None
    if other is not None:
        steps = -(-len(loader.images) // loader.batch_size)
        before = dissect(
            other.model, found, loader.clean(),
            counted=lambda done: wanted.progress("looking at the state before", done, steps),
        )  # fmt: skip
    data = {
        "model": classifier.name,
        "source": images.source,
        "images": seen.images,
        "accuracy": seen.accuracy,
        "loss": seen.loss,
        "residuals": _rows(seen, before),
        "in_words": [*explain(seen), *notes],
    }
    parts = _parts(subject, images, chosen, image) if chosen is not None and image is not None else None
    name = _state_name(other, against) if other is not None else ""

    def show(console: "Console") -> None:
        shown.print_residuals(console, title, images.source, seen, before, against=name, notes=notes)
        if parts is not None:
            energies = [each.square().mean(0).sqrt() for each in parts.maps]
            shown.print_parts(console, parts.residual, parts.picture, energies)

    def save(folder: Path) -> list[Path]:
        from tl_cli.ui.figures.anatomy_figures import save_parts, save_residuals

        paths = [folder / "residuals.png"]
        save_residuals(seen, before, title, name, paths[0])
        if parts is not None:
            paths.append(folder / "residual_parts.png")
            save_parts(parts.residual, parts.picture, parts.maps, title, paths[1])
        return paths

    return View("residuals", data, show, save)


def _affordable(subject: "Subject", most: int, *, least: int, passes: int = 1) -> int:
    """Return how many images are looked at in a minute or two of a small CPU: of a large model fewer, on a GPU all.

    Args:
        passes: forward passes for each of them.
    """
    from tl_cli.models.list.counting import count

    if subject.machine.device.type != "cpu":
        return most
    counts = count(subject.classifier.name, subject.classifier.preprocessing.crop)
    each = passes * (counts.multiply_adds if counts else 10**9)
    return min(most, max(least, int(_WORK / each)))


def _block(found: "Sequence[Residual]", name: str | None) -> "Residual":
    from tl_cli.errors import UsageError, some

    if name is None:
        return found[0]
    meant = [each for each in found if name in (each.name, each.block)]
    if not meant:
        names = [each.name for each in found]
        raise UsageError(f"no residual block is called {name!r}; there are {some(names, 12)}")
    return meant[0]


def _rows(seen: "Anatomy", before: "Anatomy | None") -> list[dict[str, object]]:
    rows = []
    for place, (residual, strength) in enumerate(zip(seen.residuals, seen.strengths, strict=True)):
        row = {"name": residual.name, **asdict(residual), **asdict(strength)}
        if any(seen.effects):
            row["effects"] = [asdict(each) for each in seen.effects[place]]
        if before is not None:
            row["before"] = asdict(before.strengths[place])
        rows.append(row)
    return rows


def _state_name(other: "Classifier", against: str | None) -> str:
    """Return what the state before is called: the weights that training began with, or what was given."""
    if against not in (None, "pretrained"):
        return against
    return other.weights.name if other.weights.name != "none" else "random weights"


def _other(wanted: Wanted, subject: "Subject", against: str) -> "Classifier":
    """Return the network in another state, on the same device: as it was before training, or another saved model.

    Raises:
        UsageError: it is of another architecture.
    """
    from tl_cli.api.model_lookup import find_model
    from tl_cli.errors import UsageError
    from tl_cli.models.zoo import registry
    from tl_cli.ui.terminal.console import print_warning

    card = wanted.card()
    if against == "pretrained":
        if card is None:
            raise UsageError("--against pretrained goes with a run; an architecture is what it is")
        other = registry.starting_point(card, wanted.progress)
    else:
        other, _ = registry.restore(find_model(against, wanted.tracking_uri, print_warning).folder)
    if other.name != subject.classifier.name:
        raise UsageError(f"{against} is a {other.name}, and cannot be put beside a {subject.classifier.name}")
    subject.machine.place(other.model)
    other.model.eval()
    return other


@dataclass(frozen=True, slots=True)
class _Parts:
    """A picture as the network saw it, and x, F(x) and their sum as maps (C, h, w)."""

    residual: "Residual"
    picture: "Tensor"
    maps: "Sequence[Tensor]"


def _parts(subject: "Subject", images: "Shown", residual: "Residual", image: str) -> _Parts:
    from tl_cli.errors import UsageError
    from tl_cli.inspection.dissection import operands
    from tl_cli.inspection.maps import places_of

    seen = subject.prepared(_picture(subject, images, image))
    (found,) = operands(subject.classifier.model, [residual], subject.inputs(seen[None]))
    places = places_of(tuple(found.sum.shape), 1)
    if places is None:
        raise UsageError(f"the parts of {residual.name} do not lie on the image as maps do; choose another --block")
    return _Parts(residual, seen, [places.maps(each)[0].float().cpu() for each in (found.x, found.branch, found.sum)])


def _picture(subject: "Subject", shown: "Shown", image: str) -> "Picture":
    """Return a picture file, or an image of the data by its number."""
    from tl_cli.errors import UsageError
    from tl_cli.inspection.subject import decoded_picture

    if image.isdigit() and not Path(image).exists():
        images = shown.batches(_ALL).images
        if int(image) >= len(images):
            raise UsageError(f"--image {image}: there are {len(images):,} images, counted from 0")
        return images.open(int(image))
    how = subject.classifier.preprocessing
    return decoded_picture(Path(image).expanduser(), how, subject.max_pixels)


def drift(wanted: Wanted, *, against: str | None) -> View:
    """Return how far training has moved each layer of a model, its weights and what it makes of images."""
    from tl_cli.errors import UsageError
    from tl_cli.inspection.drift import measure_drift
    from tl_cli.ui.terminal.anatomy import print_drift

    if wanted.target is None:
        raise UsageError("--drift goes with a run: an architecture has not moved from its weights")
    subject = wanted.subject()
    other = _other(wanted, subject, against or "pretrained")
    images = subject.show()
    loader = images.batches(wanted.images or _affordable(subject, _LOOKED_AT, least=_FEWEST, passes=2), _CKA_BATCH)
    steps = -(-len(loader.images) // _CKA_BATCH)
    example = next(iter(images.batches(1).clean())).inputs
    layers = measure_drift(
        other, subject.classifier, example, loader.clean(),
        lambda done: wanted.progress("comparing layers", done, steps),
    )  # fmt: skip
    title = f"{wanted.title(subject.classifier)}, against {_state_name(other, against)}"
    about = f"outputs compared on {len(loader.images):,} images: {images.source}"

    def save(folder: Path) -> list[Path]:
        from tl_cli.ui.figures.anatomy_figures import save_drift

        path = folder / "drift.png"
        save_drift(layers, title, path)
        return [path]

    data = {
        "model": subject.classifier.name,
        "against": _state_name(other, against),
        "source": images.source,
        "images": len(loader.images),
        "layers": [asdict(layer) for layer in layers],
    }
    return View("drift", data, lambda console: print_drift(console, title, about, layers), save)


def features(wanted: Wanted) -> View:
    """Return what reaches the head of a model: nearest neighbours beside the head's answers, and a map."""
    from tl_cli.errors import UsageError
    from tl_cli.inspection.features import explore, features_of
    from tl_cli.ui.terminal.anatomy import print_neighbourhood

    subject = wanted.subject()
    images = subject.show()
    if images.open_known is None:
        raise UsageError("--features needs training images whose classes are known, beside those that are asked for: "
                         "give --data for an architecture, and no --data for a run")  # fmt: skip
    title = wanted.title(subject.classifier)
    asked_images = images.open(wanted.images or _affordable(subject, _ASKED, least=200), None)
    known_images = images.open_known(_affordable(subject, _KNOWN, least=500))
    total = len(known_images.images) + len(asked_images.images)
    known = features_of(subject.classifier, known_images.clean(), lambda done: wanted.progress("features", done, total))
    before = len(known_images.images)
    asked = features_of(
        subject.classifier, asked_images.clean(), lambda done: wanted.progress("features", before + done, total)
    )
    found = explore(known, asked, is_judged=images.is_judged, most_on_map=_ON_MAP)
    about = f"{len(found.labels):,} of {len(asked_images.images):,} images on the map: {images.source}"

    def save(folder: Path) -> list[Path]:
        from tl_cli.ui.figures.anatomy_figures import save_map

        path = folder / "features.png"
        save_map(found, images.classes, title, path)
        return [path]

    data = {
        "model": subject.classifier.name,
        "source": images.source,
        "images": len(asked_images.images),
        "accuracy": found.by_head.value if found.by_head else None,
        "knn_accuracy": found.by_neighbours.value,
        "neighbours": found.neighbours,
        "known": found.known,
        "agreement": found.agree,
        "map": [
            {"id": name, "class": images.classes[label], "x": round(x, 4), "y": round(y, 4)}
            for name, label, (x, y) in zip(
                asked_images.images.ids, found.labels.tolist(), found.places.tolist(), strict=False
            )
        ],
    }
    return View(
        "features", data, lambda console: print_neighbourhood(console, title, about, found, images.classes), save
    )


def cam(wanted: Wanted, paths: Sequence[Path]) -> View:
    """Return where a model looked in pictures, each for the class that it answers."""
    import torch

    from tl_cli.inspection.subject import decoded_picture

    subject = wanted.subject()
    how = subject.classifier.preprocessing
    pictures = [decoded_picture(path.expanduser(), how, subject.max_pixels) for path in paths]
    seen = torch.stack([subject.prepared(picture) for picture in pictures])
    probabilities = _probabilities(subject, seen)
    targets = probabilities.argmax(1).tolist()
    captions = [
        f"{path.name}\n{row[target]:.0%} {subject.name_of(target)}"
        for path, row, target in zip(paths, probabilities.tolist(), targets, strict=True)
    ]
    rows = [
        {"image": str(path), "answered": subject.name_of(target), "probability": row[target]}
        for path, row, target in zip(paths, probabilities.tolist(), targets, strict=True)
    ]
    return _heat(subject, seen, targets, captions, rows)


def worst(wanted: Wanted, count: int) -> View:
    """Return where a model looked in its worst mistakes, each for the class that it answers."""
    import torch

    from tl_cli.evaluation.logits import answer, check_finite
    from tl_cli.evaluation.scores import worst_mistakes

    if wanted.target is None:
        raise typer.BadParameter("only a run can be wrong: give one, not an architecture", param_hint="--worst")
    subject = wanted.subject()
    loader = subject.show().batches(wanted.images or _ALL)
    total = len(loader.images)
    answers = answer(
        subject.classifier.model, loader.clean(), lambda done: wanted.progress("evaluating", done, total),
        at_once=subject.machine.at_once,
    )  # fmt: skip
    check_finite(answers.logits)
    mistakes = worst_mistakes(answers.scaled(subject.classifier.temperature), count)
    if not mistakes:
        return View("cam", {"model": subject.classifier.name, "images": []}, _say_perfect(total))
    seen = torch.stack([subject.prepared(loader.images.open(each.index)) for each in mistakes])
    captions = [
        f"{each.probability:.0%} {subject.name_of(each.answered)}\nis {subject.name_of(each.true)}" for each in mistakes
    ]
    rows: list[dict[str, object]] = [
        {
            "image": loader.images.ids[each.index],
            "answered": subject.name_of(each.answered),
            "probability": each.probability,
            "true": subject.name_of(each.true),
        }
        for each in mistakes
    ]
    return _heat(subject, seen, [each.answered for each in mistakes], captions, rows)


def _say_perfect(total: int) -> "Callable[[Console], None]":
    return lambda console: console.print(f"no mistakes among {total:,} images")


def _probabilities(subject: "Subject", seen: "Tensor") -> "Tensor":
    import torch

    from tl_cli.evaluation.logits import check_finite

    with torch.inference_mode():
        logits: Tensor = subject.classifier.model(subject.inputs(seen))
    check_finite(logits)
    return subject.classifier.probabilities(logits).cpu()


def _heat(
    subject: "Subject",
    seen: "Tensor",
    targets: Sequence[int],
    captions: Sequence[str],
    rows: Sequence[dict[str, object]],
) -> View:
    from tl_cli.inspection.attribution import where_it_looked
    from tl_cli.ui.terminal.anatomy import print_heat

    looked = where_it_looked(subject.classifier, subject.inputs(seen), targets)
    pictures, heats = list(seen), list(looked.heat)
    captions = [
        caption if heat.any() else f"{caption}\nnothing spoke for it"
        for caption, heat in zip(captions, heats, strict=True)
    ]

    def save(folder: Path) -> list[Path]:
        from tl_cli.ui.figures.anatomy_figures import save_heat

        path = folder / "cam.png"
        save_heat(pictures, heats, captions, path)
        return [path]

    data = {
        "model": subject.classifier.name,
        "layer": looked.layer,
        "grid": list(looked.grid),
        "images": [{**row, "centre": _centre(heat)} for row, heat in zip(rows, heats, strict=True)],
    }
    return View("cam", data, lambda console: print_heat(console, pictures, heats, captions, looked.layer), save)


def _centre(heat: "Tensor") -> list[float] | None:
    """Return the middle of the heat, across and down, as fractions of the side; None where there is none."""
    import torch

    total = heat.sum()
    if not total:
        return None
    places = (torch.arange(len(heat)) + 0.5) / len(heat)
    return [round(((heat.sum(axis) * places).sum() / total).item(), 4) for axis in (0, 1)]
