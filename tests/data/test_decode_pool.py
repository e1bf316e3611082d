import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tl_cli.data import decode_pool
from tl_cli.data.decode import OPENING, write_pixels
from tl_cli.data.decode_pool import decode_aside
from tl_cli.data.images import FileImages, Images, PackedImages, pack
from tl_cli.data.sources.folder import scan
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError

COUNT = 40
SIDE = 8


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    """Images of noise, one of them with a name that is not text."""
    for number in range(COUNT):
        folder = tmp_path / "data" / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        name = os.fsdecode(b"caf\xe9\n.png") if number == 7 else f"{number:02}.png"
        Image.fromarray(noise).save(folder / name)
    scanned = scan(tmp_path / "data").parts["train"]
    assert isinstance(scanned, FileImages)
    return scanned


def decode_with_processes(files: FileImages, processes: int = 2) -> tuple[np.ndarray, list[range], list[int]]:
    pixels, counts = np.zeros((len(files), 3, SIDE, SIDE), dtype=np.uint8), list[int]()
    names = [os.path.join(files.root, name) for name in files.ids]
    left = decode_aside(lambda share: [names[index] for index in share], pixels, processes, counts.append)
    return pixels, left, counts


def expected(files: FileImages) -> np.ndarray:
    return torch.stack([files.load(index) for index in range(len(files))]).numpy()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_image_is_decoded_to_its_own_index(files: FileImages, processes: int) -> None:
    pixels, left, counts = decode_with_processes(files, processes)
    assert [len(share) for share in left] == [0] * processes
    assert np.array_equal(pixels, expected(files))
    assert counts[-1] == COUNT
    assert counts == sorted(counts)


def test_a_process_stops_at_a_truncated_image_or_another_size(files: FileImages) -> None:
    (files.root / files.ids[5]).write_bytes(b"no picture")
    Image.new("RGB", (SIDE, SIDE + 1)).save(files.root / files.ids[30])
    pixels, left, _ = decode_with_processes(files)
    assert left == [range(5, 20), range(30, 40)]
    for part in (slice(0, 5), slice(20, 30)):
        good = files.subset(np.arange(COUNT)[part])
        assert np.array_equal(pixels[part], expected(good))


def test_if_no_process_starts_the_caller_decodes_all(files: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool.sys, "executable", "/nowhere/python")
    _, left, _ = decode_with_processes(files)
    assert left == [range(20), range(20, 40)]


def test_if_the_processes_end_immediately_the_caller_decodes_all(
    files: FileImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_pool.sys, "executable", "/bin/false")
    _, left, _ = decode_with_processes(files)
    assert left == [range(20), range(20, 40)]


def test_the_caller_decodes_the_shares_of_processes_that_did_not_start(
    files: FileImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, started = subprocess.Popen, list[int]()

    def only_once(*args: object, **options: object) -> "subprocess.Popen[bytes]":
        if started:
            raise OSError("no more processes")
        started.append(1)
        return real(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(decode_pool.subprocess, "Popen", only_once)
    pixels, left, _ = decode_with_processes(files)
    assert left == [range(20, 20), range(20, 40)]
    assert np.array_equal(pixels[:20], expected(files)[:20])


def test_an_error_of_the_callback_is_raised(files: FileImages) -> None:
    def broken(done: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        decode_aside(lambda share: [str(files.root)] * len(share), np.zeros((8, 3, 8, 8), np.uint8), 2, broken)


def test_no_process_is_left_behind_when_the_work_is_stopped(files: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def remembered(*args: object, **options: object) -> "subprocess.Popen[bytes]":
        started.append(real(*args, **options))  # type: ignore[call-overload]
        return started[-1]

    def interrupted(done: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(decode_pool.subprocess, "Popen", remembered)
    with pytest.raises(KeyboardInterrupt):
        decode_aside(lambda share: [str(files.root)] * len(share), np.zeros((8, 3, 8, 8), np.uint8), 2, interrupted)
    assert len(started) == 2
    assert all(child.returncode is not None for child in started)


def packed(files: FileImages) -> Images:
    return pack(files, Threads(2), budget_bytes=1 << 30, worth_processes=10)


def test_images_packed_with_processes_are_those_packed_without(files: FileImages) -> None:
    found = packed(files)
    assert isinstance(found, PackedImages)
    assert np.array_equal(found.pixels.numpy(), expected(files))


def test_an_image_that_a_process_cannot_decode_is_named(files: FileImages) -> None:
    (files.root / files.ids[33]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"{files.ids[33]} is not a picture"):
        packed(files)


def test_images_of_many_sizes_are_not_packed(files: FileImages) -> None:
    Image.new("RGB", (SIDE, SIDE + 1)).save(files.root / files.ids[33])
    assert packed(files) is files


def test_the_program_writes_pixels_by_channel_until_an_image_does_not_fit(files: FileImages) -> None:
    names = [os.fsencode(os.path.join(files.root, name)) for name in (*files.ids, "missing.png")]
    written = io.BytesIO()
    write_pixels(io.BytesIO(b"".join(name + b"\0" for name in names)), written, SIDE, SIDE)
    assert written.getvalue() == OPENING + expected(files).tobytes()


def test_a_module_in_the_current_folder_is_not_imported(
    files: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    _, left, _ = decode_with_processes(files)
    assert [len(share) for share in left] == [0, 0]


@pytest.mark.parametrize(
    ("printed", "left"),
    [
        ("print('hello', flush=True)", [20, 20]),
        ("print('hello')", None),
        ("import atexit; atexit.register(print, 'bye')", [0, 0]),
    ],
)
def test_output_of_the_interpreter_is_not_taken_for_pixels(
    files: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, left: list[int] | None
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(printed)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    pixels, found, _ = decode_with_processes(files)
    # Whether an unflushed line is written before the pixels depends on PYTHONUNBUFFERED.
    counts = [len(share) for share in found]
    assert counts == left if left else counts in ([0, 0], [20, 20])
    assert counts == [20, 20] or np.array_equal(pixels, expected(files))
