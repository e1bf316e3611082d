import pytest
import torch

from tests.support.screens import HOSTILE, make_screen, printed
from tl_cli.api.prediction import Prediction, PredictionStream
from tl_cli.ui.terminal.prediction_lines import Lines


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_prediction_is_one_line_that_fits(width: int) -> None:
    on = make_screen(width)
    classes = (HOSTILE, "a class of a rather long name indeed", "c")
    stream = PredictionStream("model", False, classes, 1, None, None, iter(()))
    path = "/a/very/long/path/" * 9 + "photo.jpg"
    Lines(on, stream, 3, show=True)(Prediction(path, classes, torch.tensor([0.1, 0.7, 0.2])))
    (line,) = printed(on).splitlines()
    assert len(line) <= max(width, 42)
    assert "70.0%" in line
    if width >= 40:
        assert "o.jpg" in line
