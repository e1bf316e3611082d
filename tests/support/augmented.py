"""The digest of a few images after every augmentation; run as a program, prints it."""

import hashlib

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode

from tl_cli.contract import Preprocessing
from tl_cli.data.augment import erasing, geometry, policies
from tl_cli.data.augment.pipeline import augment
from tl_cli.data.augment.policies import Op
from tl_cli.data.augment.settings import Augmentation
from tl_cli.data.preprocess import resize, resize_crop

COLORS = Augmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, rotation=30)


def digest() -> str:
    """Return SHA-256 of images after crops, shifts, colours, rotation, every operation of the policies and erasing."""
    sha256 = hashlib.sha256()
    for height, width in ((32, 40), (57, 41)):
        images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (31, 3, height, width), dtype=np.uint8))
        indices = np.arange(31)
        boxes = geometry.crop_boxes(Augmentation(min_area=0.2), 0, 1, indices, height, width)
        changed = [geometry.resized_crops(images, boxes, size) for size in (16, 48)]
        changed += [resize(images, (size, size), InterpolationMode.BILINEAR) for size in (16, 48)]
        for mode in ("bilinear", "bicubic"):
            how = Preprocessing(resize=48, crop=32, interpolation=mode)
            changed += [resize_crop(images, how), resize_crop(images.to(memory_format=torch.channels_last), how)]
        changed.append(geometry.shift_and_flip(images, Augmentation(shift=0.2), 0, 1, indices))
        changed.append(augment(images, COLORS, 0, 1, indices, (124, 116, 104)))
        changed.append(erasing.erase(images, Augmentation(random_erasing=0.5), 0, 1, indices, (124, 116, 104)))
        for policy in ("randaugment", "trivialaugment"):
            amounts = policies.amounts_of(policy, height, width)
            changed += [policies.apply(images, np.full(31, op), sign * amounts[op]) for op in Op for sign in (-1, 1)]
            changed.append(policies.apply_policy(images, Augmentation(auto_augment=policy), 0, 1, indices))
        for each in changed:
            sha256.update(each.contiguous().numpy().tobytes())
    return sha256.hexdigest()


if __name__ == "__main__":
    print(torch.backends.cpu.get_cpu_capability(), digest())
