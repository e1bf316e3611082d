"""One optimizer step."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tl_cli.data.augment.mixing import mix
from tl_cli.data.batches import Batch
from tl_cli.training.config import TrainConfig
from tl_cli.training.state import TrainState


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step saw.

    Attributes:
        loss: mean cross-entropy of the batch against its targets, without label smoothing and class weights, (), on
            the device.
        correct: images of the batch classified correctly before the step, (), on the device.
    """

    loss: Tensor
    correct: Tensor


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step lowers.

    Attributes:
        num_classes: outputs of the network.
        label_smoothing: share of a target that goes to all classes alike.
        class_weights: (num_classes,) float32 on the device, or None.
        mixup: alpha, 0 where batches are not mixed so.
        cutmix: the same.
        seed: of the mixing.
    """

    num_classes: int
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def prepare(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step: class indices (B,), or shares (B, num_classes) where it is mixed."""
        if not (self.mixup or self.cutmix):
            return batch.inputs, batch.labels
        return mix(
            batch.inputs, batch.labels, self.num_classes,
            mixup=self.mixup, cutmix=self.cutmix, seed=self.seed, step=step,
        )  # fmt: skip

    def weight(self, targets: Tensor) -> Tensor | float:
        """Return by what the summed loss of these targets is divided: their number, or their classes' weights."""
        if self.class_weights is None:
            return float(len(targets))
        return (self.class_weights[targets] if targets.dim() == 1 else targets @ self.class_weights).sum()

    def summed(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over images of the weighted, smoothed cross-entropy."""
        return F.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="sum"
        )


def train_step(
    network: nn.Module, batch: Batch, state: TrainState, config: TrainConfig, objective: Objective, step: int
) -> Stepped:
    """Take one optimizer step on a batch, ``config.batch_size`` images at a time. Nothing here waits for the device.

    Each piece's loss is divided by the weight of the whole batch, so the gradient is that of the whole batch but for
    BatchNorm, whose statistics are those of a piece.
    """
    state.optimizer.zero_grad(set_to_none=True)
    inputs, targets = objective.prepare(batch, step)
    whole = objective.weight(targets)
    loss = torch.zeros((), device=inputs.device)
    correct = torch.zeros((), device=inputs.device)
    count = -(-len(batch.labels) // config.batch_size)
    if config.bn == "train":
        # BatchNorm cannot normalise a single image.
        count = max(1, min(count, len(batch.labels) // 2))
    for images, wanted in zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True):
        logits = network(images)
        state.scaler.scale(objective.summed(logits, wanted) / whole).backward()
        seen = logits.detach()
        # Smoothing and weights raise the loss by themselves; without them training and validation can be compared.
        loss += F.cross_entropy(seen, wanted, reduction="sum")
        # A mixed image counts for the class that it has most of.
        correct += (seen.argmax(1) == (wanted if wanted.dim() == 1 else wanted.argmax(1))).sum()
    if config.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update()
    return Stepped(loss / len(batch.labels), correct)
