"""Counts the parameters and multiply-adds of an architecture on the meta device."""

import torch

from tl_cli.errors import UsageError
from tl_cli.models.list.count_cache import Counts
from tl_cli.models.macs import Counting
from tl_cli.models.zoo import registry

# As published, with ImageNet's classes.
_CLASSES = 1000


def count(name: str, input_size: int, num_classes: int = _CLASSES) -> Counts | None:
    """Return the counts of an architecture for one image of ``input_size`` x ``input_size``; None where it cannot run.

    Multiply-adds are half of torch's FLOPs, which count convolutions, matrix products and attention.
    """
    try:
        with torch.device("meta"):
            model = registry.build(name, num_classes, registry.options_for(name, input_size)).eval()
            image = torch.empty(1, 3, input_size, input_size)
        # Under no_grad, not inference_mode: there composite operations are not taken apart and none is counted.
        with Counting() as counting, torch.no_grad():  # type: ignore[no-untyped-call]
            model(image)
    except (RuntimeError, NotImplementedError, ValueError, AssertionError, UsageError):
        return None
    return Counts(sum(p.numel() for p in model.parameters()), counting.flops // 2)
