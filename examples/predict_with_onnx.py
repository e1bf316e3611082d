"""Name what is in a picture with a file of ``tl export``; needs numpy, Pillow and onnxruntime, not ``tl`` or torch.

python predict_with_onnx.py MODEL.onnx PICTURE
"""

import json
import sys

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


def is_deep_ppm(picture):
    """Return whether the largest number of a PPM, which Pillow keeps where it is not 255, is more than 8 bits."""
    details = picture.tile[0][3] if picture.format == "PPM" else None
    return isinstance(details, tuple) and details[0] == "RGB" and details[1] > 255


session = onnxruntime.InferenceSession(sys.argv[1])
metadata = session.get_modelmeta().custom_metadata_map
facts = {key: json.loads(metadata[key]) for key in ("classes", "preprocessing")}
temperature = json.loads(metadata.get("temperature", "1"))  # files of earlier versions have none
how = facts["preprocessing"]
resize, crop, mode = how["resize"], how["crop"], how["crop_mode"]
picture = Image.open(sys.argv[2])
# Of pictures with more than 8 bits per channel; those of 8 bits are used as they are. Grey ones are read here; for
# colours, white-is-zero TIFFs and PGMs see tl_cli/data/deep.py, which needs numpy and Pillow only.
low, high = how.get("pixel_range") or (0, 65535)
is_white_zero = picture.format == "TIFF" and picture.tag_v2.get(262) == 0
if picture.mode in ("I;16", "I;16B", "I", "F") and picture.format != "PPM" and not is_white_zero:
    values = np.asarray(ImageOps.exif_transpose(picture), np.float64).clip(low, high)
    picture = Image.fromarray(np.floor((values - low) * 255 / (high - low) + 0.5).astype(np.uint8))
elif ";16" in str(picture.tile) or picture.mode in ("I", "F") or is_deep_ppm(picture):
    sys.exit("only grey pictures of more than 8 bits are read here")
picture = ImageOps.exif_transpose(picture).convert("RGB")
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
