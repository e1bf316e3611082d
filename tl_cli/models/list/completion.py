"""The names of all architectures, read from the libraries' source text: completion must not import torch."""

import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# How timm's architectures are told from torchvision's of the same name.
PREFIX = "timm/"
_TOWER = "it is an image tower that returns tokens and has no classifier"
_TALL = "its weights expect inputs of 1024 x 768 pixels; inputs are square here"
# timm's architectures that the zoo leaves out, and why. All others were tested: output shape, head, freezing.
UNSUPPORTED: dict[str, str] = {
    "deepseek_vit_412m_enc": _TOWER,
    "gemma4_vit_167m_enc": _TOWER,
    "gemma4_vit_570m_enc": _TOWER,
    "mobilenetv5_300m_enc": _TOWER,
    "qwen3_vit_88m_enc": _TOWER,
    "qwen3_vit_306m_enc": _TOWER,
    "qwen3_vit_416m_enc": _TOWER,
    "vit_base_patch16_sapiens2": _TALL,
    "vit_large_patch16_sapiens2": _TALL,
    "vit_huge_patch16_sapiens2": _TALL,
    "vit_giant_patch16_sapiens2": _TALL,
    "vit_5b_patch16_sapiens2": _TALL,
}
# A decorated builder: @register_model (timm) or @register_model() (torchvision), other decorators, def NAME(.
_REGISTERED = re.compile(r"^@register_model(?:\(\))?[ \t]*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def complete(incomplete: str) -> list[str]:
    """Return the architectures whose names begin so; timm's only once their prefix is begun.

    Args:
        incomplete: what stands on the command line.
    """
    own = [*registered("torchvision"), "efficientnet_lite0"]
    if not incomplete.startswith(PREFIX):
        return sorted(name for name in (*own, PREFIX) if name.startswith(incomplete))
    return sorted(PREFIX + name for name in registered("timm") if (PREFIX + name).startswith(incomplete))


def is_architecture(name: str) -> bool:
    """Whether a name is that of an architecture; timm's may have a tag."""
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX).partition(".")[0] in registered("timm")
    return name == "efficientnet_lite0" or name in registered("torchvision")


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
