import math
import subprocess
import sys

import pytest

from tl_cli.evaluation.scores import EPOCH_SCORES, RESULTS, EpochEnded, Results, better, values_by_key


def test_every_score_has_a_unique_key_and_heading() -> None:
    assert len({score.key for score in EPOCH_SCORES.values()}) == len(EPOCH_SCORES)
    assert len({score.heading for score in EPOCH_SCORES.values()}) == len(EPOCH_SCORES)


def test_the_keys_are_those_that_earlier_versions_recorded() -> None:
    assert {name: score.key for name, score in EPOCH_SCORES.items()} == {
        "train_loss": "train/loss",
        "train_accuracy": "train/accuracy",
        "val_loss": "val/loss",
        "val_accuracy": "val/accuracy",
        "lr_head": "lr/head",
        "lr_backbone": "lr/backbone",
        "seconds": "time/epoch_seconds",
        "ema_val_accuracy": "val/ema_accuracy",
        "ema_val_loss": "val/ema_loss",
        "images_per_second": "time/images_per_second",
    }


def test_the_keys_of_results_are_those_that_earlier_versions_recorded() -> None:
    assert {name: score.key for name, score in RESULTS.items()} == {
        "val_accuracy": "best/val_accuracy",
        "val_loss": "best/val_loss",
        "best_epoch": "best/epoch",
        "test_accuracy": "test/accuracy",
        "test_loss": "test/loss",
        "clean_train_accuracy": "clean_train/accuracy",
        "clean_train_loss": "clean_train/loss",
        "seconds": "time/train_seconds",
    }


def test_results_are_linked_to_the_images_that_they_were_measured_on() -> None:
    parts = {"val": "val", "test": "test", "clean_train": "train"}
    for name, score in RESULTS.items():
        assert score.measured_on == next(
            (part for prefix, part in parts.items() if name.startswith(f"{prefix}_")), None
        )


def test_results_are_read_from_the_metrics_of_a_run_and_written_under_their_keys() -> None:
    recorded = {"test/accuracy": 0.5, "best/epoch": 3.0, "step/loss": 1.0}
    results = Results.of(recorded)
    assert (results.test_accuracy, results.best_epoch, results.val_accuracy) == (0.5, 3.0, None)
    assert values_by_key(results) == {"test/accuracy": 0.5, "best/epoch": 3.0}
    assert values_by_key(EpochEnded(2, 20, val_loss=0.25)) == {"val/loss": 0.25}


@pytest.mark.parametrize(
    ("name", "value", "is_possible"),
    [
        ("test_accuracy", 1.0, True),
        ("test_accuracy", 1.01, False),
        ("test_accuracy", -0.01, False),
        ("test_accuracy", math.nan, False),
        ("test_loss", -3.0, True),
        ("test_loss", math.inf, False),
        ("best_epoch", 1e9, True),
        ("best_epoch", 2e9, False),
        ("seconds", -1.0, False),
    ],
)
def test_only_numbers_within_the_range_of_their_unit_are_possible(name: str, value: float, is_possible: bool) -> None:
    assert RESULTS[name].is_possible(value) is is_possible


def test_accuracies_improve_upwards_and_losses_downwards() -> None:
    for name, score in [*EPOCH_SCORES.items(), *RESULTS.items()]:
        assert score.better == ("higher" if "accuracy" in name else "lower" if "loss" in name else None)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("val_accuracy", 0.931, "93.10%"),
        ("val_loss", 0.25, "0.2500"),
        ("images_per_second", 12640.4, "12,640 images/s"),
        ("seconds", 12.55, "12.6 s"),
    ],
)
def test_numbers_are_written_with_their_units(name: str, value: float, text: str) -> None:
    assert EPOCH_SCORES[name].text(value) == text


def test_the_row_of_an_epoch_has_the_columns_of_earlier_versions() -> None:
    row = EpochEnded(2, 20, val_accuracy=0.5, is_best=True).to_dict()
    assert list(row) == [
        "epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr_head", "lr_backbone",
        "seconds", "ema_val_accuracy", "ema_val_loss", "images_per_second",
    ]  # fmt: skip
    assert {name: value for name, value in row.items() if value is not None} == {
        "epoch": 2, "step": 20, "val_accuracy": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "average", "validation", "averaged"),
    [
        ((0.8, 0.6), (None, None), (0.8, 0.6), False),
        ((0.8, 0.6), (0.9, 0.7), (0.9, 0.7), True),
        ((0.8, 0.6), (0.8, 0.5), (0.8, 0.5), True),
        ((0.8, 0.6), (0.8, 0.6), (0.8, 0.6), False),
        ((0.8, None), (None, None), (0.8, 0.0), False),
        ((None, None), (None, None), None, False),
    ],
)
def test_the_better_of_weights_and_average_counts(weights, average, validation, averaged: bool) -> None:
    epoch = EpochEnded(
        1, 10, val_accuracy=weights[0], val_loss=weights[1], ema_val_accuracy=average[0], ema_val_loss=average[1]
    )
    assert epoch.validation == validation
    assert epoch.averaged is averaged


def test_accuracy_decides_before_loss() -> None:
    assert better((0.7, 0.1), (0.8, 0.9), (0.8, 0.5)) == (0.8, 0.5)
    assert better() is None


def test_the_table_is_read_without_torch() -> None:
    code = (
        "import sys, tl_cli.training.history; print(sorted({'torch', 'sklearn', 'mlflow', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
