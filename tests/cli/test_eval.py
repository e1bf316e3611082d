"""``tl eval`` on incomplete data, and runs whose test images could not be evaluated at their end."""

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from sklearn.metrics import accuracy_score

from tests.support.commands import train_in
from tests.support.pictures import COLOURS, write_pictures
from tests.support.processes import tl_process
from tl_cli.contract import DataSpec
from tl_cli.errors import StorageError
from tl_cli.tracking.comparisons import saved_logits
from tl_cli.tracking.store import open_store

OPTIONS = ("timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "1", "--freeze-epochs", "1",
           "--batch-size", "12", "--no-probe", "--data")  # fmt: skip


@pytest.fixture
def after_fit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return a function that schedules a call between the last epoch and the final evaluation."""
    from tl_cli.api import training_run as fitting

    fit = fitting.fit

    def arrange(happen: Callable[[], object]) -> None:
        def fit_and_more(*arguments):
            counters = fit(*arguments)
            happen()
            return counters

        monkeypatch.setattr(fitting, "fit", fit_and_more)

    return arrange


@pytest.fixture
def pictures(odd_pictures: Path, workplace: Path) -> Path:
    """A copy of images that are decoded from their files whenever they are used."""
    return Path(shutil.copytree(odd_pictures, "pictures"))


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow
def test_a_training_without_its_test_images_is_kept_and_its_test_accuracy_added_later(
    tl, pictures: Path, after_fit
) -> None:
    test, away = pictures / "test", Path("away")
    after_fit(lambda: test.rename(away))
    result = tl("train", *OPTIONS, pictures)
    assert result.code == 0
    assert "12 of 12 images cannot be decoded" in words(result.err)
    assert "no test accuracy is recorded; to add it: tl eval" in words(result.err)
    store = open_store(None)
    run = store.find("latest")
    assert run.info.status == "FINISHED"
    assert "test/accuracy" not in run.data.metrics
    assert "clean_train/accuracy" in run.data.metrics
    assert "could not be evaluated on the test images" in run.data.tags["mlflow.note.content"]
    assert saved_logits(store, run) is None
    assert "is complete" in tl("train", "--resume", "latest").err
    # Commands that need no test images work; the others name the folder in which they were.
    assert tl("eval", "latest", "--split", "val", "--no-log").code == 0
    refused = tl("eval", "latest")
    assert refused.code == 2
    assert f"the 12 test images of this model are no longer in {pictures.resolve()}" in words(refused.err)
    away.rename(test)
    # stdout is closed, as in tl eval | head: the metrics are recorded all the same.
    reader, writer = os.pipe()
    os.close(reader)
    with Path("output.txt").open("wb") as output:
        process = tl_process("eval", "latest", "--csv", cwd=Path.cwd(), stdout=writer, stderr=output.fileno())
        process.join()
    os.close(writer)
    assert process.exitcode == 1
    assert b"Traceback" not in Path("output.txt").read_bytes()
    run = store.find("latest")
    kept = saved_logits(store, run)
    assert kept is not None
    assert sorted(kept.ids) == sorted(path.relative_to(pictures).as_posix() for path in test.rglob("*.png"))
    expected = accuracy_score(kept.labelled.labels, kept.labelled.logits.argmax(1))
    assert run.data.metrics["test/accuracy"] == pytest.approx(expected)
    assert run.data.tags["mlflow.note.content"].startswith(f"**{expected:.2%} on test images**")


@pytest.mark.slow
def test_unreadable_test_images_give_no_test_accuracy(tl, pictures: Path, after_fit) -> None:
    bad = [pictures / "test" / name for name in ("blue/1.png", "red/2.png")]
    whole = [path.read_bytes() for path in bad]
    after_fit(lambda: [path.write_bytes(path.read_bytes()[:90]) for path in bad])
    result = tl("train", *OPTIONS, pictures)
    assert result.code == 0
    assert "2 of 12 images cannot be decoded: test/blue/1.png: " in words(result.err)
    assert "test/red/2.png: " in words(result.err)
    run = open_store(None).find("latest")
    assert (run.info.status, "test/accuracy" in run.data.metrics) == ("FINISHED", False)
    refused = tl("eval", "latest")
    assert refused.code == 2
    assert "2 of 12 images cannot be decoded: test/blue/1.png: " in words(refused.err)
    assert "--on-bad-image skip" in refused.err
    rest = tl("eval", "latest", "--on-bad-image", "skip", "--json")
    assert "2 of 12 test images cannot be decoded and are left out: test/blue/1.png, test/red/2.png" in words(rest.err)
    assert json.loads(rest.out)["images"] == 10
    # An accuracy on some of the images is not the run's test accuracy.
    assert "test/accuracy" not in open_store(None).find("latest").data.metrics
    for path, data in zip(bad, whole, strict=True):
        path.write_bytes(data)
    assert json.loads(tl("eval", "latest", "--json").out)["images"] == 12
    assert "test/accuracy" in open_store(None).find("latest").data.metrics


@pytest.mark.slow
def test_a_final_evaluation_that_fails_for_any_reason_keeps_the_training(
    tl, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_cli.training import outcome

    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(outcome, "observed_logits", fail)
    result = tl("train", *OPTIONS, pictures)
    assert result.code == 0
    assert words(result.err).count("images: not enough memory: you tried to allocate 9 bytes") == 2
    run = open_store(None).find("latest")
    assert run.info.status == "FINISHED"
    assert {"test/accuracy", "clean_train/accuracy"}.isdisjoint(run.data.metrics)
    assert tl("eval", "latest", "--json").code == 0
    assert "test/accuracy" in open_store(None).find("latest").data.metrics


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "unreadable"])
def test_a_run_is_resumed_and_finished_without_its_test_images(tl, pictures: Path, after_fit, damage: str) -> None:
    def stop() -> None:
        raise StorageError("the disk is full")

    after_fit(stop)
    assert tl("train", *OPTIONS, pictures).code == 1
    before = open_store(None).find("latest")
    assert before.info.status == "FAILED"
    after_fit(lambda: None)
    shutil.copytree(pictures / "test", "copy")
    if damage == "gone":
        shutil.rmtree(pictures / "test")
    else:
        (pictures / "test" / "red" / "1.png").write_bytes(b"x")
    result = tl("train", "--resume", "latest")
    assert result.code == 0, result.err
    assert "the test images are missing" in words(result.err)
    shutil.rmtree(pictures / "test", ignore_errors=True)
    shutil.copytree("copy", pictures / "test")
    run = open_store(None).find("latest")
    assert (run.info.run_id, run.info.status) == (before.info.run_id, "FINISHED")
    report = json.loads(tl("eval", "latest", "--json").out)
    assert (report["split"], report["images"]) == ("test", 12)
    assert open_store(None).find("latest").data.metrics["test/accuracy"] == report["accuracy"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ready_database: Path, odd_pictures: Path) -> Path:
    """A folder with images and a run on them, shared by several tests."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(odd_pictures, folder / "pictures")
    return train_in(folder, ready_database, (*OPTIONS, folder / "pictures", "--quiet"))


