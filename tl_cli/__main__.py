"""``tl``, and ``python -m tl_cli``: listens for signals before anything that takes time is imported."""

import sys
from typing import NoReturn

from tl_cli import interrupts
from tl_cli.errors import Interrupted


def main() -> NoReturn:
    """Import the command line and run it."""
    interrupts.listen()
    try:
        from tl_cli.cli.app import main as run
    except BaseException as error:
        # What is being imported may make another error of it.
        stopped = error if isinstance(error, Interrupted) else interrupts.raised()
        if stopped is None:
            raise
        print(f"stopped ({stopped})", file=sys.stderr)
        sys.exit(stopped.exit_code)
    run()


if __name__ == "__main__":
    main()
