import errno
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.support.commands import Result
from tests.support.deep_pictures import png16, tiff
from tests.support.hand_made_pictures import handmade_images, picture
from tests.support.pictures import COLOURS, write_pictures
from tl_cli.contract import DataSpec
from tl_cli.data import checks, pixel_range
from tl_cli.data import decode as pictures
from tl_cli.data.dataset import open_data, open_for_evaluation
from tl_cli.data.decode import decode_picture
from tl_cli.data.images import FileImages
from tl_cli.data.sources import folder
from tl_cli.data.stored_results import result_path
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError
from tl_cli.shortage import ShortageError


def odd_folder(root: Path, classes: int = 3, count: int = 8) -> Path:
    """Images of many sizes, so that they are not packed."""
    for index, (name, colour) in enumerate(list(COLOURS.items())[:classes]):
        write_pictures(root, {name: colour}, count, size=60 + 10 * index)
    return root


def scan(root: Path, worth_storing: int = 500) -> list[str]:
    images = folder.scan(root).parts["train"]
    return [bad.name for bad in checks.unreadable(images, Threads(2), worth_storing=worth_storing)]


KINDS = ["PNG", "JPEG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "PPM"]
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (64, 48), (60 * n, 0, 0)) for n in range(3)]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_mutated_image_is_decoded_or_refused_with_its_name(kind: str, tmp_path: Path) -> None:
    chance = random.Random(kind)
    whole = picture(kind, 1)
    for number in range(150):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: chance.randrange(1, len(data))]
        for _ in range(chance.randrange(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            found = decode_picture(bytes(data)).pixels
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert found.dtype == np.uint8
            assert found.shape[2] == 3
        # Frames after the first may be damaged too.
        (tmp_path / "file").write_bytes(data)
        look = checks.examine_file(str(tmp_path / "file"))
        assert bool(look.bad) != bool(look.header.kind)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "AVIF"])
