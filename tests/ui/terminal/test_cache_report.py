import io
from pathlib import Path

import pytest

from tests.support.screens import make_screen, printed
from tl_cli.api.cache_listing import CacheKind, CacheListing, Clearing
from tl_cli.errors import UsageError
from tl_cli.ui.terminal.cache_report import confirm_clearing, print_cache, print_clearing

CLEARED = Clearing(Path("/cache"), {"features": 2}, 3_000_000_000, {"features": 1}, 500_000_000)


def test_the_kinds_of_entries_are_listed_with_their_sizes() -> None:
    screen = make_screen(120)
    print_cache(
        screen, CacheListing(Path("/cache"), (CacheKind("features", "arrays", 1234, 5_400_000_000, 200_000, 0),))
    )
    lines = printed(screen).splitlines()
    assert lines[0] == "/cache: 5.4 GB"
    assert lines[2].split() == ["features", "1,234", "5.4", "GB", "0.2", "MB", "0.0", "MB", "arrays"]


def test_entries_that_stay_are_named_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    screen = make_screen(80)
    print_clearing(screen, CLEARED)
    assert printed(screen) == "removed 2.5 GB from /cache\n"
    assert "left 500.0 MB (1 features)" in capsys.readouterr().err


def test_without_a_terminal_there_is_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError, match=r"tl cache clear --yes removes 3\.0 GB \(2 features\)"):
        confirm_clearing(CLEARED)
