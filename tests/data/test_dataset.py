import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.support.pictures import COLOURS, write_pictures
from tests.support.published_copies import serve
from tests.support.server import Server
from tl_cli.contract import DataSpec
from tl_cli.data import dataset
from tl_cli.data.images import PackedImages
from tl_cli.data.sources.catalogue import SETS, File
from tl_cli.data.sources.published import open_part, open_set
from tl_cli.errors import DataError, DownloadError


def test_cifar10_is_downloaded_once_checked_and_read(server: Server, tmp_path: Path) -> None:
    row = serve("cifar10", server)
    seen: list[tuple[object, ...]] = []
    for _ in range(2):
        parts = open_set(row, tmp_path, lambda *now: seen.append(now)).parts
    assert len(server.requests) == 1
    assert {now[0] for now in seen} == {"cifar-10-python.tar.gz", "unpacking cifar-10-python.tar.gz"}
    train = parts["train"]
    assert isinstance(train, PackedImages)
    assert train.pixels.shape == (6, 3, 32, 32)
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert train.ids[3] == "train/00003"
    reference = open_part(row, tmp_path, "train")
    assert np.array_equal(train.pixels[3].permute(1, 2, 0).numpy(), reference.data[3])


def test_a_corrupt_cifar10_is_refused_before_its_pickles_are_read(server: Server, tmp_path: Path) -> None:
    row = serve("cifar10", server)
    open_set(row, tmp_path)
    member = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    member.write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "never").encode())
    with pytest.raises(DataError, match="not the published CIFAR-10"):
        open_set(row, tmp_path)
    assert not (tmp_path / "never").exists()


def test_without_network_the_error_explains_how_to_get_cifar10(tmp_path: Path) -> None:
    row = replace(SETS["cifar10"], files=(File("http://127.0.0.1:9/cifar-10-python.tar.gz", "0"),))
    with pytest.raises(DownloadError, match=rf"put it into {tmp_path}.*--data digits"):
        open_set(row, tmp_path)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("cifar-10", "cifar10"),
        ("CIFAR100", "cifar100"),
        ("fashion_mnist", "fashionmnist"),
        ("Oxford-IIIT-Pet", "oxfordiiitpet"),
    ],
)
def test_a_built_in_name_may_be_written_in_many_ways(typed: str, name: str) -> None:
    assert dataset.locate(typed) == name


def test_the_recorded_source_is_the_name_in_the_catalogue() -> None:
    assert dataset.open_data(DataSpec(source="Digits", layout="classes"), workers=1).spec.source == "digits"


def test_a_folder_takes_precedence_over_another_spelling_and_is_noted_for_the_exact_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "Digits", COLOURS, 3)
    (tmp_path / "digits").mkdir(exist_ok=True)
    assert dataset.locate("Digits") == str(tmp_path / "Digits")
    data = dataset.open_data(DataSpec(source="digits", layout="classes"), workers=1)
    assert data.classes == tuple("0123456789")
    assert "write --data ./digits" in data.notes[0]


def test_the_error_for_an_unavailable_set_gives_the_reason() -> None:
    with pytest.raises(DataError, match="--data StanfordCars is not available: its publisher has taken it off"):
        dataset.open_data(DataSpec(source="StanfordCars", layout="classes"), workers=1)


def test_the_error_for_a_mistyped_name_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean flowers102"):
        dataset.open_data(DataSpec(source="flower102", layout="classes"), workers=1)


def test_the_error_for_another_file_describes_what_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("")
    with pytest.raises(DataError, match="is a file, and neither a .csv nor an archive; expected one of"):
        dataset.open_data(DataSpec(source=str(path), layout="classes"), workers=1)


def test_the_ids_and_pixels_of_digits_stay_those_of_older_runs() -> None:
    reference = load_digits()
    digest = hashlib.sha256()
    for index, (grey, label) in enumerate(zip(reference.images, reference.target, strict=True)):
        digest.update(f"digits/{index:05d}\0{label}\0".encode())
        digest.update(np.repeat(np.rint(grey * (255 / 16)).astype(np.uint8)[None], 3, axis=0).tobytes())
    scanned = open_set(SETS["digits"], Path())
    assert dataset.describe(scanned.parts["train"], scanned.classes).digest == digest.hexdigest()


def test_digits_are_split_80_10_10_and_keep_their_digests() -> None:
    spec = DataSpec(source="digits", layout="classes")
    first, second = (dataset.open_data(spec, workers=1) for _ in range(2))
    assert {name: split.count for name, split in first.spec.splits.items()} == {"train": 1439, "val": 179, "test": 179}
    assert first.spec == second.spec
    assert dataset.changed_parts(first.spec, second) == []
    other = dataset.open_data(spec.model_copy(update={"split_seed": 1}), workers=1)
    assert dataset.changed_parts(first.spec, other) == ["train", "val", "test"]
    ids = [set(images.ids) for images in first.parts.values()]
    assert len(set.union(*ids)) == sum(map(len, ids)) == 1797


def test_a_limit_is_stratified_and_a_folders_own_val_is_kept(tmp_path: Path) -> None:
    for part, count in (("train", 20), ("val", 4)):
        write_pictures(tmp_path / part, COLOURS, count)
    data = dataset.open_data(DataSpec(source=str(tmp_path), layout="classes", limit=9), workers=1)
    assert np.bincount(data.parts["train"].labels).tolist() == [3, 3, 3]
    assert set(data.parts) == {"train", "val"}
    assert data.spec.layout == "train/val"


def test_changed_files_change_the_digest(tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, 8)
    spec = DataSpec(source=str(tmp_path), layout="classes")
    before = dataset.open_data(spec, workers=1).spec
    write_pictures(tmp_path, {"red": (0, 0, 0)}, 8)
    assert dataset.changed_parts(before, dataset.open_data(spec, workers=1))


