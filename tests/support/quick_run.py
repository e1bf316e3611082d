"""A short training of 24 steps in a process, and its progress."""

import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

TRAIN = ("train", "timm/test_efficientnet", "--weights", "none", "--input-size", "32", "--epochs", "4", "--freeze-epochs",
         "2", "--batch-size", "8", "--log-every", "1", "--workers", "0", "--checkpoint-every", "1", "--schedule", "one-cycle",
         "--threads", "1")  # fmt: skip


def wait_until(process: BaseProcess, condition: Callable[[], bool]) -> None:
    while process.is_alive() and not condition():
        time.sleep(0.002)


def is_described(folder: Path) -> bool:
    return any(folder.glob("mlruns/*/*/state/card.json"))


def newest_step(folder: Path) -> int:
    return max(
        (int(path.stem.removeprefix("step-")) for path in folder.glob("mlruns/*/*/state/step-*.ckpt")), default=0
    )
