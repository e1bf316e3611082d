"""Small pictures in the terminal, two pixels per character."""

from PIL import Image
from rich_pixels import Pixels
from torch import Tensor


def thumbnail(picture: Tensor, columns: int) -> Pixels:
    """Return a picture in half blocks, at most ``columns`` wide and half as many rows high; its shape is kept.

    Args:
        picture: (3, H, W) uint8.
    """
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    scale = columns / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # One row of characters shows two rows of pixels.
    height += height % 2
    pixels: Pixels = Pixels.from_image(image.resize((width, height), Image.Resampling.LANCZOS))
    return pixels
