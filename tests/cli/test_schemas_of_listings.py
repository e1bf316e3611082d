"""The JSON of the commands that list and manage runs, data and models follows its schemas."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter

import tl_cli
from tests.support.recording import dead_run, record
from tl_cli.evaluation.scores import EPOCH_SCORES, EpochEnded
from tl_cli.tracking.facts import RunFacts
from tl_cli.tracking.store import open_store

SCHEMAS = Path(str(tl_cli.__file__)).parent / "api" / "schemas"
# The path of the fields of a run in each schema; ``runs show`` adds the epochs.
RUN_AT = {"runs": ("items",), "runs-show": (), "runs-diff": ("properties", "runs", "items")}


def write() -> None:
    """Write the fields of runs and epochs into the schemas: python -m tests.cli.test_schemas_of_listings."""
    for name, path in RUN_AT.items():
        schema = json.loads((SCHEMAS / f"{name}.json").read_text())
        at(schema, path).update(run_schema_of(name))
        (SCHEMAS / f"{name}.json").write_text(json.dumps(schema, indent=2) + "\n")


def at(schema: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path:
        schema = schema[key]
    return schema


def run_schema_of(name: str) -> dict[str, Any]:
    """Return the schema of one run. NaN is null in JSON."""
    run = {key: fields(RunFacts)[key] for key in RunFacts.__dataclass_fields__}
    run["curve"]["items"] = {"anyOf": [{"type": "number"}, {"type": "null"}]}
    epoch = {key: fields(EpochEnded)[key] for key in ("epoch", "step", *EPOCH_SCORES)}
    by_epoch = {"by_epoch": {"type": "array", "items": closed(epoch)}}
    return closed(run | by_epoch if name == "runs-show" else run)


def fields(of: type) -> dict[str, Any]:
    found = TypeAdapter(of).json_schema()["properties"]
    return {
        name: {key: field[key] for key in field if key not in ("title", "default")} for name, field in found.items()
    }


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@pytest.mark.parametrize("name", RUN_AT)
def test_the_schema_files_are_up_to_date(name: str) -> None:
    found = at(json.loads((SCHEMAS / f"{name}.json").read_text()), RUN_AT[name])
    assert {key: found[key] for key in run_schema_of(name)} == run_schema_of(name), write.__doc__


def check(schema: str, output: str) -> None:
    definition = json.loads((SCHEMAS / f"{schema}.json").read_text(encoding="utf-8"))
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


if __name__ == "__main__":
    write()
