"""Name what is in a picture with a file of ``tl export``; needs numpy, Pillow and onnxruntime, not ``tl`` or torch.

python predict_with_onnx.py MODEL.onnx PICTURE
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
facts = {key: json.loads(session.get_modelmeta().custom_metadata_map[key]) for key in ("classes", "preprocessing")}
resize, crop = facts["preprocessing"]["resize"], facts["preprocessing"]["crop"]
method = Image.Resampling[facts["preprocessing"]["interpolation"].upper()]
picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
# The largest square in the middle, made so large, and the middle of that: crop_mode "center", which most weights have.
picture = ImageOps.fit(picture, (resize, resize), method)
edge = (resize - crop) // 2
pixels = np.asarray(picture.crop((edge, edge, edge + crop, edge + crop)), np.float32).transpose(2, 0, 1)[None]
print(facts["classes"][session.run(None, {"images": pixels})[0].argmax()])
