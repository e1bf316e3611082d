"""What tests of tracking share."""

from pathlib import Path

import pytest

from tl_cli.tracking.store import Store, open_store


@pytest.fixture
def store(workplace: Path) -> Store:
    """An empty local store in the current folder."""
    return open_store(None)
