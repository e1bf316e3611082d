"""Two trained runs, made once through the Python API, for all tests of the API that only read them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tl_cli import Settings, TrainObserver, TrainRequest, TrainResult, train
from tl_cli.models.zoo import registry


class Silent(TrainObserver):
    """Collects warnings instead of issuing Python warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def small_settings(data: Path, seed: int = 0) -> Settings:
    """Return the settings of a training that takes a moment: two epochs, the first with a frozen backbone."""
    return Settings(
        model="timm/test_resnet", weights="none", data=str(data), input_size=32, batch_size=8, epochs=2,
        freeze_epochs=1, workers=0, probe=False, lr=0.05, seed=seed,
    )  # fmt: skip


@dataclass(frozen=True)
class Project:
    """A folder with a store, in which the runs ``first`` and ``second`` differ by their seed."""

    folder: Path
    pictures: Path
    runs: tuple[TrainResult, TrainResult]

    def list_test_files(self) -> list[Path]:
        """Return the files of the test images, as the API orders them."""
        return sorted((self.pictures / "test").rglob("*.png"))

    def labels(self) -> np.ndarray:
        """Return the index of each test image's class among the classes in alphabetical order."""
        return np.array([("blue", "green", "red").index(path.parent.name) for path in self.list_test_files()])

    def probabilities(self, run: TrainResult, files: list[Path], *, mirrored: bool = False) -> np.ndarray:
        """Return the softmax of a run's network for files of 32 x 32 pixels, which need no resizing, (N, 3)."""
        restored, card = registry.restore(run.model)
        pictures = (ImageOps.mirror(Image.open(path)) if mirrored else Image.open(path) for path in files)
        pixels = np.stack([np.asarray(picture) for picture in pictures]) / 255
        inputs = torch.from_numpy((pixels - card.preprocessing.mean) / card.preprocessing.std).float()
        with torch.inference_mode():
            logits = restored.model(inputs.permute(0, 3, 1, 2))
        return (logits / restored.temperature).softmax(1).numpy()

    def probabilities_of_both(self, run: TrainResult, files: list[Path]) -> np.ndarray:
        """Return the softmax of the mean logits of files and their mirror images: the normalized geometric mean."""
        product = self.probabilities(run, files) * self.probabilities(run, files, mirrored=True)
        mean: np.ndarray = np.sqrt(product)
        return mean / mean.sum(1, keepdims=True)


@pytest.fixture(scope="session")
def shared_project(tmp_path_factory: pytest.TempPathFactory, ready_database: Path, colours: Path) -> Project:
    """The project, trained once."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "mlflow.db").write_bytes(ready_database.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        first, second = (
            train(TrainRequest(small_settings(colours, seed), run_name=name), Silent())
            for seed, name in enumerate(("first", "second"))
        )
        mlflow.set_tracking_uri(None)
    # The paths are relative to the folder of the training.
    runs = (replace(first, model=folder / first.model), replace(second, model=folder / second.model))
    return Project(folder, colours, runs)


@pytest.fixture
def project(shared_project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The project as the current folder; tests must not change its store."""
    monkeypatch.chdir(shared_project.folder)
    mlflow.set_tracking_uri(f"sqlite:///{shared_project.folder}/mlflow.db")
    yield shared_project
    mlflow.set_tracking_uri(None)
