"""Names from files, classes, servers and users in all output: nothing fails, and no terminal control code is printed."""

import io
import json
import math
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from PIL import Image
from rich.console import Console

from tests.support.commands import Result
from tests.support.histories import FACTS, history
from tests.support.pictures import write_pictures
from tl_cli.contract import DataSpec, ModelCard, Split, WeightsTag
from tl_cli.evaluation.classification import ClassScore
from tl_cli.evaluation.intervals import wilson
from tl_cli.models import bundle
from tl_cli.models.zoo import registry
from tl_cli.text import safe_text
from tl_cli.tracking.facts import Differences
from tl_cli.tracking.store import open_store
from tl_cli.ui.panels import PanelOptions
from tl_cli.ui.terminal.console import THEME, shortened
from tl_cli.ui.terminal.curve_view import print_curves
from tl_cli.ui.terminal.run_tables import print_differences, print_runs
from tl_cli.ui.terminal.tables import class_table

NASTY = [
    "[/] [bold]markup[/bold] [link=http://x]y[/link]", "\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link", "\x9b31m C1 \x85 next",
    "\u202ebidi\u2066 marks\u2069", "lone \ud800 surrogate", "..", "../../etc/passwd", "x" * 300, "猫" * 80, "a\nb\rc\td\0e",
    "$(touch ran) `touch ran` ; touch ran", "%s %d {0} {name}", "", " ", "-rf", "\u200b\u200d\ufeff", "é\u0301\u0301\u0301",
]  # fmt: skip
NAMES = st.one_of(st.sampled_from(NASTY), st.text(max_size=60))
# Terminal control codes, except the colours that Rich writes.
OBEYED = re.compile("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\x1b(?!\\[[0-9;]*m)")


def printed(show, *arguments, **options) -> str:
    console = Console(theme=THEME, file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor")
    show(console, *arguments, **options)
    text = console.file.getvalue()
    text.encode()
    assert not OBEYED.search(text), ascii(OBEYED.search(text))
    return text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NAMES, NAMES, st.lists(st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, 0.5]), max_size=6))
def test_no_name_and_no_number_breaks_the_printed_output(name: str, other: str, values: list[float]) -> None:
    facts = [
        replace(FACTS, name=name, model=other, data=other, experiment=name, curve=tuple(values)),
        replace(FACTS, name=other, run_id="a" * 32, experiment=other, status="dead", val_accuracy=None),
    ]
    printed(print_runs, facts, total=2, where=name, filtered=False)
    number = values[0] if values else None
    apart = Differences(facts, {name: [other, None]}, {other: [name, name]}, {"test/accuracy": [number, None]}, 3)
    printed(print_differences, apart, {name: other})
    curves = [(facts[0], history(name=name)), (facts[1], history(name=other, epochs=0))]
    curves[0][1].losses[:0] = [(0, value) for value in values]
    for shown in (curves, curves[:1]):
        printed(print_curves, shown, PanelOptions(log=True))
    score = ClassScore(3, 3, wilson(1, 3), wilson(2, 3), 0.5)
    printed(lambda console: console.print(class_table([score, score], [name, other], console)))
    for text in (safe_text(name), shortened(name, 12)):
        assert not OBEYED.search(text)


@pytest.mark.slow
def test_hostile_run_names_work_in_every_command(tl, workplace: Path) -> None:
    store = open_store(None)
    for index, name in enumerate(NASTY):
        if not name.strip() or "\0" in name or "\ud800" in name:
            continue  # no store accepts them
        run = store.client.create_run(store.experiment("tl"), run_name=name, tags={"tl.data": name})
        store.client.log_param(run.info.run_id, "model", name)
        store.client.log_metric(run.info.run_id, "step/loss", index + 0.5, step=1)
        store.client.log_metric(run.info.run_id, "step/loss", index + 0.1, step=2)
        store.client.log_metric(run.info.run_id, "best/val_accuracy", 0.5)
        store.client.set_terminated(run.info.run_id)
        ident = run.info.run_id[:8]
        for command in (
            ("plot", "-t", ident),
            ("plot", ident, "-o", "pictures"),
            ("runs", "diff", ident, "latest", "--all"),
            ("eval", ident),
        ):
            result = tl(*command)
            assert result.code in (0, 2), (command, result.err)
            assert "Traceback" not in result.err
            assert not OBEYED.search(result.out + result.err), ascii(name)
    for command in (("runs",), ("runs", "--json"), ("plot", "-t", *(run.info.run_id[:8] for run in store.runs()[:9]))):
        result = tl(*command)
        assert result.code == 0, result.err
        assert not OBEYED.search(result.out + result.err)
    from tl_cli.tracking.overview import refresh_overview

    refresh_overview(store, store.experiment("tl"))
    assert not (workplace / "ran").exists()
    assert {path.name for path in workplace.iterdir()} <= {"mlflow.db", "mlruns", "pictures"}


