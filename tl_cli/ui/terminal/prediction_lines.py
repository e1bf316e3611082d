"""Predictions as they come: lines in a terminal, JSON lines, CSV."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text
from torch import Tensor

from tl_cli.contract import PixelRange
from tl_cli.data.preprocess import decode
from tl_cli.text import csv_text, json_text, safe_text
from tl_cli.ui.terminal.console import shortened
from tl_cli.ui.terminal.eval_report import thumbnail

_THUMBNAIL = 32


class Writer(Protocol):
    """Takes one prediction after another."""

    def __call__(self, path: str, probabilities: Tensor) -> None:
        """Write what was said of a picture; ``probabilities`` is (num_classes,) float32."""

    def close(self) -> None:
        """Write what is left."""


class Lines:
    """One line a picture: its name, and the likeliest classes with bars for the first."""

    def __init__(
        self,
        console: Console,
        classes: Sequence[str],
        top: int,
        *,
        show: bool,
        pixel_range: PixelRange | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self._console = console
        self._classes = classes
        self._top = top
        self._pixel_range = pixel_range
        self._max_pixels = max_pixels
        self._show = show and console.color_system is not None
        self._label = max(cell_len(shortened(name, 24)) for name in classes)

    def __call__(self, path: str, probabilities: Tensor) -> None:
        """Print the line, after a small picture where one is wanted."""
        if self._show:
            side, limit = 2 * _THUMBNAIL, self._max_pixels
            picture = decode(Path(path), short_side=side, pixel_range=self._pixel_range, max_pixels=limit)
            self._console.print(thumbnail(picture, _THUMBNAIL))
        best = likeliest(probabilities, self._classes, self._top)
        # As many as fit, but always the first.
        cell = self._label + 8
        fits = max(1, min(len(best), (self._console.width - 16) // cell))
        room = self._console.width - fits * cell
        line = Text(_ending(safe_text(path, limit=8000), room - 2))
        line.pad_right(max(0, room - line.cell_len))
        for place, (name, probability) in enumerate(best[:fits]):
            style = "bold" if place == 0 else "dim"
            line.append(f"{probability:>6.1%} ", style=style)
            line.append(set_cell_size(shortened(name, 24), self._label) + " ", style=style)
        line.rstrip()
        self._console.print(line, no_wrap=True, overflow="ellipsis", crop=False)

    def close(self) -> None:
        """Nothing is left."""


class JsonLines:
    """One JSON object a line: ``{"path": ..., "predictions": [{"class": ..., "probability": ...}, ...]}``."""

    def __init__(self, classes: Sequence[str], top: int) -> None:
        self._classes = classes
        self._top = top

    def __call__(self, path: str, probabilities: Tensor) -> None:
        """Write the object."""
        best = likeliest(probabilities, self._classes, self._top)
        answers = [{"class": name, "probability": round(probability, 6)} for name, probability in best]
        _write(json_text({"path": path, "predictions": answers}) + "\n")

    def close(self) -> None:
        """Write what is left."""
        sys.stdout.flush()


class Csv:
    """Path, and class and probability of the likeliest ones, with a header; names as a terminal may show them."""

    def __init__(self, classes: Sequence[str], top: int) -> None:
        self._classes = classes
        self._top = min(top, len(classes))
        header = ["path"]
        for place in range(1, self._top + 1):
            header += ["class", "probability"] if self._top == 1 else [f"class_{place}", f"probability_{place}"]
        _write(csv_text([header]))

    def __call__(self, path: str, probabilities: Tensor) -> None:
        """Write the row."""
        row = [path]
        for name, probability in likeliest(probabilities, self._classes, self._top):
            row += [name, f"{probability:.6f}"]
        _write(csv_text([row]))

    def close(self) -> None:
        """Write what is left."""
        sys.stdout.flush()


def likeliest(probabilities: Tensor, classes: Sequence[str], top: int) -> list[tuple[str, float]]:
    """Return the names of the likeliest classes with their probabilities, the first first."""
    values, places = probabilities.topk(min(top, len(classes)))
    return [(classes[place], value) for place, value in zip(places.tolist(), values.tolist(), strict=True)]


def _ending(path: str, room: int) -> str:
    """Return the end of a path, which tells it from its neighbours."""
    room = max(8, room)
    return path if cell_len(path) <= room else "..." + set_cell_size(path[::-1], room - 3)[::-1].lstrip()


def _write(text: str) -> None:
    # In UTF-8 whatever the locale is: programs read it.
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8"))
