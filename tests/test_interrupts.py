import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tl_cli import interrupts
from tl_cli.errors import Interrupted
from tl_cli.interrupts import held


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {name: signal.getsignal(getattr(signal, name)) for name in interrupts.NAMES}
    monkeypatch.setattr(interrupts, "_signalled_at", -1.0)
    monkeypatch.setattr(interrupts, "_waiting", None)
    interrupts.listen()
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_raised_at_once_where_nothing_is_held(signum: int, code: int) -> None:
    with pytest.raises(Interrupted) as stopped:
        send(signum)
    assert stopped.value.exit_code == code


def test_a_signal_waits_for_the_end_of_what_must_be_done_whole() -> None:
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
        # A moment later; at once it would be a double press.
        monkeypatch.setattr(interrupts, "_signalled_at", interrupts._signalled_at - 2)
        send(signal.SIGINT)
        done.append("never")
    assert done == []


def test_a_signal_that_a_library_swallows_is_not_forgotten() -> None:
    assert interrupts.raised() is None
    with suppress(Interrupted):
        send(signal.SIGTERM)
    assert str(interrupts.raised()) == "SIGTERM"


def test_a_double_press_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    with pytest.raises(Interrupted), held():  # noqa: PT012
        send(signal.SIGINT)
        send(signal.SIGINT)
        done.append("rest")
    assert done == ["rest"]


def test_signals_disturb_nothing_once_they_are_ignored() -> None:
    interrupts.ignore()
    survived = []
    for name in interrupts.NAMES:
        send(getattr(signal, name))
        survived.append(name)
    assert survived == list(interrupts.NAMES)
