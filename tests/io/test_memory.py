from pathlib import Path

import psutil
import pytest

from tl_cli.io.memory import memory_bytes


@pytest.mark.parametrize(("limit", "is_limited"), [("1000000\n", True), ("max\n", False), ("", False)])
def test_memory_is_limited_by_a_container(limit: str, is_limited: bool, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(limit)
    assert memory_bytes(tmp_path) == (1_000_000 if is_limited else psutil.virtual_memory().total)


def test_a_limit_of_cgroup_version_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000000\n")
    assert memory_bytes(tmp_path) == 2_000_000
