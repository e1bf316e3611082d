import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from tests.support.pictures import COLOURS, write_pictures
from tl_cli.data.images import (
    FileImages,
    PackedImages,
    are_same,
    changed_files,
    count_shared,
    describe,
    fingerprint,
    is_split,
    pack,
    with_contents,
)
from tl_cli.data.packed_names import Names
from tl_cli.data.sources.folder import scan
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError
from tl_cli.io.array_cache import Store
from tl_cli.io.download import Progress

# Names whose order as text, as UTF-8 and as bytes in the file system differs.
ODD = ("b/2.png", "b/10.png", "b-c/1.png", "b-c/x/0.png", "é/z.png", os.fsdecode("é/caf".encode() + b"\xe9.png"),
       "é/\ufffd.png", "é/\U0001f600.png", "b/\udc80.png", "b/\U00010000.png")  # fmt: skip


def test_the_digest_of_lengths_equals_that_of_older_models(tmp_path: Path) -> None:
    for number, name in enumerate(ODD):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x" * number * 7)
    scanned = scan(tmp_path)
    train = scanned.parts["train"]
    part = train.subset(np.array([7, 2, 0]))
    # Computed when ids were an array of str.
    assert (
        describe(train, scanned.classes, "lengths").digest
        == "b7aabd3f2175504e5efaa1b8528575bb80f45dffbde80f88a9f4cd359afec353"
    )
    assert (
        describe(part, scanned.classes, "lengths").digest
        == "c5556ee48070a4a7c86ed5725d26c7fcf4a2909a0a9e51ad328fc77ed9de7f0d"
    )


def test_the_digest_of_packed_images_equals_that_of_saved_models() -> None:
    pixels = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)
    packed = PackedImages(Names.of(["b", "a", "é", "aa"]), np.arange(4) % 2, pixels)
    expected = "bfef6e0f647d4df06ecf75fff5ec18b8a5a76287ea7531ba76c4534766115bef"
    assert describe(packed, ("x", "y")).digest == expected
    by_columns = pixels.contiguous(memory_format=torch.channels_last)
    assert describe(PackedImages(packed.ids, packed.labels, by_columns), ("x", "y")).digest == expected


def test_the_digest_of_files_covers_names_classes_and_bytes(tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, 2)
    scanned = scan(tmp_path)
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")):
        digest.update(f"{name}\0{name.partition('/')[0]}\0".encode())
        digest.update(hashlib.sha256((tmp_path / name).read_bytes()).digest())
    for images in (scanned.parts["train"], with_contents(scanned.parts)["train"]):
        split = describe(images, scanned.classes)
        assert (split.count, split.digest, split.scheme) == (6, digest.hexdigest(), "contents")
        assert is_split(images, scanned.classes, split)
    assert is_split(
        scanned.parts["train"], scanned.classes, describe(scanned.parts["train"], scanned.classes, "lengths")
    )


@pytest.mark.parametrize("ending", [".bmp", ".ppm", ".png"])
def test_another_image_of_equal_length_changes_the_digest(ending: str, tmp_path: Path) -> None:
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), colour).save(tmp_path / name / f"0{ending}", compress_level=0)
    scanned = scan(tmp_path)
    images = with_contents(scanned.parts)["train"]
    before = describe(images, scanned.classes)
    path = tmp_path / "red" / f"0{ending}"
    stat = path.stat()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path, compress_level=0)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    now = scanned.parts["train"]
    assert path.stat().st_size == stat.st_size
    assert is_split(now, scanned.classes, describe(images, scanned.classes, "lengths"))
    assert not is_split(now, scanned.classes, before)
    assert not are_same(images, now)
    assert changed_files(images) == [f"red/0{ending}"]
    assert count_shared(now, images) == 2
    assert fingerprint(now) != fingerprint(images)


def test_only_an_unusual_limit_on_pixels_changes_the_fingerprint(tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, 1)
    images = scan(tmp_path).parts["train"]
    assert isinstance(images, FileImages)
    files = [hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in images.ids]
    # As in versions without this option.
    usual = hashlib.sha256(f"2 None\0{PIL.__version__}\0".encode() + b"".join(files)).hexdigest()
    assert fingerprint(images) == fingerprint(replace(images, max_pixels=89_478_485)) == usual
    assert fingerprint(replace(images, max_pixels=100_000_000)) != usual


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, 2)
    scanned = scan(tmp_path)
    (tmp_path / "red" / "001.png").unlink()
    with pytest.raises(DataError, match=r"red/001\.png cannot be read: No such file"):
        describe(scanned.parts["train"], scanned.classes)


