"""Runs a function on many images in threads, in order and with progress."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tl_cli.io.download import Progress, silent

T = TypeVar("T")
_CHUNK = 64  # calls of one task, since a task costs as much as decoding a tiny picture


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads work on images, and where their progress is shown."""

    workers: int = 1
    progress: Progress = silent

    def map(self, work: Callable[[int], T], indices: Sequence[int], activity: str, *, done: int = 0) -> Iterator[T]:
        """Yield ``work(index)`` for each index, in order; after an early end, no further call is started.

        Args:
            activity: shown with the progress.
            done: how many images were finished before; the total is larger by as many.
        """
        total = done + len(indices)
        pool = ThreadPoolExecutor(max(1, self.workers))
        chunks = (indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK))
        try:
            for results in pool.map(lambda chunk: [work(index) for index in chunk], chunks):
                done += len(results)
                self.progress(activity, done, total)
                yield from results
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


ONE_THREAD = Threads()
