"""Runs in a store, recorded without a training."""

import subprocess
import sys
import time

from tl_cli.tracking.liveness import HEARTBEAT_TAG, PROCESS_TAG, identity
from tl_cli.tracking.recorder import Recorder
from tl_cli.tracking.store import Store, open_store
from tl_cli.training.events import EpochEnded, LossSampled


def epoch(number: int, step: int, loss: float = 0.5) -> EpochEnded:
    return EpochEnded(number, step, loss, 0.8, 0.6, 0.7, 1e-3, 0.0, 2.0, images_per_second=99.0, is_best=True)


def recorder(store: Store, **options: object) -> Recorder:
    warnings: list[str] = []
    made = Recorder(store, experiment_id=store.experiment("tl"), run_name="r", warn=warnings.append, **options)
    made.warnings = warnings  # type: ignore[attr-defined]
    return made


def dead_run(store: Store, beat: float | None = None) -> str:
    """A run that a process of this machine began, which is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    machine = identity()[PROCESS_TAG].split(" ")[0]
    process.wait()
    tags = {"tl.version": "0", PROCESS_TAG: f"{machine} {process.pid} 1"}
    if beat is not None:
        tags[HEARTBEAT_TAG] = str(beat)
    return str(store.client.create_run(store.experiment("tl"), run_name="gone", tags=tags).info.run_id)


def silent_run(store: Store) -> str:
    tags = {"tl.version": "0", "tl.host": "far", PROCESS_TAG: "far/boot 7 1", HEARTBEAT_TAG: str(time.time() - 3600)}
    return str(store.client.create_run(store.experiment("tl"), run_name="far", tags=tags).info.run_id)


def record(name: str, *, epochs: int = 3, end: bool = True, accuracy: float = 0.7):
    store = open_store(None)
    made = recorder(store)
    made._run_name = name
    made.__enter__()
    for number in range(1, epochs + 1):
        for step in range(10 * number - 9, 10 * number + 1):
            made(LossSampled(step, number, 2 / step, 1e-3, 0.0))
        made(epoch(number, 10 * number, 1 / number))
    if end:
        made.__exit__(None, None, None)
    return made
