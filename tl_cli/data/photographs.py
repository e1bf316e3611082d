"""A few real photographs from installed packages, for inspections without --data. Nothing is fetched."""

from importlib.resources import files

import numpy as np
import torch

from tl_cli.contract import Preprocessing
from tl_cli.data.decode import decode_picture
from tl_cli.data.images import PackedImages
from tl_cli.data.packed_names import Names
from tl_cli.data.preprocess import as_tensor, resize_crop
from tl_cli.errors import DataError

# A temple, a flower, a portrait.
_FILES = (
    ("sklearn.datasets", "images/china.jpg"),
    ("sklearn.datasets", "images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
ABOUT = "square cuts of three photographs that come with scikit-learn and matplotlib"
UNKNOWN = -1


def photographs(count: int, side: int) -> PackedImages:
    """Return square crops of the photographs, equal in each call: at full height first, then smaller random ones.

    Args:
        side: of each crop, in pixels.

    Raises:
        DataError: an installed library lacks its images.
    """
    pictures = []
    for package, name in _FILES:
        try:
            pictures.append(as_tensor(decode_picture((files(package) / name).read_bytes()).pixels))
        except (OSError, ModuleNotFoundError) as error:
            raise DataError(f"{package} has no {name} here; give images with --data") from error
    how = Preprocessing(resize=side, crop=side)
    random = np.random.Generator(np.random.Philox(0))
    cuts = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        short = min(picture.shape[-2:])
        length = short if number < len(pictures) else int(short * random.uniform(0.4, 0.9))
        top, left = (int(random.integers(0, room - length + 1)) for room in picture.shape[-2:])
        cut = picture[:, top : top + length, left : left + length]
        cuts.append(resize_crop(cut.flip(-1) if number % 2 else cut, how))
    names = [f"{_FILES[number % len(_FILES)][1].rpartition('/')[2]}#{number + 1}" for number in range(count)]
    return PackedImages(Names.of(names), np.full(count, UNKNOWN, dtype=np.int64), torch.stack(cuts))
