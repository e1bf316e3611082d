"""What tests share: a small folder of pictures, a ready MLflow store, a server on loopback, and `tl` itself."""

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("MLFLOW_TRACKING_URI", "TL_DATA_DIR", "CI", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(_name, None)

import atexit
import http.server
import multiprocessing
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# The same examples every time: a test that fails here fails everywhere.
settings.register_profile("tests", derandomize=True, deadline=None)
settings.load_profile("tests")

# They take a minute or two each: begun last, one of them would be all that is left to do.
LONGEST = ("test_kills.py", "test_judging.py", "test_places.py", "test_signals.py", "test_checks.py", "test_resume.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


def write_pictures(root: Path, classes: dict[str, tuple[int, int, int]], count: int, size: int = 32) -> None:
    """Fill ROOT/CLASS/ with noisy pictures of one colour: learned in a few steps, never identical."""
    noise = np.random.default_rng(0)
    for name, colour in classes.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.array(colour) + noise.integers(-40, 40, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:03d}.png")


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is made for several tests, before any of them has a cache of its own, does not use the person's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE_DIR", str(tmp_path_factory.mktemp("shared-cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that an earlier test or run has kept is found."""
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def _forget_tracking_uri() -> None:
    """MLflow keeps the address it was given in the environment too, which the processes of later tests inherit."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture(autouse=True)
def own_tracking_uri() -> Iterator[None]:
    """No test records in the store of an earlier one."""
    _forget_tracking_uri()
    yield
    _forget_tracking_uri()


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ (3 classes of 16) and test/ (3 of 6), 32 x 32."""
    root = tmp_path_factory.mktemp("colours")
    write_pictures(root / "train", COLOURS, 16)
    write_pictures(root / "test", COLOURS, 6)
    return root


@pytest.fixture(scope="session")
def odd_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes, which are decoded from their files again in each epoch."""
    root, noise = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 4)):
        for label, name in enumerate(("blue", "green", "red")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = noise.integers(0, 120, (33 + index % 5, 32 + index % 3, 3)) + 100 * np.eye(3)[label]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def ready_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: made once, because that takes seconds, and copied for each test."""
    import mlflow

    folder = tmp_path_factory.mktemp("database")
    path = folder / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def workplace(tmp_path: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own current folder with a ready store in it, as a person's project folder would be."""
    import mlflow

    shutil.copy(ready_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    # MLflow caches the default of the folder in which it was first asked.
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield tmp_path
    mlflow.set_tracking_uri(None)


def train_in(folder: Path, ready_database: Path, *commands: Sequence[str | Path]) -> Path:
    """Make a folder in which each of these commands of ``tl train`` has run, for several tests to share."""
    import mlflow

    from tl_cli.cli.app import main

    (folder / "mlflow.db").write_bytes(ready_database.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE_DIR", str(folder / "cache"))
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        for options in commands:
            patch.setattr(sys, "argv", ["tl", "train", *map(str, options)])
            with pytest.raises(SystemExit) as stopped:
                main()
            assert stopped.value.code == 0
    return folder


def wait_for(condition: Callable[[], object], what: str, *, pause_s: float = 0.02) -> None:
    """Wait until a condition holds. The deadline is for what never happens, not for what is slow."""
    deadline = time.monotonic() + 1200
    while not condition():
        assert time.monotonic() < deadline, f"{what} has not happened"
        time.sleep(pause_s)


@dataclass
class Result:
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def tl(workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run ``tl`` in this process, where torch is imported already, as its entry point would."""
    from tl_cli.cli.app import main

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["tl", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        code = stopped.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


# Processes of tl are forked from one that has imported what is slow: a start takes a moment, not many seconds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.preloaded"])


def tl_process(
    *arguments: str | Path,
    cwd: Path,
    stdout: int,
    stderr: int,
    prepare: Callable[[], None] | None = None,
    **environment: str,
) -> "multiprocessing.process.BaseProcess":
    """Start ``tl`` as a process of its own, for signals and terminals; the descriptors stay open in this one too.

    Args:
        prepare: called in that process before tl begins.
    """
    streams = (DupFd(stdout), DupFd(stderr))
    surroundings = (cwd, {**os.environ, **environment}, streams, prepare)
    process = _FORKS.Process(target=_be_tl, args=([*map(str, arguments)], *surroundings))
    process.start()
    return process


def start_in(
    folder: Path, *arguments: str | Path, prepare: Callable[[], None] | None = None, **environment: str
) -> "multiprocessing.process.BaseProcess":
    """Start ``tl`` in a folder; what it says is added to ``folder/said``."""
    with (folder / "said").open("ab") as said:
        return tl_process(
            *arguments, cwd=folder, stdout=said.fileno(), stderr=said.fileno(), prepare=prepare, **environment
        )


def said_by(
    folder: Path, *arguments: str | Path, prepare: Callable[[], None] | None = None, **environment: str
) -> tuple[int | None, str]:
    """Run ``tl`` in a folder as ``start_in`` does; return its exit code and what it said."""
    (folder / "said").unlink(missing_ok=True)
    process = start_in(folder, *arguments, prepare=prepare, **environment)
    process.join()
    return process.exitcode, (folder / "said").read_bytes().decode(errors="replace")


def _be_tl(
    arguments: list[str],
    cwd: Path,
    environment: dict[str, str],
    streams: tuple[DupFd, DupFd],
    prepare: Callable[[], None] | None,
) -> None:
    from tl_cli import interrupts
    from tl_cli.cli.app import main
    from tl_cli.tracking.store import _ENVIRONMENT

    for descriptor, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream.detach(), descriptor)
    os.environ.clear()
    os.environ.update({**_ENVIRONMENT, **environment})
    os.chdir(cwd)
    sys.argv = ["tl", *arguments]
    # However the tests were started: under nohup, or in the background of a script.
    for signum in interrupts.known():
        signal.signal(signum, signal.SIG_DFL)
    if prepare is not None:
        prepare()
    try:
        main()
    finally:
        # What is forked leaves without them; a process of one's own does not.
        atexit._run_exitfuncs()


@dataclass
class Server:
    """A web server on loopback that gives what it is told to."""

    url: str
    files: dict[str, bytes]
    headers: dict[str, dict[str, str]]
    failures: dict[str, list[int]]
    asked: list[str]


@pytest.fixture
def server() -> Iterator[Server]:
    """Serve ``files`` by path with ``headers``; ``failures`` are status codes to answer first."""
    shared = Server("", {}, {}, {}, [])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            shared.asked.append(self.path)
            waiting = shared.failures.get(self.path)
            if waiting:
                self.send_error(waiting.pop(0))
            elif self.path in shared.files:
                body = shared.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                for key, value in shared.headers.get(self.path, {}).items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)
            else:
                self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            return None

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shared.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield shared
    httpd.shutdown()
    httpd.server_close()