def test_an_animation_truncated_anywhere_is_examined(kind: str, tmp_path: Path) -> None:
    whole = picture(kind, 1, **FRAMES)
    kinds = set()
    for end in range(1, len(whole) + 1, max(1, len(whole) // 120)):
        (tmp_path / "file").write_bytes(whole[:end])
        look = checks.examine_file(str(tmp_path / "file"))
        assert bool(look.bad) != bool(look.header.kind)
        kinds.add("bad" if look.bad else look.header.frames)
    assert "bad" in kinds


def test_pipes_and_devices_are_not_images(tmp_path: Path, tl) -> None:
    root = odd_folder(tmp_path / "data")
    os.mkfifo(root / "red" / "pipe.png")
    (root / "red" / "zero.png").symlink_to("/dev/zero")
    (root / "red" / "gone.png").symlink_to("nowhere")
    (root / "red" / "itself.png").symlink_to("itself.png")
    assert scan(root) == [f"red/{name}.png" for name in ("gone", "itself", "pipe", "zero")]
    named = tl("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--data", root)
    assert named.code == 2
    assert "4 of 28 images cannot be decoded" in named.err
    assert "red/pipe.png: cannot be decoded: is no regular file" in named.err
    data = open_data(DataSpec(source=str(root), layout="classes", on_bad_image="skip"), workers=2)
    assert sum(len(part) for part in data.parts.values()) == 24
    examined = tl("data", "check", root, "--no-labels", "--json", "--strict")
    assert examined.code == 1
    assert len(json.loads(examined.out)["bad"]) == 4
    weights = tl("train", "timm/test_resnet", "--weights", root / "red" / "pipe.png", "--data", root)
    assert (weights.code, "no regular file" in weights.err) == (2, True)


def test_a_part_without_decodable_images_is_named(tmp_path: Path) -> None:
    odd_folder(tmp_path / "train")
    odd_folder(tmp_path / "test", count=2)
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no test image can be decoded: test/blue/000.png"):
        open_data(DataSpec(source=str(tmp_path), layout="classes", on_bad_image="skip"), workers=2)


def test_thirty_handmade_images_are_checked_correctly(tmp_path: Path) -> None:
    made = handmade_images()
    assert len(made) >= 30
    for name, (data, _) in made.items():
        (tmp_path / "odd").mkdir(exist_ok=True)
        (tmp_path / "odd" / name).write_bytes(data)
    write_pictures(tmp_path, {"plain": (1, 2, 3)}, 3)
    assert scan(tmp_path) == sorted(f"odd/{name}" for name, (_, is_good) in made.items() if not is_good)


@pytest.mark.slow
def test_a_bad_file_is_named_before_training_and_no_file_is_modified(tl, workplace: Path) -> None:
    root = odd_folder(workplace / "data", count=12)
    for name in ("blue/002.png", "red/004.png"):
        (root / name).write_bytes((root / name).read_bytes()[:300])
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    train = ("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "2", "--freeze-epochs", "1",
             "--data", root)  # fmt: skip
    refused: Result = tl(*train)
    assert refused.code == 2
    assert "2 of 36 images cannot be decoded" in refused.err
    for text in ("blue/002.png", "red/004.png", "--on-bad-image skip"):
        assert text in refused.err
    assert "epoch 1" not in refused.out
    skipped = tl(*train, "--on-bad-image", "skip")
    assert skipped.code == 0, skipped.err
    assert "2 of 36 train images cannot be decoded and are left out: blue/002.png, red/004.png" in " ".join(
        skipped.out.split()
    )
    # Opened again without the option to skip files.
    judged = tl("eval", "latest", "--json")
    assert judged.code == 0, judged.err
    assert "differ" not in judged.err
    assert "2 of 36 train images cannot be decoded and are left out" in judged.err
    assert "left out" in json.loads(judged.out)["notes"][0]
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before


def test_skipped_files_are_skipped_in_every_part_and_every_time(tmp_path: Path) -> None:
    root = odd_folder(tmp_path / "data" / "train")
    odd_folder(tmp_path / "data" / "test", count=4)
    bad = tmp_path / "data" / "test" / "red" / "001.png"
    bad.write_bytes(b"")
    spec = DataSpec(source=str(root.parent), layout="classes", on_bad_image="skip")
    data = open_data(spec, workers=2)
    assert [len(data.parts[part]) for part in ("train", "val", "test")] == [21, 3, 11]
    again = open_for_evaluation(data.spec, data.spec.source, data_dir=None)
    assert again.data.spec.splits == data.spec.splits
    with pytest.raises(DataError, match="1 of 36 images cannot be decoded"):
        open_data(spec.model_copy(update={"on_bad_image": "error"}), workers=2)


def test_a_class_without_decodable_images_is_named(tmp_path: Path) -> None:
    root = odd_folder(tmp_path)
    for path in (root / "green").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no image of green can be decoded"):
        open_data(DataSpec(source=str(root), layout="classes", on_bad_image="skip"), workers=2)


def test_files_are_decoded_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = odd_folder(tmp_path / "data")
    decoded: list[object] = []
    decode = FileImages.open
    monkeypatch.setattr(FileImages, "open", lambda *args: decoded.append(args) or decode(*args))
    assert scan(root, worth_storing=24) == []
    assert len(decoded) == 24
    assert scan(root, worth_storing=24) == []
    assert len(decoded) == 24
    (root / "red" / "000.png").write_bytes(b"no picture")
    assert scan(root, worth_storing=24) == ["red/000.png"]
    assert scan(root, worth_storing=24) == ["red/000.png"]
    assert len(decoded) == 48


def test_files_are_read_once_and_with_progress_before_they_are_checked(tmp_path: Path) -> None:
    for part, count in (("train", 260), ("test", 20)):
        write_pictures(tmp_path / part, {"red": (200, 0, 0), "blue": (0, 0, 200)}, count, size=8)
    (tmp_path / "train" / "red" / "000.png").write_bytes(b"no picture")
    totals: dict[str, int] = {}

    def progress(name: str, done: int, total: int | None) -> None:
        totals[name] = totals.get(name, 0) + (total or 0) * (done == total)

    spec = DataSpec(source=str(tmp_path), layout="classes", on_bad_image="skip")
    data = open_data(spec, workers=2, progress=progress)
    assert sum(len(part) for part in data.parts.values()) == 559
    order = list(totals)
    assert order.index("reading images") < order.index("checking images")
    assert totals["reading images"] == 560


def test_temporary_errors_are_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = odd_folder(tmp_path / "data")

    def fail(path: str, max_pixels: int) -> None:
        if str(path).endswith("red/000.png"):
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_check_regular", fail)
        assert scan(root, worth_storing=1) == ["red/000.png"]
    assert scan(root, worth_storing=1) == []


@pytest.mark.parametrize("edited", ['[[999999, "x"]]', '[[-1, "x"]]', '[["a", 1]]', '{"a": 1}', "[1]", "null", "\x00"])
def test_a_stored_result_that_was_edited_is_ignored(tmp_path: Path, edited: str) -> None:
    images = folder.scan(odd_folder(tmp_path / "data")).parts["train"]
    path = result_path(images, "", Threads(1))
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('[[0, "why"]]')
    assert checks.unreadable(images, Threads(1), worth_storing=1) == [checks.Bad(images.ids[0], "why")]
    path.write_text(edited)
    assert checks.unreadable(images, Threads(1), worth_storing=1) == []


def test_many_similar_images_are_all_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)).resize(
        (64, 64), Image.Resampling.BICUBIC
    )
    for number in range(120):
        folder_of = tmp_path / ("red" if number % 2 else "blue")
        folder_of.mkdir(exist_ok=True)
        small.save(folder_of / f"{number:03}.jpg", quality=60 + number % 40, comment=str(number))
    write_pictures(tmp_path, {"red": (1, 2, 3), "blue": (3, 2, 1)}, 20, size=64)
    findings = checks.examine(folder.scan(tmp_path), Threads(2))
    # 40 qualities give 40 images, each in three files with different comments.
    equal, alike = ([group for group in findings.twins if group.exact == exact] for exact in (True, False))
    assert [len(group.places) for group in equal] == [3] * 40
    assert len(alike) <= 3
    assert sum(len(group.places) for group in alike) >= 38
    assert findings.not_compared == 0


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_16_bit_images_that_look_alike_are_found_at_the_levels_of_their_range(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expected = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            values = np.kron(rng.random((8, 8)), np.ones((8, 8)))[..., None] * 1000
            for version, scale in enumerate((1, 0.98)):
                scaled = np.rint(values * scale)
                data = png16(scaled) if kind == "png" else tiff(scaled.astype(np.float32))
                (tmp_path / name / f"{number}_{version}.{kind}").write_bytes(data)
            expected.add(tuple(f"{name}/{number}_{version}.{kind}" for version in (0, 1)))
    scanned = folder.scan(tmp_path)
    scanned = pixel_range.with_range(scanned, (0.0, 1000.0))
    findings = checks.examine(scanned, Threads(2))
    assert {tuple(findings.name(index) for index in group.places) for group in findings.twins} == expected


def test_only_images_with_few_grey_levels_are_reported_as_flat(tmp_path: Path) -> None:
    two = np.random.default_rng(0).integers(0, 2, (24, 24, 1))
    drawn = {
        "drawing.png": saved(two * 255),
        "grey_drawing.png": saved(40 + two * 160),
        "six_greys.png": saved(np.arange(576).reshape(24, 24, 1) % 6 * 51),
        "classes_of_pixels.png": saved(two * 5),
        "dim.png": saved(np.arange(576).reshape(24, 24, 1) % 5 * 20),
        "narrow.png": saved(100 + np.arange(576).reshape(24, 24, 1) % 12),
        "clipped.png": png16(two * 40_000),
        "deep.png": png16(np.arange(576).reshape(24, 24, 1) * 7),
    }
    for name, data in drawn.items():
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes(data)
    write_pictures(tmp_path, {"b": (90, 90, 90)}, 2)
    scanned = folder.scan(tmp_path)
    findings = checks.examine(pixel_range.with_range(scanned, (0.0, 4095.0)), Threads(2))
    named = {Path(findings.name(index)).name for index, _ in findings.flat()}
    assert named == {"classes_of_pixels.png", "dim.png", "narrow.png", "clipped.png"}


def test_16_bit_images_that_differ_by_less_than_a_level_are_not_equal(tmp_path: Path) -> None:
    values = 16 * np.random.default_rng(0).integers(0, 256, (24, 24, 1))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "one.png").write_bytes(png16(values))
    (tmp_path / "a" / "copy.png").write_bytes(png16(values))
    (tmp_path / "b" / "other.png").write_bytes(png16(values + 1))
    scanned = folder.scan(tmp_path)
    # The range has 256 levels of 16 values each, so one value more is still the same level.
    scaled = pixel_range.with_range(scanned, (-8.0, 4072.0))
    levels = [scaled.parts["train"].open(index).pixels for index in range(3)]
    assert np.array_equal(levels[0], levels[2])
    findings = checks.examine(scaled, Threads(2))
    equal = [{findings.name(place) for place in group.places} for group in findings.twins if group.exact]
    assert equal == [{"a/copy.png", "a/one.png"}]


