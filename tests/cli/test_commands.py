import hashlib
import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from matplotlib.figure import Figure
from PIL import Image

from tests.support.commands import QUICK, Result, train
from tests.support.pictures import COLOURS, write_pictures
from tests.support.processes import tl_process
from tl_cli.contract import DataSpec, ModelCard
from tl_cli.models import bundle
from tl_cli.models.zoo import registry
from tl_cli.tracking.recorded import dataset_digest
from tl_cli.tracking.store import open_store
from tl_cli.training.state import CARD_FILE
from tl_cli.ui.figures import curve_figures


def test_a_run_is_trained_evaluated_plotted_and_inspected(tl, colours: Path, workplace: Path) -> None:
    trained: Result = tl("train", *QUICK, "--data", colours)
    assert trained.code == 0, trained.err
    (warning,) = trained.err.splitlines()
    assert warning.startswith("warning: the backbone has random weights and stays frozen for 1 epoch")
    for text in (
        "fc (head)",
        "frozen",
        "epoch 2/2",
        "test accuracy",
        "95% interval, 18 images",
        "gap",
        "tl eval",
        "mlflow ui",
    ):
        assert text in trained.out
    assert "\x1b" not in trained.out
    run = re.search(r"run (\w{8}) is recorded", trained.out).group(1)
    assert (workplace / "mlflow.db").exists()

    evaluated = json.loads(tl("eval", run, "--json").out)
    assert evaluated["images"] == 18
    recorded = open_store(None).find(run).data.metrics
    assert evaluated["accuracy"] == pytest.approx(recorded["test/accuracy"])
    assert evaluated["loss"] == pytest.approx(recorded["test/loss"], rel=1e-5)
    shown = tl("eval", run)
    assert shown.code == 0
    assert "blu" in shown.out
    assert "test: 18 images of 3 classes" in shown.out
    by_folder = tl("eval", next((workplace / "mlruns").glob("*/*/state/best")), "--split", "val", "--json")
    assert json.loads(by_folder.out)["accuracy"] == pytest.approx(recorded["best/val_accuracy"])

    drawn = tl("plot", "--terminal", run)
    assert drawn.code == 0
    assert "loss by step" in drawn.out
    assert "unfrozen after epoch 1" in drawn.out
    assert "\x1b" not in drawn.out
    assert tl("plot", "--output", "pictures").code == 0
    assert [Image.open(path).size[0] > 500 for path in sorted(Path("pictures").iterdir())] == [True, True]

    tree = tl("inspect", run)
    assert "shufflenet_v2_x0_5, 3 classes, input 32 x 32" in tree.out
    assert "fc (Linear): its parameters change shape" in " ".join(tree.out.split())


def test_inspect_needs_no_run(tl) -> None:
    result = tl("inspect", "efficientnet_b0", "--depth", "1")
    assert "4,020,358, 12,810 of them in the head" in result.out
    assert "classifier.1 (Linear)" in result.out


@pytest.mark.slow
def test_a_run_is_fine_tuned_from_another(tl, colours: Path) -> None:
    run = train(tl, colours)
    result = tl(
        "train", "shufflenet_v2_x0_5", "--weights", run, "--data", colours, "--epochs", "1", "--freeze-epochs", "1"
    )
    assert result.code == 0, result.err
    assert "head: kept: the weights have the same 3 classes" in result.out


@pytest.mark.slow
@pytest.mark.parametrize("folder_is_here", [True, False])
def test_resuming_a_finished_run_suggests_a_command_that_trains_its_model_further(
    tl, colours: Path, workplace: Path, folder_is_here: bool
) -> None:
    run = train(tl, colours, "--unfreeze-lr", "0.003", "--augment", "none")
    if not folder_is_here:
        (kept,) = workplace.glob("mlruns/*/*/state/config.toml")
        kept.unlink()
    refused = tl("train", "--resume", run, "--epochs", "3", "--batch-size", "8")
    assert refused.code == 2
    command = shlex.split(refused.err.splitlines()[-1])
    assert command[:2] == ["tl", "train"]
    assert "shufflenet_v2_x0_5" not in command
    result = tl(*command[1:])
    assert result.code == 0, result.err
    assert "head: kept: the weights have the same 3 classes" in result.out
    first, further = open_store(None).find(run), open_store(None).find("latest")
    expected = {"model": "shufflenet_v2_x0_5", "epochs": "1", "freeze_epochs": "0", "lr": "0.003", "batch_size": "8"}
    expected |= {name: first.data.params[name] for name in ("data", "input_size")}
    expected |= {"augment": "none"} if folder_is_here else {}
    assert {name: further.data.params[name] for name in expected} == expected
    begun_from = (open_store(None).model_folder(first) / bundle.WEIGHTS_FILE).read_bytes()
    card = bundle.read_card(open_store(None).model_folder(further))
    assert card.weights.sha256 == hashlib.sha256(begun_from).hexdigest()
    # The same images are held out; otherwise the test images might include training images of the first run.
    assert dataset_digest(further, "validation") == dataset_digest(first, "validation")


