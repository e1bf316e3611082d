"""The JSON of every command follows its schema, on which programs rely."""

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jsonschema
import mlflow
import pytest

from tests.support.commands import train_in

SCHEMAS = {Path(each.name).stem: each for each in (files("tl_cli") / "api" / "schemas").iterdir()}
# Commands by the schema of their JSON, or of its lines (one per image); "pictures" is a folder of images.
COMMANDS: dict[str, list[tuple[str, ...]]] = {
    "eval": [
        ("eval", "--json"),
        ("eval", "--json", "--split", "val", "--no-log"),
        ("eval", "--json", "--data", "pictures/test", "--no-log"),
        ("eval", "--json", "--tta", "flip", "--no-log"),
    ],
    "export": [
        ("export", "--json", "--output", "model.onnx", "--force"),
        ("export", "--json", "--format", "folder", "--output", "model", "--force"),
    ],
    "predict": [
        ("predict", "--json", "pictures/test"),
        ("predict", "--tta", "flip", "--top", "1", "pictures/test/red/000.png"),
    ],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ready_database: Path, colours: Path) -> Path:
    """A folder with images and a run trained on them."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "pictures").symlink_to(colours)
    return train_in(folder, ready_database, (
        "timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "1", "--freeze-epochs", "1",
        "--batch-size", "12", "--no-probe", "--quiet", "--data", folder / "pictures",
    ))  # fmt: skip


def test_every_schema_has_a_command() -> None:
    # The other schemas are tested with their commands.
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py")]
    others = "".join(text for text in texts if "jsonschema" in text)
    missing = [
        name for name in SCHEMAS if name not in COMMANDS and not re.search(rf"""["'/]{name}(\.json)?["']""", others)
    ]
    assert missing == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one_and_names_its_version(name: str) -> None:
    schema = json.loads(SCHEMAS[name].read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"https://tl-train.invalid/{name}/1"


@pytest.mark.parametrize(("name", "command"), [(name, command) for name in COMMANDS for command in COMMANDS[name]])
def test_the_output_of_a_command_follows_its_schema(
    tl: Callable, trained: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(trained)
    mlflow.set_tracking_uri(f"sqlite:///{trained}/mlflow.db")
    result = tl(*command)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines
    for line in lines:
        jsonschema.validate(json.loads(line, parse_constant=pytest.fail), json.loads(SCHEMAS[name].read_text()))
