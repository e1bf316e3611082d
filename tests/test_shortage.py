"""Too little memory or too few threads: the error names the shortage and options that help, and the run is ended."""

import errno
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.support.processes import run_in
from tests.support.quick_run import TRAIN
from tl_cli.errors import DataError, UsageError
from tl_cli.shortage import ShortageError, during, find_shortage
from tl_cli.training.state import checkpoints

# Each fails for lack of address space, as a process under `ulimit -v` does.
LIMITED = """
import mmap, os, resource, threading
import numpy as np, torch
from tl_cli.shortage import find_shortage

used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
threading.stack_size(2**30)
for fail in (
    lambda: torch.empty(2**32),
    lambda: np.ones(2**32),
    lambda: bytearray(2**32),
    lambda: mmap.mmap(-1, 2**32),
    threading.Thread(target=print).start,
):
    try:
        fail()
    except Exception as error:
        print(find_shortage(error).resource)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_errors_under_a_memory_or_thread_limit_are_shortages() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["memory"] * 4 + ["threads"], done.stderr


# Messages of the libraries that cannot be provoked on this machine.
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB"
ONEDNN = "could not create a primitive"
CPU = (
    "[enforce fail at alloc_cpu.cpp:129] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000 bytes. Error code 12 (Cannot allocate memory)"
)
THREAD = "can't start new thread"


@pytest.mark.parametrize(
    ("error", "resource"),
    [
        (torch.OutOfMemoryError(CUDA), "GPU memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"), "GPU memory"),
        (RuntimeError(ONEDNN), "memory"),
        (RuntimeError(CPU), "memory"),
        (RuntimeError("unable to mmap 4000 bytes from file </tmp/x>: Cannot allocate memory (12)"), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (OSError("out of memory error when reading image file"), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "threads"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory"),
        (ImportError("x.so: failed to map segment from shared object: Operation not permitted"), None),
        (RuntimeError("could not create a primitive descriptor for a convolution"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "out of memory.png"), None),
        (DataError("out of memory.png is not a picture"), None),
        (KeyboardInterrupt("out of memory"), None),
    ],
    ids=str,
)
def test_shortages_are_distinguished_from_other_errors(error: BaseException, resource: str | None) -> None:
    assert getattr(find_shortage(error), "resource", None) == resource


def test_an_error_caused_by_a_shortage_is_a_shortage() -> None:
    with pytest.raises(ShortageError, match="out of memory while reading"), during("while reading"):  # noqa: PT012
        try:
            raise RuntimeError(ONEDNN)
        except RuntimeError as error:
            raise UsageError("cannot take --input-size 32") from error
    with pytest.raises(UsageError), during("while reading"):
        raise UsageError("cannot take --input-size 32")


def test_the_innermost_activity_counts_and_advice_has_options_of_the_command() -> None:
    with pytest.raises(ShortageError) as caught, during("while training", "--batch-size"):  # noqa: SIM117
        with during("while evaluating", "--input-size", "--workers"):
            raise MemoryError
    assert str(caught.value) == "out of memory while evaluating"
    advice = caught.value.advice({"--batch-size", "--workers", "--device"})
    assert re.findall("--[a-z-]+", advice) == ["--workers"]
    assert re.findall("--[a-z-]+", ShortageError("GPU memory").advice({"--device", "--limit"})) == ["--device"]


def test_no_option_helps_before_anything_is_loaded() -> None:
    shortage = find_shortage(ImportError("libtorch_cpu.so: failed to map segment from shared object"))
    assert str(shortage) == "out of memory while loading libraries"
    assert "--" not in shortage.advice({"--batch-size", "--workers"})


def exhaust(activity: str, message: str) -> None:
    """Let memory or threads run out in this part of a run."""
    from concurrent.futures import thread as pools

    from tl_cli.evaluation import logits
    from tl_cli.models.classifier import Classifier
    from tl_cli.models.zoo import registry
    from tl_cli.training import cached_features, fit, state

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError(message)

    if activity == "the first image":
        create = registry.create

        def broken(*arguments: object, **options: object) -> Classifier:
            classifier = create(*arguments, **options)
            classifier.model.forward = fail
            return classifier

        registry.create = broken
    elif activity == "the recorder":
        start = threading.Thread.start
        threading.Thread.start = lambda self: fail() if self.name == "tl-recorder" else start(self)
    elif activity == "features":
        cached_features.Cache._rows = fail
    elif activity == "a step":
        fit.train_step = fail
    elif activity == "validation":
        logits.outputs = fail
    elif activity == "a checkpoint":
        state.torch.load = fail
    else:
        pools.threading.Thread = fail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activity", "error", "expected", "helps"),
    [
        ("the first image", ONEDNN, "out of memory while preparing data and model", "--input-size --limit --workers"),
        ("the recorder", THREAD, "out of threads", "--workers --threads"),
        ("features", CPU, "out of memory while computing features", "--input-size --no-feature-cache --limit --workers"),
        ("a step", CPU, "out of memory while training", "--batch-size --accumulate --input-size --workers"),
        ("a step", CUDA, "out of GPU memory while training",
         "--batch-size --accumulate --input-size --precision --device"),
        ("validation", CPU, "out of memory while evaluating", "--input-size --workers"),
    ],
)  # fmt: skip
def test_a_run_out_of_memory_or_threads_ends_with_suitable_advice(
    activity: str, error: str, expected: str, helps: str, tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, output = run_in(tmp_path, *TRAIN, "--data", colours, prepare=partial(exhaust, activity, error))
    assert code == 1, output
    assert "Traceback" not in output
    message = output[output.index("error: ") :].strip()
    assert message.startswith(f"error: {expected}; try ")
    assert re.findall("--[a-z-]+", message) == helps.split()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        statuses = database.execute("select status from runs").fetchall()
    assert statuses == ([] if activity == "the first image" else [("FAILED",)])


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_in_memory_is_not_called_damaged(
    tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, output = run_in(tmp_path, *TRAIN, "--data", colours, prepare=partial(exhaust, "validation", CPU))
    assert code == 1, output
    (state,) = tmp_path.glob("mlruns/*/*/state")
    newest = checkpoints(state)[0].name
    code, output = run_in(tmp_path, "train", "--resume", "latest", prepare=partial(exhaust, "a checkpoint", CPU))
    assert code == 1, output
    assert "error: out of memory; try " in output
    assert "is not usable" not in output
    assert checkpoints(state)[0].name == newest


def test_an_image_that_does_not_fit_in_memory_is_not_skipped_as_a_bad_one(tmp_path: Path, odd_pictures: Path) -> None:
    code, output = run_in(
        tmp_path, "train", *TRAIN[1:], "--data", odd_pictures, "--on-bad-image", "skip", "--dry-run",
        prepare=raise_memory_error_when_decoding,
    )  # fmt: skip
    assert code == 1, output
    assert re.search(r"error: out of memory while decoding \S*\.png; try", output)


def raise_memory_error_when_decoding() -> None:
    from tl_cli.data import decode

    def fail(*arguments: object) -> None:
        raise MemoryError

    decode._to_rgb = fail
