import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.pictures import COLOURS, write_pictures
from tl_cli.contract import Preprocessing
from tl_cli.data.augment.erasing import erase
from tl_cli.data.augment.geometry import crop_boxes
from tl_cli.data.augment.policies import apply_policy
from tl_cli.data.augment.settings import Augmentation
from tl_cli.data.batches import Loader, balanced_order, epoch_order, training_order
from tl_cli.data.images import FileImages, PackedImages, pack
from tl_cli.data.packed_names import Names
from tl_cli.data.preprocess import Picture
from tl_cli.data.sources.folder import scan
from tl_cli.data.threads import Threads
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
    assert isinstance(pack(files, Threads(2), budget_bytes=1 << 30), FileImages)
    train = scan(colours).parts["train"]
    packed = pack(train, Threads(2), budget_bytes=1 << 30)
    assert isinstance(packed, PackedImages)
    assert torch.equal(packed.pixels[7], train.load(7))
    assert isinstance(pack(train, Threads(2), budget_bytes=1000), FileImages)


@pytest.mark.parametrize(
    "settings",
    [
        Augmentation(shift=0.2),
        Augmentation(min_area=0.3),
        Augmentation(flip=False),
        Augmentation(auto_augment="randaugment", random_erasing=0.5),
    ],
)
def test_results_do_not_depend_on_workers(files: FileImages, settings: Augmentation) -> None:
    alone, together = (list(loader(files, workers=workers).train(settings, seed=1, epoch=2)) for workers in (0, 3))
    assert len(alone) == len(together) == 3
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    "settings",
    [Augmentation(shift=0.2), Augmentation(min_area=0.3, hue=0.1, rotation=9), Augmentation(random_erasing=0.5)],
)
def test_the_batch_size_does_not_change_an_image(colours: Path, settings: Augmentation) -> None:
    images = pack(scan(colours).parts["train"], Threads(1), budget_bytes=1 << 30)
    small, large = (
        torch.cat([batch.inputs for batch in loader(images, batch_size=size).train(settings, 3, 1)]) for size in (5, 24)
    )
    assert torch.equal(small[:45], large[:45])


def test_every_epoch_has_every_image_once_in_another_order(files: FileImages) -> None:
    order = [epoch_order(len(files), seed, epoch).tolist() for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert order[0] == order[1]
    assert sorted(order[0]) == list(range(len(files)))
    assert order[0] != order[2] != order[3] != order[0]


def test_only_training_drops_a_last_batch_of_one(files: FileImages) -> None:
    assert len(files) == 14
    assert loader(files, batch_size=13).steps == 2
    seen = dataclasses.replace(loader(files, batch_size=13), drop_single=True)
    assert seen.steps == 1
    assert [len(b.labels) for b in seen.train(Augmentation(), 0, 1)] == [13]
    assert [len(b.labels) for b in seen.clean()] == [13, 1]


def test_clean_batches_are_the_decoded_images_flipped_or_not(files: FileImages) -> None:
    plain = torch.cat([b.inputs for b in loader(files).clean()])
    mirrored = torch.cat([b.inputs for b in loader(files).clean(mirrored=True)])
    assert torch.equal(plain.flip(-1), mirrored)


def test_a_bad_file_is_named_from_a_worker(tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, 2)
    (tmp_path / "red" / "bad.png").write_bytes(b"no picture")
    images = scan(tmp_path).parts["train"]
    with pytest.raises(DataError, match=r"red/bad\.png"):
        list(loader(images, workers=2).clean())


def test_decoding_threads_do_not_change_the_number_of_training_threads(files: FileImages) -> None:
    before = torch.get_num_threads()
    list(loader(files, workers=2).clean())
    assert torch.get_num_threads() == before


def test_labels_follow_the_order(files: FileImages) -> None:
    labels = torch.cat([b.labels for b in loader(files).train(Augmentation(), 4, 7)]).numpy()
    assert np.array_equal(labels, files.labels[epoch_order(len(files), 4, 7)])


def test_a_policy_is_applied_after_geometry_and_erasing_last_with_the_mean_color(files: FileImages) -> None:
    plain = Augmentation(flip=True, shift=0.1, rotation=10)
    settings = dataclasses.replace(plain, auto_augment="trivialaugment", random_erasing=0.9)
    moved = list(loader(files).augmented(plain, 6, 2))
    whole = list(loader(files).augmented(settings, 6, 2))
    mean = (124, 116, 104)
    for (indices, before), (same, after) in zip(moved, whole, strict=True):
        assert np.array_equal(indices, same)
        changed = apply_policy(before, settings, 6, 2, indices)
        assert torch.equal(after, erase(changed, settings, 6, 2, indices, mean))
        assert not torch.equal(after, changed)


LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5], [60, 25, 4, 12]))
EPOCHS = [balanced_order(LABELS, 3, epoch) for epoch in range(1, 13)]


