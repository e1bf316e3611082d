import json

import numpy as np
import pytest
import torch

from tests.support.contenders import CLASSES, COST, contender, saved_logits_of, some_right
from tests.support.multi_label import MultiLabel
from tl_cli.errors import UsageError
from tl_cli.evaluation.logits import LabelledLogits, SavedLogits
from tl_cli.evaluation.ranking import (
    Contender,
    Cost,
    Training,
    advice,
    as_data,
    caution,
    compare_all,
    differences,
    rows,
    verdicts,
)


def test_the_most_accurate_comes_first_and_a_significant_difference_is_stated() -> None:
    ranking = compare_all([contender("weak", some_right(0.6, seed=1)), contender("strong", some_right(0.9, seed=2))])
    assert [each.name for each in ranking.contenders] == ["strong", "weak"]
    sentence, note = verdicts(ranking)
    assert note.startswith("One training per model: this is about the trained models")
    assert sentence.startswith("strong is better than weak: +")
    assert "on 1,000 images" in sentence
    assert "McNemar p = " in sentence
    assert advice(ranking)[0].startswith("strong: highest accuracy, significantly better")


def test_a_small_difference_is_not_significant() -> None:
    right = some_right(0.85)
    other = right.copy()
    other[np.flatnonzero(~right)[:9]] = True
    other[np.flatnonzero(right)[:2]] = False
    ranking = compare_all([contender("a", right), contender("b", other)])
    sentence, _ = verdicts(ranking)
    # 9 against 2 images: p = 0.065.
    assert sentence.startswith("No significant difference between b and a on 1,000 images: +0.70 points")
    assert "p = 0.065" in sentence
    assert advice(ranking)[0] == "b: highest accuracy, but not significantly better than a"


def test_models_that_do_not_differ_from_the_best_may_differ_from_each_other() -> None:
    right = some_right(0.6, 4000)
    wrong = np.flatnonzero(~right)
    first, second, third = right.copy(), right.copy(), right.copy()
    first[wrong[:60]], second[wrong[60:110]] = True, True
    third[np.flatnonzero(right)[:1]] = False
    first[np.flatnonzero(right)[:40]] = False
    ranking = compare_all([contender("a", first), contender("b", second), contender("c", third)])
    top, *others = (model.name for model in ranking.contenders)
    significant = {
        (ranking.contenders[p.first].name, ranking.contenders[p.second].name): p.is_significant for p in ranking.pairs
    }
    assert (top, significant["b", "c"], significant["b", "a"]) == ("b", True, True)
    assert advice(ranking)[0] == "b: highest accuracy, significantly better than each of the others"


def test_p_values_are_adjusted_for_the_number_of_pairs() -> None:
    right = some_right(0.85)
    other = right.copy()
    other[np.flatnonzero(~right)[:9]] = True
    other[np.flatnonzero(right)[:1]] = False
    two = compare_all([contender("a", right), contender("b", other)])
    assert two.pairs[0].is_significant  # 9 against 1: p = 0.021
    four = compare_all([contender(n, r) for n, r in (("a", right), ("b", other), ("c", right), ("d", other))])
    assert not any(pair.is_significant for pair in four.pairs)
    assert "for 6 pairs" in verdicts(four)[0]


def test_images_and_classes_in_another_order_are_aligned() -> None:
    right, other = some_right(0.8), some_right(0.7, seed=5)
    plain = compare_all([contender("a", right), contender("b", other)])
    moved = Contender("b", (Training("b", saved_logits_of(other, classes=("cow", "ant", "bee"), shuffled=True)),), COST)
    ranking = compare_all([contender("a", right), moved])
    assert ranking.pairs[0].paired == plain.pairs[0].paired


def test_other_images_are_refused() -> None:
    fewer = contender("b", some_right(0.5, count=90))
    with pytest.raises(UsageError, match="10 images are in only one of them"):
        compare_all([contender("a", some_right(0.5, count=100)), fewer])
    labels = saved_logits_of(some_right(0.5))
    wrong = SavedLogits(LabelledLogits(labels.labelled.logits, (labels.labelled.labels + 1) % 3), labels.ids, CLASSES)
    with pytest.raises(UsageError, match="classes differ"):
        compare_all([contender("a", some_right(0.5)), Contender("b", (Training("b", wrong),), COST)])


def test_only_notable_differences_in_cost_are_reasons() -> None:
    small = Cost(10, 10, 32, 1000, 500.0)
    ranking = compare_all(
        [
            contender("big", some_right(0.95), cost=COST, train_seconds=100.0),
            contender("small", some_right(0.5, seed=3), cost=small, train_seconds=95.0),
        ]
    )
    words = advice(ranking)
    assert words[1].startswith("small: fastest inference (5.0x), smallest on disk (4.0x); accuracy ")
    assert words[1].endswith(" points below big")
    assert "to train" not in words[1]
    nothing = compare_all([contender("a", some_right(0.95)), contender("b", some_right(0.5, seed=3))])
    assert advice(nothing)[1] == "b: best in no measure"


