"""The JSON of the commands that list and manage, against the schemas that programs rely on."""

import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from tests.support.recording import dead_run, record
from tl_cli.tracking.store import open_store


def check(schema: str, output: str) -> None:
    definition = json.loads((files("tl_cli.api") / "schemas" / f"{schema}.json").read_text(encoding="utf-8"))
    assert definition["$id"] == f"https://tl-train.invalid/{schema}/1"
    jsonschema.Draft202012Validator.check_schema(definition)
    jsonschema.validate(json.loads(output), definition, cls=jsonschema.Draft202012Validator)


@pytest.fixture
def runs(workplace: Path) -> None:
    for name in ("first", "second"):
        record(name)
    store = open_store(None)
    store.client.log_param(store.find("first").info.run_id, "lr", "0.1")
    store.client.log_metric(store.find("first").info.run_id, "test/accuracy", float("nan"))
    dead_run(store)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ("runs", ("runs",)),
        ("runs-show", ("runs", "show", "first")),
        ("runs-diff", ("runs", "diff", "first", "second")),
        ("runs-diff", ("runs", "diff", "first", "second", "--all")),
        ("runs-close", ("runs", "close")),
        ("runs-sync", ("runs", "sync")),
        ("runs-relocate", ("runs", "relocate", "--dry-run")),
        ("runs-rm", ("runs", "rm", "first", "--yes")),
        ("runs-rm", ("runs", "rm", "first", "--purge", "--yes")),
    ],
)
def test_runs(schema: str, arguments: tuple[str, ...], tl, runs: None) -> None:
    result = tl(*arguments, "--json")
    assert result.code == 0, result.err
    check(schema, result.out)


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ("data", ("data",)),
        ("data-check", ("data", "check", "digits", "--no-labels")),
        ("models", ("models", "squeezenet")),
        ("models-pull", ("models", "pull", "efficientnet_lite0")),
        ("cache", ("cache",)),
        ("cache-clear", ("cache", "clear", "--yes")),
        ("env", ("env",)),
    ],
)
def test_other_listings(schema: str, arguments: tuple[str, ...], tl) -> None:
    result = tl(*arguments, "--json")
    assert result.code == 0, result.err
    check(schema, result.out)


def test_json_without_a_question_needs_yes(tl, runs: None) -> None:
    for command in (("runs", "rm", "first"), ("cache", "clear")):
        result = tl(*command, "--json")
        assert (result.code, "add --yes" in result.err) == (2, True)
