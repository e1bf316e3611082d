from typing import get_args

import torch

from tl_cli import choices


def test_optimizers_are_classes_of_torch_in_lower_case() -> None:
    assert set(get_args(choices.OptimizerName)) <= {name.lower() for name in torch.optim.__all__}


def test_devices_are_torch_devices_or_auto() -> None:
    named = [name for name in get_args(choices.DeviceName) if name != "auto"]
    assert [torch.device(name).type for name in named] == named
