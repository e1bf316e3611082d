"""Completion in the shell, its installation, and ``file:`` URIs as paths."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer

from tests.support.commands import QUICK
from tl_cli.cli.app import app
from tl_cli.cli.groups import load
from tl_cli.cli.params import complete_data
from tl_cli.errors import UsageError
from tl_cli.io.file_uris import local_path
from tl_cli.training.config import TrainConfig

ROOT: Any = typer.main.get_command(app)


def names_in(annotation: object) -> set[str]:
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return set().union(*(names_in(each) for each in get_args(annotation)))


def completions_of(command: str, option: str) -> set[str]:
    train = load(command)
    (found,) = (each for each in train.params if each.name == option)
    return {item.value for item in found.shell_complete(train.make_context(command, [], resilient_parsing=True), "")}


def test_every_setting_with_names_offers_them() -> None:
    named = {name: names_in(field.annotation) for name, field in TrainConfig.model_fields.items()}
    named = {name: names for name, names in named.items() if names}
    assert named["schedule"] == {"constant", "cosine", "one-cycle", "plateau"}
    assert {name: completions_of("train", name) for name in named} == named
    assert completions_of("train", "feature_views") == {"plain", "flip"}


def test_a_name_may_be_written_in_capitals(tl) -> None:
    result = tl("train", "resnet18", "--optimizer", "AdamW", "--schedule", "Nope")
    assert result.code == 2
    assert "--schedule" in result.err
    assert "--optimizer" not in result.err


def test_data_completes_published_sets_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("cats", "my dogs", "$(touch ran)", ".git"):
        Path(folder).mkdir()
    for file in ("cars.csv", "c.zip", "cat.jpg"):
        Path(file).touch()
    assert {name for name, _ in complete_data("c")} == {
        *("cifar10", "cifar100", "caltech101", "caltech256", "country211"),
        *("cats", "cars.csv", "c.zip"),
    }
    assert [name for name, _ in complete_data("./m")] == ["./my dogs"]
    assert [name for name, _ in complete_data(f"{tmp_path}/ca")] == [f"{tmp_path}/cars.csv", f"{tmp_path}/cats"]
    assert {name for name, _ in complete_data("./")} == {"./cats", "./my dogs", "./cars.csv", "./c.zip"}
    assert complete_data("nowhere/") == []


@pytest.mark.parametrize("words", [("--install-completion", "zsh"), ("--install-completion=zsh",)])
def test_completion_is_installed_for_the_given_shell(
    tl, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    result = tl(*words)
    assert (result.code, "zsh completion installed" in result.out) == (0, True), result
    assert (tmp_path / "home" / ".zfunc" / "_tl").read_text().startswith("#compdef tl\n")
    assert "complete --command tl" in tl("--show-completion", "fish").out
    assert tl("--install-completion", "csh").code != 0


@pytest.mark.parametrize("name", ["plain", "a b", "a#b?c", "50%41 é", "x=y"])
def test_a_file_uri_is_converted_to_its_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    uri = path.as_uri()
    for written in (uri, uri.replace("file:///", "file:/"), uri.replace("file:///", "FILE://localhost/"), str(path)):
        assert local_path(written) == str(path)
    with pytest.raises(UsageError, match="machine 'nas'"):
        local_path(uri.replace("file:///", "file://nas/"))


@pytest.mark.slow
def test_a_file_uri_is_read_as_a_path_except_as_a_store(tl, colours: Path, workplace: Path) -> None:
    typed = (
        ["train", "--data", "file:///a%20b", "--weights=file:///c"],
        ["predict", "file:///d", "file:///e/f.jpg"],
        ["runs", "--tracking-uri", "file:///g", "--tracking-uri=file:///h"],
    )
    assert [ROOT.make_context("tl", words).meta["tl_cli.typed"] for words in typed] == [
        ["train", "--data", "/a b", "--weights=/c"],
        ["predict", "/d", "/e/f.jpg"],
        ["runs", "--tracking-uri", "file:///g", "--tracking-uri=file:///h"],
    ]
    (workplace / "own.toml").write_text(f'data = "{colours.as_uri()}"\n')
    for data in (("--data", colours.as_uri()), ("--config", (workplace / "own.toml").as_uri())):
        planned = tl("train", *QUICK, *data, "--dry-run", "--no-probe")
        assert planned.code == 0, planned.err
    table = workplace / "list.csv"
    rows = [f"{path.as_uri()},{path.parent.name},train" for path in sorted(colours.glob("train/*/*.png"))]
    table.write_text("\n".join(["path,label,split", *rows, ""]))
    planned = tl("train", *QUICK, "--data", table.as_uri(), "--dry-run", "--no-probe")
    assert planned.code == 0, planned.err
