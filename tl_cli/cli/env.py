"""``tl env``: what a bug report needs."""

import typer

from tl_cli.cli.params import AsJson, print_json

app = typer.Typer(add_completion=False)


@app.command(epilog="Examples:\n\ntl env\n\ntl env --json")
def env(as_json: AsJson = False) -> None:
    """Print versions, device, threads, processor features, paths and the store, for a bug report; no secrets."""
    from tl_cli.api.environment import report_sections
    from tl_cli.ui.terminal.console import make_console, plain

    if as_json:
        print_json(dict(report_sections()))
        return
    console = make_console()
    for section, values in report_sections():
        console.print(plain(section, "bold"))
        for name, value in values.items():
            shown = "not available" if value is None else value
            shown = " ".join(map(str, shown)) if isinstance(shown, list) else shown
            title = name if section == "environment" else name.replace("_", " ")
            console.print(plain(f"  {title}: {shown}", limit=4000), soft_wrap=True)
