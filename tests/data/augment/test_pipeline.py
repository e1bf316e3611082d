import os
import subprocess
import sys

import pytest
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


def test_an_image_is_bit_identical_in_a_large_batch_and_alone() -> None:
    images = IMAGES.repeat(1, 1, 4, 4)
    settings = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.5, rotation=15)
    whole = augment(images, settings, 5, 1, INDICES, FILL)
    alone = [augment(images[i : i + 1], settings, 5, 1, INDICES[i : i + 1], FILL) for i in range(0, COUNT, 7)]
    assert torch.equal(whole[::7], torch.cat(alone))


@pytest.fixture(scope="module")
def expected() -> str:
    return digest()


@pytest.mark.parametrize(
    ("instructions", "choice"),
    [
        ("DEFAULT", {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
        pytest.param("", {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}, marks=pytest.mark.slow),
        pytest.param("", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, marks=pytest.mark.slow),
    ],
)
def test_augmentation_does_not_depend_on_the_processors_instructions(
    instructions: str, choice: dict[str, str], expected: str
) -> None:
    command, environment = [sys.executable, "-m", "tests.support.augmented"], {**os.environ, **choice}
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert printed[0].startswith(instructions)
    assert printed[1] == expected
