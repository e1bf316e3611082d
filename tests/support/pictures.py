"""Small image folders that a network learns in a few steps."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


def write_pictures(root: Path, classes: dict[str, tuple[int, int, int]], count: int, size: int = 32) -> None:
    """Fill ROOT/CLASS/ with noisy images of one colour: learned in a few steps, never identical."""
    noise = np.random.default_rng(0)
    for name, colour in classes.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.array(colour) + noise.integers(-40, 40, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:03d}.png")
