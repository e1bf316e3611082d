"""Small generated copies of the built-in sets, each in its published format."""

import bz2
import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision import datasets as tv

from tests.support.server import Server
from tl_cli.contract import SplitName
from tl_cli.data.sources.catalogue import SETS, BuiltIn, File

NOISE = np.random.default_rng(0)


@dataclass
class Copy:
    """The bodies of a set's files, in the order of its row, and their expected contents."""

    files: list[bytes]
    images: dict[SplitName, int]
    classes: tuple[str, ...]
    dataset: type | None = None  # torchvision's class with the hashes of these files


def serve(name: str, server: Server) -> BuiltIn:
    """Serve the copy of a set; return a catalogue row with its addresses."""
    row, bodies = make(name, server.url)
    server.files.update(bodies)
    return row


def make(name: str, url: str = "http://127.0.0.1:9") -> tuple[BuiltIn, dict[str, bytes]]:
    """Return the row of a generated copy, and the served bytes by path below ``url``."""
    copy, row = COPIES[name](), SETS[name]
    paths = [f"/{name}/{file.url.rpartition('/')[2]}" for file in row.files]
    files = tuple(
        File(url + path, md5(body), file.into, file.inner)
        for file, path, body in zip(row.files, paths, copy.files, strict=True)
    )
    names = row.names and row.names[: len(copy.classes)]
    made = replace(row, files=files, images=copy.images, classes=len(copy.classes), names=names)
    if copy.dataset is not None:
        setattr(tv, f"Tiny_{name}", copy.dataset)
        made = replace(made, reader=replace(row.reader, dataset=f"Tiny_{name}"))
    return made, dict(zip(paths, copy.files, strict=True))


def md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


