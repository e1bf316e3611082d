"""From ``--data`` to labelled images in train, val and test, and from a saved model's data spec back to the same."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tl_cli.contract import SPLIT_NAMES, USUAL_COLUMNS, Columns, DataSpec, PixelRange, Split, SplitName
from tl_cli.data import checks, images, splits
from tl_cli.data.images import FileImages, Images, PackedImages, describe, is_split, with_contents
from tl_cli.data.pixel_range import Measured, with_measured_range, with_model_range, with_range
from tl_cli.data.sizes import Sizes, measure
from tl_cli.data.sources import archive, csv, folder, published, unpack
from tl_cli.data.sources.catalogue import LEFT_OUT, SETS, canonical
from tl_cli.data.sources.found import LAYOUTS, Found
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError, first_line, some, suggest
from tl_cli.io.array_cache import Store
from tl_cli.io.download import Missing, Progress, cache_root, silent
from tl_cli.io.file_uris import local_path
from tl_cli.io.memory import memory_bytes

BUILT_IN = tuple(SETS)
_PACK_LIMIT_BYTES = 4 << 30
_READERS = 4  # threads that read large files for an evaluation


@dataclass(frozen=True, slots=True)
class LabelledData:
    """A data set, split into parts.

    Attributes:
        classes: names, of a folder or a CSV sorted; a label is an index into them.
        parts: images of ``train``, ``val`` and, if available, ``test``.
        spec: with which the same images and split are found again.
        notes: notes for the user.
        measured: the range of the training images with more than 8 bits per channel; None if there are none.
        files: the files of parts that are files or were decoded from files, as they were read.
        sizes: of the training images, if they were opened for training.
    """

    classes: tuple[str, ...]
    parts: dict[SplitName, Images]
    spec: DataSpec
    notes: tuple[str, ...] = ()
    measured: Measured | None = None
    files: Mapping[SplitName, FileImages] = field(default_factory=dict)
    sizes: Sizes | None = None

    @property
    def native_size(self) -> int | None:
        """The median of the training images' short sides in pixels, None if unknown."""
        return None if self.sizes is None else self.sizes.median

    def changed_files(self) -> dict[SplitName, list[str]]:
        """Return, by part, the files that are decoded in each epoch and whose contents have changed."""
        changed = {name: images.changed_files(part) for name, part in self.parts.items()}
        return {name: names for name, names in changed.items() if names}


def open_data(
    spec: DataSpec,
    *,
    resuming: bool = False,
    pixel_range: PixelRange | None = None,
    workers: int,
    progress: Progress = silent,
) -> LabelledData:
    """Return the images of ``spec`` for training, split by its rules. Layout and digests are filled in.

    Args:
        resuming: ``spec`` is that of an earlier run. Its test images may be missing: training does not need them.
        pixel_range: values for black and white in images of more than 8 bits per channel; None measures them
            on the training part.

    Raises:
        DataError: the source is unknown or its images cannot be used.
        DownloadError: it must be fetched and cannot be.
    """
    source, cache = locate(spec.source), cache_folder(spec.data_dir)
    found = _open(source, cache, progress, spec.columns, max_pixels=spec.max_pixels, partial=resuming)
    if "train" not in found.parts:
        raise DataError(f"{source} has no training images; there are: {', '.join(found.parts)}")
    spec = spec.model_copy(update={"source": source, "layout": spec.layout if resuming else found.layout})
    # Images of more than 8 bits per channel can be decoded only with a range.
    threads = Threads(workers, progress)
    found, measured = with_measured_range(found, _split(found, spec), threads, given=pixel_range)
    found = _without_bad(found, spec, threads, by_part=resuming)
    parts = _split(found, spec)
    found = replace(found, notes=found.notes + _rare_note(found, parts))
    try:
        data = _decode(found, parts, spec, threads)
    except DataError as error:
        if not resuming or "test" not in parts:
            raise
        del parts["test"]
        notes = (*found.notes, f"the test images cannot be used: {first_line(error)}")
        data = _decode(replace(found, notes=notes), parts, spec, threads)
    return replace(data, measured=measured)


