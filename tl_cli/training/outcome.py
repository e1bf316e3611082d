"""The end of a run: the best model is judged once, on the test images and on clean training images."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import nn

from tl_cli.contract import SplitName
from tl_cli.data import splits
from tl_cli.data.loaders import Loader
from tl_cli.data.names import Names
from tl_cli.errors import WeightsError, some
from tl_cli.evaluation.logits import Answers, answer
from tl_cli.evaluation.metrics import Report, report
from tl_cli.models import bundle, freezing
from tl_cli.training.events import Activity, Observer, Worked
from tl_cli.training.machine import Autocasting
from tl_cli.training.setup import Plan
from tl_cli.training.state import Counters

# The gap needs no more precision than the test figure has.
CLEAN_TRAIN_IMAGES = 5000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. The losses are of the probabilities that the saved model gives, with its temperature.

    Attributes:
        counters: epochs, steps, the best epoch.
        test: of the best model; None where the data bring no test images.
        test_answers: its logits as the network gives them, to compare two runs image by image.
        test_ids: the images' ids, in the same order.
        clean_train: of the best model on training images without augmentation, in eval mode.
        changed: by part the files that were replaced or changed while the training went on.
    """

    counters: Counters
    test: Report | None
    test_answers: Answers | None
    test_ids: Names | None
    clean_train: Report
    changed: Mapping[SplitName, list[str]] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What is to be said of figures that are not of the images that the record names."""
        return [
            f"{len(names):,} {part} image{'s' * (len(names) != 1)} changed during the training, so its figures are not "
            f"all of the images that the run began with: {some(names)}"
            for part, names in self.changed.items()
        ]

    @property
    def gap(self) -> float | None:
        """Clean training accuracy less test accuracy, a fraction: how much was learned by heart."""
        return self.clean_train.accuracy.value - self.test.accuracy.value if self.test else None


def conclude(plan: Plan, counters: Counters, best: Path, notify: Observer) -> Outcome:
    """Load the best model and judge it; the test images are looked at here and nowhere before.

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
    clean = plan.loader(train.subset(np.sort(chosen)))
    clean_answers = _judge(plan, network, clean, "measuring the training images", notify)
    test_answers = ids = None
    if "test" in plan.data.parts:
        loader = plan.loader(plan.data.parts["test"])
        test_answers = _judge(plan, network, loader, "testing", notify)
        ids = loader.images.ids
    temperature = card.calibration.temperature
    return Outcome(
        counters=counters,
        test=report(test_answers.scaled(temperature)) if test_answers else None,
        test_answers=test_answers,
        test_ids=ids,
        clean_train=report(clean_answers.scaled(temperature)),
        # After the last of them was decoded.
        changed=plan.data.changed_files(),
    )


def _judge(plan: Plan, network: nn.Module, loader: Loader, activity: Activity, notify: Observer) -> Answers:
    total = len(loader.images)
    return answer(
        network,
        loader.clean(),
        lambda done: notify(Worked(activity, done, total)),
        at_once=plan.machine.at_once,
    )
