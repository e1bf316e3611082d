"""Device, precision, memory layout, threads and workers: everything that depends on the machine is decided here."""

import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import nn

from tl_cli.choices import DeviceName, Layout, Precision
from tl_cli.compute.fused import FoldedWeights, Shortcut, find_shortcuts, installed
from tl_cli.errors import UsageError

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BUSY_WITHIN_S = 0.3
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Names in torch.cpu.get_capabilities.
_BF16_CPUS = {"avx512_bf16", "amx_bf16", "bf16"}
# Prefixes of environment variables by which oneDNN and MKL choose other code for the same processor.
_LIBRARIES = ("ONEDNN_", "DNNL_", "MKL_")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how tensors are computed.

    Attributes:
        device: of the model and its batches.
        precision: of matrix products and convolutions; weights and losses are fp32.
        layout: of images, convolution weights and feature maps; ``images-last`` is channels-last, except for small maps
            on a CPU.
        fold: whether frozen BatchNorm is folded into a convolution that trains, where that takes less time; None: on a
            CPU only. Where neither of them trains, a CPU always folds.
    """

    device: torch.device
    precision: Precision = "fp32"
    layout: Layout = "contiguous"
    fold: bool | None = None

    @property
    def memory_format(self) -> torch.memory_format:
        """Torch's name of the layout of images and convolution weights."""
        return torch.contiguous_format if self.layout == "contiguous" else torch.channels_last

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which a forward pass runs."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaling for fp16, which keeps small gradients from vanishing; off in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def seed(self, seed: int) -> None:
        """Seed the random numbers of dropout and the like, on the CPU and on this device.

        ``torch.manual_seed`` seeds all kinds of devices: for those not yet in use it stores every call with its stack.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def wait(self) -> None:
        """Wait until a GPU has done all that it was given; a CPU is done when a call returns."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    @property
    def at_once(self) -> int:
        """How many batches are evaluated at the same time: on a CPU one per thread of torch, else 1.

        Each batch is computed on one thread, which never waits for another between two layers.
        """
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    def eval_batch(self, input_size: int) -> int:
        """Return the number of images in an evaluation batch, 256 at most.

        A CPU is fastest while feature maps fit its caches: in fp32 as many pixels as 48 images of 64 x 64. A GPU needs
        more, and so do fast bf16 units: three times as many were 1.1 to 1.4 times as fast (EfficientNet-Lite0 at 64, 96
        and 224 px, EfficientNet-B0 at 96 px, two threads of an Intel Xeon with AMX, medians of 4).
        """
        images = 256 if self.device.type != "cpu" else 144 if self.precision == "bf16" else 48
        return max(1, min(256, images * 64 * 64 // input_size**2))

    @property
    def puts_images_last(self) -> bool:
        """Whether small maps are computed with images last: on a CPU only."""
        return self.layout == "images-last" and self.device.type == "cpu"

    @property
    def takes_shortcuts(self) -> bool:
        """Whether networks use ``compute.fused``, whose shortcuts pay on a CPU; folding also elsewhere if asked for."""
        return self.device.type == "cpu" or self.fold is True

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and layout, in place."""
        return model.to(self.device).to(memory_format=self.memory_format)

    def arithmetic(self) -> dict[str, object]:
        """Return everything that the rounding of results depends on, as JSON types."""
        facts: dict[str, object] = {
            "device": [self.device.type, device_name(self.device)],
            "precision": self.precision,
            "layout": str(self.memory_format),
            "shortcuts": self.takes_shortcuts,
        }
        if self.puts_images_last:
            facts["images_last"] = True
        if self.device.type == "cpu":
            facts["capability"] = torch.backends.cpu.get_cpu_capability()
            facts["processor"] = sorted(name for name, has in cpu_facts().items() if has is True)
            facts["libraries"] = {name: value for name, value in os.environ.items() if name.startswith(_LIBRARIES)}
        return facts

    def describe(self) -> str:
        """Return one line for people: the device's name, its precision and layout."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        elif self.device.type == "mps":
            name = "Apple GPU"
        else:
            threads = torch.get_num_threads()
            name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        return f"{name}, {self.precision}, {self.layout}"


class _Shared:
    """The shortcuts of a network, which the first thread in a pass installs and the last one removes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.installed = ExitStack()
        # Finding them takes as long as some batches; by whether images last were tried.
        self.found: dict[bool, tuple[Shortcut, ...]] = {}


# By network, while it exists.
_SHARED = WeakKeyDictionary[nn.Module, _Shared]()
_SHARING = threading.Lock()


class Autocasting(nn.Module):
    """A network whose forward pass runs in a machine's precision and layout, with the shortcuts that pay there.

    It owns no parameters, and the network is unchanged after each pass. Several threads may use it at the same time.
    """

    def __init__(self, network: nn.Module, machine: Machine) -> None:
        super().__init__()
        self.network = network
        self.machine = machine
        self._folded: FoldedWeights | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits, float32, of images (B, 3, H, W) or of features (B, ...)."""
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=self.machine.memory_format)
        with self._with_shortcuts(inputs), self.machine.autocast():
            logits: torch.Tensor = self.network(inputs)
        return logits.float()

    @contextmanager
    def constant(self) -> Iterator[None]:
        """Convert weights once for all passes without gradients in the block, during which they must not change."""
        before, self._folded = self._folded, {}
        try:
            yield
        finally:
            self._folded = before

    @contextmanager
    def _with_shortcuts(self, inputs: torch.Tensor) -> Iterator[None]:
        if inputs.dim() != 4 or not self.machine.takes_shortcuts:
            yield
            return
        with _SHARING:
            shared = _SHARED.setdefault(self.network, _Shared())
        with shared.lock:
            if not shared.inside:
                fold, images_last = self.machine.fold is not False, self.machine.puts_images_last
                shortcuts = self._find_shortcuts(shared, inputs, images_last=images_last)
                shared.installed.enter_context(
                    installed(shortcuts, fold=fold, images_last=images_last, folded=self._folded)
                )
            shared.inside += 1
        try:
            yield
        finally:
            with shared.lock:
                shared.inside -= 1
                if not shared.inside:
                    shared.installed.close()

    def _find_shortcuts(self, shared: _Shared, inputs: torch.Tensor, *, images_last: bool) -> tuple[Shortcut, ...]:
        if images_last not in shared.found:
            # Noise instead of the batch: an image of one colour would prove little.
            generator = torch.Generator().manual_seed(0)
            example = torch.randn((2, *inputs.shape[1:]), generator=generator).to(inputs.device)
            shared.found[images_last] = find_shortcuts(self.network, example, images_last=images_last)
        return shared.found[images_last]


def choose_device(name: DeviceName) -> torch.device:
    """Return the device of that name; ``auto`` is an NVIDIA or Apple GPU where there is one, else the CPU.

    Raises:
        UsageError: torch finds no such GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: torch finds no Apple GPU here; use --device cpu or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    return torch.device(name)


def inference_machine(device: DeviceName, precision: Precision = "fp32") -> Machine:
    """Return the machine for inference: channels-last, which was faster on a CPU for every network tried.

    Raises:
        UsageError: torch finds no such GPU, or the device cannot compute in the precision.
    """
    chosen = choose_device(device)
    _check_precision(chosen, precision)
    return Machine(chosen, precision, layout="channels-last")


def prepare_machine(
    device: DeviceName, *, precision: Precision, layout: Layout, fold: bool | None, threads: int
) -> Machine:
    """Return the machine for training, and set the number of torch's threads.

    Args:
        fold: fold frozen BatchNorm into the preceding convolution; None: where that pays.
        threads: of torch on a CPU; 0 leaves them as they are.

    Raises:
        UsageError: torch finds no such GPU, or the device cannot compute in the precision.
    """
    chosen = choose_device(device)
    _check_precision(chosen, precision)
    if threads:
        torch.set_num_threads(threads)
    if chosen.type == "cuda":
        # All batches but the last have one size, so searching for the fastest algorithm pays. TensorFloat-32 stays as
        # torch sets it: used by convolutions, not by matrix products in fp32.
        torch.backends.cudnn.benchmark = True
    return Machine(chosen, precision, layout, fold)


def _check_precision(device: torch.device, precision: Precision) -> None:
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 is for GPUs; on a CPU use fp32 or bf16")


def bf16_is_fast(device: torch.device) -> bool:
    """Whether a GPU has bfloat16 in hardware."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def bf16_may_be_fast(device: torch.device) -> bool:
    """Whether the hardware has bfloat16; on a CPU fp32 may still be faster."""
    if device.type != "cpu":
        return bf16_is_fast(device)
    return any(cpu_facts().get(name) for name in _BF16_CPUS)


def cpu_facts() -> Mapping[str, object]:
    """Return torch's facts about the CPU, such as ``cpu_name`` and ``avx512_bf16``; empty in older versions."""
    ask: Callable[[], Mapping[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    return ask()


def device_name(device: torch.device) -> str:
    """Return the name of an NVIDIA GPU, for any other device that of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(cpu_facts().get("cpu_name") or platform.processor() or platform.machine())


def cores(quota_file: Path = _CPU_QUOTA) -> int:
    """Return how many cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        # A container may have a limit on CPU time instead: microseconds per period, or "max".
        quota, period = quota_file.read_text(encoding="ascii").split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def idle_cores() -> int:
    """Return how many threads torch may use without two of them sharing a core, given how many cores are busy now.

    Two threads of one matrix product wait for each other: on two busy cores they took 4 times as long as one.
    """
    busy = psutil.cpu_percent(interval=_BUSY_WITHIN_S) / 100 * cores()
    return max(1, min(torch.get_num_threads(), round(cores() - busy)))


def worker_count(given: int | None = None) -> int:
    """Return the number of threads that decode images: as given, else one per core, at most 8."""
    return min(8, cores()) if given is None else given
