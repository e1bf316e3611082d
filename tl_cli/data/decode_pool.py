"""Decodes tiny pictures in several processes."""

import os
import subprocess
import sys
from collections.abc import Callable
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
    """Decode pictures into ``pixels``, and return the ranges that the caller has to decode.

    A process stops at the first picture that it cannot decode or that has another size, and may fail to start.
    Processes of ``concurrent.futures`` would load the caller's main module first, and with it torch.

    Args:
        names: the paths of a range of the pictures.
        pixels: (N, 3, H, W) uint8, contiguous.
        counted: called with the number of decoded images.
        pixel_range: for pictures of more than 8 bits per channel.
    """
    bounds = np.linspace(0, len(pixels), processes + 1).astype(int).tolist()
    shares = [range(start, stop) for start, stop in pairwise(bounds)]
    # Import the modules from where this process has them, and none from the current folder.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-m", "tl_cli.data.decode", *map(str, (*pixels.shape[2:], *(pixel_range or ())))]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    done = [0] * processes
    children: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(processes) as pool:
        try:
            # The share of a process that cannot be started remains.
            with suppress(OSError):
                for _ in shares:
                    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, env=environment)  # noqa: S603
                    children.append(child)
            running = {
                pool.submit(_read, child, names(share), pixels[share.start : share.stop], done, number)
                for number, (child, share) in enumerate(zip(children, shares, strict=False))
            }
            while running:
                running = wait(running, _REPORT_EVERY_S).not_done
                counted(sum(done))
        finally:
            # Before the pool waits for its threads, which may be reading.
            for child in children:
                _end(child)
    return [range(share.start + count, share.stop) for share, count in zip(shares, done, strict=True)]


def _read(child: subprocess.Popen[bytes], names: list[str], pixels: np.ndarray, done: list[int], number: int) -> None:
    """Read pictures that a child decodes; ``done[number]`` counts them."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(b"".join(os.fsencode(name) + b"\0" for name in names))
        child.stdin.close()
    except OSError:
        return
    if child.stdout.read(len(OPENING)) != OPENING:
        return
    for start in range(0, len(pixels), _CHUNK):
        chunk = pixels[start : start + _CHUNK]
        # Buffered, so that it reads until the chunk is full or the child ends.
        count = child.stdout.readinto(chunk.data.cast("B"))  # type: ignore[attr-defined]
        done[number] += count // chunk[0].nbytes
        if count < chunk.nbytes:
            return


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        # What was not written yet has no reader any more.
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