def test_weights_without_an_architecture_need_a_model(tl, workplace: Path) -> None:
    Path("bare.pth").touch()
    for weights in ("none", "default", "bare.pth", "no_such_run"):
        refused = tl("train", "--weights", weights)
        assert refused.code == 2
        assert "give a MODEL" in refused.err


@pytest.mark.slow
def test_the_head_of_a_warm_start_is_matched_by_name_or_kept_on_request(tl, colours: Path) -> None:
    run = train(tl, colours)
    folder = open_store(None).model_folder(open_store(None).find(run))
    write_pictures(Path("more"), {**COLOURS, "yellow": (220, 200, 40)}, 12)
    options = ("train", "shufflenet_v2_x0_5", "--data", "more", "--epochs", "1", "--freeze-epochs", "1")
    note = "head: 3 of 4 classes kept, matched by name; new: yellow"
    assert note in tl(*options, "--weights", run, "--dry-run").out
    assert tl(*options, "--weights", run, "--head", "new", "--dry-run").out.count("head: new (--head new)") == 1
    result = tl(*options, "--weights", run)
    assert result.code == 0, result.err
    assert note in result.out
    recorded = open_store(None).find("latest")
    assert (recorded.data.params["head"], recorded.data.params["head_start"]) == ("None", note.removeprefix("head: "))
    assert bundle.read_card(open_store(None).model_folder(recorded)).head_start == note.removeprefix("head: ")
    # A file without class names.
    safetensors.torch.save_file(safetensors.torch.load_file(folder / bundle.WEIGHTS_FILE), "bare.safetensors")
    bare = (*QUICK, "--weights", "bare.safetensors", "--data", colours, "--dry-run")
    assert "head: new: the weights do not name their 3 classes" in tl("train", *bare).out
    assert "head: kept by position (--head keep)" in tl("train", *bare, "--head", "keep").out
    for flags, problem in (
        (("--weights", "bare.safetensors", "--head", "keep"), "a head for 3 classes and the data 4 classes"),
        (("--weights", "none", "--head", "keep"), "--weights none has none"),
        (("--head", "old"), "'old' is not one of 'new', 'keep'"),
    ):
        refused = tl(*options, *flags)
        assert refused.code == 2
        assert problem in " ".join(refused.err.split())


@pytest.mark.slow
def test_a_path_with_the_ending_of_published_weights_is_read_as_a_path(tl, colours: Path) -> None:
    classifier = registry.create("timm/vit_tiny_patch16_224", 3, weights="none", input_size=32)
    torch.save(classifier.model.state_dict(), "x.augreg_in21k")
    how = classifier.preprocessing.model_copy(update={"resize": 32, "crop": 32})
    card = ModelCard(
        architecture=classifier.name, head=classifier.head, classes=tuple(COLOURS), preprocessing=how,
        build_options=classifier.build_options, weights=classifier.weights, recipe="default", epoch=1,
        data=DataSpec(source="digits", layout="classes"),
    )  # fmt: skip
    bundle.save(Path("vit.augreg_in21k"), classifier.model, card)
    for weights in ("./x.augreg_in21k", "x.augreg_in21k", "./vit.augreg_in21k", "vit.augreg_in21k"):
        options = ("timm/vit_tiny_patch16_224", "--weights", weights, "--input-size", "32")
        trained = tl("train", *options, "--data", colours, "--no-probe", "--dry-run")
        assert trained.code == 0, trained.err
        for view in (("--freeze-plan",), ("--residual", "--no-ablate", "--images", "2")):
            seen = tl("inspect", *options, *view)
            assert seen.code == 0, seen.err


