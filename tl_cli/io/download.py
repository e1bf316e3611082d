"""Files from the network and to the disk: one checked download, one atomic write. Knows nothing of what is in them."""

import errno
import hashlib
import http.client
import os
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import platformdirs
from filelock import FileLock

from tl_cli.errors import DownloadError, StorageError
from tl_cli.io.file_uris import local_path

# Called with (what is being done, how much is done, total or None): `Bytes` of a file, or a count such as of images.
Progress = Callable[[str, int, int | None], None]


class Bytes(int):
    """A number of bytes, in progress callbacks: shown as kB or MB."""


_HEADERS = {"User-Agent": "tl-train"}
_CHUNK = 1 << 20
_TIMEOUT_S = 15
# Of a network that drops packets nothing is heard: what is missing is to be said within seconds.
_REACHABLE_WITHIN_S = 5
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Missing:
    """Published files that are not on this machine.

    Attributes:
        urls: their addresses.
        folder: where they are kept.
        advice: what to do without a network; names the flag.
    """

    urls: tuple[str, ...]
    folder: Path
    advice: str

    def __str__(self) -> str:
        names = ", ".join(_name(url) for url in self.urls)
        return f"{names}: not in {self.folder}; published at {', '.join(self.urls)}"

    def check_reachable(self) -> None:
        """Ask the server of the first file once.

        Raises:
            DownloadError: there is no way to it; says the address, the folder and what to do instead.
        """
        url = self.urls[0]
        request = urllib.request.Request(url, headers=_HEADERS, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_REACHABLE_WITHIN_S).close()
        except urllib.error.HTTPError:
            return  # the server is there
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self.failure(str(getattr(error, "reason", error))) from error

    def failure(self, reason: str) -> DownloadError:
        """Return what to raise where the first file cannot be fetched."""
        return _failure(self.urls[0], reason, self.advice)


def check_reachable(missing: Iterable[Missing | None]) -> None:
    """Ask the servers of all missing files, so that all that cannot be fetched is said at once.

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


def silent(name: str, done: int, total: int | None) -> None:
    """Report progress to nobody."""


def cache_root() -> Path:
    """Return the folder for what can be made or fetched again: TL_CACHE_DIR, or one in the user's cache."""
    moved = os.environ.get("TL_CACHE_DIR")
    return Path(local_path(moved)).expanduser() if moved else platformdirs.user_cache_path("tl")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(
    url: str, target: Path, expected: str, *, algorithm: str = "sha256", progress: Progress = silent, advice: str = ""
) -> str:
    """Fetch ``target`` from ``url`` unless it is there, check its hash either way, and return it, whole, in hex.

    Two processes that want the same file wait for each other; a broken transfer leaves nothing behind.

    Args:
        expected: the hex digest, or its first characters as in torchvision's file names.
        advice: what a person without network can do instead; ends the message of a failure.

    Raises:
        DownloadError: no network, the server refused, or the file is not the published one.
        StorageError: the disk is full or may not be written.
    """
    # A shared, read-only cache has no room for a lock, and a file that is there was renamed into place whole.
    if not target.exists():
        with _storing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        with _storing(target), FileLock(target.with_name(target.name + ".lock")):
            if not target.exists():
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
        except urllib.error.HTTPError as error:
            cause = error
            if error.code < 500:
                break
        except urllib.error.URLError as error:  # no connection: it has waited long enough
            cause = error
            break
        except (OSError, http.client.HTTPException, _MismatchError) as error:
            cause = error
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
        seen, done = hashlib.new(algorithm), 0
        with replacing(target) as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                seen.update(chunk)
                done += len(chunk)
                progress(target.name, Bytes(done), total)
            if not seen.hexdigest().startswith(expected):
                raise _MismatchError(f"its {algorithm} is {seen.hexdigest()[:16]}..., expected {expected[:16]}...")
            if total is not None and done != total:
                raise _MismatchError(f"only {done} of {total} bytes arrived")
    return seen.hexdigest()


class _MismatchError(Exception):
    """Leaves ``replacing`` so that the wrong file never gets its name."""


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes ``target``'s name, all of it or not at all, when the block ends well.

    Raises:
        StorageError: the disk is full or may not be written; the old ``target`` is as it was.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with _storing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``target``, atomically."""
    with replacing(target) as file:
        file.write(text.encode())


def _sync_folder(folder: Path) -> None:
    # Without this a power cut can undo the rename; not every file system allows it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _storing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, urllib.error.URLError | ssl.SSLError | TimeoutError | ConnectionError):
            raise
        free = f" ({_free_space(target)} free)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StorageError(f"cannot write {target}: {error.strerror or error}{free}") from error


def _free_space(target: Path) -> str:
    with suppress(OSError):
        folder = next(parent for parent in target.absolute().parents if parent.exists())
        return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB"
    return "unknown space"
