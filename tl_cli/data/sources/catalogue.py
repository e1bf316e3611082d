"""The sets that ``--data`` knows by name, and those that it cannot have, as data. Fetches and reads nothing."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tl_cli.contract import SplitName

_DIGITS = tuple("0123456789")
# torchvision numbers them only; the names are those of the benchmark's own list.
_SIGNS = (
    *("speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70", "speed limit 80"),
    *("end of speed limit 80", "speed limit 100", "speed limit 120", "no overtaking", "no overtaking by lorries"),
    *("priority at next crossing", "priority road", "give way", "stop", "no vehicles", "no lorries", "no entry"),
    *("danger", "bend to left", "bend to right", "double bend", "uneven road", "slippery road"),
    *("road narrows on right", "road works", "traffic signals", "pedestrians", "children", "cyclists", "ice or snow"),
    *("wild animals", "end of all limits", "turn right ahead", "turn left ahead", "ahead only"),
    *("ahead or right", "ahead or left", "keep right", "keep left", "roundabout", "end of no overtaking"),
    "end of no overtaking by lorries",
)


@dataclass(frozen=True, slots=True)
class File:
    """A file as its publisher offers it.

    Attributes:
        md5: its hex digest, as torchvision publishes it.
        into: where it is unpacked, below the data folder; torchvision looks for it there.
        inner: the archives in it, as a pattern, where only these are wanted; they are unpacked in its place.
    """

    url: str
    md5: str
    into: str = ""
    inner: str = ""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A set that is known by name.

    Attributes:
        name: what ``--data`` calls it.
        title: what people call it.
        classes: how many.
        images: how many in each part that it brings; one part alone is split 80/10/10.
        download_mb: megabytes to fetch, about; none of them needs a package that ``tl`` does not bring.
        mirrors: whether an image mirrored left to right is still one of its class: not so for digits, letters, signs.
        open: the set from a data folder and a part, by torchvision's class, without fetching.
        files: what is fetched.
        folder: what the unpacked files make below the data folder; None: they are read as they come.
        names: the classes' names where torchvision has none, or others than these.
        transposed: its images are stored with rows and columns exchanged.
        pixels: side of its images, where all are of one size.
    """

    name: str
    title: str
    classes: int
    images: Mapping[SplitName, int]
    download_mb: int
    mirrors: bool
    open: Callable[[str, SplitName], Any]
    files: tuple[File, ...] = ()
    folder: str | None = None
    names: tuple[str, ...] | None = None
    transposed: bool = False
    pixels: int | None = None


def canonical(name: str) -> str:
    """Return a name as the catalogue writes it: ``CIFAR-10`` and ``cifar_10`` are ``cifar10``."""
    return re.sub(r"[-_ ]", "", name).lower()


def _published(name: str) -> Callable[..., Any]:
    """Return torchvision's class of that name: imported as a set is opened, which takes seconds."""
    from torchvision import datasets

    dataset: Callable[..., Any] = getattr(datasets, name)
    return dataset


def _flagged(dataset: str, **options: object) -> Callable[[str, SplitName], Any]:
    """Open a class that takes ``train=True`` or ``False``."""
    return lambda root, part: _published(dataset)(root, train=part == "train", **options)


def _split(dataset: str, names: Mapping[SplitName, str] | None = None) -> Callable[[str, SplitName], Any]:
    """Open a class that takes ``split="train"``, by the names that it has for the parts."""
    return lambda root, part: _published(dataset)(root, split=(names or {}).get(part, part))


def _paths(
    dataset: str, names: Mapping[SplitName, str] | None = None, **options: object
) -> Callable[[str, SplitName], Any]:
    """Open a class that takes ``split`` and a ``loader``, which is given paths and returns them: nothing is decoded."""
    return lambda root, part: _published(dataset)(root, split=(names or {}).get(part, part), loader=str, **options)


def _digits(root: str, part: SplitName) -> SimpleNamespace:
    """scikit-learn's own, of grey levels 0..16, stretched to 0..255."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    return SimpleNamespace(data=np.rint(digits.images * (255 / 16)).astype(np.uint8), targets=digits.target)


def _idx(mirror: str, into: str, md5: tuple[str, str, str, str]) -> tuple[File, ...]:
    """Return the four files of an MNIST, whose names are the same in all its kin."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(File(f"{mirror}{name}-ubyte.gz", sum_, into) for name, sum_ in zip(names, md5, strict=True))


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"
_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_QMNIST = "https://raw.githubusercontent.com/facebookresearch/qmnist/master/qmnist-"
_LIBSVM = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
_ERDA = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
_TORCHGEO = "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/"
_CALTECH = "https://data.caltech.edu/records/"
_OPENAI = "https://openaipublic.azureedge.net/clip/data/"

