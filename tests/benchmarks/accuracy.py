"""Time to an accuracy on real images with real weights: the blog's recipe in its own loop, and a recipe of ``tl``.

It takes hours on a CPU, so progress is saved in a folder: a second call resumes after the last complete epoch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.benchmarks import blog
from tests.benchmarks.engine import cache_in
from tests.benchmarks.material import NATIVE, Pictures, PicturesError
from tests.benchmarks.rows import Comparison, Goal
from tests.benchmarks.timing import Bench, now, print_progress
from tl_cli.compute.device import Autocasting
from tl_cli.evaluation.logits import compute_logits
from tl_cli.io.atomic import replacing
from tl_cli.models.zoo import registry
from tl_cli.training import plan as setup
from tl_cli.training.config import Given
from tl_cli.training.events import EpochEnded, Event, notify_all
from tl_cli.training.fit import fit
from tl_cli.training.plan import Plan, new_state
from tl_cli.training.state import Saver

MODEL = "efficientnet_lite0"
# The accuracy that the blog's author reports for EfficientNet-B0, and the number of epochs.
TARGET = 0.8553
_FROZEN_EPOCHS = 5
_BLOG_EPOCHS = 40
_GOAL = Goal(5, 20)
_KEPT = ("model", "optimizer", "plateau")

_CHECKPOINT = "last.pt"


@dataclass(frozen=True, slots=True)
class Epoch:
    """A finished epoch.

    Attributes:
        seconds: since the side began, including setup, without saving and testing ``tl``'s models.
        accuracy: on the test images, a fraction.
    """

    epoch: int
    seconds: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each side trains in this call.

    Attributes:
        state: folder of the finished epochs.
        blog_epochs: epochs to run of the blog's 40; the seconds of the others are extrapolated.
        tl_recipe: recipe of ``tl``.
        tl_epochs: total epochs; None: as in the recipe.
        target: the accuracy, a fraction.
    """

    state: Path
    blog_epochs: int = 1
    tl_recipe: str = "default"
    tl_epochs: int | None = None
    target: float = TARGET


def measure(bench: Bench, images: Path, limits: Limits) -> list[Comparison]:
    """Return the seconds of both sides to the accuracy.

    Args:
        images: holds train/CLASS/ and test/CLASS/ of 32 x 32 images.

    Raises:
        PicturesError: it does not.
    """
    missing = [name for name in ("train", "test") if not (images / name).is_dir()]
    if missing:
        raise PicturesError(f"{images} has no {missing[0]}/; time to an accuracy needs train/CLASS/ and test/CLASS/")
    limits.state.mkdir(parents=True, exist_ok=True)
    print_progress(f"  blog, {limits.blog_epochs} of {_BLOG_EPOCHS} epochs")
    blog_seconds, blog_note = _blog_side(bench, images, limits)
    print_progress("  tl")
    with cache_in(limits.state / "cache"):
        tl_seconds, tl_note = _tl_side(bench, images, limits)
    return [
        Comparison(
            work=f"time to {100 * limits.target:.2f}% on {images.name}, {MODEL}",
            baseline="blog",
            kind="speed-up",
            theirs=(blog_seconds,),
            ours=(tl_seconds,),
            goal=_GOAL if bench.has_goals and limits.target == TARGET else None,
            notes=(blog_note, tl_note),
        )
    ]


def _blog_side(bench: Bench, images: Path, limits: Limits) -> tuple[float, str]:
    """Return the seconds to the accuracy, or of all of the blog's epochs if it is not reached, and a word for which."""
    folder = limits.state / "blog"
    folder.mkdir(exist_ok=True)
    started = now(bench.device)
    loop = _open_blog_loop(bench, images)
    elapsed = now(bench.device) - started
    done = _restore(loop, folder / _CHECKPOINT) if (folder / _CHECKPOINT).exists() else []
    elapsed = done[-1].seconds if done else elapsed
    for epoch in range(len(done) + 1, limits.blog_epochs + 1):
        started = now(bench.device)
        _freeze_for(loop, epoch)
        blog.train_epoch(loop)
        # The blog validates on the test images, so they are tested already.
        validated = blog.validate(loop)
        loop.plateau.step(validated.loss)
        elapsed += now(bench.device) - started
        done.append(Epoch(epoch, elapsed, validated.accuracy))
        _save(loop, done, folder / _CHECKPOINT)
        print_progress(f"    epoch {epoch}: {100 * validated.accuracy:.2f}% after {elapsed:.0f} s")
    _write(folder, done)
    reached = _reached(done, limits.target)
    if reached is not None:
        return reached.seconds, f"blog: reached in epoch {reached.epoch}"
    best = max((epoch.accuracy for epoch in done), default=0.0)
    left = _BLOG_EPOCHS - len(done)
    seconds = elapsed + _forecast(bench, images, done)
    return seconds, (
        f"blog: {100 * best:.2f}% after {len(done)} epochs; the other {left} are extrapolated, after which its author "
        f"reports the accuracy"
    )


