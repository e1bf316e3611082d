import os
import subprocess
import sys
from pathlib import Path

import pytest

from tl_cli.io.use_lock import mark_used, unused

READER = (
    "import os, sys; from tl_cli.io.use_lock import mark_used; "
    "mark_used(os.open(sys.argv[1], os.O_RDONLY)); print('open', flush=True); sys.stdin.read()"
)


def is_unused(path: Path) -> bool:
    with unused(path) as found:
        return found


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_path_is_in_use_while_another_process_has_marked_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir() if kind == "folder" else path.touch()
    assert is_unused(path)
    with subprocess.Popen(
        [sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        assert not is_unused(path)
        reader.communicate()
    assert is_unused(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_two_readers_can_mark_one_file_and_closing_it_removes_the_mark(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    descriptors = [os.open(tmp_path / "a", os.O_RDONLY) for _ in range(2)]
    for descriptor in descriptors:
        mark_used(descriptor)
    for descriptor in descriptors:
        assert not is_unused(tmp_path / "a")
        os.close(descriptor)
    assert is_unused(tmp_path / "a")


def test_a_missing_path_raises_the_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), unused(tmp_path / "none"):
        pass