def test_a_balanced_epoch_has_as_many_images_of_each_class() -> None:
    given = np.zeros(6, dtype=int)
    for indices, _ in EPOCHS:
        counts = np.bincount(LABELS[indices], minlength=6)
        assert len(indices) == len(LABELS) == 101
        assert set(counts[[0, 1, 2, 5]]) <= {25, 26}
        given += counts
    # The remaining position goes to the classes in turns: each of the four has it in 3 of 12 epochs.
    assert set(given[[0, 1, 2, 5]]) == {12 * 101 // 4}


def test_a_balanced_epoch_repeats_an_image_only_after_all_others_of_its_class() -> None:
    for indices, _ in EPOCHS:
        for label in (0, 1, 2, 5):
            times = np.bincount(indices, minlength=len(LABELS))[label == LABELS]
            assert times.max() - times.min() <= 1


def test_balanced_epochs_use_all_of_a_large_class_before_repeating() -> None:
    total = np.zeros(len(LABELS), dtype=int)
    for indices, _ in EPOCHS:
        total += np.bincount(indices, minlength=len(LABELS))
        assert np.ptp(total[LABELS == 0]) <= 1


def test_balanced_orders_are_functions_of_seed_and_epoch_and_mix_the_classes() -> None:
    again = balanced_order(LABELS, 3, 1)
    assert all(np.array_equal(one, other) for one, other in zip(again, EPOCHS[0], strict=True))
    for other in (EPOCHS[1], balanced_order(LABELS, 4, 1)):
        assert not np.array_equal(other[0], EPOCHS[0][0])
    assert len(np.unique(LABELS[EPOCHS[0][0][:20]])) == 4


def test_the_keys_of_an_epoch_differ_and_contain_the_indices() -> None:
    for indices, keys in EPOCHS:
        assert len(np.unique(keys)) == len(keys)
        assert np.array_equal(keys % len(LABELS), indices)
        first = np.unique(indices, return_index=True)[1]
        assert np.array_equal(keys[first], indices[first])
        for image in np.flatnonzero(LABELS == 2):
            own = keys[indices == image]
            assert np.array_equal(own, image + len(LABELS) * np.arange(len(own)))


def test_without_balancing_the_order_is_the_epoch_order() -> None:
    indices, keys = training_order(LABELS, 3, 7)
    assert np.array_equal(indices, epoch_order(len(LABELS), 3, 7))
    assert np.array_equal(keys, indices)


def test_a_balanced_training_order_is_the_balanced_order() -> None:
    for one, other in zip(training_order(LABELS, 3, 1, balanced=True), EPOCHS[0], strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "settings",
    [
        Augmentation(flip=False, min_area=0.3),
        Augmentation(flip=False, shift=0.4),
        Augmentation(flip=False, auto_augment="trivialaugment", random_erasing=0.9),
    ],
)
def test_a_repeated_image_is_augmented_differently(
    tmp_path: Path, settings: Augmentation, workers: int, packed: bool
) -> None:
    write_pictures(tmp_path, {"blue": COLOURS["blue"]}, 18, size=24)
    write_pictures(tmp_path, {"red": COLOURS["red"]}, 3, size=24)
    images = scan(tmp_path).parts["train"]
    if packed:
        images = pack(images, Threads(1), budget_bytes=1 << 30)
    balanced = dataclasses.replace(loader(images, workers=workers), balanced=True)
    seen = list(balanced.augmented(settings, 2, 1))
    indices = np.concatenate([places for places, _ in seen])
    pictures = torch.cat([pictures for _, pictures in seen])
    for image in np.flatnonzero(images.labels == images.labels[-1]):
        same = pictures[torch.from_numpy(indices == image)]
        assert len(same) >= 2
        assert len(same.flatten(1).unique(dim=0)) > 1
    labels = torch.cat([b.labels for b in balanced.train(settings, 2, 1)]).numpy()
    assert np.array_equal(labels, images.labels[indices])
    assert balanced.steps == loader(images).steps


CHANGES = [
    Augmentation(shift=0.125),
    Augmentation(min_area=0.35),
    Augmentation(shift=0.1, hue=0.1, contrast=0.2, rotation=9, random_erasing=0.5),
]


@pytest.mark.parametrize("settings", CHANGES)
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("size", [16, 24, 48])
def test_the_memory_format_does_not_change_values(
    colours: Path, settings: Augmentation, is_packed: bool, size: int
) -> None:
    images = scan(colours).parts["train"]
    if is_packed:
        images = pack(images, Threads(1), budget_bytes=1 << 30)
    plain = loader(images, how=Preprocessing(resize=size, crop=size))
    by_pixel = dataclasses.replace(plain, memory_format=torch.channels_last)
    for one, other in (
        (plain.train(settings, 3, 1), by_pixel.train(settings, 3, 1)),
        (plain.clean(mirrored=True), by_pixel.clean(mirrored=True)),
    ):
        for mine, theirs in zip(one, other, strict=True):
            assert mine.inputs.is_contiguous()
            assert theirs.inputs.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(mine.inputs, theirs.inputs)


@pytest.mark.parametrize("settings", CHANGES)
def test_images_that_do_not_fit_on_the_device_are_sent_batch_by_batch(colours: Path, settings: Augmentation) -> None:
    images = pack(scan(colours).parts["train"], Threads(1), budget_bytes=1 << 30)
    whole = loader(images)
    parts = dataclasses.replace(whole, device_share=0.0)
    for one, other in zip(whole.train(settings, 3, 1), parts.train(settings, 3, 1), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)


def test_images_in_order_equal_the_images_of_the_epoch(files: FileImages) -> None:
    settings = Augmentation(min_area=0.4, hue=0.1)
    indices = np.concatenate([places for places, _ in loader(files).augmented(settings, 3, 2)])
    shuffled = torch.cat([batch.inputs for batch in loader(files).train(settings, 3, 2)])
    ordered = torch.cat([batch.inputs for batch in loader(files).in_order(settings, 3, 2)])
    assert torch.equal(ordered[torch.from_numpy(indices)], shuffled)


def test_a_random_crop_of_a_large_jpeg_is_not_enlarged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (2400, 1800)).save(tmp_path / name / "x.jpg")
    images = RecordingFiles(scan(tmp_path).parts["train"])
    settings = Augmentation(min_area=0.08)
    list(dataclasses.replace(loader(images), preprocessing=Preprocessing(resize=110, crop=96)).train(settings, 0, 1))
    for shape in images.shapes:
        boxes = crop_boxes(settings, 0, 1, np.arange(500), *shape[:2])
        assert boxes[:, 2:].min() >= 96


class RecordingFiles:
    """Files that remember how large they were decoded."""

    def __init__(self, files: FileImages) -> None:
        self.files = files
        self.labels = files.labels
        self.shapes: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int, short_side: int | None = None) -> Picture:
        picture = self.files.open(index, short_side)
        self.shapes.append(picture.pixels.shape)
        return picture


@pytest.mark.parametrize("shape", [(32, 32), (32, 39), (33, 20)])
def test_an_image_that_training_flips_equals_the_flipped_view(shape: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (8, 3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    packed = PackedImages(Names.of(map(str, range(8))), np.zeros(8, dtype=np.int64), pixels)
    own = loader(packed, batch_size=8)
    (plain,), (mirrored,) = list(own.clean()), list(own.clean(mirrored=True))
    (drawn,) = list(own.in_order(Augmentation(), seed=0, epoch=1))
    same = [[torch.equal(image, view) for view in views] for image, *views in
            zip(drawn.inputs, plain.inputs, mirrored.inputs, strict=True)]  # fmt: skip
    assert all(any(row) for row in same)
    assert any(row[1] and not row[0] for row in same)
