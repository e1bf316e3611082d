import resource
from pathlib import Path

import pytest

from tl_cli.errors import StorageError
from tl_cli.io.atomic import replacing, write_text

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
