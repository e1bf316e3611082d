"""One optimizer step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tl_cli.data.augment.mixing import mix
from tl_cli.data.batches import Batch
from tl_cli.evaluation.task import Task
from tl_cli.training.config import TrainConfig
from tl_cli.training.state import TrainState


@dataclass(frozen=True, slots=True)
class StepResult:
    """The training figures of one batch, before the step changed the weights.

    Attributes:
        loss: mean loss of the batch against its targets, without label smoothing and class weights, (), on the device.
        correct: images of the batch with a correct prediction, (), on the device.
    """

    loss: Tensor
    correct: Tensor


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step minimizes.

    Attributes:
        task: gives the loss.
        num_classes: outputs of the network.
        label_smoothing: fraction of a target that is spread evenly over all classes.
        class_weights: (num_classes,) float32 on the device, or None.
        mixup: alpha of MixUp; 0 is off.
        cutmix: alpha of CutMix; 0 is off.
        seed: of MixUp and CutMix.
    """

    task: Task
    num_classes: int
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def prepare(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step: the labels, or (B, num_classes) shares where images are mixed."""
        if not (self.mixup or self.cutmix):
            return batch.inputs, batch.labels
        return mix(
            batch.inputs, batch.labels, self.num_classes,
            mixup=self.mixup, cutmix=self.cutmix, seed=self.seed, step=step,
        )  # fmt: skip

    def weight(self, targets: Tensor) -> Tensor | float:
        """Return what the summed loss of these targets is divided by."""
        return self.task.weight(targets, self.class_weights)

    def summed(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over images of the weighted, smoothed loss."""
        return self.task.loss(
            logits, targets, class_weights=self.class_weights, smoothing=self.label_smoothing, reduction="sum"
        )


def train_step(
    network: nn.Module, batch: Batch, state: TrainState, config: TrainConfig, objective: Objective, step: int
) -> StepResult:
    """Take one optimizer step on a batch, ``config.batch_size`` images at a time, without waiting for the device.

    The loss of each piece is divided by the weight of the whole batch, so the accumulated gradient equals that of the
    whole batch except for BatchNorm, whose statistics are those of a piece.
    """
    state.optimizer.zero_grad(set_to_none=True)
    inputs, targets = objective.prepare(batch, step)
    batch_weight = objective.weight(targets)
    loss = torch.zeros((), device=inputs.device)
    correct = torch.zeros((), device=inputs.device)
    count = -(-len(batch.labels) // config.batch_size)
    if config.bn == "train":
        # BatchNorm cannot normalize a single image.
        count = max(1, min(count, len(batch.labels) // 2))
    for piece, piece_targets in zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True):
        logits = network(piece)
        state.scaler.scale(objective.summed(logits, piece_targets) / batch_weight).backward()
        detached = logits.detach()
        # Without smoothing and weights, which raise the loss by themselves, it is comparable with the validation loss.
        loss += objective.task.loss(detached, piece_targets, reduction="sum")
        correct += objective.task.is_correct(detached, piece_targets).sum()
    if config.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update()
    return StepResult(loss / len(batch.labels), correct)
