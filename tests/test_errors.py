import signal

import pytest

from tl_cli.errors import DataError, DivergedError, Interrupted, first_line, shortened, some, suggest, without_secrets


@pytest.mark.parametrize(
    ("signum", "message", "exit_code"),
    [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143), (signal.SIGHUP, "SIGHUP", 129)],
)
def test_a_signal_has_the_exit_code_of_the_shell(signum: signal.Signals, message: str, exit_code: int) -> None:
    error = Interrupted(signum)
    assert (str(error), error.exit_code) == (message, exit_code)
    assert not isinstance(error, Exception)


def test_bad_input_exits_with_2_and_failed_work_with_1() -> None:
    assert (DataError.exit_code, DivergedError.exit_code) == (2, 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vgg1", " Did you mean vgg11?"),
        ("resnet1", " Did you mean resnet18 or resnet50?"),
        ("x", " Known: resnet18, resnet50, vgg11."),
    ],
)
def test_similar_names_are_suggested(name: str, text: str) -> None:
    assert suggest(name, ["resnet18", "resnet50", "vgg11"]) == text


def test_long_lists_and_names_are_cut() -> None:
    assert some(["a", "b", "c"], show=2) == "a, b and 1 more"
    assert some(["a", "b"]) == "a, b"
    assert shortened("x" * 9, 4) == "xxxx..."
    assert shortened("xxxx", 4) == "xxxx"


def test_an_error_without_message_is_named_by_its_class() -> None:
    assert first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:5000/x?token=1", "https://host:5000/x"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("postgresql+psycopg2://me:se%20cret@db/runs", "postgresql+psycopg2://db/runs"),
        ("cannot reach 'http://u:p@h/a?sig=abc' now", "cannot reach 'http://h/a' now"),
        ("http://token@h", "http://h"),
        ("http://user:p@s3cret@host:5000 is away", "http://host:5000 is away"),
        ('http://user:it\'s@host and http://user:"x"@host', "http://host and http://host"),
        ("('http://h/a?key=it's secret', 3)", "('http://h/a secret', 3)"),
        ("https://h/cb#access_token=1, again", "https://h/cb, again"),
        ("http://h:5000/#/experiments/1/runs/2", "http://h:5000/#/experiments/1/runs/2"),
        ("what is this? a question", "what is this? a question"),
        ("me@example.org", "me@example.org"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_long_secrets_are_not_shown_either() -> None:
    assert first_line(ValueError(f"cannot reach http://user:{'s3cret' * 100}@host\nmore")) == "cannot reach http://host"
