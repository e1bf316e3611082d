"""Numbers, times and sizes as short text. No torch, NumPy or plotext."""

from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def or_dash(value: Number | None, show: Callable[[Number], str]) -> str:
    """Return the number as ``show`` writes it; a dash for None."""
    return "-" if value is None else show(value)


def format_count(value: float | None, dash: str) -> str:
    """Return 25.6M for 25,557,032, three figures; the dash for None."""
    if value is None:
        return dash
    size, unit = next(((size, unit) for size, unit in _UNITS if value >= 0.9995 * size), (1.0, ""))
    number = value / size
    digits = 0 if not unit or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f}{unit}"


def epoch_range(first: int, last: int) -> str:
    """Return ``epochs 1-5``, or ``epoch 1``."""
    return f"epochs {first}-{last}" if last > first else f"epoch {first}"


def format_seconds(seconds: float) -> str:
    """Return a duration: ``9.5 s``, ``48 s``, ``3:05``, ``2:10:00``."""
    if seconds < 60:
        return f"{seconds:.{int(seconds < 10)}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def time_left(seconds: float, *, is_last: bool) -> str:
    """Return the time left in a phase; the duration of later phases cannot be estimated during it."""
    return f"{format_seconds(seconds)} left" + ("" if is_last else " in this phase")
