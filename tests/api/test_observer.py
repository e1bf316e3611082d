import pytest

from tl_cli import Observer


def test_a_warning_is_a_python_warning_with_the_callers_line() -> None:
    def function(observer: Observer) -> None:
        observer.warn("look at this")

    with pytest.warns(UserWarning, match="look at this") as caught:
        function(Observer())
    assert caught[0].filename == __file__


def test_progress_is_ignored(capfd: pytest.CaptureFixture[str]) -> None:
    Observer().progress("downloading", 5, None, "bytes")
    assert capfd.readouterr() == ("", "")
