"""Zip and tar archives, unpacked once into a folder of their own. Trusts nothing that an archive says of itself."""

import bz2
import errno
import gzip
import hashlib
import lzma
import os
import shlex
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Literal

from filelock import FileLock

from tl_cli.contract import USUAL_COLUMNS, Columns
from tl_cli.data.decode import largest_file, too_large
from tl_cli.data.sources import csv, folder
from tl_cli.data.sources import csv_columns as listed_by
from tl_cli.data.sources.found import Found
from tl_cli.data.sources.split_names import part_named
from tl_cli.errors import DataError, StorageError, shortened, some
from tl_cli.io.download import Bytes, Progress, silent

SUFFIXES = (
    ".zip",
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz"),
    *(".tar.xz", ".txz", ".tar.zst", ".tzst"),
)
_CHUNK = 1 << 16
_ZEROS = bytes(_CHUNK)
_PROGRESS_EVERY = 64
_MOST_ENTRIES = 5_000_000
_KEPT_FREE_BYTES = 1 << 30
# Headers and pictures are read in pieces far smaller than this; a header that claims more would fill the memory.
_LARGEST_READ = 64 << 20
_BLOCK = 512
# Notes, one a line. Hidden, so it is neither unpacked from an archive nor taken for a picture.
_LEFT_OUT = ".left-out"
# Of a zip's entry: its name is UTF-8. And the field of Info-ZIP that holds the name as UTF-8 too.
_IS_UTF_8, _UNICODE_PATH = 0x800, 0x7075
# The copy of each archive that this process reads, by how all copies' paths begin; closed as the process ends.
_held: dict[Path, tuple[Path, int]] = {}

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
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
if sys.platform != "win32":
    import fcntl
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
        entry_bytes: of one entry that is written, unpacked.
        ratio: how many times the size of the archive its entries may have together, unpacked. Photographs stay as large
            as they are; bitmaps of plain colours become a hundred times as large.
        ratio_from_bytes: less than this may be unpacked of any archive.
    """

    size_bytes: int
    entries: int = _MOST_ENTRIES
    entry_bytes: int = largest_file()
    ratio: int = 200
    ratio_from_bytes: int = 1 << 30

    @classmethod
    def of_disk(cls, place: Path, max_pixels: int | None = None) -> "Limits":
        """Return what the disk has free at ``place``, less a margin, for pictures of so many pixels."""
        free = shutil.disk_usage(place).free
        return cls(max(0, free - _KEPT_FREE_BYTES), entry_bytes=largest_file(max_pixels))


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What became of an archive's entries.

    Attributes:
        files: how many were written, empty ones that keep only a name aside.
        left_out: how many links and devices were not.
        archives: the names of archives among the entries that are not wanted.
        unsaid: names, as they were read, of which nothing says in which encoding they are.
    """

    files: int
    left_out: int
    archives: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Return what a person should know of the entries."""
        notes = []
        if self.left_out:
            notes.append(f"{self.left_out:,} links or devices in the archive are left out; pack the files themselves")
        if self.archives:
            inner = some([shortened(repr(name)) for name in self.archives])
            notes.append(f"archives in the archive are left out: {inner}; unpack it and give one of these, or a folder")
        if self.unsaid:
            notes.append(
                f"the archive does not say in which encoding {len(self.unsaid):,} names are, such as "
                f"{shortened(repr(self.unsaid[0]))}; if they are wrong, unpack it yourself (unzip -O gbk, or -O sjis, "
                "...) and give the folder"
            )
        return notes


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size: int
    kind: Literal["file", "folder", "hard link", "other"]
    open: Callable[[], Any]
    link: str = ""
    is_unsaid: bool = False


def is_archive(name: str) -> bool:
    """Return whether a file of this name is taken for an archive."""
    return name.lower().endswith(SUFFIXES)


def scan(
    path: Path,
    cache: Path,
    progress: Progress = silent,
    *,
    columns: Columns = USUAL_COLUMNS,
    hints: Columns = USUAL_COLUMNS,
    partial: bool = False,
    lenient: bool = False,
    max_pixels: int | None = None,
) -> Found:
    """Return the classes and images of an archive of folders, or of one with a CSV listing at its top.

    Args:
        cache: where it is unpacked, once for each path, size and time of change.
        progress: told how far into the archive the unpacking is, in bytes.
        columns: as of ``listing.scan``; so are ``hints``.
        partial: as of ``folder.scan``; so is ``lenient``.
        max_pixels: of a picture; larger files are refused. None is the usual limit.

    Raises:
        DataError: it is torn, encrypted, hostile, too large for the disk, or holds nothing that can be used.
        StorageError: the disk is full or may not be written.
    """
    path = path.expanduser().resolve()
    unpacked = _unpack_once(path, cache, progress, max_pixels)
    top = _descend(unpacked)
    listings = listings_in(top, columns, hints)
    try:
        if len(listings) == 1:
            found = csv.scan(listings[0], columns=columns, hints=hints, confined=True, partial=partial, lenient=lenient)
        elif columns != USUAL_COLUMNS:
            raise DataError(f"{len(listings)} CSVs at the top have the columns that are named; there must be one")
        else:
            found = folder.scan(top, partial=partial, lenient=lenient)
    except DataError as error:
        _discard(unpacked)
        raise DataError(f"in {path}, unpacked: {error}") from error
    unread = unread_beside(listings[0], found, columns, hints) if len(listings) == 1 and not partial else []
    if unread:
        names = some([file.name for file in unread])
        found = replace(found, notes=(
            *found.notes,
            f"{names} in the archive: labels that are not read; unpack it, and after the training "
            f"tl eval latest --data {shlex.quote(unread[0].name)} measures the model on them",
        ))  # fmt: skip
    left_out = unpacked / _LEFT_OUT
    notes = left_out.read_text("utf-8").splitlines() if left_out.exists() else []
    return replace(found, notes=(*found.notes, *notes))


def listings_in(top: Path, columns: Columns = USUAL_COLUMNS, hints: Columns = USUAL_COLUMNS) -> list[Path]:
    """Return the CSVs in a folder that list pictures with their labels; of several only that of the training."""
    files = sorted(file for file in top.iterdir() if file.suffix.lower() in csv.SUFFIXES and file.is_file())
    found = [file for file in files if listed_by.is_listing(file, columns, hints)]
    # Kaggle's examples of what is to be sent in have made-up labels.
    found = [file for file in found if "submission" not in file.stem.lower()]
    return [file for file in found if part_named(file.stem) == "train"] or found


def unread_beside(
    listing_: Path, found: Found, columns: Columns = USUAL_COLUMNS, hints: Columns = USUAL_COLUMNS
) -> list[Path]:
    """Return labelled CSVs beside one that was read which are called after parts that it has not."""
    if part_named(listing_.stem) not in (None, "train"):
        return []
    files = sorted(file for file in listing_.parent.iterdir() if file.suffix.lower() in csv.SUFFIXES)
    return [
        file
        for file in files
        if (part := part_named(file.stem)) not in (None, "train")
        and part not in found.parts
        and file.is_file()
        and listed_by.is_listing(file, columns, hints)
    ]


def unpack(
    archive: Path,
    into: Path,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    named: Callable[[str], bool] = lambda name: False,
    is_trusted: bool = False,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> Unpacked:
    """Write the wanted regular files of an archive below ``into`` and return how many.

    A hard link to a file that was written becomes a copy of it; other links, and devices, are left out.

    Args:
        named: of which other files and folders the name is kept, as an empty file or folder.
        is_trusted: its hash is known; its entries may replace files that are there, and have any size.

    Raises:
        DataError: it is torn, encrypted or no archive; an entry would land outside ``into``, comes twice, or is larger
            than it says or than any picture; there are more entries or bytes than ``limits`` (default: what the disk
            has free), or the archive is far too small for them.
        StorageError: the disk is full or may not be written.
    """
    limits = limits or Limits.of_disk(into)
    total = files = left_out = 0
    archives: list[str] = []
    unsaid: list[str] = []
    with _opened(archive) as raw, _explained(archive, into):
        size = os.fstat(raw.fileno()).st_size
        for number, packed in enumerate(_entries(archive, raw), 1):
            _check(archive, packed)
            is_wanted = wanted(packed.name)
            entry = _linked(packed, into, wanted) if packed.kind == "hard link" and is_wanted else packed
            total += entry.size
            if not is_trusted:
                _check_bomb(archive, entry if is_wanted else None, total, size, limits)
            _check_limits(archive, number, total, limits)
            if entry.is_unsaid and (is_wanted or named(entry.name)):
                unsaid.append(entry.name)
            if entry.kind == "file" and is_archive(entry.name) and named(entry.name) and not is_wanted:
                archives.append(entry.name)
            if entry.kind == "file" and is_wanted:
                with _placed(archive, entry, into):
                    _write(archive, entry, into / entry.name, "wb" if is_trusted else "xb")
                files += 1
            elif entry.kind in ("file", "folder"):
                if named(entry.name):
                    _keep_name(entry, into)
            elif is_wanted or named(entry.name):
                left_out += 1
            if number % _PROGRESS_EVERY == 0:
                progress(f"unpacking {archive.name}", Bytes(raw.tell()), size)
        progress(f"unpacking {archive.name}", Bytes(size), size)
    return Unpacked(files, left_out, tuple(archives), tuple(unsaid))


def _linked(entry: _Entry, into: Path, wanted: Callable[[str], bool]) -> _Entry:
    """Return the file that a hard link stands for, or the link itself where no such file was written."""
    target = into / entry.link
    # A file that is not wanted may be there by its name only.
    if _is_outside(entry.link) or not wanted(entry.link) or not target.is_file():
        return entry
    return _Entry(entry.name, target.stat().st_size, "file", partial(target.open, "rb"))


def _keep_name(entry: _Entry, into: Path) -> None:
    path = into / entry.name
    try:
        if entry.kind == "folder":
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    except OSError as error:
        # Where it has no place, pictures in it will not have one either, and are refused.
        if error.errno not in _NO_PLACE:
            raise


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


def _unpack_once(path: Path, cache: Path, progress: Progress, max_pixels: int | None) -> Path:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    stem = f"{path.name.partition('.')[0][:64]}-{_digest(str(path))}-"
    target = cache / "unpacked" / f"{stem}{_digest(f'{found.st_size} {found.st_mtime_ns}')}"

    def fill(temporary: Path) -> Path:
        content = temporary / "content"
        content.mkdir()
        limits = Limits.of_disk(content, max_pixels)
        unpacked = unpack(path, content, wanted=_is_wanted, named=_is_visible, limits=limits, progress=progress)
        if not unpacked.files and unpacked.archives:
            inner = some([shortened(name) for name in unpacked.archives])
            raise DataError(
                f"{path} holds no pictures, but archives ({inner}); unpack it and give one of them: "
                f"--data {shlex.quote(PurePosixPath(unpacked.archives[0]).name)}"
            )
        if not unpacked.files:
            raise DataError(f"{path} holds no pictures; {folder.EXPECTED}")
        if notes := unpacked.notes():
            with _stored(target):
                (content / _LEFT_OUT).write_text("\n".join(notes), "utf-8")
        return content

    make_once(target, fill)
    while not _hold(target, stem):
        make_once(target, fill)
    _remove_others(target, stem)
    return target


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _hold(target: Path, stem: str) -> bool:
    """Keep other processes from removing a copy for as long as this one runs; return whether it is still there."""
    if sys.platform == "win32":
        return True
    archive = target.with_name(stem)
    last, descriptor = _held.pop(archive, (None, -1))
    if last == target and _is_open(descriptor, target):
        _held[archive] = target, descriptor
        return True
    if last:
        os.close(descriptor)
    try:
        descriptor = os.open(target, os.O_RDONLY)
    except OSError:
        return target.exists()
    # Some network disks have no locks; nothing is removed there.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    _held[archive] = target, descriptor
    # Removed while this waited for the lock, it may be there again as another folder.
    return _is_open(descriptor, target)


def _is_open(descriptor: int, place: Path) -> bool:
    return place.exists() and os.path.samestat(os.fstat(descriptor), place.stat())


def _remove_others(target: Path, stem: str) -> None:
    """Remove the copies of an archive as it was before, other than those that a process reads."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        for copy in list(target.parent.iterdir()):
            if copy.name.startswith(stem) and copy != target:
                remove_unread(copy)
            elif copy.name.startswith(f".{stem}") and copy.name.endswith(".old"):
                shutil.rmtree(copy, ignore_errors=True)