_ROWS = (
    BuiltIn(
        "digits",
        "scikit-learn's digits, 8 x 8",
        classes=10,
        images={"train": 1_797},
        download_mb=0,
        pixels=8,
        mirrors=False,
        open=_digits,
        names=_DIGITS,
    ),
    BuiltIn(
        "cifar10",
        "CIFAR-10",
        classes=10,
        images={"train": 50_000, "test": 10_000},
        download_mb=170,
        pixels=32,
        mirrors=True,
        open=_flagged("CIFAR10"),
        files=(File(f"{_TORONTO}cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
        folder="cifar-10-batches-py",
    ),
    BuiltIn(
        "cifar100",
        "CIFAR-100",
        classes=100,
        images={"train": 50_000, "test": 10_000},
        download_mb=169,
        pixels=32,
        mirrors=True,
        open=_flagged("CIFAR100"),
        files=(File(f"{_TORONTO}cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
        folder="cifar-100-python",
    ),
    BuiltIn(
        "mnist",
        "MNIST",
        classes=10,
        images={"train": 60_000, "test": 10_000},
        download_mb=12,
        pixels=28,
        mirrors=False,
        open=_flagged("MNIST"),
        files=_idx(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "MNIST/raw",
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        folder="MNIST/raw",
        names=_DIGITS,
    ),
    BuiltIn(
        "fashionmnist",
        "Fashion-MNIST",
        classes=10,
        images={"train": 60_000, "test": 10_000},
        download_mb=31,
        pixels=28,
        mirrors=True,
        open=_flagged("FashionMNIST"),
        files=_idx(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "FashionMNIST/raw",
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        folder="FashionMNIST/raw",
    ),
    BuiltIn(
        "kmnist",
        "Kuzushiji-MNIST",
        classes=10,
        images={"train": 60_000, "test": 10_000},
        download_mb=21,
        pixels=28,
        mirrors=False,
        open=_flagged("KMNIST"),
        files=_idx(
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            "KMNIST/raw",
            (
                "bdb82020997e1d708af4cf47b453dcf7",
                "e144d726b3acfaa3e44228e80efcd344",
                "5c965bf0a639b31b8f53240b1b52f4d7",
                "7320c461ea6c1c855c0b718fb2a4b134",
            ),
        ),
        folder="KMNIST/raw",
    ),
    BuiltIn(
        "emnist",
        "EMNIST, balanced: digits and letters",
        classes=47,
        images={"train": 112_800, "test": 18_800},
        download_mb=562,
        pixels=28,
        mirrors=False,
        open=_flagged("EMNIST", split="balanced"),
        files=(
            File(
                "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
                "58c8d27c78d21e728a6bc7b3cc06412e",
                "EMNIST/raw",
                inner="gzip/emnist-balanced-*.gz",
            ),
        ),
        folder="EMNIST/raw",
        transposed=True,
    ),
    BuiltIn(
        "qmnist",
        "QMNIST: MNIST with all 60,000 test images",
        classes=10,
        images={"train": 60_000, "test": 60_000},
        download_mb=20,
        pixels=28,
        mirrors=False,
        open=_flagged("QMNIST"),
        files=(
            File(f"{_QMNIST}train-images-idx3-ubyte.gz", "ed72d4157d28c017586c42bc6afe6370", "QMNIST/raw"),
            File(f"{_QMNIST}train-labels-idx2-int.gz", "0058f8dd561b90ffdd0f734c6a30e5e4", "QMNIST/raw"),
            File(f"{_QMNIST}test-images-idx3-ubyte.gz", "1394631089c404de565df7b7aeaf9412", "QMNIST/raw"),
            File(f"{_QMNIST}test-labels-idx2-int.gz", "5b5b05890a5e13444e108efe57b788aa", "QMNIST/raw"),
        ),
        folder="QMNIST/raw",
        names=_DIGITS,
    ),
    BuiltIn(
        "usps",
        "USPS digits",
        classes=10,
        images={"train": 7_291, "test": 2_007},
        download_mb=8,
        pixels=16,
        mirrors=False,
        open=_flagged("USPS"),
        files=(
            File(f"{_LIBSVM}usps.bz2", "ec16c51db3855ca6c91edd34d0e9b197"),
            File(f"{_LIBSVM}usps.t.bz2", "8ea070ee2aca1ac39742fdd1ef5ed118"),
        ),
        names=_DIGITS,
    ),
    BuiltIn(
        "svhn",
        "Street View House Numbers",
        classes=10,
        images={"train": 73_257, "test": 26_032},
        download_mb=246,
        pixels=32,
        mirrors=False,
        open=_split("SVHN"),
        files=(
            File("http://ufldl.stanford.edu/housenumbers/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            File("http://ufldl.stanford.edu/housenumbers/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
        names=_DIGITS,
    ),
    BuiltIn(
        "semeion",
        "Semeion digits",
        classes=10,
        images={"train": 1_593},
        download_mb=3,
        pixels=16,
        mirrors=False,
        open=lambda root, part: _published("SEMEION")(root, download=False),
        files=(
            File(
                "http://archive.ics.uci.edu/ml/machine-learning-databases/semeion/semeion.data",
                "cb545d371d2ce14ec121470795a77432",
            ),
        ),
        names=_DIGITS,
    ),
    BuiltIn(
        "stl10",
        "STL-10, without its unlabelled images",
        classes=10,
        images={"train": 5_000, "test": 8_000},
        download_mb=2_640,
        pixels=96,
        mirrors=True,
        open=_split("STL10"),
        files=(File("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb"),),
        folder="stl10_binary",
    ),
    BuiltIn(
        "food101",
        "Food-101",
        classes=101,
        images={"train": 75_750, "test": 25_250},
        download_mb=4_996,
        mirrors=True,
        open=_paths("Food101"),
        files=(File("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87"),),
        folder="food-101",
    ),
    BuiltIn(
        "flowers102",
        "Oxford 102 Flowers",
        classes=102,
        images={"train": 1_020, "val": 1_020, "test": 6_149},
        download_mb=345,
        mirrors=True,
        open=_paths("Flowers102"),
        files=(
            File(f"{_OXFORD}flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "flowers-102"),
            File(f"{_OXFORD}flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "flowers-102"),
            File(f"{_OXFORD}flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "flowers-102"),
        ),
        folder="flowers-102",
    ),
    BuiltIn(
        "oxfordiiitpet",
        "Oxford-IIIT Pets",
        classes=37,
        images={"train": 3_680, "test": 3_669},
        download_mb=811,
        mirrors=True,
        open=_split("OxfordIIITPet", {"train": "trainval"}),
        files=(
            File(f"{_OXFORD}pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "oxford-iiit-pet"),
            File(f"{_OXFORD}pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", "oxford-iiit-pet"),
        ),
        folder="oxford-iiit-pet",
    ),
    BuiltIn(
        "dtd",
        "Describable Textures",
        classes=47,
        images={"train": 1_880, "val": 1_880, "test": 1_880},
        download_mb=625,
        mirrors=True,
        open=_paths("DTD"),
        files=(File(f"{_OXFORD}dtd/download/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1", "dtd"),),
        folder="dtd",
    ),
    BuiltIn(
        "gtsrb",
        "German Traffic Signs",
        classes=43,
        images={"train": 26_640, "test": 12_630},
        download_mb=277,
        mirrors=False,
        open=_split("GTSRB"),
        files=(
            File(f"{_ERDA}GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478", "gtsrb"),
            File(f"{_ERDA}GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185", "gtsrb"),
            File(f"{_ERDA}GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5", "gtsrb"),
        ),
        folder="gtsrb",
        names=_SIGNS,
    ),
    BuiltIn(
        "eurosat",
        "EuroSAT, RGB",
        classes=10,
        images={"train": 27_000},
        download_mb=94,
        pixels=64,
        mirrors=True,
        open=lambda root, part: _published("EuroSAT")(root, loader=str),
        files=(File(f"{_TORCHGEO}EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387", "eurosat"),),
        folder="eurosat",
    ),
    BuiltIn(
        "imagenette",
        "Imagenette, short side 320",
        classes=10,
        images={"train": 9_469, "val": 3_925},
        download_mb=342,
        mirrors=True,
        open=_paths("Imagenette", size="320px"),
        files=(
            File("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"),
        ),
        folder="imagenette2-320",
    ),
    BuiltIn(
        "caltech101",
        "Caltech-101, without its background class",
        classes=101,
        images={"train": 8_677},
        download_mb=137,
        mirrors=True,
        open=lambda root, part: _published("Caltech101")(root),
        files=(
            File(
                f"{_CALTECH}mzrjq-6wc02/files/caltech-101.zip",
                "3138e1922a9193bfa496528edbbc45d0",
                "caltech101",
                inner="caltech-101/101_ObjectCategories.tar.gz",
            ),
        ),
        folder="caltech101/101_ObjectCategories",
    ),
    BuiltIn(
        "caltech256",
        "Caltech-256, with its clutter class",
        classes=257,
        images={"train": 30_607},
        download_mb=1_183,
        mirrors=True,
        open=lambda root, part: _published("Caltech256")(root),
        files=(
            File(
                f"{_CALTECH}nyy15-4j048/files/256_ObjectCategories.tar",
                "67b4f42ca05d46448c6bb8ecd2220f6d",
                "caltech256",
            ),
        ),
        folder="caltech256/256_ObjectCategories",
    ),
    BuiltIn(
        "fgvcaircraft",
        "FGVC-Aircraft, by variant",
        classes=100,
        images={"train": 3_334, "val": 3_333, "test": 3_333},
        download_mb=2_753,
        mirrors=True,
        open=_paths("FGVCAircraft"),
        # torchvision has no hash of this one; it is the publisher's.
        files=(
            File(f"{_OXFORD}fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", "d4acdd33327262359767eeaa97a4f732"),
        ),
        folder="fgvc-aircraft-2013b",
    ),
    BuiltIn(
        "country211",
        "Country211: where a photo was taken",
        classes=211,
        images={"train": 31_650, "val": 10_550, "test": 21_100},
        download_mb=11_000,
        mirrors=True,
        open=_paths("Country211", {"val": "valid"}),
        files=(File(f"{_OPENAI}country211.tgz", "84988d7644798601126c29e9877aab6a"),),
        folder="country211",
    ),
    BuiltIn(
        "renderedsst2",
        "Rendered SST-2: sentiment of printed sentences",
        classes=2,
        images={"train": 6_920, "val": 872, "test": 1_821},
        download_mb=131,
        mirrors=False,
        open=_paths("RenderedSST2"),
        files=(File(f"{_OPENAI}rendered-sst2.tgz", "2384d08e9dcfa4bd55b324e610496ee5"),),
        folder="rendered-sst2",
    ),
)
SETS: Mapping[str, BuiltIn] = {row.name: row for row in _ROWS}

_NO_CLASSES = "it has no single label an image to classify by"
_VIDEOS = "it is of videos, not of images"
LEFT_OUT: Mapping[str, str] = {
    "stanfordcars": "its publisher has taken it off the network",
    "sun397": "its address has answered 404 since 2025",
    "lfwpeople": "its publisher has taken it off the network",
    "lfwpairs": "its publisher has taken it off the network",
    "phototour": "its publisher has taken it off the network; and it is of patches to match, not of classes",
    "imagenet": "it is given to registered people only; fetch it and give its folder",
    "fer2013": "it is given to people with a Kaggle login only; fetch it and give its folder",
    "pcam": "it needs the packages h5py and gdown, and lies on Google Drive, which refuses many downloads",
    "places365": "it is of 24 GB and more, and its test labels are not published",
    "inaturalist": "it is of 42 GB and more; fetch what you need of it and give its folder",
    "lsun": "torchvision cannot fetch it, and it needs the package lmdb",
    "clevrclassification": "its label is a number of objects, and its test labels are not published",
    "omniglot": "its two parts have different classes: it is made for learning from one example",
    "celeba": _NO_CLASSES,
    **dict.fromkeys(("cocodetection", "cococaptions", "vocdetection", "vocsegmentation", "sbdataset"), _NO_CLASSES),
    **dict.fromkeys(("cityscapes", "kitti", "widerface", "sbu", "flickr8k", "flickr30k"), _NO_CLASSES),
    **dict.fromkeys(("kittiflow", "sintel", "flyingchairs", "flyingthings3d", "hd1k"), _NO_CLASSES),
    **dict.fromkeys(("kitti2012stereo", "kitti2015stereo", "carlastereo", "middlebury2014stereo"), _NO_CLASSES),
    **dict.fromkeys(("crestereo", "fallingthingsstereo", "sceneflowstereo", "sintelstereo"), _NO_CLASSES),
    **dict.fromkeys(("instereo2k", "eth3dstereo"), _NO_CLASSES),
    **dict.fromkeys(("kinetics", "hmdb51", "ucf101", "movingmnist"), _VIDEOS),
    "fakedata": "it is noise",
}