@pytest.fixture
def folder(tl, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of that run, as the current folder."""
    monkeypatch.chdir(trained)
    mlflow.set_tracking_uri(f"sqlite:///{trained}/mlflow.db")
    return trained


def _alone(test: Path, root: Path) -> Path:
    shutil.copytree(test, root / "test")
    return root


def _empty_class(test: Path, root: Path) -> Path:
    shutil.copytree(test, root)
    (root / "violet").mkdir()
    return root


def _empty_training(test: Path, root: Path) -> Path:
    shutil.copytree(test, root / "test")
    for name in COLOURS:
        (root / "train" / name).mkdir(parents=True)
    return root


def _listed(test: Path, root: Path) -> Path:
    root.mkdir()
    rows = [f"{path},{path.parent.name},test\n" for path in sorted(test.rglob("*.png"))]
    (root / "test.csv").write_text("path,label,split\n" + "".join(rows))
    return root / "test.csv"


def _listed_with_training_images_away(test: Path, root: Path) -> Path:
    listed = _listed(test, root)
    with listed.open("a") as file:
        file.write("away/0.png,red,train\naway/1.png,blue,train\n")
    return listed


def _zipped(test: Path, root: Path) -> Path:
    return Path(shutil.make_archive(str(root), "zip", _alone(test, root)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [_alone, _empty_class, _empty_training, _listed, _listed_with_training_images_away, _zipped]
)
def test_test_images_alone_can_be_evaluated(
    tl, folder: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    source = make(folder / "pictures" / "test", tmp_path / "new")
    result = tl("eval", "latest", "--data", source, "--json", "--no-log")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    expected = json.loads(tl("eval", "latest", "--json", "--no-log").out)
    assert (report["images"], report["accuracy"], report["missing"]) == (12, expected["accuracy"], [])


def test_a_class_without_evaluated_images_may_be_unknown(tl, folder: Path, tmp_path: Path) -> None:
    _alone(folder / "pictures" / "test", tmp_path / "new")
    write_pictures(tmp_path / "new" / "train", {"violet": (90, 0, 90)}, 3)
    assert tl("eval", "latest", "--data", tmp_path / "new", "--no-log").code == 0
    write_pictures(tmp_path / "new" / "test", {"violet": (90, 0, 90)}, 3)
    assert "does not have: violet" in words(tl("eval", "latest", "--data", tmp_path / "new", "--no-log").err)


def test_all_bad_images_are_named_and_can_be_skipped(tl, folder: Path, tmp_path: Path) -> None:
    new = Path(shutil.copytree(folder / "pictures" / "test", tmp_path / "new"))
    bad = ["blue/1.png", "green/0.png", "red/3.png"]
    for name in bad:
        (new / name).write_bytes((new / name).read_bytes()[:80])
    refused = tl("eval", "latest", "--data", new)
    assert refused.code == 2
    assert "3 of 12 images cannot be decoded" in refused.err
    assert all(f"{name}: " in refused.err for name in bad)
    result = tl("eval", "latest", "--data", new, "--on-bad-image", "skip", "--json", "--no-log")
    assert json.loads(result.out)["images"] == 9
    assert f"left out: {', '.join(bad)}" in words(result.err)
    # Missing images of a CSV are bad ones too.
    listed = _listed(new, tmp_path / "csv")
    (new / "red" / "0.png").unlink()
    refused = tl("eval", "latest", "--data", listed)
    assert refused.code == 2
    assert all(f"{name}: " in refused.err for name in (*bad, "red/0.png"))
    result = tl("eval", "latest", "--data", listed, "--on-bad-image", "skip", "--json", "--no-log")
    assert json.loads(result.out)["images"] == 8


def test_accuracy_on_other_data_is_shown_beside_that_on_the_test_images_of_the_run(
    tl, folder: Path, tmp_path: Path
) -> None:
    recorded = open_store(None).find("latest").data.metrics["test/accuracy"]
    # The images are of one class, so the accuracy is the model's recall of it.
    shutil.copytree(folder / "pictures" / "test" / "red", tmp_path / "new" / "red")
    own = json.loads(tl("eval", "latest", "--json", "--no-log").out)
    recall = next(row["recall"] for row in own["by_class"] if row["class"] == "red")
    shown = words(tl("eval", "latest", "--data", tmp_path / "new", "--no-log").out)
    difference = 100 * (recall - recorded)
    assert f"{recorded:.2%} on the 12 test images of its own data; here {difference:+.2f} points" in shown
    report = json.loads(tl("eval", "latest", "--data", tmp_path / "new", "--json", "--no-log").out)
    assert report["own"] == {"split": "test", "accuracy": recorded, "images": 12}
    assert "own" not in own


def test_an_evaluation_with_mirror_images_or_in_bf16_never_passes_for_the_test_accuracy(tl, folder: Path) -> None:
    before = open_store(None).find("latest").data.metrics
    result = tl("eval", "latest", "--tta", "flip", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    after = open_store(None).find("latest").data.metrics
    added = {key: value for key, value in after.items() if key not in before}
    assert {key: after[key] for key in before} == before
    (accuracy,) = (value for key, value in added.items() if key.endswith("-flip/accuracy"))
    assert accuracy == report["accuracy"]
    assert all(key.startswith("eval/pictures-test-") and "-flip/" in key for key in added)
    assert tl("eval", "latest", "--precision", "bf16", "--quiet").code == 0
    rounded = open_store(None).find("latest").data.metrics
    assert {key: rounded[key] for key in after} == after
    added = {key: value for key, value in rounded.items() if key not in after}
    assert added
    assert all("-bf16/" in key for key in added)
    shown = words(tl("eval", "latest", "--tta", "flip", "--no-log").out)
    assert f"mirror images averaged, for twice the time: {100 * report['tta']['accuracy_gain']:+.2f} points" in shown


@pytest.mark.slow
def test_commands_that_a_training_suggests_work(tl, workplace: Path, odd_pictures: Path) -> None:
    whole = Path(shutil.copytree(odd_pictures, "whole"))
    validated = Path(shutil.copytree(odd_pictures, "validated"))
    (validated / "test").rename(validated / "val")
    # The default store comes first, as MLflow keeps a given one for the whole process.
    for uri in ("", f"sqlite:///{workplace}/a b.db"):
        for data in (whole, validated, whole / "train"):
            given = ("--tracking-uri", uri) if uri else ()
            result = tl("train", *OPTIONS, data, *given)
            assert result.code == 0, result.err
            suggested = [shlex.split(line) for line in result.out.partition("Next:")[2].splitlines() if line.strip()]
            ours = [command[1:] for command in suggested if command[0] == "tl"]
            assert [command[0] for command in ours] == ["eval", "plot", "inspect"]
            for command in ours:
                completed = tl(*command)
                assert completed.code == 0, (data, command, completed.err)
            (viewer,) = [command for command in suggested if command[0] != "tl"]
            assert viewer == ["mlflow", "ui", *(["--backend-store-uri", uri] if uri else [])]


def test_a_closed_run_is_shown_with_the_command_that_resumes_it(tl, workplace: Path) -> None:
    uri = f"sqlite:///{workplace}/mlflow.db"
    store = open_store(uri)
    run = store.client.create_run(store.experiment("tl"), run_name="lost")
    closed = tl("runs", "close", run.info.run_id, "--tracking-uri", uri)
    assert f"to resume it: tl train --resume {run.info.run_id[:8]} --tracking-uri {uri}" in closed.out


@pytest.mark.slow
def test_the_limit_on_pixels_is_saved_with_the_model(tmp_path: Path, tl) -> None:
    write_pictures(tmp_path / "own", COLOURS, 8, size=32)
    write_pictures(tmp_path / "larger", COLOURS, 2, size=40)
    train = ("train", *OPTIONS, tmp_path / "own", "--max-pixels")
    refused = tl(*train, "1023")
    assert (refused.code, "--max-pixels 1024 " in refused.err) == (2, True)
    assert tl(*train, "1024").code == 0
    for command in (
        ("eval", "latest", "--data", tmp_path / "larger", "--no-log"),
        ("predict", "latest", tmp_path / "larger" / "red" / "000.png"),
    ):
        refused = tl(*command)
        assert refused.code != 0
        assert "40 x 40 pixels; at most 1,024 are decoded; with --max-pixels 1600 " in refused.err
        assert tl(*command, "--max-pixels", "1600").code == 0
    examined = tl("data", "check", tmp_path / "larger", "--no-labels", "--json", "--max-pixels", "1599")
    assert len(json.loads(examined.out)["bad"]) == 6
    assert DataSpec.model_validate_json('{"source": "digits", "layout": "train/test"}').max_pixels is None
