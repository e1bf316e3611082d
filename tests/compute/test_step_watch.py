"""Threads follow the time of the steps, on made-up machines whose steps take as long as the test says."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch

from tl_cli.compute import step_watch
from tl_cli.compute.device import cores
from tl_cli.compute.step_watch import StepWatch, _Idle


class Workplace:
    """A machine with a clock: the seconds of a step are a function of the step and of the threads.

    Attributes:
        threads: in use after each step.
        messages: with the number of their step.
    """

    def __init__(self, seconds: Callable[[int, int], float], threads: int = 2, most: int = 2) -> None:
        self._seconds = seconds
        self._now = 0.0
        self.idle = 2.0
        self.current = threads
        self.threads: list[int] = []
        self.messages: list[tuple[int, str]] = []
        self.watch = StepWatch(threads, most, self.use, lambda: self.idle, lambda: self._now)

    def use(self, threads: int) -> None:
        self.current = threads

    def run(self, steps: int) -> "Workplace":
        for _ in range(steps):
            seconds = self._seconds(len(self.threads), self.current)
            self._now += seconds
            message = self.watch.after_step(seconds)
            self.threads.append(self.current)
            if message:
                self.messages.append((len(self.threads), message))
        return self

    @property
    def changes(self) -> int:
        return sum(one != other for one, other in pairwise(self.threads))


def loaded(start: int, end: int) -> Callable[[int, int], float]:
    """Return the seconds per step seen on two cores, of which another program uses one between two steps."""

    def seconds(step: int, threads: int) -> float:
        is_busy = start <= step < end
        return {1: 0.57, 2: 2.40 if is_busy else 0.40}[threads]

    return seconds


def test_steps_of_varying_length_change_nothing() -> None:
    random = np.random.default_rng(0)
    place = Workplace(lambda step, threads: 0.4 * random.lognormal(0, 0.3)).run(2000)
    assert (place.changes, place.messages) == (0, [])


def test_a_single_slow_step_changes_nothing() -> None:
    assert Workplace(lambda step, threads: 30.0 if step % 50 == 0 else 0.4).run(500).changes == 0


def test_one_thread_is_taken_while_another_program_runs_and_two_after_it() -> None:
    place = Workplace(loaded(100, 400))
    place.idle = 1.0
    place.run(400)
    # Half of the last eight steps are slow, then the trial.
    assert place.threads[:100] == [2] * 100
    assert place.threads[112:] == [1] * 288
    place.idle = 2.0
    place.run(200)
    assert place.threads[-100:] == [2] * 100
    (first, taken), (_, given_back) = place.messages
    assert 104 <= first <= 112
    assert "a step takes 6.0 times as long as before; 1 thread instead of 2: 4.2 times as fast" in taken
    assert given_back == "other programs have ended: 2 threads again, 1.4 times as fast"


def test_threads_are_not_taken_back_while_cores_are_busy() -> None:
    place = Workplace(loaded(100, 10_000))
    place.idle = 1.2
    assert place.run(2000).changes == 1


def test_a_trial_without_a_gain_is_undone_and_repeated_less_and_less_often() -> None:
    """All steps take three times as long from step 50 on, with one thread as with two: a slower disk, or more heat."""
    place = Workplace(lambda step, threads: 0.4 if step < 50 else 1.2).run(600)
    # A trial takes four steps, a new median seven more; the next trial comes after 50 steps, then after 100, 200.
    starts = [step for step, (one, other) in enumerate(pairwise(place.threads)) if (one, other) == (2, 1)]
    assert [later - earlier for earlier, later in pairwise(starts)] == [4 + 7 + 50, 4 + 7 + 100, 4 + 7 + 200]
    assert place.threads.count(1) == 4 * len(starts)
    assert len(place.messages) == len(starts)
    assert "3.0 times as long as before; 1 thread instead of 2 did not help" in place.messages[0][1]


@pytest.mark.parametrize(("threads", "seconds"), [(1, 0.4), (2, 0.004)])
def test_one_thread_and_short_steps_stay(threads: int, seconds: float) -> None:
    place = Workplace(lambda step, using: seconds if step < 50 else 5 * seconds, threads, threads).run(300)
    assert place.changes == 0


def test_of_four_threads_two_are_tried_first() -> None:
    place = Workplace(lambda step, threads: 0.1 * (8 if step >= 40 and threads == 4 else 4 / threads), 4, 4)
    place.idle = 0.0
    place.run(200)
    assert (place.threads[-1], place.changes) == (2, 1)


def test_a_phase_that_begins_with_fewer_threads_may_take_them_all() -> None:
    assert Workplace(loaded(0, 0), threads=1).run(200).threads[-1] == 2


def test_the_threads_are_torchs_and_other_programs_are_told_from_this_one() -> None:
    before = torch.get_num_threads()
    try:
        watch = StepWatch(2, 2, idle=lambda: 0.0)
        torch.set_num_threads(2)
        for seconds in [0.4] * 20 + [2.4] * 5 + [0.5] * 4:
            watch.after_step(seconds)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_own_load_leaves_cores_idle_and_that_of_others_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 10 seconds, cores were idle for a total of 6 seconds and this process used 8: 1.4 cores are free for it."""
    now = [100.0, 50.0, 3.0]
    monkeypatch.setattr(_Idle, "_seconds", lambda self: tuple(now))
    monkeypatch.setattr(step_watch, "cores", lambda: 4)
    idle = _Idle()
    now[:] = [110.0, 56.0, 11.0]
    assert idle() == pytest.approx(1.4)
    now[:] = [120.0, 156.0, 11.0]
    assert idle() == 4


def test_the_seconds_are_those_of_the_system() -> None:
    (started, _, own), idle = _Idle()._seen, _Idle()
    while psutil.Process().cpu_times().user < own + 0.3:
        sum(range(10_000))
    now, _, used = idle._seconds()
    assert 0.3 <= used - own <= (now - started) * cores() + 0.2
    assert 0 < idle() <= cores()
