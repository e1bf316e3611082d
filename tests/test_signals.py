"""Signals to a process of tl, wherever it is: what is done is kept, how it ended is recorded, and the shell is told."""

import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.support.processes import said_by, start_in, tl_process, wait_for
from tests.support.quick_run import TRAIN
from tl_cli.models.bundle import read_card
from tl_cli.training.state import checkpoints, read_checkpoint

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
STOPPED = {
    signal.SIGINT: "stopped (Ctrl-C)\n",
    signal.SIGTERM: "stopped (SIGTERM)\n",
    signal.SIGHUP: "stopped (SIGHUP)\n",
}


def send_at(place: str, signum: int) -> None:
    """Let this process send itself a signal, once, at that place; it notes after how many steps."""
    from tl_cli.data.images import FileImages
    from tl_cli.training import events, state
    from tl_cli.training.events import Event, StepEnded, Worked

    steps = 0
    sent = False

    def send() -> None:
        nonlocal sent
        if not sent:
            sent = True
            Path("sent").write_text(str(steps))
            os.kill(os.getpid(), signum)

    def watch(event: Event) -> None:
        nonlocal steps
        if isinstance(event, StepEnded):
            steps = event.step
            if place == "training" and steps == 8:
                send()
        elif isinstance(event, Worked) and (event.activity, place) in (
            ("caching features", "caching"), ("validating", "validating")
        ):  # fmt: skip
            send()

    def before(name: str, module: object, wanted: Callable[[], bool]) -> None:
        real = getattr(module, name)

        def instead(*arguments: object, **options: object) -> object:
            if wanted():
                send()
            return real(*arguments, **options)

        setattr(module, name, instead)

    tell = events.notify_all
    events.notify_all = lambda *observers: tell(watch, *observers)
    if place == "scanning":
        before("open", FileImages, lambda: True)
    elif place == "saving":
        before("to_bytes", state.TrainState, lambda: steps == 5)


@pytest.mark.slow
@pytest.mark.parametrize("signum", CODES, ids=lambda signum: signum.name)
@pytest.mark.parametrize("place", ["scanning", "caching", "training", "validating", "saving"])
def test_a_signal_is_heeded_within_a_step(
    place: str, signum: signal.Signals, tmp_path: Path, ready_database: Path, odd_pictures: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, said = said_by(tmp_path, *TRAIN, "--data", str(odd_pictures), prepare=partial(send_at, place, signum))
    assert code == CODES[signum], said
    assert said.endswith(STOPPED[signum])
    assert "error:" not in said
    assert "Traceback" not in said
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        recorded = database.execute("select status from runs").fetchall()
    if place == "scanning":
        assert recorded == []
        return
    assert recorded == [("KILLED",)]
    (state,) = tmp_path.glob("mlruns/*/*/state")
    saved = read_checkpoint(checkpoints(state)[0].read_bytes())
    steps = saved["counters"]["step"] + (saved["partial"]["steps"] if saved["partial"] else 0)
    assert steps == int((tmp_path / "sent").read_text())
    if signum is signal.SIGINT:
        code, said = said_by(tmp_path, "train", "--resume", "latest")
        assert code == 0, said


@pytest.mark.slow
def test_a_batch_script_that_requeues_finds_the_step_saved(tmp_path: Path, ready_database: Path, colours: Path) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, said = said_by(tmp_path, *TRAIN, "--data", colours, prepare=partial(send_at, "training", signal.SIGUSR1))
    assert code == 128 + signal.SIGUSR1, said
    assert "step 8 is saved; resume with: tl train --resume" in said
    (state,) = tmp_path.glob("mlruns/*/*/state")
    saved = read_checkpoint(checkpoints(state)[0].read_bytes())
    assert saved["counters"]["step"] + saved["partial"]["steps"] == 8
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("select status from runs").fetchall() == [("KILLED",)]


def ignore_then_send(signum: int) -> None:
    """Be started as ``nohup`` (SIGHUP) or a script's ``&`` (SIGINT) starts a command, and get the signal all the same."""
    signal.signal(signum, signal.SIG_IGN)
    send_at("training", signum)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT], ids=lambda signum: signum.name)
