"""Name what is in a picture with a file of ``tl export``; needs numpy, Pillow and onnxruntime, not ``tl`` or torch.

python predict_with_onnx.py MODEL.onnx PICTURE
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def placed(side, resized, crop):
    """Return which part of a side of the picture is seen, and where it lies in the network's input."""
    if resized < crop:  # padded on both ends
        first = (crop - resized) // 2
        return 0, side, first, resized
    first = round((resized - crop) / 2)  # the middle is cut out
    return first * side / resized, (first + crop) * side / resized, 0, crop


def opened():
    """Return the picture; of a TIFF whose fourth channel is not declared as opacity, without that channel."""
    picture = Image.open(sys.argv[2])
    is_undeclared = picture.format == "TIFF" and picture.mode == "RGBA" and 338 not in picture.tag_v2
    return deep_module().without_undeclared_opacity(picture) if is_undeclared else picture


def may_be_deep(picture):
    """Return whether a picture may have more than 8 bits per channel."""
    details = picture.tile[0][3] if picture.format == "PPM" else None
    is_deep_ppm = isinstance(details, tuple) and details[0] == "RGB" and details[1] > 255
    return is_deep_ppm or picture.mode.startswith(("I", "F")) or ";16" in str(picture.tile)


def deep_module():
    """Return tl's own reader of pictures with more than 8 bits per channel; it needs numpy and Pillow only."""
    here = Path(__file__).resolve().parent
    for path in (here / "decode_deep.py", here.parent / "tl_cli" / "data" / "decode_deep.py"):
        if path.exists():
            spec = importlib.util.spec_from_file_location("deep", path)
            module = sys.modules["deep"] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    sys.exit("a picture of more than 8 bits per channel: put tl's file tl_cli/data/decode_deep.py beside this script")


def eight_bits(picture):
    """Return an RGB picture, upright, on white where it is transparent."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        sys.exit("floating-point pixels have no agreed range; save it as 8 or 16 bit")
    if picture.mode.startswith("I"):  # Pillow's own conversion clips at 255
        picture = Image.fromarray((np.asarray(picture).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


session = onnxruntime.InferenceSession(sys.argv[1])
metadata = session.get_modelmeta().custom_metadata_map
facts = {key: json.loads(metadata[key]) for key in ("classes", "preprocessing")}
temperature = json.loads(metadata.get("temperature", "1"))  # files of earlier versions have none
how = facts["preprocessing"]
resize, crop, mode = how["resize"], how["crop"], how["crop_mode"]
picture = opened()
# Of pictures with more than 8 bits per channel: the numbers that are black and white. Null where training had none.
scaling = how.get("pixel_range")
if scaling and may_be_deep(picture) and (deep := deep_module()).is_deep(picture):
    picture = Image.fromarray(deep.to_levels(deep.read(opened), tuple(scaling)))
else:
    picture = eight_bits(picture)
short, long = sorted(picture.size)
if mode == "squash":
    sides = resize, resize
elif mode == "border":  # the longer side to this length, then padded to a square
    sides = [max(1, round(side / (long / resize))) for side in picture.size]
else:  # the shorter side to this length, then cropped to a square
    sides = [side * resize // short for side in picture.size]
(left, right, x, width), (top, bottom, y, height) = (
    placed(*each, crop) for each in zip(picture.size, sides, strict=True)
)
colour = tuple(round(255 * mean) for mean in how["mean"]) if mode == "border" else (0, 0, 0)
square = Image.new("RGB", (crop, crop), colour)
method = Image.Resampling[how["interpolation"].upper()]
square.paste(picture.resize((width, height), method, box=(left, top, right, bottom)), (x, y))
pixels = np.asarray(square, np.float32).transpose(2, 0, 1)[None]
logits = session.run(None, {"images": pixels})[0][0] / temperature
probabilities = np.exp(logits - logits.max())
probabilities /= probabilities.sum()
print(f"{facts['classes'][probabilities.argmax()]} ({probabilities.max():.1%})")
