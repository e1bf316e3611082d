import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.published_copies import COPIES, make, serve
from tests.support.server import Server
from tl_cli.data.images import FileImages, PackedImages
from tl_cli.data.sources.catalogue import SETS
from tl_cli.data.sources.published import open_part, open_set
from tl_cli.errors import DataError, DownloadError, StorageError

IN_MEMORY = {
    "cifar10",
    "cifar100",
    "mnist",
    "fashionmnist",
    "kmnist",
    "emnist",
    "qmnist",
    "usps",
    "svhn",
    "semeion",
    "stl10",
}


def test_there_is_a_copy_of_every_set_that_is_fetched() -> None:
    assert set(COPIES) == set(SETS) - {"digits"}


@pytest.mark.parametrize("name", COPIES)
def test_a_set_is_fetched_once_unpacked_and_read(name: str, server: Server, tmp_path: Path) -> None:
    row = serve(name, server)
    seen: list[tuple[str, int, int | None]] = []
    scanned = open_set(row, tmp_path, lambda *now: seen.append(now))
    requests_before = len(server.requests)
    again = open_set(row, tmp_path)
    assert requests_before == len(server.requests) == len(row.files)
    assert seen
    assert scanned.classes == again.classes == COPIES[name]().classes
    for part, count in row.images.items():
        images = scanned.parts[part]
        assert len(images) == len(set(images.ids)) == count
        assert isinstance(images, PackedImages if name in IN_MEMORY else FileImages)
        assert images.load(0).shape[0] == 3
        assert images.ids.tolist() == again.parts[part].ids.tolist()
        assert 0 <= images.labels.min() <= images.labels.max() < len(scanned.classes)
    if name not in IN_MEMORY and len(scanned.classes) == 2:
        assert sorted(set(scanned.parts["train"].labels)) == [0, 1]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["mnist", "usps", "svhn", "stl10", "cifar100"])
def test_pixels_and_labels_are_torchvisions_own(name: str, server: Server, tmp_path: Path) -> None:
    row = serve(name, server)
    scanned = open_set(row, tmp_path)
    for part, images in scanned.parts.items():
        reference = open_part(row, tmp_path, part)
        for index in range(len(images)):
            image, label = reference[index]
            assert np.array_equal(images.load(index).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
            assert images.labels[index] == label


def test_emnist_is_turned_upright(server: Server, tmp_path: Path) -> None:
    row = serve("emnist", server)
    images = open_set(row, tmp_path).parts["train"]
    stored = open_part(row, tmp_path, "train").data[5].numpy()
    assert np.array_equal(images.load(5)[0].numpy(), stored.T)


def test_ids_name_the_files_below_the_sets_folder(server: Server, tmp_path: Path) -> None:
    scanned = open_set(serve("food101", server), tmp_path)
    assert scanned.parts["test"].ids.tolist() == ["images/pie/4.jpg", "images/soup/4.jpg"]


def test_files_placed_by_hand_are_used(tmp_path: Path) -> None:
    row, bodies = make("mnist")
    folder = tmp_path / "archives" / "mnist"
    folder.mkdir(parents=True)
    for path, body in bodies.items():
        (folder / path.rpartition("/")[2]).write_bytes(body)
    assert len(open_set(row, tmp_path).parts["train"]) == 20


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "mnist"])
def test_a_server_error_is_retried_and_a_wrong_file_is_refused(name: str, server: Server, tmp_path: Path) -> None:
    row = serve(name, server)
    first = next(iter(server.files))
    server.failures[first] = [503]
    open_set(row, tmp_path / "a")
    server.files[first] = b"a login page"
    with pytest.raises(DownloadError, match=r"md5 is .*put it into .*archives"):
        open_set(row, tmp_path / "b")
    assert not (tmp_path / "b" / str(row.folder)).exists()


def test_a_half_unpacked_folder_is_refused(server: Server, tmp_path: Path) -> None:
    row = serve("eurosat", server)
    open_set(row, tmp_path)
    shutil.rmtree(tmp_path / "eurosat" / "2750" / "River")
    with pytest.raises(DataError, match=r"eurosat is not all of EuroSAT.*remove it"):
        open_set(row, tmp_path)


@pytest.mark.parametrize("name", sorted(set(COPIES) - {"usps", "svhn", "semeion"}))
def test_the_error_for_an_empty_folder_asks_to_remove_it(name: str, tmp_path: Path) -> None:
    row, _ = make(name)
    (tmp_path / str(row.folder)).mkdir(parents=True)
    with pytest.raises(DataError, match="remove it and it will be unpacked again"):
        open_set(row, tmp_path)


def test_a_corrupt_idx_file_is_a_data_error(server: Server, tmp_path: Path) -> None:
    row = serve("mnist", server)
    open_set(row, tmp_path)
    for body in (b"", b"\0\0\x08\x03", b"\0\0\x08\x03" + b"\xff" * 12, b"junk" * 9):
        (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(body)
        with pytest.raises(DataError, match="not the published MNIST"):
            open_set(row, tmp_path)


def test_concurrent_readers_fetch_and_unpack_once(server: Server, tmp_path: Path) -> None:
    row = serve("country211", server)
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.append(len(open_set(row, tmp_path).parts["train"]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [6] * 4
    assert len(server.requests) == 1


def test_an_interrupted_unpacking_starts_again(server: Server, tmp_path: Path) -> None:
    row = serve("eurosat", server)
    left = tmp_path / ".eurosat.tmp" / "eurosat" / "2750" / "Forest"
    left.mkdir(parents=True)
    (left / "half.jpg").write_bytes(b"")
    assert len(open_set(row, tmp_path).parts["train"]) == 6
    assert not (tmp_path / "eurosat" / "2750" / "Forest" / "half.jpg").exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    row, _ = make("eurosat")
    with pytest.raises(StorageError, match="cannot write"):
        open_set(row, tmp_path / "file")