def saved(grey: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(grey[..., 0].astype(np.uint8)).save(held, "PNG")
    return held.getvalue()


def test_a_chain_of_small_differences_is_not_one_group(tmp_path: Path) -> None:
    places = np.linspace(0, 2 * np.pi, 64)
    for number in range(60):
        wave = 128 + 90 * np.sin(places[None, :] + number / 12) * np.cos(2 * places[:, None] + number / 15)
        (tmp_path / "red").mkdir(exist_ok=True)
        Image.fromarray(np.repeat(wave[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "red" / f"{number:02}.png")
    write_pictures(tmp_path, {"blue": (3, 2, 1)}, 4, size=64)
    findings = checks.examine(folder.scan(tmp_path), Threads(2))
    assert findings.twins
    assert max(len(group.places) for group in findings.twins) < 30


def test_checking_files_can_be_stopped(tmp_path: Path) -> None:
    scanned = folder.scan(odd_folder(tmp_path, count=100)).parts["train"]
    seen: list[int] = []

    class StopError(Exception):
        pass

    def progress(name: str, done: int, total: int | None) -> None:
        seen.append(done)
        if done >= 128:
            raise StopError

    with pytest.raises(StopError):
        checks.unreadable(scanned, Threads(2, progress))
    assert seen[-1] < len(scanned)


def bytes_read() -> Callable[[], int]:
    """Return a function that returns how many bytes this process has read since."""

    def total() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = total()
    return lambda: total() - before


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's count of bytes read")
def test_a_file_larger_than_any_image_is_named_by_every_reader_and_not_read(tmp_path: Path) -> None:
    root = odd_folder(tmp_path / "photos")
    huge = root / "red" / "huge.png"
    huge.write_bytes((root / "red" / "000.png").read_bytes())
    os.truncate(huge, 3 << 30)
    read = bytes_read()
    # A pixel takes at most 16 bytes.
    reason = f"the file has 3,221 MB; pictures of more than 1,432 MB are not read; if it is one, give --max-pixels {(3 << 30) // 16}"
    (bad,) = checks.examine(folder.scan(root), Threads(1)).bad()
    assert (bad[1].name, bad[1].reason) == ("red/huge.png", f"cannot be read: {reason}")
    spec = DataSpec(source=str(root), layout="classes")
    with pytest.raises(DataError, match=f"1 of 25 images cannot be decoded:\n  red/huge.png: .*{reason}"):
        open_data(spec, workers=1)
    left = open_data(spec.model_copy(update={"on_bad_image": "skip"}), workers=1)
    assert sum(map(len, left.parts.values())) == 24
    for decode in (decode_picture, pictures.deep_values, pictures.picture_size):
        with pytest.raises(DataError, match=f"huge.png cannot be decoded: {reason}"):
            decode(huge)
    assert read() < 100_000_000


def test_an_image_that_does_not_fit_in_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: object) -> None:
        raise MemoryError

    (tmp_path / "a.png").write_bytes(picture("PNG"))
    monkeypatch.setattr(Image.Image, "load", no_memory)
    monkeypatch.setattr(ImageFile.ImageFile, "load", no_memory)
    with pytest.raises(ShortageError, match="out of memory while decoding .*a.png"):
        checks.examine_file(str(tmp_path / "a.png"))
