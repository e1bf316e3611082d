import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server
from tl_cli.errors import DownloadError
from tl_cli.io import download
from tl_cli.io.download import Missing

BODY = b"weights" * 500_000
SHA256 = hashlib.sha256(BODY).hexdigest()


def test_a_file_is_fetched_once_with_progress(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"] = BODY
    seen: list[tuple[object, ...]] = []
    target = tmp_path / "deep" / "w.pth"
    for _ in range(2):
        download.download(f"{server.url}/w.pth", target, SHA256[:8], progress=lambda *now: seen.append(now))
    assert target.read_bytes() == BODY
    assert server.requests == ["/w.pth"]
    assert seen[-1] == ("w.pth", len(BODY), len(BODY), "bytes")
    assert [now[1] for now in seen] == sorted(now[1] for now in seen)


def test_a_wrong_hash_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"] = BODY + b"!"
    with pytest.raises(DownloadError, match="sha256 is"):
        download.download(f"{server.url}/w.pth", tmp_path / "w.pth", SHA256)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_corrupt_file_on_the_disk_is_named(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "w.pth"
    target.write_bytes(BODY[:-1])
    with pytest.raises(DownloadError, match=r"Delete it"):
        download.download(f"{server.url}/w.pth", target, SHA256)


def test_a_temporary_server_error_is_retried(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"] = BODY
    server.failures["/w.pth"] = [503, 500]
    download.download(f"{server.url}/w.pth", tmp_path / "w.pth", SHA256)
    assert len(server.requests) == 3


def test_a_missing_file_is_requested_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="Not Found"):
        download.download(f"{server.url}/none.pth", tmp_path / "none.pth", SHA256)
    assert len(server.requests) == 1


def test_an_error_without_network_ends_with_the_advice(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot fetch w\.pth from http://127\.0\.0\.1:9/w\.pth .*Put it there"):
        download.download("http://127.0.0.1:9/w.pth", tmp_path / "w.pth", SHA256, advice="Put it there.")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_never_answers_is_not_waited_for(silent_server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot fetch w\.pth from .*timed out.*Copy it\."):
        Missing((f"{silent_server}/w.pth",), tmp_path, "Copy it.").check_reachable(timeout_s=0.1)


def test_one_error_lists_all_files_that_cannot_be_fetched(server: Server, tmp_path: Path) -> None:
    server.files["/a.pth"] = BODY
    urls = (f"{server.url}/a.pth", "http://127.0.0.1:9/b.pth", "http://127.0.0.1:9/c.pth")
    with pytest.raises(DownloadError) as raised:
        download.check_reachable([None, *(Missing((url,), tmp_path, "Copy it.") for url in urls)])
    assert [line.split()[2] for line in str(raised.value).splitlines()] == ["b.pth", "c.pth"]


def test_an_error_status_shows_that_the_server_can_be_reached(server: Server, tmp_path: Path) -> None:
    Missing((f"{server.url}/none.pth",), tmp_path, "").check_reachable()


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", f"file://{tmp_path}/my%20cache")
    assert download.cache_root() == tmp_path / "my cache"
