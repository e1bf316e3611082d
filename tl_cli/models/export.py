"""Writes a saved model as a file that runs without ``tl``: ONNX or torch.export; and runs such files."""

import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tl_cli.contract import PROBABILITIES, ModelCard
from tl_cli.errors import StorageError, TlError, UsageError, first_line
from tl_cli.models.classifier import Classifier

# Called with the file that was written; raises if it is wrong.
Check = Callable[[Path], None]

INPUT, OUTPUT = "images", "logits"
_BATCH = "batch"
_FOLDER = "--format folder writes the saved model itself, for tl"
# Two programs that compute in fp32 differ by rounding; a larger difference is a fault.
TOLERANCE = 1e-3


class Deployed(nn.Module):
    """A model with its normalisation: (B, 3, crop, crop) float32, RGB, 0 to 255, to logits (B, num_classes)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        how = classifier.preprocessing
        self.network = classifier.model
        self.classifier = classifier
        self.mean = nn.Buffer(torch.tensor(how.mean).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(how.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier.logits((images / 255 - self.mean) / self.std)


def facts(card: ModelCard) -> dict[str, str]:
    """Return what is needed to use the file, as ONNX metadata: texts by name, as JSON if structured."""
    return {
        "classes": json.dumps(list(card.classes), ensure_ascii=False),
        "preprocessing": card.preprocessing.model_dump_json(),
        "architecture": card.architecture,
        "temperature": json.dumps(card.calibration.temperature),
        "tl_version": card.tl_version,
        "input": "images: float32 (batch, 3, crop, crop), RGB, 0 to 255; normalisation is inside",
        "output": f"logits: float32 (batch, classes); the probabilities are {PROBABILITIES[card.data.task]}",
    }


def write_onnx(classifier: Classifier, card: ModelCard, path: Path, check: Check = lambda written: None) -> None:
    """Write the network with its normalisation as ONNX; any batch size. Classes and preprocessing are its metadata.

    Args:
        check: called with the file before it is renamed to ``path``; if this raises, ``path`` is left unchanged.

    Raises:
        UsageError: onnx is not installed.
        TlError: torch cannot export this network.
        StorageError: the file cannot be written.
    """
    try:
        import onnx  # noqa: F401  # of an optional extra
        import onnxscript  # noqa: F401  # of the same
    except ImportError as error:
        raise UsageError(f"ONNX needs {error.name}: pip install 'tl-train[export]'") from error
    program = _exported(classifier)
    with _exporting(f"{card.architecture} as ONNX", f"Try --format pt2. {_FOLDER}"):
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: _BATCH}},  # otherwise torch chooses the axis's name
        )  # fmt: skip
        assert exported is not None
        exported.model.metadata_props.update(facts(card))
    with _temporary(path) as temporary:
        exported.save(temporary)
        check(temporary)


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """Return the logits (B, num_classes) float32 that onnxruntime computes.

    Args:
        images: (B, 3, crop, crop) float32, 0 to 255.

    Raises:
        UsageError: onnxruntime is not installed.
        TlError: it cannot run the file.
    """
    try:
        import onnxruntime  # of an optional extra
    except ImportError as error:
        raise UsageError("checking ONNX needs onnxruntime: pip install 'tl-train[export]'") from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        logits: np.ndarray = session.run([OUTPUT], {INPUT: images})[0]
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise TlError(f"onnxruntime cannot run {path}: {first_line(error)}") from error
    return logits


def write_pt2(classifier: Classifier, card: ModelCard, path: Path, check: Check = lambda written: None) -> None:
    """Write the network with its normalisation as a torch.export program; any batch size.

    Args:
        check: called with the file before it is renamed to ``path``; if this raises, ``path`` is left unchanged.

    Raises:
        TlError: torch cannot export this network.
        StorageError: the file cannot be written.
    """
    program = _exported(classifier)
    # Not directly to the file: torch's writer ends the process if the disk is full.
    buffer = io.BytesIO()
    with _exporting(f"{card.architecture} as pt2"):
        torch.export.save(program, buffer, extra_files=facts(card))
    with _temporary(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        check(temporary)


def run_pt2(path: Path, images: np.ndarray) -> np.ndarray:
    """Return the logits (B, num_classes) float32 that the program computes.

    Args:
        images: (B, 3, crop, crop) float32, 0 to 255.
    """
    with _quiet(), torch.inference_mode():
        logits: Tensor = torch.export.load(path).module()(torch.from_numpy(images))
    return logits.numpy()


def _exported(classifier: Classifier) -> torch.export.ExportedProgram:
    model = Deployed(classifier).cpu().to(memory_format=torch.contiguous_format).eval()
    side = classifier.preprocessing.crop
    # Two images, because a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, side, side)
    with _exporting(classifier.name), torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim(_BATCH)}})


@contextmanager
def _exporting(what: str, advice: str = _FOLDER) -> Iterator[None]:
    """Replace the exporters' errors by one with the root cause; those above it only repeat that there was one."""
    try:
        with _quiet():
            yield
    except Exception as error:  # torch.export raises many unrelated kinds of exceptions
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file cannot be written
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {first_line(cause)[:500].rstrip('.')}"
        raise TlError(f"torch cannot export {what}: {reason}. {advice}") from error


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder, whose files are moved beside ``path`` if the block succeeds.

    ONNX stores weights beyond 2 GB in a second file, which the first one refers to by name.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder / path.name
        for written in folder.iterdir():
            written.replace(path.with_name(written.name))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' log messages and warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
