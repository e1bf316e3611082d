import io

import pytest

from tests.support.histories import FACTS
from tests.support.screens import make_screen, shown
from tl_cli.api.run_changes import ClosedRuns, Relocation, Removal, RemovedRun, RemovedRuns, RunName, SentRun, SentRuns
from tl_cli.errors import UsageError
from tl_cli.ui.terminal.run_changes import TerminalConsent, print_closed, print_relocation, print_removed, print_sent

RUN = RunName("3f2a91c0" + "0" * 24, "first")


def test_a_closed_run_is_shown_with_the_command_that_resumes_it() -> None:
    screen = make_screen(40)
    print_closed(screen, ClosedRuns((RUN,)), " --tracking-uri x")
    resume = "tl train --resume 3f2a91c0 --tracking-uri x"
    assert shown(screen) == f"3f2a91c0 (first) is recorded as killed; to resume it: {resume}\n"


def test_synced_records_are_counted() -> None:
    screen = make_screen(80)
    print_sent(screen, SentRuns((SentRun(RUN.run_id, RUN.name, True, 1234, 5, "FINISHED", (), ()),), True, "http://x"))
    assert shown(screen).splitlines() == [
        "3f2a91c0 (first) was not in http://x; it is recorded again",
        "3f2a91c0 (first): 1,234 points and 5 other items sent, recorded as finished",
        "nothing left to sync",
    ]


def test_files_that_stay_are_listed_up_to_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    screen = make_screen(80)
    files = tuple(f"file {number}" for number in range(25))
    print_removed(screen, RemovedRuns((RemovedRun(RUN.run_id, RUN.name, False, 3_000_000, files),), True, 0))
    printed = capsys.readouterr().err
    assert "is not deleted yet, 3 MB are free" in printed
    assert ("file 19" in printed, "file 20" in printed, "and 5 more" in printed) == (True, False, True)
    assert "tl runs rm 3f2a91c0 --purge" in printed


@pytest.mark.parametrize(("count", "words"), [(1, "1 logged model"), (2, "2 logged models")])
def test_records_are_counted_in_words(count: int, words: str) -> None:
    screen = make_screen(80)
    print_relocation(screen, Relocation((("/a", "/b"),), {"logged_models": count}, (), False))
    assert shown(screen).splitlines() == ["/a -> /b", f"{words} are now recorded at the new location"]


def test_without_a_terminal_nothing_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError, match="--yes removes without asking"):
        TerminalConsent(make_screen(80)).remove(Removal((FACTS,), True, 5, ()))