def _discard(copy: Path) -> None:
    """Remove a copy that is of no use, unless another process reads it."""
    for archive, (held, descriptor) in list(_held.items()):
        if held == copy:
            del _held[archive]
            os.close(descriptor)
    remove_unread(copy)


def remove_unread(copy: Path) -> bool:
    """Remove an unpacked archive; return False where a process reads it, or that cannot be told."""
    if sys.platform == "win32":
        return False
    with suppress(OSError):
        descriptor = os.open(copy, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Out of the way first: a copy is there whole or not at all.
            aside = copy.rename(copy.with_name(f".{copy.name}.old"))
            shutil.rmtree(aside, ignore_errors=True)
            return True
        finally:
            os.close(descriptor)
    return False


def _is_visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    return _is_visible(name) and (folder.is_picture(path.name) or path.suffix.lower() in csv.SUFFIXES)


def _descend(top: Path) -> Path:
    """Return the first folder with more in it than one folder: people pack the folder, not what it holds."""
    while len(inside := _content(top)) == 1 and inside[0].is_dir():
        if all(folder.is_picture(entry.name) for entry in _content(inside[0])):
            break
        top = inside[0]
    return top


def _content(top: Path) -> list[Path]:
    """Return the folders, pictures and CSVs in a folder; the rest is there by its name only."""
    return [entry for entry in top.iterdir() if entry.is_dir() or _is_wanted(entry.name)]


def _entries(archive: Path, raw: IO[bytes]) -> Iterator[_Entry]:
    return _zip_entries(archive, raw) if _is_zip(archive, raw) else _tar_entries(archive, raw)


def _is_zip(archive: Path, raw: IO[bytes]) -> bool:
    head = raw.read(_BLOCK)
    raw.seek(0)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return True
    # A zip may begin with a program that unpacks it, so only what is surely a tar outweighs the name.
    is_tar = head[257:262] == b"ustar" or head.startswith((*_DECOMPRESSORS, _ZSTD_MAGIC))
    return archive.name.lower().endswith(".zip") and not is_tar


def _zip_entries(archive: Path, raw: IO[bytes]) -> Iterator[_Entry]:
    with zipfile.ZipFile(raw) as zipped:
        for info, name, is_unsaid in _names_in_zip(zipped):
            if info.flag_bits & 1:
                raise DataError(f"{archive} is encrypted; unpack it with its password and give the folder")
            kind = stat.S_IFMT(info.external_attr >> 16)
            is_file = kind in (0, stat.S_IFREG)
            # Some Windows programs write backslashes.
            name = name.replace("\\", "/")
            # Nor does it know a folder whose name ends with a backslash.
            is_folder = name.endswith("/") or kind == stat.S_IFDIR
            yield _Entry(
                name,
                info.file_size,
                "folder" if is_folder else "file" if is_file else "other",
                partial(zipped.open, info),
                is_unsaid=is_unsaid,
            )


def _names_in_zip(zipped: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, str, bool]]:
    """Yield each entry with its name, and whether nothing says in which encoding that is."""
    said = {}
    unsaid = []
    for number, info in enumerate(zipped.infolist()):
        name = info.orig_filename  # zipfile cuts the other one at its NUL
        if info.flag_bits & _IS_UTF_8 or name.isascii():
            said[number] = name
            continue
        raw = name.encode("cp437")
        utf_8 = _unicode_path(info.extra, raw)
        if utf_8 is None:
            unsaid.append(raw)
        else:
            said[number] = utf_8
    # macOS writes UTF-8 and does not say so. A few names in another encoding may be UTF-8 by chance, many are not.
    try:
        read = [raw.decode("utf-8") for raw in unsaid]
    except UnicodeDecodeError:
        read = [raw.decode("cp437") for raw in unsaid]
    rest = iter(read)
    for number, info in enumerate(zipped.infolist()):
        yield info, said[number] if number in said else next(rest), number not in said


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name that Info-ZIP and WinRAR give beside one in another encoding."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        # A version, and the sum of the name that it stands for.
        if kind == _UNICODE_PATH and extra[5:9] == struct.pack("<I", zlib.crc32(raw)):
            return extra[9 : 4 + length].decode("utf-8")
        extra = extra[4 + length :]
    return None


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
            yield _Entry(member.name, member.size, _kind(member), partial(tar.extractfile, member), member.linkname)
            tar.members.clear()  # tarfile remembers every header, and there may be millions
    if stream.last != bytes(_BLOCK):
        raise EOFError("it does not end as a tar does")


