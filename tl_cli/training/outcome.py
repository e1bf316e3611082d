"""The end of a run: the best model is judged once, on the test images and on clean training images."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import nn

from tl_cli.compute.device import Autocasting
from tl_cli.contract import SplitName
from tl_cli.data import checks, splits
from tl_cli.data.batches import Loader
from tl_cli.data.images import FileImages
from tl_cli.data.packed_names import Names
from tl_cli.errors import DataError, WeightsError, first_line, some
from tl_cli.evaluation.classification import Report, report
from tl_cli.evaluation.logits import Answers, answer
from tl_cli.models import bundle, freezing
from tl_cli.training.events import Activity, Observer, Worked
from tl_cli.training.plan import Plan
from tl_cli.training.state import Counters

# The gap needs no more precision than the test figure has.
CLEAN_TRAIN_IMAGES = 5000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. The losses are of the probabilities that the saved model gives, with its temperature.

    Attributes:
        counters: epochs, steps, the best epoch.
        test: of the best model; None where the data bring no test images, or they could not be evaluated.
        test_answers: its logits as the network gives them, to compare two runs image by image.
        test_ids: the images' ids, in the same order.
        clean_train: of the best model on training images without augmentation, in eval mode; None where they could
            not be evaluated.
        changed: by part the files that were replaced or changed while the training went on.
        failed: by part why it could not be evaluated. The training is complete all the same.
    """

    counters: Counters
    test: Report | None
    test_answers: Answers | None
    test_ids: Names | None
    clean_train: Report | None
    changed: Mapping[SplitName, list[str]] = field(default_factory=dict)
    failed: Mapping[SplitName, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What is to be said of figures that are missing or not of the images that the record names."""
        return self.changes + [
            f"the training is complete, but its model could not be evaluated on the {_CALLED[part]} images: {reason}"
            for part, reason in self.failed.items()
        ]

    @property
    def changes(self) -> list[str]:
        """What is to be said of figures that are not of the images that the record names."""
        return [
            f"{len(names):,} {part} image{'s' * (len(names) != 1)} changed during the training, so its figures are not "
            f"all of the images that the run began with: {some(names)}"
            for part, names in self.changed.items()
        ]

    @property
    def gap(self) -> float | None:
        """Clean training accuracy less test accuracy, a fraction: how much was learned by heart."""
        if self.test is None or self.clean_train is None:
            return None
        return self.clean_train.accuracy.value - self.test.accuracy.value


def conclude(plan: Plan, counters: Counters, best: Path, notify: Observer) -> Outcome:
    """Load the best model and judge it; the test images are looked at here and nowhere before.

    Images that cannot be evaluated, for whatever reason, do not undo a training that is complete.

    Raises:
        WeightsError: it is lost, damaged, or of another epoch than the best one.
    """
    card = bundle.verified_card(best)
    if card.epoch != counters.best_epoch:
        raise WeightsError(f"{best} is the model of epoch {card.epoch}, and the best one was {counters.best_epoch}")
    bundle.load_weights(best, plan.classifier.model)
    # LeViT keeps what it computed from its weights in eval mode until it trains again.
    freezing.thaw(plan.classifier.model)
    plan.classifier.model.train()
    # In fp32, as the saved model will be used; what training computed in is over.
    network = Autocasting(plan.classifier.model, replace(plan.machine, precision="fp32"))
    train = plan.data.parts["train"]
    count = min(CLEAN_TRAIN_IMAGES, len(train))
    chosen = splits.stratified_order(train.labels, plan.config.split_seed)[:count]
    parts: dict[SplitName, tuple[Loader, Activity]] = {
        "train": (plan.loader(train.subset(np.sort(chosen))), "measuring the training images")
    }
    if "test" in plan.data.parts:
        parts["test"] = (plan.loader(plan.data.parts["test"]), "testing")
    answers: dict[SplitName, Answers] = {}
    reports: dict[SplitName, Report] = {}
    failed: dict[SplitName, str] = {}
    for part, (loader, activity) in parts.items():
        try:
            answers[part] = _judge(plan, network, loader, activity, notify)
            reports[part] = report(answers[part].scaled(card.calibration.temperature))
        except Exception as error:  # files, memory, a device: the model is trained, and tl eval can try again
            failed[part] = _reason(plan, loader, error)
    # After the last of them was decoded.
    changed = {part: names for part, names in plan.data.changed_files().items() if part not in failed}
    tested = "test" in reports
    return Outcome(
        counters=counters,
        test=reports.get("test"),
        test_answers=answers["test"] if tested else None,
        test_ids=parts["test"][0].images.ids if tested else None,
        clean_train=reports.get("train"),
        changed=changed,
        failed=failed,
    )


_CALLED: Mapping[SplitName, str] = {"train": "training", "val": "validation", "test": "test"}


def _reason(plan: Plan, loader: Loader, error: Exception) -> str:
    """Return why images could not be evaluated: all of those that cannot be decoded, by name."""
    if isinstance(error, DataError) and isinstance(loader.images, FileImages):
        try:
            checks.check_all({"test": loader.images}, workers=plan.config.workers, may_skip=False)
        except DataError as several:
            return str(several)
    return first_line(error)


def _judge(plan: Plan, network: nn.Module, loader: Loader, activity: Activity, notify: Observer) -> Answers:
    total = len(loader.images)
    return answer(
        network,
        loader.clean(),
        lambda done: notify(Worked(activity, done, total)),
        at_once=plan.machine.at_once,
    )
