"""Downloads that are checked by their hash. Nothing here depends on the contents of a file."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

import platformdirs

from tl_cli.errors import DownloadError
from tl_cli.io.atomic import making_once, replacing
from tl_cli.io.file_uris import local_path

Unit = Literal["items", "bytes"]


_HEADERS = {"User-Agent": "tl-train"}
_CHUNK = 1 << 20
_TIMEOUT_S = 15
_ATTEMPTS = 3


class Progress(Protocol):
    """A callback for work that takes long."""

    def __call__(self, what: str, done: int, total: int | None, unit: Unit = "items") -> None:
        """Report how much is done.

        Args:
            what: the file or the work.
            total: None if unknown.
            unit: of ``done`` and ``total``.
        """


def silent(what: str, done: int, total: int | None, unit: Unit = "items") -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Published files that are not on this machine.

    Attributes:
        urls: where they are published.
        folder: where they will be stored.
        advice: for a person without network; names the option.
    """

    urls: tuple[str, ...]
    folder: Path
    advice: str

    def __str__(self) -> str:
        names = ", ".join(_name(url) for url in self.urls)
        return f"{names}: not in {self.folder}; published at {', '.join(self.urls)}"

    def check_reachable(self, timeout_s: float = 5) -> None:
        """Send one request to the server of the first file.

        Args:
            timeout_s: short, since a network that drops packets never answers.

        Raises:
            DownloadError: it cannot be reached.
        """
        url = self.urls[0]
        request = urllib.request.Request(url, headers=_HEADERS, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=timeout_s).close()
        except urllib.error.HTTPError:
            return  # the server is there
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self.failure(str(getattr(error, "reason", error))) from error

    def failure(self, reason: str) -> DownloadError:
        """Return the error for a first file that cannot be fetched."""
        return _failure(self.urls[0], reason, self.advice)


def check_reachable(missing: Iterable[Missing | None]) -> None:
    """Send a request to the server of each missing file; one error lists all that cannot be fetched.

    Raises:
        DownloadError: at least one cannot be reached.
    """
    failures = []
    for each in missing:
        try:
            if each is not None:
                each.check_reachable()
        except DownloadError as error:
            failures.append(str(error))
    if failures:
        raise DownloadError("\n".join(dict.fromkeys(failures)))


def cache_root() -> Path:
    """Return the cache folder, for files that can be computed or fetched again: TL_CACHE_DIR or the user's cache."""
    moved = os.environ.get("TL_CACHE_DIR")
    return Path(local_path(moved)).expanduser() if moved else platformdirs.user_cache_path("tl")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(
    url: str, target: Path, expected: str, *, algorithm: str = "sha256", progress: Progress = silent, advice: str = ""
) -> str:
    """Fetch ``target`` from ``url`` unless it exists, check its hash either way, and return the whole hex digest.

    Only one process downloads a file at a time; an interrupted transfer leaves nothing behind.

    Args:
        expected: the hex digest, or its first characters as in torchvision's file names.
        advice: for a person without network; ends the message of an error.

    Raises:
        DownloadError: no network, the server refused, or the file is not the published one.
        StorageError: the disk is full or may not be written.
    """
    with making_once(target) as is_missing:
        if is_missing:
            return _fetch(url, target, expected, algorithm, progress, advice)
    found = digest(target, algorithm)
    if not found.startswith(expected):
        raise DownloadError(
            f"{target} is not the published file: its {algorithm} does not start with {expected}. "
            f"Delete it and it will be fetched again from {url}"
        )
    return found


def _fetch(url: str, target: Path, expected: str, algorithm: str, progress: Progress, advice: str) -> str:
    cause: Exception | None = None
    for _ in range(_ATTEMPTS):
        try:
            return _transfer(url, target, expected, algorithm, progress)
        except (OSError, http.client.HTTPException, _MismatchError) as error:
            cause = error
            # Without a connection, or refused: further attempts would only make the user wait.
            if isinstance(error, urllib.error.URLError) and getattr(error, "code", 0) < 500:
                break
    raise _failure(url, str(getattr(cause, "reason", None) or cause), advice) from cause


def _failure(url: str, reason: str, advice: str) -> DownloadError:
    return DownloadError(f"cannot fetch {_name(url)} from {url} ({reason}). {advice}".rstrip())


def _name(url: str) -> str:
    return Path(urlsplit(url).path).name


def _transfer(url: str, target: Path, expected: str, algorithm: str, progress: Progress) -> str:
    request = urllib.request.Request(url, headers=_HEADERS)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        hashed, done = hashlib.new(algorithm), 0
        with replacing(target) as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                hashed.update(chunk)
                done += len(chunk)
                progress(target.name, done, total, "bytes")
            if not hashed.hexdigest().startswith(expected):
                raise _MismatchError(f"its {algorithm} is {hashed.hexdigest()[:16]}..., expected {expected[:16]}...")
            if total is not None and done != total:
                raise _MismatchError(f"only {done} of {total} bytes arrived")
    return hashed.hexdigest()


class _MismatchError(Exception):
    """The downloaded bytes are not the published file; raised inside ``replacing``, so that it never gets its name."""
