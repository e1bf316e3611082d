import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from tests.support.noise_images import COUNT, IMAGES, INDICES
from tl_cli.data.augment import erasing
from tl_cli.data.augment.settings import Augmentation, Stream, uniform

ERASING = Augmentation(random_erasing=0.5)
FILL = (124, 116, 104)


def test_erasing_fills_one_box_of_about_half_the_images_and_nothing_else() -> None:
    erased = erasing.erase(IMAGES, ERASING, 0, 1, INDICES, FILL)
    chosen = uniform(0, 1, INDICES, Stream.ERASE) < 0.5
    assert 0.3 < chosen.mean() < 0.7
    theirs = IMAGES.clone()
    boxes = erasing.erase_boxes(0, 1, INDICES, 32, 40)
    for index in np.flatnonzero(chosen):
        top, left, height, width = boxes[index].tolist()
        theirs[index] = tv.erase(theirs[index], top, left, height, width, torch.tensor(FILL).view(3, 1, 1))
    assert torch.equal(erased, theirs)
    assert erased.dtype == torch.uint8
    assert not torch.equal(erased, IMAGES)


def test_erasing_does_not_depend_on_the_batch_or_touch_its_input() -> None:
    before = IMAGES.clone()
    whole = erasing.erase(IMAGES, ERASING, 4, 2, INDICES, FILL)
    parts = [erasing.erase(IMAGES[i : i + 1], ERASING, 4, 2, INDICES[i : i + 1], FILL) for i in range(COUNT)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("size", [(64, 64), (64, 100)])
def test_erased_boxes_lie_inside_and_cover_two_to_thirty_three_percent(size: tuple[int, int]) -> None:
    height, width = size
    boxes = erasing.erase_boxes(1, 1, np.arange(20_000), height, width)
    top, left, box_height, box_width = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (box_height > 0).all()
    assert ((top + box_height <= height) & (left + box_width <= width)).all()
    assert ((box_height < height) & (box_width < width)).all()
    area = box_height * box_width / (height * width)
    assert area.min() == pytest.approx(0.02, abs=0.003)
    assert area.max() == pytest.approx(1 / 3, abs=0.02)
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    ratio = box_height / box_width
    assert ratio.min() == pytest.approx(0.3, abs=0.06)
    assert ratio.max() == pytest.approx(3.3, abs=0.6)
    assert len(np.unique(top)) > 50
    assert len(np.unique(left)) > 50


def test_an_image_too_small_for_a_box_is_not_changed() -> None:
    line = IMAGES[:, :, :1]
    assert torch.equal(erasing.erase(line, Augmentation(random_erasing=1.0), 0, 1, INDICES, FILL), line)
