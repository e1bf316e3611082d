"""Fonts for pictures: every letter of a name is drawn by some font, or written out as its number; never as a box."""

import logging
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

LATIN = "DejaVu Sans"  # comes with matplotlib
# It would say on the screen that a font has no bold letters.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
# Chinese, Japanese and Korean letters in one font; the package is asked for its file alone.
_CJK_PACKAGE, _CJK_FILE = "notojp_matplotlib", "fonts/NotoSansCJKjp-Regular.otf"

_LAST_RESORT = "Last Resort"  # has every letter there is, as a box


def families(texts: Iterable[str] = ()) -> list[str]:
    """Return font families for matplotlib that have the letters of some texts between them, the usual one first."""
    found = [LATIN]
    missing = {letter for text in texts for letter in text if not _has(LATIN, letter)}
    for name in _others():
        covered = {letter for letter in missing if _has(name, letter)}
        if covered:
            found.append(name)
            missing -= covered
        if not missing:
            break
    return found


def file_for(text: str) -> Path:
    """Return the file of the font that has most letters of a text, for a program that takes but one."""
    *_, last = families([text])
    return _files()[last]


def drawable(text: str) -> str:
    """Return text in letters that some font has; others as their numbers."""
    found = families([text])
    return "".join(
        letter if letter.isspace() or any(_has(name, letter) for name in found) else f"\\u{ord(letter):04x}"
        for letter in text
    )


@cache
def _files() -> dict[str, Path]:
    """Return the fonts here by their families, the most likely ones for a name first."""
    from matplotlib.font_manager import findfont, fontManager

    files = {LATIN: Path(findfont(LATIN))}
    spec = find_spec(_CJK_PACKAGE)
    for folder in spec.submodule_search_locations or [] if spec else []:
        path = Path(folder) / _CJK_FILE
        if path.is_file():
            known = {Path(font.fname) for font in fontManager.ttflist}
            if path not in known:
                fontManager.addfont(path)
            files.update({font.name: path for font in fontManager.ttflist if Path(font.fname) == path})
    for font in sorted(fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400)):
        if not font.name.startswith(_LAST_RESORT):
            files.setdefault(font.name, Path(font.fname))
    return files


def _others() -> list[str]:
    return [name for name in _files() if name != LATIN]


@cache
def _letters(family: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(_files()[family])).get_charmap())
    except (OSError, RuntimeError, KeyError):
        return frozenset()


def _has(family: str, letter: str) -> bool:
    return letter.isspace() or ord(letter) in _letters(family)