def _forecast(bench: Bench, images: Path, done: list[Epoch]) -> float:
    """Return the estimated seconds of the blog's epochs that were not run, from a few frozen and unfrozen steps."""
    loop = _open_blog_loop(bench, images)
    seconds = 0.0
    for first, last in ((1, _FROZEN_EPOCHS), (_FROZEN_EPOCHS + 1, _BLOG_EPOCHS)):
        left = last - max(first - 1, min(last, len(done)))
        if not left:
            continue
        _freeze_for(loop, first)
        blog.train_epoch(loop, 2)
        started = now(bench.device)
        trained = blog.train_epoch(loop, bench.steps)
        half = now(bench.device)
        validated = blog.validate(loop, bench.steps)
        ended = now(bench.device)
        in_train, in_val = len(loop.train_batches.dataset), len(loop.val_batches.dataset)  # type: ignore[arg-type]
        seconds += left * ((half - started) * in_train / trained.images + (ended - half) * in_val / validated.images)
    return seconds


def _open_blog_loop(bench: Bench, images: Path) -> blog.Loop:
    classes = sum(path.is_dir() for path in (images / "train").iterdir())
    model = registry.create(MODEL, classes).model
    model.classifier = nn.Linear(model.get_submodule("classifier").in_features, classes)  # type: ignore[arg-type]
    pictures = Pictures(images, classes, 0, 0)
    loaders = blog.batches(pictures, NATIVE, bench, val="test")
    return blog.open_loop(model, model.classifier, loaders, bench.device)


def _freeze_for(loop: blog.Loop, epoch: int) -> None:
    if epoch <= _FROZEN_EPOCHS:
        # This network has no layer called fc, so the blog's rule by name would freeze everything.
        blog.freeze_by_name(loop.model, "classifier")
    elif epoch == _FROZEN_EPOCHS + 1:
        blog.unfreeze(loop)


def _save(loop: blog.Loop, done: list[Epoch], path: Path) -> None:
    saved: dict[str, Any] = {name: getattr(loop, name).state_dict() for name in _KEPT}
    with replacing(path) as file:
        torch.save({**saved, "epochs": [asdict(epoch) for epoch in done]}, file)


def _restore(loop: blog.Loop, path: Path) -> list[Epoch]:
    """Restore the saved loop and return its epochs; the next epoch determines what is frozen."""
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    for name in _KEPT:
        getattr(loop, name).load_state_dict(saved[name])
    return [Epoch(**epoch) for epoch in saved["epochs"]]


def _tl_side(bench: Bench, images: Path, limits: Limits) -> tuple[float, str]:
    """Return the seconds to the accuracy (infinite where it is not reached), and what was reached."""
    folder = limits.state / "tl"
    folder.mkdir(exist_ok=True)
    started = now(bench.device)
    plan = setup.prepare(Given.of(_flags(bench, images, limits)))
    state = new_state(plan)
    setup_seconds = now(bench.device) - started
    state.restore(folder)

    def keep(event: Event) -> None:
        if isinstance(event, EpochEnded):
            # Tested after the clock has stopped.
            torch.save(
                {"seconds": setup_seconds + state.counters.seconds, "model": state.model.state_dict()},
                folder / f"epoch-{event.epoch:02d}.pt",
            )
            print_progress(f"    epoch {event.epoch}: {100 * event.val_accuracy:.2f}% validated")

    fit(plan, state, notify_all(Saver(folder, state, plan.card()), keep))
    done = [_tested(plan, folder, epoch) for epoch in range(1, plan.config.epochs + 1)]
    _write(folder, done)
    reached = _reached(done, limits.target)
    best = max(done, key=lambda epoch: epoch.accuracy)
    note = f"tl: best {100 * best.accuracy:.2f}% after epoch {best.epoch} of {len(done)}, {best.seconds:.0f} s"
    if reached is None:
        return float("inf"), f"{note}; not reached"
    return reached.seconds, f"{note}; reached in epoch {reached.epoch} with {100 * reached.accuracy:.2f}%"


def _flags(bench: Bench, images: Path, limits: Limits) -> dict[str, object]:
    given: Mapping[str, object] = {
        "model": MODEL,
        "data": str(images),
        "recipe": limits.tl_recipe,
        "device": bench.device,
        "batch_size": bench.batch_size,
        "epochs": limits.tl_epochs,
        "threads": bench.threads,
    }
    return {name: value for name, value in given.items() if value is not None}


def _tested(plan: Plan, folder: Path, epoch: int) -> Epoch:
    saved: dict[str, Any] = torch.load(folder / f"epoch-{epoch:02d}.pt", weights_only=True)
    plan.classifier.model.load_state_dict(saved["model"])
    network = Autocasting(plan.classifier.model, plan.machine)
    labelled = compute_logits(network, plan.loader(plan.data.parts["test"]).clean())
    accuracy = (labelled.logits.argmax(1) == labelled.labels).double().mean()
    return Epoch(epoch, saved["seconds"], float(accuracy))


def _reached(done: list[Epoch], target: float) -> Epoch | None:
    return next((epoch for epoch in done if epoch.accuracy >= target), None)


def _write(folder: Path, done: list[Epoch]) -> None:
    (folder / "epochs.json").write_text(json.dumps([asdict(epoch) for epoch in done], indent=2) + "\n")
