import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import COLOURS, write_pictures
from tl_cli.contract import DataSpec
from tl_cli.data.dataset import open_data
from tl_cli.data.images import FileImages
from tl_cli.data.packed_names import Names
from tl_cli.data.sizes import Sizes, measure
from tl_cli.data.sources.folder import scan


def test_the_size_is_a_median(tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, 12, size=32)
    Image.new("RGB", (1024, 768)).save(tmp_path / "blue" / "000.png")
    data = open_data(DataSpec(source=str(tmp_path), layout="classes"), workers=1)
    assert isinstance(data.parts["train"], FileImages)
    assert data.native_size == 32


def test_sizes_are_those_of_all_files_that_can_be_read(odd_pictures: Path, tmp_path: Path) -> None:
    images = scan(odd_pictures).parts["train"]
    measured = measure(images)
    assert measured is not None
    expected = []
    for name in images.ids:
        with Image.open(odd_pictures / name) as image:
            expected.append((image.height, image.width))
    assert list(zip(measured.heights.tolist(), measured.widths.tolist(), strict=True)) == expected
    assert measured.median == statistics.median_high(min(size) for size in expected)
    assert not measured.is_sample
    (tmp_path / "text.png").write_text("no picture")
    assert measure(FileImages(Names.of(["text.png", "gone.png"]), np.zeros(2, np.int64), tmp_path)) is None


def test_of_many_files_a_fixed_sample_is_measured(tmp_path: Path) -> None:
    for side in (20, 40):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    # Pairs of an image and its thumbnail, as from a camera: every second one is small.
    names = Names.of([f"{20 + 20 * (index % 2)}.png" for index in range(4000)])
    images = FileImages(names, np.zeros(4000, np.int64), tmp_path)
    one, other = measure(images), measure(images)
    assert one is not None
    assert other is not None
    assert one.is_sample
    assert len(one.heights) < 1000
    assert np.array_equal(one.heights, other.heights)
    assert one.share_below(30) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        # 1 - 210 / 522
        ([(210, 522)] * 3, "leaves out 60% of a typical picture (522 x 210 px)"),
        ([(2000, 500), (300, 300), (400, 1000), (480, 640), (1000, 400)], "60% of a typical picture (1000 x 400 px)"),
        ([(300, 400)] * 8 + [(100, 500)] * 2, "leaves out more than 40% of 20% of the pictures"),
        ([(300, 400)] * 19 + [(100, 500)], None),
        ([(1000, 1500)], None),
    ],
)
def test_a_note_states_what_a_center_crop_leaves_out(sizes: list[tuple[int, int]], message: str | None) -> None:
    measured = Sizes.of(sizes)
    assert measured is not None
    note = measured.crop_note()
    assert (note is None) == (message is None)
    if note is not None and message is not None:
        assert message in note
        assert "--resize pad or squash" in note
