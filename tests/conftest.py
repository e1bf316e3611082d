"""Shared fixtures: a small folder of images, an empty MLflow store, a server on loopback, and `tl` itself."""

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("MLFLOW_TRACKING_URI", "TL_DATA_DIR", "CI", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(_name, None)

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from tests.support.commands import Result
from tests.support.pictures import COLOURS, write_pictures
from tests.support.server import Server, serving

# Fixed examples: a test that fails on one machine fails on all.
settings.register_profile("tests", derandomize=True, deadline=None)
settings.load_profile("tests")

# They take a minute or two each: if one began last, the other workers would wait for it.
LONGEST = (
    "test_kills.py",
    "test_trained_models.py",
    "test_places.py",
    "test_signals.py",
    "test_checks.py",
    "test_resume.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let fixtures shared by several tests use a temporary cache instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE_DIR", str(tmp_path_factory.mktemp("shared-cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test an empty cache."""
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def _reset_tracking_uri() -> None:
    """Reset MLflow's tracking URI, which it also sets in the environment that later processes inherit."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture(autouse=True)
def own_tracking_uri() -> Iterator[None]:
    """Let no test record in the store of an earlier one."""
    _reset_tracking_uri()
    yield
    _reset_tracking_uri()


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ (3 classes of 16) and test/ (3 of 6), 32 x 32."""
    root = tmp_path_factory.mktemp("colours")
    write_pictures(root / "train", COLOURS, 16)
    write_pictures(root / "test", COLOURS, 6)
    return root


@pytest.fixture(scope="session")
def odd_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many sizes, which are decoded from their files again in each epoch."""
    root, noise = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 4)):
        for label, name in enumerate(("blue", "green", "red")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = noise.integers(0, 120, (33 + index % 5, 32 + index % 3, 3)) + 100 * np.eye(3)[label]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def ready_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once because that takes seconds, and copied for each test."""
    import mlflow

    folder = tmp_path_factory.mktemp("database")
    path = folder / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def workplace(tmp_path: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary current folder with an empty store, like a user's project folder."""
    import mlflow

    shutil.copy(ready_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    # MLflow caches the default store of the folder in which it was first used.
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield tmp_path
    mlflow.set_tracking_uri(None)


@pytest.fixture
def tl(workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run ``tl`` through its entry point in this process, in which torch is imported already."""
    from tl_cli.cli.app import main

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["tl", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        code = stopped.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on loopback, empty at first."""
    with serving() as server:
        yield server
