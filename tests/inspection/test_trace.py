import pytest
import torch
from torch import Tensor, nn

from tests.support.networks import TwoBlocks
from tl_cli.errors import UsageError
from tl_cli.inspection.trace import Additions, ancestors, trace

IMAGES = torch.ones(2, 3, 4, 4)


def test_the_steps_of_a_hand_written_network_are_recorded() -> None:
    steps = trace(TwoBlocks(), IMAGES)
    assert [step.index for step in steps] == list(range(len(steps)))
    assert (steps[0].name, steps[0].shape, steps[0].inputs) == ("images", (2, 3, 4, 4), ())
    assert steps[1].modules == ("stem",)
    assert steps[1].inputs == (steps[0],)
    first, second = (step for step in steps if step.addition is not None)
    assert (first.addition, second.addition) == (0, 1)
    # x + 2x: the output of the stem, and a convolution of it.
    assert first.modules == ("one",)
    assert first.operands == (steps[1], steps[2])
    assert ancestors(first, after=1) == [steps[1], steps[2], first]


def test_operations_that_do_not_depend_on_the_images_are_not_steps() -> None:
    class Shifted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            shift = torch.arange(4.0) * 2
            return images + shift

    steps = trace(Shifted(), IMAGES)
    assert [step.name for step in steps] == ["images", "add"]
    assert steps[1].operands == (steps[0], None)


def test_a_network_that_fails_is_refused_and_left_without_hooks() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            raise KeyError(str(self.inner(images).shape))

    net = Broken()
    with pytest.raises(UsageError, match="cannot be traced"):
        trace(net, IMAGES)
    assert not any(module._forward_hooks for module in net.modules())


def test_an_addition_can_be_replaced_also_in_place() -> None:
    class SecondAddition(Additions):
        def added(self, index: int, one: Tensor, other: Tensor, alpha: float) -> Tensor | None:
            return one - alpha * other if index == 1 else None

    with SecondAddition():
        values = torch.tensor([1.0, 2.0]) + torch.tensor([1.0, 1.0])
        values.add_(torch.tensor([1.0, 1.0]), alpha=3)
    assert values.tolist() == [-1.0, 0.0]
