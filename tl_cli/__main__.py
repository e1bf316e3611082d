"""``tl``, and ``python -m tl_cli``: handles signals before anything slow is imported."""

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
        # An import may have replaced the exception by its own.
        stopped = error if isinstance(error, Interrupted) else interrupts.raised()
        if stopped is None:
            raise
        print(f"stopped ({stopped})", file=sys.stderr)
        sys.exit(stopped.exit_code)
    run()


if __name__ == "__main__":
    main()
