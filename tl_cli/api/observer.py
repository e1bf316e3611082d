"""What a use case reports while it works. The command line draws it; other callers may listen, or not."""

import warnings


class Observer:
    """Turns warnings into Python's and ignores progress; override either."""

    def warn(self, message: str) -> None:
        """Take what is worth knowing, and no failure."""
        warnings.warn(message, stacklevel=3)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Take how far the work is.

        Args:
            what: what is being done, such as a file's name or ``evaluating``.
            done: in the unit of the work: bytes of a file, images.
            total: the same; None where it is unknown.
        """
