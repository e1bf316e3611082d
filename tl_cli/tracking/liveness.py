"""Whether a run that is recorded as running still is, as a killed process cannot say so itself; and when it was."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import psutil

HOST_TAG, PID_TAG = "tl.host", "tl.pid"
# MLflow shows no tag that begins so.
PROCESS_TAG = "mlflow.tl.process"
HEARTBEAT_TAG = "mlflow.tl.heartbeat"  # seconds since 1970
BEAT_EVERY_S = 30.0
# When it was stopped before it went on: milliseconds since 1970, FROM-TO,FROM-TO.
PAUSES_TAG = "mlflow.tl.pauses"
# Clocks of two machines differ, and a server may be away for a while.
_SILENT_AFTER_S = 600.0


def identity() -> dict[str, str]:
    """Return the tags by which this process can be told from any other, on this machine and elsewhere."""
    pid = os.getpid()
    return {
        HOST_TAG: socket.gethostname(),
        PID_TAG: str(pid),
        PROCESS_TAG: f"{_machine()} {pid} {_began(pid)}",
    }


State = Literal["alive", "dead", "silent", "unknown"]


def state_of(tags: Mapping[str, str], started: float, now: float) -> State:
    """Return what has become of the process that wrote these tags.

    ``dead`` is known; ``silent`` is a process elsewhere that has not been heard of; ``unknown`` has left no trace by
    which it could be told.

    Args:
        started: when the run began, seconds since 1970.
        now: the same.
    """
    process = tags.get(PROCESS_TAG, "").split(" ")
    if len(process) == 3:
        machine, pid, began = process
        if machine == _machine():
            return "alive" if pid.isdecimal() and _began(int(pid)) == began else "dead"
        heard = started
        with suppress(ValueError):
            heard = float(tags.get(HEARTBEAT_TAG, ""))
        if now - heard <= _SILENT_AFTER_S:
            return "alive"
        # Of a machine that has been started again since, nothing of before is left.
        here, there = _machine().split("/"), machine.split("/")
        return "dead" if here[0] == there[0] and here[1:2] != there[1:2] else "silent"
    # A run of an earlier tl. Its number may be another process by now, and then it passes for alive.
    pid = tags.get(PID_TAG, "")
    if tags.get(HOST_TAG) != socket.gethostname() or not pid.isdecimal():
        return "unknown"
    with suppress(OverflowError):  # no process has such a number
        return "alive" if psutil.pid_exists(int(pid)) else "dead"
    return "dead"


def paused(tags: Mapping[str, str]) -> list[tuple[int, int]]:
    """Return from when until when a run was stopped before it went on, in milliseconds since 1970."""
    with suppress(ValueError):
        pairs = [pause.split("-") for pause in tags.get(PAUSES_TAG, "").split(",") if pause]
        return [(int(start), int(end)) for start, end in pairs]
    return []


def with_pause(tags: Mapping[str, str], start: int, end: int) -> dict[str, str]:
    """Return the tag of a run that goes on after one more pause, in milliseconds since 1970."""
    pauses = [*paused(tags), (start, max(start, end))]
    return {PAUSES_TAG: ",".join(f"{begun}-{over}" for begun, over in pauses)}


@cache
def _machine() -> str:
    """Return what names this start of this machine, and the space in which its process numbers mean something."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    # Two containers with one host name number their processes by themselves.
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 (a number in brackets, no path)
    return "/".join(parts).replace(" ", "_")


def _began(pid: int) -> str:
    """Return when a process began, or nothing where there is none: process numbers are used again."""
    with suppress(OSError):
        # In ticks since the machine started, which no correction of its clock changes; the name may hold anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        # What has ended and waits for its parent to notice runs no more.
        return "" if state in (b"Z", b"X") else fields[18].decode()
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""
