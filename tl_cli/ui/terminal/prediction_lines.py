"""Shows predictions while they are computed: lines in a terminal, JSON lines, CSV."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from tl_cli.api.prediction import Prediction, PredictionStream
from tl_cli.data.decode import decode_picture
from tl_cli.data.preprocess import as_tensor
from tl_cli.text import csv_text, json_text, safe_text
from tl_cli.ui.terminal.console import make_console, plain, print_error, shortened
from tl_cli.ui.terminal.observer import TerminalObserver
from tl_cli.ui.terminal.pictures import thumbnail

_THUMBNAIL = 32
Form = Literal["table", "jsonl", "csv"]


def show_predictions(
    predictions: PredictionStream, observer: TerminalObserver, form: Form, *, top: int, show: bool, quiet: bool
) -> bool:
    """Print predictions as they come; return whether every image has one.

    Args:
        observer: draws progress while they are computed.
        top: number of most likely classes per image.
        show: print a small picture of each image.
    """
    if predictions.is_latest:
        about = plain(f"model: {predictions.model}, the latest run", "note")
        make_console(quiet=quiet, stderr=True).print(about, soft_wrap=True)
    write: Callable[[Prediction], None]
    if form == "table":
        write = Lines(make_console(quiet=quiet), predictions, top, show=show)
    elif form == "jsonl":
        write = partial(_write_json, top)
    else:
        top = min(top, len(predictions.classes))
        ranks = [""] if top == 1 else [f"_{rank}" for rank in range(1, top + 1)]
        _write(csv_text([["path", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability"))]]))
        write = partial(_write_csv, top)
    failed: list[str] = []
    done = 0
    with observer:
        for each in predictions:
            done += 1
            if each.probabilities is None:
                failed.append(each.problem)
            else:
                write(each)
    sys.stdout.flush()
    if failed:
        print_error(f"{len(failed):,} of {done:,} pictures have no prediction:\n" + "\n".join(failed))
    return not failed


class Lines:
    """One line per image: its name, and the most likely classes.

    Args:
        predictions: the source of the class names and of the settings for decoding.
    """

    def __init__(self, console: Console, predictions: PredictionStream, top: int, *, show: bool) -> None:
        self._console = console
        self._predictions = predictions
        self._top = top
        self._show = show and console.color_system is not None
        self._label = max(cell_len(shortened(name, 24)) for name in predictions.classes)

    def __call__(self, prediction: Prediction) -> None:
        """Print the line, after a small picture if requested."""
        if self._show:
            stream = self._predictions
            picture = decode_picture(
                prediction.path,
                short_side=2 * _THUMBNAIL,
                pixel_range=stream.pixel_range,
                max_pixels=stream.max_pixels,
            )
            self._console.print(thumbnail(as_tensor(picture.pixels), _THUMBNAIL))
        best = prediction.top(self._top)
        # As many classes as fit, at least one.
        cell = self._label + 8
        fits = max(1, min(len(best), (self._console.width - 16) // cell))
        room = self._console.width - fits * cell
        line = Text(_path_end(safe_text(prediction.path, limit=8000), room - 2))
        line.pad_right(max(0, room - line.cell_len))
        for index, (name, probability) in enumerate(best[:fits]):
            style = "bold" if index == 0 else "dim"
            line.append(f"{probability:>6.1%} ", style=style)
            line.append(set_cell_size(shortened(name, 24), self._label) + " ", style=style)
        line.rstrip()
        self._console.print(line, no_wrap=True, overflow="ellipsis", crop=False)


def _write_json(top: int, prediction: Prediction) -> None:
    """Write an object, ``{"path": ..., "predictions": [{"class": ..., "probability": ...}, ...]}``, in one line."""
    _write(json_text(prediction.to_dict(top)) + "\n")


def _write_csv(top: int, prediction: Prediction) -> None:
    """Write path, class and probability of the most likely classes; names are safe to print."""
    cells = [cell for name, probability in prediction.top(top) for cell in (name, f"{probability:.6f}")]
    _write(csv_text([[prediction.path, *cells]]))


def _path_end(path: str, room: int) -> str:
    """Return the end of a path, where the paths of several images differ."""
    room = max(8, room)
    return path if cell_len(path) <= room else "..." + set_cell_size(path[::-1], room - 3)[::-1].lstrip()


def _write(text: str) -> None:
    # Always UTF-8, as programs read it.
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8"))
