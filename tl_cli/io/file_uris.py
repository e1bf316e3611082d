"""``file:`` URIs, as file managers and MLflow write paths."""

import re
from urllib.parse import unquote

from tl_cli.errors import UsageError

# RFC 8089, and the single slash that pathlib leaves of three.
_URI = re.compile(r"file:(?://([^/]*))?(/.*)", re.IGNORECASE | re.DOTALL)


def local_path(text: str) -> str:
    """Return the path of a ``file:`` URI, and any other text unchanged.

    Raises:
        UsageError: the file is on another machine.
    """
    found = _URI.fullmatch(text)
    if found is None:
        return text
    host, path = found.groups()
    if host not in (None, "", "localhost"):
        raise UsageError(f"{text} is a file of the machine {host!r}, not of this one; copy it here and give its path")
    return unquote(path)