SIZE = (512, 480)


class Counted:
    """Counts how often images are decoded."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, name: str, done: int, total: int | None) -> None:
        self.times += name == "decoding images" and done == total


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", disk_share=0.9)


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    # Just enough bytes to be stored.
    for name in ("a", "b", "c"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            colour = (10 * number, ord(name), 255)
            Image.new("RGB", SIZE, colour).save(tmp_path / "data" / name / f"{number}.png", compress_level=1)
    images = scan(tmp_path / "data").parts["train"]
    assert isinstance(images, FileImages)
    return images


def packed(files: FileImages, store: Store, progress: Progress) -> PackedImages:
    images = pack(files, Threads(1, progress), budget_bytes=1 << 30, store=store)
    assert isinstance(images, PackedImages)
    return images


def test_images_are_decoded_once_and_then_read_back_the_same(files: FileImages, store: Store) -> None:
    counted = Counted()
    first, second = (packed(files, store, counted) for _ in range(2))
    assert counted.times == 1
    assert torch.equal(first.pixels, second.pixels)
    assert torch.equal(second.pixels, torch.stack([files.load(index) for index in range(12)]))
    second.pixels[0] = 0
    assert torch.equal(packed(files, store, counted).pixels, first.pixels)


@pytest.mark.parametrize("run", ["decodes", "reads"])
def test_pixels_remain_if_their_file_is_truncated_during_the_run(files: FileImages, store: Store, run: str) -> None:
    images = [packed(files, store, Counted()) for _ in range(1 if run == "decodes" else 2)][-1]
    (path,) = store.folder.glob("*.npy")
    os.truncate(path, 0)
    assert torch.equal(images.pixels, torch.stack([files.load(index) for index in range(12)]))


def rewrite(path: Path) -> None:
    Image.new("RGB", SIZE, "white").save(path)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def swap(path: Path) -> None:
    """Replace the file by another image of equal length and time of modification."""
    stat = path.stat()
    other = path.with_name("other")
    Image.new("RGB", SIZE, "black").save(other, "PNG", compress_level=9)
    # Bytes after the end of a PNG are ignored.
    other.write_bytes(other.read_bytes().ljust(stat.st_size, b"\0"))
    assert other.stat().st_size == stat.st_size
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(("change", "times"), [(rewrite, 2), (swap, 2), (touch, 1)])
def test_a_file_that_changed_is_decoded_again(change, times: int, files: FileImages, store: Store) -> None:
    counted = Counted()
    packed(files, store, counted)
    change(files.root / files.ids[4])
    again = packed(files, store, counted)
    assert counted.times == times
    assert torch.equal(again.pixels[4], files.load(4))


def test_files_that_change_while_they_are_decoded_are_named(files: FileImages) -> None:
    images = with_contents({"all": files})["all"]
    rewrite(files.root / files.ids[4])
    with pytest.raises(DataError, match=rf"changed while they were read: {files.ids[4]}; wait"):
        pack(images, Threads(1), budget_bytes=1 << 30)


def test_parts_are_stored_separately_and_found_after_the_folder_has_moved(
    files: FileImages, store: Store, tmp_path: Path
) -> None:
    counted = Counted()
    packed(files, store, counted)
    turned = packed(files.subset(np.arange(12)[::-1].copy()), store, counted)
    assert torch.equal(turned.pixels[0], files.load(11))
    (tmp_path / "data").rename(tmp_path / "moved")
    packed(FileImages(files.ids, files.labels, tmp_path / "moved"), store, counted)
    assert counted.times == 2


@pytest.mark.parametrize("where", ["cache", "/proc/nowhere"])
def test_without_a_writable_store_images_are_decoded_each_time(where: str, files: FileImages, store: Store) -> None:
    folder = store.folder.with_name(where) if where == "cache" else Path(where)
    if where == "cache":
        folder.write_text("a file where the folder should be")
    counted = Counted()
    for _ in range(2):
        images = packed(files, Store(folder), counted)
    assert counted.times == 2
    assert torch.equal(images.pixels[8], files.load(8))


def test_images_of_many_sizes_are_not_stored(files: FileImages, store: Store) -> None:
    Image.new("RGB", (480, 480)).save(files.root / files.ids[8])
    assert pack(files, Threads(1), budget_bytes=1 << 30, store=store) is files
    assert not list(store.folder.glob("*.npy"))


def test_few_images_are_not_stored(files: FileImages, store: Store) -> None:
    packed(files.subset(np.arange(11)), store, Counted())
    assert not store.folder.exists()
