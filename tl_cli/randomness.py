"""Random numbers as functions of a seed and counters, the same on every machine. No random state is kept here."""

from enum import IntEnum
from typing import TypeVar

import numpy as np

_MASK = (1 << 64) - 1

Bits = TypeVar("Bits", int, np.ndarray)


class Purpose(IntEnum):
    """What random numbers are for: each purpose has separate numbers."""

    AUGMENTATION = 0
    ORDER = 1
    CIRCLES = 2
    MIXING = 3
    DROPOUT = 4


def splitmix64(state: Bits) -> Bits:
    """Return the first output of SplitMix64 (Steele et al. 2014) for a state, an int or an array of uint64."""
    bits = (state + 0x9E3779B97F4A7C15) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)


def mixed(seed: int, *counters: int) -> int:
    """Return 64 bits that depend on a seed and on every counter.

    The seed is mixed before the first counter is added, so that seed 1 at step 1 is not seed 0 at step 2.

    Args:
        seed: modulo 2**64, as are the counters.
    """
    bits = splitmix64(seed & _MASK)
    for counter in counters:
        bits = splitmix64((bits + counter) & _MASK)
    return bits


def generator(seed: int, purpose: Purpose, *counters: int) -> np.random.Generator:
    """Return a new generator whose numbers depend on the arguments alone."""
    return np.random.Generator(np.random.Philox(key=mixed(seed, purpose, *counters)))
