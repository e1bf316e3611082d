"""A training starts from the saved model that ``weights`` names."""

from pathlib import Path

import pytest

from tests.api.conftest import Project, Silent
from tl_cli.api.warm_start import with_model_of_weights, with_saved_weights
from tl_cli.errors import RunNotFoundError, UsageError
from tl_cli.training.config import Given


def weights_in(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def weights_of(given: Given) -> bytes:
    return weights_in(Path(given.settings.weights))


def test_a_run_gives_its_architecture_and_its_folder(project: Project) -> None:
    given = with_model_of_weights(Given.of({"weights": "first"}), None, Silent())
    assert given.model == "timm/test_resnet"
    assert weights_of(given) == weights_in(project.runs[0].model)


def test_with_a_model_only_the_name_of_a_run_is_replaced(project: Project) -> None:
    flags = {"model": "timm/test_resnet", "weights": "second"}
    assert with_model_of_weights(Given.of(flags), None, Silent()).settings.weights == "second"
    assert weights_of(with_saved_weights(Given.of(flags), None, Silent())) == weights_in(project.runs[1].model)
    for weights in ("none", "default", "a-name-that-the-zoo-refuses"):
        given = Given.of({"model": "resnet18", "weights": weights})
        assert with_saved_weights(given, None, Silent()).settings.weights == weights


def test_weights_without_an_architecture_need_a_model(project: Project) -> None:
    for weights in ("none", "default", "gone.pth", "nothing-of-this-name"):
        with pytest.raises(UsageError, match=f"--weights {weights} does not determine the architecture"):
            with_model_of_weights(Given.of({"weights": weights}), None, Silent())
    # An address cannot be the name of published weights.
    with pytest.raises(RunNotFoundError):
        with_saved_weights(Given.of({"model": "resnet18", "weights": "runs:/0123456789abcdef"}), None, Silent())
