"""Explains in one line why a store failed and what to do."""

import re

from tl_cli.errors import first_line, without_secrets

# SQLAlchemy puts the driver's message after the class of its error, on any line of a long message.
_OF_DRIVER = re.compile(r"^\((?:[\w.]+\.)?\w*(?:Error|Exception)\) (.+)$", re.MULTILINE)
_MEANINGS = (
    ("disk is full", "free some space on its disk"),
    ("disk I/O error", "check its disk"),
    ("no such table", "the database has been removed or reset"),
    ("unable to open database file", "the database or its folder has been removed, or may not be read"),
    ("attempt to write a readonly database", "the database has been removed, or may not be written"),
)
# Packages whose modules have other names.
_PACKAGES = {
    "botocore": "boto3",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
_LONGEST = 300


def reason(error: BaseException) -> str:
    """Return why a store failed, without secrets, and what to do if that is clear."""
    missing = next((each for each in _chain(error) if isinstance(each, ModuleNotFoundError) and each.name), None)
    if missing is not None:
        module = str(missing.name).partition(".")[0]
        return f"{first_line(missing)}; pip install {_PACKAGES.get(module, module)}"
    found = _OF_DRIVER.search(str(error))
    message = (without_secrets(found[1]) if found else first_line(error))[:_LONGEST]
    meanings = (meaning for words, meaning in _MEANINGS if words in message and meaning not in message)
    return "; ".join([message, *meanings][:2])


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and its causes."""
    found = [error]
    while (before := found[-1].__cause__ or found[-1].__context__) and before not in found:
        found.append(before)
    return found


def root(error: BaseException) -> BaseException:
    """Return the first error in a chain of causes."""
    return _chain(error)[-1]
