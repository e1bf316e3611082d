"""Fonts for image files: a letter that no font has is written as its number, never drawn as a box."""

import logging
from functools import cache

import notojp_matplotlib  # type: ignore[import-untyped]  # noqa: F401 (registers a font of Chinese, Japanese, Korean)
from matplotlib.font_manager import fontManager, get_font

LATIN = "DejaVu Sans"  # comes with matplotlib
_CJK = "Noto Sans CJK JP"
_BOXES = "Last Resort"  # has every letter, as a box
# It would print that a font has no bold letters.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def families(text: str) -> list[str]:
    """Return the font families, for matplotlib's fallback, that have the letters of a text; DejaVu Sans comes first."""
    chosen, missing = [LATIN], {letter for letter in text if not _has(LATIN, letter)}
    for name in _files():
        if covered := {letter for letter in missing if _has(name, letter)}:
            chosen.append(name)
            missing -= covered
    return chosen


def file_for(text: str) -> str:
    """Return the file of the font that suits a text best, for a library without fallback."""
    return _files()[families(text)[-1]]


def drawable(text: str) -> str:
    """Return the text with letters that no font has replaced by their numbers."""
    names = families(text)
    return "".join(c if any(_has(name, c) for name in names) else f"\\u{ord(c):04x}" for c in text)


@cache
def _files() -> dict[str, str]:
    """Return the font files by family, the most likely ones for a name first."""
    files: dict[str, str] = {}
    for font in sorted(
        fontManager.ttflist,
        key=lambda each: (each.name != LATIN, each.name != _CJK, each.style != "normal", each.weight != 400),
    ):
        if not font.name.startswith(_BOXES):
            files.setdefault(font.name, font.fname)
    return files


def _has(family: str, letter: str) -> bool:
    try:
        return letter.isspace() or bool(get_font(_files()[family]).get_char_index(ord(letter)))
    except (OSError, RuntimeError):  # a font file that was removed or is broken
        return False
