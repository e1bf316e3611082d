import csv
import io
import json
import sys
from pathlib import Path

import pytest

from tests.support.processes import wait_for
from tests.support.recording import dead_run, record, silent_run
from tl_cli.tracking.store import open_store


@pytest.fixture
def some_runs(workplace: Path) -> None:
    store = open_store(None)
    for name, model, accuracy, tags in (
        ("first", "resnet18", 0.8, {"who": "me"}),
        ("second", "resnet50", 0.9, {"who": "you"}),
        ("third", "vit_b_16", None, {}),
    ):
        made = record(name)
        store.client.log_param(made.run_id, "model", model)
        store.client.log_param(made.run_id, "lr", "0.1" if name == "first" else "0.01")
        store.client.log_param(made.run_id, "seed", "0")
        for key, value in tags.items():
            store.client.set_tag(made.run_id, key, value)
        if accuracy is not None:
            store.client.log_metric(made.run_id, "best/val_accuracy", accuracy)
            store.client.log_metric(made.run_id, "test/accuracy", 1 - accuracy)


def names(result) -> list[str]:
    assert result.code == 0, result.err
    return [each["name"] for each in json.loads(result.out)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ["third", "second", "first"]),
        (("--reverse",), ["first", "second", "third"]),
        (("--sort", "val"), ["second", "first", "third"]),
        (("--sort", "test"), ["first", "second", "third"]),
        (("--sort", "test", "--reverse"), ["second", "first", "third"]),
        (("--sort", "name"), ["first", "second", "third"]),
        (("--sort", "model", "--limit", "2"), ["first", "second"]),
        (("resnet",), ["second", "first"]),
        (("--model", "resnet18"), ["first"]),
        (("--model", "*50"), ["second"]),
        (("--tag", "who"), ["second", "first"]),
        (("--tag", "who=me"), ["first"]),
        (("--status", "running"), []),
        (("--since", "1h"), ["third", "second", "first"]),
        (("--experiment", "tl", "sec*"), ["second"]),
    ],
)
def test_filters_and_orders(arguments: tuple[str, ...], expected: list[str], tl, some_runs: None) -> None:
    assert names(tl("runs", *arguments, "--json")) == expected


def test_the_list_is_for_people_and_its_json_for_programs(tl, some_runs: None) -> None:
    shown = tl("runs")
    assert shown.code == 0
    for text in ("second", "90.00%", "resnet50", "▅▅▅"):
        assert text in shown.out
    assert "\x1b" not in shown.out
    (second,) = json.loads(tl("runs", "second", "--json").out)
    assert (second["val_accuracy"], second["curve"], second["epochs"], second["status"]) == (
        0.9,
        [0.7] * 3,
        3,
        "finished",
    )
    assert tl("runs", "nothing").out.startswith("no run in sqlite:///")


def test_runs_diff_shows_different_settings_and_results(tl, some_runs: None) -> None:
    shown = tl("runs", "diff", "first", "second")
    assert shown.code == 0, shown.err
    assert [line.split() for line in shown.out.splitlines() if line.startswith("lr")] == [["lr", "0.1", "0.01"]]
    assert "seed" not in shown.out
    assert "1 settings are equal" in shown.out
    assert "seed" in tl("runs", "diff", "first", "second", "--all").out
    apart = json.loads(tl("runs", "diff", "first", "second", "third", "--json").out)
    assert apart["settings"]["model"] == ["resnet18", "resnet50", "vit_b_16"]
    assert apart["results"]["best/val_accuracy"] == [0.8, 0.9, None]
    alone = tl("runs", "diff", "first", "first")
    assert (alone.code, "to compare it with another: tl runs diff" in alone.err) == (2, True)


def test_dead_runs_are_listed_and_closed_and_silent_ones_only_by_name(tl, workplace: Path) -> None:
    assert "no run is dead" in tl("runs", "close").out
    store = open_store(None)
    dead, silent = dead_run(store), silent_run(store)
    shown = tl("runs").out
    assert "tl runs close records its end" in " ".join(shown.split())
    closed = tl("runs", "close")
    assert (closed.code, dead[:8] in closed.out, silent[:8] in closed.out) == (0, True, False)
    assert names(tl("runs", "--status", "killed", "--json")) == ["gone"]
    assert tl("runs", "close", silent[:8]).code == 0
    assert names(tl("runs", "--status", "silent", "--json")) == []