def _kind(member: tarfile.TarInfo) -> Literal["file", "folder", "hard link", "other"]:
    if member.isreg():
        return "file"
    if member.isdir():
        return "folder"
    return "hard link" if member.islnk() else "other"


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
    if _is_outside(entry.name):
        raise DataError(f"{archive} is not safe to unpack: its entry {entry.name!r} would land outside its folder")
    if entry.size < 0:
        raise DataError(f"{archive} is torn: {entry.name} claims a size of {entry.size}")


def _is_outside(name: str) -> bool:
    # Read as Windows would, for which both slashes count: what passes is safe everywhere.
    path = PureWindowsPath(name)
    # Elsewhere "a: x" is a name as any other.
    is_drive = bool(path.drive) and (os.name == "nt" or len(path.drive) > 2)
    return "\0" in name or bool(path.root) or is_drive or ".." in path.parts


def _check_limits(archive: Path, entries: int, size: int, limits: Limits) -> None:
    if entries > limits.entries:
        raise DataError(f"{archive} has more than {limits.entries:,} entries; unpack it and give the folder")
    if size > limits.size_bytes:
        raise DataError(
            f"{archive} unpacks to more than {limits.size_bytes / 1e6:,.0f} MB, which is all that may be used; "
            "make room, or say with --data-dir where there is some"
        )


