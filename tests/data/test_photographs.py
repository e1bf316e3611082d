import numpy as np
import torch
from sklearn.datasets import load_sample_image

from tl_cli.data.photographs import UNKNOWN, photographs


def test_photographs_are_real_of_the_requested_size_and_always_the_same() -> None:
    images = photographs(5, 48)
    assert images.pixels.shape == (5, 3, 48, 48)
    assert images.ids.tolist()[:2] == ["china.jpg#1", "flower.jpg#2"]
    assert set(images.labels.tolist()) == {UNKNOWN}
    assert torch.equal(images.pixels, photographs(5, 48).pixels)
    middle = load_sample_image("china.jpg")[:, 106:533].mean((0, 1))
    # The first is a square of the whole height at a random position.
    assert np.abs(images.pixels[0].float().mean((1, 2)).numpy() - middle).max() < 25