def open_source(
    source: str,
    data_dir: str | None,
    progress: Progress = silent,
    *,
    columns: Columns = USUAL_COLUMNS,
    max_pixels: int | None = None,
) -> Found:
    """Return the images of a source, not split and not decoded. Its ``faults`` are reasons to refuse a training.

    Raises:
        DataError: the source is unknown or has no images.
        DownloadError: it must be fetched and cannot be.
    """
    found = _open(locate(source), cache_folder(data_dir), progress, columns, max_pixels=max_pixels, lenient=True)
    return found if found.faults or len(found.classes) > 1 else replace(found, faults=("there is but one class",))


def training_labels(found: Found) -> np.ndarray:
    """Return the labels (N,) int64 of the images that ``tl train`` trains on by default, without those it holds out.

    Raises:
        DataError: the images cannot be split.
    """
    spec = DataSpec(source="not used", layout=found.layout)
    return _split(found, spec)["train"].labels


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Images to evaluate a trained model on, none of them decoded yet.

    Attributes:
        data: the images.
        is_own: whether they are the data set that the model was trained on, split as for the training.
        trained_on: for another data set, how many of its images are among the training images; None if those are
            not available for a comparison.
        unread: parts with files that are missing or cannot be read; they are not in ``data``.
    """

    data: LabelledData
    is_own: bool
    trained_on: Mapping[SplitName, int] | None = None
    unread: Mapping[SplitName, FileImages] = field(default_factory=dict)


def open_for_evaluation(
    then: DataSpec,
    source: str,
    *,
    data_dir: str | None,
    columns: Columns = USUAL_COLUMNS,
    pixel_range: PixelRange | None = None,
    progress: Progress = silent,
) -> EvaluationData:
    """Return the images of ``source`` for a model that was trained on ``then``, with the model's pixel range.

    The model's own images are split as for its training, even from another location: their digests are compared.
    Another data set keeps the parts of its source; without parts, all images are in ``train``. Parts and classes may
    be missing.

    Args:
        columns: of a CSV, if they differ from those of the training.

    Raises:
        DataError: the source is unknown or its images cannot be used.
        DownloadError: it must be fetched and cannot be.
    """
    spec = then.model_copy(update={"source": locate(source), "data_dir": data_dir or then.data_dir, "splits": {}})
    is_same_source = spec.source == then.source
    if is_same_source:  # another CSV may have other columns
        columns = then.columns.model_copy(update=columns.model_dump(exclude_none=True))
    cache, limit = cache_folder(spec.data_dir), then.max_pixels
    found = _open(spec.source, cache, progress, columns, hints=then.columns, max_pixels=limit, partial=True)
    found = with_model_range(found, pixel_range, Threads(2, progress))
    readable = _without_bad(found, spec, Threads(2, progress), by_part=True)
    parts, unread = _with_contents(_split_again(readable, spec), progress)
    recorded = {name: then.splits[name] for name in parts if name in then.splits}
    equal = [name for name, split in recorded.items() if is_split(parts[name], found.classes, split)]
    if is_same_source or (equal and _are_own(parts, equal, then, pixel_range, progress)):
        layout = LAYOUTS.get(frozenset(found.parts), then.layout) if len(found.parts) > 1 else then.layout
        spec = spec.model_copy(update={"layout": layout})
        readable = replace(readable, notes=readable.notes + _rare_note(readable, parts))
        return EvaluationData(_labelled(readable, parts, spec), is_own=True, unread=unread)
    parts, unread = _with_contents(found.parts, progress)
    own = _own_images(then, pixel_range, progress)
    trained_on = None
    if "train" in own:
        trained_on = {name: images.count_shared(part, own["train"]) for name, part in parts.items()}
    return EvaluationData(_labelled(found, parts, spec), is_own=False, trained_on=trained_on, unread=unread)


def _with_contents(
    parts: Mapping[SplitName, Images], progress: Progress
) -> tuple[dict[SplitName, Images], dict[SplitName, FileImages]]:
    """Return the parts that can be read, with contents, and the other parts unchanged."""
    read: dict[SplitName, Images] = {}
    unread: dict[SplitName, FileImages] = {}
    for name, part in parts.items():
        try:
            read |= with_contents({name: part}, Threads(_READERS, progress))
        except DataError:
            assert isinstance(part, FileImages)
            unread[name] = part
    return read, unread


def _split_again(found: Found, spec: DataSpec) -> Mapping[SplitName, Images]:
    """Return the parts of a run; if its training images cannot be split as before, only the other parts."""
    try:
        return _split(found, spec)
    except DataError:
        return {name: part for name, part in found.parts.items() if name != "train"}


def _are_own(
    parts: Mapping[SplitName, Images],
    equal: list[SplitName],
    then: DataSpec,
    pixel_range: PixelRange | None,
    progress: Progress,
) -> bool:
    """Return whether parts with the digests of a training are its images; digests of lengths alone are not enough."""
    unsure = [name for name in equal if then.splits[name].scheme == "lengths" and isinstance(parts[name], FileImages)]
    own = _own_images(then, pixel_range, progress) if unsure else {}
    return all(images.are_same(parts[name], own[name]) for name in unsure if name in own)


def _own_images(then: DataSpec, pixel_range: PixelRange | None, progress: Progress) -> dict[SplitName, Images]:
    """Return the images of a training by part from their original location; empty if they are not available."""
    with suppress(DataError):
        if is_local(then):
            cache, limit = cache_folder(then.data_dir), then.max_pixels
            found = _open(then.source, cache, progress, then.columns, max_pixels=limit, partial=True)
            found = _without_bad(with_range(found, pixel_range), then, Threads(2, progress), by_part=True)
            return with_contents(_split(found, then), Threads(_READERS, progress))
    return {}


def _without_bad(found: Found, spec: DataSpec, threads: Threads, *, by_part: bool) -> Found:
    """Return the images, without those that cannot be decoded if the spec skips them.

    Args:
        by_part: a part that would be empty stays unchanged, as it may not be needed.
    """
    if spec.on_bad_image == "error":
        return found  # reported when they are decoded, or before they are streamed
    if not by_part:
        return checks.without_unreadable(found, threads)
    for name, part in found.parts.items():
        with suppress(DataError):
            one = replace(found, parts={name: part})
            readable = checks.without_unreadable(one, threads)
            found = replace(readable, parts={**found.parts, **readable.parts})
    return found


def _labelled(found: Found, parts: Mapping[SplitName, Images], spec: DataSpec) -> LabelledData:
    """Return the parts in order, with their digests in the spec."""
    ordered = {name: parts[name] for name in SPLIT_NAMES if name in parts}
    described = {name: describe(part, found.classes) for name, part in ordered.items()}
    spec = spec.model_copy(update={"splits": {**spec.splits, **described}})
    return LabelledData(found.classes, ordered, spec, found.notes, files=_files(ordered))


def _files(parts: Mapping[SplitName, Images]) -> dict[SplitName, FileImages]:
    return {name: part for name, part in parts.items() if isinstance(part, FileImages)}


def _decode(found: Found, parts: Mapping[SplitName, Images], spec: DataSpec, threads: Threads) -> LabelledData:
    """Return the parts with digests, decoded if they are small; otherwise each file is checked.

    Raises:
        DataError: some cannot be decoded; names all of them.
    """
    files, packed = _files(parts), dict[SplitName, Images]()
    try:
        parts = with_contents(parts, threads)
        files = _files(parts)
        data = _labelled(found, parts, spec)
        budget = _budget()
        for name, part in data.parts.items():
            packed[name] = part = decoded(part, threads, budget_bytes=budget)
            if isinstance(part, PackedImages):
                budget -= part.pixels.nbytes
    except DataError:
        # The error is about the first such file; this one names all.
        checks.check_all(files, threads)
        raise
    # A file that cannot be decoded would stop the training in the middle.
    if _files(packed) and spec.on_bad_image == "error":
        checks.check_all(files, threads)
    notes, source = data.notes, spec.source
    if source in BUILT_IN and Path(source).exists():
        notes += (
            f"--data {source} is the published set; for the file or folder of that name, write --data ./{source}",
        )
    return replace(data, parts=packed, notes=notes, sizes=measure(packed["train"]))


def decoded(part: Images, threads: Threads, *, budget_bytes: int | None = None) -> Images:
    """Return the images decoded if they are small and of one size, else unchanged.

    Args:
        budget_bytes: memory for the pixels; None is a share of the machine's.

    Raises:
        DataError: one of them cannot be decoded.
    """
    if isinstance(part, PackedImages):
        return part
    budget, store = _budget() if budget_bytes is None else budget_bytes, Store(cache_root() / "decoded")
    return images.pack(part, threads, budget_bytes=budget, store=store)


def _budget() -> int:
    # A fraction of all memory, not of free memory: results must not depend on the load of the machine.
    return min(_PACK_LIMIT_BYTES, memory_bytes() // 4)


def locate(source: str) -> str:
    """Return the source that ``--data`` names: a built-in set's name, or an absolute path.

    Raises:
        DataError: there is no such source; names similar ones, or why a set is not available.
    """
    path, name = Path(source).expanduser(), canonical(source)
    if source in BUILT_IN or (name in BUILT_IN and not path.exists()):
        return name
    if path.exists() or "/" in source or _is_listing(path) or unpack.is_archive(source):
        return str(path.resolve())
    if name in LEFT_OUT:
        raise DataError(f"--data {source} is not available: {LEFT_OUT[name]}")
    raise DataError(
        f"--data {source!r} is no built-in set, and nothing here has that name.{suggest(name, BUILT_IN)} "
        f"For pictures of your own, give a .csv that lists them, a .zip or .tar, or a folder; {folder.EXPECTED}"
    )


def changed_parts(then: DataSpec, now: LabelledData) -> list[SplitName]:
    """Return the parts whose digests have changed."""
    return [name for name in SPLIT_NAMES if name in then.splits and not _is_unchanged(then.splits[name], now, name)]


def _is_unchanged(then: Split, now: LabelledData, name: SplitName) -> bool:
    if name not in now.parts:
        return False
    split = now.spec.splits[name]
    if name in now.files and then.scheme != split.scheme:
        return is_split(now.files[name], now.classes, then)
    return (split.count, split.digest) == (then.count, then.digest)


def is_local(spec: DataSpec, data_dir: str | None = None) -> bool:
    """Return whether the images of a saved model can be opened without a download."""
    if spec.source in SETS:
        return published.is_here(SETS[spec.source], cache_folder(data_dir or spec.data_dir))
    return Path(spec.source).exists()


def missing(source: str, data_dir: str | None) -> Missing | None:
    """Return the files of a set that would be downloaded; None if there are none.

    Raises:
        DataError: the source is unknown or does not exist.
    """
    source = locate(source)
    if source in SETS:
        return published.missing(SETS[source], cache_folder(data_dir))
    if not Path(source).exists():
        _open(source, cache_folder(data_dir), silent)  # raises the error for its kind of source
    return None


def check_exists(source: str) -> None:
    """Check that the data set of a saved model still exists.

    Raises:
        DataError: the folder or file has moved; names the flag for its new path.
    """
    if source not in BUILT_IN and not Path(source).exists():
        raise DataError(f"the images are no longer in {source}; say where they are now with --data")


def cache_folder(data_dir: str | None) -> Path:
    """Return the folder of downloaded sets: ``--data-dir``, or a folder in the cache."""
    return Path(local_path(data_dir)).expanduser() if data_dir else cache_root() / "data"


def _open(
    source: str,
    cache: Path,
    progress: Progress,
    columns: Columns = USUAL_COLUMNS,
    *,
    hints: Columns = USUAL_COLUMNS,
    max_pixels: int | None = None,
    partial: bool = False,
    lenient: bool = False,
) -> Found:
    """Return the images of a located source, with this limit on pixels; for the other arguments see ``csv.scan``."""
    path, is_archive = Path(source), unpack.is_archive(source)
    if columns != USUAL_COLUMNS and (source in SETS or not (_is_listing(path) or is_archive)):
        named = ", ".join(f"--{name}-column" for name in columns.model_dump(exclude_none=True))
        raise DataError(f"{named}: {source} is no CSV and has no columns; leave it out")
    if source in SETS:
        found = published.open_set(SETS[source], cache, progress)
    elif path.is_dir():
        found = _open_folder(path, partial=partial, lenient=lenient)
    elif _is_listing(path):
        found = csv.scan(path, columns=columns, hints=hints, partial=partial, lenient=lenient)
    elif is_archive:
        found = archive.scan(
            path, cache, progress, columns=columns, hints=hints, partial=partial, lenient=lenient, max_pixels=max_pixels
        )
    else:
        found = folder.scan(path)  # raises: there is no such folder
    limited = {name: replace(part, max_pixels=max_pixels) for name, part in _files(found.parts).items()}
    return replace(found, parts={**found.parts, **limited})


def _open_folder(path: Path, *, partial: bool, lenient: bool) -> Found:
    try:
        return folder.scan(path, partial=partial, lenient=lenient)
    except DataError as error:
        packed = sorted(file for file in path.iterdir() if unpack.is_archive(file.name) and file.is_file())
        if inside := [*csv.listings_in(path), *packed]:
            hint = f"to use what is in {inside[0].name}, give --data {shlex.quote(str(inside[0]))}"
            raise DataError(f"{error}\n{hint}") from error
        raise


def _is_listing(path: Path) -> bool:
    return path.suffix.lower() in csv.SUFFIXES


def _split(found: Found, spec: DataSpec) -> dict[SplitName, Images]:
    # A run's source may have lost its own test or validation part; the layout is the recorded one.
    is_undivided = set(found.parts) == {"train"} and spec.layout == "classes"
    # Images per class: for training, and for each held-out part.
    least = 3 if is_undivided else 2 if "val" not in found.parts else 1
    parts = _limited(found.parts, spec, least)
    if "train" not in parts:
        return parts
    # Classes after the last one of train are not counted; other parts may have them.
    counts = np.bincount(parts["train"].labels)
    rare = np.flatnonzero(counts < least)
    if least > 1 and (counts < least).all():
        raise DataError(
            f"no class has the {least} images that a random split takes ({_counted(found.classes, counts, rare)}); "
            "bring more, or pictures for val/ and test/ of your own"
        )

    def hold_out(name: SplitName, fraction: float) -> None:
        train = parts["train"]
        kept, out = splits.hold_out(train.labels, fraction, spec.split_seed, rare)
        parts[name], parts["train"] = train.subset(out), train.subset(kept)

    if is_undivided:
        hold_out("test", spec.test_fraction)
    if "val" not in parts:
        # A share of all training images, including those held out for the test.
        hold_out("val", spec.val_fraction / (1 - spec.test_fraction) if is_undivided else spec.val_fraction)
    return parts


def _limited(parts: Mapping[SplitName, Images], spec: DataSpec, least: int) -> dict[SplitName, Images]:
    """Return the parts with at most ``--limit`` images each, and at least ``least`` of each training class."""
    limited = dict(parts)
    for name, part in parts.items():
        if spec.limit is not None and spec.limit < len(part):
            needed = least if name == "train" else 1
            limited[name] = part.subset(splits.subset(part.labels, spec.limit, spec.split_seed, least=needed))
    return limited


def _rare_note(found: Found, parts: Mapping[SplitName, Images]) -> tuple[str, ...]:
    """Return a note if classes have too few training images to hold any out."""
    held_out = [name for name in parts if name not in found.parts]
    if not held_out:
        return ()
    train, *others = (np.bincount(parts[name].labels, minlength=len(found.classes)) for name in ("train", *held_out))
    rare = np.flatnonzero((np.sum(others, axis=0) == 0) & (train > 0))
    if not len(rare):
        return ()
    listed = _counted(found.classes, train, rare)
    return (
        f"too few images to hold any out: those of {listed} are all trained on, none is in {' or '.join(held_out)}; "
        f"each class needs {len(held_out) + 1}",
    )


def _counted(classes: tuple[str, ...], counts: np.ndarray, labels: np.ndarray) -> str:
    return some([f"{classes[label]} ({counts[label]})" for label in labels])