def test_the_json_has_the_mean_over_seeds_and_each_seed() -> None:
    rights = [some_right(share, seed=seed) for seed, share in enumerate((0.8, 0.82, 0.84))]
    ranking = compare_all(
        [contender("a", *rights, clean_train=0.9), contender("b", *[each & some_right(0.9) for each in rights])]
    )
    row = rows(ranking)[0]
    assert row["accuracies"] == pytest.approx([float(each.mean()) for each in rights])
    assert row["accuracy"] == pytest.approx(np.mean(row["accuracies"]))
    assert row["gap"] == pytest.approx(0.9 - row["accuracy"])
    assert rows(ranking)[1]["gap"] is None
    data = json.loads(json.dumps(as_data(ranking)))
    assert data["pairs"][0]["test"] == "Student"
    assert "with 3 seeds each" in data["pairs"][0]["verdict"]


def test_a_model_that_was_trained_once_among_others_is_named() -> None:
    ranking = compare_all(
        [contender("a", some_right(0.9), some_right(0.9, seed=1)), contender("b", some_right(0.8, seed=2))]
    )
    verdict, note = verdicts(ranking)
    assert "with 2 against 1 seeds" in verdict
    assert note.startswith("Trained once: b;")


def compared(*conditions: dict[str, str] | None) -> tuple[dict[str, list[str]], str | None]:
    """Return the differences and the caution for contenders a, b, ..., each less accurate than the one before."""
    ranking = compare_all(
        [contender("abc"[index], some_right(0.9 - index / 4, seed=index), conditions=each)
         for index, each in enumerate(conditions)]
    )  # fmt: skip
    assert (verdicts(ranking)[0] == caution(ranking)) == (caution(ranking) is not None)
    return differences(ranking), caution(ranking)


def test_different_architectures_with_equal_settings_need_no_caution() -> None:
    resnet = {"architecture": "resnet18", "weights": "pretrained (torchvision:resnet18)", "epochs": "9"}
    mobile = {"architecture": "mobilenet", "weights": "pretrained (timm:mobilenet)", "epochs": "9"}
    assert compared(resnet, mobile) == ({}, None)


def test_different_settings_are_named_with_a_caution() -> None:
    resnet = {"architecture": "resnet18", "weights": "pretrained (torchvision:resnet18)", "epochs": "9"}
    mobile = {"architecture": "mobilenet", "weights": "random", "epochs": "2"}
    differing, limits = compared(resnet, mobile)
    assert differing == {"weights": ["pretrained", "random"], "epochs": ["9", "2"]}
    assert limits == (
        "These models were trained with different settings (weights, epochs): the comparison is of these trained models "
        "on these images, and does not tell which architecture is better"
    )


def test_one_different_setting_of_one_architecture_needs_no_caution() -> None:
    nine = {"architecture": "resnet18", "weights": "pretrained (a)", "epochs": "9"}
    assert compared(nine, nine | {"epochs": "2"}) == ({"epochs": ["9", "2"]}, None)
    # Other published weights of one architecture are a difference.
    differing, limits = compared(nine, nine | {"epochs": "2", "weights": "pretrained (b)"})
    assert differing == {"weights": ["pretrained (a)", "pretrained (b)"], "epochs": ["9", "2"]}
    assert limits is not None
    assert limits.endswith("does not tell which setting makes the difference")


def test_settings_that_were_not_recorded_are_unknown() -> None:
    differing, limits = compared({"architecture": "resnet18", "epochs": "9"}, None)
    assert differing == {"epochs": ["9", "?"]}
    assert limits is not None
    assert limits.startswith("It is not recorded how all of these models were trained: ")


def test_the_task_of_a_model_decides_what_is_correct() -> None:
    labels = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]] * 5)
    right = torch.where(labels == 1, 2.0, -2.0)
    wrong = right.clone()
    wrong[::4, 1] = 2.0  # a class too many in a quarter of the images
    ids = tuple(map(str, range(20)))
    ranking = compare_all(
        [
            Contender(
                name, (Training(name, SavedLogits(LabelledLogits(each, labels), ids, CLASSES)),), COST, MultiLabel()
            )
            for name, each in (("wrong", wrong), ("right", right))
        ]
    )
    assert [(model.name, float(model.correct.mean())) for model in ranking.contenders] == [
        ("right", 1.0),
        ("wrong", 0.75),
    ]
