"""Archives of a few images, written by the standard libraries of their formats."""

import io
import tarfile
from pathlib import Path

from tests.support.published_copies import folders, tar_of, zip_of
from tl_cli.data.sources.unpack import Limits

FILES = folders("photos", ".png", "cat", "dog")
KINDS = {
    "p.zip": zip_of(FILES),
    "p.tar": tar_of(FILES, "w"),
    "p.tar.gz": tar_of(FILES, "w:gz"),
    "p.TGZ": tar_of(FILES, "w:gz"),
    "p.tar.xz": tar_of(FILES, "w:xz"),
    "p.tar.bz2": tar_of(FILES, "w:bz2"),
}
TEN = Limits(size_bytes=10_000_000, entries=10)


def put(folder: Path, name: str, body: bytes) -> Path:
    path = folder / name
    path.write_bytes(body)
    return path


def tar_of_folder(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder, folder.name)
    return buffer.getvalue()


def spread(folder: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(body)
    return folder
