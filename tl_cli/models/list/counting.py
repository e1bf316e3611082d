"""Parameters and multiply-adds of an architecture, counted on the meta device and kept for the next time."""

import json
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tl_cli.errors import StorageError, UsageError
from tl_cli.io.atomic import write_text
from tl_cli.io.download import cache_root
from tl_cli.models.zoo import registry

# As published, with ImageNet's classes.
_CLASSES = 1000
_SAVE_EVERY = 20
_FORMULAS = {
    # The CPU's fused attention has no formula of its own, and does what the GPU's does.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    **flop_registry,
}


@dataclass(frozen=True, slots=True)
class Counts:
    """What an architecture costs.

    Attributes:
        parameters: with the head, of ImageNet's 1,000 classes where no other number is said.
        multiply_adds: of one image; what papers call FLOPs.
    """

    parameters: int
    multiply_adds: int


class CountCache:
    """Counts by architecture, input size and library version; written when the block is left.

    Args:
        path: of the file; None is the user's cache folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_root() / "measured" / "counts.json"
        self._known: dict[str, list[int]] = {}
        self._unsaved = 0

    def __enter__(self) -> Self:
        with suppress(OSError, ValueError):
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                self._known = {key: value for key, value in content.items() if _is_count(value)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._save()

    def count(self, name: str, input_size: int) -> Counts | None:
        """Return the counts, counted now if need be; None where the architecture cannot run on the meta device."""
        value = self._known.get(_key(name, input_size))
        found = Counts(*value) if value else None
        if found is None:
            found = count(name, input_size)
            if found is not None:
                self._known[_key(name, input_size)] = [found.parameters, found.multiply_adds]
                self._unsaved += 1
                if self._unsaved >= _SAVE_EVERY:
                    self._save()
        return found

    def _save(self) -> None:
        if self._unsaved:
            # A cache that cannot be written only costs time.
            with suppress(StorageError):
                write_text(self._path, json.dumps(self._known))
            self._unsaved = 0


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


class Counting(TorchDispatchMode):
    """Adds up what torch's own formulas say of each operation.

    Attributes:
        flops: so far; a multiply-add counts two.
    """

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _key(name: str, input_size: int) -> str:
    library = "torchvision" if registry.library_of(name) == "torchvision" else "timm"
    return f"{name}@{input_size} {library} {version(library)}"


def _is_count(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(number, int) for number in value)
