"""Processes of ``tl``, forked from one that has done the slow imports."""

import atexit
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from pathlib import Path


def wait_for(condition: Callable[[], object], what: str, *, pause_s: float = 0.02) -> None:
    """Wait until a condition holds. The long deadline only ends a test that would hang."""
    deadline = time.monotonic() + 1200
    while not condition():
        assert time.monotonic() < deadline, f"{what} has not happened"
        time.sleep(pause_s)


# Processes of tl are forked from one that has done the slow imports, so that a start takes a moment, not many seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.preloaded"])


def tl_process(
    *arguments: str | Path,
    cwd: Path,
    stdout: int,
    stderr: int,
    prepare: Callable[[], None] | None = None,
    **environment: str,
) -> "multiprocessing.process.BaseProcess":
    """Start ``tl`` in a new process, for signals and terminals; the descriptors stay open in this process too.

    Args:
        prepare: called in that process before tl begins.
    """
    streams = (DupFd(stdout), DupFd(stderr))
    surroundings = (cwd, {**os.environ, **environment}, streams, prepare)
    process = FORKS.Process(target=_be_tl, args=([*map(str, arguments)], *surroundings))
    process.start()
    return process


def start_in(
    folder: Path, *arguments: str | Path, prepare: Callable[[], None] | None = None, **environment: str
) -> "multiprocessing.process.BaseProcess":
    """Start ``tl`` in a folder; its output is appended to ``folder/output``."""
    with (folder / "output").open("ab") as output:
        return tl_process(
            *arguments, cwd=folder, stdout=output.fileno(), stderr=output.fileno(), prepare=prepare, **environment
        )


def run_in(
    folder: Path, *arguments: str | Path, prepare: Callable[[], None] | None = None, **environment: str
) -> tuple[int | None, str]:
    """Run ``tl`` in a folder as ``start_in`` does; return its exit code and output."""
    (folder / "output").unlink(missing_ok=True)
    process = start_in(folder, *arguments, prepare=prepare, **environment)
    process.join()
    return process.exitcode, (folder / "output").read_bytes().decode(errors="replace")


def _be_tl(
    arguments: list[str],
    cwd: Path,
    environment: dict[str, str],
    streams: tuple[DupFd, DupFd],
    prepare: Callable[[], None] | None,
) -> None:
    from tl_cli import interrupts
    from tl_cli.cli.app import main
    from tl_cli.tracking.store import _ENVIRONMENT

    for descriptor, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream.detach(), descriptor)
    os.environ.clear()
    os.environ.update({**_ENVIRONMENT, **environment})
    os.chdir(cwd)
    sys.argv = ["tl", *arguments]
    # The tests may run under nohup or in the background of a script, which ignore signals.
    for signum in interrupts.known():
        signal.signal(signum, signal.SIG_DFL)
    if prepare is not None:
        prepare()
    try:
        main()
    finally:
        # Forked processes skip exit handlers; the real program runs them.
        atexit._run_exitfuncs()
