"""One optimizer step."""

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tl_cli.data.loaders import Batch
from tl_cli.training.config import TrainConfig
from tl_cli.training.state import TrainState


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step saw.

    Attributes:
        loss: mean cross-entropy of the batch, without label smoothing, (), on the device.
        correct: images of the batch classified correctly before the step, (), on the device.
    """

    loss: Tensor
    correct: Tensor


def train_step(network: nn.Module, batch: Batch, state: TrainState, config: TrainConfig) -> Stepped:
    """Take one optimizer step on a batch. Nothing here waits for the device."""
    state.optimizer.zero_grad(set_to_none=True)
    logits = network(batch.inputs)
    objective = F.cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)
    state.scaler.scale(objective).backward()
    if config.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    seen = logits.detach()
    # Smoothing raises the loss by itself; without it training and validation can be compared.
    loss = F.cross_entropy(seen, batch.labels) if config.label_smoothing else objective.detach()
    return Stepped(loss, (seen.argmax(1) == batch.labels).sum())
