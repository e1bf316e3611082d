from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Result
from tests.support.recording import TRAIN_SMALL
from tl_cli.tracking.store import Store, open_store


@pytest.fixture
def store(workplace: Path) -> Store:
    """An empty store in the current, temporary folder."""
    return open_store(None)


@pytest.fixture
def train(tl, colours: Path) -> Callable[..., Result]:
    """Return a function that trains a small model for one epoch with given options."""
    return lambda *options: tl(*TRAIN_SMALL, "--data", colours, *options)
