from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Result
from tests.support.recording import TRAIN_SMALL
from tl_cli.tracking.store import Store, open_store


@pytest.fixture
def store(workplace: Path) -> Store:
    """An empty store in a new folder, which is the current one."""
    return open_store(None)


@pytest.fixture
def train(tl, colours: Path) -> Callable[..., Result]:
    """Trains a small model for an epoch, with further options."""
    return lambda *options: tl(*TRAIN_SMALL, "--data", colours, *options)
