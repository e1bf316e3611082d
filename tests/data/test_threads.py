import threading

import pytest

from tl_cli.data.threads import Threads


def test_results_are_in_the_order_of_the_indices() -> None:
    indices = [index * 7 % 1000 for index in range(1000)]
    assert list(Threads(3).map(lambda index: index**2, indices, "squaring")) == [index**2 for index in indices]


def test_progress_counts_what_was_finished_before() -> None:
    calls: list[tuple[str, int, int | None]] = []
    work = Threads(2, lambda *now: calls.append(now)).map(abs, range(100), "counting", done=50)
    assert len(list(work)) == 100
    assert {(activity, total) for activity, _, total in calls} == {("counting", 150)}
    counts = [done for _, done, _ in calls]
    assert counts == sorted(counts)
    assert counts[-1] == 150


def test_an_error_stops_the_work() -> None:
    started: list[int] = []
    is_raised = threading.Event()

    def work(index: int) -> int:
        started.append(index)
        if index == 0:
            raise ValueError("image 0")
        is_raised.wait(60)
        return index

    with pytest.raises(ValueError, match="image 0"):
        list(Threads(1).map(work, range(100_000), "failing"))
    is_raised.set()
    # The task that was running when the error was raised finishes its 64 calls.
    assert len(started) <= 1 + 64


def test_two_threads_work_concurrently() -> None:
    barrier = threading.Barrier(2)
    # The first index of each of two tasks of 64 waits for the other; with one thread, the barrier would break.
    waits = Threads(2).map(lambda index: index % 64 == 0 and barrier.wait(60), range(128), "waiting")
    assert sum(waits) == 1


def test_without_workers_there_is_one_thread() -> None:
    assert sum(Threads(0).map(abs, range(10), "counting")) == 45


def test_no_thread_is_started_for_no_images() -> None:
    assert list(Threads(2).map(abs, [], "nothing")) == []
