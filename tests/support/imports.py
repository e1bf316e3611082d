"""Which modules a command imports, in a new process."""

import os
import subprocess
import sys

from tl_cli.cli.groups import COMMANDS

HEAVY = ("torch", "torchvision", "timm", "mlflow", "numpy", "matplotlib", "plotext")


def run_watched(*arguments: str, stop_at: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``tl`` in a new process that prints the heavy modules and the commands that it has imported to stderr.

    Args:
        stop_at: a module at whose import the process ends.
    """
    script = (
        "import os, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {stop_at!r}:\n"
        "            os._exit(77)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "sys.argv[0] = 'tl'\nfrom tl_cli.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        f"commands = [name for name in {[*COMMANDS]!r} if f'tl_cli.cli.{{name}}' in sys.modules]\n"
        "print('IMPORTED', heavy, commands, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
