import pytest

from tl_cli.tracking.reasons import reason, root


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT]",
            "database or disk is full; free some space on its disk",
        ),
        (
            "(sqlite3.OperationalError) no such table: runs",
            "no such table: runs; the database has been removed or reset",
        ),
        ("connection refused\nby http://u:p@host", "connection refused"),
        ("cannot reach http://u:p@host", "cannot reach http://host"),
    ],
)
def test_a_failure_is_one_line_with_advice_and_without_secrets(message: str, line: str) -> None:
    assert reason(RuntimeError(message)) == line


def test_a_missing_package_is_named_as_pip_names_it() -> None:
    missing = ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2.extras")
    error = RuntimeError("cannot connect")
    error.__cause__ = missing
    assert reason(error) == "No module named 'psycopg2'; pip install psycopg2-binary"


def test_the_root_is_the_first_cause() -> None:
    first, second, third = OSError("first"), ValueError("second"), RuntimeError("third")
    third.__cause__, second.__context__ = second, first
    assert root(third) is first
    first.__context__ = third  # a cycle
    assert root(third) is first
