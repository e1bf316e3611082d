"""What a bug report needs: versions, device, processor, paths and the store; no secrets."""

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import constants

import tl_cli
from tl_cli.contract import tl_version
from tl_cli.io.download import cache_root
from tl_cli.io.memory import memory_bytes
from tl_cli.models.list.completion import BUNDLED
from tl_cli.models.list.published import hub_folder
from tl_cli.tracking.sqlite_reader import default_uri

_PACKAGES = (
    "torch", "torchvision", "timm", "mlflow", "numpy", "pandas", "pillow", "safetensors", "pydantic", "typer", "rich",
    "plotext", "matplotlib", "scikit-learn", "huggingface-hub", *(row["package"] for row in BUNDLED.values()),
    "onnx", "onnxscript", "onnxruntime", "captum", "accelerate",
)  # fmt: skip
# Variables without secrets that affect what is computed or shown.
_SHOWN = (
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE", "TL_CACHE_DIR", "TL_REQUEST_PIXELS", "TERM", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "CI", "LANG",
)  # fmt: skip
# Only whether these are set is shown: they hold tokens, passwords, or addresses with either.
_PREFIXES = ("MLFLOW_", "DATABRICKS_", "AWS_", "AZURE_", "GOOGLE_", "HF_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def report_sections() -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the sections of the report, of plain JSON types; the last one, the machine, imports torch."""
    yield (
        "versions",
        {"tl": tl_version(), "python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    )
    yield (
        "paths",
        {
            "current": str(Path.cwd()),
            "tl": str(Path(str(tl_cli.__file__)).parent),
            "python": sys.executable,
            "cache": str(cache_root()),
            "torch_weights": str(hub_folder()),
            "hub_weights": constants.HF_HUB_CACHE,
        },
    )
    yield (
        "store",
        {
            "tracking_uri": without_credentials(default_uri()),
            "from": "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "MLflow's default or settings",
        },
    )
    yield "environment", _environment(os.environ)
    yield "machine", _machine()


def _machine() -> dict[str, object]:
    # Imported here, as it takes seconds: the other sections are shown before.
    import torch

    from tl_cli.compute.device import choose_device, cores, cpu_facts, device_name

    device = choose_device("auto")
    return {
        "system": platform.platform(),
        "processor": device_name(torch.device("cpu")),
        "processor_features": sorted(name for name, has in cpu_facts().items() if has is True),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "device": device.type if device.type != "cuda" else f"cuda ({device_name(device)})",
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
    }


def without_credentials(uri: str) -> str:
    """Return an address without parts that may be secret: everything before its last @, and its query."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "", uri
    # A path on this machine has no credentials; what looks like user:password@host without a scheme does.
    if not rest.startswith("/") and (separator or ":" in rest.partition("@")[0]):
        rest = rest.rpartition("@")[2]
    path = rest if rest.startswith("/") and scheme in ("", "file") else rest.partition("?")[0].partition("#")[0]
    return f"{scheme}{separator}{path}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _environment(variables: Mapping[str, str]) -> dict[str, object]:
    shown: dict[str, object] = {name: variables[name] for name in _SHOWN if name in variables}
    hidden = [name for name in variables if name.upper().startswith(_PREFIXES) and name not in shown]
    return shown | dict.fromkeys(sorted(hidden), "set")
