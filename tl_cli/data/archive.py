"""Zip and tar archives, unpacked once into a folder of their own. Trusts nothing that an archive says of itself."""

import bz2
import errno
import gzip
import hashlib
import lzma
import os
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Literal

from filelock import FileLock

from tl_cli.data import folder, listing
from tl_cli.data.found import Found
from tl_cli.errors import DataError, StorageError
from tl_cli.fetch import Progress, silent

SUFFIXES = (
    ".zip",
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz"),
    *(".tar.xz", ".txz", ".tar.zst", ".tzst"),
)
_CHUNK = 1 << 20
_PROGRESS_EVERY = 64
_MOST_ENTRIES = 5_000_000
_KEPT_FREE_BYTES = 1 << 30
# Headers and pictures are read in pieces far smaller than this; a header that claims more would fill the memory.
_LARGEST_READ = 64 << 20
_BLOCK = 512

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_TORN: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
)
if sys.version_info >= (3, 14):
    from compression import zstd

    _DECOMPRESSORS[_ZSTD_MAGIC] = zstd.open
    _TORN = (*_TORN, zstd.ZstdError)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be unpacked.

    Attributes:
        size_bytes: of all entries together, unpacked.
        entries: how many there may be.
    """

    size_bytes: int
    entries: int = _MOST_ENTRIES

    @classmethod
    def of_disk(cls, place: Path) -> "Limits":
        """Return what the disk has free at ``place``, less a margin."""
        return cls(max(0, shutil.disk_usage(place).free - _KEPT_FREE_BYTES))


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size: int
    is_file: bool
    open: Callable[[], Any]


def is_archive(name: str) -> bool:
    """Return whether a file of this name is taken for an archive."""
    return name.lower().endswith(SUFFIXES)


def scan(path: Path, cache: Path, progress: Progress = silent) -> Found:
    """Return the classes and images of an archive of folders, or of one with a CSV listing at its top.

    Args:
        cache: where it is unpacked, once for each path, size and time of change.
        progress: told how far into the archive the unpacking is, in bytes.

    Raises:
        DataError: it is torn, encrypted, hostile, too large for the disk, or holds nothing that can be used.
        StorageError: the disk is full or may not be written.
    """
    path = path.expanduser().resolve()
    top = _descend(_unpack_once(path, cache, progress))
    listings = [file for file in top.iterdir() if file.suffix.lower() == ".csv" and listing.is_listing(file)]
    try:
        return listing.scan(listings[0], confined=True) if len(listings) == 1 else folder.scan(top)
    except DataError as error:
        raise DataError(f"in {path}, unpacked: {error}") from error


def unpack(
    archive: Path,
    into: Path,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    is_trusted: bool = False,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> int:
    """Write the wanted regular files of an archive below ``into`` and return how many. Links and devices are left out.

    Args:
        is_trusted: its hash is known; its entries may replace files that are there.

    Raises:
        DataError: it is torn, encrypted or no archive; an entry would land outside ``into``, comes twice, or is larger
            than it says; there are more entries or bytes than ``limits`` (default: what the disk has free).
        StorageError: the disk is full or may not be written.
    """
    limits = limits or Limits.of_disk(into)
    total = count = 0
    with _opened(archive) as raw, _explained(archive, into):
        size = os.fstat(raw.fileno()).st_size
        for number, entry in enumerate(_entries(archive, raw), 1):
            _check(archive, entry)
            total += entry.size
            _check_limits(archive, number, total, limits)
            if entry.is_file and wanted(entry.name):
                _write(archive, entry, into / entry.name, "wb" if is_trusted else "xb")
                count += 1
            if number % _PROGRESS_EVERY == 0:
                progress(f"unpacking {archive.name}", raw.tell(), size)
        progress(f"unpacking {archive.name}", size, size)
    return count


def make_once(target: Path, fill: Callable[[Path], Path]) -> None:
    """Make the folder ``target``, whole or not at all, and once only, however many processes ask.

    Args:
        fill: told an empty folder, it puts files there and returns the folder in it that becomes ``target``.

    Raises:
        StorageError: the disk is full or may not be written; and whatever ``fill`` raises.
    """
    # A shared, read-only cache has no room for a lock, and a folder that is there was renamed into place whole.
    if target.exists():
        return
    with _stored(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        lock.acquire()
    try:
        if not target.exists():
            _make(target, fill)
    finally:
        lock.release()


def _make(target: Path, fill: Callable[[Path], Path]) -> None:
    # Under the lock, what lies here was left by a process that was killed.
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _stored(target):
            temporary.mkdir()
        filled = fill(temporary)
        with _stored(target):
            filled.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_once(path: Path, cache: Path, progress: Progress) -> Path:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    key = hashlib.sha256(f"{path}\0{found.st_size}\0{found.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    target = cache / "unpacked" / f"{path.name.partition('.')[0][:64]}-{key.hexdigest()[:16]}"

    def fill(temporary: Path) -> Path:
        content = temporary / "content"
        content.mkdir()
        if not unpack(path, content, wanted=_is_wanted, progress=progress):
            raise DataError(f"{path} holds no pictures; {folder.EXPECTED}")
        return content

    make_once(target, fill)
    return target


def _is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
        return False
    return folder.is_picture(path.name) or path.suffix.lower() == ".csv"


def _descend(top: Path) -> Path:
    """Return the first folder with more in it than one folder: people pack the folder, not what it holds."""
    while len(inside := list(top.iterdir())) == 1 and not all(folder.is_picture(e.name) for e in inside[0].glob("*")):
        top = inside[0]
    return top


def _entries(archive: Path, raw: IO[bytes]) -> Iterator[_Entry]:
    return _zip_entries(archive, raw) if archive.name.lower().endswith(".zip") else _tar_entries(archive, raw)


def _zip_entries(archive: Path, raw: IO[bytes]) -> Iterator[_Entry]:
    with zipfile.ZipFile(raw) as zipped:
        for info in zipped.infolist():
            if info.flag_bits & 1:
                raise DataError(f"{archive} is encrypted; unpack it with its password and give the folder")
            kind = stat.S_IFMT(info.external_attr >> 16)
            is_file = not info.is_dir() and kind in (0, stat.S_IFREG)
            # zipfile cuts a name at its NUL; and some Windows programs write backslashes.
            name = info.orig_filename.replace("\\", "/")
            yield _Entry(name, info.file_size, is_file, partial(zipped.open, info))


def _tar_entries(archive: Path, raw: IO[bytes]) -> Iterator[_Entry]:
    head = raw.read(6)
    raw.seek(0)
    if head.startswith(_ZSTD_MAGIC) and _ZSTD_MAGIC not in _DECOMPRESSORS:
        raise DataError(
            f"{archive} is packed with zstd, which Python reads from 3.14 on; unpack it and give the folder"
        )
    opener = next((opener for magic, opener in _DECOMPRESSORS.items() if head.startswith(magic)), None)
    stream = _TarStream(opener(raw) if opener else raw)
    with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            yield _Entry(member.name, member.size, member.isreg(), partial(tar.extractfile, member))
            tar.members.clear()  # tarfile remembers every header, and there may be millions
    if stream.last != bytes(_BLOCK):
        raise EOFError("it does not end as a tar does")


class _TarStream:
    """A tar's bytes on their way to tarfile, which would believe any length and any end.

    Attributes:
        last: what was read last; a tar that is whole ends with a block of zeros.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        if not 0 <= size <= _LARGEST_READ:
            raise ValueError(f"a header claims {size:,} bytes")
        self.last = self._stream.read(size)
        return self.last

    def seek(self, position: int, whence: int = 0) -> int:
        """Go to a position in the unpacked bytes."""
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        """Return the position in the unpacked bytes."""
        return self._stream.tell()