def test_runs_are_removed_only_after_confirmation(tl, some_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda question: False)
    kept = tl("runs", "rm", "first", "second")
    assert (kept.code, "nothing was removed" in kept.out) == (1, True)
    assert len(names(tl("runs", "--json"))) == 3
    questions: list[str] = []
    monkeypatch.setattr("typer.confirm", lambda question: bool(questions.append(question)) or True)
    assert tl("runs", "rm", "first", "second").code == 0
    assert questions == ["Remove these 2 runs?"]
    assert names(tl("runs", "--json")) == ["third"]


def test_json_has_null_for_nan_and_infinity(tl, some_runs: None) -> None:
    store = open_store(None)
    store.client.log_metric(store.find("third").info.run_id, "test/accuracy", float("nan"))
    (third,) = json.loads(tl("runs", "third", "--json").out, parse_constant=pytest.fail)
    assert third["test_accuracy"] is None


def test_a_running_run_is_ranked_among_the_best(tl, some_runs: None) -> None:
    made = record("busy", end=False)
    store = open_store(None)
    store.client.log_metric(made.run_id, "val/accuracy", 0.95, step=99)
    assert names(tl("runs", "--sort", "val", "--limit", "1", "--json")) == ["busy"]
    made.__exit__(None, None, None)


def test_an_empty_list_mentions_filters_if_there_are_any(tl, some_runs: None) -> None:
    assert "passes the filters" in tl("runs", "--tag", "nosuch").out


def test_a_running_run_is_neither_removed_nor_resumed(tl, workplace: Path) -> None:
    made = record("busy", end=False)
    for command in (("runs", "rm", "busy", "--yes"), ("train", "--resume", "busy")):
        refused = tl(*command)
        assert (refused.code, "is running on" in refused.err) == (2, True)
    made.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--since", "yesterday"), "30m, 12h"),
        (("--experiment", "tlx"), "Did you mean tl"),
        (("rm",), "RUN"),
        (("diff", "first", "nope"), "no run is called"),
        (("close", "first"), "has ended already"),
    ],
)
def test_invalid_arguments_are_refused(arguments: tuple[str, ...], message: str, tl, some_runs: None) -> None:
    result = tl("runs", *arguments)
    assert result.code == 2
    assert message in result.err


def test_the_epochs_of_a_run_are_shown_after_and_during_it(tl, workplace: Path) -> None:
    # The values passed to the recorder are shown: ``record`` gives epoch N a validation accuracy of 1 / N.
    record("ended", epochs=3)
    shown = tl("runs", "show", "ended")
    assert shown.code == 0, shown.err
    accuracies = open_store(None).client.get_metric_history(open_store(None).find("ended").info.run_id, "val/accuracy")
    assert len(accuracies) == 3
    for point in accuracies:
        assert f"{point.value:.2%}" in shown.out
    rows = list(csv.DictReader(io.StringIO(tl("runs", "show", "ended", "--csv").out)))
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(1, 10), (2, 20), (3, 30)]
    assert [float(row["val_accuracy"]) for row in rows] == [point.value for point in accuracies]
    report = json.loads(tl("runs", "show", "ended", "--json").out)
    assert (report["name"], report["status"], len(report["by_epoch"])) == ("ended", "finished", 3)
    assert [row["val_accuracy"] for row in report["by_epoch"]] == [point.value for point in accuracies]
    assert tl("runs", "show", "ended", "--json", "--csv").code == 2

    running = record("running", epochs=2, end=False)
    try:
        wait_for(lambda: len(json.loads(tl("runs", "show", "running", "--json").out)["by_epoch"]) == 2, "the flush")
        assert json.loads(tl("runs", "show", "running", "--json").out)["status"] == "running"
    finally:
        running.__exit__(None, None, None)
    record("begun", epochs=0)
    assert "no epoch is recorded" in tl("runs", "show", "begun").out
    assert tl("runs", "show", "begun", "--csv").out.splitlines()[1:] == []
