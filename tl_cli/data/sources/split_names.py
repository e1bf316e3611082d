"""Names that mean a part of a data set: words from ``split_names.toml``, and how names are cut into words."""

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tl_cli.contract import SPLIT_NAMES, SplitName

Part = SplitName | Literal["unclear"]


def _folded(text: str) -> str:
    """Return text without case and without accents."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


_WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_PART_OF_WORD: Mapping[str, Part] = {_folded(word): part for part, words in _WORDS["parts"].items() for word in words}
_PIECES = frozenset(map(_folded, _WORDS["pieces"]))
_FILLERS = frozenset(map(_folded, _WORDS["fillers"]))
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class _Cut:
    """A name cut into words.

    Attributes:
        words: without accents, case, digits and fillers.
        part: the part that the first such word means; None if no word means one.
        rest: the other words.
        is_last: whether the name ends with the part, as ``seg_train`` does: a ``test_tube`` is a tube.
        numbered: whether it is a counted piece, as ``fold1`` is.
    """

    words: tuple[str, ...]
    part: Part | None
    rest: tuple[str, ...]
    is_last: bool
    numbered: bool


def _cut(name: str) -> _Cut:
    found = [word for each in _WORD.findall(_folded(_CAMEL.sub(" ", name))) for word in _unglued(each)]
    words = tuple(word for word in found if word not in _FILLERS)
    parts = [_PART_OF_WORD[word] for word in words if word in _PART_OF_WORD]
    return _Cut(
        words=words,
        part=parts[0] if parts else None,
        rest=tuple(word for word in words if word not in _PART_OF_WORD),
        is_last=bool(parts) and words[-1] in _PART_OF_WORD,
        numbered=bool(_NUMBER.search(name)) and (bool(parts) or not _PIECES.isdisjoint(found)),
    )


def _unglued(word: str) -> list[str]:
    """Return the part and the filler of which a word is made (``testset``), or the word."""
    for end in _FILLERS:
        if word.endswith(end) and word[: -len(end)] in _PART_OF_WORD:
            return [word[: -len(end)], end]
    return [word]


def meaning(name: str) -> Part | None:
    """Return the part that a name means if it means nothing else: ``Training set``, ``val2017``; not ``test_tube``."""
    cut = _cut(name)
    return None if cut.rest else cut.part


def part_named(name: str) -> SplitName | None:
    """Return the part that a name means; None if it means no part, or if that is unclear."""
    part = meaning(name)
    return None if part == "unclear" else part


def settled(named: Mapping[str, Part]) -> dict[str, Part]:
    """Return the parts by name; an unclear one is the missing part: test beside train and val, val beside test."""
    missing = [part for part in SPLIT_NAMES if part not in named.values()]
    meant: Part = missing[0] if len(missing) == 1 and missing != ["train"] else "unclear"
    return {name: meant if part == "unclear" else part for name, part in named.items()}


def is_plain(name: str) -> bool:
    """Whether a name is one of the usual words for a part, so that it needs no explanation."""
    return name.casefold() in _WORDS["plain"]


def is_wrapper(name: str, part: Part) -> bool:
    """Whether a folder of this name inside a part adds nothing to it: ``train/images``, ``seg_train/seg_train``."""
    cut = _cut(name)
    return bool(_WORD.search(name)) and (not cut.words or (cut.part == part and cut.is_last))


def parts_among(names: Iterable[str]) -> dict[str, Part]:
    """Return the names that mean parts of one data set; empty if there are fewer than two different parts.

    ``train`` beside ``bus`` is a vehicle, and ``training_shoes`` beside ``test_tube`` are things: names belong together
    where they differ in the part only, or where each ends with a part.
    """
    cuts = {name: cut for name in names if (cut := _cut(name)).part}
    by_rest: dict[tuple[str, ...], dict[str, Part]] = {}
    for name, cut in cuts.items():
        if cut.part:
            by_rest.setdefault(cut.rest, {})[name] = cut.part
    together = {name: part for group in by_rest.values() if _differ(group) for name, part in group.items()}
    if together:
        return together
    ending = {name: cut.part for name, cut in cuts.items() if cut.part and cut.is_last}
    has_plain = any(not cuts[name].rest for name in ending)
    return ending if _differ(ending) and (has_plain or len(ending) == len(set(names))) else {}


def _differ(parts: Mapping[str, Part]) -> bool:
    return len(set(parts.values())) > 1


def looks_divided(names: Sequence[str]) -> list[str]:
    """Return the names that look like parts of one data set, or like counted pieces of one; empty if there are none."""
    parts = parts_among(names)
    if parts:
        return list(parts)
    cuts = [_cut(name) for name in names]
    counted = [cut.words for cut in cuts if cut.numbered]
    others = [cut for cut in cuts if not (cut.numbered or (cut.part and cut.is_last))]
    return list(names) if len(counted) > 1 and len(set(counted)) == 1 and not others else []
