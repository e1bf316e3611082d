"""From ``--data`` to labelled images in train, val and test, and from a saved model's data spec back to the same."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tl_cli.contract import SPLIT_NAMES, USUAL_COLUMNS, Columns, DataSpec, PixelRange, Split, SplitName
from tl_cli.data import checks, splits
from tl_cli.data import pixel_range as depths
from tl_cli.data.images import (
    FileImages,
    Images,
    PackedImages,
    are_same,
    changed_files,
    describe,
    is_split,
    pack,
    shared,
    with_contents,
)
from tl_cli.data.pixel_range import Measured
from tl_cli.data.sizes import Sizes, measure
from tl_cli.data.sources import archive, csv, folder, published, unpack
from tl_cli.data.sources.catalogue import LEFT_OUT, SETS, canonical
from tl_cli.data.sources.found import LAYOUTS, Found
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
        found = {name: changed_files(images) for name, images in self.parts.items()}
        return {name: names for name, names in found.items() if names}


def open_data(
    spec: DataSpec,
    *,
    resuming: bool = False,
    pixel_range: PixelRange | None = None,
    workers: int,
    progress: Progress = silent,
) -> LabelledData:
    """Return the images that ``spec`` names, split by its rule. Layout and digests are filled in.

    Args:
        resuming: ``spec`` is that of an earlier run. Its test images may be missing: training does not need them.
        pixel_range: values for black and white in images of more than 8 bits per channel; None measures them
            on the training part.

    Raises:
        DataError: the source is unknown or its images cannot be used.
        DownloadError: it must be fetched and cannot be.
    """
    source = locate(spec.source)
    found = _open(
        source,
        cache_folder(spec.data_dir),
        progress,
        columns=spec.columns,
        max_pixels=spec.max_pixels,
        partial=resuming,
    )
    if "train" not in found.parts:
        raise DataError(f"{source} has no training images; there are: {', '.join(found.parts)}")
    spec = spec.model_copy(update={"source": source, "layout": spec.layout if resuming else found.layout})
    seen = depths.survey(_split(found, spec), given=pixel_range, workers=workers, progress=progress)
    # Images of more than 8 bits per channel can be decoded only with a range.
    found = _scaled(found, seen.measured.pixel_range if seen.measured else None)
    found = (_readable_parts if resuming else _readable)(found, spec, workers, progress)
    parts = _split(found, spec)
    found = replace(found, notes=found.notes + seen.notes + _rare_note(found, parts))
    try:
        data = _labelled(found, parts, spec, workers, progress)
    except DataError as error:
        if not resuming or "test" not in parts:
            raise
        del parts["test"]
        notes = (*found.notes, f"the test images cannot be used: {first_line(error)}")
        data = _labelled(replace(found, notes=notes), parts, spec, workers, progress)
    return replace(data, measured=seen.measured)


def open_source(
    source: str,
    data_dir: str | None,
    progress: Progress = silent,
    *,
    columns: Columns = USUAL_COLUMNS,
    max_pixels: int | None = None,
) -> Found:
    """Return the images of a source, not split and not decoded.

    What a training would refuse is listed in ``faults``.

    Raises:
        DataError: the source is unknown or has no images.
        DownloadError: it must be fetched and cannot be.
    """
    found = _open(
        locate(source), cache_folder(data_dir), progress, columns=columns, max_pixels=max_pixels, lenient=True
    )
    return found if found.faults or len(found.classes) > 1 else replace(found, faults=("there is but one class",))


def training_labels(found: Found) -> np.ndarray:
    """Return the labels (N,) int64 of the images that ``tl train`` trains on by default, without those it holds out.

    Raises:
        DataError: the images cannot be split.
    """
    return _split(found, DataSpec(source="images", layout=found.layout))[
        "train"
    ].labels  # the source is not used, but required


@dataclass(frozen=True, slots=True)
class Judged:
    """Images on which a trained model is evaluated, none of them decoded yet.

    Attributes:
        data: the images.
        is_own: whether they are the data set that the model was trained on, split as for the training.
        trained_on: for another data set, how many of its images are among the training images; None if those no longer
            exist for a comparison.
        unread: parts with files that are missing or cannot be read; they are not in ``data``.
    """

    data: LabelledData
    is_own: bool
    trained_on: Mapping[SplitName, int] | None = None
    unread: Mapping[SplitName, FileImages] = field(default_factory=dict)


def open_to_judge(
    then: DataSpec,
    source: str,
    *,
    data_dir: str | None,
    columns: Columns = USUAL_COLUMNS,
    pixel_range: PixelRange | None = None,
    progress: Progress = silent,
) -> Judged:
    """Return the images of ``source`` for a model that was trained on ``then``, with the model's pixel range.

    The model's own images are split as for its training, wherever they are now: a part is recognized by its digest.
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
    # Another CSV may have columns of other names.
    both = then.columns.model_copy(update=columns.model_dump(exclude_none=True))
    found = _open(
        spec.source,
        cache_folder(spec.data_dir),
        progress,
        columns=both if is_same_source else columns,
        hints=then.columns,
        max_pixels=then.max_pixels,
        partial=True,
    )
    found = _scaled(found, pixel_range)
    notes = depths.notes_for(found.parts, pixel_range, workers=2, progress=progress)
    found = replace(found, notes=found.notes + notes)
    kept = _readable_parts(found, spec, 2, progress)
    parts, unread = _with_contents(_split_again(kept, spec), progress)
    recorded = {name: then.splits[name] for name in parts if name in then.splits}
    alike = [name for name, split in recorded.items() if is_split(parts[name], found.classes, split)]
    if is_same_source or (alike and _are_own(parts, alike, then, pixel_range, progress)):
        layout = LAYOUTS.get(frozenset(found.parts), then.layout) if len(found.parts) > 1 else then.layout
        spec = spec.model_copy(update={"layout": layout})
        kept = replace(kept, notes=kept.notes + _rare_note(kept, parts))
        return Judged(_whole(kept, parts, spec), is_own=True, unread=unread)
    parts, unread = _with_contents(found.parts, progress)
    own = _own_images(then, pixel_range, progress)
    trained_on = {name: shared(images, own["train"]) for name, images in parts.items()} if "train" in own else None
    return Judged(_whole(found, parts, spec), is_own=False, trained_on=trained_on, unread=unread)


