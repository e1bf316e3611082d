"""``python -m tl_cli`` is ``tl``."""

from tl_cli.cli import main

if __name__ == "__main__":
    main()
