"""Pictures and maps in the terminal: two pixels per character, or shades of characters where there are no colours."""

import torch
from PIL import Image
from rich.console import Console
from rich.text import Text
from rich_pixels import Pixels
from torch import Tensor
from torch.nn.functional import interpolate

from tl_cli.ui.terminal.console import is_ascii

SHADES = " .:-=+*#%@"


def has_pictures(console: Console) -> bool:
    """Whether pictures can be shown; characters stand for them otherwise."""
    return console.color_system is not None and not is_ascii(console)


def scaled(
    picture: Tensor, longest: int, *, enlarging: Image.Resampling = Image.Resampling.LANCZOS, even_height: bool = False
) -> Image.Image:
    """Return a picture whose longer side has ``longest`` pixels; its shape is kept.

    Args:
        picture: (3, H, W) uint8.
        enlarging: interpolation of a picture that is smaller.
    """
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())
    scale = longest / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    height += height % 2 if even_height else 0
    return image.resize((width, height), enlarging if scale > 1 else Image.Resampling.LANCZOS)


def thumbnail(picture: Tensor, columns: int) -> Pixels:
    """Return a picture in half blocks, at most ``columns`` wide and half as many rows high; its shape is kept.

    Args:
        picture: (3, H, W) uint8.
    """
    # One row of characters shows two rows of pixels.
    pixels: Pixels = Pixels.from_image(scaled(picture, columns, even_height=True))
    return pixels


def coloured(values: Tensor, colours: str) -> Tensor:
    """Return numbers 0 to 1 (H, W) as a picture (3, H, W) float32, 0 to 1.

    Args:
        colours: name of a colormap of matplotlib.
    """
    # Imported here: `tl predict` shows pictures only on request, and the import takes half a second.
    from matplotlib import colormaps

    return torch.from_numpy(colormaps[colours](values.numpy())[..., :3]).permute(2, 0, 1).float()


def overlaid(picture: Tensor, heat: Tensor) -> Tensor:
    """Return a heatmap over its picture, (3, H, W) uint8: grey where the heat is 0.

    Args:
        picture: (3, H, W) uint8.
        heat: (H, W), 0 to 1.
    """
    grey = picture.float().mean(0, keepdim=True) / 255
    share = 0.25 + 0.55 * heat
    mixed = grey * (1 - share) + coloured(heat, "inferno") * share
    return (mixed.clamp(0, 1) * 255).round().to(torch.uint8)


def shaded(values: Tensor, columns: int) -> Text:
    """Return numbers 0 to 1 (H, W) as characters, denser for more, with half as many rows as columns."""
    small = interpolate(values[None, None].float(), (max(1, columns // 2), columns), mode="area")[0, 0]
    top = len(SHADES) - 1
    return Text("\n".join("".join(SHADES[min(top, int(v * top + 0.5))] for v in row) for row in small.tolist()))
