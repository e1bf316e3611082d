import resource
import threading
from pathlib import Path

import pytest

from tl_cli.errors import StorageError
from tl_cli.io.atomic import make_folder_once, making_once, replacing, write_text

BODY = b"weights" * 500_000


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model"
    write_text(target, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(StorageError, match=r"cannot write .*model: File too large"),
            replacing(target) as file,
        ):
            file.write(BODY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model"
    write_text(target, "old")

    def write() -> None:
        with replacing(target) as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_complete_or_does_not_exist(tmp_path: Path) -> None:
    def fill(folder: Path) -> Path:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("1")
        return folder / "inner"

    def fail(folder: Path) -> Path:
        fill(folder)
        raise KeyError

    target = tmp_path / "target"
    leftover = tmp_path / ".target.tmp" / "of a killed process"
    leftover.mkdir(parents=True)
    with pytest.raises(KeyError):
        make_folder_once(target, fail)
    assert not target.exists()
    make_folder_once(target, fill)
    make_folder_once(target, fail)  # not called: the folder exists
    assert [path.name for path in target.iterdir()] == ["a"]
    assert not (tmp_path / ".target.tmp").exists()


def test_several_threads_make_a_file_once(tmp_path: Path) -> None:
    target, made = tmp_path / "deep" / "target", list[int]()

    def make(number: int) -> None:
        with making_once(target) as is_missing:
            if is_missing:
                made.append(number)
                write_text(target, "1")

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        make_folder_once(tmp_path / "file" / "target", lambda folder: folder)
