"""Shows the mean of several runs: which were kept, and what it gains."""

from rich.console import Console
from rich.text import Text

from tl_cli.api.soup_run import SoupResult
from tl_cli.errors import uri_flag
from tl_cli.text import json_text
from tl_cli.ui.terminal.console import plain, shortened
from tl_cli.ui.terminal.layout import Cells, table_of
from tl_cli.ui.terminal.tables import format_test


def print_soup(result: SoupResult, console: Console, tracking_uri: str | None, *, as_json: bool) -> None:
    """Print the runs that were tried and the mean, or their JSON.

    Args:
        tracking_uri: as given, for the next command.
    """
    if as_json:
        print(json_text(result.to_dict()))
        return
    tried, name = result.ingredients, max(8, console.width - 50)
    columns: dict[str, Cells] = {
        "run": [shortened(each.name, name) for each in tried],
        "id": [each.run_id[:8] for each in tried],
        "alone": [f"{each.val_accuracy:.2%}" for each in tried],
        "mean with it": [Text(f"{each.mean_val_accuracy:.2%}", "good" if each.is_kept else "") for each in tried],
        "": ["kept" if each.is_kept else "left out" for each in tried],
    }
    console.print(f"accuracy on {result.images:,} validation images", style="dim")
    console.print(table_of(columns, left=("run", "id", "")))
    best = plain(tried[0].name)
    if result.run_id is None:
        console.print(Text.assemble("No mean is as good on validation as ", best, " alone, so nothing is recorded."))
        return
    gained = 100 * (result.val_accuracy - tried[0].val_accuracy)
    about = f"mean of {len(result.kept)} runs: {result.val_accuracy:.2%} validated, {gained:+.2f} points"
    console.print(about, style="bold", soft_wrap=True)
    if result.test is not None and result.gain is not None:
        accuracy, gain = result.test.accuracy, result.gain
        interval = f"95% interval {100 * accuracy.low:.2f} to {accuracy.high:.2%}"
        tested = f"test accuracy {accuracy.value:.2%} ({interval}), {100 * gain.difference.value:+.2f} points against "
        console.print(Text.assemble(tested, best, f" ({format_test(gain)})"), style="good", soft_wrap=True)
    console.print(f"saved model: {result.model}", markup=False, soft_wrap=True)
    console.print(
        f"next: tl eval {result.run_id[:8]}{uri_flag(tracking_uri)}", markup=False, style="dim", soft_wrap=True
    )