def _with_contents(
    parts: Mapping[SplitName, Images], progress: Progress
) -> tuple[dict[SplitName, Images], dict[SplitName, FileImages]]:
    """Return the parts that can be read, with contents, and the other parts unchanged."""
    read: dict[SplitName, Images] = {}
    unread: dict[SplitName, FileImages] = {}
    for name, images in parts.items():
        try:
            read.update(with_contents({name: images}, workers=_READERS, progress=progress))
        except DataError:
            assert isinstance(images, FileImages)
            unread[name] = images
    return read, unread


def _split_again(found: Found, spec: DataSpec) -> Mapping[SplitName, Images]:
    """Return the parts of a run; if its training images cannot be split as before, only the other parts."""
    try:
        return _split(found, spec)
    except DataError:
        return {name: images for name, images in found.parts.items() if name != "train"}


def _are_own(
    parts: Mapping[SplitName, Images],
    alike: list[SplitName],
    then: DataSpec,
    pixel_range: PixelRange | None,
    progress: Progress,
) -> bool:
    """Whether parts with the digests of a training are its images; digests of lengths alone are not enough."""
    unsure = [name for name in alike if then.splits[name].scheme == "lengths" and isinstance(parts[name], FileImages)]
    own = _own_images(then, pixel_range, progress) if unsure else {}
    return all(are_same(parts[name], own[name]) for name in unsure if name in own)


def _own_images(then: DataSpec, pixel_range: PixelRange | None, progress: Progress) -> dict[SplitName, Images]:
    """Return the images of a training by part from where they were; nothing if they are not available."""
    with suppress(DataError):
        if is_at_hand(then):
            cache = cache_folder(then.data_dir)
            found = _open(then.source, cache, progress, columns=then.columns, max_pixels=then.max_pixels, partial=True)
            found = _readable_parts(_scaled(found, pixel_range), then, 2, progress)
            return with_contents(_split(found, then), workers=_READERS, progress=progress)
    return {}


def _scaled(found: Found, pixel_range: PixelRange | None) -> Found:
    return replace(found, parts=depths.scaled(found.parts, pixel_range))


def decoded(images: Images, *, workers: int, progress: Progress = silent) -> Images:
    """Return the images decoded if they are small and of one size, else unchanged.

    Raises:
        DataError: one of them cannot be decoded.
    """
    if isinstance(images, PackedImages):
        return images
    return pack(
        images, budget_bytes=_budget(), workers=workers, progress=progress, store=Store(cache_root() / "decoded")
    )


