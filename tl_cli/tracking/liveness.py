"""Whether a run recorded as running still runs (a killed process cannot record its end), and when it was paused."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import psutil

HOST_TAG, PID_TAG = "tl.host", "tl.pid"
# MLflow hides tags with this prefix.
PROCESS_TAG = "mlflow.tl.process"
HEARTBEAT_TAG = "mlflow.tl.heartbeat"  # seconds since 1970
BEAT_EVERY_S = 30.0
# When the run was stopped and resumed, in milliseconds since 1970: FROM-TO,FROM-TO.
PAUSES_TAG = "mlflow.tl.pauses"
# The clocks of two machines differ, and a server may not respond for a while.
_SILENT_AFTER_S = 600.0


def process_tags() -> dict[str, str]:
    """Return tags that identify this process among all processes, on this machine and others."""
    pid = os.getpid()
    return {
        HOST_TAG: socket.gethostname(),
        PID_TAG: str(pid),
        PROCESS_TAG: f"{_machine()} {pid} {_start_time(pid)}",
    }


State = Literal["alive", "dead", "silent", "unknown"]


def state_of(tags: Mapping[str, str], started: float, now: float) -> State:
    """Return the state of the process that wrote these tags.

    ``dead``: it has certainly ended; ``silent``: it ran on another machine and sent no recent heartbeat; ``unknown``:
    too little is recorded.

    Args:
        started: when the run began, in seconds since 1970.
        now: the current time, in seconds since 1970.
    """
    process = tags.get(PROCESS_TAG, "").split(" ")
    if len(process) == 3:
        machine, pid, start_time = process
        if machine == _machine():
            return "alive" if pid.isdecimal() and _start_time(int(pid)) == start_time else "dead"
        heartbeat = started
        with suppress(ValueError):
            heartbeat = float(tags.get(HEARTBEAT_TAG, ""))
        if now - heartbeat <= _SILENT_AFTER_S:
            return "alive"
        # No process survives a restart of its machine.
        this, other = _machine().split("/"), machine.split("/")
        return "dead" if this[0] == other[0] and this[1:2] != other[1:2] else "silent"
    # An earlier version recorded no start time of the process: another process may have its id now.
    pid = tags.get(PID_TAG, "")
    if tags.get(HOST_TAG) != socket.gethostname() or not pid.isdecimal():
        return "unknown"
    with suppress(OverflowError):  # no process has such an id
        return "alive" if psutil.pid_exists(int(pid)) else "dead"
    return "dead"


def read_pauses(tags: Mapping[str, str]) -> list[tuple[int, int]]:
    """Return the start and end of each pause of a run, in milliseconds since 1970."""
    with suppress(ValueError):
        pairs = [pause.split("-") for pause in tags.get(PAUSES_TAG, "").split(",") if pause]
        return [(int(start), int(end)) for start, end in pairs]
    return []


def add_pause(tags: Mapping[str, str], start: int, end: int) -> dict[str, str]:
    """Return the tag of a run that is resumed after another pause, in milliseconds since 1970."""
    pauses = [*read_pauses(tags), (start, max(start, end))]
    return {PAUSES_TAG: ",".join(f"{stopped}-{resumed}" for stopped, resumed in pauses)}


@cache
def _machine() -> str:
    """Return an identifier of this machine, its last start and its process namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    # Two containers may have the same host name, and each numbers its processes from 1.
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 (a number in brackets, no path)
    return "/".join(parts).replace(" ", "_")


def _start_time(pid: int) -> str:
    """Return when a process started, or "" if there is none: process ids are reused."""
    with suppress(OSError):
        # In ticks since the machine started, so clock corrections do not matter; the name may contain brackets.
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        # A zombie no longer runs.
        return "" if state in (b"Z", b"X") else fields[18].decode()
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""
