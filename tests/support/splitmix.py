"""SplitMix64, from its published code."""


class SplitMix64:
    """The author's code, line by line, with Python integers."""

    def __init__(self, state: int) -> None:
        self.state = state

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = (z ^ z // 2**30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z // 2**27) * 0x94D049BB133111EB % 2**64
        return z ^ z // 2**31


def reference(seed: int, *counters: int) -> int:
    bits = SplitMix64(seed % 2**64).next()
    for counter in counters:
        bits = SplitMix64((bits + counter) % 2**64).next()
    return bits
