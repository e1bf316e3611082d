"""Unusual folders, home directories, disks and locales."""

import ctypes
import os
import re
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.support.pictures import COLOURS, write_pictures
from tests.support.processes import run_in, tl_process

TRAIN = ("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "2", "--freeze-epochs", "1",
         "--data", "pictures", "--workers", "0")  # fmt: skip


NOT_ALLOWED = 77


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ready_database: Path) -> Path:
    """A folder with a trained run."""
    folder = tmp_path_factory.mktemp("trained")
    write_pictures(folder / "pictures", COLOURS, 12)
    (folder / "mlflow.db").write_bytes(ready_database.read_bytes())
    code, output = run_in(folder, *TRAIN)
    assert code == 0, output
    return folder


def skip_if_not_permitted(ended: tuple[int | None, str]) -> tuple[int | None, str]:
    """Skip the test if its preparation is not permitted."""
    if ended[0] == NOT_ALLOWED:
        pytest.skip("mounting is not allowed here")
    return ended


def mount_here(target: str, options: str) -> None:
    """Mount an empty file system that only this process sees."""
    new_namespace, private_and_all_below = 0x00020000, (1 << 18) | (1 << 14)
    libc = ctypes.CDLL(None, use_errno=True)
    read_only = 1 if options == "ro" else 0
    if (
        libc.unshare(new_namespace)
        or libc.mount(b"none", b"/", None, private_and_all_below, None)
        or libc.mount(b"none", target.encode(), b"tmpfs", read_only, b"" if read_only else options.encode())
    ):
        os._exit(NOT_ALLOWED)


