"""Signals at any point of tl: results are saved, the status is recorded, and the exit code is right."""

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

from tests.support.processes import run_in, start_in, tl_process, wait_for
from tests.support.quick_run import TRAIN
from tl_cli.models.bundle import read_card
from tl_cli.training.state import checkpoints, read_checkpoint

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
STOPPED = {
    signal.SIGINT: "stopped (Ctrl-C)\n",
    signal.SIGTERM: "stopped (SIGTERM)\n",
    signal.SIGHUP: "stopped (SIGHUP)\n",
}


def send_at(point: str, signum: int) -> None:
    """Let this process send itself a signal once, at this point, and write the number of steps so far."""
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
            if point == "training" and steps == 8:
                send()
        elif isinstance(event, Worked) and (event.activity, point) in (
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
    if point == "scanning":
        before("open", FileImages, lambda: True)
    elif point == "saving":
        before("to_bytes", state.TrainState, lambda: steps == 5)


@pytest.mark.slow
@pytest.mark.parametrize("signum", CODES, ids=lambda signum: signum.name)
@pytest.mark.parametrize("point", ["scanning", "caching", "training", "validating", "saving"])
def test_a_signal_stops_the_run_within_a_step(
    point: str, signum: signal.Signals, tmp_path: Path, ready_database: Path, odd_pictures: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, output = run_in(tmp_path, *TRAIN, "--data", str(odd_pictures), prepare=partial(send_at, point, signum))
    assert code == CODES[signum], output
    assert output.endswith(STOPPED[signum])
    assert "error:" not in output
    assert "Traceback" not in output
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        recorded = database.execute("select status from runs").fetchall()
    if point == "scanning":
        assert recorded == []
        return
    assert recorded == [("KILLED",)]
    (state,) = tmp_path.glob("mlruns/*/*/state")
    saved = read_checkpoint(checkpoints(state)[0].read_bytes())
    steps = saved["counters"]["step"] + (saved["partial"]["steps"] if saved["partial"] else 0)
    assert steps == int((tmp_path / "sent").read_text())
    if signum is signal.SIGINT:
        code, output = run_in(tmp_path, "train", "--resume", "latest")
        assert code == 0, output


@pytest.mark.slow
def test_sigusr1_of_a_batch_scheduler_saves_the_step(tmp_path: Path, ready_database: Path, colours: Path) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, output = run_in(tmp_path, *TRAIN, "--data", colours, prepare=partial(send_at, "training", signal.SIGUSR1))
    assert code == 128 + signal.SIGUSR1, output
    assert "step 8 is saved; resume with: tl train --resume" in output
    (state,) = tmp_path.glob("mlruns/*/*/state")
    saved = read_checkpoint(checkpoints(state)[0].read_bytes())
    assert saved["counters"]["step"] + saved["partial"]["steps"] == 8
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("select status from runs").fetchall() == [("KILLED",)]


def ignore_then_send(signum: int) -> None:
    """Ignore a signal, as under ``nohup`` (SIGHUP) or a script's ``&`` (SIGINT), and then send it."""
    signal.signal(signum, signal.SIG_IGN)
    send_at("training", signum)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT], ids=lambda signum: signum.name)
