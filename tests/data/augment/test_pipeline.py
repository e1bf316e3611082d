import os
import subprocess
import sys

import torch

from tests.support.augmented import digest
from tests.support.noise_images import COUNT, IMAGES, INDICES
from tl_cli.data.augment import geometry
from tl_cli.data.augment.pipeline import augment
from tl_cli.data.augment.settings import Augmentation

FILL = (124, 116, 104)


def test_no_augmentation_changes_nothing() -> None:
    nothing = Augmentation(flip=False)
    assert torch.equal(geometry.shift_and_flip(IMAGES, nothing, 0, 1, INDICES), IMAGES)
    assert torch.equal(augment(IMAGES, nothing, 0, 1, INDICES, FILL), IMAGES)


def test_an_image_is_the_same_to_the_bit_in_a_large_batch_and_alone() -> None:
    images = IMAGES.repeat(1, 1, 4, 4)
    settings = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.5, rotation=15)
    whole = augment(images, settings, 5, 1, INDICES, FILL)
    alone = [augment(images[i : i + 1], settings, 5, 1, INDICES[i : i + 1], FILL) for i in range(0, COUNT, 7)]
    assert torch.equal(whole[::7], torch.cat(alone))


def test_augmentation_is_the_same_with_other_instructions_of_the_processor() -> None:
    choices = (
        {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    command = [sys.executable, "-m", "tests.support.augmented"]
    processes = [
        subprocess.Popen(command, env={**os.environ, **choice}, stdout=subprocess.PIPE, text=True) for choice in choices
    ]
    said = [process.communicate()[0].split() for process in processes]
    assert said[0][0] == "DEFAULT"
    assert [each[1] for each in said] == [digest()] * len(choices)
