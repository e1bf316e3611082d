"""The end of a run: the best model is evaluated once, on the test images and on clean training images."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tl_cli.compute.device import Autocasting
from tl_cli.contract import SplitName
from tl_cli.data import checks, splits
from tl_cli.data.batches import Loader
from tl_cli.data.images import FileImages
from tl_cli.data.packed_names import Names
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError, WeightsError, first_line, some
from tl_cli.evaluation.classification import Report, report
from tl_cli.evaluation.logits import LabelledLogits, with_views
from tl_cli.evaluation.paired import Paired
from tl_cli.evaluation.report import mirror_gain
from tl_cli.models import bundle, freezing
from tl_cli.training.events import Activity, Observer
from tl_cli.training.plan import Plan, observed_logits
from tl_cli.training.state import Counters

# Enough for the gap to the test accuracy, which is no more precise.
CLEAN_TRAIN_IMAGES = 5000


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run. Losses are those of the saved model's probabilities, its temperature included.

    Attributes:
        counters: epochs, steps, the best epoch.
        test: scores of the best model; None where there is no test split, or it could not be evaluated.
        test_logits: the network's logits of the test images, without temperature, to compare two runs image by image.
        test_ids: ids of the test images, in the same order.
        clean_train: scores on training images without augmentation, in eval mode; None where they could not be
            evaluated.
        tta_gain: test accuracy of the means over each image and its mirror image against that of the image alone; None
            without test-time augmentation.
        changed: by split, the files that were replaced or changed during the training.
        failed: by split, why it could not be evaluated; the training is complete nevertheless.
    """

    counters: Counters
    test: Report | None
    test_logits: LabelledLogits | None
    test_ids: Names | None
    clean_train: Report | None
    tta_gain: Paired | None = None
    changed: Mapping[SplitName, list[str]] = field(default_factory=dict)
    failed: Mapping[SplitName, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """Warnings about scores that are missing, or include images that changed during the training."""
        return self.changes + [
            f"the training is complete, but its model could not be evaluated on the {_NAMES[part]} images: {reason}"
            for part, reason in self.failed.items()
        ]

    @property
    def changes(self) -> list[str]:
        """Warnings about scores that include images that changed during the training."""
        return [
            f"{len(names):,} {part} image{'s' * (len(names) != 1)} changed during the training, so its scores are "
            f"not those of the original images: {some(names)}"
            for part, names in self.changed.items()
        ]

    @property
    def gap(self) -> float | None:
        """Generalization gap: clean training accuracy less test accuracy, a fraction."""
        if self.test is None or self.clean_train is None:
            return None
        return self.clean_train.accuracy.value - self.test.accuracy.value


def conclude(plan: Plan, counters: Counters, best: Path, notify: Observer) -> Outcome:
    """Load the best model and evaluate it; the test images are used here for the first time.

    Images that cannot be evaluated, for whatever reason, are reported and do not fail the run.

    Raises:
        WeightsError: the best model is missing, damaged, or of another epoch than the best one.
    """
    card = bundle.verified_card(best)
    if card.epoch != counters.best_epoch:
        raise WeightsError(f"{best} is the model of epoch {card.epoch}, and the best one was {counters.best_epoch}")
    bundle.load_weights(best, plan.classifier.model)
    # LeViT caches values computed from its weights in eval mode until it trains again.
    freezing.thaw(plan.classifier.model)
    plan.classifier.model.train()
    # In fp32, in which the saved model will be used.
    network = Autocasting(plan.classifier.model, replace(plan.machine, precision="fp32"))
    train = plan.data.parts["train"]
    count = min(CLEAN_TRAIN_IMAGES, len(train))
    chosen = splits.stratified_order(train.labels, plan.config.split_seed)[:count]
    parts: dict[SplitName, tuple[Loader, Activity]] = {
        "train": (plan.loader(train.subset(np.sort(chosen))), "measuring the training images")
    }
    if "test" in plan.data.parts:
        parts["test"] = (plan.loader(plan.data.parts["test"]), "testing")
    labelled: dict[SplitName, LabelledLogits] = {}
    reports: dict[SplitName, Report] = {}
    failed: dict[SplitName, str] = {}
    for part, (loader, activity) in parts.items():
        try:
            batches = with_views(loader.clean(), plan.config.tta)
            labelled[part] = observed_logits(plan, network, batches, len(loader.images), activity, notify)
            reports[part] = report(labelled[part].scaled(card.calibration.temperature), plan.task)
        except Exception as error:  # files, memory, a device: the model is saved, and tl eval can try again
            failed[part] = _reason(plan, loader, error)
    # After all images were decoded.
    changed = {part: names for part, names in plan.data.changed_files().items() if part not in failed}
    tested = "test" in reports
    return Outcome(
        counters=counters,
        test=reports.get("test"),
        test_logits=labelled["test"] if tested else None,
        test_ids=parts["test"][0].images.ids if tested else None,
        clean_train=reports.get("train"),
        tta_gain=mirror_gain(labelled["test"], plan.task) if tested else None,
        changed=changed,
        failed=failed,
    )


_NAMES: Mapping[SplitName, str] = {"train": "training", "val": "validation", "test": "test"}


def _reason(plan: Plan, loader: Loader, error: Exception) -> str:
    """Return why images could not be evaluated, naming all files that cannot be decoded."""
    if isinstance(error, DataError) and isinstance(loader.images, FileImages):
        try:
            checks.check_all({"test": loader.images}, Threads(plan.config.workers), may_skip=False)
        except DataError as several:
            return str(several)
    return first_line(error)
