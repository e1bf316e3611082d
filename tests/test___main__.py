import re
import subprocess
import sys


def test_python_m_is_tl() -> None:
    done = subprocess.run([sys.executable, "-m", "tl_cli", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"tl \d+\.\d+\.\d+\n", done.stdout)
