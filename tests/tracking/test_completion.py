import re
import subprocess
import sys
import textwrap
from pathlib import Path

import mlflow
import pytest

from tl_cli.tracking.completion import complete_run
from tl_cli.tracking.store import open_store


@pytest.fixture
def runs(workplace: Path) -> dict[str, str]:
    """The ids of two runs by name, and of a deleted one."""
    store = open_store(None)
    made = {}
    for name in ("first", "second", "gone"):
        run = store.client.create_run(store.experiment("tl"), run_name=name)
        made[name] = run.info.run_id
    store.client.delete_run(made["gone"])
    return made


def test_runs_are_offered_by_name_and_by_id(runs: dict[str, str]) -> None:
    offered = dict(complete_run(""))
    assert list(offered)[:2] == ["latest", "best"]
    assert offered["first"] == runs["first"][:8]
    assert offered[runs["second"][:8]] == "second"
    assert "gone" not in offered
    assert [name for name, _ in complete_run("sec")] == ["second"]


def test_complete_runs_are_not_completed_for_resume(runs: dict[str, str]) -> None:
    store = open_store(None)
    store.client.set_terminated(runs["first"], "FINISHED")
    store.client.set_terminated(runs["second"], "KILLED")
    assert {name for name, _ in complete_run("", unfinished=True)} == {"second", runs["second"][:8]}


def test_names_with_shell_syntax_are_not_completed(workplace: Path) -> None:
    store = open_store(None)
    idents = []
    for name in (
        "$(touch ran)",
        "`x`",
        "a\\b",
        "[red]x[/]",
        "\x1b[31mx",
        "two\nlines",
        "-rf",
        "a;b",
        "\u202ex",
        "x'y",
        "ok, 1/2",
    ):
        run = store.client.create_run(store.experiment("tl"), run_name=name)
        idents.append(run.info.run_id[:8])
    offered = complete_run("")
    assert {name for name, _ in offered} == {"latest", "best", "ok, 1/2", *idents}
    assert not re.search(r"[$`\\;'\x1b\n\u202e\[]", "".join(about for _, about in offered))


def test_completion_creates_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [name for name, _ in complete_run("")] == ["latest", "best"]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    assert len(complete_run("")) == 2


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "http://127.0.0.1:abc", "http://user:p@ss", "file:///x", "http://[", "databricks"]
)
def test_an_unreachable_store_completes_no_runs(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert len(complete_run("")) == 2


def test_completion_of_a_run_imports_nothing_heavy(runs: dict[str, str], workplace: Path) -> None:
    mlflow.set_tracking_uri(None)
    code = textwrap.dedent(
        """
        import os, sys
        os.environ.update(_TL_COMPLETE="complete_bash", COMP_WORDS="tl eval fi", COMP_CWORD="2")
        from tl_cli.cli.app import main
        sys.argv = ["tl"]
        try:
            main()
        except SystemExit:
            pass
        heavy = {"torch", "torchvision", "timm", "mlflow", "numpy"} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    completed = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, check=True)
    assert "first" in completed.stdout
