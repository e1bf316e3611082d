"""What a network answers: logits of labelled images, batch by batch, in eval mode."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tl_cli.data.loaders import Batch

# Told how many images are done.
Counted = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Answers:
    """Logits beside the truth.

    Attributes:
        logits: (N, num_classes) float32, on the CPU.
        labels: (N,) int64.
    """

    logits: Tensor
    labels: Tensor


def answer(network: nn.Module, batches: Iterable[Batch], counted: Counted = lambda done: None) -> Answers:
    """Return the logits of every batch. ``network`` is left in eval mode."""
    network.eval()
    logits, labels, done = [], [], 0
    with torch.inference_mode():
        for batch in batches:
            logits.append(network(batch.inputs).float().cpu())
            labels.append(batch.labels.cpu())
            done += len(batch.labels)
            counted(done)
    return Answers(torch.cat(logits), torch.cat(labels))
