import os
import signal
import subprocess
import sys

import pytest

from tests.support.processes import wait_for
from tl_cli.tracking import liveness
from tl_cli.tracking.liveness import (
    HEARTBEAT_TAG,
    HOST_TAG,
    PID_TAG,
    PROCESS_TAG,
    add_pause,
    process_tags,
    read_pauses,
    state_of,
)

NOW = 1_800_000_000.0


def _state_of(tags: dict[str, str], now: float) -> str:
    return state_of(tags, now - 86400, now)


def elsewhere(**tags: str) -> dict[str, str]:
    return {**process_tags(), PROCESS_TAG: "other/boot 17 123", HOST_TAG: "other", **tags}


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(36000)"])
    yield process
    process.kill()
    process.wait()


def tags_of(pid: int) -> dict[str, str]:
    machine, _, _ = process_tags()[PROCESS_TAG].split(" ")
    return {PROCESS_TAG: f"{machine} {pid} {liveness._start_time(pid)}"}


def test_this_process_is_alive_without_any_heartbeat() -> None:
    assert _state_of(process_tags(), NOW) == "alive"
    assert _state_of({**process_tags(), HEARTBEAT_TAG: "0"}, NOW) == "alive"


def test_a_killed_process_is_dead_at_once_and_so_is_one_that_nobody_waited_for(sleeper) -> None:
    tags = tags_of(sleeper.pid)
    assert _state_of(tags, NOW) == "alive"
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert _state_of(tags, NOW) == "alive", "stopped is not dead"
    os.kill(sleeper.pid, signal.SIGKILL)
    # It has ended, and waits for its parent.
    wait_for(lambda: _state_of(tags, NOW) == "dead", "the end of the process")
    sleeper.wait()
    assert _state_of(tags, NOW) == "dead"


def test_another_process_of_the_same_number_is_not_the_run() -> None:
    machine, pid, began = process_tags()[PROCESS_TAG].split(" ")
    assert _state_of({PROCESS_TAG: f"{machine} {pid} {int(float(began)) + 1}"}, NOW) == "dead"


@pytest.mark.parametrize(
    ("ago", "state"), [(0, "alive"), (60, "alive"), (599, "alive"), (601, "silent"), (86400, "silent")]
)
def test_a_run_elsewhere_is_silent_when_it_has_not_been_heard_of(ago: float, state: str) -> None:
    assert _state_of(elsewhere(**{HEARTBEAT_TAG: f"{NOW - ago:.0f}"}), NOW) == state


@pytest.mark.parametrize("tags", [{}, {PROCESS_TAG: "nonsense"}, {HOST_TAG: "other", PID_TAG: "17"}])
def test_what_cannot_be_told_is_said_to_be_unknown(tags: dict[str, str]) -> None:
    assert _state_of(tags, NOW) == "unknown"


@pytest.mark.parametrize("beat", [{}, {HEARTBEAT_TAG: "soon"}])
def test_a_run_elsewhere_that_never_beat_is_silent_some_time_after_its_beginning(beat: dict[str, str]) -> None:
    assert state_of(elsewhere(**beat), NOW - 60, NOW) == "alive"
    assert state_of(elsewhere(**beat), NOW - 3600, NOW) == "silent"


def test_what_ran_before_this_machine_was_started_again_is_dead() -> None:
    machine, pid, began = process_tags()[PROCESS_TAG].split(" ")
    parts = machine.split("/")
    if len(parts) < 2:
        pytest.skip("this machine does not say when it was started")
    tags = {PROCESS_TAG: f"{parts[0]}/another-boot/{parts[-1]} {pid} {began}"}
    assert _state_of({**tags, HEARTBEAT_TAG: str(NOW)}, NOW) == "alive", "a namesake may be alive elsewhere"
    assert _state_of({**tags, HEARTBEAT_TAG: str(NOW - 3600)}, NOW) == "dead"


def test_a_run_of_an_earlier_version_is_known_by_its_number(sleeper) -> None:
    tags = {HOST_TAG: process_tags()[HOST_TAG], PID_TAG: str(sleeper.pid)}
    assert _state_of(tags, NOW) == "alive"
    sleeper.kill()
    sleeper.wait()
    assert _state_of(tags, NOW) == "dead"
    assert _state_of({**tags, HOST_TAG: "other"}, NOW) == "unknown"
    assert _state_of({**tags, PID_TAG: "9" * 30}, NOW) == "dead"


def test_pauses_add_up() -> None:
    once = add_pause({}, 100, 200)
    twice = add_pause(once, 500, 400)
    assert read_pauses(twice) == [(100, 200), (500, 500)]
    assert read_pauses({next(iter(once)): "rubbish"}) == []
