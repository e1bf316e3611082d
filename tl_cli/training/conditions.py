"""The conditions of a training: the settings that determine what a model learns."""

from collections.abc import Sequence

from tl_cli.contract import ModelCard, SplitName
from tl_cli.evaluation.ranking import PRETRAINED
from tl_cli.training.config import TrainConfig, recorded_config

# These determine where and how fast a model trains, or what is recorded.
_MACHINE = {
    "data_dir", "device", "precision", "layout", "threads", "fold", "probe", "workers", "feature_dtype",
    "checkpoint_every", "log_every", "time",
}  # fmt: skip
# Their effect on the images is in the splits, by content.
_DATA = {
    "data", "limit", "val_fraction", "split_seed", "on_bad_image", "path_column", "label_column", "split_column",
    "max_pixels",
}  # fmt: skip
_ELSEWHERE = {"model", "weights"}
_PARTS: tuple[SplitName, ...] = ("train", "val")


def are_digests_comparable(cards: Sequence[ModelCard]) -> bool:
    """Whether the models' digests show if they were trained on the same images.

    Earlier versions recorded digests of another scheme, which differ for the same files.
    """
    for part in _PARTS:
        splits = [card.data.splits[part] for card in cards if part in card.data.splits]
        if len({split.scheme for split in splits}) > 1 and len({split.digest for split in splits}) > 1:
            return False
    return True


def conditions(card: ModelCard, *, with_digests: bool = True) -> dict[str, str] | None:
    """Return the settings that determine what a model learned, as text by name; None if they are not recorded.

    A setting that an older version did not have has its default.

    Args:
        with_digests: False: describe the images by their number only, see `are_digests_comparable`.
    """
    if not card.config:
        return None
    config = recorded_config(card.config)
    named = {"architecture": card.architecture, "weights": _weights(card)}
    for part in _PARTS:
        split = card.data.splits.get(part)
        digest = f" ({split.digest[:8]})" if split and with_digests else ""
        named[f"{part} images"] = f"{split.count:,}{digest}" if split else "unknown"
    names = [name for name in TrainConfig.model_fields if name not in _MACHINE | _DATA | _ELSEWHERE]
    return named | {name.replace("_", "-"): _text(config.get(name)) for name in names}


def random_backbone(config: TrainConfig) -> list[str]:
    """Return warnings for layers with random weights that stay frozen, so that later layers learn random features."""
    if config.weights != "none":
        return []
    tuned = config.epochs - config.freeze_epochs
    warnings = []
    if config.freeze_epochs:
        long = f"for {config.freeze_epochs} epoch{'s' if config.freeze_epochs > 1 else ''}"
        if not tuned:
            long += ", the whole run"
        warnings.append(
            f"the backbone has random weights and stays frozen {long}: the head learns from random features; "
            "use --freeze-epochs 0, or pretrained weights"
        )
    if tuned and config.unfreeze_stages > 1:
        warnings.append(
            f"the backbone has random weights, and --unfreeze-stages {config.unfreeze_stages} keeps its lower layers "
            "frozen until the last stage: use --unfreeze-stages 1, or pretrained weights"
        )
    if tuned and config.bn == "frozen":
        warnings.append(
            "the backbone has random weights and its BatchNorm statistics stay at their initial values: use --bn train"
        )
    return warnings


def _weights(card: ModelCard) -> str:
    """Return the initial weights of a training: random, the user's own by name and digest, or published ones."""
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
