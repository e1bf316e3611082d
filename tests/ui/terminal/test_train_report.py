import io

from rich.console import Console

from tl_cli.ui.terminal.console import THEME
from tl_cli.ui.terminal.train_report import print_next


def test_each_suggested_command_is_on_its_own_line() -> None:
    console = Console(theme=THEME, file=io.StringIO(), width=30)
    print_next(
        console, "run 3f2a91c0 is recorded", ["tl eval 3f2a91c0", "tl plot --terminal 3f2a91c0 --tracking-uri x"]
    )
    assert console.file.getvalue().splitlines() == [
        "",
        "run 3f2a91c0 is recorded. Next:",
        "  tl eval 3f2a91c0",
        "  tl plot --terminal 3f2a91c0 --tracking-uri x",
    ]
