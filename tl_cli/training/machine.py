"""The one place for device, precision and memory layout."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from tl_cli.errors import UsageError
from tl_cli.training.config import DeviceName, Precision, TrainConfig

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how tensors are computed.

    Attributes:
        device: of the model and its batches.
        precision: of matrix products and convolutions; weights and losses stay fp32.
        memory_format: of images and convolution weights.
    """

    device: torch.device
    precision: Precision = "fp32"
    memory_format: torch.memory_format = torch.contiguous_format

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which a forward pass runs."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Return what keeps small fp16 gradients from vanishing; it does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model here, in this layout, in place."""
        return model.to(self.device).to(memory_format=self.memory_format)

    def describe(self) -> str:
        """Return one line for people: the device's name, its precision and layout."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        elif self.device.type == "mps":
            name = "Apple GPU"
        else:
            threads = torch.get_num_threads()
            name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        layout = "channels-last" if self.memory_format == torch.channels_last else "contiguous"
        return f"{name}, {self.precision}, {layout}"


class Autocasting(nn.Module):
    """A network whose forward pass runs in a machine's precision and layout. Owns no parameters of its own."""

    def __init__(self, network: nn.Module, machine: Machine) -> None:
        super().__init__()
        self.network = network
        self.machine = machine

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits, float32, of images (B, 3, H, W) or of features (B, ...)."""
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=self.machine.memory_format)
        with self.machine.autocast():
            logits: torch.Tensor = self.network(inputs)
        return logits.float()


def choose_device(name: DeviceName) -> torch.device:
    """Return the device that was asked for; ``auto`` is a GPU where there is one, NVIDIA's or Apple's.

    Raises:
        UsageError: a GPU was asked for and torch sees none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: torch finds no Apple GPU here; use --device cpu or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    return torch.device(name)


def prepare_machine(config: TrainConfig) -> Machine:
    """Return the machine that the config asks for, and set torch's threads.

    Raises:
        UsageError: the device is not there, or cannot compute in the precision.
    """
    device = choose_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 is for GPUs; on a CPU use fp32 or bf16")
    if config.threads:
        torch.set_num_threads(config.threads)
    layout = torch.channels_last if config.layout == "channels-last" else torch.contiguous_format
    return Machine(device, config.precision, layout)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16 by itself."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Return how many threads decode images where nobody says: one a core, at most 8."""
    return min(8, cores())
