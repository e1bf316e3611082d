"""Validates what is read from a store, which other programs may write to, before anything computes with it."""

import math
import re
from collections.abc import Callable, Mapping

from tl_cli.tracking.liveness import HEARTBEAT_TAG, PAUSES_TAG, PID_TAG, PROCESS_TAG

# 1900 to 9000, milliseconds since 1970: a range that calendars of all time zones can show.
_EARLIEST, _LATEST = -2_208_988_800_000, 221_845_392_000_000
_MOST = 10**9  # epochs, stages
_MS = r"-?\d{1,15}"
_TAGS = {
    HEARTBEAT_TAG: re.compile(r"\d{1,12}(\.\d{1,9})?"),
    PAUSES_TAG: re.compile(rf"({_MS}-{_MS})(,{_MS}-{_MS})*"),
    PID_TAG: re.compile(r"[0-9]{1,9}"),
    PROCESS_TAG: re.compile(r"\S+ [0-9]{1,9} \S*"),
}


def _is_share(value: float) -> bool:
    return 0 <= value <= 1


def _is_count(value: float) -> bool:
    return 0 <= value <= _MOST


_METRICS: Mapping[str, Callable[[float], bool]] = {
    "best/val_accuracy": _is_share,
    "test/accuracy": _is_share,
    "clean_train/accuracy": _is_share,
    "epoch": _is_count,
    "best/epoch": _is_count,
    "time/train_seconds": _is_count,
    "test/loss": math.isfinite,
}


def drop_out_of_bounds(metrics: dict[str, float], tags: dict[str, str]) -> None:
    """Remove those tags and metrics that have a meaning here and are out of bounds."""
    for key in [key for key, fits in _METRICS.items() if key in metrics and not fits(metrics[key])]:
        del metrics[key]
    for key in [key for key, form in _TAGS.items() if key in tags and not form.fullmatch(tags[key] or "")]:
        del tags[key]


def moment(value: object) -> int:
    """Return milliseconds since 1970, within bounds; 0 if it is not a number."""
    return min(max(value, _EARLIEST), _LATEST) if isinstance(value, int) else 0


def whole(value: object) -> int | None:
    """Return a count; None if it is not a number from 0 to 10^9."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return round(number) if _is_count(number) else None
