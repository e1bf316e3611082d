"""Spellings of class names: which are certainly one class, and which only look alike."""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from tl_cli.errors import some

_SPACES = re.compile(r"\s+")
# Between words only: the grades A and A- differ.
_SEPARATORS = re.compile(r"(?<=\w)[\s_-]+(?=\w)")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_INVISIBLE = ("Cc", "Cf")


def keys(names: Iterable[str]) -> dict[str, str]:
    """Return a key for each name that is equal for all spellings of it.

    Spellings differ in the Unicode form of a letter (NFC, NFD), in white space of any kind, in invisible characters at
    the ends and, where all names are numbers, in how a number is written (0, 0.0). The key of nothing visible is empty.
    """
    cleaned = {name: _cleaned(name) for name in names}
    if all(map(_NUMBER.fullmatch, cleaned.values())):
        return {name: _value(number) for name, number in cleaned.items()}
    return cleaned


def merged(counts: Mapping[str, int]) -> tuple[dict[str, str], list[str]]:
    """Return the class of each name, and notes about names that are read as one.

    Args:
        counts: images by name.
    """
    groups: dict[str, list[str]] = {}
    for name, key in keys(sorted(counts)).items():
        groups.setdefault(key, []).append(name)
    classes = {name: name for name in counts}
    notes = []
    for names in groups.values():
        if len(names) > 1:
            # The shortest spelling of a number is the usual one.
            one = min(map(_cleaned, names), key=lambda name: (len(name), name))
            classes.update((name, one) for name in names)
            notes.append(_counted(names, counts))
    return classes, [f"read as one class: {some(notes)}"] if notes else []


def lookalikes(counts: Mapping[str, int]) -> tuple[str, str]:
    """Return a fault and a note, empty where there is nothing to say, about classes that are probably one.

    ``Cat`` and ``cat`` are most likely a mistake, which the user has to fix. Single characters such as ``A`` and
    ``a`` may well be different letters.

    Args:
        counts: images by class.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(counts):
        text = _SEPARATORS.sub(" ", unicodedata.normalize("NFKC", _cleaned(name))).casefold()
        groups.setdefault(_value(text) if _NUMBER.fullmatch(text) else text, []).append(name)
    twins = [names for names in groups.values() if len(names) > 1]
    letters = [_counted(names, counts) for names in twins if all(len(_cleaned(name)) == 1 for name in names)]
    words = [_counted(names, counts) for names in twins if any(len(_cleaned(name)) > 1 for name in names)]
    differ = "that differ only in case, separators or the form of characters"
    return (
        f"there are classes {differ}: {some(words)}; give each class one name" if words else "",
        f"classes {differ}: {some(letters)}; if they are the same, give them one name" if letters else "",
    )


def _counted(names: list[str], counts: Mapping[str, int]) -> str:
    # As ASCII, which makes the difference visible.
    return " and ".join(f"{name!a} ({counts[name]:,} image{'s' * (counts[name] != 1)})" for name in names)


def _cleaned(name: str) -> str:
    composed = _SPACES.sub(" ", unicodedata.normalize("NFC", name))
    visible = [index for index, c in enumerate(composed) if c != " " and unicodedata.category(c) not in _INVISIBLE]
    return composed[visible[0] : visible[-1] + 1] if visible else ""


def _value(number: str) -> str:
    """Return a number in one form for all ways to write it, of any length."""
    whole, _, fraction = number.lstrip("+-").partition(".")
    digits = f"{whole.lstrip('0')}.{fraction.rstrip('0')}"
    return f"-{digits}" if number.startswith("-") and digits != "." else digits
