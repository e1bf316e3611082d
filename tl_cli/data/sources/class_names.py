"""Spellings of class names: which certainly mean one class, and which only look alike."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from tl_cli.data.sources.found import Faults
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


def unify(counts: Mapping[str, int], source: Path, faults: Faults) -> tuple[dict[str, str], list[str]]:
    """Return the class of each name, and notes; report a fault if different classes look alike.

    Args:
        counts: images by name.
    """
    classes, notes = merged(counts)
    by_class = Counter[str]()
    for name, count in counts.items():
        by_class[classes[name]] += count
    fault, note = lookalikes(by_class)
    if fault:
        faults.add(f"in {source} {fault}")
    return classes, [*notes, note] if note else notes


def merged(counts: Mapping[str, int]) -> tuple[dict[str, str], list[str]]:
    """Return the class of each name, and notes about names that are read as one.

    Args:
        counts: images by name.
    """
    groups = defaultdict[str, list[str]](list)
    for name, key in keys(sorted(counts)).items():
        groups[key].append(name)
    several = [names for names in groups.values() if len(names) > 1]
    # The shortest spelling of a number is the usual one.
    shortest = [min(map(_cleaned, names), key=lambda name: (len(name), name)) for names in several]
    classes = {name: name for name in counts}
    classes.update((name, one) for names, one in zip(several, shortest, strict=True) for name in names)
    return classes, [f"read as one class: {some([_counted(names, counts) for names in several])}"] if several else []


def lookalikes(counts: Mapping[str, int]) -> tuple[str, str]:
    """Return a fault and a note about classes that are probably one; each is empty if there are none.

    ``Cat`` and ``cat`` are most likely a mistake, which the user has to fix. Single characters such as ``A`` and
    ``a`` may well be different letters.

    Args:
        counts: images by class.
    """
    groups = defaultdict[str, list[str]](list)
    for name in sorted(counts):
        text = _SEPARATORS.sub(" ", unicodedata.normalize("NFKC", _cleaned(name))).casefold()
        groups[_value(text) if _NUMBER.fullmatch(text) else text].append(name)
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
