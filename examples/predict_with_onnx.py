"""Name what is in a picture with a file of ``tl export``; needs numpy, Pillow and onnxruntime, not ``tl`` or torch.

python predict_with_onnx.py MODEL.onnx PICTURE
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
metadata = session.get_modelmeta().custom_metadata_map
facts = {key: json.loads(metadata[key]) for key in ("classes", "preprocessing", "temperature")}
resize, crop = facts["preprocessing"]["resize"], facts["preprocessing"]["crop"]
method = Image.Resampling[facts["preprocessing"]["interpolation"].upper()]
picture = Image.open(sys.argv[2])
if pixel_range := facts["preprocessing"].get("pixel_range"):
    # Of pictures with more than 8 bits per channel; those of 8 bits are used as they are. Grey ones are read here; for
    # colours, white-is-zero TIFFs and PGMs see tl_cli/data/deep.py, which needs numpy and Pillow only.
    low, high = pixel_range
    is_white_zero = picture.format == "TIFF" and picture.tag_v2.get(262) == 0
    if picture.mode in ("I;16", "I;16B", "I", "F") and picture.format != "PPM" and not is_white_zero:
        values = np.asarray(ImageOps.exif_transpose(picture), np.float64).clip(low, high)
        picture = Image.fromarray(np.floor((values - low) * 255 / (high - low) + 0.5).astype(np.uint8))
    elif ";16" in str(picture.tile) or picture.mode in ("I", "F") or picture.format == "PPM":
        sys.exit("only grey pictures of more than 8 bits are read here")
picture = ImageOps.exif_transpose(picture).convert("RGB")
# The largest square in the middle, made so large, and the middle of that: crop_mode "center", which most weights have.
picture = ImageOps.fit(picture, (resize, resize), method)
edge = (resize - crop) // 2
pixels = np.asarray(picture.crop((edge, edge, edge + crop, edge + crop)), np.float32).transpose(2, 0, 1)[None]
logits = session.run(None, {"images": pixels})[0][0] / facts["temperature"]
probabilities = np.exp(logits - logits.max())
probabilities /= probabilities.sum()
print(f"{facts['classes'][probabilities.argmax()]} ({probabilities.max():.1%})")
