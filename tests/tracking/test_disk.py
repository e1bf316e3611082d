"""What a run leaves on the disk: a finished one no checkpoints, and the weights of its model once."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.commands import Result
from tests.support.projects import enter
from tl_cli.errors import StorageError
from tl_cli.models.bundle import WEIGHTS_FILE
from tl_cli.tracking.removal import files_of
from tl_cli.tracking.store import open_store
from tl_cli.training.state import checkpoints

TRAIN = ("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "2", "--freeze-epochs", "1",
         "--batch-size", "12", "--no-probe", "--quiet", "--data")  # fmt: skip


def state() -> Path:
    (folder,) = Path("mlruns").glob("*/*/state")
    return folder


def on_disk(root: Path) -> int:
    """The bytes of all files, those of several names once."""
    stats = [path.stat() for path in root.rglob("*") if path.is_file()]
    return sum({found.st_ino: found.st_size for found in stats}.values())


def test_a_finished_run_keeps_its_model_once_and_no_checkpoint(tl, workplace: Path, colours: Path) -> None:
    assert tl(*TRAIN, colours).code == 0
    assert checkpoints(state()) == []
    own, logged = (next(root.rglob(WEIGHTS_FILE)) for root in (state(), Path("mlruns/1/models")))
    assert own.samefile(logged)
    # Weights, pictures and the package that travels with the model: without the weights' second copy.
    weights = own.stat().st_size
    rest = sum(path.stat().st_size for path in Path("mlruns").rglob("*") if path.is_file()) - 2 * weights
    assert on_disk(Path("mlruns")) == weights + rest
    store = open_store(None)
    assert weights < files_of(store, store.find("latest")).size() < 2 * weights + rest
    # What a finished run is still used for.
    refused: Result = tl("train", "--resume", "latest")
    assert refused.code == 2
    assert "is complete" in refused.err
    assert tl("eval", "latest", "--json").code == 0
    picture = next((colours / "test" / "red").iterdir())
    by_run = json.loads(tl("predict", "latest", picture, "--format", "jsonl").out)
    # The two names of the weights do not depend on each other.
    shutil.rmtree("mlruns/1/models")
    by_folder = json.loads(tl("predict", state() / "best", picture, "--format", "jsonl").out)
    assert by_folder == by_run


def test_a_run_that_failed_keeps_its_checkpoints_until_it_is_finished(
    tl, workplace: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_cli.api import training_run as fitting

    fit = fitting.fit

    def fit_and_fail(*arguments):
        fit(*arguments)
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit", fit_and_fail)
        assert tl(*TRAIN, colours).code == 1
    kept = checkpoints(state())
    assert len(kept) == 2
    copies = [(path, path.read_bytes()) for path in kept]
    assert tl("runs", "sync", "latest").code == 0
    assert checkpoints(state()) == kept
    assert tl("train", "--resume", "latest").code == 0
    assert checkpoints(state()) == []
    # Left by an earlier version, they go with the next sync.
    for path, data in copies:
        path.write_bytes(data)
    assert tl("runs", "sync", "latest").code == 0
    assert checkpoints(state()) == []


def test_a_copy_of_a_project_shares_no_file_with_its_original(
    tl, workplace: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tl(*TRAIN, colours).code == 0
    copy = workplace.with_name("copy")
    shutil.copytree(Path("mlruns"), copy / "mlruns")
    shutil.copy("mlflow.db", copy)
    enter(copy, monkeypatch)
    assert tl("runs", "sync", "latest").code == 0
    of_both = [{path.stat().st_ino for path in root.rglob(WEIGHTS_FILE)} for root in (workplace / "mlruns", copy)]
    assert [len(inodes) for inodes in of_both] == [1, 2]
    assert not of_both[0] & of_both[1]
