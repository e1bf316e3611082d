"""The report as text and as JSON, with the conditions of the measurement."""

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch

from tests.benchmarks.rows import Comparison
from tests.benchmarks.timing import Bench
from tl_cli.compute.device import cores

_PACKAGES = ("torch", "torchvision", "timm", "pillow", "numpy", "tl-train")


def facts(bench: Bench) -> dict[str, object]:
    """Return versions, machine and settings. Call before the first round, as they include the machine's load."""
    settings = asdict(replace(bench, material=None))  # type: ignore[arg-type]
    del settings["material"]
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": {
            "cpu": _cpu(),
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if bench.device == "cuda" else None,
            "load_average": os.getloadavg(),
        },
        "settings": {**settings, "images": "made" if bench.material.images is None else bench.material.images.name},
    }


def as_text(known: Mapping[str, object], comparisons: list[Comparison]) -> str:
    """Return the conditions and a table with one line per comparison and its notes below."""
    lines = [f"{title}: {_in_a_line(values)}" for title, values in known.items()]
    titles = ("work", "against", "baseline", "tl", "figure", "rounds", "floor", "aim", "")
    rows = [titles, *(_cells(comparison) for comparison in comparisons)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    notes: list[tuple[str, ...]] = [(), *(comparison.notes for comparison in comparisons)]
    for row, below in zip(rows, notes, strict=True):
        lines.append("")
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        lines += [f"    {note}" for note in below]
    return "\n".join(lines)


def as_json(known: Mapping[str, object], comparisons: list[Comparison]) -> str:
    """Return the same with every round; infinity and NaN become null, as JSON has no such numbers."""
    rows = [
        {
            **asdict(comparison),
            "figure": comparison.figure,
            "figures": comparison.figures,
            "verdict": comparison.verdict,
        }
        for comparison in comparisons
    ]
    return json.dumps(_finite({**known, "rows": rows}), indent=2, allow_nan=False) + "\n"


def _cells(comparison: Comparison) -> tuple[str, ...]:
    unit = "img/s" if comparison.kind == "share" else "s"
    goal = comparison.goal
    figures = comparison.figures
    return (
        comparison.work,
        comparison.baseline or "-",
        f"{median(comparison.theirs):,.2f} {unit}" if comparison.theirs else "-",
        f"{median(comparison.ours):,.2f} {unit}",
        _figure(comparison, comparison.figure),
        f"{_figure(comparison, min(figures))} to {_figure(comparison, max(figures))}",
        _figure(comparison, goal.floor) if goal else "-",
        _figure(comparison, goal.aim) if goal else "-",
        comparison.verdict,
    )


def _figure(comparison: Comparison, value: float) -> str:
    ratio = f"{value:,.1f}x" if value >= 10 else f"{value:.2f}x"
    return {
        "speed-up": ratio,
        "share": f"{100 * value:.1f}%",
        "cost": f"{100 * value:.2f}%",
        "seconds": f"{value:.2f} s",
    }[comparison.kind]


def _in_a_line(values: object) -> str:
    assert isinstance(values, Mapping)
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    if not listing.exists():
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in listing.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.machine()
