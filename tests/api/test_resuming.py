"""A stopped run is resumed with its own settings and ends with the weights of an uninterrupted run."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.api.conftest import Project, Silent, small_settings
from tests.support.pictures import write_pictures
from tl_cli import Settings, TrainRequest, train
from tl_cli.api import resuming
from tl_cli.errors import Interrupted, UsageError
from tl_cli.tracking.store import open_store
from tl_cli.training.config import as_toml, settings_of
from tl_cli.training.events import Event, Observer, StepEnded


class Stopping(Silent):
    """Stops a training in its second epoch, as Ctrl-C does."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def training(self, *arguments: object) -> AbstractContextManager[Observer]:
        @contextmanager
        def screen() -> Iterator[Observer]:
            yield self.stop

        return screen()

    def stop(self, event: Event) -> None:
        if isinstance(event, StepEnded) and event.epoch == 2:
            raise Interrupted(signal.SIGINT)


@pytest.fixture
def stopped(workplace: Path, colours: Path) -> Stopping:
    """The run ``stopped`` of the current folder, which was interrupted in its second epoch."""
    observer = Stopping()
    with pytest.raises(Interrupted):
        train(TrainRequest(small_settings(colours), run_name="stopped"), observer)
    return observer


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    stopped: Stopping, shared_project: Project
) -> None:
    assert any("resume with: tl train --resume" in note for note in stopped.notes)
    observer = Silent()
    result = train(TrainRequest(resume="stopped"), observer)
    expected = shared_project.runs[0]
    assert (result.model / "model.safetensors").read_bytes() == (expected.model / "model.safetensors").read_bytes()
    assert result.outcome.counters.epoch == 2
    assert [point.epoch for point in result.history.epochs] == [1, 2]
    assert not any("changed" in message for message in observer.warnings)


def test_an_edited_config_file_changes_nothing_and_causes_a_warning(stopped: Stopping) -> None:
    store = open_store(None)
    run = store.find("stopped")
    _, card = resuming.recorded_settings(store, run, Settings(), None)
    path = store.state_folder(run) / "config.toml"
    recorded = path.read_text()
    assert recorded == as_toml(settings_of(card.config))
    observer = Silent()
    resuming.check_config_file(store, run, card, observer)
    assert observer.warnings == []
    path.write_text(recorded + "epochs = 99\n")
    resuming.check_config_file(store, run, card, observer)
    assert "has changed; the run continues with its original settings" in observer.warnings[0]
    path.unlink()
    resuming.check_config_file(store, run, card, observer)
    assert path.read_text() == recorded


def test_only_settings_of_the_machine_may_change(stopped: Stopping) -> None:
    store = open_store(None)
    run = store.find("stopped")
    given, _ = resuming.recorded_settings(store, run, Settings(workers=3), None)
    assert (given.settings.workers, given.settings.epochs) == (3, 2)
    with pytest.raises(UsageError, match="leave out --epochs, --lr"):
        resuming.recorded_settings(store, run, Settings(lr=1.0, epochs=9), None)


def test_a_complete_run_is_continued_as_a_new_one(project: Project) -> None:
    store = open_store(None)
    run = store.find("first")
    with pytest.raises(UsageError, match="is complete") as refused:
        resuming.recorded_settings(store, run, Settings(epochs=5), None)
    command = str(refused.value).splitlines()[-1]
    assert command.startswith(f"tl train --weights {run.info.run_id[:8]} --config ")
    # Two of the five epochs are done.
    assert "--epochs 3" in command
    assert "--freeze-epochs 0" in command


def test_a_comparison_and_missing_data_are_refused(workplace: Path, tmp_path: Path) -> None:
    store = open_store(None)
    parent = store.client.create_run(store.experiment("tl"), tags={"tl.compares": "models"})
    with pytest.raises(UsageError, match="is a comparison and cannot be resumed"):
        resuming.find_run(store, parent.info.run_id)


def test_changed_training_images_are_refused(stopped: Stopping, colours: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "others" / "train", {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}, 16)
    with pytest.raises(UsageError, match="images have changed since the run began"):
        train(TrainRequest(Settings(data=str(tmp_path / "others")), resume="stopped"), Silent())