def test_a_training_that_was_started_with_a_signal_ignored_continues(
    signum: signal.Signals, tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, output = run_in(tmp_path, *TRAIN, "--data", colours, prepare=partial(ignore_then_send, signum))
    assert code == 0, output
    assert (tmp_path / "sent").read_text() == "8"
    assert "epoch 4/4" in output


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["hangs up", "is closed"])
def test_a_training_is_saved_when_its_terminal_closes(
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


def stop_after_the_end(point: str) -> None:
    """Send Ctrl-C after the training, while it is recorded or while the result is shown."""
    from tl_cli.tracking.recorder import Recorder
    from tl_cli.ui.terminal import training_observer

    module, name = (Recorder, "log_end") if point == "recording" else (training_observer, "print_next")
    real = getattr(module, name)

    def send(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(*arguments)

    setattr(module, name, send)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["recording", "showing"])
def test_ctrl_c_after_the_training_reports_what_is_recorded(
    point: str, tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, output = run_in(tmp_path, *TRAIN, "--data", colours, prepare=partial(stop_after_the_end, point))
    assert code == 130, output
    assert output.endswith("stopped (Ctrl-C)\n")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        ((run_id, status),) = database.execute("select run_uuid, status from runs").fetchall()
    if point == "recording":
        assert status == "KILLED"
        assert f"step 24 is saved; resume with: tl train --resume {run_id[:8]}" in output
        code, output = run_in(tmp_path, "train", "--resume", "latest")
        assert code == 0, output
    else:
        assert status == "FINISHED"
        assert "test accuracy" in output
        assert f"run {run_id[:8]} is complete and recorded, with its model; see: tl eval {run_id[:8]}" in output


@pytest.mark.parametrize("signum", CODES, ids=lambda signum: signum.name)
def test_checking_a_data_set_stops_immediately(signum: signal.Signals, tmp_path: Path, odd_pictures: Path) -> None:
    code, output = run_in(
        tmp_path, "data", "check", str(odd_pictures), "--no-labels", prepare=partial(send_while_checking, signum)
    )
    assert code == CODES[signum], output
    assert output == STOPPED[signum]


def send_while_checking(signum: int) -> None:
    from tl_cli.data import checks

    look = checks.examine_file

    def instead(path: str, *how: object) -> object:
        if path.endswith("green/0.png"):
            os.kill(os.getpid(), signum)
        return look(path, *how)

    checks.examine_file = instead


def swallow(signum: int) -> None:
    """Send a signal inside a library that converts every exception to its own error."""
    from tl_cli.data import checks

    def instead(path: str, *how: object) -> object:
        try:
            os.kill(os.getpid(), signum)
        except BaseException as error:
            raise TypeError(f"it said {error}") from error

    checks.examine_file = instead


def test_a_signal_is_not_reported_as_another_error(tmp_path: Path, odd_pictures: Path) -> None:
    code, output = run_in(
        tmp_path, "data", "check", odd_pictures, "--workers", "0", prepare=partial(swallow, signal.SIGTERM)
    )
    assert (code, output.strip()) == (143, "stopped (SIGTERM)")


def test_a_signal_during_imports_stops_the_program() -> None:
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


def hang_in(point: str) -> None:
    """Let a step, or the last write of a stopped run, hang."""
    from tl_cli.tracking.recorder import Recorder
    from tl_cli.training import fit

    def hang(*arguments: object, **options: object) -> None:
        Path("hangs").touch()
        while True:
            time.sleep(600)

    if point == "a step":
        fit.train_step = hang
    else:
        send_at("training", signal.SIGINT)
        Recorder.log_unfinished = hang


@pytest.mark.slow
@pytest.mark.parametrize("point", ["a step", "the last record"])
def test_a_second_ctrl_c_exits_immediately(point: str, tmp_path: Path, ready_database: Path, colours: Path) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    process = start_in(tmp_path, *TRAIN, "--data", colours, prepare=partial(hang_in, point))
    wait_for(lambda: not process.is_alive() or (tmp_path / "hangs").exists(), "the hanging")
    if point == "a step":
        os.kill(process.pid, signal.SIGINT)
        process.join(1.3)
    assert process.is_alive()
    # Presses within a second count as one, and a process that gets no CPU time may receive them so.
    while process.is_alive():
        os.kill(process.pid, signal.SIGINT)
        process.join(1.3)
    output = (tmp_path / "output").read_text()
    assert process.exitcode == 130, output
    assert "Traceback" not in output


def stop_again_in(point: str) -> None:
    """Send Ctrl-C while a run is being resumed, or again while the record of a stopped one is being closed."""
    from tl_cli.tracking.journal import Ending, Journal
    from tl_cli.tracking.recorder import Recorder

    if point == "taking up":
        Recorder._load_recorded = lambda recorder: os.kill(os.getpid(), signal.SIGINT)
        return
    send_at("training", signal.SIGINT)

    def stop(journal: Journal, ending: Ending) -> None:
        time.sleep(1.2)
        os.kill(os.getpid(), signal.SIGINT)

    Journal.end = stop


@pytest.mark.slow
@pytest.mark.parametrize("point", ["taking up", "closing"])
def test_a_run_whose_record_was_not_closed_can_be_resumed(
    point: str, tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, output = run_in(
        tmp_path,
        *TRAIN,
        "--data",
        colours,
        prepare=partial(send_at, "training", signal.SIGINT) if point == "taking up" else partial(stop_again_in, point),
    )
    assert code == 130, output
    if point == "taking up":
        code, output = run_in(tmp_path, "train", "--resume", "latest", prepare=partial(stop_again_in, point))
        assert code == 130, output
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("select status from runs").fetchall() == [("KILLED",)]
    code, output = run_in(tmp_path, "train", "--resume", "latest")
    assert code == 0, output
    assert "test accuracy" in output


def stop_twice_while_saving(best: int) -> None:
    """Let each epoch be the best, let saving the ``best``-th take long, and send Ctrl-C twice meanwhile."""
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
    code, output = run_in(tmp_path, *TRAIN, "--data", colours, prepare=partial(stop_twice_while_saving, best))
    assert code == 130, output
    assert ("kept the best model" in output) is (best > 1)
    code, output = run_in(tmp_path, "train", "--resume", "latest")
    assert code == 0, output
    (state,) = tmp_path.glob("mlruns/*/*/state")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        # If a metric was recorded twice, the later value counts.
        query = "select value from latest_metrics where key = 'best/epoch'"
        assert [(read_card(state / "best").epoch,)] == database.execute(query).fetchall()
