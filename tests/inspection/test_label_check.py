import numpy as np
import pytest
import torch

from tl_cli.contract import Preprocessing
from tl_cli.data.images import PackedImages
from tl_cli.data.packed_names import Names
from tl_cli.data.sizes import Sizes
from tl_cli.inspection.label_check import find_suspect_labels, label_preprocessing

COLOURS = torch.tensor([[220, 50, 40], [40, 60, 220], [40, 200, 60]])


def pictures(colours: list[int], labels: list[int]) -> PackedImages:
    noise = torch.Generator().manual_seed(0)
    pixels = COLOURS[colours][:, :, None, None] + torch.randint(-30, 30, (len(colours), 3, 16, 16), generator=noise)
    names = Names.of([f"{index}.png" for index in range(len(colours))])
    return PackedImages(names, np.array(labels), pixels.clamp(0, 255).to(torch.uint8))


@pytest.mark.slow
def test_a_planted_wrong_label_is_found() -> None:
    colours = [0] * 40 + [1] * 40
    labels = list(colours)
    labels[4] = 1
    found, compared = find_suspect_labels(
        pictures(colours, labels), "efficientnet_lite0", most=100, device="cpu", workers=0
    )
    assert (4, 1, 0) in [(each.index, each.given, each.likely) for each in found]
    assert len(found) <= 8
    assert compared.tolist() == sorted(labels)


def test_classes_of_one_image_and_single_classes_are_not_compared() -> None:
    one_each = pictures([0, 0, 1, 1, 2], [0, 0, 1, 1, 2])
    _, compared = find_suspect_labels(one_each, "efficientnet_lite0", most=100, device="cpu", workers=0)
    assert compared.tolist() == [0, 0, 1, 1]
    alone = pictures([0, 0, 1], [0, 0, 1])
    found, compared = find_suspect_labels(alone, "efficientnet_lite0", most=100, device="cpu", workers=0)
    assert (found, len(compared)) == ([], 0)


def test_no_more_images_than_requested_are_compared() -> None:
    colours = [0, 1] * 10
    _, compared = find_suspect_labels(pictures(colours, colours), "efficientnet_lite0", most=8, device="cpu", workers=0)
    assert compared.tolist() == [0] * 4 + [1] * 4


def test_tiny_images_are_enlarged_and_wide_ones_padded() -> None:
    own = Preprocessing(resize=256, crop=224)
    assert label_preprocessing(own, None) == own
    tiny = label_preprocessing(own, Sizes.of([(32, 32)]), enlarged=160)
    assert (tiny.crop_mode, tiny.resize, tiny.crop) == ("center", 160, 160)
    assert label_preprocessing(own, Sizes.of([(210, 522)])).crop_mode == "border"
