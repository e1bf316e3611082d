import torch
from torch import nn

from tl_cli.contract import Preprocessing, WeightsTag
from tl_cli.evaluation.speed import inference_speeds
from tl_cli.models.classifier import Classifier


class Recording(nn.Module):
    """Records the shapes of its batches and whether it was in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes, self.modes = set(), set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.add(tuple(images.shape))
        self.modes.add(self.training)
        return images.mean((2, 3)) @ torch.ones(3, 400) @ torch.ones(400, 2)


def test_each_model_is_measured_in_turns_in_eval_mode_at_its_own_size() -> None:
    sizes, calls = (8, 16), []
    classifiers = [
        Classifier("m", Recording(), (), Preprocessing(resize=size, crop=size, mean=(0, 0, 0), std=(1, 1, 1)), WeightsTag(name="none"))
        for size in sizes
    ]  # fmt: skip
    speeds = inference_speeds(classifiers, "cpu", lambda *call: calls.append(call))
    assert len(speeds) == 2
    assert all(speed > 0 for speed in speeds)
    assert calls == [("measuring speed", done, 10) for done in range(1, 11)]
    for size, each in zip(sizes, classifiers, strict=True):
        assert (64, 3, size, size) in each.model.shapes
        assert {shape[1:] for shape in each.model.shapes} == {(3, size, size)}
        assert each.model.modes == {False}