def run_safely(tl, *command: str | Path, codes: tuple[int, ...] = (0,)) -> Result:
    """Run a command; assert that it neither crashes nor prints terminal control codes."""
    result = tl(*command)
    output = result.out + result.err
    assert result.code in codes, (command, result.err)
    assert "Traceback" not in output, command
    assert not OBEYED.search(output), (command, ascii(OBEYED.search(output)))
    return result


# No lone surrogates, which are invalid in JSON for other programs.
IN_FILES = NAMES.filter(lambda name: not any("\ud800" <= character <= "\udfff" for character in name))
IN_A_WORKPLACE = settings(
    max_examples=3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],
)


@pytest.mark.slow
@IN_A_WORKPLACE
@given(classes=st.lists(IN_FILES, min_size=2, max_size=40, unique=True), text=IN_FILES.filter(bool))
def test_a_saved_model_may_have_any_class_names_and_provenance(
    classes: list[str], text: str, tl, workplace: Path, colours: Path
) -> None:
    folder, exported = workplace / "model", workplace / "exported"
    for made in (folder, exported):
        shutil.rmtree(made, ignore_errors=True)
    plain = registry.create("timm/test_resnet", len(classes), weights="none", input_size=32)
    data = DataSpec(source=text, data_dir=text, layout="classes", splits={"train": Split(count=3, digest=text)})
    card = ModelCard(
        architecture=plain.name, head=plain.head, classes=tuple(classes), preprocessing=plain.preprocessing.at(32, whole=True),
        weights=WeightsTag(name=text, sha256=text), data=data, recipe=text, config={text: text}, epoch=1,
    )  # fmt: skip
    bundle.save(folder, plain.model, card)
    before = set(workplace.rglob("*"))
    run_safely(tl, "inspect", folder)
    run_safely(tl, "predict", folder, colours / "test", "--top", "5")
    for form in ("jsonl", "csv", "table"):
        run_safely(tl, "predict", folder, colours / "test", "--format", form)
    run_safely(tl, "eval", folder, codes=(0, 1, 2))
    run_safely(tl, "eval", folder, "--data", colours, codes=(2,))
    run_safely(tl, "export", folder, "--format", "folder", "--output", exported)
    run_safely(tl, "export", folder, "--output", exported / "model.onnx")
    run_safely(tl, "compare", folder, exported, codes=(1, 2))
    assert bundle.read_card(exported).classes == tuple(classes)
    facts = json.loads((exported / bundle.CARD_FILE).read_text(encoding="utf-8"))
    (exported / bundle.CARD_FILE).write_text(json.dumps({**facts, "classes": ["lone \ud800", "x"], "sha256": None}))
    run_safely(tl, "inspect", exported, codes=(1, 2))
    new = set(workplace.rglob("*")) - before
    assert all(path.is_relative_to(exported) or path.name.startswith("model") for path in new), new


@IN_A_WORKPLACE
@given(classes=st.lists(NAMES, min_size=2, max_size=20, unique=True), texts=st.lists(NAMES, min_size=20, max_size=20))
def test_folders_and_files_may_have_any_name_the_disk_accepts(
    classes: list[str], texts: list[str], tl, workplace: Path
) -> None:
    root = workplace / "data"
    shutil.rmtree(root, ignore_errors=True)
    rng = np.random.default_rng(0)
    for name, text in zip(classes, texts, strict=False):
        with suppress(OSError, ValueError):  # no disk accepts them
            folder = root / name.replace("/", "_")
            folder.mkdir(parents=True)
            for number in range(10):
                picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                picture.save(folder / f"{text.replace('/', '_')}{number}.png")
    run_safely(tl, "data", "check", root, "--no-labels", codes=(0, 2))
    json.loads(run_safely(tl, "data", "check", root, "--no-labels", "--json", codes=(0, 2)).out or "{}")
    train = ("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--data", root, "--dry-run")
    run_safely(tl, *train, codes=(0, 2))
    assert {path.name for path in workplace.iterdir()} <= {"mlflow.db", "mlruns", "data"}


