import colorsys
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.benchmarks import likeness as made
from tl_cli.data import checks, duplicates
from tl_cli.data.duplicates import Sketch, alike_groups, sketch
from tl_cli.data.sources import folder
from tl_cli.data.threads import Threads


@pytest.fixture(scope="module")
def sets() -> dict[str, list[np.ndarray]]:
    return {"shapes": made.shapes(150), "photographs": made.cuts(128)}


@pytest.mark.slow
@pytest.mark.parametrize("change", made.NEAR)
@pytest.mark.parametrize("name", ["shapes", "photographs"])
def test_near_duplicates_are_found(name: str, change: str, sets: dict[str, list[np.ndarray]]) -> None:
    score = made.score(sets[name], made.NEAR[change])
    # The lowest share measured with 300 shapes and 46 crops is 91% (examples/README.md).
    assert score.found >= 0.85 * score.pictures
    # Of 300 random shapes two pairs happen to be nearly the same.
    assert score.wrong <= 0.02 * score.pictures


@pytest.mark.parametrize("change", made.OTHER)
@pytest.mark.parametrize("name", ["shapes", "photographs"])
def test_different_images_do_not_look_alike(name: str, change: str, sets: dict[str, list[np.ndarray]]) -> None:
    score = made.score(sets[name], made.OTHER[change])
    assert score.found <= 0.05 * score.pictures


@pytest.mark.parametrize(
    "drawings",
    [pytest.param(made.numbers(), id="numbers", marks=pytest.mark.slow), pytest.param(made.gauges(), id="gauges")],
)
def test_drawings_on_a_plain_background_are_distinguished_by_their_small_parts(drawings: list[np.ndarray]) -> None:
    assert made.score(drawings, None).wrong <= 0.02 * len(drawings)
    # Thin writing is damaged most: 70% of the numbers at three quarters of their size were found (examples/README.md).
    for change in ("JPEG 90", "x 0.75", "crop 2%", "bright +5%"):
        score = made.score(drawings, made.NEAR[change])
        assert score.found >= 0.6 * score.pictures
        assert score.wrong <= 0.02 * score.pictures


def test_one_drawing_in_several_colours_is_several_images() -> None:
    drawings = []
    for hue, corners in itertools.product((0.17, 0.25, 0.6), range(3, 15)):
        image = Image.new("RGB", (48, 48), "white")
        colour = tuple(round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.9, 0.9))
        ImageDraw.Draw(image).regular_polygon((24, 24, 18), corners, fill=colour)
        drawings.append(np.asarray(image))
    alike = {frozenset(group) for group in groups_of(drawings)}
    # Polygons with many corners resemble discs; but none looks like one of another color.
    assert all(len({number // 12 for number in group}) == 1 for group in alike)


def test_small_and_plain_images_are_not_compared_by_appearance() -> None:
    assert {sketch(digit) for digit in made.digits()} == {None}
    ramp = np.linspace(120, 130, 64).astype(np.uint8)
    assert sketch(np.broadcast_to(ramp[:, None], (64, 64, 3))) is None
    assert sketch(np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 64, 3))) is not None


def test_only_equal_pixels_are_called_equal(tmp_path: Path) -> None:
    (first, second), photo = made.digits()[:2], made.cuts(128)[20]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for name, pixels in {"one/a.png": first, "one/a.bmp": first, "two/b.png": second, "one/photo.png": photo}.items():
        Image.fromarray(pixels).save(tmp_path / name)
    Image.fromarray(photo).save(tmp_path / "one" / "photo.jpg", quality=90)
    findings = checks.examine(folder.scan(tmp_path), Threads(1))
    groups = {frozenset(map(findings.name, group.places)): group.exact for group in findings.twins}
    # The BMP has the pixels of the PNG in other bytes; the JPEG has other pixels.
    assert groups == {frozenset({"one/a.bmp", "one/a.png"}): True, frozenset({"one/photo.jpg", "one/photo.png"}): False}
    assert findings.plain() == 3


def groups_of(pictures: list[np.ndarray], **limits: int) -> list[list[int]]:
    sketches = [each for each in map(sketch, pictures) if each is not None]
    assert len(sketches) == len(pictures)
    return alike_groups(sketches, pictures.__getitem__, **limits)[0]


def test_an_image_between_two_is_in_the_groups_of_both() -> None:
    photo = Image.fromarray(made.cuts(128)[20])
    # Each is 6% brighter than the previous one, so the first and the last differ by too much.
    steps = [np.asarray(photo.point(lambda value, k=k: value * 0.8 * 1.06**k)) for k in range(4)]
    groups = groups_of(steps)
    assert groups[0][0] == 0
    assert not any({0, 3} <= set(group) for group in groups)
    assert {number for group in groups for number in group} == {0, 1, 2, 3}


def test_near_hashes_are_found_among_many_and_those_beyond_the_limit_are_counted() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 20_000, dtype=np.uint64)
    for position in range(300):
        near = hashes[position]
        for bit in rng.choice(64, rng.integers(0, 9), replace=False):
            near ^= np.uint64(1) << np.uint64(bit)
        hashes[-1 - position] = near
    index, leaders = duplicates._plan(hashes, 1 << 40)
    assert (index.bits, len(leaders)) == (8, 20_000)
    assert all(19_999 - position in index.near(position) for position in range(300))
    fewer, _ = duplicates._plan(hashes, 10_000_000)
    assert fewer.bits < 8
    _, leaders = duplicates._plan(hashes, 10_000)
    assert len(leaders) < 10_000


def test_images_beyond_the_limits_are_counted_as_not_compared() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    one = np.asarray(Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC))
    same: Sketch | None = sketch(one)
    assert same is not None
    groups, left = alike_groups([same] * 50, lambda number: one)
    assert (groups, left) == ([list(range(50))], 0)
    # The first is compared with ten others only; it and the rest count as not compared.
    groups, left = alike_groups([same] * 50, lambda number: one, most_verified=10)
    assert (groups, left) == ([list(range(11))], 40)
