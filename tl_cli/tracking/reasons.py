"""Explains in one line why a store failed and what to do."""

import re

from tl_cli.errors import first_line, without_secrets

# SQLAlchemy writes the driver's message after the name of its error class, on any line of a long message.
_DRIVER_MESSAGE = re.compile(r"^\((?:[\w.]+\.)?\w*(?:Error|Exception)\) (.+)$", re.MULTILINE)
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
_MAX_LENGTH = 300


def reason(error: BaseException) -> str:
    """Return why a store failed, without secrets, and what to do if that is clear."""
    missing = next((cause for cause in _causes(error) if isinstance(cause, ModuleNotFoundError) and cause.name), None)
    if missing is not None:
        module = str(missing.name).partition(".")[0]
        return f"{first_line(missing)}; pip install {_PACKAGES.get(module, module)}"
    match = _DRIVER_MESSAGE.search(str(error))
    message = (without_secrets(match[1]) if match else first_line(error))[:_MAX_LENGTH]
    meanings = (meaning for words, meaning in _MEANINGS if words in message and meaning not in message)
    return "; ".join([message, *meanings][:2])


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, the first cause last."""
    errors = [error]
    while (cause := errors[-1].__cause__ or errors[-1].__context__) and cause not in errors:
        errors.append(cause)
    return errors


def first_cause(error: BaseException) -> BaseException:
    """Return the first error in a chain of causes."""
    return _causes(error)[-1]
