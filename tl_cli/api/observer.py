"""What a use case reports while it works. The command line draws it; other callers may listen, or not."""

import warnings

from tl_cli.io.download import Unit


class Observer:
    """Turns warnings into Python's and ignores progress; override either."""

    def warn(self, message: str) -> None:
        """Report something that the user should know and that is not an error."""
        warnings.warn(message, stacklevel=3)

    def progress(self, what: str, done: int, total: int | None, unit: Unit = "items") -> None:
        """Report how much is done.

        Args:
            what: what is being done, such as a file's name or ``evaluating``.
            total: None if unknown.
            unit: of ``done`` and ``total``: items such as images, or bytes.
        """
