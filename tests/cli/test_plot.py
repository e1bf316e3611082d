import json
import os
import signal
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

import tl_cli
from tests.support.processes import tl_process
from tests.support.recording import dead_run, epoch, record, recorder
from tl_cli.errors import Interrupted
from tl_cli.tracking.recorder import Pace
from tl_cli.tracking.store import open_store

SCHEMAS = Path(tl_cli.__file__).parent / "api" / "schemas"


def test_several_runs_and_a_comparison_share_the_charts(tl, workplace: Path) -> None:
    store = open_store(None)
    parent = store.client.create_run(store.experiment("tl"), run_name="both", tags={"tl.compares": "models"})
    for name in ("one", "two"):
        made = record(name)
        store.client.set_tag(made.run_id, "mlflow.parentRunId", parent.info.run_id)
    for names in (("one", "two"), ("both",), ("both", "one")):
        drawn = tl("plot", "--terminal", *names)
        assert drawn.code == 0, drawn.err
        assert [line.split()[1] for line in drawn.out.splitlines()[:2]] == ["one", "two"]
        assert "validation accuracy" in drawn.out
        assert "\x1b" not in drawn.out
    assert tl("plot", "both", "-o", "pictures").code == 0
    assert len(list(Path("pictures").glob("2-runs-*.png"))) == 2
    record("three")
    assert tl("plot", "one", "three", "-o", "pictures").code == 0
    assert len(list(Path("pictures").glob("2-runs-*.png"))) == 4, "others of the same number have other pictures"


def test_runs_with_the_same_name_are_shown_with_their_ids(tl, workplace: Path) -> None:
    first, second = record("same"), record("same")
    drawn = tl("plot", "-t", first.run_id[:8], second.run_id[:8])
    assert drawn.code == 0, drawn.err
    assert first.run_id[:8] in drawn.out
    assert second.run_id[:8] in drawn.out


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf", ".PNG"])
def test_a_file_has_all_panels_and_a_folder_two_figures(ending: str, tl, workplace: Path) -> None:
    record("one")
    done = tl("plot", "--output", f"new/curves{ending}", "--log", "--x", "time")
    assert done.code == 0, done.err
    assert Path(f"new/curves{ending}").stat().st_size > 2000
    assert tl("plot").code == 0
    assert len(list(workplace.glob("*-loss_by_step.png"))) == 1
    assert Image.open(next(workplace.glob("*-accuracy_and_loss_by_epoch.png"))).size[0] > 1000


def test_metrics_by_name_and_pattern(tl, workplace: Path) -> None:
    record("one")
    drawn = tl("plot", "-t", "--metric", "val/*", "--metric", "time/images_per_second", "--x", "epoch", "--smooth", "0")
    assert drawn.code == 0, drawn.err
    for text in ("val/loss by epoch", "val/accuracy by epoch", "time/images_per_second by epoch"):
        assert text in drawn.out
    wrong = tl("plot", "-t", "--metric", "val/acuracy")
    assert (wrong.code, "Did you mean val/accuracy" in wrong.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "x.jpg"), ".png, .svg, .pdf"),
        (("--terminal", "--output", "x"), "one of"),
        (("--smooth", "1"), "0.9999"),
        (("--last", "0"), "1"),
        (("--x", "steps"), "epoch"),
    ],
)
def test_contradicting_or_wrong_options_are_refused(
    arguments: tuple[str, ...], message: str, tl, workplace: Path
) -> None:
    result = tl("plot", *arguments)
    assert result.code == 2
    assert message in result.err


def test_numbers_that_are_not_finite_are_named_and_not_drawn(tl, workplace: Path) -> None:
    made = record("one")
    store = open_store(None)
    for step, value in ((31, float("nan")), (32, float("inf")), (33, float("-inf"))):
        store.client.log_metric(made.run_id, "step/loss", value, step=step)
    drawn = tl("plot", "-t")
    assert drawn.code == 0, drawn.err
    # A heading is as wide as its panel.
    assert "step/loss is not" in drawn.out
    assert "step 31" in drawn.out


def test_a_run_that_tl_did_not_record_shows_its_own_metrics(tl, workplace: Path) -> None:
    store = open_store(None)
    run = store.client.create_run(store.experiment("other"), run_name="lightning")
    for step in range(5):
        store.client.log_metric(run.info.run_id, "train_loss", 1 / (step + 1), step=step)
    drawn = tl("plot", "-t", "lightning")
    assert drawn.code == 0, drawn.err
    assert "train_loss by step" in drawn.out
    for step in range(3):
        store.client.log_metric(run.info.run_id, "epoch", step / 10, step=step)
        store.client.log_metric(run.info.run_id, "stepless", float(step))
    drawn = tl("plot", "-t", "lightning")
    assert drawn.code == 0, drawn.err
    for text in ("train_loss by step", "epoch by step", "stepless by step"):
        assert text in drawn.out
    empty = store.client.create_run(store.experiment("other"), run_name="empty")
    assert "no points yet" in tl("plot", "-t", "empty").out
    assert empty.info.run_name in tl("plot", "empty").err


def follow(workplace: Path, *arguments: str, **environment: str):
    reader, writer = os.pipe()
    process = tl_process("plot", "--follow", *arguments, cwd=workplace, stdout=writer, stderr=writer, **environment)
    os.close(writer)
    return process, os.fdopen(reader, "rb", buffering=0)


