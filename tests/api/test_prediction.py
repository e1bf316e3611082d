"""``predict`` gives the softmax of the run's own network, in the order of the images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.api.conftest import Project, Silent
from tl_cli import PredictRequest, load, predict
from tl_cli.api.prediction import Prediction, read_picture
from tl_cli.contract import Preprocessing
from tl_cli.errors import DataError, RunNotFoundError, UsageError


def test_predictions_are_the_networks_in_the_order_of_the_files(project: Project) -> None:
    files = project.list_test_files()
    stream = predict(PredictRequest([str(project.pictures / "test")], "second", batch_size=5, workers=2), Silent())
    assert (stream.is_latest, stream.total, stream.classes) == (False, 18, ("blue", "green", "red"))
    predictions = list(stream)
    assert [each.path for each in predictions] == [str(path) for path in files]
    expected = project.probabilities(project.runs[1], files)
    np.testing.assert_allclose(np.stack([each.probabilities for each in predictions]), expected, atol=1e-5)
    assert [each.label for each in predictions] == [stream.classes[index] for index in expected.argmax(1)]


def test_bf16_predicts_nearly_the_same(project: Project) -> None:
    files = [str(path) for path in project.list_test_files()]
    found = np.stack(
        [each.probabilities for each in predict(PredictRequest(files, "second", precision="bf16"), Silent())]
    )
    expected = project.probabilities(project.runs[1], project.list_test_files())
    # bf16 has 8 bits.
    assert 0 < np.abs(found - expected).max() < 0.03
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="fp16 is for GPUs"):
            list(predict(PredictRequest(files, "second", precision="fp16"), Silent()))


def test_mirror_images_are_averaged(project: Project) -> None:
    files = project.list_test_files()
    request = PredictRequest([str(path) for path in files], "second", batch_size=5, workers=2, tta="flip")
    found = np.stack([each.probabilities for each in predict(request, Silent())])
    np.testing.assert_allclose(found, project.probabilities_of_both(project.runs[1], files), atol=1e-5)
    assert np.abs(found - project.probabilities(project.runs[1], files)).max() > 1e-3
    np.testing.assert_array_equal(load("second").predict(files, batch_size=5, tta="flip").probabilities, found)


def test_without_a_run_the_latest_predicts_and_names_may_come_line_by_line(project: Project) -> None:
    files = [str(path) for path in project.list_test_files()[:3]]
    stream = predict(PredictRequest(["-"], "latest", lines=[f"{name}\n" for name in files]), Silent())
    assert stream.total is None
    assert [each.path for each in stream] == files
    stream = predict(PredictRequest(files), Silent())
    assert stream.is_latest
    assert stream.model == f"second ({project.runs[1].run_id[:8]})"
    assert predict(PredictRequest(["first", *files]), Silent()).model == f"first ({project.runs[0].run_id[:8]})"


def test_a_file_that_does_not_decode_has_an_error_and_the_others_are_predicted(
    project: Project, tmp_path: Path
) -> None:
    good = str(project.list_test_files()[0])
    (tmp_path / "text.png").write_text("hello")
    names = [str(tmp_path / "text.png"), str(tmp_path / "gone.png"), good]
    predictions = list(predict(PredictRequest(names, "first", batch_size=2), Silent()))
    assert [each.probabilities is None for each in predictions] == [True, True, False]
    for each in predictions[:2]:
        assert each.path in each.problem
        with pytest.raises(DataError):
            each.top(1)
    assert "no such file" in predictions[1].problem
    assert predictions[2].problem == f"{good}: "


def test_a_prediction_as_data_has_the_most_likely_classes_first() -> None:
    prediction = Prediction("a<b>.png", ("x", "y", "z"), torch.tensor([0.25, 0.125, 0.625]))
    assert prediction.to_dict(2) == {
        "path": "a<b>.png",
        "predictions": [{"class": "z", "probability": 0.625}, {"class": "x", "probability": 0.25}],
    }
    assert "a&lt;b&gt;.png" in prediction._repr_html_()
    assert "<td>62.5%</td>" in prediction._repr_html_()


def test_images_with_more_than_8_bits_cause_a_warning_if_the_model_has_no_pixel_range(
    project: Project, tmp_path: Path
) -> None:
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(tmp_path / "deep.png")
    observer = Silent()
    list(predict(PredictRequest([str(tmp_path / "deep.png")], "first"), observer))
    assert any("1 of 1 pictures have more than 8 bits" in message for message in observer.warnings)


def test_a_request_without_images_or_without_a_model_is_refused(project: Project) -> None:
    with pytest.raises(UsageError, match=r"no pictures are named.*tl predict first photo.jpg"):
        predict(PredictRequest(["first"]))
    with pytest.raises(RunNotFoundError, match="no picture or folder of that name"):
        predict(PredictRequest(["neither-run-nor-file"]))
    with pytest.raises(UsageError, match="the list on stdin is empty"):
        list(predict(PredictRequest(["-"], "first")))


def test_an_image_in_memory_is_read_as_its_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for given in (pixels, Image.fromarray(pixels)):
        read = read_picture(given, Preprocessing(resize=8, crop=8))
        assert read.dtype == torch.uint8
        np.testing.assert_array_equal(read.permute(1, 2, 0).numpy(), pixels)
    with pytest.raises(DataError, match="is a folder without pictures"):
        read_picture(tmp_path, Preprocessing(resize=8, crop=8))
