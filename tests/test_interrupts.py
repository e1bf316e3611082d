import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tl_cli import interrupts
from tl_cli.errors import Interrupted
from tl_cli.interrupts import held

# Exit codes of a shell for processes ended by these signals: 128 plus the signal's number (10 for SIGUSR1 on Linux).
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 128 + signal.SIGUSR1)]


@pytest.fixture(autouse=True)
def signal_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in interrupts.known()}
    for signum in before:
        signal.signal(signum, signal.SIG_DFL)
    monkeypatch.setattr(interrupts, "_handled", set())
    monkeypatch.setattr(interrupts, "_signalled_at", -1.0)
    monkeypatch.setattr(interrupts, "_waiting", None)
    interrupts.listen()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), CODES)
def test_a_signal_is_raised_immediately_outside_a_critical_section(signum: int, code: int) -> None:
    with pytest.raises(Interrupted) as stopped:
        send(signum)
    assert stopped.value.exit_code == code


def test_a_signal_waits_for_the_end_of_a_critical_section() -> None:
    done = []
    with pytest.raises(Interrupted), held(), held():  # noqa: PT012
        send(signal.SIGTERM)
        done.append("rest")
    assert done == ["rest"]
    with held():
        done.append("nothing is left over")


def test_a_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    with pytest.raises(Interrupted), held():  # noqa: PT012
        send(signal.SIGINT)
        # A moment later; without the pause it would count as a double press.
        monkeypatch.setattr(interrupts, "_signalled_at", interrupts._signalled_at - 2)
        send(signal.SIGINT)
        done.append("never")
    assert done == []


def test_a_signal_that_a_library_swallows_is_raised_later() -> None:
    assert interrupts.raised() is None
    with suppress(Interrupted):
        send(signal.SIGTERM)
    assert str(interrupts.raised()) == "SIGTERM"


def test_a_double_ctrl_c_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    with pytest.raises(Interrupted), held():  # noqa: PT012
        send(signal.SIGINT)
        send(signal.SIGINT)
        done.append("rest")
    assert done == ["rest"]


def test_ignored_signals_have_no_effect() -> None:
    interrupts.ignore()
    survived = []
    for signum, _ in CODES:
        send(signum)
        survived.append(signum)
    assert len(survived) == len(CODES)


@pytest.mark.parametrize("signum", [signum for signum, _ in CODES])
def test_signals_ignored_at_the_start_stay_ignored(signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_handled", set())
    signal.signal(signum, signal.SIG_IGN)
    interrupts.listen()
    send(signum)
    other = next(other for other, _ in CODES if other != signum)
    with pytest.raises(Interrupted):
        send(other)


def test_a_second_command_in_a_process_handles_signals_again() -> None:
    interrupts.ignore()
    interrupts.listen()
    with pytest.raises(Interrupted):
        send(signal.SIGHUP)
