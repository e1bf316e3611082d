import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from tl_cli.errors import TrackingError
from tl_cli.tracking.reasons import first_cause, reason
from tl_cli.tracking.store import Store


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
    assert first_cause(third) is first
    first.__context__ = third  # a cycle
    assert first_cause(third) is first


def test_the_drivers_message_is_the_reason() -> None:
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import OperationalError

    engine = create_engine("sqlite://")
    with pytest.raises(OperationalError) as missing, engine.connect() as connection:
        connection.execute(text("select * from runs"))
    autoflush = "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)\n"
    for error in (missing.value, mlflow.MlflowException(autoflush + str(missing.value))):
        assert reason(error) == "no such table: runs; the database has been removed or reset"
    with engine.connect() as connection:
        connection.execute(text("create table t (x)"))
        connection.execute(text("pragma max_page_count = 2"))
        with pytest.raises(OperationalError) as full:
            connection.execute(text("insert into t values (zeroblob(90000))"))
    assert reason(mlflow.MlflowException(autoflush + str(full.value))).startswith("database or disk is full; free ")


def test_an_unreachable_database_is_reported_with_the_drivers_message(store: Store, workplace: Path) -> None:
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("drop table tags")
        database.execute("drop table runs")
        database.commit()
    with pytest.raises(TrackingError, match="no such table.*removed or reset"):
        store.runs()
