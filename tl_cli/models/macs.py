"""Counts the multiply-adds of whatever runs."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_FORMULAS = {
    # torch has no formula for the CPU's fused attention, which computes the same as the GPU's.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    **flop_registry,
}


class Counting(TorchDispatchMode):
    """Sums torch's own FLOP formulas over all operations.

    Attributes:
        flops: so far; a multiply-add counts as two.
    """

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result
