import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from tests.conftest import COLOURS, Server, write_pictures
from tl_cli.contract import DataSpec
from tl_cli.data import sources
from tl_cli.data.images import PackedImages
from tl_cli.errors import DataError, DownloadError


def tiny_cifar(server: Server) -> type[CIFAR10]:
    """A CIFAR-10 of 20 + 10 images in the real format, behind a real server."""
    rng = np.random.default_rng(0)
    members = {
        "data_batch_1": {b"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), b"labels": [i % 10 for i in range(20)]},
        "test_batch": {b"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), b"labels": list(range(10))},
        "batches.meta": {b"label_names": list(CIFAR10.meta)},
    }  # fmt: skip
    members["batches.meta"] = {"label_names": [f"c{i}" for i in range(10)]}  # type: ignore[dict-item]
    raw = {name: pickle.dumps({k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()})
           for name, content in members.items()}  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in raw.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    server.files["/cifar-10-python.tar.gz"] = buffer.getvalue()
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in raw.items()}

    class Tiny(CIFAR10):
        url = f"{server.url}/cifar-10-python.tar.gz"
        tgz_md5 = hashlib.md5(buffer.getvalue()).hexdigest()
        train_list = [["data_batch_1", md5["data_batch_1"]]]
        test_list = [["test_batch", md5["test_batch"]]]
        meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}

    return Tiny


def test_cifar10_is_fetched_once_checked_and_read(server: Server, tmp_path: Path) -> None:
    tiny = tiny_cifar(server)
    seen = []
    for _ in range(2):
        parts = sources.open_cifar10(tmp_path, lambda *now: seen.append(now), tiny)
    assert len(server.asked) == 1
    assert seen[-1][0] == "cifar-10-python.tar.gz"
    train = parts["train"]
    assert isinstance(train, PackedImages)
    assert train.pixels.shape == (20, 3, 32, 32)
    assert train.labels.tolist() == [i % 10 for i in range(20)]
    reference = tiny(str(tmp_path), train=True)
    assert np.array_equal(train.pixels[3].permute(1, 2, 0).numpy(), reference.data[3])


def test_a_rotten_cifar10_is_refused_before_its_pickles_are_read(server: Server, tmp_path: Path) -> None:
    tiny = tiny_cifar(server)
    sources.open_cifar10(tmp_path, dataset=tiny)
    member = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    member.write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(DataError, match="not the published CIFAR-10"):
        sources.open_cifar10(tmp_path, dataset=tiny)


def test_cifar10_without_network_says_what_to_do(tmp_path: Path) -> None:
    class Gone(CIFAR10):
        url = "http://127.0.0.1:9/cifar-10-python.tar.gz"

    with pytest.raises(DownloadError, match=rf"put it into {tmp_path}.*--data digits"):
        sources.open_cifar10(tmp_path, dataset=Gone)


def test_digits_are_split_80_10_10_and_keep_their_digests() -> None:
    spec = DataSpec(source="digits", layout="classes")
    first, second = (sources.open_data(spec, workers=1) for _ in range(2))
    assert {name: split.count for name, split in first.spec.splits.items()} == {"train": 1439, "val": 179, "test": 179}
    assert first.spec == second.spec
    assert sources.changed_parts(first.spec, second.spec) == []
    other = sources.open_data(spec.model_copy(update={"split_seed": 1}), workers=1)
    assert sources.changed_parts(first.spec, other.spec) == ["train", "val", "test"]
    ids = [set(images.ids) for images in first.parts.values()]
    assert len(set.union(*ids)) == sum(map(len, ids)) == 1797


def test_a_limit_is_stratified_and_a_folders_own_val_is_kept(tmp_path: Path) -> None:
    for part, count in (("train", 20), ("val", 4)):
        write_pictures(tmp_path / part, COLOURS, count)
    data = sources.open_data(DataSpec(source=str(tmp_path), layout="classes", limit=9), workers=1)
    assert np.bincount(data.parts["train"].labels).tolist() == [3, 3, 3]
    assert set(data.parts) == {"train", "val"}
    assert data.spec.layout == "train/val"


def test_changed_files_change_the_digest(tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, 8)
    spec = DataSpec(source=str(tmp_path), layout="classes")
    before = sources.open_data(spec, workers=1).spec
    write_pictures(tmp_path, {"red": (0, 0, 0)}, 8)
    assert sources.changed_parts(before, sources.open_data(spec, workers=1).spec)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(DataError, match="'cifar100' is neither cifar10 nor digits nor a folder"):
        sources.open_data(DataSpec(source="cifar100", layout="classes"), workers=1)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_a_few_images_a_class_can_be_split(count: int, tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, count)
    data = sources.open_data(DataSpec(source=str(tmp_path), layout="classes"), workers=1)
    assert [np.bincount(part.labels).tolist() for part in data.parts.values()] == [[count - 2] * 3, [1] * 3, [1] * 3]
