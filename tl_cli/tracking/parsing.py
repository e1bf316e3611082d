"""Validates the contents of a store, which other programs may write to, before anything computes with them."""

import re

from tl_cli.evaluation.scores import EPOCH_KEY, MOST, RESULTS
from tl_cli.tracking.liveness import HEARTBEAT_TAG, PAUSES_TAG, PID_TAG, PROCESS_TAG

# 1900 to 9000, milliseconds since 1970: a range that calendars of all time zones can show.
_EARLIEST, _LATEST = -2_208_988_800_000, 221_845_392_000_000
_MS = r"-?\d{1,15}"
_TAGS = {
    HEARTBEAT_TAG: re.compile(r"\d{1,12}(\.\d{1,9})?"),
    PAUSES_TAG: re.compile(rf"({_MS}-{_MS})(,{_MS}-{_MS})*"),
    PID_TAG: re.compile(r"[0-9]{1,9}"),
    PROCESS_TAG: re.compile(r"\S+ [0-9]{1,9} \S*"),
}


# The number of epochs has the range of the best epoch.
_METRICS = {score.key: score for score in RESULTS.values()} | {EPOCH_KEY: RESULTS["best_epoch"]}


def drop_out_of_bounds(metrics: dict[str, float], tags: dict[str, str]) -> None:
    """Remove the tags and metrics that tl uses and whose values are out of bounds."""
    for key in [key for key, score in _METRICS.items() if key in metrics and not score.is_possible(metrics[key])]:
        del metrics[key]
    for key in [key for key, form in _TAGS.items() if key in tags and not form.fullmatch(tags[key] or "")]:
        del tags[key]


def parse_time(value: object) -> int:
    """Return milliseconds since 1970, within bounds; 0 if it is not a number."""
    return min(max(value, _EARLIEST), _LATEST) if isinstance(value, int) else 0


def parse_count(value: object) -> int | None:
    """Return a count; None if it is not a number from 0 to 10^9."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return round(number) if 0 <= number <= MOST else None
