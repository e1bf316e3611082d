import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import COLOURS, write_pictures
from tl_cli.contract import Preprocessing
from tl_cli.data.augmentation import Augmentation
from tl_cli.data.folder import scan
from tl_cli.data.images import FileImages, PackedImages, pack
from tl_cli.data.loaders import Loader, epoch_order
from tl_cli.errors import DataError

SMALL = Preprocessing(resize=16, crop=16)


def loader(images, batch_size: int = 5, workers: int = 0, how: Preprocessing = SMALL) -> Loader:
    return Loader(images, how, batch_size, torch.device("cpu"), workers)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FileImages:
    root = tmp_path_factory.mktemp("mixed")
    write_pictures(root, COLOURS, 4, size=24)
    write_pictures(root / "x", {}, 0)
    write_pictures(root, {"wide": (9, 9, 9)}, 2, size=40)
    return scan(root).parts["train"]


def test_images_of_one_size_are_packed_and_others_are_not(files: FileImages, colours: Path) -> None:
    assert isinstance(pack(files, budget_bytes=1 << 30, workers=2), FileImages)
    train = scan(colours).parts["train"]
    packed = pack(train, budget_bytes=1 << 30, workers=2)
    assert isinstance(packed, PackedImages)
    assert torch.equal(packed.pixels[7], train.load(7))
    assert isinstance(pack(train, budget_bytes=1000, workers=2), FileImages)


@pytest.mark.parametrize("settings", [Augmentation(shift=0.2), Augmentation(min_area=0.3), Augmentation(flip=False)])
def test_workers_change_nothing(files: FileImages, settings: Augmentation) -> None:
    alone, together = (list(loader(files, workers=workers).train(settings, seed=1, epoch=2)) for workers in (0, 3))
    assert len(alone) == len(together) == 3
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("settings", [Augmentation(shift=0.2), Augmentation(min_area=0.3, hue=0.1, rotation=9)])
def test_the_batch_size_does_not_change_an_image(colours: Path, settings: Augmentation) -> None:
    images = pack(scan(colours).parts["train"], budget_bytes=1 << 30, workers=1)
    small, large = (
        torch.cat([batch.inputs for batch in loader(images, batch_size=size).train(settings, 3, 1)]) for size in (5, 24)
    )
    torch.testing.assert_close(small[:45], large[:45], atol=0.02, rtol=0)


def test_every_image_comes_once_an_epoch_in_an_order_of_its_own(files: FileImages) -> None:
    order = [epoch_order(len(files), seed, epoch).tolist() for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert order[0] == order[1]
    assert sorted(order[0]) == list(range(len(files)))
    assert order[0] != order[2] != order[3] != order[0]


def test_a_last_batch_of_one_is_left_out_of_training_only(files: FileImages) -> None:
    assert len(files) == 14
    assert loader(files, batch_size=13).steps == 2
    seen = dataclasses.replace(loader(files, batch_size=13), drop_single=True)
    assert seen.steps == 1
    assert [len(b.labels) for b in seen.train(Augmentation(), 0, 1)] == [13]
    assert [len(b.labels) for b in seen.clean()] == [13, 1]


def test_clean_batches_are_the_decoded_images_mirrored_or_not(files: FileImages) -> None:
    plain = torch.cat([b.inputs for b in loader(files).clean()])
    mirrored = torch.cat([b.inputs for b in loader(files).clean(mirrored=True)])
    assert torch.equal(plain.flip(-1), mirrored)


def test_a_bad_file_is_named_from_a_worker(tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, 2)
    (tmp_path / "red" / "bad.png").write_bytes(b"no picture")
    images = scan(tmp_path).parts["train"]
    with pytest.raises(DataError, match=r"red/bad\.png"):
        list(loader(images, workers=2).clean())


def test_decoding_threads_leave_the_training_threads_alone(files: FileImages) -> None:
    before = torch.get_num_threads()
    list(loader(files, workers=2).clean())
    assert torch.get_num_threads() == before


def test_labels_follow_the_order(files: FileImages) -> None:
    labels = torch.cat([b.labels for b in loader(files).train(Augmentation(), 4, 7)]).numpy()
    assert np.array_equal(labels, files.labels[epoch_order(len(files), 4, 7)])
