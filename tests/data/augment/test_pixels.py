import numpy as np
import torch

from tl_cli.data.augment.pixels import images_together, per_image, to_levels


def test_values_are_cut_to_gray_levels() -> None:
    assert to_levels(torch.tensor([-3.0, 0.9, 254.5, 255.9, 300.0])).tolist() == [0, 0, 254, 255, 255]


def test_numbers_per_image_are_float32_and_broadcast_over_pixels() -> None:
    amounts = per_image(np.array([0.5, 2.0]), torch.device("cpu"))
    assert (amounts.dtype, amounts.shape) == (torch.float32, (2, 1, 1, 1))
    assert (torch.ones(2, 3, 4, 4) * amounts)[1].unique().tolist() == [2.0]


def test_large_images_are_changed_one_at_a_time_on_a_cpu() -> None:
    assert images_together(torch.zeros(4, 3, 300, 300)) == 1
    assert images_together(torch.zeros(4, 3, 64, 64)) == 16