@pytest.mark.slow
def test_photographs_of_many_sizes_stream(tl, workplace: Path) -> None:
    for index, (name, colour) in enumerate(COLOURS.items()):
        write_pictures(Path("photos"), {name: colour}, 10, size=100 + 20 * index)
    assert train(tl, Path("photos"), "--input-size", "64", "--workers", "2", "--augment", "flip-crop")
    assert "features computed once" in tl("train", *QUICK, "--data", "photos").out


@pytest.mark.slow
def test_a_folder_without_test_images_gives_no_test_accuracy(tl, workplace: Path) -> None:
    for part in ("train", "val"):
        write_pictures(Path("data") / part, COLOURS, 6)
    result = tl("train", *QUICK, "--data", "data")
    assert "test accuracy will not be reported" in result.out
    assert "95% interval" not in result.out
    assert "test/accuracy" not in open_store(None).find("latest").data.metrics
    measured = tl("eval", "latest")
    assert (measured.code, "the validation images selected this model's epoch" in measured.err) == (0, True)
    missing = tl("eval", "latest", "--split", "test")
    assert missing.code == 2
    assert "has no test images; there are: train, val" in missing.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", "resnt18"), r"no model is called 'resnt18'. Did you mean resnet18"),
        (("train", "resnet18", "--data", "nowhere"), "is no built-in set"),
        (("train", "resnet18", "--data", "./no/where"), "no file or folder at"),
        (("train", "resnet18", "--data", "digits", "--weights", "no.pth"), "no weights at no.pth"),
        (("train", "resnet18", "--data", "digits", "--weights", "IMAGENET9"), "has no weights called 'IMAGENET9'"),
        (("train", "resnet18", "--data", "digits", "--weights", "none", "--lr", "-1"), "--lr -1.0"),
        (("train", "resnet18", "--data", "digits", "--tag", "novalue"), "not KEY=VALUE"),
        (("train", "maxvit_t", "--weights", "none", "--data", "digits", "--input-size", "50"), "maxvit_t cannot take --input-size 50"),
        (("train",), "give a MODEL"),
        (("train", "--resume", "nothing"), "no runs"),
        (("train", "resnet18", "--frze-epochs", "3"), "no such option: --frze-epochs did you mean: .* --freeze-epochs 3"),
        (("train", "resnet18", "--config", "no.toml"), "cannot read the config no.toml"),
        (("eval", "nothing"), "no runs"),
        (("plot", "--terminal"), "no runs"),
        (("inspect", "efficentnet_b0"), "Did you mean efficientnet_b0"),
        (("eval", "x", "--split", "tset"), "tset"),
    ],
)  # fmt: skip
def test_usage_errors_have_one_clear_message_and_exit_code_2(tl, arguments: tuple[str, ...], expected: str) -> None:
    result: Result = tl(*arguments)
    assert result.code == 2, result
    message = " ".join(re.sub("[│╭╮╰╯─]", " ", result.err).split())
    assert re.search(expected, message), result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_an_image_that_cannot_be_decoded_is_named(tl, workplace: Path) -> None:
    write_pictures(Path("data"), COLOURS, 8)
    bad = Path("data/red/003.png")
    bad.write_bytes(bad.read_bytes()[:100])
    result = tl("train", *QUICK, "--data", "data")
    assert result.code == 2
    assert "red/003.png" in result.err.replace("\n", "")


