"""``python -m tests.benchmarks.likeness``: how many near-duplicates ``tl data check`` finds, and how many are wrong.

Each set holds different images; each change makes a near-duplicate of every one of them. What should be found and what
should not be found is known by construction.
"""

import argparse
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from tl_cli.data.duplicates import alike_groups, sketch

Pixels = np.ndarray
Change = Callable[[Image.Image], Image.Image]


def _jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        held = io.BytesIO()
        image.save(held, "JPEG", quality=quality)
        return Image.open(held).convert("RGB")

    return change


def _scaled(factor: float) -> Change:
    return lambda image: image.resize([round(factor * side) for side in image.size], Image.Resampling.BICUBIC)


def _cropped(share: float) -> Change:
    """Crop this share of width and height, by fractions of a pixel, and resize to the original size."""

    def change(image: Image.Image) -> Image.Image:
        x, y = (share / 2 * side for side in image.size)
        return image.resize(image.size, Image.Resampling.BICUBIC, (x, y, image.width - x, image.height - y))

    return change


def _brighter(factor: float) -> Change:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


def _other_hue(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", (green, blue, red))


# Changes that make a near-duplicate, and changes that make a different image.
NEAR: dict[str, Change] = {
    "JPEG 90": _jpeg(90),
    "JPEG 75": _jpeg(75),
    "JPEG 50": _jpeg(50),
    "x 0.75": _scaled(0.75),
    "x 2": _scaled(2),
    "crop 2%": _cropped(0.02),
    "bright +5%": _brighter(1.05),
    "bright -5%": _brighter(0.95),
}
OTHER: dict[str, Change] = {
    "bright -20%": _brighter(0.8),
    "contrast -30%": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "other hue": _other_hue,
    "crop 10%": _cropped(0.1),
    "flip": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def shapes(count: int = 300, side: int = 48) -> list[Pixels]:
    """Return circles, squares, triangles and rings in shades of three colours, of random size and position."""
    chance = np.random.default_rng(0)
    made = []
    for number in range(count):
        canvas = Image.new("RGB", (4 * side, 4 * side), (235, 235, 235))
        draw, radius = ImageDraw.Draw(canvas), chance.uniform(0.7, 1.6) * side
        x, y = chance.uniform(radius, 4 * side - radius, 2)
        base = ((210, 50, 40), (50, 180, 70), (50, 80, 210))[number % 3]
        colour = tuple(int(value + chance.integers(-20, 21)) for value in base)
        box = (x - radius, y - radius, x + radius, y + radius)
        kind = number // 3 % 4
        if kind == 0:
            draw.ellipse(box, fill=colour)
        elif kind == 1:
            draw.rectangle(box, fill=colour)
        elif kind == 2:
            draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
        else:
            draw.ellipse(box, outline=colour, width=int(radius / 3))
        made.append(np.asarray(canvas.resize((side, side), Image.Resampling.LANCZOS)))
    return made


def numbers(side: int = 64) -> list[Pixels]:
    """Return the numbers from 00 to 99 in Pillow's default font, small on a white background."""
    made = []
    for number in range(100):
        canvas = Image.new("RGB", (side, side), "white")
        ImageDraw.Draw(canvas).text((side // 3, side // 3), f"{number:02}", fill="black")
        made.append(np.asarray(canvas))
    return made


def gauges(count: int = 60, side: int = 64) -> list[Pixels]:
    """Return round gauges that differ in the angle of their red hand only."""
    middle, radius, width = side / 2, side / 2 - 4, side // 8

    def spoke(start: float, stop: float, angle: float) -> list[tuple[float, float]]:
        x, y = radius * math.cos(angle), radius * math.sin(angle)
        return [(middle + share * x, middle + share * y) for share in (start, stop)]

    made = []
    for number in range(count):
        canvas = Image.new("RGB", (side, side), "white")
        draw = ImageDraw.Draw(canvas)
        draw.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), outline="black", width=width)
        for hour in range(12):
            draw.line(spoke(0.85, 1, hour * math.tau / 12), fill="black", width=width)
        draw.line(spoke(0, 0.8, number * math.tau / count), fill="red", width=width)
        made.append(np.asarray(canvas))
    return made


def digits() -> list[Pixels]:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    return [np.repeat((255 * image / 16).astype(np.uint8)[..., None], 3, 2) for image in load_digits().images]


def photographs() -> list[Pixels]:
    """Return the sample photographs of scikit-learn and matplotlib."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        return [*load_sample_images().images, np.asarray(image.convert("RGB"))]


def cuts(step: int, side: int = 128) -> list[Pixels]:
    """Return squares cut from the photographs every ``step`` pixels in both directions."""
    return [
        photo[y : y + side, x : x + side]
        for photo in photographs()
        for y in range(0, photo.shape[0] - side + 1, step)
        for x in range(0, photo.shape[1] - side + 1, step)
    ]


def files(root: Path, most: int) -> list[Pixels]:
    """Return at most ``most`` images below a folder, evenly spaced in the order of their names."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return [np.asarray(Image.open(path).convert("RGB")) for path in found[:: max(1, len(found) // most)][:most]]


@dataclass(frozen=True, slots=True)
class Score:
    """The duplicates found in a set of different images and a changed copy of each.

    Attributes:
        pictures: images in the set, without the copies.
        found: images whose copy was found.
        wrong: pairs of different images reported as similar.
    """

    pictures: int
    found: int
    wrong: int


def score(pictures: Sequence[Pixels], change: Change | None) -> Score:
    """Return the near-duplicates found in a set to which a changed copy of each image is added."""
    added = [np.asarray(change(Image.fromarray(each))) for each in pictures] if change else []
    everything = [*pictures, *added]
    sketches = [sketch(each) for each in everything]
    kept = [number for number, each in enumerate(sketches) if each is not None]
    groups, left = alike_groups([each for each in sketches if each is not None], lambda index: everything[kept[index]])
    assert left == 0
    pairs = {tuple(sorted((kept[first], kept[other]))) for first, *others in groups for other in others}
    found = {pair for pair in pairs if pair[1] - pair[0] == len(pictures)}
    return Score(len(pictures), len(found), len({(a % len(pictures), b % len(pictures)) for a, b in pairs - found}))


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each set and a column for each change, as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.likeness", description=__doc__)
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of pictures, such as CIFAR-10's train/")
    parser.add_argument("--count", type=int, default=2000, help="of them (2,000)")
    options = parser.parse_args(arguments)
    sets = {
        "shapes, 48 px": shapes(),
        "cuts of photographs, 128 px": cuts(128),
        "the same, 75% in common": cuts(32),
        "numbers on white, 64 px": numbers(),
        "gauges, 64 px": gauges(),
        "digits, 8 px": digits(),
    }
    if options.images:
        sets = {str(options.images): files(options.images, options.count), **sets}
    print("| found | " + " | ".join(f"{name}: {len(pictures):,}" for name, pictures in sets.items()) + " |")
    print("|---" * (len(sets) + 1) + "|")
    for title, change in {**NEAR, **OTHER}.items():
        scores = [score(pictures, change) for pictures in sets.values()]
        print(f"| {title} | " + " | ".join(f"{each.found / each.pictures:.0%}" for each in scores) + " |", flush=True)
    wrong = [score(pictures, None).wrong for pictures in sets.values()]
    print("| pairs of different pictures | " + " | ".join(map(str, wrong)) + " |")


if __name__ == "__main__":
    main()