def test_a_training_that_was_started_to_ignore_a_signal_goes_on(
    signum: signal.Signals, tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, said = said_by(tmp_path, *TRAIN, "--data", colours, prepare=partial(ignore_then_send, signum))
    assert code == 0, said
    assert (tmp_path / "sent").read_text() == "8"
    assert "epoch 4/4" in said


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["hangs up", "is closed"])
def test_a_training_is_kept_when_its_terminal_goes_away(
    ending: str, tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    screen, terminal = pty.openpty()
    sends = partial(send_at, "training", signal.SIGHUP) if ending == "hangs up" else None
    process = tl_process(
        *TRAIN, "--data", colours, cwd=tmp_path, stdout=terminal, stderr=terminal, prepare=sends, TERM="xterm"
    )
    os.close(terminal)
    # The full screen is open.
    seen = b""
    while b"\x1b[?1049h" not in seen:
        seen += os.read(screen, 4096)
    os.close(screen)
    process.join()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        statuses = database.execute("select status from runs").fetchall()
        (last,) = database.execute("select max(step) from metrics where key = 'val/accuracy'").fetchone()
    if ending == "hangs up":
        (state,) = tmp_path.glob("mlruns/*/*/state")
        saved = read_checkpoint(checkpoints(state)[0].read_bytes())
        steps = saved["counters"]["step"] + (saved["partial"]["steps"] if saved["partial"] else 0)
        assert (process.exitcode, statuses, steps) == (129, [("KILLED",)], 8)
    else:
        assert (statuses, last) == ([("FINISHED",)], 24)


def stop_after_the_end(place: str) -> None:
    """Let Ctrl-C come once all is trained: as it is recorded, or as the result is shown."""
    from tl_cli.tracking.recorder import Recorder
    from tl_cli.ui.terminal import training_observer

    module, name = (Recorder, "log_end") if place == "recording" else (training_observer, "print_next")
    real = getattr(module, name)

    def send(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(*arguments)

    setattr(module, name, send)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["recording", "showing"])
def test_ctrl_c_after_the_training_says_what_is_recorded(
    place: str, tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, said = said_by(tmp_path, *TRAIN, "--data", colours, prepare=partial(stop_after_the_end, place))
    assert code == 130, said
    assert said.endswith("stopped (Ctrl-C)\n")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        ((run_id, status),) = database.execute("select run_uuid, status from runs").fetchall()
    if place == "recording":
        assert status == "KILLED"
        assert f"step 24 is saved; resume with: tl train --resume {run_id[:8]}" in said
        code, said = said_by(tmp_path, "train", "--resume", "latest")
        assert code == 0, said
    else:
        assert status == "FINISHED"
        assert "test accuracy" in said
        assert f"run {run_id[:8]} is complete and recorded, with its model; see: tl eval {run_id[:8]}" in said


@pytest.mark.parametrize("signum", CODES, ids=lambda signum: signum.name)
def test_looking_at_a_data_set_is_stopped_at_once(signum: signal.Signals, tmp_path: Path, odd_pictures: Path) -> None:
    code, said = said_by(
        tmp_path, "data", "check", str(odd_pictures), "--no-labels", prepare=partial(look_then_send, signum)
    )
    assert code == CODES[signum], said
    assert said == STOPPED[signum]


def look_then_send(signum: int) -> None:
    from tl_cli.data import checks

    look = checks.examine_file

    def instead(path: str, *how: object) -> object:
        if path.endswith("green/0.png"):
            os.kill(os.getpid(), signum)
        return look(path, *how)

    checks.examine_file = instead


def swallow(signum: int) -> None:
    """Let a signal come in a library that makes an error of its own of everything."""
    from tl_cli.data import checks

    def instead(path: str, *how: object) -> object:
        try:
            os.kill(os.getpid(), signum)
        except BaseException as error:
            raise TypeError(f"it said {error}") from error

    checks.examine_file = instead


def test_a_signal_is_no_other_error(tmp_path: Path, odd_pictures: Path) -> None:
    code, said = said_by(
        tmp_path, "data", "check", odd_pictures, "--workers", "0", prepare=partial(swallow, signal.SIGTERM)
    )
    assert (code, said.strip()) == (143, "stopped (SIGTERM)")


def test_a_signal_while_the_program_is_being_imported_is_heeded() -> None:
    early = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # parallel tests are started to ignore it
class Sender:
    def find_spec(self, name, *_):
        if name == "tl_cli.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Sender())
from tl_cli.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped (Ctrl-C)\n")


def hang_in(place: str) -> None:
    """Let a step, or the last record of a run that was stopped, never end."""
    from tl_cli.tracking.recorder import Recorder
    from tl_cli.training import fit

    def hang(*arguments: object, **options: object) -> None:
        Path("hangs").touch()
        while True:
            time.sleep(600)

    if place == "a step":
        fit.train_step = hang
    else:
        send_at("training", signal.SIGINT)
        Recorder.log_unfinished = hang


@pytest.mark.slow
@pytest.mark.parametrize("place", ["a step", "the last record"])
def test_a_second_ctrl_c_leaves_at_once(place: str, tmp_path: Path, ready_database: Path, colours: Path) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    process = start_in(tmp_path, *TRAIN, "--data", colours, prepare=partial(hang_in, place))
    wait_for(lambda: not process.is_alive() or (tmp_path / "hangs").exists(), "the hanging")
    if place == "a step":
        os.kill(process.pid, signal.SIGINT)
        process.join(1.3)
    assert process.is_alive()
    # Presses that come within a second of each other are one; a process that gets no time may see them so.
    while process.is_alive():
        os.kill(process.pid, signal.SIGINT)
        process.join(1.3)
    told = (tmp_path / "said").read_text()
    assert process.exitcode == 130, told
    assert "Traceback" not in told


def stop_again_in(place: str) -> None:
    """Let Ctrl-C come as a run is taken up, or once more as the record of one that was stopped is closed."""
    from tl_cli.tracking.journal import Ending, Journal
    from tl_cli.tracking.recorder import Recorder

    if place == "taking up":
        Recorder._load_recorded = lambda recorder: os.kill(os.getpid(), signal.SIGINT)
        return
    send_at("training", signal.SIGINT)

    def stop(journal: Journal, ending: Ending) -> None:
        time.sleep(1.2)
        os.kill(os.getpid(), signal.SIGINT)

    Journal.end = stop


@pytest.mark.slow
@pytest.mark.parametrize("place", ["taking up", "closing"])
def test_a_run_whose_record_was_not_closed_can_go_on(
    place: str, tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, said = said_by(
        tmp_path,
        *TRAIN,
        "--data",
        colours,
        prepare=partial(send_at, "training", signal.SIGINT) if place == "taking up" else partial(stop_again_in, place),
    )
    assert code == 130, said
    if place == "taking up":
        code, said = said_by(tmp_path, "train", "--resume", "latest", prepare=partial(stop_again_in, place))
        assert code == 130, said
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("select status from runs").fetchall() == [("KILLED",)]
    code, said = said_by(tmp_path, "train", "--resume", "latest")
    assert code == 0, said
    assert "test accuracy" in said


def stop_twice_while_saving(best: int) -> None:
    """Let each epoch be the best, the saving of the ``best``-th take long, and Ctrl-C come twice meanwhile."""
    from tl_cli.models import bundle
    from tl_cli.training.state import Counters

    Counters.is_better = lambda *arguments: True
    save, times = bundle.save, 0

    def slow(*arguments: object) -> object:
        nonlocal times
        times += 1
        if times == best:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1.2)
        return save(*arguments)

    bundle.save = slow


@pytest.mark.slow
@pytest.mark.parametrize("best", [1, 2])
def test_no_checkpoint_names_a_best_model_that_was_never_saved(
    best: int, tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, said = said_by(tmp_path, *TRAIN, "--data", colours, prepare=partial(stop_twice_while_saving, best))
    assert code == 130, said
    assert ("kept the best model" in said) is (best > 1)
    code, said = said_by(tmp_path, "train", "--resume", "latest")
    assert code == 0, said
    (state,) = tmp_path.glob("mlruns/*/*/state")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        # Of a figure that was recorded twice the later one counts.
        query = "select value from latest_metrics where key = 'best/epoch'"
        assert [(read_card(state / "best").epoch,)] == database.execute(query).fetchall()
