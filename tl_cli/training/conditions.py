"""Under which conditions a model was trained: the settings that decide what it learned."""

from collections.abc import Sequence

from tl_cli.contract import ModelCard, SplitName
from tl_cli.evaluation.ranking import PRETRAINED
from tl_cli.training.config import TrainConfig

# They decide where and how fast a model trains, or what is kept of it.
_MACHINE = {
    "data_dir", "device", "precision", "layout", "threads", "fold", "probe", "workers", "feature_dtype",
    "checkpoint_every", "log_every",
}  # fmt: skip
# What these say of the images is in the splits, by content; they are named where the splits differ.
_DATA = {
    "data", "limit", "val_fraction", "split_seed", "on_bad_image", "path_column", "label_column", "split_column",
    "max_pixels",
}  # fmt: skip
_ELSEWHERE = {"model", "weights"}
_PARTS: tuple[SplitName, ...] = ("train", "val")


def are_digests_comparable(cards: Sequence[ModelCard]) -> bool:
    """Whether the models' digests can tell if they were trained on the same images.

    Earlier versions recorded digests of another scheme: of the same files they differ from those of today.
    """
    for part in _PARTS:
        splits = [card.data.splits[part] for card in cards if part in card.data.splits]
        if len({split.scheme for split in splits}) > 1 and len({split.digest for split in splits}) > 1:
            return False
    return True


def conditions(card: ModelCard, *, with_digests: bool = True) -> dict[str, str] | None:
    """Return the settings that decide what a model learned, as text by name; None if they are not recorded.

    A setting that an older version did not have is what it meant then: its default.

    Args:
        with_digests: False describes the images by their number only, see `are_digests_comparable`.
    """
    if not card.config:
        return None
    known = {name: field.default for name, field in TrainConfig.model_fields.items() if not field.is_required()}
    config = known | card.config
    found = {"architecture": card.architecture, "weights": _weights(card)}
    for part in _PARTS:
        split = card.data.splits.get(part)
        digest = f" ({split.digest[:8]})" if split and with_digests else ""
        found[f"{part} images"] = f"{split.count:,}{digest}" if split else "unknown"
    names = [name for name in TrainConfig.model_fields if name not in _MACHINE | _DATA | _ELSEWHERE]
    return found | {name.replace("_", "-"): _text(config.get(name)) for name in names}


def random_backbone(config: TrainConfig) -> list[str]:
    """Return what to warn of where layers with random weights stay frozen: what follows learns from random features."""
    if config.weights != "none":
        return []
    tuned = config.epochs - config.freeze_epochs
    found = []
    if config.freeze_epochs:
        long = f"for {config.freeze_epochs} epoch{'s' if config.freeze_epochs > 1 else ''}"
        if not tuned:
            long += ", the whole run"
        found.append(
            f"the backbone has random weights and stays frozen {long}: the head learns from random features; "
            "use --freeze-epochs 0, or pretrained weights"
        )
    if tuned and config.unfreeze_stages > 1:
        found.append(
            f"the backbone has random weights, and --unfreeze-stages {config.unfreeze_stages} keeps its lower layers "
            "frozen until the last stage: use --unfreeze-stages 1, or pretrained weights"
        )
    if tuned and config.bn == "frozen":
        found.append(
            "the backbone has random weights and its BatchNorm statistics stay at their initial values: use --bn train"
        )
    return found


def _weights(card: ModelCard) -> str:
    """Return from which weights a training started: random, a person's own by name and digest, or published ones."""
    name, digest = card.weights.name, (card.weights.sha256 or "")[:8]
    if name == "none":
        return "random"
    return f"{name} ({digest})" if name.startswith(("saved:", "file:")) else f"{PRETRAINED} ({name})"


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