@pytest.mark.slow
@IN_A_WORKPLACE
@given(
    names=st.lists(NAMES, min_size=1, max_size=12),
    texts=st.lists(NAMES, min_size=12, max_size=12),
    values=st.lists(st.floats(), min_size=1, max_size=40),
)
def test_a_store_may_hold_any_names_texts_and_values(
    names: list[str], texts: list[str], values: list[float], tl, workplace: Path
) -> None:
    store = open_store(None)
    idents: list[str] = []
    for name, text in zip(names, texts, strict=False):
        try:
            run = store.client.create_run(
                store.experiment("tl"), run_name=name, tags={"tl.data": text, "tl.model": text}
            )
            store.client.log_param(run.info.run_id, "model", text)
            store.client.log_param(run.info.run_id, "lr", name)
        except (MlflowException, UnicodeError):
            continue  # no store accepts them
        idents.append(run.info.run_id[:8])
        for key in ("step/loss", "train/loss", "val/loss", "val/accuracy", "val/ema_accuracy", "epoch", "lr/head",
                    "lr/backbone", "time/epoch_seconds", "time/images_per_second", "my/own"):  # fmt: skip
            for step, value in enumerate(values):
                store.client.log_metric(run.info.run_id, key, value, step=step)
        for key in ("best/val_accuracy", "test/accuracy", "clean_train/accuracy", "time/train_seconds"):
            store.client.log_metric(run.info.run_id, key, values[0])
    for command in (
        ("runs",),
        ("runs", "--json"),
        *(("plot", "-t", *idents[:count]) for count in (1, 9) if idents),
        *(("plot", *idents[:9], "-o", "pictures") for _ in idents[:1]),
        *(("runs", "diff", *idents[:2], "--all") for _ in idents[1:2]),
    ):
        run_safely(tl, *command, codes=(0, 1, 2))
    json.loads(tl("runs", "--json").out, parse_constant=lambda constant: pytest.fail(constant))
    assert {path.name for path in workplace.iterdir()} <= {"mlflow.db", "mlruns", "pictures"}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "check"])
def test_hostile_names_of_files_and_classes_work(command: str, tl, workplace: Path) -> None:
    for index, name in enumerate(NASTY):
        folder = name.replace("/", "_").replace("\0", "_")[:60] or f"empty{index}"
        if folder in ("..", " ") or "\ud800" in folder:
            continue
        write_pictures(workplace / "data", {folder: (10 * index, 255 - 10 * index, (37 * index) % 256)}, 12)
    if command == "check":
        result = tl("data", "check", "data", "--no-labels")
    else:
        result = tl("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "1", "--freeze-epochs",
                    "1", "--data", "data")  # fmt: skip
    assert result.code == 0, result.err
    assert not OBEYED.search(result.out + result.err)
    if command == "train":
        assert tl("train", "--config", next(workplace.glob("mlruns/*/*/state/config.toml")), "--seed", "7").code == 0
        first, second = (run.info.run_id[:8] for run in open_store(None).runs())
        for following in (
            ("eval", "latest"),
            ("eval", "latest", "--output", "report"),
            ("predict", "latest", "data"),
            ("inspect", "latest"),
            ("plot", "latest"),
            ("compare", first, second, "--output", "compared"),
            ("compare", first, second, "--format", "markdown"),
            ("export", "latest", "--format", "folder", "--output", "exported"),
            ("export", "latest", "--output", "exported.onnx"),
            ("inspect", "exported"),
        ):
            done = tl(*following)
            assert done.code == 0, (following, done.err)
            assert not OBEYED.search(done.out + done.err), following
        made = {path.name for path in workplace.iterdir()} - {"data", "mlflow.db", "mlruns"}
        assert {name for name in made if not name.endswith(".png")} == {
            "report",
            "compared",
            "exported",
            "exported.onnx",
        }
    assert not (workplace / "ran").exists()