def read_until(stream, ending: bytes) -> bytes:
    seen = b""
    while ending not in seen:
        part = stream.read(4096)
        if not part:
            break
        seen += part
    assert ending in seen, seen.decode()
    return seen


@pytest.mark.slow
def test_following_shows_epochs_as_they_end_and_ends_with_the_run(workplace: Path) -> None:
    made = record("one", epochs=1, end=False)
    process, stream = follow(workplace, MLFLOW_TRACKING_URI=f"sqlite:///{workplace}/mlflow.db")
    read_until(stream, b"epoch 1")
    made(epoch(2, 20))
    read_until(stream, b"epoch 2")
    assert process.is_alive()
    made.__exit__(None, None, None)
    output = read_until(stream, b"the run is complete")
    process.join()
    assert process.exitcode == 0
    assert b"\x1b" not in output
    assert b"loss by step" in output


@pytest.mark.slow
def test_following_waits_for_a_training_that_has_not_begun(workplace: Path) -> None:
    record("old")
    process, stream = follow(workplace, MLFLOW_TRACKING_URI=f"sqlite:///{workplace}/mlflow.db")
    read_until(stream, b"no run is training yet")
    made = record("new", epochs=1, end=False)
    read_until(stream, b"epoch 1")
    made.__exit__(None, None, None)
    output = read_until(stream, b"the run is complete")
    process.join(30)
    assert process.exitcode == 0
    assert f"new  {made.run_id[:8]}".encode() in output


@pytest.mark.slow
def test_the_run_that_was_resumed_last_is_followed_and_is_the_latest(workplace: Path) -> None:
    killed = record("killed", epochs=1, end=False)
    killed.__exit__(Interrupted, Interrupted(15), None)
    newer = record("newer")
    store = open_store(None)
    assert store.find("latest").info.run_id == newer.run_id
    resumed = recorder(store, run_id=killed.run_id, pace=Pace(send_s=0.1))
    resumed.__enter__()
    assert store.find("latest").info.run_id == killed.run_id
    process, stream = follow(workplace, MLFLOW_TRACKING_URI=f"sqlite:///{workplace}/mlflow.db")
    read_until(stream, b"epoch 1")
    resumed(epoch(2, 20))
    read_until(stream, b"epoch 2")
    resumed.__exit__(None, None, None)
    output = read_until(stream, b"the run is complete")
    process.join(30)
    assert killed.run_id[:8].encode() in output


def test_ctrl_c_does_not_stop_the_followed_run(workplace: Path) -> None:
    made = record("one", epochs=1, end=False)
    process, stream = follow(workplace, "one", MLFLOW_TRACKING_URI=f"sqlite:///{workplace}/mlflow.db")
    read_until(stream, b"epoch 1")
    os.kill(process.pid, signal.SIGINT)
    output = read_until(stream, b"tl plot --follow")
    process.join()
    assert process.exitcode == 130
    assert b"the run continues" in output
    assert b"Traceback" not in output
    store = open_store(None)
    assert store.find("one").info.status == "RUNNING"
    made(epoch(2, 20))
    made.__exit__(None, None, None)
    assert store.find("one").info.status == "FINISHED"


def test_following_a_dead_run_ends_immediately_and_reports_it(tl, workplace: Path) -> None:
    dead_run(open_store(None))
    followed = tl("plot", "--follow", "gone")
    assert followed.code == 0, followed.err
    assert "is dead" in followed.out


def test_a_metric_that_comes_later_is_followed_and_a_run_that_is_removed_ends_it(workplace: Path) -> None:
    made = record("one", epochs=0, end=False)
    process, stream = follow(
        workplace, "one", "--metric", "val/*", MLFLOW_TRACKING_URI=f"sqlite:///{workplace}/mlflow.db"
    )
    made(epoch(1, 20))
    read_until(stream, b"val/accuracy 0.7")
    open_store(None).client.delete_run(made.run_id)
    output = read_until(stream, b"has been removed")
    process.join()
    assert process.exitcode == 1
    assert b"Traceback" not in output
    made.__exit__(None, None, None)


def test_json_has_every_recorded_point_and_follows_its_schema(tl, workplace: Path) -> None:
    made = record("one", epochs=2)
    store = open_store(None)
    store.client.log_metric(made.run_id, "step/loss", float("nan"), step=21)
    result = tl("plot", "one", "--json")
    assert (result.code, result.err) == (0, "")
    printed = json.loads(result.out, parse_constant=pytest.fail)
    jsonschema.validate(printed, json.loads((SCHEMAS / "plot.json").read_text()))
    (run,) = printed["runs"]
    assert (run["run_id"], run["name"], run["status"]) == (made.run_id, "one", "finished")
    for name in ("step/loss", "val/accuracy", "lr/head"):
        recorded = {point.step: point.value for point in store.client.get_metric_history(made.run_id, name)}
        recorded.pop(21, None)
        assert {point["step"]: point["value"] for point in run["metrics"][name]} == recorded
    assert run["not_finite"] == {"step/loss": [21]}
    only = json.loads(tl("plot", "one", "--json", "--metric", "val/l*").out)["runs"][0]
    assert list(only["metrics"]) == ["val/loss"]
    assert tl("plot", "one", "--json", "--terminal").code == 2
