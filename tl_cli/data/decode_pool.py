"""Several processes that decode tiny pictures, each its share of them."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import pairwise

import numpy as np

from tl_cli.contract import PixelRange
from tl_cli.data.decode import OPENING

_CHUNK = 512
_REPORT_EVERY_S = 0.2


def decode_aside(
    names: Callable[[range], list[str]],
    pixels: np.ndarray,
    processes: int,
    counted: Callable[[int], None],
    pixel_range: PixelRange | None = None,
) -> list[range]:
    """Decode pictures into ``pixels`` and return those that are left to the caller.

    A process stops at the first that it cannot decode or that has another size, and may not start at all. Not
    ``concurrent.futures``: its processes load the caller's main module, and with it torch, before they begin.

    Args:
        names: the paths of a range of the pictures.
        pixels: (N, 3, H, W) uint8, contiguous.
        counted: callback with the number of decoded images.
        pixel_range: of pictures of more than 8 bits per channel.
    """
    bounds = np.linspace(0, len(pixels), processes + 1).astype(int).tolist()
    shares = [range(start, stop) for start, stop in pairwise(bounds)]
    # Import the modules from where this process has them, and none from the current folder.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-m", "tl_cli.data.decode", *map(str, (*pixels.shape[2:], *(pixel_range or ())))]
    done = [0] * processes
    children: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(processes) as pool:
        try:
            # The share of a process that cannot be started is left.
            with suppress(OSError):
                for _ in shares:
                    child = subprocess.Popen(  # noqa: S603 - ourselves
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        env=environment,
                    )
                    children.append(child)
            running = {
                pool.submit(_read, child, names(share), pixels[share.start : share.stop], done, place)
                for place, (child, share) in enumerate(zip(children, shares, strict=False))
            }
            while running:
                running = wait(running, _REPORT_EVERY_S).not_done
                counted(sum(done))
        finally:
            # Before the pool waits for its threads, which may be reading.
            _end(children)
    return [range(share.start + count, share.stop) for share, count in zip(shares, done, strict=True)]


def _read(child: "subprocess.Popen[bytes]", names: list[str], pixels: np.ndarray, done: list[int], place: int) -> None:
    """Have a child decode these pictures; ``done[place]`` follows how many it has."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(b"".join(os.fsencode(name) + b"\0" for name in names))
        child.stdin.close()
    except OSError:
        return
    if child.stdout.read(len(OPENING)) != OPENING:
        return
    an_image = pixels[0].nbytes if len(pixels) else 1
    for start in range(0, len(pixels), _CHUNK):
        part = pixels[start : start + _CHUNK].data.cast("B")
        # Buffered, so that it reads all there is to come.
        count = child.stdout.readinto(part)  # type: ignore[attr-defined]
        done[place] += count // an_image
        if count < len(part):
            return


def _end(children: "Sequence[subprocess.Popen[bytes]]") -> None:
    for child in children:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                # What was still to be written to it has no reader any more.
                with suppress(OSError):
                    pipe.close()