def _check(archive: Path, entry: _Entry) -> None:
    # Read as Windows would, for which both slashes and drives count: what passes is safe everywhere.
    path = PureWindowsPath(entry.name)
    if "\0" in entry.name or path.anchor or ".." in path.parts:
        raise DataError(f"{archive} is not safe to unpack: its entry {entry.name!r} would land outside its folder")
    if entry.size < 0:
        raise DataError(f"{archive} is torn: {entry.name} claims a size of {entry.size}")


def _check_limits(archive: Path, entries: int, size: int, limits: Limits) -> None:
    if entries > limits.entries:
        raise DataError(f"{archive} has more than {limits.entries:,} entries; unpack it and give the folder")
    if size > limits.size_bytes:
        raise DataError(
            f"{archive} unpacks to more than {limits.size_bytes / 1e6:,.0f} MB, which is all that may be used; "
            "make room, or say with --data-dir where there is some"
        )


def _write(archive: Path, entry: _Entry, target: Path, mode: Literal["wb", "xb"]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with entry.open() as source, target.open(mode) as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > entry.size:
                break
            file.write(chunk)
    if written != entry.size:
        raise DataError(f"{archive} is torn: {entry.name} is not of the {entry.size:,} bytes that it should have")


def _opened(archive: Path) -> IO[bytes]:
    try:
        return archive.open("rb")
    except OSError as error:
        raise DataError(f"{archive} cannot be read: {error.strerror}") from error


@contextmanager
def _explained(archive: Path, into: Path) -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        raise DataError(f"{archive} cannot be unpacked: {error}; pack it again, or give the folder") from error
    except FileExistsError as error:
        name = os.path.relpath(str(error.filename), into)
        raise DataError(f"{archive} holds {name} twice; pack it again") from error
    except _TORN as error:
        raise DataError(f"{archive} is torn, or no archive: {str(error) or type(error).__name__}") from error
    except OSError as error:
        # Python's decompressors say OSError, without a number, of bytes that they do not understand.
        if error.errno is None:
            raise DataError(f"{archive} is torn, or no archive: {error}") from error
        raise _unwritable(into, error) from error


@contextmanager
def _stored(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(target.parent, error) from error


def _unwritable(place: Path, error: OSError) -> StorageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "; make room, or say with --data-dir where there is some" if full else ""
    return StorageError(f"cannot write into {place}: {error.strerror or error}{advice}")
