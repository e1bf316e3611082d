"""The saved model: a folder with ``model.safetensors`` and ``model.json``. Nothing else is needed to use it."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor, nn

from tl_cli.contract import ModelCard
from tl_cli.errors import WeightsError
from tl_cli.fetch import replacing, write_text

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"


def save(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write the saved model: the weights first and the card last, each atomically.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with replacing(folder / WEIGHTS_FILE) as file:
        file.write(safetensors.torch.save(tensors))
    write_text(folder / CARD_FILE, card.model_dump_json(indent=2) + "\n")


def read_card(folder: Path) -> ModelCard:
    """Return what the folder says of its weights.

    Raises:
        WeightsError: it is no saved model, or of a newer format.
    """
    path = folder / CARD_FILE
    if not path.exists():
        raise WeightsError(f"{folder} is not a saved model: it has no {CARD_FILE}")
    try:
        return ModelCard.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def with_versions(model: nn.Module, tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return a state_dict with the module versions that plain files of tensors do not keep; MNASNet asks for them."""
    state = OrderedDict(tensors)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    return state


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load the folder's weights into ``model``, strictly.

    Raises:
        WeightsError: they are unreadable or of another architecture.
    """
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        model.load_state_dict(with_versions(model, tensors), strict=True)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise WeightsError(f"cannot load {folder / WEIGHTS_FILE}: {error}") from error
