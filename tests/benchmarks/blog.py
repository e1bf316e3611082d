"""The baseline: the blog's loop as published, including its mistakes, and the same loop with the mistakes fixed.

No code of ``tl`` is used here. The loop is that of PyTorch's transfer-learning tutorial: images through PIL one by one,
contiguous fp32, every batch through the whole network, a full validation pass after every epoch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.benchmarks.material import NATIVE, Pictures
from tests.benchmarks.timing import Bench, Timed, Work, now

Kind = Literal["blog", "naive"]
Batches = DataLoader[tuple[Tensor, Tensor]]

_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)
_UNFROZEN_LR = 1e-4


@dataclass(slots=True)
class Loop:
    """The parts of the loop.

    Attributes:
        model: in contiguous fp32, on the device.
        head: the classifier of the model.
        keeps_statistics: whether a frozen backbone is in eval mode; the blog's is not, so its BatchNorm moves.
    """

    model: nn.Module
    head: nn.Module
    optimizer: torch.optim.Adam
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    train_batches: Batches
    val_batches: Batches
    device: torch.device
    keeps_statistics: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over images.

    Attributes:
        loss: mean over batches, in nats.
        accuracy: a fraction.
    """

    images: int
    loss: float
    accuracy: float


def run(kind: Kind, work: Work, pictures: Pictures, bench: Bench, weights: str) -> Timed:
    """Return the time of the work, scaled linearly from one epoch of at most ``work.steps`` steps and as many batches
    of validation.
    """
    started = now(bench.device)
    model, head = build(work.model, pictures.classes, weights)
    loop = open_loop(model, head, batches(pictures, work.input_size, bench), bench.device)
    if not work.frozen:
        unfreeze(loop)
    elif kind == "blog":
        freeze_by_name(model, "fc")
    else:
        freeze_all_but(loop)
    ready = now(bench.device)
    trained = train_epoch(loop, work.steps)
    after_training = now(bench.device)
    validated = validate(loop, work.steps)
    after_validation = now(bench.device)
    an_epoch = (after_training - ready) * pictures.train / trained.images
    an_epoch += (after_validation - after_training) * pictures.val / validated.images
    return Timed(
        seconds=ready - started + work.epochs * an_epoch,
        setup_seconds=ready - started,
        images=work.epochs * pictures.train,
        measured=trained.images,
        threads=torch.get_num_threads(),
    )


def build(name: str, num_classes: int, weights: str) -> tuple[nn.Module, nn.Module]:
    """Return torchvision's network with a new head, and that head (EfficientNet's with its dropout)."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name)
    model.load_state_dict(safetensors.torch.load_file(weights))
    if name.startswith("resnet"):
        model.fc = nn.Linear(model.fc.in_features, num_classes)
        return model, model.fc
    model.classifier[1] = nn.Linear(model.classifier[1].in_features, num_classes)
    return model, model.classifier


def batches(pictures: Pictures, input_size: int, bench: Bench, val: str = "val") -> tuple[Batches, Batches]:
    """Return the training and the validation batches."""
    root, size, workers = pictures.root, bench.batch_size, bench.blog_workers
    train = ImageFolder(str(root / "train"), _augmented(input_size))
    validated = ImageFolder(str(root / val), _plain(input_size))
    return (
        DataLoader(train, batch_size=size, shuffle=True, num_workers=workers),
        DataLoader(validated, batch_size=size, num_workers=workers),
    )


def open_loop(model: nn.Module, head: nn.Module, loaders: tuple[Batches, Batches], device: str) -> Loop:
    """Return the loop before its first epoch, with one optimizer over all parameters for all epochs."""
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.5, patience=2)
    return Loop(model, head, optimizer, plateau, *loaders, torch.device(device))


def freeze_by_name(model: nn.Module, head: str) -> None:
    """Freeze every parameter whose name does not contain ``head``, as the blog does with "fc".

    In EfficientNet that freezes the new classifier, which then never trains in the frozen phase, and leaves fc1 and fc2
    of every squeeze-excitation block training.
    """
    for name, parameter in model.named_parameters():
        if head not in name:
            parameter.requires_grad = False


def freeze_all_but(loop: Loop) -> None:
    """Freeze everything except the head, including BatchNorm's statistics."""
    loop.model.requires_grad_(False)
    loop.head.requires_grad_(True)
    loop.keeps_statistics = True


def unfreeze(loop: Loop) -> None:
    """Unfreeze all parameters, at one lower learning rate."""
    loop.model.requires_grad_(True)
    loop.keeps_statistics = False
    for group in loop.optimizer.param_groups:
        group["lr"] = _UNFROZEN_LR


def train_epoch(loop: Loop, steps: int | None = None) -> Pass:
    """Train for one epoch, or its first ``steps`` steps, reading loss and accuracy after each."""
    loop.model.train()
    if loop.keeps_statistics:
        loop.model.eval()
        loop.head.train()
    criterion = nn.CrossEntropyLoss()
    running_loss, correct, total, accuracy = 0.0, 0, 0, 0.0
    for images, labels in _first(loop.train_batches, steps):
        images, labels = images.to(loop.device), labels.to(loop.device)
        loop.optimizer.zero_grad()
        outputs = loop.model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        loop.optimizer.step()
        running_loss += loss.item() * labels.size(0)
        _, predicted = outputs.max(1)
        total += labels.size(0)
        correct += predicted.eq(labels).sum().item()
        accuracy = correct / total
    return Pass(total, running_loss / total, accuracy)


def validate(loop: Loop, steps: int | None = None) -> Pass:
    """Return loss and accuracy on the validation images, or on their first ``steps`` batches."""
    loop.model.eval()
    criterion = nn.CrossEntropyLoss()
    running_loss, correct, total = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in _first(loop.val_batches, steps):
            images, labels = images.to(loop.device), labels.to(loop.device)
            outputs = loop.model(images)
            running_loss += criterion(outputs, labels).item() * labels.size(0)
            _, predicted = outputs.max(1)
            total += labels.size(0)
            correct += predicted.eq(labels).sum().item()
    return Pass(total, running_loss / total, correct / total)


def _first(loader: Batches, steps: int | None) -> Iterable[tuple[Tensor, Tensor]]:
    return islice(loader, steps)


def _augmented(input_size: int) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomCrop(NATIVE, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
            transforms.RandomRotation(15),
            *_to_tensor(input_size),
        ]
    )


def _plain(input_size: int) -> transforms.Compose:
    return transforms.Compose(_to_tensor(input_size))


def _to_tensor(input_size: int) -> list[nn.Module | transforms.ToTensor]:
    # Enlarged after the augmentation, where that is cheapest for the baseline.
    resize = [] if input_size == NATIVE else [transforms.Resize(input_size)]
    return [*resize, transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
