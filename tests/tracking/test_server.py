"""The record on a real tracking server that proxies artifacts."""

import os
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import mlflow
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from urllib3.connectionpool import HTTPConnectionPool

from tests.support.processes import run_in, wait_for
from tests.support.recording import epoch, recorder, save_small_model
from tl_cli.errors import TrackingError
from tl_cli.tracking.completion import complete_run
from tl_cli.tracking.evaluations import NOTE_TAG
from tl_cli.tracking.journal import Item
from tl_cli.tracking.logged_model import Naming
from tl_cli.tracking.reader import read_history
from tl_cli.tracking.recorder import Pace
from tl_cli.tracking.store import open_store
from tl_cli.tracking.sync import Synced, sync
from tl_cli.training.events import LossSampled


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ready_database: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(ready_database.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1",
               "--artifacts-destination", "./kept", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=60):
            return True
        return False

    wait_for(is_up, "the start of the server", pause_s=0.3)
    yield url
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def at_server(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty current folder, with the server as the tracking URI."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_tracking_uri(None)
    yield server
    mlflow.set_tracking_uri(None)


@pytest.mark.slow
def test_every_command_works_with_a_tracking_server(
    at_server: str, tl, colours: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", at_server)
    trained = tl("train", "shufflenet_v2_x0_5", "--weights", "none", "--data", colours, "--epochs", "2", "--freeze-epochs",
                 "1", "--input-size", "32", "--run-name", "far", "--tracking-uri", at_server)  # fmt: skip
    assert trained.code == 0, trained.err
    assert "View run" not in trained.out
    assert f"{at_server}/#/experiments/" in trained.out
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as local:
        assert local.execute("select count(*) from runs").fetchone() == (0,)
    run = open_store(at_server).find("far")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")

    # As on another machine: another folder without files of the first.
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    flag = ("--tracking-uri", at_server)
    drawn = tl("plot", "--terminal", "far", *flag)
    assert drawn.code == 0, drawn.err
    assert "last: " in drawn.out
    assert "backbone unfrozen after epoch 1" in drawn.out
    assert tl("plot", "far", "--output", "curves.svg", *flag).code == 0
    assert Path("curves.svg").stat().st_size > 5000
    listed = tl("runs", *flag)
    assert listed.code == 0, listed.err
    assert "far" in listed.out
    evaluated = tl("eval", "far", *flag)
    assert evaluated.code == 0, evaluated.err
    assert "top-1" in evaluated.out
    followed = tl("plot", "--follow", "far", *flag)
    assert (followed.code, "the run is complete" in followed.out) == (0, True), followed.err
    note = open_store(at_server).client.get_experiment(run.info.experiment_id).tags["mlflow.note.content"]
    assert "far" in note
    history = read_history(open_store(at_server), run)
    assert [point.epoch for point in history.epochs] == [1, 2]
    assert history.clock

    refused = tl("runs", "rm", "far", "--purge", "--yes", *flag)
    assert (refused.code, "local store" in refused.err) == (2, True)
    assert tl("runs", "rm", "far", "--yes", *flag).code == 0
    assert "no runs" in tl("runs", *flag).out


# The timeout of tl's MLflow requests is 10 s.
SLOW_S = 11


class Proxy:
    """A proxy between a run and its server that fails on demand."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self.mood = "well"
        self._tls = tls
        self.requests = 0
        self.closed = threading.Event()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client, self.mood), daemon=True).start()

    def _answer(self, client: socket.socket, mood: str) -> None:
        if self._tls:
            try:
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:  # the other side does not trust the certificate, or does not use TLS
                client.close()
                return
        with client:
            self.requests += 1
            if mood == "refuses":
                return
            request = self._request(client)
            is_upload = request.startswith(b"PUT ")
            if mood == "hangs":
                self.closed.wait()
            elif mood == "refuses weights" and is_upload and b".safetensors " in request[:1000]:
                client.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif mood == "answers 500":
                client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif request:
                with socket.create_connection(("127.0.0.1", self._target)) as server:
                    server.sendall(
                        re.sub(rb"(?i)\r\nconnection: keep-alive", b"\r\nConnection: close", request, count=1)
                    )
                    response = b""
                    while part := server.recv(1 << 16):
                        response += part
                if mood == "stores slowly" and is_upload and b".safetensors " in request[:1000]:
                    self.closed.wait(SLOW_S)
                # The server has processed the request, but its response is lost.
                if mood != "drops after it committed":
                    client.sendall(response)

    def _request(self, client: socket.socket) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request:
            part = client.recv(1 << 16)
            if not part:
                return b""
            request += part
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        while length and len(body) < int(length[1]):
            body += client.recv(1 << 16)
        # An empty file is sent in chunks.
        while b"\r\ntransfer-encoding: chunked" in head.lower() and not body.endswith(b"0\r\n\r\n"):
            body += client.recv(1 << 16)
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        self.closed.set()
        self._listener.close()


@pytest.fixture
def proxy(at_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    made = Proxy(int(at_server.rpartition(":")[2]))
    for name, value in (("RETRIES", "0"), ("TIMEOUT", "5")):
        monkeypatch.setenv(
            {"RETRIES": "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "TIMEOUT": "MLFLOW_HTTP_REQUEST_TIMEOUT"}[name], value
        )
    yield made
    made.close()


def points_of(store, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in store.client.get_metric_history(run_id, key))


@pytest.mark.slow
@pytest.mark.parametrize("mood", ["refuses", "hangs", "answers 500", "drops after it committed"])
@pytest.mark.parametrize("comes_back", [True, False])
def test_no_point_is_lost_or_duplicated_whatever_the_server_does(
    proxy: Proxy, at_server: str, mood: str, comes_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requesting_threads: set[threading.Thread] = set()
    original_urlopen = HTTPConnectionPool.urlopen

    def urlopen(*arguments: object, **options: object) -> object:
        requesting_threads.add(threading.current_thread())
        return original_urlopen(*arguments, **options)

    monkeypatch.setattr(HTTPConnectionPool, "urlopen", urlopen)
    store = open_store(proxy.url)
    made = recorder(store, pace=Pace(send_s=0.05, last_wait_s=15.0))
    with made:
        for step in range(1, 41):
            if step == 11:
                proxy.mood = mood
            if step == 31:
                wait_for(lambda: made.warnings, "a warning")
                proxy.mood = "well" if comes_back else mood
            requesting_threads.clear()
            made(LossSampled(step, 1, step / 100, 1e-3, 0.0))
            assert threading.current_thread() not in requesting_threads, "training waited for the server"
            time.sleep(0.03)
        made(epoch(1, 40))
        if comes_back:
            client = mlflow.MlflowClient(at_server)
            wait_for(lambda: client.get_metric_history(made.run_id, "val/accuracy"), "the last point", pause_s=0.2)
    proxy.mood = "well"
    direct = open_store(at_server)
    run = direct.client.get_run(made.run_id)
    # The points on the server are correct, but may be incomplete.
    recorded = points_of(direct, made.run_id, "step/loss")
    assert len(recorded) == len(set(recorded))
    if not comes_back:
        assert any("tl runs sync" in warning for warning in made.warnings)
        sent = sync(direct, run)
        assert sent.status == "FINISHED"
        assert sync(direct, direct.client.get_run(made.run_id)) == Synced(0, 0, None)
    assert points_of(direct, made.run_id, "step/loss") == [(step, step / 100) for step in range(1, 41)]
    assert points_of(direct, made.run_id, "val/accuracy") == [(40, 0.7)]
    assert direct.client.get_run(made.run_id).info.status == "FINISHED"


def run_successfully(folder: Path, *arguments: str) -> str:
    """Run tl in a folder; assert that it succeeds and return its output."""
    code, output = run_in(folder, *arguments)
    assert code == 0, output
    return output


@pytest.mark.slow
def test_a_training_whose_server_disappears_succeeds_and_is_complete_after_a_sync(
    proxy: Proxy, at_server: str, tl, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_cli.tracking import recorder as recording

    started = recording.Recorder.log_start

    def and_then_gone(self, *arguments) -> None:
        started(self, *arguments)
        proxy.mood = "refuses"

    monkeypatch.setattr(recording.Recorder, "log_start", and_then_gone)
    trained = tl("train", "shufflenet_v2_x0_5", "--weights", "none", "--data", colours, "--epochs", "2", "--freeze-epochs",
                 "1", "--input-size", "32", "--run-name", "gone", "--tracking-uri", proxy.url)  # fmt: skip
    assert trained.code == 0, trained.err
    assert "test accuracy" in trained.out
    assert "tl runs sync" in trained.err
    store = open_store(at_server)
    run = store.find("gone")
    assert run.info.status == "RUNNING"
    assert not run.model_ids
    # New processes, as this one has cached the old location of the files.
    assert "recorded as finished" in run_successfully(tmp_path, "runs", "sync", "--tracking-uri", at_server)
    run = store.find("gone")
    assert run.info.status == "FINISHED"
    assert "test/accuracy" in run.data.metrics
    assert "on test images" in run.data.tags["mlflow.note.content"]
    assert {item.path for item in store.client.list_artifacts(run.info.run_id, "curves")} == {
        "curves/loss_by_step.png", "curves/accuracy_and_loss_by_epoch.png",
    }  # fmt: skip
    assert "top-1" in run_successfully(tmp_path, "eval", "gone", "--tracking-uri", at_server)
    assert len(run.model_ids) == 1
    assert [value for _, value in points_of(store, run.info.run_id, "epoch")] == [1, 2]


def self_signed(path: Path) -> Path:
    """Write a PEM file with a key and a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
    )
    certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        key, hashes.SHA256()
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.mark.slow
def test_a_server_with_a_self_signed_certificate_is_used_as_set_by_mlflows_variables(
    at_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, mine = self_signed(tmp_path / "theirs.pem"), self_signed(tmp_path / "mine.pem")
    target = int(at_server.rpartition(":")[2])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs)
    strict = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    strict.load_cert_chain(theirs)
    strict.load_verify_locations(mine)
    strict.verify_mode = ssl.CERT_REQUIRED
    open_one, closed_one = Proxy(target, context), Proxy(target, strict)
    with monkeypatch.context() as patch:
        with pytest.raises(TrackingError, match="self-signed certificate.*MLFLOW_TRACKING_SERVER_CERT_PATH"):
            open_store(open_one.url)
        patch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        assert open_store(open_one.url).experiments().keys() >= {"Default"}
        assert complete_run("lat", open_one.url)
        code, output = run_in(tmp_path, "runs", "--tracking-uri", open_one.url, MLFLOW_TRACKING_INSECURE_TLS="true")
        assert (code, "Unverified" in output) == (0, False), output
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(mine))
        with pytest.raises(TrackingError, match="certificate verify failed"):
            open_store(open_one.url)
        patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "none.pem"))
        with pytest.raises(TrackingError, match="none.pem"):
            open_store(open_one.url)
        patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(theirs))
        with recorder(open_store(open_one.url)) as record:
            pass
        assert mlflow.MlflowClient(at_server).get_run(record.run_id).info.status == "FINISHED"
        offered = [name for name, _ in complete_run(record.run_id[:8], open_one.url)]
        assert offered == [record.run_id[:8]]
        with pytest.raises(TrackingError):
            open_store(closed_one.url)
        patch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(mine))
        assert open_store(closed_one.url).find(record.run_id).info.run_name == "r"
        assert complete_run(record.run_id[:8], closed_one.url)
    open_one.close()
    closed_one.close()


