"""A small batch of noise for tests of augmentation."""

import numpy as np
import torch

COUNT = 48
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (COUNT, 3, 32, 40), dtype=np.uint8))
INDICES = np.arange(COUNT) * 7


def largest_difference(ours: torch.Tensor, theirs: list[torch.Tensor]) -> int:
    return int((ours.int() - torch.stack(theirs).int()).abs().max())