def work_in(folder: Path, prepare: Callable[[], None] | None = None, **environment: str) -> str:
    """Train, list, plot and evaluate in a folder; return the output."""
    write_pictures(folder / "pictures", COLOURS, 12)
    outputs = ""
    for command in (
        TRAIN,
        ("runs",),
        ("plot", "-t"),
        ("plot",),
        ("eval", "latest"),
        ("data", "check", "pictures", "--no-labels"),
    ):
        code, output = skip_if_not_permitted(run_in(folder, *command, prepare=prepare, **environment))
        assert code == 0, f"{command}: {output}"
        assert "Traceback" not in output
        outputs += output
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["-with spaces, 'quotes', 猫 é ñ #hash%20?query=1", "x" * 200])
def test_a_project_folder_may_have_any_name(name: str, tmp_path: Path, ready_database: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(ready_database.read_bytes())
    assert "test accuracy" in work_in(folder)
    assert list(folder.glob("*-loss_by_step.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"},
        {"HOME": "/nonexistent/home", "TL_CACHE_DIR": "/proc/nowhere"},
        {"HOME": "", "XDG_CACHE_HOME": "/dev/null/x", "TL_CACHE_DIR": "/dev/null/cache"},
    ],
    ids=["C locale", "read-only home", "no home"],
)
def test_no_home_and_no_locale_are_needed(environment: dict[str, str], tmp_path: Path, ready_database: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(ready_database.read_bytes())
    output = work_in(tmp_path, **environment)
    assert "test accuracy" in output
    if "LC_ALL" in environment:
        assert "\x1b" not in output


@pytest.mark.slow
def test_a_store_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    code, output = run_in(tmp_path, "runs", "--tracking-uri", "sqlite:////proc/nowhere/mlflow.db")
    assert code == 1
    assert "cannot be used" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_name_that_is_not_utf8_is_refused_or_shown_escaped(tmp_path: Path, ready_database: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/pictures\xff"))
    write_pictures(folder / "train", COLOURS, 6)
    write_pictures(folder / "test", COLOURS, 3)
    (tmp_path / "mlflow.db").write_bytes(ready_database.read_bytes())
    code, output = run_in(tmp_path, *TRAIN[:-4], "--data", str(folder), "--workers", "0")
    assert "Traceback" not in output, output
    assert code in (0, 2), output


@pytest.mark.slow
def test_no_shared_memory_is_needed(tmp_path: Path, ready_database: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(ready_database.read_bytes())
    without = partial(mount_here, "/dev/shm", "ro")
    probe = tmp_path / "probe"
    probe.mkdir()
    code, output = skip_if_not_permitted(run_in(probe, "--version", prepare=partial(refuse_shared_memory, without)))
    assert code == 0, output
    assert "test accuracy" in work_in(tmp_path, prepare=without)


def refuse_shared_memory(without: Callable[[], None]) -> None:
    without()
    with pytest.raises(OSError, match="Read-only"):
        Path("/dev/shm/probe").touch()


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [40, 460, 900, 1300, 2200, 3000])
def test_a_full_disk_is_named_and_ends_a_training_with_an_error(
    kilobytes: int, tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    """The full disk holds checkpoints, saved models, journal and artifacts; the database is on another one."""
    (tmp_path / "mlflow.db").write_bytes(ready_database.read_bytes())
    (tmp_path / "mlruns").mkdir()
    small = partial(mount_here, str(tmp_path / "mlruns"), f"size={kilobytes}k")
    command = ("train", "timm/test_efficientnet", *TRAIN[2:-4], "--data", str(colours), "--checkpoint-every", "1",
               "--epochs", "4", "--freeze-epochs", "2", "--batch-size", "8")  # fmt: skip
    code, output = skip_if_not_permitted(run_in(tmp_path, *command, prepare=small))
    assert "Traceback" not in output
    assert "No space left on device" in output
    if code:
        assert code == 1, output
        assert re.search(r"error: cannot write \S*mlruns/\S+: No space left on device \(0 MB free\)", output), output


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [("runs",), ("runs", "--json"), ("data",), ("models", "--json"), ("--version",), ("data", "check", "pictures", "--no-labels"),
     TRAIN, ("predict", "latest", "pictures"), ("eval", "latest", "--csv"), ("plot", "-t")],
    ids=" ".join,
)  # fmt: skip
def test_a_full_disk_for_stdout_is_an_error(command: tuple[str, ...], trained: Path) -> None:
    with open("/dev/full", "w") as full, (trained / "errors").open("w+b") as errors:
        process = tl_process(*command, cwd=trained, stdout=full.fileno(), stderr=errors.fileno())
        process.join()
        errors.seek(0)
        output = errors.read().decode()
    assert process.exitcode == 1, output
    assert output.strip().endswith("error: cannot write the output: No space left on device"), output
    assert "Traceback" not in output
    if command == TRAIN:
        with closing(sqlite3.connect(trained / "mlflow.db")) as database:
            assert {status for (status,) in database.execute("select status from runs")} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "command"), [(0, ("predict", "latest", "-")), (0, ("runs", "rm", "latest")), (1, ("predict", "latest", "pictures")),
                            (1, ("runs",)), (2, ("runs",))],
)  # fmt: skip
def test_streams_may_be_closed(closed: int, command: tuple[str, ...], trained: Path) -> None:
    code, output = run_in(trained, *command, prepare=partial(close_stream, closed))
    assert code in (0, 2), output
    assert "Traceback" not in output


def close_stream(number: int) -> None:
    """Close a stream of this process, as ``>&-`` does."""
    os.close(number)
    setattr(sys, ("stdin", "stdout", "stderr")[number], None)


@pytest.mark.slow
def test_a_full_disk_for_the_record_is_a_warning(tmp_path: Path, ready_database: Path, colours: Path) -> None:
    (tmp_path / "small").mkdir()
    command = (*TRAIN[:-4], "--data", str(colours), "--batch-size", "2", "--epochs", "9", "--log-every", "1",
               "--tracking-uri", f"sqlite:///{tmp_path}/small/mlflow.db")  # fmt: skip
    small = partial(put_on_a_small_disk, ready_database, tmp_path / "small")
    # MLflow samples system metrics continuously, as in a longer run.
    sampling = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.02", "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING": "1"}
    code, output = skip_if_not_permitted(run_in(tmp_path, *command, prepare=small, **sampling))
    assert code == 0, output
    for expected in ("test accuracy", "database or disk is full", "tl runs sync"):
        assert expected in output
    assert "Traceback" not in output
    assert "sqlalche" not in output, output


def put_on_a_small_disk(file: Path, folder: Path) -> None:
    """Put the database on a disk with room for only the beginning of a run's record."""
    data = file.read_bytes()
    mount_here(str(folder), f"size={len(data) // 1024 + 40}k")
    (folder / "mlflow.db").write_bytes(data)
