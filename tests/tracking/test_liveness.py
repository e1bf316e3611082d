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


def on_another_machine(**tags: str) -> dict[str, str]:
    return {**process_tags(), PROCESS_TAG: "other/boot 17 123", HOST_TAG: "other", **tags}


@pytest.fixture
def sleeping_process():
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


def test_a_killed_process_is_dead_immediately_even_as_a_zombie(sleeping_process) -> None:
    tags = tags_of(sleeping_process.pid)
    assert _state_of(tags, NOW) == "alive"
    os.kill(sleeping_process.pid, signal.SIGSTOP)
    assert _state_of(tags, NOW) == "alive", "stopped is not dead"
    os.kill(sleeping_process.pid, signal.SIGKILL)
    # It is a zombie until its parent waits for it.
    wait_for(lambda: _state_of(tags, NOW) == "dead", "the end of the process")
    sleeping_process.wait()
    assert _state_of(tags, NOW) == "dead"


def test_another_process_with_the_same_pid_is_not_the_run() -> None:
    machine, pid, began = process_tags()[PROCESS_TAG].split(" ")
    assert _state_of({PROCESS_TAG: f"{machine} {pid} {int(float(began)) + 1}"}, NOW) == "dead"


@pytest.mark.parametrize(
    ("ago", "state"), [(0, "alive"), (60, "alive"), (599, "alive"), (601, "silent"), (86400, "silent")]
)
def test_a_run_on_another_machine_is_silent_after_missing_heartbeats(ago: float, state: str) -> None:
    assert _state_of(on_another_machine(**{HEARTBEAT_TAG: f"{NOW - ago:.0f}"}), NOW) == state


@pytest.mark.parametrize("tags", [{}, {PROCESS_TAG: "nonsense"}, {HOST_TAG: "other", PID_TAG: "17"}])
def test_a_run_without_liveness_tags_is_unknown(tags: dict[str, str]) -> None:
    assert _state_of(tags, NOW) == "unknown"


@pytest.mark.parametrize("beat", [{}, {HEARTBEAT_TAG: "soon"}])
def test_a_run_on_another_machine_without_heartbeats_is_silent_some_time_after_its_start(beat: dict[str, str]) -> None:
    assert state_of(on_another_machine(**beat), NOW - 60, NOW) == "alive"
    assert state_of(on_another_machine(**beat), NOW - 3600, NOW) == "silent"


def test_a_run_from_before_a_reboot_is_dead() -> None:
    machine, pid, began = process_tags()[PROCESS_TAG].split(" ")
    parts = machine.split("/")
    if len(parts) < 2:
        pytest.skip("this machine does not say when it was started")
    tags = {PROCESS_TAG: f"{parts[0]}/another-boot/{parts[-1]} {pid} {began}"}
    assert _state_of({**tags, HEARTBEAT_TAG: str(NOW)}, NOW) == "alive", "another host of this name may run it"
    assert _state_of({**tags, HEARTBEAT_TAG: str(NOW - 3600)}, NOW) == "dead"


def test_a_run_of_an_earlier_version_is_identified_by_its_pid(sleeping_process) -> None:
    tags = {HOST_TAG: process_tags()[HOST_TAG], PID_TAG: str(sleeping_process.pid)}
    assert _state_of(tags, NOW) == "alive"
    sleeping_process.kill()
    sleeping_process.wait()
    assert _state_of(tags, NOW) == "dead"
    assert _state_of({**tags, HOST_TAG: "other"}, NOW) == "unknown"
    assert _state_of({**tags, PID_TAG: "9" * 30}, NOW) == "dead"


def test_pauses_add_up() -> None:
    once = add_pause({}, 100, 200)
    twice = add_pause(once, 500, 400)
    assert read_pauses(twice) == [(100, 200), (500, 500)]
    assert read_pauses({next(iter(once)): "rubbish"}) == []