def _check_bomb(archive: Path, entry: _Entry | None, total: int, packed: int, limits: Limits) -> None:
    if entry is not None and entry.size > limits.entry_bytes:
        raise DataError(f"{archive} cannot be used: {entry.name}: {too_large(entry.size, limits.entry_bytes)}")
    if total > max(limits.ratio_from_bytes, limits.ratio * packed):
        raise DataError(
            f"{archive} has {packed / 1e6:,.1f} MB and unpacks to more than {total / 1e6:,.0f} MB, over {limits.ratio} "
            "times as much, as hardly any archive of pictures does; if it is right, unpack it and give the folder"
        )


def _write(archive: Path, entry: _Entry, target: Path, mode: Literal["wb", "xb"]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with entry.open() as source, target.open(mode) as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > entry.size:
                break
            if _ZEROS.startswith(chunk):
                # A hole in a sparse file stays one.
                file.seek(len(chunk), os.SEEK_CUR)
            else:
                file.write(chunk)
        file.truncate()
    if written != entry.size:
        raise DataError(f"{archive} is torn: {entry.name} is not of the {entry.size:,} bytes that it should have")


@contextmanager
def _placed(archive: Path, entry: _Entry, into: Path) -> Iterator[None]:
    """Name the entry for which there is no place.

    Raises:
        DataError: another entry has its name, or a folder or file is where a file or folder should be, or the name is
            too long.
    """
    target = into / entry.name
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        if target.is_file():
            raise DataError(f"{archive} holds {shortened(entry.name)} twice; pack it again") from error
        places = [target, *target.parents]
        clash = next((place for place in places if place.exists() and place.is_dir() == (place == target)), target)
        name = shortened(clash.relative_to(into).as_posix())
        raise DataError(
            f"{archive} holds both a file and a folder called {name}; rename one of them and pack it again"
        ) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise DataError(
            f"{archive} has an entry whose name is too long for this file system: {shortened(entry.name)}; "
            "shorten it and pack it again"
        ) from error


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
