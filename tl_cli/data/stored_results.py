"""Results about image files in the cache folder, computed again only if a file has changed."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from tl_cli.data.images import FileImages, fingerprint, with_contents
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError, StorageError
from tl_cli.io.atomic import write_text
from tl_cli.io.download import cache_root

T = TypeVar("T")
WORTH_STORING = 500  # images; a result about fewer is computed each time


def stored_result(
    images: FileImages,
    what: str,
    kind: TypeAdapter[T],
    compute: Callable[[], tuple[T, bool]],
    threads: Threads,
    *,
    worth_storing: int = WORTH_STORING,
) -> T:
    """Return the stored result for exactly these files, or else a computed one.

    Args:
        what: the kind of result; other settings that it depends on are a part of it.
        kind: its type; a stored file that does not match is ignored.
        compute: returns the result, and whether it may be stored.
        worth_storing: with fewer images, nothing is stored.
    """
    path = None if len(images) < worth_storing else result_path(images, what, threads)
    if path is not None:
        with suppress(OSError, ValueError):  # pydantic's errors are ValueErrors
            return kind.validate_json(path.read_bytes())
    result, may_store = compute()
    if path is not None and may_store:
        with suppress(StorageError):
            write_text(path, kind.dump_json(result).decode())
    return result


def result_path(images: FileImages, what: str, threads: Threads) -> Path | None:
    """Return where a result about these files is stored; None if one of them is missing."""
    try:
        read = with_contents({"": images}, threads)[""]
        key = hashlib.sha256(f"{fingerprint(read)}{what}".encode()).hexdigest()
    except DataError:
        return None
    return cache_root() / "looked-at" / f"{key}.json"
