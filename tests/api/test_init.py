"""The names of the Python API, and that importing them is cheap."""

import subprocess
import sys

import tl_cli
from tl_cli import api


def test_the_package_imports_nothing_heavy_until_a_function_is_used() -> None:
    script = (
        "import sys, tl_cli, tl_cli.api\n"
        "names = dir(tl_cli)\n"
        "print(sorted({'torch', 'mlflow', 'numpy', 'PIL', 'rich'} & set(sys.modules)))\n"
        "from tl_cli import load\n"
        "print('torch' in sys.modules, 'load' in names, load.__module__)\n"
        "try:\n    tl_cli.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[]", "True True tl_cli.api.loaded_model", "module 'tl_cli' has no attribute 'nothing'"
    ]  # fmt: skip


def test_every_name_of_the_api_exists() -> None:
    for name in api.__all__:
        assert getattr(tl_cli, name) is getattr(api, name)
