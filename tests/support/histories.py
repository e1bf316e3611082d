"""Histories of runs for tests of plots."""

import math

from tl_cli.evaluation.scores import EpochEnded
from tl_cli.tracking.facts import RunFacts
from tl_cli.training.history import History


def history(epochs: int = 10, steps: int = 500, name: str = "run") -> History:
    return History(
        name,
        [(step, 2 * math.exp(-step / 100) + 0.1 * (step % 3)) for step in range(1, steps)],
        [
            EpochEnded(e, e * 50, 2 / e, 1 - 1 / (e + 1), 2.2 / e, 1 - 1.2 / (e + 1), 1e-3, 0.0 if e < 6 else 1e-4)
            for e in range(1, epochs + 1)
        ],
        test_accuracy=0.88,
        test_loss=0.3,
        clock=[(step, step * 0.5) for step in range(steps)],
    )


FACTS = RunFacts("3f2a91c0" + "0" * 24, "digits [/] run\x1b[31m", "tl", "running", "training", None, 0, 60, 60, "box", "resnet18", "digits",
                 10, 12, 0.91, 10, 0.88, "abc")  # fmt: skip


HOSTILE = FACTS.name
