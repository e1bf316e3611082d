"""Unpacking of zip and tar archives, whose names, sizes and links are checked before anything is written."""

import bz2
import errno
import gzip
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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, Any, Literal

from tl_cli.data.decode import largest_file, too_large
from tl_cli.errors import DataError, shortened, some
from tl_cli.io.atomic import storing
from tl_cli.io.download import Progress, silent

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_CHUNK = 1 << 16
_ZEROS = bytes(_CHUNK)
_PROGRESS_EVERY = 64  # entries
_KEPT_FREE_BYTES = 1 << 30
# Headers and images are read in pieces far smaller than this; a header that claims more would fill the memory.
_LARGEST_READ = 64 << 20
_BLOCK = 512
# A flag of a zip's entry: its name is UTF-8. The extra field in which Info-ZIP repeats a name as UTF-8.
_IS_UTF_8, _UNICODE_PATH = 0x800, 0x7075
_MAKE_ROOM = "; make room, or name a folder on another disk with --data-dir"

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_CLASH = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_DAMAGE: tuple[type[Exception], ...] = (
    *(EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(struct.error, ValueError, OverflowError, RecursionError, MemoryError),  # impossible values in headers
    OSError,  # Python's decompressors raise it without a number
)
if sys.version_info >= (3, 14):
    from compression import zstd

    _DECOMPRESSORS[_ZSTD_MAGIC] = zstd.open
    _DAMAGE = (*_DAMAGE, zstd.ZstdError)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be unpacked.

    Attributes:
        size_bytes: unpacked size of all entries together.
        entries: number of entries.
        entry_bytes: unpacked size of one file that is written.
        ratio: unpacked size of all entries divided by the archive's size. Photographs do not shrink when packed;
            bitmaps of plain colors shrink to a hundredth.
        ratio_from_bytes: unpacked size from which ``ratio`` applies.
    """

    size_bytes: int
    entries: int = 5_000_000
    entry_bytes: int = largest_file()
    ratio: int = 200
    ratio_from_bytes: int = 1 << 30

    @classmethod
    def of_disk(cls, folder: Path, max_pixels: int | None = None) -> "Limits":
        """Return limits for the free space of ``folder``'s disk, less a margin, and images of up to ``max_pixels``."""
        free = shutil.disk_usage(folder).free
        return cls(max(0, free - _KEPT_FREE_BYTES), entry_bytes=largest_file(max_pixels))


@dataclass(slots=True)
class Unpacked:
    """The result of unpacking an archive.

    Attributes:
        files: number of files written, not counting empty ones that keep only a name.
        left_out: number of links and devices, which are not written.
        archives: names of archives inside the archive that were not written.
        undeclared: names, as they were read, whose encoding the archive does not declare.
    """

    files: int = 0
    left_out: int = 0
    archives: list[str] = field(default_factory=list)
    undeclared: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Return notes for the user."""
        notes = []
        if self.left_out:
            notes.append(f"{self.left_out:,} links or devices in the archive are left out; pack the files themselves")
        if self.archives:
            inner = some([shortened(repr(name)) for name in self.archives])
            notes.append(f"archives in the archive are left out: {inner}; unpack it and give one of these, or a folder")
        if self.undeclared:
            notes.append(
                f"the archive does not declare the encoding of {len(self.undeclared):,} names, such as "
                f"{shortened(repr(self.undeclared[0]))}; if they are wrong, unpack it yourself "
                "(unzip -O gbk, or -O sjis, ...) and give the folder"
            )
        return notes


Kind = Literal["file", "folder", "hard link", "other"]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size: int
    kind: Kind
    open: Callable[[], Any]
    link: str = ""
    is_undeclared: bool = False


def is_archive(name: str) -> bool:
    """Return whether a name ends as an archive's."""
    return name.lower().endswith(SUFFIXES)


def unpack(
    archive: Path,
    into: Path,
    *,
    select: Callable[[str], bool] = lambda name: True,
    keep_name: Callable[[str], bool] = lambda name: False,
    is_trusted: bool = False,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> Unpacked:
    """Write the selected regular files of an archive below ``into``.

    A hard link to a file that was written becomes a copy of it; other links, and devices, are left out.

    Args:
        keep_name: which other files and folders are made as empty ones.
        is_trusted: its hash is checked; its entries may replace existing files and have any size.
        limits: as much as the disk has free, if None.

    Raises:
        DataError: it is damaged, encrypted or no archive; an entry would land outside ``into``, occurs twice, or is
            larger than it claims or than any image; or it exceeds ``limits``.
        StorageError: the disk is full or may not be written.
    """
    limits = limits or Limits.of_disk(into)
    if is_trusted:
        limits = replace(limits, entry_bytes=sys.maxsize, ratio=sys.maxsize)
    unpacked, total = Unpacked(), 0
    with _open(archive) as raw, storing(into, _MAKE_ROOM, is_local=True), _explained(archive):
        size = os.fstat(raw.fileno()).st_size
        for number, entry in enumerate(_entries(archive, raw), 1):
            _check_name(archive, entry)
            is_selected, is_kept = select(entry.name), keep_name(entry.name)
            if entry.kind == "hard link" and is_selected:
                entry = _linked(entry, into, select)
            total += entry.size
            if is_selected and entry.size > limits.entry_bytes:
                raise DataError(f"{archive} cannot be used: {entry.name}: {too_large(entry.size, limits.entry_bytes)}")
            _check_limits(archive, number, total, size, limits)
            if entry.is_undeclared and (is_selected or is_kept):
                unpacked.undeclared.append(entry.name)
            if entry.kind == "file" and is_selected:
                _write(archive, entry, into, "wb" if is_trusted else "xb")
                unpacked.files += 1
            elif entry.kind in ("hard link", "other"):
                unpacked.left_out += is_selected or is_kept
            elif is_kept:
                _make_empty(entry, into)
                if entry.kind == "file" and is_archive(entry.name):
                    unpacked.archives.append(entry.name)
            if number % _PROGRESS_EVERY == 0:
                progress(f"unpacking {archive.name}", raw.tell(), size, "bytes")
        progress(f"unpacking {archive.name}", size, size, "bytes")
    return unpacked


def _linked(entry: _Entry, into: Path, select: Callable[[str], bool]) -> _Entry:
    """Return a hard link as the file that it points to, or unchanged if that file was not written."""
    target = into / entry.link
    # A file that was not selected may exist as an empty one.
    if _is_outside(entry.link) or not select(entry.link) or not target.is_file():
        return entry
    return _Entry(entry.name, target.stat().st_size, "file", partial(target.open, "rb"))


def _make_empty(entry: _Entry, into: Path) -> None:
    path = into / entry.name
    try:
        (path if entry.kind == "folder" else path.parent).mkdir(parents=True, exist_ok=True)
        if entry.kind == "file":
            path.touch()
    except OSError as error:
        # An image with such a name is refused when it is written.
        if error.errno not in _CLASH:
            raise


def _entries(archive: Path, raw: IO[bytes]) -> Iterator[_Entry]:
    return _zip_entries(archive, raw) if _is_zip(archive, raw) else _tar_entries(archive, raw)


def _is_zip(archive: Path, raw: IO[bytes]) -> bool:
    head = raw.read(_BLOCK)
    raw.seek(0)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return True
    # A zip may begin with a program that unpacks it, so the name decides unless this is certainly a tar.
    is_tar = head[257:262] == b"ustar" or head.startswith((*_DECOMPRESSORS, _ZSTD_MAGIC))
    return archive.name.lower().endswith(".zip") and not is_tar


def _zip_entries(archive: Path, raw: IO[bytes]) -> Iterator[_Entry]:
    zipped, encoding = _open_zip(raw)
    with zipped:
        for info in zipped.infolist():
            if info.flag_bits & 1:
                raise DataError(f"{archive} is encrypted; unpack it with its password and give the folder")
            name, is_undeclared = _name_in_zip(info, encoding)
            # Some Windows programs write backslashes, also at the end of a folder's name.
            name, mode = name.replace("\\", "/"), info.external_attr >> 16
            is_folder, is_file = name.endswith("/") or stat.S_ISDIR(mode), stat.S_IFMT(mode) in (0, stat.S_IFREG)
            kind = _kind(is_file=is_file, is_folder=is_folder)
            yield _Entry(name, info.file_size, kind, partial(zipped.open, info), is_undeclared=is_undeclared)


def _open_zip(raw: IO[bytes]) -> tuple[zipfile.ZipFile, str]:
    """Return a zip, and the encoding of those names whose encoding it does not declare."""
    # macOS writes UTF-8 without the flag. A few names in another encoding may be valid UTF-8 by chance, many are not.
    try:
        return zipfile.ZipFile(raw, metadata_encoding="utf-8"), "utf-8"
    except UnicodeDecodeError:
        return zipfile.ZipFile(raw), "cp437"


def _name_in_zip(info: zipfile.ZipInfo, encoding: str) -> tuple[str, bool]:
    """Return an entry's name, and whether the archive does not declare its encoding."""
    name, extra = info.orig_filename, info.extra  # zipfile cuts the other name at its NUL
    if info.flag_bits & _IS_UTF_8 or name.isascii():
        return name, False
    checksum = struct.pack("<I", zlib.crc32(name.encode(encoding)))
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        # Info-ZIP and WinRAR: a version, the CRC of the name that is repeated, and the name in UTF-8.
        if kind == _UNICODE_PATH and extra[5:9] == checksum:
            return extra[9 : 4 + length].decode("utf-8"), False
        extra = extra[4 + length :]
    return name, True


def _kind(*, is_file: bool, is_folder: bool, is_link: bool = False) -> Kind:
    return "folder" if is_folder else "file" if is_file else "hard link" if is_link else "other"


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
            kind = _kind(is_file=member.isreg(), is_folder=member.isdir(), is_link=member.islnk())
            yield _Entry(member.name, member.size, kind, partial(tar.extractfile, member), member.linkname)
            tar.members.clear()  # tarfile remembers every header, and there may be millions
    if stream.last != bytes(_BLOCK):
        raise EOFError("it does not end as a tar does")


class _TarStream:
    """The bytes of a tar for tarfile, which by itself accepts any declared size and any end.

    Attributes:
        last: what was read last; a complete tar ends with a block of zeros.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        if not 0 <= size <= _LARGEST_READ:
            raise ValueError(f"a header claims {size:,} bytes")
        self.last = self._stream.read(size)
        return self.last


def _check_name(archive: Path, entry: _Entry) -> None:
    if _is_outside(entry.name):
        raise DataError(f"{archive} is not safe to unpack: its entry {entry.name!r} would land outside its folder")
    if entry.size < 0:
        raise DataError(f"{archive} is damaged: {entry.name} claims a size of {entry.size}")


def _is_outside(name: str) -> bool:
    # Parsed as on Windows, where both slashes separate: what passes is safe everywhere.
    path = PureWindowsPath(name)
    # Other systems allow the name "a: x".
    is_drive = bool(path.drive) and (os.name == "nt" or len(path.drive) > 2)
    return "\0" in name or bool(path.root) or is_drive or ".." in path.parts


def _check_limits(archive: Path, entries: int, total: int, packed: int, limits: Limits) -> None:
    if total > max(limits.ratio_from_bytes, limits.ratio * packed):
        raise DataError(
            f"{archive} has {packed / 1e6:,.1f} MB and unpacks to more than {total / 1e6:,.0f} MB, over {limits.ratio} "
            "times as much, as hardly any archive of images does; if it is right, unpack it and give the folder"
        )
    if entries > limits.entries:
        raise DataError(f"{archive} has more than {limits.entries:,} entries; unpack it and give the folder")
    if total > limits.size_bytes:
        raise DataError(
            f"{archive} unpacks to more than {limits.size_bytes / 1e6:,.0f} MB, all that is free{_MAKE_ROOM}"
        )


def _write(archive: Path, entry: _Entry, into: Path, mode: Literal["wb", "xb"]) -> None:
    target = into / entry.name
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with entry.open() as source, target.open(mode) as file:
            while (chunk := source.read(_CHUNK)) and written <= entry.size:
                written += len(chunk)
                if written <= entry.size:
                    # Zeros are skipped, so that a sparse file stays sparse.
                    file.seek(len(chunk), os.SEEK_CUR) if _ZEROS.startswith(chunk) else file.write(chunk)
            file.truncate()
    except OSError as error:
        if error.errno not in _CLASH:
            raise
        raise DataError(f"{archive} {_clash(entry.name, into, error.errno)} pack it again") from error
    if written != entry.size:
        raise DataError(f"{archive} is damaged: {entry.name} does not have its {entry.size:,} bytes")


def _clash(name: str, into: Path, number: int) -> str:
    """Return why an entry cannot be written: its name is too long, or used by another entry."""
    if number == errno.ENAMETOOLONG:
        return f"has an entry whose name is too long for this file system: {shortened(name)}; shorten it and"
    target = into / name
    if target.is_file():
        return f"holds {shortened(name)} twice;"
    clash = target if target.exists() else next(parent for parent in target.parents if parent.exists())
    path = shortened(clash.relative_to(into).as_posix())
    return f"holds both a file and a folder called {path}; rename one of them and"


def _open(archive: Path) -> IO[bytes]:
    try:
        return archive.open("rb")
    except OSError as error:
        raise DataError(f"{archive} cannot be read: {error.strerror}") from error


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    """Turn the errors of damaged archives into a ``DataError``."""
    try:
        yield
    except NotImplementedError as error:
        raise DataError(f"{archive} cannot be unpacked: {error}; pack it again, or give the folder") from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{archive} is damaged, or no archive: {str(error) or type(error).__name__}") from error