def tar_of(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def zip_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, body in files.items():
            zipped.writestr(name, body)
    return buffer.getvalue()


def picture(kind: str = "JPEG", size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def mat(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    return gzip.compress(struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.tobytes())


def pixels(count: int, *shape: int) -> np.ndarray:
    return NOISE.integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int, classes: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8) % classes


def cifar(dataset: type, key: str, meta_key: str, batches: tuple[str, str], meta: str) -> Copy:
    names = ("apple", "bear")
    bodies = {
        batch: pickle.dumps({"data": pixels(count, 3072), key: labels(count, 2).tolist()})
        for batch, count in zip(batches, (6, 4), strict=True)
    }
    bodies[meta] = pickle.dumps({meta_key: list(names)})
    tiny = type("Tiny", (dataset,), {
        "train_list": [[batches[0], md5(bodies[batches[0]])]],
        "test_list": [[batches[1], md5(bodies[batches[1]])]],
        "meta": {"filename": meta, "key": meta_key, "md5": md5(bodies[meta])},
    })  # fmt: skip
    archive = tar_of({f"{dataset.base_folder}/{name}": body for name, body in bodies.items()})
    return Copy([archive], {"train": 6, "test": 4}, names, tiny)


def mnist(classes: tuple[str, ...] = tuple("0123456789")) -> Copy:
    files = [idx(pixels(20, 28, 28)), idx(labels(20, 10)), idx(pixels(10, 28, 28)), idx(labels(10, 10))]
    return Copy(files, {"train": 20, "test": 10}, classes)


def emnist() -> Copy:
    images, classes = pixels(47, 28, 28), labels(47, 47)
    inside = {f"gzip/emnist-{split}-{part}-{kind}-ubyte.gz": idx(values)
              for split in ("balanced", "letters") for part in ("train", "test")
              for kind, values in (("images-idx3", images), ("labels-idx1", classes))}  # fmt: skip
    return Copy([zip_of(inside)], {"train": 47, "test": 47}, tuple(tv.EMNIST.classes_split_dict["balanced"]))


def qmnist() -> Copy:
    facts = np.zeros((10, 8), dtype=">i4")
    facts[:, 0], facts[:, 1:] = np.arange(10), 77
    files = [idx(pixels(10, 28, 28)), idx(facts, kind=12), idx(pixels(10, 28, 28)), idx(facts, kind=12)]
    return Copy(files, {"train": 10, "test": 10}, tuple("0123456789"))


def usps() -> Copy:
    def part(count: int) -> bytes:
        values = NOISE.uniform(-1, 1, (count, 256))
        lines = (
            f"{row % 10 + 1} " + " ".join(f"{i}:{v:.3f}" for i, v in enumerate(values[row], 1)) for row in range(count)
        )
        return bz2.compress("\n".join(lines).encode())

    return Copy([part(20), part(10)], {"train": 20, "test": 10}, tuple("0123456789"))


def svhn() -> Copy:
    bodies = [mat(X=pixels(32, 32, 3, count), y=(np.arange(count) % 10 + 1)[:, None]) for count in (20, 10)]
    urls = {part: ["", f"{part}_32x32.mat", md5(body)] for part, body in zip(("train", "test"), bodies, strict=True)}
    tiny = type("Tiny", (tv.SVHN,), {"split_list": urls})
    return Copy(bodies, {"train": 20, "test": 10}, tuple("0123456789"), tiny)


def semeion() -> Copy:
    rows = np.concatenate([NOISE.integers(0, 2, (30, 256)), np.eye(10, dtype=int)[np.arange(30) % 10]], axis=1)
    body = "\n".join(" ".join(map(str, row)) for row in rows).encode()
    tiny = type("Tiny", (tv.SEMEION,), {"md5_checksum": md5(body)})
    return Copy([body], {"train": 30}, tuple("0123456789"), tiny)


def stl10() -> Copy:
    bodies = {"unlabeled_X.bin": b""}
    for part, count in (("train", 4), ("test", 2)):
        bodies[f"{part}_X.bin"] = pixels(count, 3, 96, 96).tobytes()
        bodies[f"{part}_y.bin"] = (labels(count, 2) + 1).tobytes()
    tiny = type("Tiny", (tv.STL10,), {
        "train_list": [[name, md5(bodies[name])] for name in ("train_X.bin", "train_y.bin", "unlabeled_X.bin")],
        "test_list": [[name, md5(bodies[name])] for name in ("test_X.bin", "test_y.bin")],
    })  # fmt: skip
    archive = tar_of(
        {f"stl10_binary/{n}": b for n, b in bodies.items()} | {"stl10_binary/class_names.txt": b"bird\ncar\n"}
    )
    return Copy([archive], {"train": 4, "test": 2}, ("bird", "car"), tiny)


def food101() -> Copy:
    listed = {"train": ("1", "2", "3"), "test": ("4",)}
    files = {f"food-101/images/{name}/{n}.jpg": picture() for name in ("pie", "soup") for n in "1234"}
    for part, numbers in listed.items():
        body = {name: [f"{name}/{n}" for n in numbers] for name in ("pie", "soup")}
        files[f"food-101/meta/{part}.json"] = json.dumps(body).encode()
    return Copy([tar_of(files)], {"train": 6, "test": 2}, ("pie", "soup"))


def flowers102() -> Copy:
    images = tar_of({f"jpg/image_{n:05d}.jpg": picture() for n in range(1, 103 * 2)})
    numbers = np.arange(1, 205)
    files = [
        mat(labels=(numbers[:204] - 1) % 102 + 1),
        mat(trnid=numbers[:102], valid=numbers[102:104], tstid=numbers[104:204]),
    ]
    tiny = type("Tiny", (tv.Flowers102,), {"_file_dict": {
        "label": ("imagelabels.mat", md5(files[0])), "setid": ("setid.mat", md5(files[1]))}})  # fmt: skip
    return Copy([images, *files], {"train": 102, "val": 2, "test": 100}, tuple(tv.Flowers102.classes), tiny)  # fmt: skip


def oxfordiiitpet() -> Copy:
    names = [f"{kind}_{n}" for kind in ("Abyssinian", "american_bulldog") for n in (1, 2, 3)]
    lines = [f"{name} {1 + name.startswith('am')} 1 1\n" for name in names]
    parts = {"trainval": [lines[i] for i in (0, 1, 3, 4)], "test": [lines[i] for i in (2, 5)]}
    annotations = {f"annotations/{part}.txt": "".join(rows).encode() for part, rows in parts.items()}
    images = tar_of({f"images/{name}.jpg": picture() for name in names})
    return Copy([images, tar_of(annotations)], {"train": 4, "test": 2}, ("Abyssinian", "American Bulldog"))


def dtd() -> Copy:
    parts = {"train": "1", "val": "2", "test": "3"}
    files = {f"dtd/images/{name}/{name}_{n}.jpg": picture() for name in ("dotted", "woven") for n in "123"}
    for part, n in parts.items():
        files[f"dtd/labels/{part}1.txt"] = f"dotted/dotted_{n}.jpg\nwoven/woven_{n}.jpg\n".encode()
    return Copy([tar_of(files)], dict.fromkeys(("train", "val", "test"), 2), ("dotted", "woven"))


def gtsrb() -> Copy:
    readme = {"GTSRB/Readme.txt": b"in all of them"}
    training = {f"GTSRB/Training/{n:05d}/0000{i}.ppm": picture("PPM") for n in range(2) for i in range(3)}
    test = {f"GTSRB/Final_Test/Images/0000{i}.ppm": picture("PPM") for i in range(2)}
    truth = {"GT-final_test.csv": b"Filename;Width;ClassId\n00000.ppm;16;1\n00001.ppm;16;0\n"}
    classes = ("speed limit 20", "speed limit 30")
    return Copy([zip_of(readme | training), zip_of(readme | test), zip_of(truth)], {"train": 6, "test": 2}, classes)


def folders(root: str, ending: str, *classes: str, count: int = 3) -> dict[str, bytes]:
    return {f"{root}/{name}/{name}_{n}{ending}": picture("PNG" if ending == ".png" else "JPEG")
            for name in classes for n in range(count)}  # fmt: skip


def eurosat() -> Copy:
    return Copy([zip_of(folders("2750", ".jpg", "Forest", "River"))], {"train": 6}, ("Forest", "River"))


def imagenette() -> Copy:
    files = {name: body for part in ("train", "val")
             for name, body in folders(f"imagenette2-320/{part}", ".jpeg", "n01440764", "n02102040").items()}  # fmt: skip
    return Copy([tar_of(files)], {"train": 6, "val": 6}, ("tench", "English springer"))


def caltech101() -> Copy:
    files = {f"101_ObjectCategories/{name}/image_{n:04d}.jpg": picture()
             for name in ("BACKGROUND_Google", "ant", "yin_yang") for n in (1, 2, 3)}  # fmt: skip
    outer = {"caltech-101/101_ObjectCategories.tar.gz": tar_of(files), "caltech-101/Annotations.tar": b"not wanted"}
    return Copy([zip_of(outer)], {"train": 6}, ("ant", "yin_yang"))


def caltech256() -> Copy:
    files = {f"256_ObjectCategories/{label:03d}.{name}/{label:03d}_{n:04d}.jpg": picture()
             for label, name in ((1, "ak47"), (2, "flag")) for n in (1, 2, 3)}  # fmt: skip
    files["256_ObjectCategories/002.flag/RENAME2"] = b"litter"
    return Copy([tar_of(files, "w")], {"train": 6}, ("ak47", "flag"))


def fgvcaircraft() -> Copy:
    data = "fgvc-aircraft-2013b/data"
    parts = {"train": ("1", "2"), "val": ("3",), "test": ("4",)}
    files = {f"{data}/images/{n}.jpg": picture() for n in "1234"} | {f"{data}/variants.txt": b"707-320\nF/A-18\n"}
    for part, numbers in parts.items():
        rows = (f"{n} {'F/A-18' if n == '2' else '707-320'}\n" for n in numbers)
        files[f"{data}/images_variant_{part}.txt"] = "".join(rows).encode()
    return Copy([tar_of(files)], {"train": 2, "val": 1, "test": 1}, ("707-320", "F/A-18"))


def country211() -> Copy:
    files = {
        k: v
        for part in ("train", "valid", "test")
        for k, v in folders(f"country211/{part}", ".jpg", "AD", "ZW").items()
    }
    return Copy([tar_of(files)], {"train": 6, "val": 6, "test": 6}, ("AD", "ZW"))


def renderedsst2() -> Copy:
    both = ("negative", "positive")
    files = {
        k: v for part in ("train", "valid", "test") for k, v in folders(f"rendered-sst2/{part}", ".png", *both).items()
    }
    return Copy([tar_of(files)], {"train": 6, "val": 6, "test": 6}, both)


COPIES: dict[str, Callable[[], Copy]] = {
    "cifar10": lambda: cifar(tv.CIFAR10, "labels", "label_names", ("data_batch_1", "test_batch"), "batches.meta"),
    "cifar100": lambda: cifar(tv.CIFAR100, "fine_labels", "fine_label_names", ("train", "test"), "meta"),
    "mnist": mnist,
    "fashionmnist": lambda: mnist(tuple(tv.FashionMNIST.classes)),
    "kmnist": lambda: mnist(tuple(tv.KMNIST.classes)),
    "emnist": emnist,
    "qmnist": qmnist,
    "usps": usps,
    "svhn": svhn,
    "semeion": semeion,
    "stl10": stl10,
    "food101": food101,
    "flowers102": flowers102,
    "oxfordiiitpet": oxfordiiitpet,
    "dtd": dtd,
    "gtsrb": gtsrb,
    "eurosat": eurosat,
    "imagenette": imagenette,
    "caltech101": caltech101,
    "caltech256": caltech256,
    "fgvcaircraft": fgvcaircraft,
    "country211": country211,
    "renderedsst2": renderedsst2,
}
