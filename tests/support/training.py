"""Short runs, and runs that are stopped and resumed."""

import hashlib
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from tl_cli.models.zoo import registry
from tl_cli.training import plan as setup
from tl_cli.training.config import Given
from tl_cli.training.events import Event, StepEnded
from tl_cli.training.fit import fit
from tl_cli.training.plan import Plan, new_state
from tl_cli.training.state import Saver, TrainState

MODEL = "shufflenet_v2_x0_5"


def plan_for(data: Path, **settings: object) -> Plan:
    values = {
        "model": MODEL, "weights": "none", "data": str(data), "input_size": 32, "batch_size": 8, "lr": 0.01,
        "freeze_epochs": 1, "epochs": 3, "workers": 0, **settings,
    }  # fmt: skip
    return setup.prepare(Given.of({key: value for key, value in values.items() if value is not None}))


def run(plan: Plan) -> tuple[list[Event], setup.TrainState]:
    events: list[Event] = []
    state = new_state(plan)
    fit(plan, state, events.append)
    return events, state


class StopError(Exception):
    pass


def stopped_and_resumed(
    data: Path, folder: Path, stop_after: int, **settings: object
) -> tuple[list[Event], setup.TrainState]:
    """Stop a run in the epoch after ``stop_after`` and resume it; return the later events and the state."""
    plan = plan_for(data, **settings)
    state = new_state(plan)
    saver = Saver(folder, state, plan.card())

    def interrupt(event: Event) -> None:
        saver(event)
        if isinstance(event, StepEnded) and event.epoch > stop_after:
            raise StopError

    with pytest.raises(StopError):
        fit(plan, state, interrupt)
    resumed = plan_for(data, **settings)
    again = new_state(resumed)
    assert again.restore(folder) == []
    later: list[Event] = []
    fit(resumed, again, later.append)
    return later, again


SMALL = "timm/test_efficientnet"


def state_digest(state: TrainState) -> str:
    """Return a digest of everything that training changes except times."""
    digest = hashlib.sha256()

    def take(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                digest.update(str(key).encode())
                take(value[key])
        elif isinstance(value, list | tuple):
            for each in value:
                take(each)
        else:
            digest.update(repr(value).encode())

    counters = astuple(state.counters)[:-1]
    take([state.model.state_dict(), state.optimizer.state_dict(), state.plateau.state_dict(), counters])
    take(state.average.state_dict() if state.average else None)
    return digest.hexdigest()


RESNET = {"model": "resnet18", "input_size": 32}


SMALL_RESNET = {"model": "timm/test_resnet", "input_size": 32}


WITHOUT_BATCH_NORM_OR_DROPOUT = {"model": "timm/test_convnext", "input_size": 32}
SMALL_EFFICIENTNET = {"model": SMALL, "input_size": 32}


def weights_of(folder: Path, model: str) -> str:
    """Return a weights file, as layers with random weights may not be frozen."""
    path = folder / "weights.pth"
    torch.save(registry.create(model, 3, weights="none", seed=7).model.state_dict(), path)
    return str(path)