@pytest.mark.slow
def test_a_failure_to_draw_figures_ends_neither_a_training_nor_an_evaluation(
    tl, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ValueError("no such font")

    monkeypatch.setattr(curve_figures, "_caption_font", fail)
    monkeypatch.setattr(Figure, "savefig", fail)
    trained = tl("train", *QUICK, "--data", colours)
    assert trained.code == 0, trained.err
    assert trained.err.count("a picture could not be drawn, so it is left out: no such font") == 2
    store = open_store(None)
    run = store.find("latest")
    assert (run.info.status, list(store.state_folder(run).glob("*.png"))) == ("FINISHED", [])
    judged = tl("eval", "latest", "--output", "judged")
    assert judged.code == 0, judged.err
    assert "no such font" in judged.err
    assert {path.name for path in Path("judged").iterdir()} == {"report.json", "classes.csv", "logits.npz"}


@pytest.mark.slow
def test_a_diverging_run_keeps_its_best_model(tl, colours: Path) -> None:
    result = tl(
        "train", *QUICK, "--data", colours, "--unfreeze-lr", "1e30", "--optimizer", "sgd", "--schedule", "constant"
    )
    assert result.code == 1
    assert "kept the best model so far (epoch 1" in result.err
    assert "start a new run with other settings" in " ".join(result.err.split())
    assert "--resume" not in result.err
    assert re.search(r"the loss is (nan|inf)", result.err)
    run = open_store(None).find("latest")
    assert run.info.status == "FAILED"
    assert tl("eval", run.info.run_id[:8]).code == 0


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_its_best_model_and_is_resumed(tl, workplace: Path, signum: int, code: int) -> None:
    write_pictures(Path("data"), COLOURS, 60)
    long = [
        *QUICK[:5],
        "--epochs",
        "400",
        "--freeze-epochs",
        "1",
        "--data",
        "data",
        "--batch-size",
        "16",
        "--schedule",
        "constant",
    ]
    reader, writer = os.pipe()
    with open("stderr.txt", "w+") as stderr, open(reader) as stdout:
        process = tl_process("train", *long, cwd=workplace, stdout=writer, stderr=stderr.fileno())
        os.close(writer)
        assert any("epoch 3/" in line for line in stdout)
        os.kill(process.pid, signum)
        stdout.read()
        process.join()
        stderr.seek(0)
        err = stderr.read()
    assert process.exitcode == code, err
    assert "kept the best model so far" in err
    assert "Traceback" not in err
    run = open_store(None).find("latest")
    assert run.info.status == "KILLED"
    resume = re.search(r"tl train --resume (\w+)", err).group(1)
    assert run.info.run_id.startswith(resume)
    (state,) = (workplace / "mlruns").glob("*/*/state")
    before = store_epochs(run.info.run_id)
    # As if a few epochs had been requested.
    card = bundle.read_card(state, CARD_FILE)
    bundle.write_card(state, card.model_copy(update={"config": {**card.config, "epochs": max(before) + 2}}), CARD_FILE)
    resumed: Result = tl("train", "--resume", resume)
    assert resumed.code == 0, resumed.err
    assert "config.toml has changed; the run continues with its original settings" in " ".join(resumed.err.split())
    after = store_epochs(run.info.run_id)
    assert after == list(range(1, max(before) + 3))
    assert open_store(None).find("latest").info.status == "FINISHED"
    again = tl("train", "--resume", resume)
    assert again.code == 2
    assert "complete" in again.err


def store_epochs(run_id: str) -> list[int]:
    return sorted(round(m.value) for m in open_store(None).client.get_metric_history(run_id, "epoch"))


def test_the_live_screen_runs_in_a_real_terminal(colours: Path, workplace: Path) -> None:
    import pty
    import select

    leader, follower = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = tl_process(
        "train", *QUICK, "--data", colours, cwd=workplace, stdout=follower, stderr=follower, TERM="xterm-256color"
    )
    os.close(follower)
    seen = b""
    while True:
        if select.select([leader], [], [], 0.5)[0]:
            try:
                chunk = os.read(leader, 65536)
            except OSError:
                break
            seen += chunk
        elif process.exitcode is not None:
            break
    process.join()
    assert process.exitcode == 0
    text = seen.decode(errors="replace")
    assert "\x1b[?1049h" in text
    assert "\x1b[?1049l" in text
    assert text.rindex("test accuracy") > text.rindex("\x1b[?1049l")
    assert "\x1b[?25h" in text


def test_images_that_change_during_a_training_are_named_and_recorded(
    tl, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_cli.api import training_run as fitting

    for index, (name, colour) in enumerate(COLOURS.items()):
        for part, count in (("train", 12), ("test", 4)):
            write_pictures(Path("data") / part, {name: colour}, count, size=60 + 10 * index)
    fit = fitting.fit

    def fit_and_change(*arguments):
        counters = fit(*arguments)
        for path in ("data/train/red/000.png", "data/train/blue/001.png", "data/test/red/003.png"):
            Image.new("RGB", (1, 1)).save(path)
        os.utime("data/test/green/000.png")
        return counters

    monkeypatch.setattr(fitting, "fit", fit_and_change)
    options = ("timm/test_resnet", "--weights", "none", "--input-size", "32", "--val-fraction", "0.25", "--steps", "4")
    result = tl("train", *options, "--data", "data", "--batch-size", "12")
    assert result.code == 0, result.err
    output = " ".join(result.err.split())
    assert "1 test image changed during the training" in output
    assert "test/red/003.png" in output
    run = open_store(None).find("latest")
    changed = re.findall(r"[a-z]+/[a-z]+/[0-9]{3}\.png", run.data.tags["tl.images_changed"])
    assert sorted(changed) == ["test/red/003.png", "train/blue/001.png", "train/red/000.png"]
    assert run.data.tags["mlflow.note.content"].count("**Warning:**") >= 2
    # The accuracy is recorded, but not as a metric of the images with this digest.
    (point,) = open_store(None).client.get_metric_history(run.info.run_id, "test/accuracy")
    assert point.dataset_digest in (None, "")
    assert "the test images are not those" in " ".join(tl("eval", "latest", "--no-log").err.split())


@pytest.mark.slow
def test_resuming_on_other_images_is_refused(tl, workplace: Path) -> None:
    for index, (name, colour) in enumerate(COLOURS.items()):
        write_pictures(Path("data"), {name: colour}, 12, size=60 + 10 * index)
    bad = sorted(Path("data/red").iterdir())[0]
    failed = tl("train", *QUICK[:-4], "--epochs", "3", "--data", "data", "--unfreeze-lr", "1e30", "--freeze-epochs", "1",
                "--optimizer", "sgd", "--schedule", "constant")  # fmt: skip
    assert failed.code == 1
    stat, whole = bad.stat(), bad.read_bytes()
    # With the same length and time of modification as before.
    bad.write_bytes(whole[:-1] + b"x")
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    replaced = tl("train", "--resume", "latest")
    assert (replaced.code, "images have changed since the run began" in " ".join(replaced.err.split())) == (2, True)
    bad.unlink()
    refused = tl("train", "--resume", "latest")
    assert refused.code == 2
    assert "images have changed" in refused.err
    Path("data").rename("moved")
    gone = tl("train", "--resume", "latest")
    assert gone.code == 2
    assert "--data" in gone.err
    assert "--data" in tl("eval", "latest").err


@pytest.mark.slow
def test_unusual_class_names_work_in_every_command(tl, workplace: Path) -> None:
    for name in ("new\nline", "[/]\x1b[31m", "猫", "a" * 120):
        write_pictures(Path("data"), {name: (len(name), 90, 200)}, 8)
    train(tl, Path("data"))
    for command in (("eval", "latest"), ("inspect", "latest"), ("plot", "-t"), ("plot", "-o", "out")):
        result = tl(*command)
        assert result.code == 0, result.err
        assert "\x1b" not in result.out


@pytest.mark.slow
def test_a_timm_model_trains_is_evaluated_and_inspected(tl) -> None:
    trained = tl("train", "timm/test_convnext.r160_in1k", "--weights", "none", "--data", "digits", "--limit", "60",
                 "--epochs", "2", "--input-size", "32", "--ema", "0.9", "--mixup", "0.2", "--run-name", "small")  # fmt: skip
    assert trained.code == 0, trained.err
    assert "timm/test_convnext, small" in tl("eval", "small").out
    assert "head.fc" in tl("inspect", "small").out
    assert "averaged" in trained.out


def test_a_mistyped_layer_is_refused_before_a_run_is_recorded(tl, colours: Path, tmp_path: Path) -> None:
    import torch

    from tl_cli.models.zoo import registry

    torch.save(registry.create("resnet18", 3, weights="none").model.state_dict(), tmp_path / "w.pth")
    result = tl(
        "train",
        "resnet18",
        "--weights",
        tmp_path / "w.pth",
        "--data",
        colours,
        "--input-size",
        "32",
        "--freeze-until",
        "layr3",
    )
    assert result.code == 2
    assert "Did you mean" in result.err
    assert open_store(None).runs() == []


@pytest.mark.slow
@pytest.mark.parametrize("width", ["80", "120"])
def test_a_plan_with_many_stages_can_be_read(tl, colours: Path, width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    result = tl("train", "resnet18", "--weights", "none", "--data", colours, "--input-size", "32", "--freeze-epochs", "1",
                "--epochs", "6", "--unfreeze-stages", "5", "--dry-run")  # fmt: skip
    assert result.code == 0, result.err
    table = result.out.partition("learning rate of the head")[0]
    assert "11,178,051" in table
    assert "epoch 3" in table
    plan = table.partition("setting")[0]
    assert "\N{HORIZONTAL ELLIPSIS}" not in plan