def _budget() -> int:
    # A fraction of all memory, not of free memory: results must not depend on the load of the machine.
    return min(_PACK_LIMIT_BYTES, memory_bytes() // 4)


def _readable(found: Found, spec: DataSpec, workers: int, progress: Progress) -> Found:
    """Return the images, without those that cannot be decoded if the spec skips them."""
    if spec.on_bad_image == "error":
        return found  # reported when they are decoded, or before they are streamed
    return checks.without_unreadable(found, workers=workers, progress=progress)


def _readable_parts(found: Found, spec: DataSpec, workers: int, progress: Progress) -> Found:
    """Return what ``_readable`` does; a part that would be empty stays unchanged, as it may not be needed."""
    for name, images in found.parts.items():
        with suppress(DataError):
            readable = _readable(replace(found, parts={name: images}), spec, workers, progress)
            found = replace(found, parts={**found.parts, **readable.parts}, notes=readable.notes)
    return found


def _whole(found: Found, parts: Mapping[SplitName, Images], spec: DataSpec) -> LabelledData:
    described = _described(parts, found.classes)
    ordered = {name: parts[name] for name in described}
    filled = spec.model_copy(update={"splits": {**spec.splits, **described}})
    files = {name: images for name, images in ordered.items() if isinstance(images, FileImages)}
    return LabelledData(found.classes, ordered, filled, found.notes, files=files)


def _labelled(
    found: Found, parts: Mapping[SplitName, Images], spec: DataSpec, workers: int, progress: Progress
) -> LabelledData:
    """Return the parts with digests, decoded if they are small; else each file was checked.

    Raises:
        DataError: some cannot be decoded; names all of them.
    """
    files = {name: images for name, images in parts.items() if isinstance(images, FileImages)}
    try:
        parts = with_contents(parts, workers=workers, progress=progress)
        files = {name: images for name, images in parts.items() if isinstance(images, FileImages)}
        whole = _whole(found, parts, spec)
    except DataError:
        # One file is missing; report all that are.
        checks.check_all(files, workers=workers, progress=progress)
        raise
    packed: dict[SplitName, Images] = {}
    store = Store(cache_root() / "decoded")
    budget = _budget()
    for name, images in whole.parts.items():
        if isinstance(images, FileImages):
            try:
                images = pack(images, budget_bytes=budget, workers=workers, progress=progress, store=store)
            except DataError:
                checks.check_all(files, workers=workers, progress=progress)
                raise
        if isinstance(images, PackedImages):
            budget -= images.pixels.nbytes
        packed[name] = images
    # Faults of streamed files would stop the training in the middle.
    streams = any(isinstance(images, FileImages) for images in packed.values())
    if streams and spec.on_bad_image == "error":
        checks.check_all(files, workers=workers, progress=progress)
    notes, source = whole.notes, spec.source
    if source in BUILT_IN and Path(source).exists():
        notes += (
            f"--data {source} is the published set; for the file or folder of that name, write --data ./{source}",
        )
    return replace(whole, parts=packed, notes=notes, sizes=measure(packed["train"]))


def _described(parts: Mapping[SplitName, Images], classes: tuple[str, ...]) -> dict[SplitName, Split]:
    return {name: describe(parts[name], classes) for name in SPLIT_NAMES if name in parts}


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


def is_at_hand(spec: DataSpec, data_dir: str | None = None) -> bool:
    """Whether the images of a saved model can be opened without fetching them."""
    if spec.source in SETS:
        return published.is_here(SETS[spec.source], cache_folder(data_dir or spec.data_dir))
    return Path(spec.source).exists()


def missing(source: str, data_dir: str | None) -> Missing | None:
    """Return the files of a set that would be fetched; None if there are none.

    Raises:
        DataError: the source is unknown or does not exist.
    """
    source = locate(source)
    if source in SETS:
        return published.missing(SETS[source], cache_folder(data_dir))
    if not Path(source).exists():
        _open(source, cache_folder(data_dir), silent)  # raises, with what each kind of source is
    return None


def check_still_there(source: str) -> None:
    """Check that a data set that was used before still exists.

    Raises:
        DataError: the folder or file has moved; names the flag for its new path.
    """
    if source not in BUILT_IN and not Path(source).exists():
        raise DataError(f"the images are no longer in {source}; say where they are now with --data")


def cache_folder(data_dir: str | None) -> Path:
    """Return where downloaded sets are kept: ``--data-dir``, or a folder in the cache."""
    return Path(local_path(data_dir)).expanduser() if data_dir else cache_root() / "data"


def _open(
    source: str,
    cache: Path,
    progress: Progress,
    *,
    columns: Columns = USUAL_COLUMNS,
    hints: Columns = USUAL_COLUMNS,
    max_pixels: int | None = None,
    partial: bool = False,
    lenient: bool = False,
) -> Found:
    found = _scan(source, cache, progress, columns, hints, max_pixels, partial=partial, lenient=lenient)
    parts = {
        name: replace(images, max_pixels=max_pixels) if isinstance(images, FileImages) else images
        for name, images in found.parts.items()
    }
    return replace(found, parts=parts)


def _scan(
    source: str,
    cache: Path,
    progress: Progress,
    columns: Columns,
    hints: Columns,
    max_pixels: int | None,
    *,
    partial: bool,
    lenient: bool,
) -> Found:
    if columns != USUAL_COLUMNS and (source in SETS or not (_is_listing(Path(source)) or unpack.is_archive(source))):
        named = ", ".join(f"--{name}-column" for name in columns.model_dump(exclude_none=True))
        raise DataError(f"{named}: {source} is no CSV and has no columns; leave it out")
    if source in SETS:
        return published.open_set(SETS[source], cache, progress)
    path = Path(source)
    if path.is_dir():
        try:
            return folder.scan(path, partial=partial, lenient=lenient)
        except DataError as error:
            inside = [*csv.listings_in(path), *sorted(each for each in path.iterdir() if _is_packed(each))]
            if inside:
                hint = f"to use what is in {inside[0].name}, give --data {shlex.quote(str(inside[0]))}"
                raise DataError(f"{error}\n{hint}") from error
            raise
    if _is_listing(path):
        return csv.scan(path, columns=columns, hints=hints, partial=partial, lenient=lenient)
    if unpack.is_archive(path.name):
        return archive.scan(
            path,
            cache,
            progress,
            columns=columns,
            hints=hints,
            partial=partial,
            lenient=lenient,
            max_pixels=max_pixels,
        )
    return folder.scan(path)


def _is_packed(path: Path) -> bool:
    return unpack.is_archive(path.name) and path.is_file()


def _is_listing(path: Path) -> bool:
    return path.suffix.lower() in csv.SUFFIXES


def _split(found: Found, spec: DataSpec) -> dict[SplitName, Images]:
    parts = dict(found.parts)
    # A run's source may have lost the parts that it brought itself.
    is_undivided = set(parts) == {"train"} and spec.layout == "classes"
    # Images per class: for training, and for each held-out part.
    least = 3 if is_undivided else 2 if "val" not in parts else 1
    if spec.limit is not None:
        for name, images in parts.items():
            if spec.limit < len(images):
                each = least if name == "train" else 1
                parts[name] = images.subset(splits.subset(images.labels, spec.limit, spec.split_seed, least=each))
    if "train" not in parts:
        return parts
    # Classes after the last one that is in train are not among these; they may be in other parts.
    counts = np.bincount(parts["train"].labels)
    rare = np.flatnonzero(counts < least)
    if least > 1 and (counts < least).all():
        raise DataError(
            f"no class has the {least} images that a random split takes ({_counted(found.classes, counts, rare)}); "
            "bring more, or pictures for val/ and test/ of your own"
        )
    if is_undivided:
        rest, out = splits.hold_out(parts["train"].labels, spec.test_fraction, spec.split_seed, rare)
        parts["test"] = parts["train"].subset(out)
        parts["train"] = parts["train"].subset(rest)
    if "val" not in parts:
        # The share is of all training images, those already held out for the test included.
        share = spec.val_fraction / (1 - spec.test_fraction) if is_undivided else spec.val_fraction
        kept, out = splits.hold_out(parts["train"].labels, share, spec.split_seed, rare)
        parts["val"] = parts["train"].subset(out)
        parts["train"] = parts["train"].subset(kept)
    return parts


def _rare_note(found: Found, parts: Mapping[SplitName, Images]) -> tuple[str, ...]:
    """Return a note where classes have too few images to hold any out of the training images."""
    held_out = [name for name in parts if name not in found.parts]
    if not held_out:
        return ()
    counts = {name: np.bincount(parts[name].labels, minlength=len(found.classes)) for name in ("train", *held_out)}
    held = sum(counts[name] for name in held_out)
    rare = np.flatnonzero((held == 0) & (counts["train"] > 0))
    if not len(rare):
        return ()
    listed = _counted(found.classes, counts["train"], rare)
    return (
        f"too few images to hold any out: those of {listed} are all trained on, none is in {' or '.join(held_out)}; "
        f"each class needs {len(held_out) + 1}",
    )


def _counted(classes: tuple[str, ...], counts: np.ndarray, labels: np.ndarray) -> str:
    return some([f"{classes[label]} ({counts[label]})" for label in labels])
