from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.histories import history
from tests.support.screens import make_screen, shown
from tl_cli.ui.terminal.training_observer import TrainingScreen


def test_information_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    screen = make_screen(80)
    TrainingScreen(screen).note("features of an earlier run are used")
    assert shown(screen) == ""
    assert "features of an earlier run are used" in capsys.readouterr().err


def test_the_figures_of_a_run_are_written(tmp_path: Path) -> None:
    observer = TrainingScreen(make_screen(80))
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    files = observer.draw_batch(images, ["a", "b", "c", "d"], tmp_path / "batch.png", pytest.fail)
    files += observer.draw_curves(history(), tmp_path, pytest.fail)
    assert len(files) >= 3
    for path in files:
        with Image.open(path) as picture:
            picture.verify()


def test_a_figure_that_cannot_be_drawn_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    warnings: list[str] = []
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    where = tmp_path / "file" / "batch.png"
    assert TrainingScreen(make_screen(80)).draw_batch(images, ["a"], where, warnings.append) == []
    assert len(warnings) == 1
