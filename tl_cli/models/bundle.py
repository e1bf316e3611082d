"""The saved model: a folder with ``model.safetensors`` and ``model.json``. Nothing else is needed to use it."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tl_cli.contract import ModelCard, problems_in
from tl_cli.errors import WeightsError, first_line
from tl_cli.io.atomic import replacing, write_text
from tl_cli.io.download import digest

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"
_NEXT_CARD = ".model.json.next"
_SEAL = "sha256"


def save(folder: Path, model: nn.Module, card: ModelCard) -> ModelCard:
    """Write the saved model; at every moment a card with the SHA-256 of the weights is beside them.

    Returns:
        The card as written.

    Raises:
        StorageError: the disk is full or not writable.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    weights = safetensors.torch.save(tensors)
    card = card.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    _write(folder, card, weights)
    return card


def copy(source: Path, target: Path) -> None:
    """Copy a saved model as ``save`` writes one.

    Raises:
        WeightsError: the source is damaged.
        StorageError: the disk is full or not writable.
    """
    card = verified_card(source)
    with _reading(source / WEIGHTS_FILE) as path:
        weights = path.read_bytes()
    _write(target, card, weights)


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    try:
        yield path
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error


def _write(folder: Path, card: ModelCard, weights: bytes) -> None:
    write_card(folder, card, _NEXT_CARD)
    with replacing(folder / WEIGHTS_FILE) as file:
        file.write(weights)
    write_card(folder, card)
    (folder / _NEXT_CARD).unlink(missing_ok=True)


def write_card(folder: Path, card: ModelCard, name: str = CARD_FILE) -> None:
    """Write a model card, with a digest of its contents.

    Raises:
        StorageError: the disk is full or not writable.
    """
    facts = card.model_dump(mode="json")
    write_text(folder / name, json.dumps({**facts, _SEAL: _seal(facts)}, indent=2, ensure_ascii=False) + "\n")


def read_card(folder: Path, name: str = CARD_FILE) -> ModelCard:
    """Return the model card of a folder.

    Raises:
        WeightsError: the folder is not a saved model, or the card is damaged or of a newer format.
    """
    path = folder / name
    if not path.exists():
        raise WeightsError(f"{folder} is not a saved model: it has no {name}")
    try:
        data = path.read_bytes()
        card = ModelCard.model_validate_json(data)
        seal = json.loads(data).get(_SEAL)
    except ValidationError as error:
        raise WeightsError(
            f"{path} is not what tl writes: {problems_in(error)}; undo the change, or use another copy"
        ) from error
    except (ValueError, AttributeError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {first_line(error)}") from error
    # Folders of earlier versions have neither a seal nor a digest of their weights.
    is_sealed = seal is not None or card.weights_sha256 is not None
    if is_sealed and seal != _seal(json.loads(data)):
        raise WeightsError(f"{path} is damaged: it differs from what was written")
    return card


def verified_card(folder: Path) -> ModelCard:
    """Return the model card of a folder, after checking the weights against it.

    Raises:
        WeightsError: the card or the weights are damaged, or the folder is not a saved model.
    """
    card = read_card(folder)
    if card.weights_sha256 is None:
        return card
    with _reading(folder / WEIGHTS_FILE) as path:
        sha256 = digest(path)
    if sha256 == card.weights_sha256:
        return card
    with suppress(WeightsError):
        # The process was killed after the weights were written and before their card was.
        if (following := read_card(folder, _NEXT_CARD)).weights_sha256 == sha256:
            return following
    raise WeightsError(
        f"{folder / WEIGHTS_FILE} is damaged: its SHA-256 differs from the one in {CARD_FILE}; use another copy of it"
    )


def _seal(facts: Mapping[str, object]) -> str:
    sealed = {key: value for key, value in facts.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def with_versions(model: nn.Module, tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return a state_dict with the module versions that safetensors files do not contain; MNASNet needs them."""
    state = OrderedDict(tensors)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    return state


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load the folder's weights into ``model``, strictly.

    Raises:
        WeightsError: the weights are unreadable or of another architecture.
    """
    _load(model, tensors(folder), folder / WEIGHTS_FILE)


def load_mean(states: Sequence[Mapping[str, Tensor]], model: nn.Module) -> None:
    """Load the mean of several models' tensors into ``model``; integers, such as counters, are those of the first.

    Raises:
        WeightsError: they are of another architecture.
    """
    mean = {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }
    _load(model, mean, "the mean of the weights")


def tensors(folder: Path) -> dict[str, Tensor]:
    """Return the folder's weights by name.

    Raises:
        WeightsError: they are unreadable.
    """
    try:
        # Read instead of memory-mapped as in load_file: a truncated mapped file ends the process with SIGBUS.
        return safetensors.torch.load((folder / WEIGHTS_FILE).read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"cannot load {folder / WEIGHTS_FILE}: {error}") from error


def _load(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    try:
        model.load_state_dict(with_versions(model, state), strict=True)
    except RuntimeError as error:
        raise WeightsError(f"cannot load {source}: {error}") from error
