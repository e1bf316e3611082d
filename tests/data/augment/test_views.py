"""An augmentation knows whether an image and its mirror image are all that it makes of an image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tl_cli.data.augment import geometry
from tl_cli.data.augment.pipeline import augment
from tl_cli.data.augment.settings import PRESETS, Augmentation

CHANGES = {
    "shift": 0.1, "min_area": 0.5, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1, "rotation": 5,
    "auto_augment": "randaugment", "random_erasing": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.all_views])
def test_every_image_is_one_of_the_views(name: str) -> None:
    settings = PRESETS[name]
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    keys = np.arange(40)
    moved = augment(geometry.shift_and_flip(images, settings, 0, 1, keys), settings, 0, 1, keys, (0, 0, 0))
    is_plain = (moved == images).flatten(1).all(1)
    is_mirrored = (moved == images.flip(-1)).flatten(1).all(1)
    seen = {"plain": is_plain.any(), "mirrored": is_mirrored.any()}
    assert (is_plain | is_mirrored).all()
    assert tuple(view for view, was in seen.items() if was) == settings.all_views


@pytest.mark.parametrize("name", CHANGES)
def test_any_other_change_has_more_views(name: str) -> None:
    assert Augmentation().all_views == ("plain", "mirrored")
    assert replace(Augmentation(), **{name: CHANGES[name]}).all_views is None
