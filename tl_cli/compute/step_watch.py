"""Takes fewer threads while other programs slow a training down, and more when they have ended."""

import time
from collections import deque
from collections.abc import Callable
from statistics import median_low

import psutil
import torch

from tl_cli.compute.device import cores

# Of the first steps of a phase, which include setup, these are left out.
_SETUP = 2
_STEPS = 8
_TRIED = 4
# Shorter steps vary by themselves, and threads hardly speed them up.
_SHORTEST_S = 0.02
_SLOW = 2.0
_CLEAR = 1.1
# After a trial that changed nothing; twice as many after each further one.
_WAIT_STEPS = 50
_LOOK_EVERY_S = 30.0
_NOT_EXACT = "a resumed run would not repeat this one bit for bit"


class StepWatch:
    """Watches the time of a phase's steps.

    Threads wait for each other at every layer, so that one that shares its core with another program slows all of them
    down: 33 images/s were seen with two threads, and 150 with one.

    Args:
        threads: of torch at the start of the phase.
        most: threads that are taken at most.
        use: sets the number of threads.
        idle: returns how many cores other programs leave.
        clock: seconds.
    """

    def __init__(
        self,
        threads: int,
        most: int,
        use: Callable[[int], None] = torch.set_num_threads,
        idle: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._threads = threads
        self._use = use
        self._idle = idle or _Idle()
        self._clock = clock
        self._seen = 0
        self._usual = 0.0  # seconds per step with all threads, before anything slowed them down
        self._before = 0.0  # seconds per step before a trial
        self._tried_from: int | None = None  # threads before the trial that is going on
        self._recent: deque[float] = deque(maxlen=_STEPS)
        self._wait = 0
        self._next_wait = _WAIT_STEPS
        self._looked_at = clock()

    def after_step(self, seconds: float) -> str | None:
        """Take the time of a step into account; return a message where the number of threads was changed or tried.

        Args:
            seconds: duration of the step.
        """
        self._seen += 1
        if self._most == 1 or self._seen <= _SETUP:
            return None
        self._recent.append(seconds)
        if self._tried_from is not None:
            return self._judge(self._tried_from) if len(self._recent) == _TRIED else None
        if len(self._recent) < _STEPS:
            return None
        self._usual = self._usual or median_low(self._recent)
        self._wait = max(0, self._wait - 1)
        if self._wait or self._usual < _SHORTEST_S:
            return None
        if self._threads > 1 and median_low(self._recent) > _SLOW * self._usual:
            self._try(self._threads // 2)
        elif self._threads < self._most and self._clock() - self._looked_at > _LOOK_EVERY_S:
            self._looked_at = self._clock()
            if self._idle() >= self._most - 0.5:
                self._try(self._most)
        return None

    def _try(self, threads: int) -> None:
        self._looked_at = self._clock()
        self._idle()  # it counts from here
        self._before, self._tried_from = median_low(self._recent), self._threads
        self._set(threads)

    def _judge(self, former: int) -> str | None:
        """End a trial: keep its number of threads if that is clearly faster."""
        after, before = median_low(self._recent), self._before
        self._tried_from = None
        if after * _CLEAR > before:
            self._wait, self._next_wait = self._next_wait, 2 * self._next_wait
            tried = self._threads
            self._set(former)
            if tried > former:
                return None
            return (
                f"a step takes {before / self._usual:.1f} times as long as before; {_count(tried)} instead of {former} "
                f"did not help ({_NOT_EXACT})"
            )
        self._recent.clear()
        if self._threads > former:
            return f"other programs have ended: {self._threads} threads again, {before / after:.1f} times as fast"
        return (
            f"other programs slow the training down: a step takes {before / self._usual:.1f} times as long as before; "
            f"{_count(self._threads)} instead of {former}: {before / after:.1f} times as fast ({_NOT_EXACT})"
        )

    def _set(self, threads: int) -> None:
        self._threads = threads
        self._recent.clear()
        self._use(threads)


class _Idle:
    """How many cores other programs have left for this process since the last call."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._seen = self._seconds()

    def __call__(self) -> float:
        """Return the number of cores."""
        before, self._seen = self._seen, self._seconds()
        now, idle, own = (new - old for new, old in zip(self._seen, before, strict=True))
        # A container may use only some of the machine's cores.
        return min(float(cores()), (idle + own) / max(now, 1e-9))

    def _seconds(self) -> tuple[float, float, float]:
        """Return the time, the idle seconds of all cores, and the CPU seconds of this process."""
        own = self._process.cpu_times()
        return time.monotonic(), psutil.cpu_times().idle, own.user + own.system


def _count(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"
