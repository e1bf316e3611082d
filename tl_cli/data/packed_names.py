"""Many names in little memory: one run of bytes and two numbers a name. Knows nothing of what is named."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import eq

import numpy as np

# Its bytes are in the order of the characters even where a file's name is no text and has surrogates for its bytes.
_ENCODING = ("utf-8", "surrogatepass")
# Names that are looked at together: their places as Python's integers take more than the names themselves.
_CHUNK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """An unchanging sequence of names; a million of 30 letters take 46 MB instead of 90.

    Attributes:
        text: the bytes of all names, of those of other selections too.
        starts: (N,) int64, where each name begins in ``text``.
        ends: (N,) int64, where it ends.
    """

    text: bytes
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Return these names, which may come one by one."""
        text, ends = bytearray(), array("q")
        for name in names:
            text += name.encode(*_ENCODING)
            ends.append(len(text))
        bounds = np.concatenate([[0], np.array(ends, dtype=np.int64)])
        return cls(bytes(text), bounds[:-1], bounds[1:])

    @classmethod
    def joined(cls, several: Sequence["Names"]) -> "Names":
        """Return all names of several sequences, one sequence after the other."""
        before = np.cumsum([0, *(len(names.text) for names in several)])
        starts, ends = (
            np.concatenate([side + shift for side, shift in zip(sides, before, strict=False)])
            for sides in ([names.starts for names in several], [names.ends for names in several])
        )
        return cls(b"".join(names.text for names in several), starts, ends)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: int) -> str:
        return self.text[self.starts[place] : self.ends[place]].decode(*_ENCODING)

    def __iter__(self) -> Iterator[str]:
        return (name.decode(*_ENCODING) for name in self._encoded())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self._encoded(), other._encoded()))

    def _encoded(self) -> Iterator[bytes]:
        for first in range(0, len(self), _CHUNK):
            piece = slice(first, first + _CHUNK)
            for start, end in zip(self.starts[piece].tolist(), self.ends[piece].tolist(), strict=True):
                yield self.text[start:end]

    def take(self, places: np.ndarray) -> "Names":
        """Return the names at ``places``, (M,) of integers or (N,) of bool, in that order."""
        return Names(self.text, self.starts[places], self.ends[places])

    def order(self) -> np.ndarray:
        """Return the places (N,) int64 of the names from first to last by the alphabet; equal ones stay in order."""
        # As most are: a folder is read in order, and parts of it keep that order.
        if all(one <= other for one, other in pairwise(self._encoded())):
            return np.arange(len(self))
        keys = list(self._encoded())
        return np.array(sorted(range(len(self)), key=keys.__getitem__), dtype=np.int64)

    def tolist(self) -> list[str]:
        """Return the names as a list."""
        return list(self)