def as_earlier_version(spec: DataSpec, data: dataset.LabelledData) -> DataSpec:
    """Return a spec as earlier versions recorded it: digests of lengths, without their scheme."""
    older = {name: dataset.describe(images, data.classes, "lengths") for name, images in data.files.items()}
    raw = spec.model_dump(mode="json")
    raw["splits"] = {name: {"count": split.count, "digest": split.digest} for name, split in older.items()}
    return DataSpec.model_validate(raw)


@pytest.mark.parametrize("size", [32, 600])
def test_digests_of_earlier_versions_are_compared_as_they_were_made(size: int, tmp_path: Path) -> None:
    write_pictures(tmp_path / "d", COLOURS, 8, size=size)
    spec = DataSpec(source=str(tmp_path / "d"), layout="classes")
    data = dataset.open_data(spec, workers=1)
    assert isinstance(data.parts["train"], PackedImages) is (size == 32)
    older = as_earlier_version(data.spec, data)
    assert dataset.changed_parts(older, data) == []
    (tmp_path / "d").rename(tmp_path / "moved")
    judged = dataset.open_for_evaluation(older, str(tmp_path / "moved"), data_dir=None)
    assert judged.is_own
    name = judged.data.parts["test"].ids[0]
    (tmp_path / "moved" / name).write_bytes((tmp_path / "moved" / name).read_bytes() + b"x")
    now = dataset.open_data(spec.model_copy(update={"source": str(tmp_path / "moved")}), workers=1)
    assert dataset.changed_parts(older, now) == ["test"]


def test_the_error_for_an_unknown_name_lists_the_sets() -> None:
    with pytest.raises(
        DataError, match="'zebra' is no built-in set, and nothing here has that name. Known: digits, cifar10"
    ):
        dataset.open_data(DataSpec(source="zebra", layout="classes"), workers=1)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_few_images_per_class_can_be_split(count: int, tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, count)
    data = dataset.open_data(DataSpec(source=str(tmp_path), layout="classes"), workers=1)
    assert [np.bincount(part.labels).tolist() for part in data.parts.values()] == [[count - 2] * 3, [1] * 3, [1] * 3]


def rare_folder(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        write_pictures(root, {name: (len(name) * 20, 10, 200)}, count)
    return root


def counts_of(data: dataset.LabelledData) -> dict[str, list[int]]:
    count = len(data.classes)
    return {name: np.bincount(part.labels, minlength=count).tolist() for name, part in data.parts.items()}


def test_rare_classes_stay_in_training_and_are_named(tmp_path: Path) -> None:
    spec = DataSpec(source=str(rare_folder(tmp_path, many=20, one=1, three=3, two=2)), layout="classes")
    data = dataset.open_data(spec, workers=1)
    assert data.classes == ("many", "one", "three", "two")
    assert counts_of(data) == {"train": [16, 1, 1, 2], "test": [2, 0, 1, 0], "val": [2, 0, 1, 0]}
    assert data.notes == (
        "too few images to hold any out: those of one (1), two (2) are all trained on, none is in test or val; "
        "each class needs 3",
    )
    judged = dataset.open_for_evaluation(data.spec, data.spec.source, data_dir=None)
    assert (judged.is_own, judged.data.notes, counts_of(judged.data)) == (True, data.notes, counts_of(data))


@pytest.mark.parametrize("gone", ["a", "c"])
def test_test_images_can_be_evaluated_if_a_training_class_is_gone(gone: str, tmp_path: Path) -> None:
    for part, count in (("train", 8), ("test", 2)):
        rare_folder(tmp_path / part, a=count, b=count, c=count)
    then = dataset.open_data(DataSpec(source=str(tmp_path), layout="classes"), workers=1).spec
    shutil.rmtree(tmp_path / "train" / gone)
    judged = dataset.open_for_evaluation(then, str(tmp_path), data_dir=None)
    assert judged.is_own
    assert counts_of(judged.data)["test"] == [2, 2, 2]
    assert dataset.changed_parts(then, judged.data) == ["train", "val"]
    assert judged.data.notes == ()


def test_no_image_of_a_rare_class_is_held_out_of_given_training_images(tmp_path: Path) -> None:
    rare_folder(tmp_path / "train", many=20, one=1, two=2)
    rare_folder(tmp_path / "test", many=3, one=1, two=1)
    data = dataset.open_data(DataSpec(source=str(tmp_path), layout="classes"), workers=1)
    assert counts_of(data) == {"train": [18, 1, 1], "test": [3, 1, 1], "val": [2, 0, 1]}
    assert data.notes[0].startswith(
        "too few images to hold any out: those of one (1) are all trained on, none is in val;"
    )


def test_a_limit_keeps_enough_images_for_a_random_split(tmp_path: Path) -> None:
    spec = DataSpec(source=str(rare_folder(tmp_path, many=90, few=5, two=2)), layout="classes", limit=9)
    assert counts_of(dataset.open_data(spec, workers=1)) == {"train": [1, 2, 2], "test": [1, 1, 0], "val": [1, 1, 0]}
    with pytest.raises(DataError, match="--limit 7 is too few for 3 classes; each needs 3 images.*: --limit 8$"):
        dataset.open_data(spec.model_copy(update={"limit": 7}), workers=1)


def test_if_no_class_can_be_split_the_error_lists_all_counts(tmp_path: Path) -> None:
    spec = DataSpec(source=str(rare_folder(tmp_path, one=1, two=2)), layout="classes")
    with pytest.raises(
        DataError, match=r"no class has the 3 images that a random split takes \(one \(1\), two \(2\)\)"
    ):
        dataset.open_data(spec, workers=1)
