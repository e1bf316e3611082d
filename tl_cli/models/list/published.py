"""The architectures of each library, kept between commands because asking the libraries takes seconds. No torch."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import constants

from tl_cli.errors import StorageError
from tl_cli.io.atomic import write_text
from tl_cli.io.download import cache_root
from tl_cli.models.list.completion import BUNDLED

_PACKAGES = ("tl-train", "torchvision", "timm", "huggingface-hub", *(row["package"] for row in BUNDLED.values()))


@dataclass(frozen=True, slots=True)
class Architecture:
    """A library's facts about an architecture and its best weights.

    Attributes:
        name: that ``registry.create`` accepts.
        plain_name: without a library's prefix or a weights tag.
        module: last part of the Python module that defines it.
        input_size: side of the input in pixels.
        top1: ImageNet-1k accuracy, a fraction; None where the library does not state it.
        on_disk: whether the weights are on this machine; None where none are published.
    """

    name: str
    plain_name: str
    module: str
    input_size: int
    top1: float | None
    on_disk: bool | None


def architectures(library: str) -> list[Architecture]:
    """Return the architectures of a library: from the cache, as long as packages and downloaded weights are unchanged.

    Args:
        library: ``torchvision``, ``bundled`` or ``timm``.
    """
    path, state = cache_root() / "measured" / f"models-{library}.json", _state()
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["state"] == state:
            return [Architecture(**row) for row in content["models"]]
    from tl_cli.models.zoo import registry  # imports torch, torchvision and timm, which the cache does without

    listed = [registry.about(name) for name in registry.names(library)]
    # A cache that cannot be written only costs time.
    with suppress(StorageError):
        write_text(path, json.dumps({"state": state, "models": [asdict(each) for each in listed]}))
    return listed


def _state() -> str:
    """Return a digest of everything that a listing depends on: versions, and the files of downloaded weights."""
    return hashlib.sha256("\n".join(_dependencies()).encode(errors="surrogateescape")).hexdigest()


def hub_folder() -> Path:
    """Return the folder of ``torch.hub.get_dir()`` without importing torch."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hub"


def _dependencies() -> Iterator[str]:
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"
    folders = (
        (hub_folder() / "checkpoints", ("*",)),
        (Path(constants.HF_HUB_CACHE), ("*/refs/*", "*/snapshots/*/*")),
    )
    for folder, patterns in folders:
        yield str(folder)
        for pattern in patterns:
            for path in sorted(folder.glob(pattern)):
                with suppress(OSError):
                    yield f"{path.relative_to(folder)} {path.stat().st_mtime_ns}"