def log_small_model(folder: Path, record) -> str | None:
    """Log a saved model, as a training does at its end."""
    if not folder.exists():
        save_small_model(folder)
    return record.log(Item("model", str(folder), Naming("small", {}).to_json()))


@pytest.mark.slow
def test_an_upload_that_the_server_stores_slowly_succeeds(at_server: str, tmp_path: Path) -> None:
    slow = Proxy(int(at_server.rpartition(":")[2]))
    with recorder(open_store(slow.url)) as record:
        slow.mood = "stores slowly"
        model_id = log_small_model(tmp_path / "best", record)
        slow.mood = "well"
    slow.close()
    assert record.warnings == []
    client = mlflow.MlflowClient(at_server)
    experiment_id = client.get_run(record.run_id).info.experiment_id
    found = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{record.run_id}'")
    assert [(str(model.status), model.model_id) for model in found] == [("READY", model_id)]


@pytest.mark.slow
def test_a_failed_model_upload_leaves_nothing_behind_and_sync_reports_it(at_server: str, tl, tmp_path: Path) -> None:
    strict = Proxy(int(at_server.rpartition(":")[2]))
    client = mlflow.MlflowClient(at_server)

    def models() -> list[str]:
        experiment_id = client.get_run(record.run_id).info.experiment_id
        found = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{record.run_id}'")
        return [str(model.status) for model in found]

    with recorder(open_store(strict.url)) as record:
        strict.mood = "refuses weights"
        assert log_small_model(tmp_path / "best", record) is None
        record.log(Item("tag", NOTE_TAG, "after the model"))
    assert models() == []
    assert any("tl runs sync" in warning for warning in record.warnings)
    for _ in range(2):
        failed = tl("runs", "sync", "--tracking-uri", strict.url)
        assert failed.code == 1, failed.out
        assert "413" in failed.err
        assert "nothing to sync" not in failed.out
        assert models() == []
    strict.mood = "well"
    sent = tl("runs", "sync", "--tracking-uri", strict.url)
    strict.close()
    assert sent.code == 0, sent.err
    assert models() == ["READY"]
    assert client.get_run(record.run_id).info.status == "FINISHED"
